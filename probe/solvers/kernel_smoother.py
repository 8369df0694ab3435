"""Null: an average of values with weights exp(beta k_j . q_t): softmax attention as it stands.

Nadaraya 1964, Watson 1964.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.problem import InContextProblem
from probe.solvers.base import Fitted, Posed, Quadratic

BETAS = tuple(2.0**power for power in range(-3, 5))


def offered(problem: InContextProblem) -> Tensor:
    """Which pairs j are offered at position t, of shape (time, time)."""
    length = problem.keys.shape[1]
    past = torch.ones(length, length, dtype=torch.bool).tril()
    return past & (torch.arange(length) >= problem.first)


@dataclass(frozen=True)
class KernelSmoother:
    """One bandwidth from a grid, and a scale."""

    name: str = "kernel_smoother"
    is_null: bool = True
    width: int = len(BETAS)

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """One average per bandwidth; zero while no pair is offered."""
        problem = posed.problem
        hidden = ~offered(problem)
        scores = problem.queries.float() @ problem.keys.float().mT
        averages = [
            (beta * scores).masked_fill_(hidden, -torch.inf).softmax(-1) @ problem.values.float()
            for beta in BETAS
        ]
        return torch.stack(averages, -1).nan_to_num_().double()  # of no pair: NaN

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """The bandwidth of least error, each with its best scale."""
        energy = errors.gram.diagonal().clamp(min=torch.finfo(torch.float64).tiny)
        scales = errors.cross / energy
        best = int((-scales * errors.cross).argmin())
        weights = torch.zeros(self.width, dtype=torch.float64)
        weights[best] = scales[best]
        constants = {"beta": BETAS[best], "scale": float(scales[best])}
        return (Fitted(self.name, constants, weights, degree=None, free=2),)


NAMED = {"kernel_smoother": KernelSmoother()}
