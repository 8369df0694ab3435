"""What the analyses of number prompts share: fresh contexts, a reader's answers, its controls."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.analysis import Bench
from probe.capture import capture_output
from probe.language_task import reader_of
from probe.models.number_reader import NumberReader
from probe.sampling import generator_for, normal
from probe.statistics import BLOCKS
from probe.tasks.numbers import BoundPrompts
from probe.views import permuted_twin

FRESH = 11  # a stream of its own beside the splits
REDRAWN = 12


@dataclass(frozen=True)
class Contexts:
    """Examples of one teacher per context.

    Attributes:
        x: Values of the inputs.
        y: Values of the answers, rounded as they are shown.
        teachers: w.
    """

    x: Float[Tensor, "batch lines width"]
    y: Float[Tensor, "batch lines 1"]
    teachers: Float[Tensor, "batch width"]

    def ridge_weights(self, penalty: float) -> Float[Tensor, "batch width"]:
        """(X^T X + lambda)^-1 X^T y."""
        gram = self.x.mT @ self.x + penalty * torch.eye(self.x.shape[-1], dtype=self.x.dtype)
        return torch.linalg.solve(gram, self.x.mT @ self.y)[..., 0]


def prompts_of(bench: Bench) -> BoundPrompts:
    """The run's task, which `lacks_numbers` has found to be of numbers in text."""
    task = bench.setting.task
    assert isinstance(task, BoundPrompts)
    return task


def fresh_contexts(bench: Bench, task: BoundPrompts, per_block: int, stream: int) -> Contexts:
    """Contexts that no split holds: `per_block` for each of the BLOCKS, block after block."""
    count = per_block * BLOCKS
    generator = generator_for(bench.plan.seed, FRESH, stream)
    functions = task.teacher.draw(count, task.width, generator)
    x = task.inputs(count, task.points, generator)
    y = task.numerals.values()[task.numerals.shown(functions(x))]
    return Contexts(x, y, functions.weights[:, 0])


def by_block(values: Float[Tensor, " contexts"]) -> Float[Tensor, " blocks"]:
    """Sums over the contexts of each block."""
    return values.double().unflatten(0, (BLOCKS, -1)).sum(1)


def said_last(
    reader: NumberReader, tokens: Int[Tensor, "batch tokens"], bench: Bench
) -> Float[Tensor, " batch"]:
    """What is said at the last token, in float64."""
    output = capture_output(reader, tokens, bench.plan.batch_size).output
    return output[:, -1, 0].double()


def on_device(bench: Bench) -> NumberReader:
    """A copy of the subject's reader where the plan computes."""
    return deepcopy(reader_of(bench.subject)).to(bench.plan.device)


def twin_of(bench: Bench) -> NumberReader:
    """The reader with the entries of each weight tensor permuted."""
    return permuted_twin(reader_of(bench.subject), bench.plan.seed).to(bench.plan.device)


@torch.no_grad()
def redrawn(bench: Bench) -> NumberReader:
    """An untrained reader: each weight tensor is normal, with the mean and spread that it had."""
    model = deepcopy(reader_of(bench.subject))
    generator = generator_for(bench.plan.seed, REDRAWN)
    for parameter in model.parameters():
        spread = parameter.double().std(correction=0)
        noise = normal(generator, *parameter.shape)
        parameter.copy_(parameter.double().mean() + spread * noise)
    return model.to(bench.plan.device)
