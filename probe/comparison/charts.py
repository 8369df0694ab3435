"""Drawings of a comparison."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from probe.comparison.layers import LayerReading
from probe.comparison.losses import Band
from probe.comparison.run import Model, Side
from probe.comparison.similarity import Similarity, highest
from probe.findings import HeatMap, IntervalChart, LineChart, Panels, Series
from probe.report.text import words
from probe.statistics import Interval
from probe.tasks.base import label

_DRAWN_PAIRS = 6
_SITES = {"decoded": "decoded by a linear probe", "readout": "the model's own read-out"}


def suffix(at: int) -> str:
    """What keeps names of files apart where several tasks are compared."""
    return f"_{at + 1}" if at else ""


def loss_chart(side: Side, name: str) -> LineChart:
    """Losses by position of all models of one task, beside the predictors fitted to it."""
    models = [_loss_line(model) for model in side.models]
    return LineChart(
        name,
        "Loss by position",
        "Loss on the test sequences with 95 % intervals. Grey: the mesa-layer and one gradient "
        "step, fitted to the task; the oracle, which knows the teacher; and predicting zero.",
        "position t (tokens seen)",
        "loss",
        (*(line for line in models if line), *_theory(side)),
        log_y=True,
    )


def _loss_line(model: Model) -> Series | None:
    """From its own sweep, or from the table that `analyze` left."""
    if model.losses is not None:
        return _line(model.label, model.losses.by_position)
    if "behaviour" not in model.tables:
        return None
    table = model.tables["behaviour"]
    part = table[(table["predictor"] == "model") & (table["position"] > 1)]
    reach = 1.96 * part["loss_se"]
    low = (part["loss"] - reach).clip(lower=0.2 * part["loss"])
    high = part["loss"] + reach
    x, y = part["position"].astype(int).tolist(), part["loss"].tolist()
    return Series(model.label, x, y, low.tolist(), high.tolist())


def _line(name: str, band: Band) -> Series:
    """From the second position: before it there is no pair to learn from."""
    positions = list(range(2, len(band.mean) + 1))
    return Series(name, positions, _tail(band.mean), _tail(band.lo), _tail(band.hi))


def _tail(values: Tensor) -> list[float]:
    return values[1:].tolist()


def _theory(side: Side) -> Iterator[Series]:
    for name, loss in side.measured.theory.items() if side.measured else ():
        yield Series(name, list(range(2, len(loss) + 1)), _tail(loss), role="theory")


def ratio_chart(side: Side, name: str) -> LineChart:
    """Losses as multiples of that of the first model, by position."""
    return LineChart(
        name,
        f"Loss as a multiple of that of {side.first}",
        "Ratio of mean losses on the same test sequences; 95 % intervals resample blocks of whole "
        "sequences for both models at once. Below 1 a model is better there than the first. The "
        "paired differences stand in the table of losses.",
        "position t (tokens seen)",
        f"loss / loss of {side.first}",
        tuple(
            _line(model.label, model.losses.ratio_by_position)
            for model in side.models
            if model.losses
        ),
        log_y=True,
    )


def excess(side: Side, end: str) -> tuple[IntervalChart, ...]:
    """How far each model is from least squares and from the best solver of the task."""
    return (*_over_mesa(side, f"excess_over_mesa{end}"), *_over_solver(side, end))


def _over_mesa(side: Side, name: str) -> tuple[IntervalChart, ...]:
    ends = ("excess_of_model", "excess_lo", "excess_hi")
    rows = [
        (model.label, Interval(*(model.reference[key] for key in ends)))
        for model in side.models
        if model.reference
    ]
    caption = (
        "Loss of each model minus loss of the mesa-layer whose lambda is fitted on the fit split; "
        "all positions, paired by sequence, 95 % intervals. Below zero the model is better."
    )
    return _intervals(name, "Excess over the mesa-layer", caption, rows)


def _over_solver(side: Side, end: str) -> tuple[IntervalChart, ...]:
    if side.measured is None or side.task is None:
        return ()
    rows = [(model.label, model.losses.over_solver) for model in side.models if model.losses]
    best = words(side.measured.solvers.ranked[0].family)
    caption = (
        f"Loss over t = {label(side.task.windows.judged)} minus that of the solver whose "
        "constants, fitted to the targets of the fit split, leave the least there."
    )
    title = f"Excess over the best solver, {best}"
    return _intervals(f"excess_over_solver{end}", title, caption, rows)


def _intervals(
    name: str, title: str, caption: str, rows: Sequence[tuple[str, Interval]]
) -> tuple[IntervalChart, ...]:
    """Best first, on an axis that holds zero; no chart without rows."""
    if not rows:
        return ()
    ordered = sorted(rows, key=lambda row: row[1].value)
    lo, hi = (tuple(getattr(gap, end) for _, gap in ordered) for end in ("lo", "hi"))
    left, right = min(0.0, *lo), max(0.0, *hi)
    room = 0.04 * (right - left)
    labels, values = tuple(row for row, _ in ordered), tuple(gap.value for _, gap in ordered)
    limits = (left - room, right + room)
    return (
        IntervalChart(name, title, caption, "excess loss", labels, values, lo, hi, limits=limits),
    )


def effective_lambda(
    readings: Mapping[str, tuple[LayerReading, ...]], end: str
) -> tuple[Panels, ...]:
    """Effective lambda against depth; nothing where there is no course to see."""
    charts = []
    for site, title in _SITES.items():
        lines = tuple(
            Series(name, [r.layer for r in part], [r.effective_lambda for r in part])
            for name, found in readings.items()
            if (part := [r for r in found if r.site == site and r.layer > 0])
        )
        if any(value == value for line in lines for value in line.y):
            charts.append(
                LineChart(site, title, "", "layer", "effective lambda", lines, log_y=True)
            )
    deepest = max((r.layer for found in readings.values() for r in found), default=0)
    if not charts or deepest < 2:
        return ()
    caption = (
        "The smallest eigenvalue mu of the context's moments whose direction is half solved "
        "(mu f(mu) = 1/2), after each layer. It falls through the layers of any iterative solver. "
        "Where a line is missing no direction is half solved, or all are."
    )
    return (Panels(f"effective_lambda{end}", "Effective lambda by layer", caption, tuple(charts)),)


def cka_maps(similarities: Sequence[Similarity], end: str) -> tuple[HeatMap, ...]:
    """One map for each pair; beyond six pairs those with the first model."""
    drawn = similarities
    if len(drawn) > _DRAWN_PAIRS:
        drawn = [pair for pair in drawn if pair.first == similarities[0].first]
    return tuple(_map(pair, f"cka{end}_{at + 1}") for at, pair in enumerate(drawn))


def _map(pair: Similarity, name: str) -> HeatMap:
    rows, columns = pair.values.shape
    return HeatMap(
        name,
        f"{pair.first} and {pair.second}",
        f"Linear CKA of the stream before the first block (0) and after each, {pair.tokens:,} "
        f"tokens. Controls after the first block: at most {highest(pair.another):.3f} where the "
        f"second model reads another sequence; at most {highest(pair.twin):.3f} with its twin of "
        "permuted weights.",
        f"layer of {pair.second}",
        f"layer of {pair.first}",
        "linear CKA",
        tuple(str(layer) for layer in range(columns)),
        tuple(str(layer) for layer in range(rows)),
        tuple(tuple(row) for row in pair.values.tolist()),
        limits=(0, 1),
    )
