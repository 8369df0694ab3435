"""The head atlas."""
