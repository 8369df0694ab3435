"""One step of gradient descent with a trained preconditioner: y = C_t P q_t; Ahn et al. 2023."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Posed


@dataclass(frozen=True)
class PreconditionedDescent:
    """As many constants as P has entries."""

    name: str = "preconditioned_gd"
    is_null: bool = False

    def left(self, posed: Posed) -> Float[Tensor, "batch time d_v rows"]:
        """C_t."""
        return posed.moments.cross


NAMED = {"preconditioned_gd": PreconditionedDescent()}
