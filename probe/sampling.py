"""Seeded random numbers: every shard of every split has its own independent stream."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def generator_for(seed: int, *path: int) -> torch.Generator:
    """A generator for one place in a tree of streams, such as (split, shard)."""
    state = np.random.SeedSequence((seed, *path)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def normal(generator: torch.Generator, *shape: int) -> Float[Tensor, "..."]:
    """Standard normal float64 numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(
    generator: torch.Generator, low: float, high: float, *shape: int
) -> Float[Tensor, "..."]:
    """Uniform float64 numbers in [low, high)."""
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)
