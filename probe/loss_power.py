"""Which power p of the residual is minimised: sum_j |v_j - W k_j|^p + lambda |W|^2?

Without noise all powers have nearly the same minimum, so they are compared under a law with more
noise as well. Dynamics are then driven by their noise alone: states stay as large as those that the
model knows, while at t positions the noise makes 1 / t of their variance. Beside the minimum stands
one gradient step from W = 0, whose prediction is proportional to
sum_j sign(v_j) |v_j|^(p-1) k_j . q.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from probe.problem import InContextProblem
from probe.profiles import Profile
from probe.stages import Batch, Measured, Sums
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.tasks.base import Task
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.regression import InContextRegression
from probe.views import PLANTED, SUBJECT

POWERS = (1.0, 1.5, 2.0, 3.0)
DRIVEN = 0.13  # for 20 positions of noise add up to the variance 1/3 of uniform states
LOUD = 0.3
ROUNDS = 30
FINE = 1000
SMOOTH = 1e-3  # residuals below this share of their rms count alike, where p < 2


@runtime_checkable
class Noisy(Protocol):
    """A task whose noise is one number."""

    noise: float


def louder(task: Task) -> Task:
    """The task with noise that parts the powers.

    Dynamics start at the size of their noise; where noise does not add up it is larger.
    """
    changeable: Any = task
    changes = {"noise": LOUD}
    if not isinstance(task, InContextRegression):
        changes = {"noise": DRIVEN}
    if isinstance(task, LinearDynamics):
        changes["start"] = DRIVEN
    changed: Task = replace(changeable, **changes)
    return changed


def minimiser(
    keys: Float[Tensor, "rows pairs d_k"],
    values: Float[Tensor, "rows pairs d_v"],
    power: float,
    ridge: float,
) -> Float[Tensor, "rows d_v d_k"]:
    """W of least sum |v - W k|^p + lambda |W|^2 per channel, by reweighted least squares.

    Beyond p = 2 plain reweighting oscillates; steps of 1 / (p - 1) are those of Newton's method
    on the power (Osborne 1985). Pairs of zeros count for nothing.

    Args:
        keys: k_j, in float64.
        values: v_j, in float64.
        power: p, at least 1.
        ridge: lambda.
    """
    eye = ridge * torch.eye(keys.shape[-1], dtype=keys.dtype)
    weights = torch.ones_like(values)
    found = values.new_zeros(*values.shape[::2], keys.shape[-1])
    damping = 1 / max(1.0, power - 1)
    for step in range(ROUNDS if power != 2 else 1):
        weighted = weights.mT[..., None] * keys[:, None]  # rows d_v pairs d_k
        gram = weighted.mT @ keys[:, None] + eye
        cross = weighted.mT @ values.mT[..., None]
        solved = torch.linalg.solve(gram, cross)[..., 0]
        found = solved if step == 0 else found + damping * (solved - found)
        residual = values - keys @ found.mT
        floor = (SMOOTH**2 * values.square().mean()).clamp(min=torch.finfo(keys.dtype).tiny)
        weights = 0.5 * power * (residual.square() + floor) ** ((power - 2) / 2)
    return found


@dataclass(frozen=True)
class PowerFit:
    """Constants of the fit split, one per power.

    Attributes:
        ridges: lambda of the minimum.
        rates: Size of one gradient step.
    """

    ridges: tuple[float, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class PowerStage:
    """Minima and gradient steps of every power beside the predictions.

    Attributes:
        places: The positions.
        ridges: The candidates for lambda, ascending.
        powers: The powers.
        views: The subject, and the planted mesa-layer, which minimises squares, as the control.
    """

    places: tuple[int, ...]
    ridges: tuple[float, ...]
    powers: tuple[float, ...] = POWERS
    views: tuple[str, ...] = (SUBJECT, PLANTED)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Errors of all minima, and the products that give the best steps."""
        problem, said = batch.context.problem, self._said(batch)
        minima = batch.context.once((self, "minima"), lambda: self._minima(problem))
        steps = torch.stack([self._step(problem, power) for power in self.powers])
        return {
            "errors": (minima - said).square().sum((2, 3, 4)),
            "along": (steps * said).sum((1, 2, 3)),
            "square": steps.square().sum((1, 2, 3)),
        }

    def learn(self, sums: Sums) -> PowerFit:
        """The lambda of least error, between the candidates, and the best size of the step."""
        logs = torch.tensor(self.ridges, dtype=torch.float64).log()
        fine = torch.linspace(float(logs[0]), float(logs[-1]), FINE, dtype=torch.float64)
        curves = CubicSpline(logs.numpy(), sums["errors"].sum(0).log().T.numpy())
        best = torch.from_numpy(curves(fine.numpy())).argmin(0)
        rates = sums["along"].sum(0) / sums["square"].sum(0)
        return PowerFit(tuple(fine[best].exp().tolist()), tuple(rates.tolist()))

    def test(self, batch: Batch, learned: PowerFit) -> Sums:
        """Errors by block, kind and power, and the energy of the predictions."""
        problem, said = batch.context.problem, self._said(batch)
        minima = [
            self.minimum(problem, power, ridge)
            for power, ridge in zip(self.powers, learned.ridges, strict=True)
        ]
        steps = [
            rate * self._step(problem, power)
            for power, rate in zip(self.powers, learned.rates, strict=True)
        ]
        tried = torch.stack([torch.stack(minima), torch.stack(steps)])
        errors = (tried - said).square().sum((3, 4)).permute(2, 0, 1)
        return {
            "errors": batch.by_block(errors),
            "energy": batch.by_block(said.square().sum((1, 2))),
        }

    def _said(self, batch: Batch) -> Tensor:
        return batch.capture.output[:, list(self.places)].double()

    def _minima(self, problem: InContextProblem) -> Float[Tensor, "powers ridges batch places d"]:
        return torch.stack(
            [
                torch.stack([self.minimum(problem, power, ridge) for ridge in self.ridges])
                for power in self.powers
            ]
        )

    def minimum(
        self, problem: InContextProblem, power: float, ridge: float
    ) -> Float[Tensor, "batch places d_v"]:
        """Predictions of the minimum at the places."""
        keys, values, queries = self._contexts(problem)
        maps = minimiser(keys.flatten(0, 1), values.flatten(0, 1), power, ridge)
        return (maps @ queries.flatten(0, 1)[..., None])[..., 0].unflatten(0, keys.shape[:2])

    def _step(self, problem: InContextProblem, power: float) -> Float[Tensor, "batch places d_v"]:
        keys, values, queries = self._contexts(problem)
        pulled = values.sign() * values.abs() ** (power - 1)
        return (pulled.mT @ (keys @ queries[..., None]))[..., 0]

    def _contexts(self, problem: InContextProblem) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of every place, zero after it and where there is no pair; queries."""
        at = torch.tensor(self.places)
        seen = torch.arange(problem.keys.shape[1]) <= at[:, None]
        keys = problem.keys.double()[:, None] * seen[..., None]
        offered = keys.ne(0).any(-1, keepdim=True)
        values = problem.values.double()[:, None] * offered
        return keys, values, problem.queries.double()[:, at]


KIND = ("minimum", "gradient step")


@dataclass(frozen=True)
class PowerReading:
    """What the errors say.

    Attributes:
        powers: The powers.
        errors: Summed squared error by block, kind and power.
        energy: Summed squares of the predictions by block.
    """

    powers: tuple[float, ...]
    errors: Float[Tensor, "blocks kinds powers"]
    energy: Float[Tensor, " blocks"]

    @classmethod
    def of(cls, stage: PowerStage, measured: Measured) -> "PowerReading":
        """From what the stage measured."""
        return cls(stage.powers, measured.sums["errors"], measured.sums["energy"])

    @property
    def kind(self) -> int:
        """Whether the best minimum or the best single step comes nearer."""
        return int(self.errors.sum(0).amin(1).argmin())

    @property
    def best(self) -> int:
        """Place of the best power of that kind."""
        return int(self.errors.sum(0)[self.kind].argmin())

    def r2(self, place: int) -> Interval:
        """Of a power of that kind."""
        return share_explained(self.errors[:, self.kind, place], self.energy)

    def deficit(self, place: int) -> Interval:
        """R^2 of the best power minus that of another, paired by block."""
        lost = self.errors[:, self.kind, place] - self.errors[:, self.kind, self.best]
        return bootstrap_interval(lambda weights: (weights @ lost) / (weights @ self.energy))

    def alike(self, delta: float) -> list[float]:
        """The powers that are not shown to be worse than the best by delta."""
        pairs = enumerate(self.powers)
        return [power for place, power in pairs if self.deficit(place).lo <= delta]

    @property
    def fitted(self) -> Interval:
        """The power of least error, between those that were tried; over its logarithm."""
        grid = tuple(math.log(power) for power in self.powers)
        least = Profile(grid, self.errors[:, self.kind], self.energy).least()
        return Interval(*(math.exp(end) for end in (least.value, least.lo, least.hi)))
