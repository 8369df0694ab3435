"""A little training on the task: weights move off what was written, the label must hold."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Parameter

from probe.models.training import sequence_loss
from probe.models.transformer import SequenceTransformer
from probe.planted.base import Planted
from probe.planted.disguises.base import Label, blurred
from probe.threads import one_thread

LARGEST_SIZE = 0.5  # of a matrix, for its rate: what shuts gates would drown all else


@dataclass(frozen=True)
class FineTuned:
    """AdamW, until the weights have moved far enough; half as fast whenever the label would fail.

    Attributes:
        name: Name of the disguise.
        steps: The most steps.
        batch: Sequences per step.
        rate: Learning rate, as a share of the rms of each matrix.
        moved: How far the weights shall move: the rms over all matrices of |dW| / |W|.
        least_r2: R^2 of the planted solver against the output that must remain.
    """

    name: str = "fine_tuned"
    steps: int = 100
    batch: int = 64
    rate: float = 1e-3
    moved: float = 0.02
    least_r2: float = 0.985

    def fits(self, planted: Planted) -> bool:
        """A model that still equals its solver."""
        return planted.exact

    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """Trains on fresh sequences; no step stays that breaks the label."""
        with one_thread():
            model = self._train(planted, generator)
        return replace(
            planted,
            model=model,
            truth=blurred(planted.truth),
            disguises=(*planted.disguises, self.name),
            exact=False,
        )

    def _train(self, planted: Planted, generator: torch.Generator) -> SequenceTransformer:
        model, label = deepcopy(planted.model), Label.of(planted, generator)
        matrices = {n: p for n, p in model.named_parameters() if p.any()}
        for matrix in matrices.values():
            matrix.requires_grad_(True)
        written = _copied(matrices)
        optimiser = self._optimiser(matrices)
        for _ in range(self.steps):
            before = _copied(matrices)
            self._step(model, planted, optimiser, generator)
            if not label.r2(model) >= self.least_r2:
                _restore(matrices, before)
                for group in optimiser.param_groups:
                    group["lr"] /= 2
            elif relative_movement(written, matrices) >= self.moved:
                break
        return model.eval().requires_grad_(False)

    def _optimiser(self, matrices: dict[str, Parameter]) -> torch.optim.Optimizer:
        """Every matrix has a rate of its own size; no decay, which would be no learning."""
        sizes = {n: float(p.detach().square().mean().sqrt()) for n, p in matrices.items()}
        groups = [
            {"params": [matrix], "lr": self.rate * min(sizes[name], LARGEST_SIZE)}
            for name, matrix in matrices.items()
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    def _step(
        self,
        model: SequenceTransformer,
        planted: Planted,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        sequences = planted.task.sample(self.batch, generator)
        targets = planted.task.problem(sequences).targets
        optimiser.zero_grad()
        sequence_loss(model(sequences.tokens), targets).backward()
        optimiser.step()


def _copied(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: matrix.detach().clone() for name, matrix in matrices.items()}


@torch.no_grad()
def _restore(matrices: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    for name, matrix in matrices.items():
        matrix.copy_(before[name])


@torch.no_grad()
def relative_movement(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The rms over matrices of |dW| / |W|; every matrix counts the same."""
    shares = [(after[n] - w).norm() / w.norm() for n, w in before.items()]
    return float(torch.stack(shares).square().mean().sqrt())


NAMED = {"fine_tuned": FineTuned()}
