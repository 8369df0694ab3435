"""The detector graded blind, on models whose algorithm is known."""
