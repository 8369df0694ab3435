"""Which block scalars do what the model does, and how few of them?

Hypothesis: a network whose products hold nothing but multiples of the identity in the blocks of
the token's slots computes what the model computes, even where the scalars read off the weights do
not, since the rest of the weights moves what they should be.
Test statistic: the agreement, on held-out sequences, of the network whose scalars are fitted to
the model's predictions; beside it that of the permuted twin, fitted to its own predictions with as
many scalars and steps: scalars must not be able to fit anything.
Refuted if the fitted network does not agree, or the twin's does. Takes a minute or two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd

from probe.analysis import Bench
from probe.capture import Runner
from probe.checkpoints.base import Subject, lacks_weights, transformer_of
from probe.closeness import Closeness, compare
from probe.findings import Finding, LineChart, Metric, Outcome, Series, Table
from probe.models.transformer import SequenceTransformer
from probe.plan import FIT, Plan
from probe.report.text import number
from probe.tasks.base import Task, lacks_questions
from probe.views import SUBJECT
from probe.weights.blocks import with_scalars
from probe.weights.equations import Equation
from probe.weights.refit import Fit, Rebuilt, pruned, refit
from probe.weights.slots import SlotBasis, lacks_slots, token_slots
from probe.weights.study import acting, twin_of, update_equations
from probe.weights.written import written

AGREES, FITS_ANYTHING = 0.98, 0.5
FITTED, SCORED = 128, 2048  # sequences
READ, REFITTED, SPARSE = "read off", "refitted", "sparse"


@dataclass(frozen=True)
class Refitted:
    """What the fits gave.

    Attributes:
        fits: From all scalars to few.
        sparse: The one of least BIC.
        beside: The networks beside the model.
        twin: The twin's fitted network beside the twin.
        equations: Those of the sparse network, on its own stream.
    """

    fits: tuple[Fit, ...]
    sparse: Fit
    beside: dict[str, Closeness]
    twin: Closeness
    equations: tuple[Equation, ...]

    @property
    def agrees(self) -> bool:
        """The fitted network is the model, and the twin's is not the twin."""
        good = self.beside[REFITTED].agreement.lo >= AGREES
        return good and self.twin.agreement.hi < FITS_ANYTHING

    @property
    def steps(self) -> list[Equation]:
        """The blocks that are a gradient step."""
        return [one for one in self.equations if one.step is not None and one.step.holds]


@dataclass(frozen=True)
class WeightRefit:
    """Fits block scalars to the model's predictions."""

    name: str = "weight_refit"
    place: int = 66
    thorough: bool = True
    question: str = "Which block scalars do what the model does, and how few of them?"

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Linear attention alone, on tokens of several slots."""
        if lacking := lacks_weights(subject):
            return lacking
        model = transformer_of(subject)
        return lacks_questions(task) or lacks_slots(model, token_slots(model))

    def run(self, bench: Bench) -> Finding:
        """Supports if the fitted network agrees and one of its blocks is a gradient step."""
        found = refitted(bench)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=_outcome(found),
            statement=_statement(found),
            metrics=_metrics(found),
            controls={
                "refitted_r2": Metric.of(
                    found.twin.agreement, "R^2 of the permuted twin by scalars fitted to it"
                )
            },
            does_not_show=(
                "The fitted network computes what the model computes on this input law; the "
                "model's own weights hold more, and on other inputs the two may part. Another "
                "start may give other scalars that agree as well."
            ),
            tables=(
                Table("refits", pd.DataFrame(_fit_rows(found))),
                Table("refitted_equations", pd.DataFrame(_equation_rows(found))),
            ),
            figures=(_chart(found),),
            bearing=_bearing(found),
        )


def refitted(bench: Bench) -> Refitted:
    """Fits the model and its twin, prunes, and scores on held-out sequences."""
    model = transformer_of(bench.subject)
    basis = SlotBasis.of(model, token_slots(model))
    plan = replace(bench.plan, sequences=min(SCORED, bench.plan.sequences))
    whole, rebuilt = _fitted(model, basis, plan)
    fits = pruned(rebuilt, whole, bench.progress)
    sparse = min(fits, key=lambda fit: fit.bic)
    networks = {
        READ: with_scalars(model, basis, acting(model, basis)),
        REFITTED: with_scalars(model, basis, whole.layers),
        SPARSE: with_scalars(model, basis, sparse.layers),
    }
    twin = twin_of(model, plan.seed)
    twin_fit, _ = _fitted(twin, basis, plan)
    twins = {SUBJECT: twin, REFITTED: with_scalars(twin, basis, twin_fit.layers)}
    few = replace(plan, sequences=min(512, plan.sequences))
    return Refitted(
        fits=fits,
        sparse=sparse,
        beside=compare({SUBJECT: model, **networks}, plan),
        twin=compare(twins, few)[REFITTED],
        equations=update_equations(networks[SPARSE], basis, few),
    )


def _fitted(model: SequenceTransformer, basis: SlotBasis, plan: Plan) -> tuple[Fit, Rebuilt]:
    start = acting(model, basis)
    count = min(FITTED, plan.shards(FIT)[0][1])
    tokens = plan.draw(FIT, 0, count).tokens
    wanted = Runner(model, plan.batch_size).run(tokens)
    rebuilt = Rebuilt(with_scalars(model, basis, start), basis, tokens.double(), wanted.double())
    return refit(rebuilt, start), rebuilt


def _outcome(found: Refitted) -> Outcome:
    return "supports" if found.agrees and found.steps else "inconclusive"


def _statement(found: Refitted) -> str:
    read, fitted, sparse = (found.beside[name] for name in (READ, REFITTED, SPARSE))
    text = (
        f"{found.fits[0].used} block scalars fitted to the predictions agree with the model at "
        f"R^2 {fitted.agreement.value:.3f} and have {fitted.ratio.value:.3f} times its loss; "
        f"read off the weights they have {read.ratio.value:.3f} times. The information criterion "
        f"keeps {found.sparse.used}, with R^2 {sparse.agreement.value:.3f} and "
        f"{sparse.ratio.value:.3f} times the loss."
    )
    if not found.agrees:
        return f"{text} The fit is not close enough, or fits the permuted twin too."
    readings = [f"block {e.layer + 1}: {e.reading}" for e in found.equations if e.letter == "y"]
    return f"{text} What its blocks add to the prediction reads as {'; '.join(readings)}."


def _bearing(found: Refitted) -> str:
    if _outcome(found) != "supports":
        return ""
    sparse = found.beside[SPARSE]
    names = " and ".join(
        f"block {one.layer + 1} a gradient step, eta {number(one.step.eta)}"
        for one in found.steps
        if one.step is not None
    )
    return (
        f"A network of {found.sparse.used} multiples of the identity does what it does "
        f"(R^2 {sparse.agreement.value:.3f}); in it {names}."
    )


def _metrics(found: Refitted) -> dict[str, Metric]:
    metrics = {
        "loss": Metric.of(found.beside[SUBJECT].loss, "loss of the model on the same sequences")
    }
    words = {
        READ: "block scalars read off the weights",
        REFITTED: "all block scalars, fitted to the predictions",
        SPARSE: "those that the information criterion keeps, fitted",
    }
    for name, meaning in words.items():
        close, key = found.beside[name], name.replace(" ", "_")
        metrics[f"{key}_r2"] = Metric.of(close.agreement, f"R^2 of the model by {meaning}")
        metrics[f"{key}_loss_ratio"] = Metric.of(close.ratio, f"loss over the model's of {meaning}")
    metrics["fitted_scalars"] = Metric(found.fits[0].used, "block scalars that are fitted")
    metrics["sparse_scalars"] = Metric(found.sparse.used, "those that are kept")
    return metrics


def _fit_rows(found: Refitted) -> Iterator[dict[str, object]]:
    for fit in found.fits:
        yield {
            "scalars": fit.used,
            "error_in_sample": fit.error,
            "bic": fit.bic,
            "chosen": fit is found.sparse,
        }


def _equation_rows(found: Refitted) -> Iterator[dict[str, object]]:
    for one in found.equations:
        yield {
            "block": one.layer + 1,
            "into": one.into,
            "equation": written(one),
            "reading": one.reading,
            "r2_of_terms": one.kept.value,
            "share_of_update": one.energy,
        }


def _chart(found: Refitted) -> LineChart:
    counts = [fit.used for fit in found.fits]
    return LineChart(
        name="weight_refit",
        title="How few block scalars do what the model does",
        caption=(
            "Share of the predictions that the fitted network leaves unexplained on the sequences "
            "that it is fitted to, with fewer and fewer scalars; the last one is where the "
            f"information criterion has risen. It keeps {found.sparse.used}."
        ),
        x_label="block scalars",
        y_label="1 - R^2",
        series=(Series("fitted network", counts, [fit.error for fit in found.fits]),),
        log_x=True,
        log_y=True,
    )


NAMED = {"weight_refit": WeightRefit()}
