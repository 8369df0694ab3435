"""Partially observed linear dynamics; von Oswald et al. 2023, section 3.2."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kalman import Forecast, StateSpace, kalman
from probe.problem import InContextProblem
from probe.sampling import generator_for, normal
from probe.sequential_ridge import one_step_ahead
from probe.tasks.base import Sequences, Windows, growing_windows
from probe.tasks.linear_dynamics import LinearDynamics, describe, dynamics_problem
from probe.tasks.teachers import Orthogonal, TeacherLaw

DEEPEST = 16
RIDGES = torch.logspace(-3, 2, 11, dtype=torch.float64)
CHOOSING = 4  # a stream of its own beside the splits
HALF = 128


@dataclass(frozen=True)
class PartialSequences(Sequences):
    """A sample with what only one who knows the system sees.

    Attributes:
        views: gain C of each sequence.
    """

    views: Float[Tensor, "batch d_out d_w"]


@dataclass(frozen=True)
class PartialObservation:
    """o_t = gain C h_t + noise, with C Gaussian per sequence and h the linear dynamics.

    The in-context problem is stated on a delay embedding (o_t, ..., o_{t-depth+1}), since one
    observation does not determine the next.
    """

    name: str
    teacher: TeacherLaw
    hidden: int = 15
    observed: int = 5
    length: int = 50
    noise: float = 0.01
    gain: float = 0.5
    depth: int = 5

    @property
    def width_in(self) -> int:
        """Width of a token."""
        return self.observed

    @property
    def width_out(self) -> int:
        """Width of a target."""
        return self.observed

    @property
    def windows(self) -> Windows:
        """The context grows with the position."""
        return growing_windows(self.observed * self.depth, self.length)

    @property
    def _dynamics(self) -> LinearDynamics:
        return LinearDynamics("hidden", self.teacher, width=self.hidden, length=self.length)

    def sample(self, count: int, generator: torch.Generator) -> PartialSequences:
        """Simulates the hidden states, then observes them."""
        states = self._dynamics.sample(count, generator)
        view = self.gain * normal(generator, count, self.observed, self.hidden).float()
        clean = torch.einsum("boh,bth->bto", view, states.observations)
        noise = self.noise * normal(generator, *clean.shape).float()
        observations = clean + noise
        tokens = observations[:, :-1]
        return PartialSequences(
            tokens=tokens,
            observations=observations,
            oracle=torch.einsum("boh,bth->bto", view, states.oracle),
            features=delay_embedding(tokens, self.depth),
            teachers=states.teachers,
            clipped_share=states.clipped_share,
            views=view,
        )

    def problem(self, sequences: Sequences) -> InContextProblem:
        """Delay-embedded past observations are keys, observations are values."""
        return dynamics_problem(sequences)

    def params(self) -> Mapping[str, object]:
        """All fields but the name."""
        return describe(self)

    def bound(self, sequences: PartialSequences) -> Forecast:
        """Kalman's forecasts for one who knows W, C and the noise, but not the hidden state.

        The oracle knows the state too. The clip of the hidden states, which hardly ever acts, is
        left out.
        """
        hidden = self._dynamics
        system = StateSpace(
            transition=sequences.teachers,
            view=sequences.views,
            process=hidden.noise,
            measurement=self.noise,
            start=hidden.start / 3**0.5,
        )
        return kalman(system, sequences.observations[:, :-1])

    def with_chosen_depth(self, seed: int) -> "PartialObservation":
        """The task posed on the delay embedding of least held-out loss."""
        return replace(self, depth=choose_depth(self, seed).depth)


@dataclass(frozen=True)
class DepthChoice:
    """Losses of ridge regression on delay embeddings, mean over all positions.

    Attributes:
        ridges: The lambda of each depth, chosen on one sample.
        losses: 1/2 mean squared norm of the error of each depth on another sample, from depth 1.
    """

    ridges: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def depth(self) -> int:
        """The depth of least loss."""
        return 1 + self.losses.index(min(self.losses))


def choose_depth(task: PartialObservation, seed: int, deepest: int = DEEPEST) -> DepthChoice:
    """Fits lambda for every depth from 1 on one sample and compares the depths on another.

    Args:
        task: The task; its own depth plays no part.
        seed: Seeds both samples.
        deepest: The largest depth.
    """
    fit, held = (task.sample(HALF, generator_for(seed, CHOOSING, half)) for half in (1, 2))
    ridges, losses = [], []
    for depth in range(1, deepest + 1):
        chosen = RIDGES[_ridge_losses(fit, depth, RIDGES).argmin()]
        ridges.append(float(chosen))
        losses.append(float(_ridge_losses(held, depth, chosen[None])))
    return DepthChoice(tuple(ridges), tuple(losses))


def _ridge_losses(
    sequences: Sequences, depth: int, ridges: Float[Tensor, " ridges"]
) -> Float[Tensor, " ridges"]:
    features = delay_embedding(sequences.tokens, depth)
    following = sequences.observations[:, 1:]
    error = one_step_ahead(features, following, ridges) - following
    return 0.5 * error.square().sum(-1).mean((1, 2))


def delay_embedding(
    sequence: Float[Tensor, "batch time d"], depth: int
) -> Float[Tensor, "batch time d_delayed"]:
    """(o_t, o_{t-1}, ..., o_{t-depth+1}) side by side; zeros before the start."""
    length = sequence.shape[1]
    padded = torch.nn.functional.pad(sequence, (0, 0, depth - 1, 0))
    lags = [padded[:, depth - 1 - lag : depth - 1 - lag + length] for lag in range(depth)]
    return torch.cat(lags, -1)


NAMED = {"partial": PartialObservation("partial", Orthogonal())}
