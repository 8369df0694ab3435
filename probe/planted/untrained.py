"""Random weights of the usual sizes: a transformer that was never trained."""

from dataclasses import dataclass

import torch

from probe.models.attention import LinearAttention, SoftmaxAttention
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.planted.base import Planted, Truth
from probe.planted.scales import between, whole
from probe.solvers.base import Posed
from probe.tasks.base import Task

ATTEMPTS, SAMPLE, LARGEST = 100, 256, 1e3


@dataclass(frozen=True)
class PlantedUntrained:
    """One to four blocks of linear or softmax attention with an MLP."""

    name: str = "untrained"
    learns: bool = False

    def fits(self, task: Task) -> bool:
        """Anything."""
        return True

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the shape, then the weights."""
        kind = (LinearAttention, SoftmaxAttention)[whole(generator, 0, 1)]
        depth, d_model = whole(generator, 1, 4), 4 * task.width_out
        block = BlockConfig(kind(4, task.width_out), d_mlp=d_model)
        config = ModelConfig(
            task.width_in, d_model, task.width_out, (block,) * depth, projected=True
        )
        model = SequenceTransformer(config)
        for _ in range(ATTEMPTS):
            model.initialise(between(generator, 0.02, 0.2), generator)
            if _is_tame(model, task, generator):
                break
        return Planted(
            name=f"untrained, {depth} layers of {kind.kind} attention",
            model=model,
            task=task,
            truth=Truth("unexplained", "none", None, also=("context_free", "copy", "kernel")),
            solver=_nothing,
            exact=False,
        )


@torch.no_grad()
def _is_tame(model: SequenceTransformer, task: Task, generator: torch.Generator) -> bool:
    """Layers of linear attention cube their input; some draws explode."""
    output = model(task.sample(SAMPLE, generator).tokens)
    return bool(output.isfinite().all()) and float(output.abs().max()) < LARGEST


def _nothing(posed: Posed) -> torch.Tensor:
    """No prediction: there is no algorithm to compare with."""
    return torch.zeros_like(posed.problem.targets).double()


NAMED = {"untrained": PlantedUntrained()}
