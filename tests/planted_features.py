"""Nonlinear dynamics without normalisation, and a model whose first MLP computes the features."""
