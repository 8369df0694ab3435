"""Ridge regression in features that the first MLP computes: for nonlinear dynamics."""

import torch

from probe.models.attention import MesaAttention
from probe.models.transformer import SequenceTransformer
from probe.planted.frame import copying, ring, standard_clock
from probe.planted.slots import Head, Hidden, Layer, Slots, assemble
from probe.tasks.nonlinear_dynamics import PlainFeatureMap


def feature_learner(feature_map: PlainFeatureMap, length: int, ridge: float) -> SequenceTransformer:
    """Three layers: an MLP that computes phi, a head that copies phi, a mesa head on the pairs.

    The stream's slot x holds phi(s_t) from the first layer on, prev holds phi(s_{t-1}) from the
    second; the output is C (G + lambda)^-1 phi(s_t), whatever the task's own features are.

    Args:
        feature_map: phi.
        length: Number of positions.
        ridge: lambda.
    """
    width = feature_map.inner.shape[0]
    channels = {name: values[:, None] for name, values in standard_clock(length).items()}
    channels["code"] = ring(length)
    widths = dict.fromkeys(("y", "x", "prev", "state"), width)
    slots = Slots(widths | {name: values.shape[1] for name, values in channels.items()})
    parts = [values.double() @ slots.write(name) for name, values in channels.items()]
    mlp = Hidden(slots.read("state", feature_map.inner), feature_map.outer @ slots.write("x"))
    learner = Head(slots.read("x"), slots.read("prev"), slots.read("state"), slots.write("y"))
    layers = (
        Layer(hidden=(mlp,)),
        copying(slots, channels["code"]),
        Layer(MesaAttention, (learner,), ridge=ridge),
    )
    positions = torch.stack(parts).sum(0)
    return assemble(slots.write("state"), positions, layers, slots.read("y"))
