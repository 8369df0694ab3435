"""The Kalman filter: the best linear prediction for one who knows the system and its noise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StateSpace:
    """h_{t+1} = W h_t + process xi, o_t = C h_t + measurement eta, h_0 ~ (0, start^2 I).

    Attributes:
        transition: W of each sequence.
        view: C of each sequence.
        process: Standard deviation of the noise of the hidden state.
        measurement: Standard deviation of the noise of the observation.
        start: Standard deviation of the first hidden state.
    """

    transition: Float[Tensor, "batch hidden hidden"]
    view: Float[Tensor, "batch observed hidden"]
    process: float
    measurement: float
    start: float


@dataclass(frozen=True)
class Forecast:
    """What is expected of the next observation, given all observations so far.

    Attributes:
        mean: E[o_{t+1} | o_0 .. o_t].
        covariance: Cov[o_{t+1} | o_0 .. o_t]: that of the innovation o_{t+1} - mean.
    """

    mean: Float[Tensor, "batch time observed"]
    covariance: Float[Tensor, "batch time observed observed"]


def kalman(system: StateSpace, observations: Float[Tensor, "batch time observed"]) -> Forecast:
    """One-step forecasts by the time-varying filter (Kalman 1960), in float64.

    All sequences advance together. The covariance is updated in Joseph's form, which stays
    positive where the measurement noise is far below the state's variance.
    """
    move, view = system.transition.double(), system.view.double()
    eye = torch.eye(move.shape[-1], dtype=torch.float64)
    noise = system.measurement**2 * torch.eye(view.shape[-2], dtype=torch.float64)
    state = move.new_zeros(*move.shape[:2], 1)
    spread = system.start**2 * eye.expand_as(move)
    seen = view @ spread @ view.mT + noise
    means, covariances = [], []
    for observed in observations.double().unbind(1):
        gain = torch.linalg.solve(seen, view @ spread).mT
        state = move @ (state + gain @ (observed[..., None] - view @ state))
        kept = eye - gain @ view
        spread = kept @ spread @ kept.mT + gain @ noise @ gain.mT
        spread = move @ spread @ move.mT + system.process**2 * eye
        seen = view @ spread @ view.mT + noise
        means.append((view @ state)[..., 0])
        covariances.append(seen)
    return Forecast(torch.stack(means, 1), torch.stack(covariances, 1))
