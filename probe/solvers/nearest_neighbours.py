"""Null: the mean value of the nearest keys."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Posed, Quadratic
from probe.solvers.kernel_smoother import offered

NEIGHBOURS = (1, 3)


@dataclass(frozen=True)
class NearestNeighbours:
    """1 or 3 neighbours; fewer while fewer are offered."""

    name: str = "nearest_neighbours"
    is_null: bool = True
    width: int = len(NEIGHBOURS)

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """One mean per number of neighbours; zero while no pair is offered."""
        problem = posed.problem
        keys, queries = problem.keys.float(), problem.queries.float()
        distance = (keys**2).sum(-1)[:, None, :] - 2 * queries @ keys.mT
        distance = distance.masked_fill(~offered(problem), torch.inf)
        count = min(max(NEIGHBOURS), distance.shape[-1])
        nearest = distance.topk(count, largest=False)
        batch = torch.arange(len(keys))[:, None, None]
        values = problem.values.float()[batch, nearest.indices]
        there = nearest.values.isfinite()[..., None]
        sums, counts = (values * there).cumsum(2), there.cumsum(2).clamp(min=1)
        means = sums / counts
        return torch.stack([means[:, :, min(n, count) - 1] for n in NEIGHBOURS], -1).double()

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """The better number of neighbours; no scale."""
        chosen = torch.eye(self.width, dtype=torch.float64)
        best = int(errors.error(chosen).argmin())
        constants = {"neighbours": NEIGHBOURS[best]}
        return (Fitted(self.name, constants, chosen[best], degree=None, free=0),)


NAMED = {"nearest_neighbours": NearestNeighbours()}
