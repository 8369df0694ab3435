"""The atlas as a finding: a map of names, maps of the shares, and one row per head."""

import math
from collections import Counter
from collections.abc import Callable, Iterator

import pandas as pd

from probe.atlas.naming import NAMES, NULLS, OPTIMIZERS, SOLVERS, Name, claims
from probe.atlas.read import WEIGHTY, Atlas, HeadReading
from probe.atlas.scores import Score
from probe.findings import CategoryMap, Figure, Finding, HeatMap, Metric, Outcome, Table

ANALYSIS = "head_atlas"
QUESTION = "Which attention heads solve the regression that their own keys and values pose?"
_MARKS = ("GD", "LS", "GD/LS", "K", "M", "C", "0", "?")
_MEANING: dict[Name, str] = {
    "gradient step": "heads that take one gradient step on their own pairs",
    "least squares": "heads that solve least squares on their own pairs",
    "step or least squares": "heads that do either; the two are not told apart",
    "kernel smoother": "heads that are softmax, or other averages, of the values of the past",
    "mean": "heads that answer with the mean or the sum of their values",
    "copy": "heads that copy the current, the previous or the first value",
    "silent": "heads that answer nothing",
    "unexplained": "heads that nothing here explains",
}


def finding_of(atlas: Atlas) -> Finding:
    """The finding of an atlas.

    It supports if a head that is named an optimizer has causal weight, and its rule does not solve
    whatever it is given; it contradicts if means and copies are all that there is. If planted
    solvers are misread it says so and concludes nothing.
    """
    return Finding(
        analysis=ANALYSIS,
        question=QUESTION,
        outcome=_outcome(atlas),
        statement=_statement(atlas),
        metrics=_metrics(atlas),
        controls=_controls(atlas),
        does_not_show=(
            "A head that solves its own regression is no proof that the model learns in context: "
            "its keys and values may be no examples of any task, and what it answers may not be "
            "used. Where the rule of the layer is the solver, every problem is solved, whatever "
            "was trained; what training chose are the pairs. A softmax head is explained by its "
            "own softmax; an optimizer that is spread over several heads or layers is not seen "
            "head by head."
        ),
        tables=(Table("heads", pd.DataFrame(_rows(atlas))),),
        figures=_figures(atlas),
    )


def _outcome(atlas: Atlas) -> Outcome:
    """Where the rule of the layer is the solver, an untrained model has such heads as well."""
    if atlas.misread:
        return "inconclusive"
    if any(head.acts and not head.by_construction for head in atlas.heads):
        return "supports"
    # Softmax heads may each be a part of an iteration that no single one shows.
    simple = all(head.name in ("mean", "copy", "silent") for head in atlas.heads)
    return "contradicts" if simple else "inconclusive"


def _statement(atlas: Atlas) -> str:
    if atlas.misread:
        return (
            f"The atlas misread planted solvers on the problems of {atlas.misread} of "
            f"{len(atlas.heads)} heads; its names are not to be trusted."
        )
    counted = Counter(head.name for head in atlas.heads)
    names = ", ".join(f"{counted[name]} {name}" for name in NAMES if counted[name])
    return f"Of {len(atlas.heads)} heads: {names}. {_of_optimizers(atlas)}{_of_linear(atlas)}"


def _of_optimizers(atlas: Atlas) -> str:
    optimizers = [head for head in atlas.heads if head.name in OPTIMIZERS]
    if not optimizers:
        return "No head is an optimizer."
    acting = sum(head.acts for head in optimizers)
    built = sum(head.by_construction for head in optimizers)
    text = f"{acting} of {len(optimizers)} optimizers matter for the output"
    if built:
        whose = "all" if built == len(optimizers) else f"{built} of them"
        text += f"; {whose} by construction, since the rule of the layer is the solver"
    return f"{text}."


def _of_linear(atlas: Atlas) -> str:
    linear = sum(head.linear for head in atlas.heads)
    if not linear:
        return ""
    return (
        f" {linear} softmax heads are as linear as a gradient step from the mean would be, which "
        "softmax is wherever its scores are small."
    )


def _metrics(atlas: Atlas) -> dict[str, Metric]:
    counted = Counter(head.name for head in atlas.heads)
    metrics = {
        name.replace(" ", "_"): Metric(counted[name], meaning) for name, meaning in _MEANING.items()
    }
    metrics["acting_optimizers"] = Metric(
        sum(head.acts for head in atlas.heads),
        f"optimizers with a causal weight of {WEIGHTY:g} or more ({atlas.unit})",
    )
    metrics["by_construction"] = Metric(
        sum(head.by_construction for head in atlas.heads),
        "optimizers whose rule solves white noise too",
    )
    metrics["linear_regime"] = Metric(
        sum(head.linear for head in atlas.heads),
        "softmax heads of which a step from the mean explains 0.9 of what the mean leaves",
    )
    return metrics


def _controls(atlas: Atlas) -> dict[str, Metric]:
    planted = [head.planted[group] for head in atlas.heads for group in SOLVERS]
    return {
        "planted_named": Metric(
            planted.count("named"), "planted solvers on the heads' own problems, named as such"
        ),
        "planted_without_power": Metric(
            planted.count("no power"), "those that a null or shuffled keys explain as well"
        ),
        "planted_misread": Metric(planted.count("misread"), "those that are misread; must be 0"),
        "optimizers (permuted twin)": Metric(
            sum(
                bool(claims(head.controls.twin)) and not head.controls.by_construction
                for head in atlas.heads
                if head.controls.twin
            ),
            "heads of the twin that read as solvers though their rule is none; must be 0",
        ),
    }


def _rows(atlas: Atlas) -> Iterator[dict[str, object]]:
    for head in atlas.heads:
        score, groups = head.score, head.score.groups
        row: dict[str, object] = {
            "layer": head.layer,
            "head": head.head,
            "name": head.name,
            "by_construction": head.by_construction,
            "linear_regime": head.linear,
            "averages": head.controls.averages,
            "causal_weight": head.weight,
            "eta": groups["step"].constant,
            "step_form": groups["step"].form,
            "lambda": groups["ridge"].constant,
            "lambda_at_edge": score.edge,
            "copies": groups["copy"].form,
            "temperature": groups["smoother"].form,
        }
        for group, found in groups.items():
            share = found.share
            row |= {f"{group}_r2": share.value, f"{group}_lo": share.lo, f"{group}_hi": share.hi}
        row["zero_r2"] = math.nan if score.silent else 0.0
        row["step_beyond_mean"] = score.beyond_mean.value
        for group in SOLVERS:
            row[f"{group}_shuffled_r2"] = score.shuffled[group].value
            row[f"{group}_twin_r2"] = _share(head.controls.twin, group)
            row[f"{group}_rule_r2"] = _share(head.controls.rule, group)
            row[f"{group}_planted"] = head.planted[group]
        yield row


def _share(score: Score | None, group: str) -> float:
    if score is None:
        return math.nan
    return next(found.value for name, found in score.groups.items() if name == group)


def _figures(atlas: Atlas) -> tuple[Figure, ...]:
    first, last = atlas.positions[0], atlas.positions[-1]
    read = (
        f"Held out, over {len(atlas.positions)} positions from {first} to {last} of "
        f"{atlas.sequences // 2} sequences; what lies below 0 is drawn as 0."
    )

    def best_null(head: HeadReading) -> float:
        return max(head.score.groups[null].value for null in NULLS)

    return (
        _names(atlas),
        _shares(
            atlas,
            "head_atlas_step",
            "Share of each head that a gradient step on its own pairs explains",
            f"{read} The step from the mean counts; where the scores of softmax are small it "
            "explains all, and so does the null beside it.",
            lambda head: head.score.groups["step"].value,
        ),
        _shares(
            atlas,
            "head_atlas_ridge",
            "Share of each head that least squares on its own pairs explains",
            read,
            lambda head: head.score.groups["ridge"].value,
        ),
        _shares(
            atlas,
            "head_atlas_null",
            "Share of each head that the best of softmax, mean and copy explains",
            read,
            best_null,
        ),
        _weights(atlas),
    )


def _axes(atlas: Atlas) -> tuple[tuple[str, ...], tuple[int, ...]]:
    layers = tuple(sorted({head.layer for head in atlas.heads}))
    return tuple(str(i + 1) for i in range(1 + max(head.head for head in atlas.heads))), layers


def _names(atlas: Atlas) -> CategoryMap:
    x, layers = _axes(atlas)
    names = {(head.layer, head.head): head.name for head in atlas.heads}
    return CategoryMap(
        name="head_atlas",
        title="What explains each attention head",
        caption=(
            "A head is called an optimizer only if a gradient step or least squares on its own "
            "keys, values and queries explains 0.9 of it, beats every simpler explanation and its "
            "own shuffled pairs by 0.01, and is not found in the twin, unless the rule of the "
            "layer is the solver. 0 marks heads that answer nothing."
        ),
        x_label="head",
        y_label="block",
        x=x,
        y=tuple(str(layer + 1) for layer in layers),
        kinds=NAMES,
        marks=_MARKS,
        strong=len(OPTIMIZERS),
        cells=tuple(
            tuple(names.get((layer, head), "") for head in range(len(x))) for layer in layers
        ),
    )


def _shares(
    atlas: Atlas, name: str, title: str, caption: str, value: Callable[[HeadReading], float]
) -> HeatMap:
    return _heat(atlas, name, title, caption, "R^2", lambda head: max(value(head), 0.0), (0, 1))


def _weights(atlas: Atlas) -> HeatMap:
    return _heat(
        atlas,
        "head_atlas_weight",
        "Causal weight of each head",
        "How the output changes when the head answers with its mean over positions and sequences.",
        atlas.unit,
        lambda head: head.weight,
    )


def _heat(
    atlas: Atlas,
    name: str,
    title: str,
    caption: str,
    label: str,
    value: Callable[[HeadReading], float],
    limits: tuple[float | int, float | int] | None = None,
) -> HeatMap:
    x, layers = _axes(atlas)
    values = {(head.layer, head.head): value(head) for head in atlas.heads}
    return HeatMap(
        name=name,
        title=title,
        caption=caption,
        x_label="head",
        y_label="block",
        value_label=label,
        x=x,
        y=tuple(str(layer + 1) for layer in layers),
        values=tuple(
            tuple(values.get((layer, head), math.nan) for head in range(len(x))) for layer in layers
        ),
        limits=limits,
    )
