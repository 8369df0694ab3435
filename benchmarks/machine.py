"""What the machine can do at best."""

import time
from functools import cache

import torch


@cache
def gemm_rate(size: int = 1500) -> float:
    """Billions of float32 operations per second of one large product on this machine."""
    matrix = torch.ones(size, size)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 10 * size**3 / (time.perf_counter() - started) / 1e9
