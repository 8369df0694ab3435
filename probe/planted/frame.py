"""The stream that all constructions share: slots, read-in, copying layer, read-out.

The slots are y (prediction), r (query, later residual), x (value) and prev (key), followed by
what a family adds. On constructed tokens they come with the token; on raw tokens a first layer
copies the token before into prev, as the models of von Oswald et al. 2023 (section 3.2) learn to.
Where inputs and labels are tokens of their own the same layer hands each label its input; inputs
keep no key, and so offer no pair.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import SoftmaxAttention
from probe.models.transformer import SequenceTransformer
from probe.planted.base import State
from probe.planted.slots import SHUT, Head, Layer, Slots, assemble, gated
from probe.tasks.base import Task
from probe.tasks.functions import Linear
from probe.tasks.interleaved_regression import InterleavedRegression
from probe.tasks.layouts import PaddedLabels, SplitChannels
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics, RawTokens
from probe.tasks.regression import InContextRegression

FREQUENCIES = 8
CONTRAST = 35.0  # exp(-35) of the weight goes to any position but the one before


@dataclass(frozen=True)
class Frame:
    """What is written before the algorithm.

    Attributes:
        slots: Where things lie.
        embed: Reads the token in.
        positions: Trained positions; no rows where none are needed.
        front: Layers before the algorithm: one that copies, on raw tokens.
    """

    slots: Slots
    embed: Float[Tensor, "d_in d_model"] = field(repr=False)
    positions: Float[Tensor, "time d_model"] = field(repr=False)
    front: tuple[Layer, ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        task: Task,
        extras: Mapping[str, int] | None = None,
        clock: Mapping[str, Float[Tensor, " time"]] | None = None,
    ) -> "Frame":
        """The frame of a task.

        Args:
            task: One that `poses_pairs`.
            extras: Widths of further slots.
            clock: Further channels that hold a function of the position.
        """
        if not poses_pairs(task):
            raise TypeError(f"nothing can be planted on {task.name}")
        copied = _copied(task)
        times = {**(copied.clock if copied else {}), **(clock or {})}
        channels = {name: values[:, None] for name, values in times.items()}
        if copied:
            channels["code"] = ring(task.length)
        values, keys = pair_widths(task)
        widths = {"y": values, "r": keys, "x": values, "prev": keys} | dict(extras or {})
        widths |= {name: values.shape[1] for name, values in channels.items()}
        slots = Slots(widths)
        positions = sum(
            (values.double() @ slots.write(name) for name, values in channels.items()),
            start=torch.zeros(task.length if channels else 0, slots.d_model, dtype=torch.float64),
        )
        front = (copying(slots, channels["code"], copied.key, copied.paired),) if copied else ()
        if copied:
            embed = copied.query @ slots.write("r") + copied.value @ slots.write("x")
        else:
            embed = torch.cat([slots.write(name) for name in ("y", "r", "x", "prev")])
        return cls(slots, embed, positions, front)

    def build(self, layers: Sequence[Layer]) -> SequenceTransformer:
        """The model that runs `layers` after the front and reads y out."""
        every = (*self.front, *layers)
        return assemble(self.embed, self.positions, every, self.slots.read("y"))

    def states(self, remaining: Sequence[Callable[[Tensor], Tensor]]) -> tuple[State, ...]:
        """The residual before each layer of the algorithm, from what the layers make of it.

        The layers of the front leave it alone, so it is there before them as well.
        """
        curves = [remaining[0]] * len(self.front) + list(remaining)
        read, write = self.slots.read("r"), self.slots.write("r")
        return tuple(State(layer, read, write, curve) for layer, curve in enumerate(curves))

    def head(self, query: str, value: str, into: str, scale: float = 1.0) -> Head:
        """A head whose keys are prev: adds scale * sum_j value_j (prev_j . query) to `into`."""
        read = self.slots.read
        return Head(read(query), read("prev"), read(value, scale), self.slots.write(into))

    def smoother(self, query: str, into: str, beta: float) -> Head:
        """A softmax head on (prev, query) that averages x and never sees position 0."""
        slots = self.slots
        return Head(
            torch.cat([slots.read(query, beta), slots.read("one", -SHUT)], 1),
            torch.cat([slots.read("prev"), slots.read("first")], 1),
            slots.read("x"),
            slots.write(into),
        )


@dataclass(frozen=True)
class _Copied:
    """Tokens whose pairs lie on two of them.

    Attributes:
        query: Reads the query from a token.
        value: Reads the value from a token.
        key: The slot that holds the key of the next token's pair.
        paired: The channel of the clock that is 1 where a token completes a pair and else 0.
        clock: Channels that hold a function of the position.
    """

    query: Float[Tensor, "d_in d_k"] = field(repr=False)
    value: Float[Tensor, "d_in d_v"] = field(repr=False)
    key: str
    paired: str
    clock: Mapping[str, Float[Tensor, " time"]] = field(repr=False)


def _copied(task: Task) -> _Copied | None:
    """How to read such tokens; None where every token has slots for its pair."""
    eye = torch.eye(task.width_in, dtype=torch.float64)
    clock = standard_clock(task.length)
    match task:
        case LinearDynamics(layout=RawTokens()):
            return _Copied(eye, eye, "x", "later", clock)
        case InterleavedRegression(layout=layout):
            clock["label"] = (torch.arange(task.length) % 2).double()
            split = isinstance(layout, SplitChannels)
            inputs = eye[:, task.width_out :] if split else eye[:, : task.width]
            return _Copied(inputs, eye[:, : task.width_out], "r", "label", clock)
    return None


def pair_widths(task: Task) -> tuple[int, int]:
    """Widths of values and of keys."""
    keys = task.width if isinstance(task, InterleavedRegression) else task.width_out
    return task.width_out, keys


def fits(task: Task) -> bool:
    """Whether the task is linear dynamics in a known layout."""
    return isinstance(task, LinearDynamics) and isinstance(
        task.layout, RawTokens | ConstructedTokens
    )


def poses_pairs(task: Task) -> bool:
    """Whether the task's pairs can be read off its tokens, or off two neighbours."""
    if isinstance(task, InterleavedRegression):
        known = isinstance(task.layout, PaddedLabels | SplitChannels)
        return known and isinstance(task.functions, Linear)
    return fits(task) or isinstance(task, InContextRegression)


def standard_clock(length: int) -> dict[str, Float[Tensor, " time"]]:
    """A constant, a mark of the first position and one of all others."""
    later = (torch.arange(length) > 0).double()
    return {"one": torch.ones_like(later), "first": 1 - later, "later": later}


def ring(length: int) -> Float[Tensor, "time code"]:
    """Unit codes of positions on circles of several frequencies; a rotation shifts them by one."""
    angle = torch.arange(length)[:, None] * _frequencies(length)
    return torch.stack([angle.cos(), angle.sin()], -1).flatten(1) / angle.shape[1] ** 0.5


def _frequencies(length: int) -> Float[Tensor, " frequencies"]:
    count = max(1, min(FREQUENCIES, length // 2))
    return 2 * torch.pi * torch.arange(1, count + 1, dtype=torch.float64) / length


def copying(
    slots: Slots, codes: Float[Tensor, "time code"], key: str = "x", paired: str = "later"
) -> Layer:
    """A softmax head that looks at the position before; prev = 0 where no pair is complete.

    Args:
        slots: Where things lie.
        codes: Codes of the positions, in the slot "code".
        key: The slot that is copied into prev.
        paired: The channel of the clock that is 1 where a token completes a pair and else 0.
    """
    omega = _frequencies(len(codes))
    back = torch.stack([omega.cos(), -omega.sin(), omega.sin(), omega.cos()], -1)
    likeness = (codes @ codes.mT).fill_diagonal_(-1)
    sharp = CONTRAST / (1 - float(likeness.max()))
    query = slots.read("code", sharp * torch.block_diag(*back.view(-1, 2, 2)))
    head = Head(query, slots.read("code"), slots.read(key), slots.write("prev"))
    # An open gate reads 0 from a channel of its own: SHUT - SHUT would round the value away.
    clear = gated(slots.read("prev"), slots.read(paired, -SHUT), slots.write("prev", -1.0))
    return Layer(SoftmaxAttention, (head,), (clear,))
