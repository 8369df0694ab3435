"""The models of von Oswald et al. 2023 (arXiv 2309.05858) and of the code published with it."""

from collections.abc import Iterator

from probe.models.attention import (
    AttentionKind,
    LinearAttention,
    MesaAttention,
    SoftmaxAttention,
)
from probe.models.transformer import BlockConfig, ModelConfig
from probe.presets.base import Preset

D_HEAD = 20


def _constructed(attention: AttentionKind, layers: int) -> ModelConfig:
    """Models on constructed tokens: the token is the stream, clipped at 4; one layer: masked."""
    blocks = (BlockConfig(attention, clip=4.0),) * layers
    return ModelConfig(40, 40, 10, blocks, projected=False, masked=20 if layers == 1 else 0)


def _hybrid(
    d_out: int,
    d_model: int,
    first: AttentionKind,
    others: tuple[AttentionKind, ...],
    clip: float | None = None,
    d_mlp: int = 0,
    unit: tuple[str, ...] = (),
) -> ModelConfig:
    """Models on raw tokens: the first block sees positions, only the others normalise."""
    blocks = (
        BlockConfig(first, positions=d_model, d_mlp=d_mlp, clip=clip),
        *(BlockConfig(kind, unit=unit, d_mlp=d_mlp, clip=clip) for kind in others),
    )
    return ModelConfig(d_out, d_model, d_out, blocks, projected=True)


def _softmax(heads: int, layers: int) -> tuple[AttentionKind, tuple[AttentionKind, ...]]:
    kind = SoftmaxAttention(heads, D_HEAD)
    return kind, (kind,) * (layers - 1)


def _models() -> Iterator[tuple[str, ModelConfig, str]]:
    mesa = MesaAttention(4, D_HEAD)
    softmax = SoftmaxAttention(4, D_HEAD)
    families = {
        "": "linear-constructed",
        "contracting-": "contracting-constructed",
        "fixed-teacher-": "von-oswald-2023/fixed-teacher-constructed",
    }
    for prefix, task in families.items():
        yield f"{prefix}linear-1l", _constructed(LinearAttention(2, D_HEAD), 1), task
        for layers in (2, 4, 6):
            config = _constructed(LinearAttention(4, D_HEAD), layers)
            yield f"{prefix}linear-{layers}l", config, task
        yield f"{prefix}mesa-1l", _constructed(mesa, 1), task
    yield "softmax-3l", _hybrid(10, 40, *_softmax(4, 3)), "linear"
    yield "softmax-7l", _hybrid(10, 40, *_softmax(4, 7)), "linear"
    yield "hybrid-mesa", _hybrid(10, 40, softmax, (mesa,), clip=1.0), "linear"
    yield "linear-mesa", _hybrid(10, 40, LinearAttention(4, D_HEAD), (mesa,)), "linear"
    yield "partial-softmax-7l", _hybrid(5, 80, *_softmax(12, 7)), "partial"
    wide_mesa = (MesaAttention(12, D_HEAD),)
    hybrid = _hybrid(5, 80, SoftmaxAttention(12, D_HEAD), wide_mesa, clip=1.0)
    yield "partial-hybrid-mesa", hybrid, "partial"
    nonlinear = _hybrid(10, 60, *_softmax(4, 7), d_mlp=300, unit=("q", "k"))
    yield "nonlinear-softmax-7l", nonlinear, "von-oswald-2023/nonlinear"
    # The published mesa block calls its values keys: it normalises queries and values.
    hybrid = _hybrid(10, 60, softmax, (mesa,), clip=15.0, d_mlp=300, unit=("q", "v"))
    yield "nonlinear-hybrid-mesa", hybrid, "von-oswald-2023/nonlinear"
    yield "icl-softmax-7l", _hybrid(10, 40, *_softmax(4, 7)), "linear-long"
    yield "icl-hybrid-mesa", _hybrid(10, 40, softmax, (mesa,), clip=1.0), "linear-long"


NAMED = {
    f"von-oswald-2023/{name}": Preset(f"von-oswald-2023/{name}", config, task)
    for name, config, task in _models()
}
