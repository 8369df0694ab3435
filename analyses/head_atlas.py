"""Which attention heads solve the regression that their own keys and values pose?

Hypothesis: a head whose keys, values and queries are pairs and a question answers as one gradient
step or as least squares on these pairs (von Oswald et al. 2023, sections 2 and 3).
Test statistic: the held-out share of what the head gathers that a step or ridge regression
explains, beside its own softmax, the mean, copies, the same with keys shuffled among the past, and
the twin. Refuted if a simpler explanation does as well. Cost: a few hundred sequences; at most 8
positions of each are read.
"""

from dataclasses import dataclass

import torch

from probe.analysis import Bench
from probe.atlas import finding_of, read_atlas
from probe.atlas.finding import ANALYSIS, QUESTION
from probe.atlas.read import LEAST_TIME
from probe.checkpoints.base import Subject
from probe.findings import Finding
from probe.models.hooked import Tokens
from probe.sampling import generator_for
from probe.tasks.base import Task
from probe.threads import one_thread

MOST = 256  # sequences of the run that are read


@dataclass(frozen=True)
class HeadAtlas:
    """Reads every head of every layer as a solver of its own problem."""

    name: str = ANALYSIS
    place: int = 58
    thorough: bool = False
    question: str = QUESTION

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Models without attention heads pose no such problem, nor do sequences of few tokens."""
        model = subject.model
        if all(model.head_sites(layer) is None for layer in range(model.layers)):
            return "attention heads whose queries, keys and values can be read"
        if task.sample(1, generator_for(0)).tokens.shape[1] < LEAST_TIME:
            return f"sequences of at least {LEAST_TIME} tokens"
        return None

    def run(self, bench: Bench) -> Finding:
        """Supports if a head is an optimizer, not by construction, and the output depends on it."""
        task = bench.plan.task

        def draw(count: int, generator: torch.Generator) -> Tokens:
            return task.sample(count, generator).tokens

        with one_thread():
            atlas = read_atlas(
                bench.subject.model,
                draw,
                min(bench.plan.sequences, MOST),
                bench.plan.seed,
                bench.progress,
            )
        return finding_of(atlas)


NAMED = {ANALYSIS: HeadAtlas()}
