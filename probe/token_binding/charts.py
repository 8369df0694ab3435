"""Drawings of the measures."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from probe.findings import Figure, HeatMap, LineChart, Role, Series
from probe.statistics import Interval
from probe.token_binding.decoding import Decoding
from probe.token_binding.measure import Measures, mean_over_sequences
from probe.views import SUBJECT, TWIN

LAG = "lag j"


def figures(measures: Measures, layer: int) -> tuple[Figure, ...]:
    """All drawings; `layer` is the layer of interest, not 0."""
    subject, twin = measures.decoded[SUBJECT], measures.decoded[TWIN]
    where = str(measures.window)
    return (
        _map("token_binding_r2", "Earlier tokens, decoded from each layer", subject, where),
        _map("token_binding_r2_twin", "The same in the twin with permuted weights", twin, where),
        _errors(measures, layer),
        _heads(measures, layer),
        _norms(measures, layer),
    )


def _map(name: str, title: str, decoded: Decoding, where: str) -> HeatMap:
    return HeatMap(
        name=name,
        title=title,
        caption=f"Held-out R^2 of a linear probe of the token j positions before, {where} pooled; "
        "0 is chance.",
        x_label=LAG,
        y_label="layer",
        value_label="R^2",
        x=tuple(map(str, range(decoded.lags))),
        y=tuple(map(str, range(decoded.layers))),
        values=tuple(map(tuple, decoded.r2_map().tolist())),
        limits=(0.0, 1.0),
    )


def _errors(measures: Measures, layer: int) -> LineChart:
    """The figure of von Oswald et al. 2023 on token binding, held out and with controls."""
    subject, twin = measures.decoded[SUBJECT], measures.decoded[TWIN]
    lags = range(subject.lags)

    def line(label: str, decoded: Decoding, of: int, role: Role) -> Series:
        return _series(label, (decoded.mean_square(of, lag) for lag in lags), role)

    return LineChart(
        name="token_binding_errors",
        title=f"What layer {layer} forgets of earlier tokens",
        caption="Mean squared error of one channel of the token j positions before, decoded held "
        f"out at {measures.window}, with 95 % intervals.",
        x_label=LAG,
        y_label="mean squared error",
        series=(
            line(f"layer {layer}", subject, layer, "model"),
            line(f"layer {layer - 1}", subject, layer - 1, "theory"),
            line(f"layer {layer} of the permuted twin", twin, layer, "control"),
        ),
    )


def _heads(measures: Measures, layer: int) -> HeatMap:
    own, twin = (measures.attention[view][layer - 1] for view in (SUBJECT, TWIN))
    rows = [
        *own.by_lag.mean(0),
        own.together().by_lag[:, 0].mean(0),
        twin.together().by_lag[:, 0].mean(0),
    ]
    heads = (f"head {head + 1}" for head in range(own.by_lag.shape[1]))
    return HeatMap(
        name="token_binding_heads",
        title=f"What the heads of layer {layer} write from each earlier token",
        caption="Norm of what the token j positions before contributes, weight times OV circuit; "
        f"mean over {measures.window} and sequences.",
        x_label=LAG,
        y_label="",
        value_label="norm of the contribution",
        x=tuple(map(str, range(own.by_lag.shape[2]))),
        y=(*heads, "all heads", "all, permuted twin"),
        values=tuple(tuple(row.tolist()) for row in rows),
    )


def _norms(measures: Measures, layer: int) -> LineChart:
    own, twin = measures.late[SUBJECT], measures.late[TWIN]
    last = own.stream.shape[1] - 1
    shown = dict.fromkeys((layer, last))
    lines = [_norm_series(f"layer {at}", own.stream[:, at], "model") for at in shown]
    lines.append(_norm_series("prediction", own.output, "model"))
    ours = f"layer {layer} of the permuted twin"
    lines.append(_norm_series(ours, twin.stream[:, layer], "control"))
    return LineChart(
        name="token_binding_derivatives",
        title="How the stream depends on earlier tokens",
        caption="Frobenius norm of the derivative by the token j positions before, of each "
        "sequence for itself, then the mean, with 95 % intervals.",
        x_label=LAG,
        y_label="norm of the derivative",
        log_y=True,
        series=tuple(lines),
    )


def _norm_series(label: str, norms: Float[Tensor, "batch lags"], role: Role) -> Series:
    return _series(label, (mean_over_sequences(lag) for lag in norms.unbind(1)), role)


def _series(label: str, points: Iterable[Interval], role: Role) -> Series:
    found = list(points)
    return Series(
        label=label,
        x=list(range(len(found))),
        y=[point.value for point in found],
        lo=[point.lo for point in found],
        hi=[point.hi for point in found],
        role=role,
    )
