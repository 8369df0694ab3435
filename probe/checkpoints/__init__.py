"""Checkpoint formats: each file turns a path into a checked Subject."""
