"""A model written by hand that reads few-shot pairs as an EOS token tells it to.

One layer copies the token before into `prev`, as a model of sequences does, and a mesa-layer
regresses every token on the one before. A gate in between empties `prev` where either of the two
tokens is far out along the first channel, so an EOS token out there takes the false transitions
y, EOS and EOS, x from the regression: what is left is least squares on the pairs.
"""

import torch

from probe.models.attention import LinearAttention
from probe.models.transformer import SequenceTransformer
from probe.planted.frame import Frame
from probe.planted.ridge import mesa_layer
from probe.planted.slots import SHUT, Hidden, Layer, gated
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.teachers import Orthogonal

WIDTH, LENGTH, RIDGE = 3, 96, 1e-3
FAR, LIMIT, SLOPE = 6.0, 3.5, 8.0  # the EOS token; pairs of tokens reach 1 + 3^0.5 at most


def raw_dynamics() -> LinearDynamics:
    return LinearDynamics("raw", Orthogonal(), width=WIDTH, length=LENGTH)


def marking_eos() -> torch.Tensor:
    return FAR * torch.eye(WIDTH)[0]


def reader() -> SequenceTransformer:
    """The copy, the mark, the gate, the mesa-layer."""
    shared = Frame.of(raw_dynamics(), extras={"shut": 1})
    slots = shared.slots
    first = torch.eye(WIDTH, dtype=torch.float64)[:, :1]
    reach = SLOPE * (slots.read("x", first) + slots.read("prev", first))
    far = reach - SLOPE * LIMIT * slots.read("one")
    # gelu(-z) - gelu(-z - 1) falls from 1 to 0 exactly; where it is 0 the gate takes `prev` away.
    near = Hidden(
        torch.cat([-far, -far - slots.read("one")], 1),
        torch.cat([slots.write("shut", -SHUT), slots.write("shut", SHUT)]),
    )
    clear = gated(slots.read("prev"), slots.read("shut"), slots.write("prev", -1.0))
    layers = (
        Layer(LinearAttention, hidden=(near,)),
        Layer(LinearAttention, hidden=(clear,)),
        mesa_layer(shared, RIDGE),
    )
    return shared.build(layers)


def plain_reader(ridge: float = RIDGE) -> SequenceTransformer:
    """The copy and the mesa-layer alone: it has no way to tell pairs from what is between them."""
    shared = Frame.of(raw_dynamics())
    return shared.build((mesa_layer(shared, ridge),))
