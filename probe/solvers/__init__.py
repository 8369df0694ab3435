"""Solvers: reference algorithms and nulls, one family per file."""
