"""Layer norm in front of attention, MLP and read-out; Ba et al. 2016."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from probe.errors import InputError


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / sqrt(variance + eps), then a gain and a bias per channel.

    Attributes:
        eps: Added to the variance over the channels.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Refuses what can divide by zero."""
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise InputError(f"norm: eps is {self.eps}, expected a positive number")


class Norm(nn.Module):
    """A layer norm with its gain w and bias b; the hook is named as in TransformerLens."""

    def __init__(self, norm: LayerNorm, d_model: int):
        super().__init__()
        self.eps = norm.eps
        self.w = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The stream as the part behind the norm reads it."""
        normalised = nn.functional.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        return self.hook_normalized(normalised)


def build_norm(norm: LayerNorm | None, d_model: int) -> nn.Module:
    """A fresh norm, or what leaves the stream as it is."""
    return nn.Identity() if norm is None else Norm(norm, d_model)
