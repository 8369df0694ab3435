"""Tokens tuned by Adam on a frozen model: an EOS after every pair, a prefix before all of them."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from probe.few_shot.losses import frozen, squared_errors
from probe.linalg import LinAlgError
from probe.mesa_layer import IllConditioned
from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for, normal
from probe.tasks.few_shot import FewShot, PairLayout, WithEos, WithPrefix

# Streams of tuning, far from the splits: no test sequence has been tuned on.
STARTS, FRESH, CHECK = 9101, 9102, 9103
SCALES = (1.0, 2.0, 4.0, 8.0)
# With fewer pairs than channels errors can be huge: one such batch must not still all later steps.
LARGEST_GRADIENT = 1.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Budget:
    """How tokens are tuned.

    The paper takes 5,000 steps of 64 or 128 sequences at a rate of 1e-3 for each, from one random
    start. Here fewer steps at a higher rate go on from the best of some starts; the curve of the
    losses shows whether they are enough.

    Attributes:
        steps: Steps of Adam, each on fresh sequences.
        batch: Sequences per step.
        rate: Learning rate, falling to 0 along a cosine.
        starts: Random tokens; the best of them and the zero token is where an EOS starts.
        checked: Sequences on which tokens are compared.
        prefix: Number of tokens of a prefix.
    """

    steps: int = 300
    batch: int = 8
    rate: float = 0.05
    starts: int = 16
    checked: int = 64
    prefix: int = 20


@dataclass(frozen=True)
class Tuned:
    """Tokens, and how they came about.

    Attributes:
        layout: The layout with the tokens.
        start: Loss on the check sequences before the first step.
        check: Loss on the check sequences of what was kept: never above `start`.
        curve: Loss of every step on its own sequences.
    """

    layout: PairLayout = field(repr=False)
    start: float
    check: float
    curve: tuple[float, ...] = field(repr=False)


def random_eos(width: int, seed: int, at: int = 0) -> WithEos:
    """An EOS token with normal entries; the first has scale 1, as the paper's start."""
    scale = SCALES[at % len(SCALES)]
    return WithEos(scale * normal(generator_for(seed, STARTS, at), width).float())


def tuned_eos(
    model: SequenceTransformer, task: FewShot, budget: Budget, seed: int, progress: Progress
) -> Tuned:
    """An EOS token, from the best of some random tokens and the zero token.

    Args:
        model: The model; it stays as it is.
        task: Pairs of one matrix; its layout does not matter.
        budget: Steps and starts.
        seed: Fixes all random numbers.
        progress: Called with (steps done, steps in all).
    """
    nothing = WithEos(torch.zeros(task.width))
    starts = [nothing, *(random_eos(task.width, seed, at) for at in range(budget.starts))]
    best = min(starts, key=lambda layout: check_loss(model, task, layout, budget, seed))
    return tune(model, task, WithEos, best.token, budget, seed, progress)


def tuned_prefix(
    model: SequenceTransformer,
    task: FewShot,
    eos: WithEos,
    budget: Budget,
    seed: int,
    progress: Progress,
) -> Tuned:
    """A prefix under a given EOS token, from a row of such tokens.

    Args:
        model: The model; it stays as it is.
        task: Pairs of one matrix; its layout does not matter.
        eos: The EOS token.
        budget: Steps and length.
        seed: Fixes all random numbers.
        progress: Called with (steps done, steps in all).
    """
    start = eos.token.repeat(budget.prefix, 1)
    return tune(model, task, partial(WithPrefix, eos), start, budget, seed, progress)


@torch.no_grad()
def check_loss(
    model: SequenceTransformer, task: FewShot, layout: PairLayout, budget: Budget, seed: int
) -> float:
    """Mean loss over pairs and check sequences; infinite where it is no number."""
    laid = replace(task, layout=layout)
    sequences = laid.sample(budget.checked, generator_for(seed, CHECK))
    loss = float(squared_errors(frozen(model, budget.checked), laid, sequences).mean())
    return loss if math.isfinite(loss) else math.inf


def tune(
    model: SequenceTransformer,
    task: FewShot,
    layout: Callable[[Tensor], PairLayout],
    start: Float[Tensor, "*tokens d"],
    budget: Budget,
    seed: int,
    progress: Progress,
) -> Tuned:
    """Any tokens, from a given start; the start is kept where the steps do not help.

    Args:
        model: The model; it stays as it is.
        task: Pairs of one matrix; its layout does not matter.
        layout: The layout with given tokens.
        start: Tokens before the first step.
        budget: Steps.
        seed: Fixes all random numbers.
        progress: Called with (steps done, steps in all).
    """
    tokens = start.clone().requires_grad_()
    adam = torch.optim.Adam([tokens], budget.rate)
    curve: list[float] = []
    for step in range(budget.steps):
        laid = replace(task, layout=layout(tokens))
        try:
            loss = _loss(model, laid, budget.batch, generator_for(seed, FRESH, step))
        except LinAlgError:  # a mesa-layer was given keys that are no longer finite
            break
        (tokens.grad,) = torch.autograd.grad(loss, tokens)
        if not bool(tokens.grad.isfinite().all()):
            break
        torch.nn.utils.clip_grad_norm_(tokens, LARGEST_GRADIENT)
        for group in adam.param_groups:
            group["lr"] = budget.rate * 0.5 * (1 + math.cos(math.pi * step / budget.steps))
        adam.step()
        curve.append(loss.item())
        progress(step + 1, budget.steps)
    before, after = layout(start), layout(tokens.detach())
    checks = [check_loss(model, task, tried, budget, seed) for tried in (before, after)]
    kept = after if checks[1] <= checks[0] else before
    return Tuned(kept, checks[0], min(checks), tuple(curve))


def _loss(
    model: SequenceTransformer, task: FewShot, count: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean loss over fresh pairs, as a function of the tokens of the layout."""
    sequences = task.sample(count, generator)
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditioned)  # the state is widened by itself
        output = model(sequences.tokens.to(device)).to(sequences.tokens.device)
    errors = output[:, task.asked] - task.split(sequences)[1]
    return 0.5 * errors.square().sum(-1).mean()
