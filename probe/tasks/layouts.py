"""Layouts in which the input and the label of a pair are two tokens, x_1, y_1, x_2, y_2, ..."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


@runtime_checkable
class PairLayout(Protocol):
    """How the two halves of a pair become tokens of one width."""

    def width(self, inputs: int, outputs: int) -> int:
        """Width of a token."""

    def halves(
        self, x: Float[Tensor, "batch points d_in"], y: Float[Tensor, "batch points d_out"]
    ) -> tuple[Float[Tensor, "batch points d_token"], Float[Tensor, "batch points d_token"]]:
        """The tokens of inputs, and those of labels."""


@dataclass(frozen=True)
class PaddedLabels:
    """x -> x and y -> [y, 0]: nothing but its place tells a label; Garg et al. 2022, section 3."""

    def width(self, inputs: int, outputs: int) -> int:
        """As wide as the wider half."""
        return max(inputs, outputs)

    def halves(
        self, x: Float[Tensor, "batch points d_in"], y: Float[Tensor, "batch points d_out"]
    ) -> tuple[Float[Tensor, "batch points d_token"], Float[Tensor, "batch points d_token"]]:
        """Zeros behind the narrower half."""
        wide = self.width(x.shape[-1], y.shape[-1])
        return pad(x, (0, wide - x.shape[-1])), pad(y, (0, wide - y.shape[-1]))


@dataclass(frozen=True)
class SplitChannels:
    """x -> [0, x] and y -> [y, 0], with channels of their own; Akyürek et al. 2022, section 3."""

    def width(self, inputs: int, outputs: int) -> int:
        """Both widths."""
        return inputs + outputs

    def halves(
        self, x: Float[Tensor, "batch points d_in"], y: Float[Tensor, "batch points d_out"]
    ) -> tuple[Float[Tensor, "batch points d_token"], Float[Tensor, "batch points d_token"]]:
        """Labels in front, inputs behind."""
        return pad(x, (y.shape[-1], 0)), pad(y, (0, x.shape[-1]))


def interleaved(
    first: Float[Tensor, "batch points d_token"], second: Float[Tensor, "batch points d_token"]
) -> Float[Tensor, "batch time d_token"]:
    """Two rows of tokens in turn."""
    return torch.stack([first, second], 2).flatten(1, 2)
