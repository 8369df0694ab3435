"""Which weights do the answers of a language model imply, and are they those of ridge regression?

Hypothesis: after a fixed context the answer is linear in the query, f(q) = w_hat . q, and w_hat is
that of ridge regression on the examples. Many fresh queries are asked after the same context; one
half of them fits w_hat with an intercept, the other tests that the answers are linear in it.
Test statistic: held-out R^2 of the linear fit over the queries of a context, about their mean, and
the share of the ridge weights that w_hat explains, by number of examples. Refuted by answers that
are not linear, or by weights of another context that explain as much.
Controls: ridge weights of another context, and the twin with permuted weights.
Cost: `8 width` short texts for each of some hundred contexts and four numbers of examples.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Bench
from probe.checkpoints.base import Subject
from probe.findings import Finding, LineChart, Metric, Outcome, Role, Series, Table
from probe.language_task import lacks_numbers
from probe.models.number_reader import NumberReader
from probe.number_study import (
    Contexts,
    by_block,
    fresh_contexts,
    on_device,
    prompts_of,
    said_last,
    twin_of,
)
from probe.sampling import generator_for
from probe.statistics import Interval, share_explained
from probe.tasks.base import Task
from probe.tasks.numbers import BoundPrompts

PER_BLOCK, QUERIES = 2, 8  # contexts per block; queries per channel, half of them to fit
STREAM, QUERY = 2, 14
EXPLAINED, NULL, REFUTED = 0.8, 0.5, 0.2
LINEAR = "R^2 over fresh queries of one context, about their mean, of a linear fit to other queries"
AGREES = "share that the implied weights explain of"
FLOOR = 1e-6  # of the energy of the answers that ridge weights give


@dataclass(frozen=True)
class Implied:
    """What was read after one number of examples.

    Attributes:
        examples: The number.
        linear: Held-out R^2 of the linear fit.
        ridge: Share of the ridge weights that w_hat explains: 1 - |w_hat - w|^2 / |w|^2.
        teacher: The same share of the teacher's weights.
        another: The same share of the ridge weights of another context.
    """

    examples: int
    linear: Interval
    ridge: Interval
    teacher: Interval
    another: Interval


@dataclass(frozen=True)
class ImplicitWeights:
    """Asks many queries after the same examples."""

    name: str = "implicit_weights"
    place: int = 23
    question: str = "Are its answers linear in the query, with the weights of ridge regression?"
    thorough: bool = False

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Numbers in text."""
        return lacks_numbers(subject, task)

    def run(self, bench: Bench) -> Finding:
        """Supports if answers are linear with ridge weights of their own context."""
        task = prompts_of(bench)
        counts = counts_of(task)
        contexts = fresh_contexts(bench, task, PER_BLOCK, STREAM)
        found, twin = [], []
        for done, count in enumerate(counts):
            found.append(implied(on_device(bench), contexts, count, bench, task))
            twin.append(implied(twin_of(bench), contexts, count, bench, task))
            bench.progress(done + 1, len(counts))
        last = found[-1]
        return Finding(
            self.name,
            self.question,
            _outcome(last),
            _statement(last),
            _metrics(found),
            {
                "ridge_of_another_context": Metric.of(
                    last.another, f"{AGREES} ridge weights of another context"
                ),
                "twin_linear": Metric.of(twin[-1].linear, f"the twin: {LINEAR}"),
                "twin_ridge": Metric.of(twin[-1].ridge, f"the twin: {AGREES} ridge weights"),
            },
            "Any algorithm that comes near the solution implies nearly the same weights; the "
            "response over the eigenvalues tells such algorithms apart. The intercept is free.",
            (Table("implicit_weights", _rows(found, twin)),),
            (_figure(found, twin),),
        )


def counts_of(task: BoundPrompts) -> tuple[int, ...]:
    """Numbers of examples: as many as channels, twice, four times, and all."""
    wanted = (task.width, 2 * task.width, 4 * task.width, task.points - 1)
    return tuple(sorted({min(count, task.points - 1) for count in wanted}))


def implied(
    reader: NumberReader, contexts: Contexts, count: int, bench: Bench, task: BoundPrompts
) -> Implied:
    """Weights that the answers after the first `count` examples imply."""
    shown = Contexts(contexts.x[:, :count], contexts.y[:, :count], contexts.teachers)
    each = QUERIES * max(task.width, 2)
    queries = task.inputs(len(shown.x), each, generator_for(bench.plan.seed, QUERY, count))
    x = torch.cat([shown.x.repeat_interleave(each, 0), queries.flatten(0, 1)[:, None]], 1)
    tokens = task.asking(x, shown.y.repeat_interleave(each, 0))
    said = said_last(reader, tokens, bench).unflatten(0, (-1, each))
    weights, error, energy = linear_fit(queries, said)
    ridge = shown.ridge_weights(bench.setting.ridge)

    # Answers that do not vary are linear; without a floor their rounding would be judged.
    floor = FLOOR * (queries @ ridge[..., None]).square().mean((1, 2)) * each

    def implied_of(others: Tensor) -> Interval:
        apart = (weights - others).square().sum(-1)
        return share_explained(by_block(apart), by_block(others.square().sum(-1)))

    return Implied(
        count,
        share_explained(by_block(error), by_block(energy + floor)),
        implied_of(ridge),
        implied_of(shown.teachers),
        implied_of(ridge.roll(1, 0)),
    )


def linear_fit(
    queries: Float[Tensor, "contexts queries width"], said: Float[Tensor, "contexts queries"]
) -> tuple[Float[Tensor, "contexts width"], Float[Tensor, " contexts"], Float[Tensor, " contexts"]]:
    """Weights fitted to the first half of the queries, with an intercept.

    Returns:
        The weights, the squared error on the other half, and the energy there about its mean.
    """
    half = queries.shape[1] // 2
    design = torch.cat([queries, torch.ones_like(queries[..., :1])], -1)
    fitted = torch.linalg.lstsq(design[:, :half], said[:, :half, None], driver="gelsd").solution
    rest = said[:, half:]
    error = (rest - (design[:, half:] @ fitted)[..., 0]).square().sum(-1)
    return fitted[:, :-1, 0], error, (rest - rest.mean(-1, keepdim=True)).square().sum(-1)


def _outcome(last: Implied) -> Outcome:
    if last.ridge.hi < REFUTED or last.linear.hi < REFUTED:
        return "contradicts"
    linear, agrees = last.linear.lo > EXPLAINED, last.ridge.lo > EXPLAINED
    return "supports" if linear and agrees and last.another.hi < NULL else "inconclusive"


def _statement(last: Implied) -> str:
    return (
        f"After {last.examples} examples a linear map explains {_share(last.linear)} of how its "
        f"answers vary with the query; its weights explain {_share(last.ridge)} of those of ridge "
        f"regression on these examples, and {_share(last.another)} of another context's."
    )


def _share(share: Interval) -> str:
    return f"{share.value:.2f} [{share.lo:.2f}, {share.hi:.2f}]"


def _metrics(found: list[Implied]) -> dict[str, Metric]:
    metrics = {}
    for one in found:
        after = f"after {one.examples} examples"
        metrics[f"linear_{one.examples}"] = Metric.of(one.linear, f"{LINEAR}, {after}")
        metrics[f"ridge_{one.examples}"] = Metric.of(one.ridge, f"{AGREES} ridge weights, {after}")
        metrics[f"teacher_{one.examples}"] = Metric.of(
            one.teacher, f"{AGREES} the teacher's weights, {after}"
        )
    return metrics


def _rows(found: list[Implied], twin: list[Implied]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model,
                "examples": one.examples,
                "statistic": name,
                "r2": value.value,
                "r2_lo": value.lo,
                "r2_hi": value.hi,
            }
            for model, many in (("model", found), ("permuted twin", twin))
            for one in many
            for name, value in vars(one).items()
            if isinstance(value, Interval)
        ]
    )


def _figure(found: list[Implied], twin: list[Implied]) -> LineChart:
    def line(label: str, many: list[Implied], statistic: str, role: Role) -> Series:
        values: list[Interval] = [getattr(one, statistic) for one in many]
        return Series(
            label,
            [one.examples for one in many],
            [max(value.value, -1.0) for value in values],
            [max(value.lo, -1.0) for value in values],
            [max(value.hi, -1.0) for value in values],
            role,
        )

    return LineChart(
        "implicit_weights",
        "Implied weights by number of examples",
        "Linearity of the answers over fresh queries after one context, and the share that the "
        "implied weights explain of others, with 95 % bands; drawn from -1 upwards.",
        "examples before the question",
        "R^2",
        (
            line("linear in the query", found, "linear", "model"),
            line("ridge weights", found, "ridge", "model"),
            line("the teacher", found, "teacher", "theory"),
            line("ridge weights of another context", found, "another", "control"),
            line("linear, permuted twin", twin, "linear", "control"),
        ),
    )


NAMED = {"implicit_weights": ImplicitWeights()}
