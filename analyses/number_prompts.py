"""Does a language model answer number prompts with numbers, and how well by number of examples?

Hypothesis: a model that does regression in context answers with a number, and its loss falls with
the number of lines towards that of least squares, below what copying and averaging reach.
Test statistic: the loss over the last lines minus that of the best of the simple answers (the
mean, the last answer, the answer of the nearest input, zero), paired by sequence; and the share of
questions at which the likeliest token is a number. Refuted if the loss is not below the best simple
answer. Controls: the twin with permuted weights, and the share of the vocabulary that is numbers.
Cost: two forward passes of the test split, and a few tokens of text.
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
from probe.models.number_reader import NumberReader, first_number
from probe.number_study import fresh_contexts, on_device, prompts_of, twin_of
from probe.plan import TEST
from probe.problem import InContextProblem
from probe.stages import Context
from probe.statistics import BLOCKS, Interval, bootstrap_interval, mean_per_sequence
from probe.tasks.base import Task, label
from probe.tasks.numbers import BoundPrompts

SIMPLE = ("mean", "last answer", "nearest example", "zero")
PREDICTORS = ("model", "least squares", *SIMPLE, "permuted twin")
LOSS = "mean of 1/2 (answer - y)^2, in values"
SEQUENCES = 1024  # of the test split at most
NOTHING_GAINED, ANSWERS = 0.1, 0.5


def simple_answers(problem: InContextProblem) -> dict[str, Float[Tensor, "batch lines"]]:
    """Answers that no regression is needed for; 0 at the first line."""
    answers = problem.values[..., 0].double().clone()
    answers[:, 0] = 0
    lines = answers.shape[1]
    told = torch.arange(lines)
    apart = torch.cdist(problem.queries.double(), problem.keys.double())
    unknown = (told[None, :] > told[:, None]) | (told[None, :] == 0)
    nearest = apart.masked_fill(unknown & (told[:, None] > 0), torch.inf).argmin(-1)
    return {
        "mean": answers.cumsum(1) / told.clamp(min=1),
        "last answer": answers,
        "nearest example": torch.where(told > 0, answers.gather(1, nearest), 0.0),
        "zero": torch.zeros_like(answers),
    }


@dataclass(frozen=True)
class Measured:
    """Sums by block.

    Attributes:
        losses: Of every predictor at every line.
        parsed: How often the likeliest token is a number.
        mass: Probability of numbers.
        count: Sequences.
        written: Share of greedy texts with a number in them, after the last question.
    """

    losses: Float[Tensor, "blocks lines predictors"]
    parsed: Float[Tensor, "blocks models lines"]
    mass: Float[Tensor, "blocks models lines"]
    count: Float[Tensor, " blocks"]
    written: Interval

    def loss(self, name: str, lines: slice) -> Float[Tensor, " blocks"]:
        """Mean over some lines."""
        return self.losses[:, lines, PREDICTORS.index(name)].mean(1)

    def mean(self, name: str, lines: slice) -> Interval:
        """With its interval."""
        return mean_per_sequence(self.loss(name, lines), self.count)

    def excess(self, name: str, lines: slice) -> Interval:
        """The model's loss minus another's, paired by sequence."""
        return mean_per_sequence(self.loss("model", lines) - self.loss(name, lines), self.count)

    def gain(self, lines: slice, name: str = "model") -> Interval:
        """The share of what least squares gains over zero."""
        none = self.loss("zero", lines)
        gained, offered = none - self.loss(name, lines), none - self.loss("least squares", lines)
        return bootstrap_interval(lambda weights: (weights @ gained) / (weights @ offered))

    def share(self, sums: Tensor, model: int, lines: slice) -> Interval:
        """Of the subject (0) or its twin (1)."""
        return mean_per_sequence(sums[:, model, lines].mean(1), self.count)

    def best_simple(self, lines: slice) -> str:
        """The simple answer of least loss."""
        return min(SIMPLE, key=lambda name: self.mean(name, lines).value)


@dataclass(frozen=True)
class NumberAnswers:
    """Reads answers on the test split."""

    name: str = "number_prompts"
    place: int = 22
    question: str = "Does it answer with numbers, and do the answers improve with examples?"
    thorough: bool = False

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Numbers in text."""
        return lacks_numbers(subject, task)

    def run(self, bench: Bench) -> Finding:
        """Supports if answers are numbers, and better than all simple answers."""
        task = prompts_of(bench)
        measured = _measured(bench, task)
        late = slice(*bench.setting.windows.solved)
        outcome = _outcome(measured, late)
        chance = len(task.numerals.answers) / on_device(bench).language.vocabulary
        return Finding(
            self.name,
            self.question,
            outcome,
            _statement(measured, late, label(bench.setting.windows.solved)),
            _metrics(measured, late, label(bench.setting.windows.solved)),
            {
                "parse_rate": Metric.of(
                    measured.share(measured.parsed, 1, late), "the twin: the same"
                ),
                "chance": Metric(chance, "share of the vocabulary that is numbers"),
                "gain": Metric.of(measured.gain(late, "permuted twin"), "the twin: the same"),
            },
            "Answers near least squares do not show that least squares is what the model computes; "
            "and answers are read from the numbers alone, whatever else is likely.",
            (Table("number_prompts", _rows(measured)),),
            (_figure(measured),),
            _bearing(measured, late),
        )


def _measured(bench: Bench, task: BoundPrompts) -> Measured:
    models = on_device(bench), twin_of(bench)
    shape = (BLOCKS, len(models), task.points)
    losses = torch.zeros(BLOCKS, task.points, len(PREDICTORS), dtype=torch.float64)
    parsed, mass = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    count = torch.zeros(BLOCKS, dtype=torch.float64)
    shards = [s for s in enumerate(bench.plan.shards(TEST)) if s[1][0] < SEQUENCES]
    for done, (shard, (start, size)) in enumerate(shards):
        sequences = bench.plan.draw(TEST, shard, size)
        context = Context(sequences, task.problem(sequences))
        found = [_answers(model, sequences.tokens, task, bench) for model in models]
        solved = context.spectrum.predict(lambda mu: 1 / (mu + bench.setting.ridge))[..., 0]
        simple = simple_answers(context.problem)
        said = [found[0][0], solved, *(simple[name] for name in SIMPLE), found[1][0]]
        wrong = torch.stack(said, -1) - context.problem.targets.double()
        blocks = (start + torch.arange(size)) % BLOCKS
        losses.index_add_(0, blocks, 0.5 * wrong.square())
        parsed.index_add_(0, blocks, torch.stack([one[1] for one in found], 1).double())
        mass.index_add_(0, blocks, torch.stack([one[2] for one in found], 1))
        count.index_add_(0, blocks, torch.ones(size, dtype=torch.float64))
        bench.progress(done + 1, len(shards))
    return Measured(losses, parsed, mass, count, _written(models[0], bench, task))


def _answers(
    model: NumberReader, tokens: Tensor, task: BoundPrompts, bench: Bench
) -> tuple[Tensor, Tensor, Tensor]:
    """Expected value, whether a number is likeliest, and mass of numbers, at every question."""
    parts = [
        model.answers(part.to(bench.plan.device), task.asked)
        for part in tokens.split(bench.plan.batch_size)
    ]
    columns = ((part.expected, part.parsed, part.mass) for part in parts)
    expected, parsed, mass = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    return expected, parsed, mass


def _written(model: NumberReader, bench: Bench, task: BoundPrompts) -> Interval:
    """Of one text per block."""
    contexts = fresh_contexts(bench, task, 1, 0)
    tokens = task.asking(contexts.x, contexts.y[:, :-1]).to(bench.plan.device)
    numbers = [first_number(text) for text in model.continued(tokens)]
    found = torch.tensor([number is not None for number in numbers], dtype=torch.float64)
    return mean_per_sequence(found, torch.ones(BLOCKS, dtype=torch.float64))


def _outcome(measured: Measured, late: slice) -> Outcome:
    parsed = measured.share(measured.parsed, 0, late)
    excess = measured.excess(measured.best_simple(late), late)
    if measured.gain(late).hi < NOTHING_GAINED or excess.lo > 0:
        return "contradicts"
    return "supports" if excess.hi < 0 and parsed.lo > ANSWERS else "inconclusive"


def _statement(measured: Measured, late: slice, lines: str) -> str:
    parsed, mass = (measured.share(sums, 0, late) for sums in (measured.parsed, measured.mass))
    best = measured.best_simple(late)
    return (
        f"At {100 * parsed.value:.0f} % of the questions t = {lines} the likeliest token is a "
        f"number; numbers have {100 * mass.value:.0f} % of the probability. Loss "
        f"{measured.mean('model', late).value:.3g}, against "
        f"{measured.mean('least squares', late).value:.3g} for least squares and "
        f"{measured.mean(best, late).value:.3g} for the best simple answer ({best})."
    )


def _bearing(measured: Measured, late: slice) -> str:
    parsed = measured.share(measured.parsed, 0, late)
    if parsed.hi < ANSWERS:
        return (
            f"Its likeliest token is a number at only {100 * parsed.value:.0f} % of the questions: "
            "what was judged is its distribution over numbers, not what it would write."
        )
    return ""


def _metrics(measured: Measured, late: slice, lines: str) -> dict[str, Metric]:
    best = measured.best_simple(late)
    where = f"over t = {lines}"
    found = {
        "parse_rate": Metric.of(
            measured.share(measured.parsed, 0, late),
            f"share of questions whose likeliest token is a number, {where}",
        ),
        "written_rate": Metric.of(
            measured.written, "share of greedy texts after the last question that have a number"
        ),
        "number_mass": Metric.of(
            measured.share(measured.mass, 0, late), f"probability of all numbers together, {where}"
        ),
        "gain": Metric.of(
            measured.gain(late), f"share of what least squares gains over zero, {where}"
        ),
        "excess_over_simple": Metric.of(
            measured.excess(best, late), f"loss minus that of the best simple answer ({best})"
        ),
        "excess_over_least_squares": Metric.of(
            measured.excess("least squares", late), "loss minus that of least squares"
        ),
    }
    for name in PREDICTORS:
        key = f"loss_{name.replace(' ', '_')}"
        found[key] = Metric.of(measured.mean(name, late), f"{name}: {LOSS}, {where}")
    return found


def _rows(measured: Measured) -> pd.DataFrame:
    means = measured.losses.sum(0) / measured.count.sum()
    errors = (measured.losses / measured.count[:, None, None]).std(0) / BLOCKS**0.5
    rows = [
        {
            "examples": line,
            "predictor": name,
            "loss": float(means[line, at]),
            "loss_se": float(errors[line, at]),
        }
        for line in range(len(means))
        for at, name in enumerate(PREDICTORS)
    ]
    return pd.DataFrame(rows)


def _figure(measured: Measured) -> LineChart:
    lines = []
    for name, part in _rows(measured).groupby("predictor", sort=False):
        low = (part["loss"] - 1.96 * part["loss_se"]).clip(lower=0.2 * part["loss"])
        high = part["loss"] + 1.96 * part["loss_se"]
        role: Role = "theory" if name in ("least squares", *SIMPLE) else "control"
        lines.append(
            Series(
                str(name),
                part["examples"].tolist(),
                part["loss"].tolist(),
                low.tolist(),
                high.tolist(),
                "model" if name == "model" else role,
            )
        )
    return LineChart(
        "number_prompts",
        "Loss by number of examples",
        "Loss of the expected number on fresh texts, in values between -1 and 1, with 95 % bands. "
        "The penalty of least squares is the best for the task, not for the model.",
        "examples before the question",
        "loss",
        tuple(lines),
        log_y=True,
    )


NAMED = {"number_prompts": NumberAnswers()}
