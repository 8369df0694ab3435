"""The stream turned by a random orthogonal matrix: no channel holds a slot any more."""

from dataclasses import dataclass

import torch

from probe.planted.base import Planted
from probe.planted.disguises.base import is_linear_in_stream
from probe.planted.disguises.bases import in_basis
from probe.tasks.teachers import Orthogonal


@dataclass(frozen=True)
class Rotation:
    """A Haar rotation or reflection."""

    name: str = "rotation"

    def fits(self, planted: Planted) -> bool:
        """Where matrices alone touch the stream."""
        return is_linear_in_stream(planted)

    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """Draws the basis."""
        basis = Orthogonal().draw(1, planted.model.config.d_model, generator)[0]
        return in_basis(planted, basis, self.name)


NAMED = {"rotation": Rotation()}
