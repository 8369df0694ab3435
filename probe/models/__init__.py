"""Sequence models with the standard hook names, and their training."""
