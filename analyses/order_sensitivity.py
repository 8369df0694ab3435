"""Do the answers of a language model depend on the order of the examples?

Hypothesis: a learner on the whole context, such as gradient descent or least squares, treats it as
a set, so the order changes nothing (Shen et al. 2023, arXiv:2310.08540, measure that language
models do depend on it, against the claim that they run gradient descent on their context). A
learner that takes the examples one by one depends on the order, and so does copying.
Test statistic: variance of the answer over orders of the same examples, as a share of its variance
over contexts. Refuted if the share is not far below that of an online learner (least mean squares,
one pass, the step of least loss).
Control: the last answer copied, which depends on nothing but order.
Few examples are shown, where an online learner is still far from what it converges to.
Cost: `ORDERS` short texts for each of some hundred contexts.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Bench
from probe.checkpoints.base import Subject
from probe.findings import Finding, IntervalChart, Metric, Outcome, Table
from probe.language_task import lacks_numbers
from probe.number_study import (
    Contexts,
    by_block,
    fresh_contexts,
    on_device,
    prompts_of,
    said_last,
    twin_of,
)
from probe.sampling import generator_for, uniform
from probe.statistics import Interval, bootstrap_interval
from probe.tasks.base import Task
from probe.tasks.numbers import BoundPrompts

ORDERS, PER_BLOCK = 8, 2
PER_CHANNEL, LEAST = 2, 3  # examples
FAR_BELOW = 0.1  # of an online learner's share: a slower one has less than the best has
HARDLY, NONE = 0.02, 1e-3
RATES = torch.logspace(-2, 0.3, 12, dtype=torch.float64)
ORDER = 13  # a stream of its own
DEFINITION = "variance of the answer over orders of the examples, over that over contexts"
PARTS = ("model", "least squares", "online learner", "last answer", "permuted twin")


@dataclass(frozen=True)
class OrderSensitivity:
    """Asks the same question after the same examples in several orders."""

    name: str = "order_sensitivity"
    place: int = 24
    question: str = "Do its answers depend on the order of the examples?"
    thorough: bool = False

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Numbers in text."""
        return lacks_numbers(subject, task)

    def run(self, bench: Bench) -> Finding:
        """Supports if the order matters far less than to an online learner."""
        task = prompts_of(bench)
        found = _measured(bench, task)
        model, online = found["model"], found["online learner"]
        return Finding(
            self.name,
            self.question,
            _outcome(model, online),
            _statement(model, online),
            {
                "order_sensitivity": Metric.of(model, DEFINITION),
                "online_learner": Metric.of(online, f"least mean squares, one pass: {DEFINITION}"),
                "least_squares": Metric.of(found["least squares"], f"the solver: {DEFINITION}"),
            },
            {
                "last_answer": Metric.of(found["last answer"], f"copying: {DEFINITION}"),
                "twin": Metric.of(found["permuted twin"], f"the twin: {DEFINITION}"),
            },
            "That the order does not matter is shown by the mean of the answers too; it does not "
            "show that anything is learned. Over contexts answers vary with the query as well.",
            (Table("order_sensitivity", pd.DataFrame(_rows(found))),),
            (_figure(found),),
            _bearing(model, online),
        )


def sensitivity(said: Float[Tensor, "contexts orders"]) -> Interval:
    """Mean variance over orders, as a share of the variance of all answers."""
    within = by_block(said.var(1))
    around = by_block((said - said.mean()).square().mean(1))
    return bootstrap_interval(lambda weights: (weights @ within) / (weights @ around))


def _measured(bench: Bench, task: BoundPrompts) -> dict[str, Interval]:
    contexts = fresh_contexts(bench, task, PER_BLOCK, 1)
    shown = min(max(PER_CHANNEL * task.width, LEAST), task.points - 1)
    x, y = contexts.x[:, :shown], contexts.y[:, :shown]
    draws = uniform(generator_for(bench.plan.seed, ORDER), 0.0, 1.0, len(x), ORDERS, x.shape[1])
    order = draws.argsort(-1)[..., None]
    x, y = (part[:, None].expand(-1, ORDERS, -1, -1) for part in (x, y))
    x, y = x.gather(2, order.expand_as(x)), y.gather(2, order)
    queries = contexts.x[:, -1:, None].expand(-1, ORDERS, -1, -1)
    tokens = task.asking(torch.cat([x, queries], 2).flatten(0, 1), y.flatten(0, 1))
    teachers = contexts.teachers.repeat_interleave(ORDERS, 0)
    solved = Contexts(x.flatten(0, 1), y.flatten(0, 1), teachers)
    weights = solved.ridge_weights(bench.setting.ridge).unflatten(0, (-1, ORDERS))
    query = queries[:, :, 0]
    said = {
        "model": said_last(on_device(bench), tokens, bench).unflatten(0, (-1, ORDERS)),
        "least squares": (weights * query).sum(-1),
        "online learner": _online(x, y[..., 0], query, contexts.y[:, -1]),
        "last answer": y[:, :, -1, 0],
        "permuted twin": said_last(twin_of(bench), tokens, bench).unflatten(0, (-1, ORDERS)),
    }
    return {name: sensitivity(said[name]) for name in PARTS}


def _online(
    x: Float[Tensor, "contexts orders lines width"],
    y: Float[Tensor, "contexts orders lines"],
    query: Float[Tensor, "contexts orders width"],
    target: Float[Tensor, "contexts 1"],
) -> Float[Tensor, "contexts orders"]:
    """Steps w + eta (y - w . x) x, example by example, with the eta of least loss."""
    weights = x.new_zeros(len(RATES), *query.shape)
    for pair, answer in zip(x.unbind(2), y.unbind(2), strict=True):
        wrong = answer - (weights * pair).sum(-1)
        weights = weights + RATES[:, None, None, None] * wrong[..., None] * pair
    said = (weights * query).sum(-1)
    return said[(said - target).square().mean((1, 2)).argmin()]


def _outcome(model: Interval, online: Interval) -> Outcome:
    if model.hi < FAR_BELOW * online.lo:
        return "supports"
    return "contradicts" if model.lo > max(online.hi, HARDLY) else "inconclusive"


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.2g} % [{100 * share.lo:.2g}, {100 * share.hi:.2g}]"


def _statement(model: Interval, online: Interval) -> str:
    return (
        f"The order of the examples makes {_percent(model)} of the variance of its answers; for a "
        f"solver that sees them as a set it is 0, for an online learner {_percent(online)}."
    )


def _bearing(model: Interval, online: Interval) -> str:
    """What Shen et al. object, answered for this model."""
    if _outcome(model, online) == "supports":
        return "The order of the examples hardly matters, as for a learner of the whole context."
    if model.lo > HARDLY:
        return (
            f"The order of the examples matters ({_percent(model)} of the variance of answers), "
            "which is 0 for a solver of the whole context: what Shen et al. object holds here."
        )
    if model.lo > NONE:
        return (
            f"The order of the examples makes {_percent(model)} of the variance of answers: more "
            "than the 0 of a solver of the whole context, as if examples were learned one by one."
        )
    return ""


def _rows(found: dict[str, Interval]) -> list[dict[str, object]]:
    return [
        {"answers": name, "sensitivity": v.value, "lo": v.lo, "hi": v.hi}
        for name, v in found.items()
    ]


def _figure(found: dict[str, Interval]) -> IntervalChart:
    names = tuple(sorted(found, key=lambda name: found[name].value))
    values = [found[name] for name in names]
    return IntervalChart(
        "order_sensitivity",
        "Sensitivity to the order of the examples",
        "Variance of the answer over orders of the same examples, as a share of that of all "
        "answers, with 95 % intervals.",
        "share of the variance",
        names,
        tuple(value.value for value in values),
        tuple(value.lo for value in values),
        tuple(value.hi for value in values),
        limits=(0.0, 1.0),
    )


NAMED = {"order_sensitivity": OrderSensitivity()}
