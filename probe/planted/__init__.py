"""Models whose algorithm is known, because their weights were written to run it."""
