"""Partially observed linear dynamics; von Oswald et al. 2023, section 3.2."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from probe.problem import InContextProblem
from probe.sampling import normal
from probe.tasks.base import Sequences, Windows, growing_windows
from probe.tasks.linear_dynamics import LinearDynamics, describe, dynamics_problem
from probe.tasks.teachers import Orthogonal, TeacherLaw


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

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Simulates the hidden states, then observes them."""
        dynamics = LinearDynamics("hidden", self.teacher, width=self.hidden, length=self.length)
        states = dynamics.sample(count, generator)
        view = self.gain * normal(generator, count, self.observed, self.hidden).float()
        clean = torch.einsum("boh,bth->bto", view, states.observations)
        noise = self.noise * normal(generator, *clean.shape).float()
        observations = clean + noise
        tokens = observations[:, :-1]
        return Sequences(
            tokens=tokens,
            observations=observations,
            oracle=torch.einsum("boh,bth->bto", view, states.oracle),
            features=delay_embedding(tokens, self.depth),
            teachers=states.teachers,
            clipped_share=states.clipped_share,
        )

    def problem(self, sequences: Sequences) -> InContextProblem:
        """Delay-embedded past observations are keys, observations are values."""
        return dynamics_problem(sequences)

    def params(self) -> Mapping[str, object]:
        """All fields but the name."""
        return describe(self)


def delay_embedding(sequence: torch.Tensor, depth: int) -> torch.Tensor:
    """(o_t, o_{t-1}, ..., o_{t-depth+1}) side by side; zeros before the start."""
    length = sequence.shape[1]
    padded = torch.nn.functional.pad(sequence, (0, 0, depth - 1, 0))
    lags = [padded[:, depth - 1 - lag : depth - 1 - lag + length] for lag in range(depth)]
    return torch.cat(lags, -1)


NAMED = {"partial": PartialObservation("partial", Orthogonal())}
