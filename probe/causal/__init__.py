"""Causal tests: edit the stream of a running model, and predict what that does to the output."""
