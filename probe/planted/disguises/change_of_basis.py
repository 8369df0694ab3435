"""The stream in a basis that is not orthogonal: slots overlap, reading and writing differ."""

from dataclasses import dataclass

import torch

from probe.planted.base import Planted
from probe.planted.disguises.base import is_linear_in_stream
from probe.planted.disguises.bases import in_basis
from probe.sampling import uniform
from probe.tasks.teachers import Orthogonal


@dataclass(frozen=True)
class ChangeOfBasis:
    """M = U diag(s) V^T with random U and V and log s uniform.

    Attributes:
        condition: Bound of the condition number of M.
    """

    name: str = "change_of_basis"
    condition: float = 5.0

    def fits(self, planted: Planted) -> bool:
        """Where matrices alone touch the stream."""
        return is_linear_in_stream(planted)

    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """Draws the basis."""
        width = planted.model.config.d_model
        left, right = Orthogonal().draw(2, width, generator)
        half = 0.5 * float(torch.tensor(self.condition).log())
        sizes = uniform(generator, -half, half, width).exp()
        return in_basis(planted, (left * sizes) @ right, self.name)


NAMED = {"change_of_basis": ChangeOfBasis()}
