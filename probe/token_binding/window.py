"""The positions and lags at which token binding is read."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_LAGS, MOST_POSITIONS = 16, 32


@dataclass(frozen=True)
class LagWindow:
    """Positions [first, stop), each with all lags 0 .. lags - 1 before it.

    Attributes:
        first: The first position, from 0.
        stop: One past the last.
        lags: Number of lags, the current token's lag 0 included.
    """

    first: int
    stop: int
    lags: int

    @classmethod
    def late(cls, length: int) -> "LagWindow":
        """The last positions of a sequence, 32 at most; 16 lags at most, and half the sequence."""
        lags = min(MOST_LAGS, length // 2)
        return cls(max(lags - 1, length - MOST_POSITIONS), length, lags)

    @property
    def positions(self) -> slice:
        """The positions."""
        return slice(self.first, self.stop)

    @property
    def sources(self) -> Int[Tensor, "positions lags"]:
        """The position that lies each lag before each position."""
        return torch.arange(self.first, self.stop)[:, None] - torch.arange(self.lags)

    def earlier(
        self, sequence: Float[Tensor, "batch time d"]
    ) -> Float[Tensor, "batch positions lags d"]:
        """What stands each lag before each position."""
        return sequence[:, self.sources]

    def __str__(self) -> str:
        """The positions t, which count the tokens seen."""
        return f"t = {self.first + 1}..{self.stop}"
