"""Do the softmax layers act as linear attention?

Hypothesis: a softmax layer of a model that learns by gradient-like steps does what a layer of
linear attention can do, of as many heads of the same width. In its place stands the linear layer
that is closest to it on its own input: of the published form, which sums over the past, and one
that divides by the number of tokens so far, as softmax does while its scores are small.
Test statistic: the loss with one layer replaced over the loss of the model, paired by block; the
share of the layer's output that the linear layer explains; the loss with all softmax layers after
the first block replaced together.
Controls: the layer's output set to zero, and to its mean by position; a linear map of the stream
at the same position, which sees no context. A layer that can be left out is idle, and one that a
map replaces is local: neither says anything of attention.
Refuted for a layer whose replacement costs more than LINEAR, or saves less than half of what the
layer is worth. Cost: minutes.
"""

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd
import torch

from probe.analysis import Bench
from probe.checkpoints.base import Subject, lacks_weights, transformer_of
from probe.findings import (
    Figure,
    Finding,
    HeatMap,
    LineChart,
    Metric,
    Outcome,
    Panels,
    Role,
    Series,
    Table,
)
from probe.linearization.costs import Cost, cost_alone, cost_together, shares, typical_cost
from probe.linearization.run import FORMS, WITHOUT, Linearised, linearise
from probe.linearization.surgery import softmax_layers
from probe.statistics import Interval
from probe.tasks.base import Task, lacks_questions

LINEAR = 1.15  # published: later layers at 60 dimensions cost a factor of 1.03 to 1.15
IDLE = 1.05  # the loss without the layer
SAVED = 0.5  # of what the layer is worth
LAST = 5  # evaluations of the search
TOGETHER, NEEDED = 1.25, 2.0  # all at once replaced, and left out
WORDS = {
    "linear": "linear attention",
    "averaged": "averaged linear attention",
    "map": "linear map of the token",
    "mean": "its mean at each position",
    "zero": "nothing",
}


class Linearization:
    """Replaces softmax layers by the linear attention closest to them."""

    name = "linearization"
    place = 85
    question = "Do the softmax layers act as linear attention?"
    thorough = True

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Softmax attention on the stream itself, and a question at every token that it reads."""
        if lacking := lacks_weights(subject):
            return lacking
        model = transformer_of(subject)
        if not softmax_layers(model):
            return "it has no softmax attention"
        if not model.config.bare:
            return "its attention reads through norms or has biases, which linear layers here lack"
        return lacks_questions(task)

    def run(self, bench: Bench) -> Finding:
        """Supports if all later layers together may be linear, and are needed."""
        model = transformer_of(bench.subject)
        return conclude(linearise(model, bench.plan, bench.progress), bench.plan.task)


def conclude(found: Linearised, task: Task) -> Finding:
    """The finding, from what was measured."""
    rows = [cost_alone(found, at) for at in range(len(found.layers))]
    together = {name: cost_together(found, name) for name in (*FORMS, WITHOUT)}
    best = min(FORMS, key=lambda form: together[form].value)
    return Finding(
        analysis=Linearization.name,
        question=Linearization.question,
        outcome=_outcome(rows, together, best),
        statement=_statement(found, rows, together, best),
        metrics=_metrics(found, rows, together),
        controls=_controls(rows, together),
        does_not_show=(
            "That layers which could be linear attention run gradient descent: any algorithm made "
            "of linear attention passes. A layer that costs more may still be linear in a form "
            "that was not tried, or one that the search has missed."
        ),
        tables=_tables(found, rows, together, task),
        figures=_figures(found, rows),
        bearing=_bearing(rows),
    )


def reads(cost: Cost) -> str:
    """What the layer is: what stands in its place at little cost, or "not linear".

    What saves less than SAVED of the loss without the layer does not do what the layer does. A
    form of linear attention counts where it is better than a map, beyond their intervals.
    """
    without = cost.ratio["zero"]
    if without.hi <= IDLE:
        return "idle"
    bound = min(LINEAR, 1 + (1 - SAVED) * (without.lo - 1))
    cheap = [way for way in (*FORMS, "map") if cost.ratio[way].hi <= bound]
    local = cost.ratio["map"].lo
    acting = [way for way in cheap if way in FORMS and cost.ratio[way].hi < local]
    fitting = acting or cheap[-1:]
    return WORDS[fitting[0]] if fitting else "not linear"


def _outcome(rows: list[Cost], together: Mapping[str, Interval], best: str) -> Outcome:
    """All at once must be cheap where leaving them out is dear; one at a time is no evidence."""
    acting = any(reads(row) in (WORDS[form] for form in FORMS) for row in rows)
    cheap, needed = together[best].hi <= TOGETHER, together[WITHOUT].lo > NEEDED
    return "supports" if acting and cheap and needed else "inconclusive"


def _statement(
    found: Linearised, rows: list[Cost], together: Mapping[str, Interval], best: str
) -> str:
    costs = "; ".join(
        f"{WORDS[form]} " + ", ".join(f"{row.ratio[form].value:.2f}" for row in rows)
        for form in FORMS
    )
    without = ", ".join(f"{row.ratio['zero'].value:.2f}" for row in rows)
    layers = _numbers([row.layer for row in rows])
    joint = _numbers([layer + 1 for layer in found.joint])
    return (
        f"Replaced one at a time, softmax {layers} multiply the loss by: {costs}; left out, by "
        f"{without}. {joint.capitalize()} replaced together by {WORDS[best]} multiply it by "
        f"{_span(together[best])} (median over blocks {typical_cost(found, best).value:.3g}), left "
        f"out by {_span(together[WITHOUT])}."
    )


def _bearing(rows: list[Cost]) -> str:
    """The layers that act as linear attention, by form."""
    parts = []
    for form in FORMS:
        mine = [row for row in rows if reads(row) == WORDS[form]]
        if mine:
            costs, left_out = (_range(row.ratio[way] for row in mine) for way in (form, "zero"))
            each = "each replaced" if len(mine) > 1 else "replaced"
            verb = "act" if len(mine) > 1 else "acts"
            layers = _numbers([row.layer for row in mine])
            parts.append(
                f"softmax {layers} {verb} as {WORDS[form]} ({each}: loss x {costs}; left out: "
                f"x {left_out})"
            )
    return f"Its {'; its '.join(parts)}." if parts else ""


def _range(intervals: Iterable[Interval]) -> str:
    values = [f"{value:.2f}" for value in sorted(interval.value for interval in intervals)]
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _numbers(layers: list[int]) -> str:
    """Layers in words: "layers 2 to 7" or "layers 2, 4 and 5"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) > 2 and layers[-1] - layers[0] == len(layers) - 1:
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _span(interval: Interval) -> str:
    return f"{interval.value:.3g} [{interval.lo:.3g}, {interval.hi:.3g}]"


def _metrics(
    found: Linearised, rows: list[Cost], together: Mapping[str, Interval]
) -> dict[str, Metric]:
    metrics = {}
    for form in FORMS:
        words = WORDS[form]
        for row in rows:
            name = f"layer_{row.layer}_{form}_ratio"
            metrics[name] = Metric.of(row.ratio[form], f"loss with {words} in place of the layer")
        metrics[f"together_{form}_ratio"] = Metric.of(
            together[form], f"loss with {words} in place of all later softmax layers"
        )
        metrics[f"together_{form}_typical_ratio"] = Metric.of(
            typical_cost(found, form), "the same, median over blocks of sequences"
        )
    metrics["search_last_gain"] = _last_gain(found)
    return metrics


def _last_gain(found: Linearised) -> Metric:
    """How far the searches had come."""
    gains = [
        one.left[-1 - min(LAST, len(one.left) - 1)] - min(one.left)
        for layers in found.found.values()
        for one in layers.values()
    ]
    return Metric(max(gains), f"most that a search gained in its last {LAST} evaluations, in R^2")


def _controls(rows: list[Cost], together: Mapping[str, Interval]) -> dict[str, Metric]:
    controls = {}
    for row in rows:
        for way in ("zero", "map"):
            name = f"layer_{row.layer}_{way}_ratio"
            controls[name] = Metric.of(row.ratio[way], f"loss with {WORDS[way]} in its place")
    controls["together_zero_ratio"] = Metric.of(
        together[WITHOUT], "loss with nothing in place of all later softmax layers"
    )
    return controls


def _tables(
    found: Linearised, rows: list[Cost], together: Mapping[str, Interval], task: Task
) -> tuple[Table, ...]:
    known: dict[str, object] = {"task": task.name, "d": task.width_out}
    joint = [{**known, "replacement": n, **_ends("loss_ratio", i)} for n, i in together.items()]
    tables = {
        "linearization": [known | row for one in rows for row in _layer_rows(found, one)],
        "linearization_together": joint,
        "linearization_by_position": _along(found, known, "position", "error", "energy"),
        "linearization_by_direction": _along(
            found, known, "direction", "error_along", "energy_along"
        ),
        "linearization_search": [known | row for row in _search(found)],
    }
    return tuple(Table(name, pd.DataFrame(rows)) for name, rows in tables.items())


def _layer_rows(found: Linearised, row: Cost) -> Iterator[dict[str, object]]:
    for way in found.stage.ways:
        start = found.found[way][row.layer - 1].start if way in FORMS else ""
        yield {
            "layer": row.layer,
            "replacement": way,
            **_ends("loss_ratio", row.ratio[way]),
            **_ends("r2", row.r2[way]),
            "start": start,
            "reads": reads(row),
        }


def _ends(name: str, interval: Interval) -> dict[str, object]:
    return {name: interval.value, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}


def _along(
    found: Linearised, known: dict[str, object], axis: str, error: str, energy: str
) -> list[dict[str, object]]:
    energies = found.replaced.sums[energy].sum(0)
    weight = (energies / energies.sum(-1, keepdim=True)).tolist()
    return [
        {
            **known,
            "layer": found.layers[at] + 1,
            "replacement": form,
            axis: place + 1,
            "share_of_energy": weight[at][place],
            "r2": r2,
        }
        for at, by_form in enumerate(shares(found, error, energy).tolist())
        for form, values in zip(FORMS, by_form, strict=True)
        for place, r2 in enumerate(values)
    ]


def _search(found: Linearised) -> Iterator[dict[str, object]]:
    """Share of the output left at each evaluation of the search."""
    for form, layers in found.found.items():
        for layer, one in layers.items():
            rounds = [(1, start, left) for start, left in one.tried.items()]
            for number, start, left in [*rounds, (2, one.start, one.left)]:
                for evaluation, share in enumerate(left, 1):
                    yield {
                        "layer": layer + 1,
                        "replacement": form,
                        "round": number,
                        "start": start,
                        "evaluation": evaluation,
                        "share_left": share,
                    }


def _figures(found: Linearised, rows: list[Cost]) -> tuple[Figure, ...]:
    return (_ratios(rows), *_positions(found), _searches(found))


def _ratios(rows: list[Cost]) -> LineChart:
    roles: dict[str, Role] = {way: "model" for way in FORMS}
    roles |= {"map": "control", "zero": "control"}
    return LineChart(
        name="linearization_ratio",
        title="Loss with one softmax layer replaced",
        caption=(
            "Loss over the loss of the model, on fresh sequences, with 95 % bands. Nothing and a "
            "linear map of the token are controls: a layer that they can replace shows nothing."
        ),
        x_label="layer",
        y_label="loss ratio",
        series=tuple(_series(rows, way, role) for way, role in roles.items()),
        log_y=True,
    )


def _searches(found: Linearised) -> Panels:
    charts = []
    for form, layers in found.found.items():
        tried = [one.tried for one in layers.values()]
        lines = []
        for start in tried[0]:
            length = min(len(left[start]) for left in tried)
            mean = torch.tensor([left[start][:length] for left in tried]).mean(0)
            lines.append(Series(start, list(range(1, length + 1)), mean.tolist()))
        charts.append(
            LineChart(
                name=f"linearization_search_{form}",
                title=WORDS[form].capitalize(),
                caption="",
                x_label="evaluation",
                y_label="share of output left",
                series=tuple(lines),
            )
        )
    return Panels(
        name="linearization_search",
        title="The first round of the search, from two starts",
        caption=(
            "Share of the layers' output that is left, mean over layers, on the sequences of the "
            "search. The better start of each layer goes on, with more sequences."
        ),
        charts=tuple(charts),
    )


def _series(rows: list[Cost], way: str, role: Role) -> Series:
    ratios = [row.ratio[way] for row in rows]
    return Series(
        label=WORDS[way],
        x=[row.layer for row in rows],
        y=[ratio.value for ratio in ratios],
        lo=[ratio.lo for ratio in ratios],
        hi=[ratio.hi for ratio in ratios],
        role=role,
    )


def _positions(found: Linearised) -> Iterator[HeatMap]:
    explained = shares(found, "error", "energy")
    for i, form in enumerate(FORMS):
        yield HeatMap(
            name=f"linearization_r2_{form}",
            title=f"Share of each layer's output explained by {WORDS[form]}",
            caption="Held out, by position; what lies below 0 is shown as 0.",
            x_label="position t (tokens seen)",
            y_label="layer",
            value_label="R^2",
            x=tuple(str(position + 1) for position in range(explained.shape[-1])),
            y=tuple(str(layer + 1) for layer in found.layers),
            values=tuple(map(tuple, explained[:, i].clamp(min=0).tolist())),
            limits=(0.0, 1.0),
        )


NAMED = {"linearization": Linearization()}
