"""The page of a transplant, or of the reasons against one."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from probe.findings import LineChart, Series, Table
from probe.report.page import Page, Section
from probe.report.text import estimate, number
from probe.transplant.binding import BOUND, ROLES, Binding
from probe.transplant.run import Exchange, Refusal, Transplant

Record = Mapping[str, Any]
_NOT = (
    "That the old layers read their pairs by these matrices, or that the new layer reaches its "
    "predictions by the steps of the old ones: it solves exactly what they approach."
)


def transplant_page(
    name: str, found: Transplant | Refusal, before: Record, after: Record | None
) -> Page:
    """The page.

    Args:
        name: The model.
        found: The transplant, or why there is none.
        before: The old model's results, as in results.json.
        after: The new model's; None where nothing was replaced.
    """
    if isinstance(found, Refusal) or after is None:
        return _refused(name, found, before)
    sections = (
        _loss_section(found, before["verdict"]["class"] == "first_order"),
        _binding_section(found.bindings, found.binding.layer),
        _verdict_section(before, after),
    )
    return Page(
        "transplant",
        f"{name}: layers replaced by one mesa-layer",
        answer(found, after),
        _facts(found),
        sections,
        _record(found, before, after),
    )


def answer(found: Transplant, after: Record) -> str:
    """The outcome in one sentence."""
    first, last = found.binding.layer + 1, found.binding.layer + found.removed
    layers = f"Layer {first} is" if first == last else f"Layers {first} to {last} are"
    ratio, share = found.final.ratio, 100 * found.parameters / found.old_parameters
    verdict = after["verdict"]
    reads = str(verdict["class"]).replace("_", " ")
    return (
        f"{layers} replaced by one explicit mesa-layer: the loss is {ratio.value:.3f} times the "
        f"original's (95 % interval {ratio.lo:.3f} to {ratio.hi:.3f}), with "
        f"{share:.0f} % of its parameters; the new model reads "
        f"as {reads}, evidence level {verdict['evidence_level']}."
    )


def _facts(found: Transplant) -> tuple[tuple[str, str], ...]:
    saved = found.old_parameters - found.parameters
    return (
        ("loss before", estimate(found.exchange.before)),
        ("loss after, projections in closed form", estimate(found.exchange.after)),
        *((("loss after fine-tuning", estimate(found.tuned.after)),) if found.tuned else ()),
        ("layers removed", str(found.removed)),
        ("parameters", f"{found.old_parameters} before, {found.parameters} after, {saved} saved"),
        ("lambda of the explicit layer", number(found.answer.ridge)),
        ("agreement with the original, R^2", estimate(found.final.agreement)),
    )


def _loss_section(found: Transplant, unconverged: bool) -> Section:
    series = [
        _line("original", found.exchange, before=True),
        _line("explicit layer, closed form", found.exchange),
    ]
    if found.tuned:
        series.append(_line("explicit layer, fine-tuned", found.tuned))
    chart = LineChart(
        "transplant_loss",
        "Loss by position",
        "On test sequences that no fit has seen; 95 % intervals.",
        "position t (tokens seen)",
        "loss",
        tuple(series),
        log_y=True,
    )
    frame = pd.DataFrame(
        {
            "position": range(1, len(found.exchange.before_by_position.mean) + 1),
            "before": found.exchange.before_by_position.mean.tolist(),
            "after": found.final.after_by_position.mean.tolist(),
        }
    )
    text = (
        "Keys, values and queries are read from the stream by matrices from ridge regressions, the "
        "penalty and the output map are those of least loss on the fit split. Nothing else is "
        "fitted"
        + (", then the layer and the read-out are trained for some steps." if found.tuned else ".")
    )
    text += f" {_where(found.final)}"
    if unconverged:
        text += (
            " The original runs a short iteration: the explicit layer goes on to where that would "
            "have led, and does not imitate it."
        )
    table = Table("transplant_loss", frame)
    return Section("What does the exchange cost?", text, (chart,), data=(table,), note=_NOT)


def _where(exchange: Exchange) -> str:
    """At how many positions the exchange helps, and at how many it harms."""
    before, after = exchange.before_by_position, exchange.after_by_position
    better, worse = int((after.hi < before.lo).sum()), int((after.lo > before.hi).sum())
    return (
        f"The loss is lower at {better} of {len(before.mean)} positions and higher at {worse}, by "
        "intervals that do not meet."
    )


def _line(name: str, exchange: Exchange, before: bool = False) -> Series:
    band = exchange.before_by_position if before else exchange.after_by_position
    shown = range(2, len(band.mean) + 1)
    parts = (part[1:].tolist() for part in (band.mean, band.lo, band.hi))
    y, lo, hi = parts
    return Series(name, list(shown), y, lo, hi, role="control" if before else "model")


def _binding_section(found: Sequence[Binding], chosen: int | None) -> Section:
    rows = [
        {
            "stream before layer": binding.layer + 1,
            **{f"R^2 of {role}": round(binding.r2[role].value, 3) + 0.0 for role in ROLES},
            "all there": "yes" if binding.complete else "no",
        }
        for binding in found
    ]
    text = (
        "A layer that learns needs, at every token, the newest pair and the query. Held-out share "
        f"of each that a matrix reads from the stream; {BOUND:g} of all three count as there."
    )
    if chosen is not None:
        text += f" The explicit layer takes the place of layer {chosen + 1} and of all above it."
    table = Table("transplant_binding", pd.DataFrame(rows))
    return Section("Where does a token meet its pair?", text, shown=(table,))


def _verdict_section(before: Record, after: Record | None) -> Section:
    named = [("original", before)] + ([("with the explicit layer", after)] if after else [])
    rows = [
        {
            "model": name,
            "class": str(results["verdict"]["class"]).replace("_", " "),
            "evidence level": results["verdict"]["evidence_level"],
            "equivalent families": ", ".join(results["verdict"]["equivalent"]).replace("_", " "),
        }
        for name, results in named
    ]
    text = " ".join(f"{name.capitalize()}: {r['verdict']['statement']}" for name, r in named)
    table = Table("transplant_verdicts", pd.DataFrame(rows))
    return Section("What do the models read as?", text, shown=(table,))


def _refused(name: str, found: Transplant | Refusal, before: Record) -> Page:
    reason = found.reason if isinstance(found, Refusal) else ""
    sections = [_verdict_section(before, None)]
    if found.bindings:
        sections.insert(0, _binding_section(found.bindings, None))
    return Page(
        "transplant",
        f"{name}: nothing is replaced",
        f"Nothing is replaced. {reason}",
        (),
        tuple(sections),
        {"replaced": False, "reason": reason, "bindings": _bindings(found), "before": before},
    )


def _record(found: Transplant, before: Record, after: Record) -> dict[str, object]:
    return {
        "replaced": True,
        "first_layer": found.binding.layer + 1,
        "layers_removed": found.removed,
        "parameters_before": found.old_parameters,
        "parameters_after": found.parameters,
        "lambda": found.answer.ridge,
        "closed_form": _exchange(found.exchange),
        "fine_tuned": _exchange(found.tuned) if found.tuned else None,
        "bindings": _bindings(found),
        "before": before,
        "after": after,
    }


def _exchange(exchange: Exchange) -> dict[str, object]:
    parts = ("before", "after", "ratio", "agreement")
    return {part: vars(getattr(exchange, part)) for part in parts}


def _bindings(found: Transplant | Refusal) -> list[dict[str, object]]:
    return [
        {"layer": b.layer + 1, **{role: vars(r2) for role, r2 in b.r2.items()}}
        for b in found.bindings
    ]
