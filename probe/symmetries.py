"""Changes of the input under which a learner's predictions change in a known way.

A linear learner predicts C f(G) q with sums G and C over its pairs. So the order of the pairs is
nothing to it, pairs of several teachers are merely other sums, its predictions are linear in the
values, and they turn with the states; with states scaled by c, mu becomes c^2 mu.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.sampling import uniform
from probe.tasks.base import Sequences, Task
from probe.tasks.functions import Linear
from probe.tasks.inputs import Isotropic
from probe.tasks.interleaved_regression import InterleavedRegression
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics
from probe.tasks.nonlinear_dynamics import NonlinearDynamics
from probe.tasks.partial_observation import PartialObservation, delay_embedding
from probe.tasks.regression import InContextRegression
from probe.tasks.teachers import Contracting, Gaussian, GivenSpectrum, Orthogonal

ISOTROPIC = (Orthogonal, Gaussian, Contracting, GivenSpectrum)


@dataclass(frozen=True)
class PairedTokens:
    """Tokens that carry pairs of their own, so that pairs can be changed one by one.

    Places count steps of `span` tokens, which are positions of the problem.

    Attributes:
        values: The channels [start, stop) of a token that hold its value.
        first: The first place that carries a pair.
        stop: The place after the last that can.
        span: The tokens of a pair; the last of them holds its value.
    """

    values: tuple[int, int]
    first: int
    stop: int
    span: int = 1

    def before(self, end: int) -> tuple[int, int]:
        """The range of the places with pairs that come before place `end`."""
        return self.first, min(end, self.stop)

    def until(
        self, tokens: Float[Tensor, "batch time d_in"], end: int
    ) -> Float[Tensor, "batch cut d_in"]:
        """The tokens up to the query at place `end`, which is the first token there."""
        return tokens[:, : self.span * end + 1]


def paired_tokens(task: Task) -> PairedTokens | None:
    """Where the pairs of a task's tokens are; None where a pair is spread over two tokens.

    A constructed token holds its state twice, and a model may take the value from either place:
    both count as the value.
    """
    if isinstance(task, LinearDynamics) and isinstance(task.layout, ConstructedTokens):
        return PairedTokens((task.width, 3 * task.width), 1, task.length)
    if isinstance(task, InContextRegression):
        return PairedTokens((2 * task.width, 3 * task.width), 0, task.pairs)
    if isinstance(task, InterleavedRegression):
        return PairedTokens((0, task.width_out), 0, task.points, span=2)
    return None


def is_linear(task: Task) -> bool:
    """Whether tokens and features are linear in the states, so that both turn and scale along."""
    return isinstance(task, LinearDynamics | PartialObservation | InContextRegression)


def scales_along(task: Task) -> bool:
    """Whether tokens scaled by c are those of scaled keys, values and queries."""
    if isinstance(task, InterleavedRegression):
        return isinstance(task.functions, Linear)
    return is_linear(task)


def is_isotropic(task: Task) -> bool:
    """Whether turned sequences follow the task's law, but for the corners of its boxes."""
    if isinstance(task, InContextRegression) and not isinstance(task.inputs, Isotropic):
        return False
    return isinstance(task.teacher, ISOTROPIC)


def permuted(
    tokens: Float[Tensor, "batch time d_in"],
    among: tuple[int, int],
    generator: torch.Generator,
    span: int = 1,
) -> Float[Tensor, "batch time d_in"]:
    """The pairs of a range of places in another order, drawn for every sequence."""
    start, stop = among
    order = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
    drawn = uniform(generator, 0.0, 1.0, len(tokens), stop - start)
    places = start + drawn.argsort(1)
    order[:, span * start : span * stop] = (span * places[..., None] + torch.arange(span)).flatten(
        1
    )
    return tokens.gather(1, order[..., None].expand_as(tokens))


def with_values(
    tokens: Float[Tensor, "batch time d_in"],
    pairs: PairedTokens,
    weights: Float[Tensor, "#batch n"],
) -> Float[Tensor, "batch time d_in"]:
    """The values of n pairs, from the first, times one weight each."""
    changed = tokens.clone()
    first, span = pairs.first, pairs.span
    holders = slice(span * (first + 1) - 1, span * (first + weights.shape[1]), span)
    changed[:, holders, slice(*pairs.values)] *= weights[..., None].to(tokens)
    return changed


def coins(generator: torch.Generator, *shape: int) -> Bool[Tensor, "..."]:
    """Fair coins."""
    return uniform(generator, 0.0, 1.0, *shape) < 0.5


def segments(
    generator: torch.Generator, count: int, length: int, mean: float
) -> Bool[Tensor, "batch time"]:
    """Stretches of alternating truth, of geometric length."""
    switches = uniform(generator, 0.0, 1.0, count, length) < 1 / mean
    return (switches.cumsum(1) + coins(generator, count, 1)) % 2 == 0


def can_splice(task: Task) -> bool:
    """Whether two sequences can be joined: their tokens and features follow from the states."""
    return is_linear(task) or isinstance(task, NonlinearDynamics)


def spliced(
    task: Task, sequences: Sequences, foreign: Bool[Tensor, "batch time_and_one"]
) -> Sequences:
    """States, or pairs, of the sequence before where `foreign`, at their own positions.

    Tokens stay such as states make them. The pairs across a seam belong to no teacher, but a
    learner does not know that. The target is unknown, so the oracle is NaN.

    Raises:
        TypeError: The task's sequences cannot be joined.
    """
    if isinstance(task, InContextRegression):
        foreign = foreign & (torch.arange(foreign.shape[1]) < task.pairs)  # own queries

    def join(rows: Tensor) -> Tensor:
        return torch.where(foreign[:, : rows.shape[1], None], rows.roll(1, 0), rows)

    states = join(sequences.observations)
    inputs = states[:, :-1]
    tokens, features = inputs, inputs
    match task:
        case LinearDynamics():
            tokens = task.layout.tokens(inputs)
        case PartialObservation():
            features = delay_embedding(inputs, task.depth)
        case NonlinearDynamics():
            features = task.feature_map(inputs)
        case InContextRegression():
            tokens, features = join(sequences.tokens), join(sequences.features)
        case _:
            raise TypeError(f"sequences of {type(task).__name__} cannot be joined")
    unknown = torch.full_like(sequences.oracle, torch.nan)
    return replace(sequences, tokens=tokens, observations=states, oracle=unknown, features=features)


def turned(
    rows: Float[Tensor, "batch time channels"], turn: Float[Tensor, "batch d d"]
) -> Float[Tensor, "batch time channels"]:
    """R s for every slot of d channels, with one R per sequence."""
    slots = rows.unflatten(-1, (-1, turn.shape[-1]))
    return torch.einsum("bij,btsj->btsi", turn.to(rows), slots).flatten(2)
