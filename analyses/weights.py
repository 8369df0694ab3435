"""What algorithm do the weights spell out?

Hypothesis: every product of a head's matrices, W_Q W_K^T and W_V W_O, is made of multiples of the
identity in the blocks of the token's slots, and the block scalars are those of gradient descent
(von Oswald et al. 2023, section 3.1).
Test statistics: the block-identity score against permuted channels; the agreement of the model
that holds nothing but block scalars with the model; the share of an update that the gradient step
explains alone, against the pairs of another sequence and keys exchanged with values.
Refuted for a model if its compression does not agree. Costs a few seconds; nothing is trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import torch

from probe.analysis import Bench
from probe.checkpoints.base import Subject, lacks_weights, transformer_of
from probe.findings import (
    Figure,
    Finding,
    HeatMaps,
    LineChart,
    Metric,
    Outcome,
    Series,
    SmallMap,
    Table,
)
from probe.report.text import number
from probe.tasks.base import Task, lacks_questions
from probe.weights.blocks import block_scalars
from probe.weights.equations import Equation
from probe.weights.path import Path
from probe.weights.slots import lacks_slots, token_slots
from probe.weights.study import HeadProduct, Study, mean_score, study
from probe.weights.written import closed_form, written

AGREES, BLOCKY = 0.98, 0.5
SHARE, LEAST = 8, 256  # of the run's sequences per block of the model
SIGNED = 0.1  # blocks this large beside the largest carry their sign
TITLES = {"scores": "W_Q W_K^T", "values": "W_V W_O"}


@dataclass(frozen=True)
class Weights:
    """Reads closed forms off the weights of linear attention."""

    name: str = "weights"
    place: int = 64
    thorough: bool = False
    question: str = "What algorithm do the weights spell out?"

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Linear attention alone, on tokens of several slots."""
        if lacking := lacks_weights(subject):
            return lacking
        model = transformer_of(subject)
        return lacks_questions(task) or lacks_slots(model, token_slots(model))

    def run(self, bench: Bench) -> Finding:
        """Supports if block scalars agree with the model and each block of them is a step."""
        model = transformer_of(bench.subject)
        count = max(LEAST, bench.plan.sequences // (SHARE * len(model.blocks)))
        plan = replace(bench.plan, sequences=min(count, bench.plan.sequences))
        found = study(model, plan, bench.progress)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=outcome(found),
            statement=_statement(found),
            metrics=_metrics(found),
            controls=_controls(found),
            does_not_show=(
                "Only products of matrices are defined, and of several heads only the sum over "
                "heads of what both products do; single heads may be split otherwise. Letters "
                "name what the token holds: in later blocks a slot holds what earlier ones made "
                "of it. Weights in another basis than the token's show no blocks and may learn "
                "all the same."
            ),
            tables=_tables(found),
            figures=_figures(found),
            bearing=_bearing(found),
        )


def outcome(found: Study) -> Outcome:
    """Inconclusive unless everything fits: other weights than these may learn too.

    Every block must read as a step. One among others that do not leaves the algorithm open.
    """
    unread = len(_predictions(found)) - len(_steps(found))
    return "supports" if _fits(found) and _steps(found) and not unread else "inconclusive"


def _fits(found: Study) -> bool:
    share, null = mean_score(found.heads)
    return found.compressed.agreement.lo >= AGREES and share >= BLOCKY > null


def _predictions(found: Study) -> list[Equation]:
    """What blocks add to the prediction."""
    return [one for one in found.equations if one.letter == "y"]


def _steps(found: Study) -> list[Equation]:
    return [one for one in _predictions(found) if one.step is not None and one.step.holds]


def _statement(found: Study) -> str:
    every, reach = found.counts
    close = found.compressed
    counted = f"{every} block scalars"
    if reach < every:
        counted += f", {reach} of which can reach the prediction,"
    agree = (
        f"{counted} in place of the weights agree with the model at R^2 "
        f"{close.agreement.value:.3f} and have {close.ratio.value:.3f} times its loss"
    )
    return f"{agree}. {_equations(found)}"


def _equations(found: Study) -> str:
    predictions = _predictions(found)
    if found.step is not None and predictions:
        return f"{closed_form(predictions[0], found.roles)}: {predictions[0].reading}."
    readings = [f"block {one.layer + 1}: {one.reading}" for one in predictions]
    return f"What blocks add to the prediction reads as {'; '.join(readings)}."


def _bearing(found: Study) -> str:
    steps = _steps(found)
    if not (_fits(found) and steps):
        return ""
    step = steps[0].step
    assert step is not None
    eta, r2 = number(step.eta), f"{step.alone.value:.3f}"
    if found.step is not None:
        return f"Its weights are one gradient step in closed form: eta {eta} (R^2 {r2})."
    agreement = f"{found.compressed.agreement.value:.3f}"
    return (
        f"Its weights are {found.counts[0]} multiples of the identity (R^2 {agreement}); block "
        f"{steps[0].layer + 1} is a gradient step, eta {eta} (R^2 {r2})."
    )


def _metrics(found: Study) -> dict[str, Metric]:
    share, _ = mean_score(found.heads)
    close = found.compressed
    metrics = {
        "block_identity": Metric(
            share, "share of the products' squared norm in multiples of the identity"
        ),
        "block_scalars": Metric(found.counts[0], "block scalars of all products"),
        "acting_scalars": Metric(found.counts[1], "those that can reach the prediction"),
        "agreement_r2": Metric.of(close.agreement, "R^2 of the model by its block scalars"),
        "loss": Metric.of(found.loss, "loss of the model on the same sequences"),
        "compressed_loss": Metric.of(close.loss, "loss of its block scalars"),
        "loss_ratio": Metric.of(close.ratio, "loss of its block scalars over the model's"),
        "barrier": Metric.of(
            found.path.barrier, "most loss above the line on the path to the block scalars"
        ),
    }
    for one in _steps(found):
        assert one.step is not None
        block = f"block_{one.layer + 1}"
        metrics[f"eta_{block}"] = Metric(one.step.eta, "gradient step read off the block's scalars")
        metrics[f"step_r2_{block}"] = Metric.of(
            one.step.alone, "R^2 of the block's update of the prediction by that step alone"
        )
    if found.step is not None:
        metrics["step_loss_ratio"] = Metric.of(
            found.step.ratio, "loss of the gradient step alone over the model's"
        )
    return metrics


def _controls(found: Study) -> dict[str, Metric]:
    share, _ = mean_score(found.twin_heads)
    _, null = mean_score(found.heads)
    controls = {
        "block_identity": Metric(null, "95 % quantile of the score with permuted channels"),
        "block_identity (permuted twin)": Metric(share, "score of the permuted twin"),
        "agreement_r2": Metric.of(
            found.twin.agreement, "R^2 of the permuted twin by its own block scalars"
        ),
        "barrier": Metric.of(
            found.misplaced.barrier, "the same path, each head in the place of the next"
        ),
    }
    for one in _steps(found):
        assert one.step is not None
        name = f"step_r2_block_{one.layer + 1}"
        controls[name] = Metric.of(one.step.foreign, "with the pairs of another sequence")
        controls[f"{name} (mirrored)"] = Metric.of(
            one.step.mirrored, "with keys and values exchanged"
        )
    return controls


def _tables(found: Study) -> tuple[Table, ...]:
    return (
        Table("weight_scores", pd.DataFrame(_score_rows(found))),
        Table("block_scalars", pd.DataFrame(_scalar_rows(found))),
        Table("update_equations", pd.DataFrame(_equation_rows(found))),
        Table("weight_terms", pd.DataFrame(_term_rows(found))),
        Table("weight_path", pd.DataFrame(_path_rows(found))),
    )


def _score_rows(found: Study) -> Iterator[dict[str, object]]:
    for one in found.heads:
        yield {
            "block": one.layer + 1,
            "head": one.head + 1,
            "product": TITLES[one.kind],
            "score": one.score.share,
            "null": one.score.null,
            "null_hi": one.score.null_hi,
            "p": one.score.p,
        }


def _scalar_rows(found: Study) -> Iterator[dict[str, object]]:
    names = found.roles.names
    for one in found.heads:
        for row, values in zip(names, block_scalars(one.matrix, found.basis.width), strict=True):
            for column, value in zip(names, values.tolist(), strict=True):
                yield {
                    "block": one.layer + 1,
                    "head": one.head + 1,
                    "product": TITLES[one.kind],
                    "from": row,
                    "to": column,
                    "scalar": value,
                }


def _equation_rows(found: Study) -> Iterator[dict[str, object]]:
    for one in found.equations:
        yield {
            "block": one.layer + 1,
            "into": one.into,
            "equation": written(one),
            "reading": one.reading,
            "r2_of_terms": one.kept.value,
            "r2_lo": one.kept.lo,
            "r2_hi": one.kept.hi,
            "r2_of_all_scalars": one.all.value,
            "share_of_update": one.energy,
        }


def _term_rows(found: Study) -> Iterator[dict[str, object]]:
    for one in found.equations:
        for term in one.terms:
            yield {
                "block": one.layer + 1,
                "into": one.into,
                "query": term.query,
                "key": term.key,
                "value": term.value,
                "coefficient": term.coefficient,
                "refitted": term.refitted,
                "r2_alone": term.alone.value,
                "r2_lo": term.alone.lo,
                "r2_hi": term.alone.hi,
                "energy": term.energy,
            }


def _path_rows(found: Study) -> Iterator[dict[str, object]]:
    for kind, path in (("matched", found.path), ("misplaced", found.misplaced)):
        for alpha, loss in zip(path.alphas, path.losses, strict=True):
            yield {
                "heads": kind,
                "alpha": alpha,
                "loss": loss.value,
                "loss_lo": loss.lo,
                "loss_hi": loss.hi,
            }


def _figures(found: Study) -> tuple[Figure, ...]:
    return (_maps(found, "scores"), _maps(found, "values"), _chart(found))


def _maps(found: Study, kind: str) -> HeatMaps:
    layers = sorted({one.layer for one in found.heads})
    rows = tuple(
        tuple(
            _small(one, found.basis.width)
            for one in found.heads
            if (one.layer, one.kind) == (layer, kind)
        )
        for layer in layers
    )
    asked = {
        "scores": ("key slot, at the pair", "query slot"),
        "values": ("slot written to", "slot read"),
    }
    return HeatMaps(
        name=f"weight_maps_{kind}",
        title=f"{TITLES[kind]} of every head, in the basis of the token's slots",
        caption=(
            "One map per block (rows) and head. Each is drawn in units of its largest entry, which "
            "its title gives with the block-identity score. A diagonal is a multiple of the "
            f"identity; its sign stands in the corner. Slots: {_legend(found)}."
        ),
        x_label=asked[kind][0],
        y_label=asked[kind][1],
        value_label="entry / largest entry",
        blocks=found.roles.names,
        rows=rows,
    )


def _legend(found: Study) -> str:
    meaning = {
        "y": "prediction, empty in the token",
        "s": "state, query and value at once",
        "q": "query",
        "v": "value",
        "k": "key of the pair, the state before" if found.roles.lagged else "key of the pair",
        "x": "something else",
    }
    return "; ".join(f"{letter} {meaning[letter]}" for letter in found.roles.groups)


def _small(one: HeadProduct, width: int) -> SmallMap:
    largest = float(one.matrix.abs().max()) or 1.0
    scaled = block_scalars(one.matrix, width) / largest
    signs = torch.where(scaled.abs() < SIGNED, 0.0, scaled.sign()).int().tolist()
    return SmallMap(
        title=f"{one.layer + 1}.{one.head + 1}  max {number(largest)}  score {one.score.share:.2f}",
        values=tuple(map(tuple, (one.matrix / largest).tolist())),
        signs=tuple(tuple(("", "+", "−")[sign] for sign in row) for row in signs),
    )


def _chart(found: Study) -> LineChart:
    series = (
        _line("heads matched", found.path, "model"),
        _line("heads misplaced", found.misplaced, "control"),
    )
    return LineChart(
        name="weight_path",
        title="Loss on the way from the model to its block scalars",
        caption=(
            "Products of matched heads are interpolated. The control is the same path with each "
            "head in the place of the next and with the wrong sign: its ends are the same "
            "functions, and what it crosses is what a barrier looks like."
        ),
        x_label="share of the block scalars",
        y_label="loss",
        series=series,
    )


def _line(label: str, path: Path, role: Literal["model", "control"]) -> Series:
    loss = path.losses
    return Series(
        label,
        path.alphas,
        [one.value for one in loss],
        [one.lo for one in loss],
        [one.hi for one in loss],
        role,
    )


NAMED = {"weights": Weights()}
