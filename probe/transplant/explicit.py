"""The penalty and the output map of the explicit layer, fitted to the targets of the task."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.moments import Moments
from probe.problem import prefix_moments, spectrum
from probe.ridge import least_squares
from probe.stages import Batch, Sums
from probe.transplant.binding import Binding
from probe.views import SUBJECT

RIDGES = torch.logspace(-4, 2, 25, dtype=torch.float64)


@dataclass(frozen=True)
class Answer:
    """What the layer makes of its reading.

    Attributes:
        ridge: lambda, in units of the keys that are read, squared.
        out: B of y_hat = z B, where z_t = Phi_t q_t.
    """

    ridge: float
    out: Float[Tensor, "d_v d_v"]


@dataclass(frozen=True, eq=False)
class ExplicitStage:
    """Regresses the targets on the layer's answers, at every penalty of the grid.

    Attributes:
        binding: How the layer reads the stream.
    """

    binding: Binding
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Moments of the answers at each penalty with the targets; cells are penalties."""
        stream = batch.capture.layers[self.binding.layer]
        problem = self.binding.read(stream, batch.context.problem)
        seen = spectrum(prefix_moments(problem), problem.queries)
        kept = torch.where(seen.present, seen.query, 0.0)[..., None]
        answers = seen.maps @ (kept / (seen.mu[..., None] + RIDGES))
        z = answers.permute(3, 0, 1, 2).flatten(1, 2)
        y = problem.targets.flatten(0, 1)
        yy = y.square().sum(0).expand(len(RIDGES), -1)
        return {"xx": z.mT @ z, "xy": z.mT @ y, "yy": yy}

    def learn(self, sums: Sums) -> Answer:
        """The penalty of least error after the map, and the map."""
        moments = Moments(**sums).total()
        maps = least_squares(moments)
        best = int(moments.squared_error(maps).sum(-1).argmin())
        return Answer(float(RIDGES[best]), maps[best])

    def test(self, batch: Batch, learned: Answer) -> Sums:
        """Nothing: the model that is built is measured as it is."""
        return {"sequences": batch.by_block(torch.ones(len(batch.blocks)))}
