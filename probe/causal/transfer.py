"""How an edit of a solver's state moves the output, explained through the context.

If z is the state of a linear iterative solver at a layer and position t, then changing it by dz
changes the prediction by C_t T(G_t) dz: T is the polynomial of the steps that remain. T is free
here, a curve of hats over log mu; a direct term dz, past the context, stands beside it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.response import FINE, STRIDE, hats, second_differences
from probe.stages import Context
from probe.statistics import Interval, bootstrap_interval, share_explained

ROUGH = 1e-5  # penalty on the bends of T, as a share of the mean diagonal
FLOOR = 1e-9
SPACING = 2  # every second knot: 16 hats miss the bends of a Chebyshev polynomial by 2 %
HATS = len(range(STRIDE - 1, FINE, SPACING))


@dataclass(frozen=True)
class Place:
    """The context of one position.

    Attributes:
        hats: 31 hats at the eigenvalues of G_t, divided by them; 0 below the rank.
        basis: Eigenvectors of G_t.
        maps: C_t in the eigenbasis.
    """

    hats: Float[Tensor, "batch d_k hats"]
    basis: Float[Tensor, "batch d_k d_k"]
    maps: Float[Tensor, "batch d_v d_k"]

    @classmethod
    def at(cls, context: Context, position: int, knots: Float[Tensor, " knots"]) -> "Place":
        """The context at a position."""
        seen = context.spectrum
        mu, present = seen.mu[:, position], seen.present[:, position]
        return cls(
            _scaled_hats(mu, present, knots), seen.basis[:, position], seen.maps[:, position]
        )

    @classmethod
    def of_pairs(
        cls,
        keys: Float[Tensor, "batch pairs d_k"],
        values: Float[Tensor, "batch pairs d_v"],
        knots: Float[Tensor, " knots"],
    ) -> "Place":
        """The context that consists of these pairs."""
        keys, values = keys.double(), values.double()
        mu, basis = torch.linalg.eigh(keys.mT @ keys)
        present = mu > mu.shape[-1] * torch.finfo(torch.float32).eps * mu[:, -1:]
        maps = (values.mT @ keys @ basis) * present[:, None]
        return cls(_scaled_hats(mu, present, knots), basis, maps)

    def through(self, change: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d_v hats"]:
        """C_t hat_i(G_t) G_t^-1 dz: the columns that T weights.

        A change that is not as wide as a query cannot pass through the context: zeros.
        """
        if change.shape[-1] != self.basis.shape[-1]:
            return self.maps.new_zeros(*self.maps.shape[:2], self.hats.shape[-1])
        coordinates = self.basis.mT @ change[..., None]
        return self.maps @ (coordinates * self.hats)


def _scaled_hats(mu: Tensor, present: Tensor, knots: Tensor) -> Tensor:
    weights = hats(mu, knots[STRIDE - 1 :: SPACING]).double()
    return torch.where(present[..., None], weights / mu[..., None], 0.0)


DIRECT, MOVED, GAP = HATS, HATS + 1, HATS + 2


def columns(
    place: Place,
    change: Float[Tensor, "batch d"],
    moved: Float[Tensor, "batch d_v"],
    gap: Float[Tensor, "batch d_v"],
) -> Float[Tensor, "batch d_v columns"]:
    """Hats through the context, the direct term, what the output did, and the model's error.

    The direct term is left out where the state is not as wide as the prediction.
    """
    same = change.shape == moved.shape
    direct = change if same else torch.zeros_like(moved)
    beside = torch.stack([direct, moved, gap], -1)
    return torch.cat([place.through(change), beside], -1)


@dataclass(frozen=True)
class Transfer:
    """What became of an edit, by block of sequences.

    Attributes:
        moved: Summed squares of the output's change.
        unexplained: What the context and the direct term together leave of it.
        without_context: What the direct term alone leaves, or all if that term is worse.
        energy: Summed squares of the output before the edit.
    """

    moved: Float[Tensor, " blocks"]
    unexplained: Float[Tensor, " blocks"]
    without_context: Float[Tensor, " blocks"]
    energy: Float[Tensor, " blocks"]

    @property
    def r2(self) -> Interval:
        """Share of the change that is explained."""
        return share_explained(self.unexplained, self.moved)

    @property
    def through_context(self) -> Interval:
        """Share that is explained through the context, beyond the direct term."""
        return bootstrap_interval(lambda weights: (weights @ self.gain) / (weights @ self.moved))

    @property
    def gain(self) -> Float[Tensor, " blocks"]:
        """Summed squares that the context explains beyond the direct term."""
        return self.without_context - self.unexplained

    @property
    def effect(self) -> float:
        """Size of the change, as a share of the output's energy."""
        return float(self.moved.sum() / self.energy.sum())

    def above(self, control: "Transfer") -> Interval:
        """Share through the context minus the control's, paired by block.

        A control whose T fails on the other half explains nothing, not less.
        """
        return bootstrap_interval(
            lambda weights: (
                (weights @ self.gain) / (weights @ self.moved)
                - ((weights @ control.gain) / (weights @ control.moved)).clamp(min=0)
            )
        )

    def plus(self, other: "Transfer") -> "Transfer":
        """Both together, such as two positions of one layer."""
        return Transfer(*(a + b for a, b in zip(_parts(self), _parts(other), strict=True)))


def _parts(transfer: Transfer) -> tuple[Tensor, ...]:
    return transfer.moved, transfer.unexplained, transfer.without_context, transfer.energy


@dataclass(frozen=True)
class Response:
    """T fitted on each half of the blocks: weights over hats and the direct term.

    Attributes:
        halves: Weights fitted on the even and on the odd blocks.
    """

    halves: Float[Tensor, "2 columns"]


def fit_response(gram: Float[Tensor, "blocks columns columns"]) -> Response:
    """T by least squares on each half of the blocks."""
    return Response(torch.stack([_solve(gram[half::2].sum(0), MOVED) for half in (0, 1)]))


def score(
    gram: Float[Tensor, "blocks columns columns"],
    energy: Float[Tensor, " blocks"],
    response: Response | None = None,
) -> Transfer:
    """Scores each half of the blocks by T of the other half.

    Args:
        gram: Products of `columns` by block.
        energy: Summed squares of the output by block.
        response: T from another edit of the same layer; None: fitted to this one.
    """
    found = response or fit_response(gram)
    moved = gram[:, MOVED, MOVED]
    direct = torch.stack([_solve_direct(gram[half::2].sum(0)) for half in (0, 1)])
    alone = _error(gram, direct)
    if alone.sum() > moved.sum():  # fitted to the other half it may be worse than no term at all
        alone = moved
    return Transfer(moved, _error(gram, found.halves), alone, energy)


def loss_after(
    gram: Float[Tensor, "blocks columns columns"], response: Response
) -> tuple[Float[Tensor, " blocks"], Float[Tensor, " blocks"]]:
    """Summed squares of the model's error after the edit: as measured, and as T predicts."""
    gap, moved = gram[:, GAP, GAP], gram[:, MOVED, MOVED]
    measured = gap - 2 * gram[:, GAP, MOVED] + moved
    weights = _crossed(response.halves, len(gram))
    square = torch.einsum("bc,bcd,bd->b", weights, gram[:, :MOVED, :MOVED], weights)
    predicted = gap - 2 * (gram[:, GAP, :MOVED] * weights).sum(-1) + square
    return measured, predicted


def _crossed(halves: Tensor, blocks: int) -> Tensor:
    """For every block the weights of the other half."""
    return halves[1 - torch.arange(blocks) % 2]


def _error(gram: Tensor, halves: Tensor) -> Tensor:
    weights = _crossed(halves, len(gram))
    square = torch.einsum("bc,bcd,bd->b", weights, gram[:, :MOVED, :MOVED], weights)
    return gram[:, MOVED, MOVED] - 2 * (gram[:, MOVED, :MOVED] * weights).sum(-1) + square


def _solve(gram: Tensor, target: int) -> Tensor:
    system = gram[:MOVED, :MOVED]
    scale = system.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    penalty = FLOOR * torch.eye(len(system), dtype=gram.dtype)
    penalty[:HATS, :HATS] += ROUGH * second_differences(HATS)
    return torch.linalg.solve(system + scale * penalty, gram[:MOVED, target])


def _solve_direct(gram: Tensor) -> Tensor:
    weights = torch.zeros(MOVED, dtype=gram.dtype)
    weights[DIRECT] = gram[DIRECT, MOVED] / gram[DIRECT, DIRECT].clamp(
        min=torch.finfo(gram.dtype).tiny
    )
    return weights
