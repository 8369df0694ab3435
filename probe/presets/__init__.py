"""Presets: what a published checkpoint file does not state about its model, and its task."""
