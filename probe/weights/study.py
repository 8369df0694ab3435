"""All that is read off the weights of one model, and how much of the model it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import capture
from probe.closeness import Closeness, compare
from probe.models.attention import LinearAttention
from probe.models.transformer import SequenceTransformer
from probe.plan import PILOT, Plan
from probe.progress import Phases
from probe.statistics import Interval
from probe.sweep import Sweep
from probe.views import SUBJECT, permuted_twin, seen_as
from probe.weights.blocks import Scalars, compress, scalars, with_scalars
from probe.weights.equations import Equation, equations
from probe.weights.identity import Score, identity_score, restricted
from probe.weights.path import Path, along, balanced, matched, misplaced
from probe.weights.products import products
from probe.weights.roles import Roles
from probe.weights.slots import SlotBasis, token_slots
from probe.weights.terms import Scores, TermStage, coefficients, members

Progress = Callable[[int, int], None]
PILOT_SEQUENCES = 8
PHASES = 12  # of which the first comparison is one
COMPRESSED, STEP = "compressed", "gradient step"


@dataclass(frozen=True)
class HeadProduct:
    """One product of one head, where it can act.

    Attributes:
        layer: The block, from 0.
        head: The head, from 0.
        kind: "scores" for W_Q W_K^T, "values" for W_V W_O.
        matrix: The whole product in the basis of the slots.
        energy: Squared norm of its part through which it can act.
        score: The block-identity score of that part.
    """

    layer: int
    head: int
    kind: str
    matrix: Float[Tensor, "n n"] = field(repr=False)
    energy: float
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
                part = restricted(matrix, read, columns)
                score = identity_score(part, basis.width)
                energy = float(part.square().sum())
                found.append(HeadProduct(layer, head, kind, matrix, energy, score))
    return tuple(found)


def mean_score(heads: Sequence[HeadProduct]) -> tuple[float, float]:
    """The mean block-identity score and the mean of the null's 95 % quantiles.

    Heads weigh as the square of what they do, |A|^2 |B|^2, on which their scale has no say.
    """
    sizes = {(one.layer, one.head, one.kind): one.energy for one in heads}
    acts = {
        (layer, head): sizes[layer, head, "scores"] * sizes[layer, head, "values"]
        for layer, head, _ in sizes
    }
    most = {layer: max(acts[at] for at in acts if at[0] == layer) for layer, _ in acts}
    weights = torch.tensor([acts[one.layer, one.head] / (most[one.layer] or 1) for one in heads])
    scores = torch.tensor([[one.score.share, one.score.null_hi] for one in heads])
    share, null = (weights @ scores / weights.sum().clamp(min=1e-30)).tolist()
    return share, null


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


def twin_of(model: SequenceTransformer, seed: int) -> SequenceTransformer:
    """The permuted twin, with the read-in and read-out of the model, which give it its slots."""
    twin = permuted_twin(model, seed)
    kept = {name: t for name, t in model.state_dict().items() if not name.startswith("blocks.")}
    twin.load_state_dict(kept, strict=False)
    return twin


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


@dataclass(frozen=True)
class Study:
    """What the weights of a model say.

    Attributes:
        basis: The slots.
        roles: What they hold.
        heads: The products of every head with their scores.
        equations: What every block adds.
        counts: How many block scalars there are, and how many can reach the prediction.
        compressed: The model of block scalars beside the model.
        step: The gradient step alone beside a model of one block; None for deeper ones.
        twin: The permuted twin's block scalars beside the permuted twin.
        twin_heads: The twin's products.
        loss: The model's own loss.
        path: From the model to its block scalars.
        misplaced: The same with the heads in each other's places.
    """

    basis: SlotBasis
    roles: Roles
    heads: tuple[HeadProduct, ...] = field(repr=False)
    equations: tuple[Equation, ...]
    counts: tuple[int, int]
    compressed: Closeness
    step: Closeness | None
    twin: Closeness
    twin_heads: tuple[HeadProduct, ...] = field(repr=False)
    loss: Interval
    path: Path
    misplaced: Path


def study(model: SequenceTransformer, plan: Plan, progress: Progress) -> Study:
    """Reads everything off a model whose stream is made of the slots of the plan's task.

    Raises:
        InputError: It is not.
    """
    slots = token_slots(model)
    basis, roles = SlotBasis.of(model, slots), find_roles(plan)
    read = scalars(model, basis)
    models = {SUBJECT: model, COMPRESSED: with_scalars(model, basis, read)}
    if len(read) == 1:
        models[STEP] = with_scalars(model, basis, [only_step(read[0], roles)])
    phases = Phases(progress, PHASES)
    beside = compare(models, plan, phases.next())
    twin = twin_of(model, plan.seed)
    twins = {SUBJECT: twin, COMPRESSED: compress(twin, slots)}
    start, end = products(model, basis), [one.products(basis.width) for one in read]
    return Study(
        basis=basis,
        roles=roles,
        heads=head_products(model, basis),
        equations=update_equations(model, basis, plan, phases.next(5)),
        counts=counts(model, basis),
        compressed=beside[COMPRESSED],
        step=beside.get(STEP),
        twin=compare(twins, plan, phases.next())[COMPRESSED],
        twin_heads=head_products(twin, basis),
        loss=beside[SUBJECT].loss,
        path=along(model, basis, (balanced(start), matched(start, end)), plan, phases.next(2)),
        misplaced=along(
            model, basis, (balanced(start), misplaced(start, end)), plan, phases.next(3)
        ),
    )


def only_step(layer: Scalars, roles: Roles) -> Scalars:
    """The scalars of the gradient step alone: from query to key, from value to prediction."""
    query, key, value = roles.step
    empty = [place for place, letter in enumerate(roles.letters) if letter == "y"]
    count = len(roles.letters)
    asked = members([query, key], count)
    written = members([value, empty], count)
    return Scalars(layer.scores * asked, layer.values * written)
