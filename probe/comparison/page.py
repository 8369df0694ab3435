"""A comparison as a page: which model predicts better, by which algorithm, and how alike."""

from collections.abc import Mapping
from typing import Any

from probe.comparison import charts, record, tables
from probe.comparison.layers import read_layers
from probe.comparison.record import Readings
from probe.comparison.run import Comparison, Side
from probe.findings import Table
from probe.report.page import Page, Section
from probe.report.text import estimate, number, words
from probe.tasks.base import label

_LOSSES_NOTE = (
    "A lower loss on one task does not show which algorithm a model runs, nor that it is better on "
    "other inputs."
)
_VERDICTS_NOTE = (
    "Two models of one class need not compute the same thing inside, and each verdict holds for "
    "its own task's inputs."
)
_LAYERS_NOTE = (
    "What is decoded from a layer is decodable there, not an iterate that the layer holds; any "
    "iterative solver has a falling effective lambda."
)
_CKA_NOTE = (
    "A high CKA does not show that two models run the same algorithm. It compares the geometry of "
    "activations: different algorithms that carry the same tokens and reach the same predictions "
    "look alike, and one algorithm in another basis of unequal scales looks different. Tokens of "
    "one sequence are not independent, so its floor is that of the controls, not zero."
)


def build(comparison: Comparison) -> Page:
    """The content of compare.html, compare.md and compare.json."""
    readings = {model.label: read_layers(model.tables) for model in comparison.models}
    sections: list[Section] = []
    for at, side in enumerate(comparison.sides):
        names = dict.fromkeys(str(model.task["name"]) for model in side.models)
        where = f" ({', '.join(names)})" if len(comparison.sides) > 1 else ""
        end = charts.suffix(at)
        sections += [_losses(side, end, where), _excess(side, end, where)]
        sections += _layers(side, readings, end, where)
        sections += _alike(side, end, where)
    verdicts = tables.verdicts(comparison.models)
    if verdicts is not None:
        sections.insert(2, _verdicts(verdicts))
    return Page(
        name="compare",
        eyebrow=" · ".join(model.label for model in comparison.models),
        answer=answer(comparison),
        facts=_facts(comparison),
        sections=(*sections, *_not_compared(comparison)),
        results=record.to_dict(comparison, readings),
    )


def answer(comparison: Comparison) -> str:
    """The outcome in one sentence: losses, and whether the paired differences exclude zero."""
    side = comparison.sides[0]
    run = [(model.label, model.losses) for model in side.models if model.losses]
    if len(run) < 2:
        told = [_beside_mesa(m.label, m.reference) for m in comparison.models if m.reference]
        return " ".join(told) or "No loss is known."
    losses = ", ".join(f"{name} {number(found.loss.value)}" for name, found in run)
    gaps = [(name, found.difference) for name, found in run if found.difference]
    open_ = [name for name, gap in gaps if gap.lo <= 0 <= gap.hi]
    if open_:
        rest = f"that of {side.first} cannot be told from that of {', '.join(open_)}"
    else:
        rest = f"no 95 % interval of a difference to {side.first} holds zero"
    return f"Loss on the same sequences: {losses}; {rest}."


def _beside_mesa(name: str, reference: Mapping[str, Any]) -> str:
    loss, mesa = reference["model_loss"], reference["loss"]
    return f"{name}: loss {number(loss)}, the fitted mesa-layer {number(mesa)}."


def _facts(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    names = dict.fromkeys(str(model.task["name"]) for model in comparison.models)
    facts = [("Models", str(len(comparison.models))), ("Tasks", ", ".join(names))]
    if any(side.measured for side in comparison.sides):
        half = comparison.sequences // 2
        facts += [
            ("Sequences", f"{comparison.sequences - half} fit, {half} test"),
            ("Seed", str(comparison.seed)),
        ]
    return tuple(facts)


def _losses(side: Side, end: str, where: str) -> Section:
    figures = [charts.loss_chart(side, f"loss_by_position{end}")]
    if sum(model.losses is not None for model in side.models) > 1:
        figures.append(charts.ratio_chart(side, f"ratio_by_position{end}"))
    layouts = {str(model.task["name"]) for model in side.models if model.losses}
    text = f"Loss is half the mean squared norm of the error. {_pairing(side)}"
    if recorded := [model.label for model in side.models if model.losses is None]:
        text += f" {', '.join(recorded)}: from finished results, never paired."
    if len(layouts) > 1:
        text += (
            f" The tasks {' and '.join(sorted(layouts))} draw the same sequences from one seed; "
            "each model reads them in its own layout of tokens."
        )
    return Section(
        f"Which predicts better, and where?{where}",
        text,
        tuple(figures),
        (Table(f"summary{end}", tables.summary(side)),),
        (Table(f"models{end}", tables.models(side)), Table(f"losses{end}", tables.losses(side))),
        _LOSSES_NOTE,
    )


def _pairing(side: Side) -> str:
    run = [model.label for model in side.models if model.losses]
    if len(run) > 1:
        return (
            f"{', '.join(run)} ran on the same test sequences, so each difference to {side.first} "
            "is paired; intervals resample blocks of whole sequences."
        )
    return "No two of these models were run here, so no difference is paired."


def _excess(side: Side, end: str, where: str) -> Section:
    measured = side.measured
    if measured is None or side.task is None:
        text = "From finished results: the mesa-layer of each run, fitted on its fit split."
        return Section(f"How far from the best solver?{where}", text, charts.excess(side, end))
    best = measured.solvers.ranked[0]
    text = (
        f"Every family of solvers was fitted to the targets of the fit split over "
        f"t = {label(side.task.windows.judged)}; {words(best.family)} leaves the least there. Its "
        f"loss on the test split is {estimate(best.loss)}."
    )
    return Section(
        f"How far from the best solver?{where}",
        text,
        charts.excess(side, end),
        (Table(f"solvers{end}", tables.solvers(measured.solvers)),),
        note="A loss near that of a solver does not show that the model runs that solver.",
    )


def _verdicts(verdicts: Table) -> Section:
    return Section(
        "Which algorithm does each run?",
        "The verdict of the full analysis of each model on its own task.",
        shown=(verdicts,),
        note=_VERDICTS_NOTE,
    )


def _layers(side: Side, readings: Readings, end: str, where: str) -> list[Section]:
    found = {m.label: readings[m.label] for m in side.models if readings[m.label]}
    if not found:
        return []
    text = (
        "Effective lambda is the smallest mu at which mu f(mu) passes 1/2. Gradient steps and "
        "degree are the fewest within 0.01 of R^2 of the best scalar response; a dash: no number "
        "in the families' range is, or the response explains too little to ask."
    )
    heading = f"How far has each layer solved the context?{where}"
    shown = (Table(f"layers{end}", tables.layers(found)),)
    return [Section(heading, text, charts.effective_lambda(found, end), shown, note=_LAYERS_NOTE)]


def _alike(side: Side, end: str, where: str) -> list[Section]:
    if side.measured is None or not side.measured.similarities:
        return []
    pairs = side.measured.similarities
    text = (
        f"Linear CKA over {pairs[0].tokens:,} tokens of the test split, the same tokens for both "
        "models. Beside it stand two controls: the second model on another sequence, and its twin "
        "with permuted weights, which says how alike untrained layers look."
    )
    return [
        Section(
            f"Are their layers alike?{where}",
            text,
            charts.cka_maps(pairs, end),
            (Table(f"cka_summary{end}", tables.cka_summary(pairs)),),
            (Table(f"cka{end}", tables.cka(pairs)),),
            _CKA_NOTE,
        )
    ]


def _not_compared(comparison: Comparison) -> list[Section]:
    if not comparison.obstacles:
        return []
    text = "Each line names a comparison that was not made, and why."
    return [
        Section(
            "What cannot be compared?",
            text,
            shown=(Table("not_compared", tables.not_compared(comparison.obstacles)),),
        )
    ]
