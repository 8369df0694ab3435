"""The reference mesa-layer beside the model: least squares fitted to the task, on the same data."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.findings import Reference
from probe.stages import Batch, Measured, Sums
from probe.statistics import mean_per_sequence, share_explained
from probe.views import SUBJECT, TWIN

PREDICTORS = ("model", "mesa-layer", "one gradient step", "oracle", "zero")
MODEL, MESA = 0, 1


@dataclass(frozen=True)
class FittedReference:
    """Constants fitted to the targets of the fit split: lambda, and eta of one gradient step."""

    ridge: float
    eta: float


@dataclass(frozen=True)
class ReferenceStage:
    """Losses by position of the model and of the predictors that it is compared with.

    Attributes:
        around: The search for lambda spans a decade either side of this value.
    """

    around: float
    views: tuple[str, ...] = (SUBJECT, TWIN)
    folds: int = 1

    @property
    def ridges(self) -> Float[Tensor, " ridges"]:
        """The candidates for lambda."""
        return self.around * torch.logspace(-1, 1, 17, dtype=torch.float64)

    def fit(self, batch: Batch) -> Sums:
        """Losses at every lambda, and the products that give the best gradient step."""
        return batch.context.once(self, lambda: self._products(batch))

    def _products(self, batch: Batch) -> Sums:
        spectrum, targets = batch.context.spectrum, batch.context.problem.targets.double()
        kept = torch.where(spectrum.present, spectrum.query, 0.0)[..., None]
        solved = spectrum.maps @ (kept / (spectrum.mu[..., None] + self.ridges))
        step = spectrum.predict(torch.ones_like)
        return {
            "losses": ((solved - targets[..., None]) ** 2).sum((0, 1, 2)),
            "step": torch.stack([(step * targets).sum(), (step**2).sum()]),
        }

    def learn(self, sums: Sums) -> FittedReference:
        """The lambda of least loss, and the least-squares step size."""
        losses, step = sums["losses"].sum(0), sums["step"].sum(0)
        return FittedReference(float(self.ridges[losses.argmin()]), float(step[0] / step[1]))

    def test(self, batch: Batch, learned: FittedReference) -> Sums:
        """Losses by block, position and predictor; and the model's distances by block."""
        problem, spectrum = batch.context.problem, batch.context.spectrum
        output = batch.capture.output.double()
        mesa = spectrum.predict(lambda mu: 1 / (mu + learned.ridge))
        oracle = problem.oracle.double()
        step = spectrum.predict(lambda mu: torch.full_like(mu, learned.eta))
        predictions = torch.stack([output, mesa, step, oracle, torch.zeros_like(output)], -1)
        errors = ((predictions - problem.targets.double()[..., None]) ** 2).sum(2)
        distances = [output, output - mesa, output - oracle]
        squares = torch.stack([(part**2).sum((1, 2)) for part in distances], -1)
        return {
            "losses": batch.by_block(0.5 * errors),
            "squares": batch.by_block(squares),
            "sequences": batch.by_block(torch.ones(len(output))),
        }


def conclude(measured: Measured) -> Reference:
    """The numbers of the report's comparison with the mesa-layer."""
    losses, count = measured.sums["losses"].mean(1), measured.sums["sequences"]
    model, from_mesa, from_oracle = measured.sums["squares"].unbind(-1)
    excess = mean_per_sequence(losses[:, MODEL] - losses[:, MESA], count)
    return Reference(
        ridge=measured.learned.ridge,
        loss=mean_per_sequence(losses[:, MESA], count).value,
        model_loss=mean_per_sequence(losses[:, MODEL], count).value,
        excess_of_model=excess.value,
        excess_lo=excess.lo,
        excess_hi=excess.hi,
        agreement_r2=share_explained(from_mesa, model).value,
        error_r2=share_explained(from_mesa, from_oracle).value,
    )
