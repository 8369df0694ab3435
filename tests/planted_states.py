"""What the states of planted iterations are, and what a change of one should do to the output."""

import torch

from probe.planted.base import Planted, State
from probe.stages import Context


def layers_with_state(planted: Planted) -> list[int]:
    """The layers before which a state lies, from the first step on: before it, it is the query."""
    return [s.layer for s in planted.states if s.remaining != planted.states[0].remaining]


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
