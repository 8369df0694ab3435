"""The instrument: problems, solvers, responses, views, verdicts; imports nothing from `analyses`."""

__version__ = "0.1.0"
