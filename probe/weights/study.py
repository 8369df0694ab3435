"""All that is read off the weights of one model, and how much of the model it is."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import capture
from probe.models.attention import LinearAttention
from probe.models.transformer import SequenceTransformer
from probe.sweep import PILOT, Plan, Sweep
from probe.views import SUBJECT, seen_as
from probe.weights.blocks import Scalars, scalars
from probe.weights.equations import Equation, equations
from probe.weights.identity import Score, identity_score, restricted
from probe.weights.products import products
from probe.weights.roles import Roles
from probe.weights.slots import SlotBasis
from probe.weights.terms import Scores, TermStage, coefficients

Progress = Callable[[int, int], None]
PILOT_SEQUENCES = 8


@dataclass(frozen=True)
class HeadProduct:
    """One product of one head, where it can act.

    Attributes:
        layer: The block, from 0.
        head: The head, from 0.
        kind: "scores" for W_Q W_K^T, "values" for W_V W_O.
        matrix: The whole product in the basis of the slots.
        score: Its block-identity score over the slots through which it can act.
    """

    layer: int
    head: int
    kind: str
    matrix: Float[Tensor, "n n"] = field(repr=False)
    score: Score


def head_products(model: SequenceTransformer, basis: SlotBasis) -> tuple[HeadProduct, ...]:
    """Every product of every head with its score."""
    found = []
    for layer, both in enumerate(products(model, basis)):
        read, write = basis.reads(model, layer), basis.writes(model, layer)
        for kind, matrices, columns in (
            ("scores", both.scores, read),
            ("values", both.values, write),
        ):
            for head, matrix in enumerate(matrices):
                score = identity_score(restricted(matrix, read, columns), basis.width)
                found.append(HeadProduct(layer, head, kind, matrix, score))
    return tuple(found)


def acting(model: SequenceTransformer, basis: SlotBasis) -> tuple[Scalars, ...]:
    """The block scalars of a model, zero where they can have no effect on its prediction."""
    found = []
    for layer, one in enumerate(scalars(model, basis)):
        read = basis.reads(model, layer).double()
        write = basis.writes(model, layer).double()
        found.append(
            Scalars(one.scores * torch.outer(read, read), one.values * torch.outer(read, write))
        )
    return tuple(found)


def counts(model: SequenceTransformer, basis: SlotBasis) -> tuple[int, int]:
    """How many block scalars the model has, and how many of them can reach its prediction."""
    every, reach = 0, 0
    for layer, one in enumerate(scalars(model, basis)):
        read = int(basis.reads(model, layer).sum())
        write = int(basis.writes(model, layer).sum())
        every += 2 * one.scores.numel()
        reach += len(one.scores) * read * (read + write)
    return every, reach


def find_roles(plan: Plan) -> Roles:
    """What the slots of the plan's tokens hold."""
    sample = plan.draw(PILOT, 0, PILOT_SEQUENCES)
    return Roles.of(sample, plan.task.problem(sample))


def update_equations(
    model: SequenceTransformer,
    basis: SlotBasis,
    plan: Plan,
    progress: Progress = lambda done, total: None,
) -> tuple[Equation, ...]:
    """The equations of every block, scored on the streams that the model itself has.

    Args:
        model: The model.
        basis: Its slots.
        plan: The data; half chooses terms, half scores them.
        progress: Told of the shards.
    """
    roles = find_roles(plan)
    layers = acting(model, basis)
    causal = isinstance(model.config.blocks[0].attention, LinearAttention)
    stage = TermStage(basis, causal, max(2, len(layers) // 2), roles.step)
    sweep = Sweep(plan, {SUBJECT: model}, {SUBJECT: seen_as(SUBJECT)}, capture, progress)
    measured = sweep.run((stage,))[stage, SUBJECT]
    found: list[Equation] = []
    for layer, (one, scores) in enumerate(zip(layers, Scores.of(stage, measured), strict=True)):
        fit = {name: value[layer] for name, value in measured.learned.items() if value.ndim}
        fit["sequences"] = measured.learned["sequences"]
        found += equations(coefficients(one), fit, scores, roles, layer)
    return tuple(found)
