"""Linear dynamics whose pairs belong to other sequences: the context says nothing of the teacher.

A model trained here has nothing to learn in context, though its tokens look like those of linear
dynamics one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.problem import InContextProblem
from probe.tasks.base import Sequences, Windows, shifted
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics, describe
from probe.tasks.teachers import Orthogonal, TeacherLaw


@dataclass(frozen=True)
class PermutedContexts:
    """e_t = (0, s_t, x, x'): the query is its own, the pair (x', x) another sequence's at t.

    At every position the pairs are permuted anew over the sequences of a sample.
    """

    name: str
    dynamics: LinearDynamics

    @property
    def teacher(self) -> TeacherLaw:
        """The law of the hidden matrix."""
        return self.dynamics.teacher

    @property
    def length(self) -> int:
        """Number of positions T."""
        return self.dynamics.length

    @property
    def width_in(self) -> int:
        """Width of a token."""
        return self.dynamics.width_in

    @property
    def width_out(self) -> int:
        """Width of a target."""
        return self.dynamics.width_out

    @property
    def windows(self) -> Windows:
        """Those of the dynamics."""
        return self.dynamics.windows

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Simulates `count` sequences, then deals their pairs anew at every position."""
        drawn = self.dynamics.sample(count, generator)
        states = drawn.observations[:, :-1]
        order = torch.rand(count, states.shape[1], generator=generator).argsort(0)
        tokens = [torch.zeros_like(states), states, *self._dealt(states, order)]
        # What a stage needs to know of the dealt pairs travels with the sample as its features.
        features = torch.cat([states, *self._dealt(states, order)], -1)
        return Sequences(
            tokens=torch.cat(tokens, -1),
            observations=drawn.observations,
            oracle=drawn.oracle,
            features=features,
            teachers=drawn.teachers,
            clipped_share=drawn.clipped_share,
        )

    def _dealt(self, states: Float[Tensor, "batch time d"], order: Tensor) -> list[Tensor]:
        """Values and keys of the sequences that `order` names, by position."""
        index = order[..., None].expand_as(states)
        return [states.gather(0, index), shifted(states).gather(0, index)]

    def problem(self, sequences: Sequences) -> InContextProblem:
        """The dealt pairs under the own query and target."""
        queries, values, keys = sequences.features.chunk(3, -1)
        return InContextProblem(
            keys=keys,
            values=values,
            queries=queries,
            targets=sequences.observations[:, 1:],
            oracle=sequences.oracle,
            first=1,
        )

    def params(self) -> Mapping[str, object]:
        """Those of the dynamics."""
        return describe(self.dynamics)


_NAME = "permuted-contexts-constructed"
NAMED = {
    _NAME: PermutedContexts(_NAME, LinearDynamics("linear", Orthogonal(), ConstructedTokens())),
}
