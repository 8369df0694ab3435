"""Conjugate gradient for G x = q, from zero; its coefficients depend on the sequence.

Hestenes and Stiefel 1952; run in the eigenbasis of G, restricted to the span of the keys.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.problem import Spectrum
from probe.solvers.base import Fitted, Posed, Quadratic

STEPS = tuple(range(1, 9))


def iterates(spectrum: Spectrum, steps: int) -> Float[Tensor, "batch time d_k steps"]:
    """x_1 .. x_steps in the eigenbasis."""
    residual = torch.where(spectrum.present, spectrum.query, 0.0)
    direction, solution = residual, torch.zeros_like(residual)
    squared = (residual**2).sum(-1, keepdim=True)
    floor = squared * torch.finfo(squared.dtype).eps ** 2
    found = []
    for _ in range(steps):
        curved = spectrum.mu * direction
        curvature = (direction * curved).sum(-1, keepdim=True)
        open_ = (squared > floor) & (curvature > 0)
        alpha = torch.where(open_, squared / curvature.where(open_, 1.0), 0.0)
        solution = solution + alpha * direction
        residual = residual - alpha * curved
        before, squared = squared, (residual**2).sum(-1, keepdim=True)
        direction = residual + squared / before.where(open_, 1.0) * direction
        found.append(solution)
    return torch.stack(found, -1)


@dataclass(frozen=True)
class ConjugateGradient:
    """k steps; no constants."""

    name: str = "conjugate_gradient"
    is_null: bool = False
    width: int = len(STEPS)

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """C x_k for every k."""
        return posed.spectrum.maps @ iterates(posed.spectrum, len(STEPS))

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """One member per number of steps."""
        chosen = torch.eye(self.width, dtype=torch.float64)
        return tuple(
            Fitted(self.name, {"steps": steps}, chosen[steps - 1], degree=None, free=0)
            for steps in STEPS
        )


NAMED = {"conjugate_gradient": ConjugateGradient()}
