"""What the states of planted iterations are, and what a change of one should do to the output."""

from dataclasses import dataclass

import torch

from probe.causal.interchange_stage import SolverState
from probe.planted.base import Planted, State
from probe.planted.descent import Filtered, Steps
from probe.sweep import Context


@dataclass(frozen=True)
class ResidualOf:
    """The residual that is left by the first steps of a planted iteration."""

    etas: tuple[float, ...]
    constant: float = 0.0

    def residual(self, mu: torch.Tensor) -> torch.Tensor:
        return 1 - mu * Steps(self.etas)(mu)


def states_held(planted: Planted) -> dict[int, SolverState]:
    """The state before each layer, from the first step on: before it is the query itself."""
    assert isinstance(planted.solver, Filtered) and isinstance(planted.solver.f, Steps)
    etas = planted.solver.f.etas
    held = {}
    for state in planted.states:
        assert isinstance(state.remaining, Steps)
        if done := len(etas) - len(state.remaining.etas):
            held[state.layer] = ResidualOf(etas[:done])
    return held


def expected_change(context: Context, t: int, state: State, change: torch.Tensor) -> torch.Tensor:
    """C_t T_l(G_t) dr, with the planted T_l."""
    place = context.spectrum
    coordinates = torch.einsum("bki,bk->bi", place.basis[:, t], change)
    filtered = state.remaining(place.mu[:, t]) * place.present[:, t] * coordinates
    return torch.einsum("bvi,bi->bv", place.maps[:, t], filtered)


def slope_and_share(moved: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """The slope of what happened over what should, and the share of it that is explained."""
    slope = float((moved * expected).sum() / expected.square().sum())
    return slope, float(1 - (moved - expected).square().sum() / moved.square().sum())
