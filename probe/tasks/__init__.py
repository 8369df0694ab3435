"""Tasks: each file samples one family of sequences and states their in-context problem."""
