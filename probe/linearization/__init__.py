"""Attention layers replaced by the linear attention layers closest to them."""
