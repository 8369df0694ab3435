"""The instrument: problems, solvers, views, verdicts. Imports nothing from `analyses`."""

__version__ = "0.1.0"
