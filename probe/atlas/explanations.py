"""What the answer of a head may be: a gradient step, least squares, or something simpler.

Every explanation of a problem is a vector at each position. All but ridge regression, and softmax
as the head itself is scaled, are fitted with one factor; so nulls have as many constants as a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.atlas.problem import HeadProblem, derangements

Group = Literal["step", "ridge", "softmax", "smoother", "mean", "copy"]
GROUPS: tuple[Group, ...] = ("step", "ridge", "softmax", "smoother", "mean", "copy")
STEPS = ("sum", "average", "from the mean")
MEANS = ("mean", "sum", "sum by the mean key")
COPIES = ("current", "previous", "first")
TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-8, 9))  # a common head scales by one of them
PENALTIES = 64
BELOW, ABOVE = 1e-3, 10.0  # ends of the penalties beside the smallest and the largest eigenvalue


@dataclass(frozen=True)
class Member:
    """One explanation.

    Attributes:
        group: The group in which the best on the fit split is chosen.
        form: Which of the group.
        scaled: Whether a factor is fitted.
    """

    group: Group
    form: str
    scaled: bool = True


MEMBERS: tuple[Member, ...] = (
    *(Member("step", form) for form in STEPS),
    *(Member("ridge", str(i), scaled=False) for i in range(PENALTIES)),
    Member("softmax", "own", scaled=False),
    *(Member("smoother", f"{scale:.3g}") for scale in TEMPERATURES),
    *(Member("mean", form) for form in MEANS),
    *(Member("copy", form) for form in COPIES),
)
SHUFFLED = len(STEPS) + PENALTIES  # so many, the first of all, are read with shuffled keys too
FROM_MEAN = STEPS.index("from the mean")


@dataclass(frozen=True)
class Penalties:
    """The penalties lambda that are tried for each head, ascending."""

    grid: Float[Tensor, "heads penalties"]

    @property
    def middle(self) -> Float[Tensor, " heads"]:
        """One between two of the grid."""
        half = PENALTIES // 2
        return (self.grid[:, half - 1] * self.grid[:, half]).sqrt()


@dataclass(frozen=True)
class _Spectrum:
    """Eigenvalues mu of G_p, and where they lie above the rounding of the model's numbers."""

    mu: Float[Tensor, "batch heads at d_k"]
    present: Bool[Tensor, "batch heads at d_k"]
    basis: Float[Tensor, "batch heads at d_k d_k"]

    @classmethod
    def of(cls, problem: HeadProblem) -> "_Spectrum":
        mu, basis = torch.linalg.eigh(problem.gram)
        present = (mu > mu.shape[-1] * problem.eps * mu[..., -1:]) & (mu > 0)
        return cls(mu, present, basis)


def penalties_for(problem: HeadProblem) -> Penalties:
    """From well below the smallest to well above the largest eigenvalue of a pilot sample."""
    found = _Spectrum.of(problem)
    mu = torch.where(found.present, found.mu, torch.nan).transpose(0, 1).flatten(1)
    high = mu.nan_to_num(0).amax(1)
    high = torch.where(high > 0, high, 1.0)
    low = mu.nanquantile(0.05, dim=1).nan_to_num(1.0)
    low = torch.maximum(BELOW * low, problem.eps * high)
    steps = torch.linspace(0, 1, PENALTIES, dtype=mu.dtype)
    ends = (low.log()[:, None], (ABOVE * high).log()[:, None])
    return Penalties(torch.lerp(*ends, steps).exp())


def explanations(
    problem: HeadProblem, penalties: Penalties
) -> tuple[Float[Tensor, "batch heads at d_v _"], ...]:
    """All members, less the mean for the step from it, then the first `SHUFFLED` once more.

    They lie side by side in a few parts, which together would be too large for the cache. Those at
    the end pair each value with the key of another token of the past.
    """
    moved = derangements(problem.at, problem.keys.shape[2])
    keys = problem.keys[:, :, moved.T]  # batch, heads, time, at, d_k
    wrong = problem.products(problem.values, keys)
    right, crossed = _ridges(problem, (problem.cross, wrong), penalties)
    return (
        _steps(problem, problem.cross),
        right,
        _smoothers(problem),
        _means(problem),
        _copies(problem),
        _steps(problem, wrong),
        crossed,
    )


def _steps(
    problem: HeadProblem, cross: Float[Tensor, "batch heads at d_v d_k"]
) -> Float[Tensor, "batch heads at d_v steps"]:
    """C q, C q / n, and sum_j w_j (v_j - mean) (k_j - mean) . q / n."""
    step = (cross @ problem.queries[..., None])[..., 0]
    average = step / problem.mass
    along = (problem.mean_key * problem.queries).sum(-1, keepdim=True)
    return torch.stack([step, average, average - problem.mean_value * along], -1)


def _ridges(
    problem: HeadProblem,
    crosses: Sequence[Float[Tensor, "batch heads at d_v d_k"]],
    penalties: Penalties,
) -> list[Float[Tensor, "batch heads at d_v penalties"]]:
    """C (G + lambda)^-1 q for every C and every lambda, from one eigendecomposition."""
    found = _Spectrum.of(problem)
    along = found.basis.mT @ problem.queries[..., None]
    shrunk = along / (found.mu.clamp_min(0)[..., None] + penalties.grid[:, None, None])
    return [cross @ found.basis @ shrunk for cross in crosses]


def _smoothers(problem: HeadProblem) -> Float[Tensor, "batch heads at d_v temperatures_and_one"]:
    """Softmax over the past: as heads scale their scores, then at every temperature."""
    own = problem.keys.shape[-1] ** -0.5
    scales = torch.tensor([1.0, *TEMPERATURES], dtype=problem.keys.dtype) * own
    logits = problem.scores[..., None, :] * scales[:, None]
    gated = (problem.weights.log().clamp_min(-1e9) + problem.past.log())[..., None, :]
    mixed = logits.add_(gated).softmax(-1).flatten(2, 3) @ problem.values
    return mixed.unflatten(2, (-1, len(scales))).transpose(-1, -2)


def _means(problem: HeadProblem) -> Float[Tensor, "batch heads at d_v means"]:
    """The mean of the values, their sum, and C q if all keys were alike: pairs then say nothing."""
    total = problem.mean_value * problem.mass
    along = (problem.mean_key * problem.queries).sum(-1, keepdim=True)
    return torch.stack([problem.mean_value, total, total * along], -1)


def _copies(problem: HeadProblem) -> Float[Tensor, "batch heads at d_v copies"]:
    """The current value, the one before, and the first."""
    sources: list[Int[Tensor, " at"]] = [
        problem.at,
        (problem.at - 1).clamp_min(0),
        torch.zeros_like(problem.at),
    ]
    return torch.stack([problem.values[:, :, source] for source in sources], -1)


def planted_step(problem: HeadProblem) -> Float[Tensor, "batch heads at d_v"]:
    """The answer of a head that takes one gradient step of size 1, by its scores."""
    return (problem.weights * problem.scores) @ problem.values


def planted_ridge(
    problem: HeadProblem, penalties: Penalties
) -> Float[Tensor, "batch heads at d_v"]:
    """The answer of a head that solves least squares, by a direct solve."""
    eye = torch.eye(problem.keys.shape[-1], dtype=problem.keys.dtype)
    system = problem.gram + penalties.middle[:, None, None, None] * eye
    dual = torch.linalg.solve(system, problem.queries[..., None])
    return (problem.cross @ dual)[..., 0]
