"""The mesa-layer, forward and backward in float32: exact chunks against its peers, with errors.

Peers: the textbook recursion on the inverse, a batched loop over positions with plain autograd; and
30 steps of conjugate gradient at all positions at once, with the implicit gradient. On a GPU where
flash-linear-attention is installed, its chunked conjugate gradient of 30 steps as well. Runs are
interleaved; a ratio is that of medians. lambda = 1, keys and queries N(0, 1).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.machine import Row, Took, faster, gemm_rate, interleaved
from probe.mesa_layer import Chunkwise, ConjugateGradient, Direct, Method, mesa_layer
from probe.mesa_layer.chunkwise import chunk_length
from probe.sampling import generator_for, normal

SHAPES = ((64, 50, 4, 20), (8, 512, 4, 32), (1, 4096, 4, 64))  # batch, time, heads, d
STEPS = 30
CHECKED = 512  # positions on which errors are measured: a direct solve keeps T d^2 numbers

Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def naive_recursion(keys: Tensor, values: Tensor, queries: Tensor, ridge: Tensor) -> Tensor:
    """Sherman and Morrison on the inverse, token by token."""
    batch, time_, heads, d = keys.shape
    inverse = torch.diag_embed(1 / ridge[:, None].expand(-1, d)).expand(batch, -1, -1, -1)
    cross = inverse.new_zeros(batch, heads, values.shape[-1], d)
    outputs = []
    for t in range(time_):
        k, v, q = keys[:, t], values[:, t], queries[:, t]
        moved = (inverse @ k[..., None])[..., 0]
        scaled = moved / (1 + (k * moved).sum(-1, keepdim=True))
        inverse = inverse - scaled[..., :, None] * moved[..., None, :]
        cross = cross + v[..., :, None] * k[..., None, :]
        outputs.append((cross @ (inverse @ q[..., None]))[..., 0])
    return torch.stack(outputs, 1)


def by(method: Method) -> Layer:
    """A method as a function."""
    return lambda k, v, q, ridge: mesa_layer(k, v, q, ridge, method=method)


def data(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Keys, values, queries and the incoming gradient."""
    generator = generator_for(7, *shape)
    return [normal(generator, *shape).to(dtype) for _ in range(4)]


def run(layer: Layer, tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of keys, values and queries."""
    leaves = [t.clone().requires_grad_(True) for t in tensors[:3]]
    ridge = torch.ones(leaves[0].shape[2], dtype=leaves[0].dtype, device=leaves[0].device)
    out = layer(*leaves, ridge)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]


def errors(layer: Layer, shape: tuple[int, ...]) -> tuple[float, float]:
    """Relative error of the output and the largest of the gradients', against float64."""
    checked = (min(shape[0], 4), min(shape[1], CHECKED), *shape[2:])
    exact = run(by(Direct()), data(checked, torch.float64))
    found = run(layer, data(checked))
    shares = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    return shares[0], max(shares[1:])


def medians(layers: dict[str, Layer], tensors: list[Tensor]) -> dict[str, Took]:
    """Median times of each, interleaved."""
    return interleaved({name: partial(run, layer, tensors) for name, layer in layers.items()})


def products(shape: tuple[int, ...]) -> float:
    """Floating-point operations of the matrix products of one run.

    Products of rows with the moments before a chunk (c x d x d) and of rows with each other (c x c
    x d), as `chunkwise.py` and `implicit.py` make them; refinement and factors are left out.
    """
    batch, time_, heads, d = shape
    chunks = -(-time_ // chunk_length(time_, d))
    c = -(-time_ // chunks)
    inside = 2 * c * c * d * 14
    across = 2 * c * d * d * (14 if chunks > 1 else 0)
    return float(batch * heads * chunks * (inside + across))


def measure() -> list[Row]:
    """Rows of ours and theirs."""
    peers = {
        "recursion on the inverse": naive_recursion,
        f"conjugate gradient, {STEPS} steps": by(ConjugateGradient(STEPS, 0.0)),
    }
    rows = []
    for shape in SHAPES:
        found = medians({"ours": by(Chunkwise()), **peers}, data(shape))
        share = products(shape) / found["ours"].wall / 1e9 / gemm_rate()
        ours = errors(by(Chunkwise()), shape)
        for name, peer in peers.items():
            theirs = errors(peer, shape)
            note = f"errors {_shown(ours)}; peer {_shown(theirs)}; {share:.0%} of the GEMM rate"
            rows.append(
                faster(
                    f"mesa-layer {shape}",
                    found["ours"],
                    name,
                    found[name],
                    note=note,
                    errors=ours,
                    peer_errors=theirs,
                    share_of_gemm_rate=share,
                )
            )
    return [*rows, growth()]


def _shown(found: tuple[float, float]) -> str:
    """Of the output and of the gradients."""
    return f"{found[0]:.0e}, {found[1]:.0e}"


def growth() -> Row:
    """The cost at four times the length, beside four times the cost."""
    short, long = (
        medians({"ours": by(Chunkwise())}, data((1, length, 4, 64)))["ours"]
        for length in (2048, 8192)
    )
    four = Took(4 * short.wall, 4 * short.cpu)
    return faster("mesa-layer, 8,192 positions", long, "four times 2,048 positions", four)
