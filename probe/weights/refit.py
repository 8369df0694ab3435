"""Block scalars fitted to what a model does, and the few of them that are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call

from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for
from probe.weights.blocks import Scalars
from probe.weights.slots import SlotBasis

STEPS, SHORT_STEPS = 60, 12
PROBES = 8  # random vectors for the diagonal of the Gauss-Newton matrix
SHRINK = 0.7  # of the scalars stay at each pruning
HISTORY = 20


@dataclass(frozen=True)
class Fit:
    """Block scalars fitted to a model's predictions.

    Attributes:
        layers: The scalars.
        error: What they leave of the predictions on the sequences that they were fitted to.
        used: How many are not zero.
        bic: n log(error) + used log(n) with n sequences times channels: positions of a sequence
            depend on each other (Schwarz 1978).
    """

    layers: tuple[Scalars, ...] = field(repr=False)
    error: float
    used: int
    bic: float


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """The rebuilt model as a function of its scalars, with what it is to reproduce.

    Attributes:
        template: A model with scalars for products.
        basis: Its slots.
        tokens: Sequences, in float64.
        wanted: Predictions of the model that it is to reproduce.
    """

    template: SequenceTransformer = field(repr=False)
    basis: SlotBasis
    tokens: Float[Tensor, "batch time d_in"] = field(repr=False)
    wanted: Float[Tensor, "batch time d_out"] = field(repr=False)

    def __post_init__(self) -> None:
        """All is computed in float64."""
        self.template.double()

    def __call__(self, flat: Float[Tensor, " scalars"]) -> Float[Tensor, "batch time d_out"]:
        """Its predictions."""
        weights = {}
        for layer, one in enumerate(self.unpacked(flat)):
            name, both = f"blocks.{layer}.attn", one.products(self.basis.width)
            weights[f"{name}.W_Q"] = self.basis.read @ both.scores
            weights[f"{name}.W_V"] = self.basis.read @ both.values
        output: Tensor = functional_call(self.template, weights, self.tokens)
        return output

    def error(self, flat: Float[Tensor, " scalars"]) -> Float[Tensor, ""]:
        """What they leave of the wanted predictions, as a share."""
        return (self(flat) - self.wanted).square().sum() / self.wanted.square().sum()

    def unpacked(self, flat: Float[Tensor, " scalars"]) -> tuple[Scalars, ...]:
        """Scalars by block from a vector."""
        slots = self.basis.count
        heads = [block.attention.heads for block in self.template.config.blocks]
        parts = flat.split([count * slots * slots for count in heads for _ in range(2)])
        shaped = [part.view(-1, slots, slots) for part in parts]
        return tuple(Scalars(*pair) for pair in zip(shaped[::2], shaped[1::2], strict=True))


def packed(layers: Sequence[Scalars]) -> Float[Tensor, " scalars"]:
    """All scalars as a vector, block by block, those of A before those of B."""
    return torch.cat([part.flatten() for one in layers for part in (one.scores, one.values)])


def refit(rebuilt: Rebuilt, start: Sequence[Scalars], steps: int = STEPS) -> Fit:
    """Fits all scalars to the predictions, through the exact forward pass and in float64.

    Args:
        rebuilt: The model as a function of its scalars.
        start: Where to start: the scalars read off the weights; those at zero stay there.
        steps: Iterations of L-BFGS.
    """
    flat = packed(start)
    return _fit(rebuilt, _minimise(rebuilt, flat, flat.ne(0), steps))


def pruned(
    rebuilt: Rebuilt,
    whole: Fit,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Fit, ...]:
    """Fits with fewer and fewer scalars; the one of least `bic` is the sparse one.

    Scalars are dropped in the order of c^2 H, H the diagonal of the Gauss-Newton matrix (Optimal
    Brain Damage, LeCun et al. 1990), and the others fitted on, until `bic` rises.

    Args:
        rebuilt: The model as a function of its scalars.
        whole: The fit of all scalars.
        progress: Told of (prunings done, in all at most).

    Returns:
        The fits from `whole` to the first whose `bic` is not the least.
    """
    fits, most = [whole], int(log(max(whole.used, 2)) / -log(SHRINK)) + 1
    while fits[-1].used > 1 and fits[-1].bic <= min(fit.bic for fit in fits):
        progress(len(fits), most)
        flat = packed(fits[-1].layers)
        saliency = flat.square() * _curvature(rebuilt, flat)
        dropped = saliency.argsort(descending=True)[int(SHRINK * fits[-1].used) :]
        flat = flat.index_fill(0, dropped, 0.0)
        fits.append(_fit(rebuilt, _minimise(rebuilt, flat, flat.ne(0), SHORT_STEPS)))
    return tuple(fits)


def _minimise(
    rebuilt: Rebuilt, flat: Float[Tensor, " scalars"], mask: Bool[Tensor, " scalars"], steps: int
) -> Float[Tensor, " scalars"]:
    """L-BFGS over the scalars of the mask, in units of the root mean square of their block."""
    units = torch.cat(
        [part.square().mean().sqrt().expand_as(part).flatten() for part in _parts(rebuilt, flat)]
    )
    units = units.clamp(min=float(units.max()) * 1e-3)
    moved = (flat / units)[mask].requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [moved],
        max_iter=steps,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )

    def placed() -> Tensor:
        return torch.zeros_like(flat).masked_scatter(mask, moved) * units

    def closure() -> Tensor:
        optimiser.zero_grad()
        error = rebuilt.error(placed())
        error.backward()
        return error.detach()

    with torch.enable_grad():
        optimiser.step(closure)
    return placed().detach()


def _parts(rebuilt: Rebuilt, flat: Tensor) -> list[Tensor]:
    return [part for one in rebuilt.unpacked(flat) for part in (one.scores, one.values)]


def _curvature(rebuilt: Rebuilt, flat: Tensor) -> Float[Tensor, " scalars"]:
    """The diagonal of J^T J, J the derivative of the predictions, by random signs."""
    generator = generator_for(0, PROBES, len(flat))
    total = torch.zeros_like(flat)
    with torch.enable_grad():
        at = flat.clone().requires_grad_(True)
        output = rebuilt(at)
        for _ in range(PROBES):
            signs = torch.randint(2, output.shape, generator=generator) * 2.0 - 1
            (slope,) = torch.autograd.grad(output, at, signs.double(), retain_graph=True)
            total += slope.square()
    return total / PROBES


@torch.no_grad()
def _fit(rebuilt: Rebuilt, flat: Tensor) -> Fit:
    error, used = float(rebuilt.error(flat)), int(flat.ne(0).sum())
    count = len(rebuilt.tokens) * rebuilt.wanted.shape[-1]
    bic = count * log(max(error, 1e-14)) + used * log(count)
    return Fit(rebuilt.unpacked(flat), error, used, bic)
