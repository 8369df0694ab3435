"""From sums of products to the share of a head's answers that each explanation gives.

With r the answer, d an explanation and c its factor, the error is rr - 2 c rd + c^2 dd. The three
sums serve every factor; so constants are fitted on one half and scored on the other in one pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.atlas.explanations import FROM_MEAN, GROUPS, MEMBERS, SHUFFLED, Group, Penalties
from probe.statistics import BLOCKS, Interval, mean_per_sequence, share_explained

ROWS = (*MEMBERS, *MEMBERS[:SHUFFLED])
WRONG = len(MEMBERS)  # where those with shuffled keys start
Products = Float[Tensor, "batch heads rows 3"]


def products(
    answers: Float[Tensor, "targets batch heads at d_v"],
    mean: Float[Tensor, "batch heads at d_v"],
    explained: Sequence[Float[Tensor, "batch heads at d_v _"]],
) -> Float[Tensor, "targets batch heads rows 3"]:
    """(rr, rd, dd) of each sequence, head and explanation, summed over positions and channels.

    Args:
        answers: What the heads gathered, and what others would have.
        mean: The mean of their values so far; of the step from the mean, r is the answer less it.
        explained: What each explanation says, a few side by side.
    """
    said = torch.cat([answers, mean[None]]).flatten(3).movedim(0, 2)
    parts = [part.flatten(2, 3) for part in explained]
    along = torch.cat([said @ part for part in parts], -1).movedim(2, 0)
    rd, of_mean = along[:-1], along[-1]
    dd = torch.cat([part.square().sum(2) for part in parts], -1).expand_as(rd)
    rr = answers.square().sum((-1, -2))[..., None].repeat(1, 1, 1, len(ROWS))
    beyond = (answers - mean).square().sum((-1, -2))
    for row in (FROM_MEAN, WRONG + FROM_MEAN):
        rr[..., row] = beyond
        rd[..., row] -= of_mean[..., row]
    return torch.stack([rr, rd, dd], -1)


class Sums:
    """Products of both halves of the sequences; the test half by block."""

    def __init__(self, heads: int):
        self.fit = torch.zeros(heads, len(ROWS), 3, dtype=torch.float64)
        self.test = torch.zeros(BLOCKS, heads, len(ROWS), 3, dtype=torch.float64)
        self.energy = torch.zeros(BLOCKS, heads, dtype=torch.float64)
        self.values = torch.zeros(heads, dtype=torch.float64)

    def add_fit(self, seen: Products) -> None:
        """Adds sequences of the fit half."""
        self.fit += seen.sum(0)

    def add_test(
        self, seen: Products, values: Float[Tensor, "batch heads"], blocks: Int[Tensor, " batch"]
    ) -> None:
        """Adds sequences of the test half.

        Args:
            seen: Their products.
            values: Squares of their values, beside which an answer may be nothing.
            blocks: The block of each sequence.
        """
        self.test.index_add_(0, blocks, seen)
        self.energy.index_add_(0, blocks, seen[:, :, -1, 0])
        self.values += values.sum(0)


@dataclass(frozen=True)
class Explained:
    """The best explanation of a group.

    Attributes:
        form: Which of the group.
        constant: Its fitted factor; for ridge regression lambda.
        error: Its squared error, by block.
        energy: Squares of what is explained, by block.
    """

    form: str
    constant: float
    error: Float[Tensor, " blocks"]
    energy: Float[Tensor, " blocks"]

    @cached_property
    def share(self) -> Interval:
        """Held-out R^2 with its interval."""
        return share_explained(self.error, self.energy)

    @property
    def value(self) -> float:
        """Held-out R^2."""
        return 1 - float(self.error.sum() / self.energy.sum())

    def ahead_of(self, other: "Explained") -> Interval:
        """How much more it explains, paired by block."""
        return mean_per_sequence(other.error - self.error, self.energy)


@dataclass(frozen=True)
class Score:
    """How well each group explains one head.

    Attributes:
        groups: The best of each group.
        shuffled: The same of step and ridge with keys shuffled among the past.
        beyond_mean: The step from the mean, as it explains what the mean leaves.
        silent: Whether the head answers nothing, beside its values.
        edge: Whether lambda is the smallest or the largest that was tried.
    """

    groups: Mapping[Group, Explained]
    shuffled: Mapping[Group, Explained]
    beyond_mean: Explained
    silent: bool
    edge: bool


SILENT = 1e-12  # of the squares of the values


def scores(sums: Sums, penalties: Penalties) -> tuple[Score, ...]:
    """One score per head."""
    factors = _factors(sums.fit)
    fitted, tested = _errors(sums.fit, factors), _errors(sums.test, factors)
    return tuple(
        _score(sums, fitted[head], tested[:, head], factors[head], penalties.grid[head], head)
        for head in range(len(sums.fit))
    )


def _factors(fit: Float[Tensor, "heads rows 3"]) -> Float[Tensor, "heads rows"]:
    rd, dd = fit[..., 1], fit[..., 2]
    free = torch.tensor([row.scaled for row in ROWS])
    best = torch.where(dd > 0, rd / dd, 0.0)
    return torch.where(free, best, 1.0)


def _errors(
    sums: Float[Tensor, "*blocks heads rows 3"], factors: Float[Tensor, "heads rows"]
) -> Float[Tensor, "*blocks heads rows"]:
    rr, rd, dd = sums.unbind(-1)
    return rr - 2 * factors * rd + factors.square() * dd


def _score(
    sums: Sums, fitted: Tensor, tested: Tensor, factors: Tensor, grid: Tensor, head: int
) -> Score:
    energy = sums.energy[:, head]

    def best(group: Group, start: int) -> tuple[Explained, int]:
        rows = [i for i, row in enumerate(MEMBERS) if row.group == group]
        shifted = torch.tensor(rows) + start
        place = int(fitted[shifted].nan_to_num(torch.inf).argmin())
        row = int(shifted[place])
        constant = grid[place] if group == "ridge" else factors[row]
        return Explained(ROWS[row].form, float(constant), tested[:, row], energy), place

    groups = {group: best(group, 0)[0] for group in GROUPS}
    wrong: dict[Group, Explained] = {
        group: best(group, WRONG)[0] for group in GROUPS if group in ("step", "ridge")
    }
    total = float(energy.sum())
    return Score(
        groups=groups,
        shuffled=wrong,
        beyond_mean=Explained(
            MEMBERS[FROM_MEAN].form,
            float(factors[FROM_MEAN]),
            tested[:, FROM_MEAN],
            sums.test[:, head, FROM_MEAN, 0],
        ),
        silent=not total > SILENT * float(sums.values[head]),
        edge=best("ridge", 0)[1] in (0, len(grid) - 1),
    )
