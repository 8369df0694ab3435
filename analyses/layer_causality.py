"""Does a context change each layer as a gradient step on its examples would?

Language models have been said to fine-tune themselves on their context, since updates by context
look like updates by training. Deutch et al. 2023 (arXiv:2311.07772) object that an update of layer
l can depend on lower layers only, unlike that of plain training, and that untrained models reach
the same similarity. So training here is layer-causal too, and updates are compared as differences
about their mean over contexts, with the questions the same everywhere: what is left of an update
is what the examples of this context change.
Hypothesis: the update by context points along the layer-causal training update of its own examples.
Test statistic: their mean cosine, minus that with the training update of another context, over all
layers. Refuted where it is not above that of untrained models: the twin with permuted weights, and
one with weights drawn anew. Cost: one backward pass per layer and context, some minutes.
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
from probe.layer_updates import Examples, Updates, about_their_mean, cosines, updates
from probe.models.number_reader import NumberReader
from probe.number_study import by_block, fresh_contexts, on_device, prompts_of, redrawn, twin_of
from probe.progress import Phases
from probe.statistics import BLOCKS, Interval, mean_per_sequence
from probe.tasks.base import Task
from probe.tasks.numbers import BoundPrompts

QUESTIONS, STREAM = 4, 3
MARGIN = 0.05
MODELS = ("model", "permuted twin", "redrawn weights")
OWN = "cosine of updates by context and by layer-causal training, about their means"


@dataclass(frozen=True)
class Similarity:
    """Cosines of one model, by context and layer.

    Attributes:
        raw: Of the updates as they are, with plain training: what the literature first measured.
        own: Of differences, with layer-causal training on the own examples.
        another: The same with the examples of another context.
        plain: Of differences, with plain training on the own examples.
    """

    raw: Float[Tensor, "contexts layers"]
    own: Float[Tensor, "contexts layers"]
    another: Float[Tensor, "contexts layers"]
    plain: Float[Tensor, "contexts layers"]

    @classmethod
    def of(cls, found: Updates) -> "Similarity":
        """From the updates."""
        context, causal, plain = (about_their_mean(part) for part in vars(found).values())
        return cls(
            cosines(found.context, found.plain),
            cosines(context, causal),
            cosines(context, causal.roll(1, 0)),
            cosines(context, plain),
        )

    @property
    def selectivity(self) -> Float[Tensor, "contexts layers"]:
        """Own minus another."""
        return self.own - self.another


@dataclass(frozen=True)
class LayerCausality:
    """Compares updates by context with updates by training, layer by layer."""

    name: str = "layer_causality"
    place: int = 145
    rests_on: frozenset[str] = frozenset({"streams"})
    question: str = "Does a context change each layer as a gradient step on its examples would?"
    thorough: bool = True

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Numbers in text."""
        return lacks_numbers(subject, task)

    def run(self, bench: Bench) -> Finding:
        """Supports if updates agree beyond those of another context and of untrained models."""
        task = prompts_of(bench)
        phases = Phases(bench.progress, len(MODELS))
        readers = (on_device(bench), twin_of(bench), redrawn(bench))
        found = {
            name: _similarity(reader, bench, task, phases)
            for name, reader in zip(MODELS, readers, strict=True)
        }
        selective = {name: over(one.selectivity) for name, one in found.items()}
        outcome = _outcome(selective)
        return Finding(
            self.name,
            self.question,
            outcome,
            _statement(selective, found),
            _metrics(found["model"]),
            {
                f"{measure}_{name.replace(' ', '_')}": Metric.of(
                    over(getattr(found[name], measure)), f"{name}: {words}"
                )
                for name in MODELS[1:]
                for measure, words in (("selectivity", "the same"), ("raw", "raw cosine"))
            },
            "Weights that move as in training are not the only way to learn in context: a learner "
            "whose algorithm runs in its stream need not resemble training of its own weights.",
            (Table("layer_causality", _rows(found)),),
            (_figure(found),),
            _bearing(outcome, selective),
        )


def over(values: Float[Tensor, "contexts layers"]) -> Interval:
    """Mean over contexts and layers."""
    return mean_per_sequence(by_block(values.mean(1)), by_block(torch.ones(len(values))))


def _similarity(
    reader: NumberReader, bench: Bench, task: BoundPrompts, phases: Phases
) -> Similarity:
    contexts = fresh_contexts(bench, task, 1, STREAM)
    questions = contexts.x[0, :QUESTIONS]  # the same for all, so that contexts alone differ
    device = bench.plan.device
    told = [
        torch.cat([x[:-1].expand(QUESTIONS, -1, -1), questions[:, None]], 1) for x in contexts.x
    ]
    bare = task.asking(questions[:, None], questions.new_zeros(QUESTIONS, 0, 1))
    parts = [
        Examples(
            task.asking(one, y[:-1].expand(QUESTIONS, -1, -1)).to(device),
            bare.to(device),
            task.asking(x[:-1, None], x.new_zeros(len(x) - 1, 0, 1)).to(device),
            y[:-1, 0].to(device),
        )
        for one, x, y in zip(told, contexts.x, contexts.y, strict=True)
    ]
    return Similarity.of(updates(reader, parts, phases.next()))


def _outcome(selective: dict[str, Interval]) -> Outcome:
    model, *floors = selective.values()
    if model.lo > max(MARGIN, *(floor.hi for floor in floors)):
        return "supports"
    return "contradicts" if model.hi < MARGIN else "inconclusive"


def _statement(selective: dict[str, Interval], found: dict[str, Similarity]) -> str:
    raw = {name: over(one.raw).value for name, one in found.items()}
    model, *floors = selective.values()
    return (
        "Updates by context and by layer-causal training on the same examples agree beyond those "
        f"of another context by a cosine of {_cosine(model)}; in untrained models by "
        f"{_cosine(floors[0])} and {_cosine(floors[1])}. The raw cosine with plain training is "
        f"{raw['model']:.2f}, in untrained models {raw[MODELS[1]]:.2f} and {raw[MODELS[2]]:.2f}."
    )


def _cosine(value: Interval) -> str:
    return f"{value.value:.3f} [{value.lo:.3f}, {value.hi:.3f}]"


def _bearing(outcome: Outcome, selective: dict[str, Interval]) -> str:
    """What Deutch et al. object, answered for this model."""
    if outcome == "supports":
        return (
            "Its layers change with a context as layer-causal training on the examples would "
            "change them, beyond untrained models: the objection of Deutch et al. does not hold."
        )
    if outcome == "contradicts":
        return (
            "Its layers do not change with a context as training on the examples would change "
            f"them ({_cosine(selective['model'])}), as Deutch et al. object."
        )
    return ""


def _metrics(one: Similarity) -> dict[str, Metric]:
    definitions = {
        "selectivity": f"{OWN}, minus that with another context",
        "own": OWN,
        "another": f"{OWN}, with the examples of another context",
        "plain": "the same with plain training on the own examples",
        "raw": "cosine of updates by context and by plain training, as they are",
    }
    return {
        name: Metric.of(over(getattr(one, name)), f"{words}; mean over layers")
        for name, words in definitions.items()
    }


def _rows(found: dict[str, Similarity]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": name,
                "layer": layer + 1,
                "measure": measure,
                "cosine": float(column.mean()),
                "cosine_se": float(column.std() / BLOCKS**0.5),
            }
            for name, one in found.items()
            for measure in ("raw", "own", "another", "plain", "selectivity")
            for layer, column in enumerate(getattr(one, measure).unbind(1))
        ]
    )


def _figure(found: dict[str, Similarity]) -> LineChart:
    lines = []
    for name, one in found.items():
        role: Role = "model" if name == "model" else "control"
        lines.append(_line(f"{name}, differences", one.selectivity, role))
        if name != "model":
            lines.append(_line(f"{name}, raw", one.raw, "theory"))
    lines.append(_line("model, raw", found["model"].raw, "theory"))
    return LineChart(
        "layer_causality",
        "Updates by context beside updates by training",
        "Cosine by layer with 95 % bands. Differences: about the mean over contexts, layer-causal "
        "training, minus the cosine with another context. Raw: as they are, with plain training.",
        "layer",
        "cosine",
        tuple(lines),
    )


def _line(label: str, values: Tensor, role: Role) -> Series:
    mean, error = values.mean(0), 1.96 * values.std(0) / len(values) ** 0.5
    x = list(range(1, values.shape[1] + 1))
    return Series(label, x, mean.tolist(), (mean - error).tolist(), (mean + error).tolist(), role)


NAMED = {"layer_causality": LayerCausality()}
