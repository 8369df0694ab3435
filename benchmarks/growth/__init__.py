"""How time and memory grow: measured in processes of their own, fitted, extrapolated, explained."""
