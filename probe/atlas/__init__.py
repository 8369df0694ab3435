"""The head atlas: the in-context problem of every attention head, and what its answers are."""

from probe.atlas.finding import finding_of
from probe.atlas.read import Atlas, read_atlas, work_of

__all__ = ["Atlas", "finding_of", "read_atlas", "work_of"]
