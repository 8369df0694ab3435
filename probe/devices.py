"""Where models run, and a known computation without which a device is not trusted."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from probe.audit import trial_tokens
from probe.errors import InputError
from probe.mesa_layer import Direct, mesa_layer
from probe.models.attention import KINDS
from probe.models.hooked import HookedModel, Tokens
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.sampling import generator_for, normal

TRUSTED = 1e-3  # of the largest entry; a wrong kernel is off by far more
WIDTH, TIME = 6, 12
RIDGE = 0.5


def choose(asked: str, model: HookedModel | None = None) -> str:
    """The device asked for; "auto" takes CUDA where there is one, and never MPS.

    MPS has no float64 and has had kernels that were silently wrong, so it runs a known computation
    first, and the model itself on a few tokens.

    Raises:
        InputError: There is no such device, or it does not say what the CPU says.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise InputError("--device cuda: there is no CUDA device")
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("--device mps: there is no MPS device")
        if wrong := complaint("mps", model):
            raise InputError(f"--device mps: {wrong}; use --device cpu")
        return "mps"
    return "cuda" if there and asked != "cpu" else "cpu"


@torch.no_grad()
def complaint(device: str, model: HookedModel | None = None) -> str | None:
    """The first computation that a device gets wrong, beside the CPU; None if there is none."""
    for name, there, here in _computations(device, model):
        expected = here().double()
        try:
            found = there().cpu().double()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            return f"{name} cannot be computed there ({type(error).__name__})"
        apart = float((found - expected).abs().max() / expected.abs().max())
        if not apart <= TRUSTED:
            return f"{name} is off by {apart:.2g} there"
    return None


Computation = tuple[str, Callable[[], Tensor], Callable[[], Tensor]]


def _computations(device: str, model: HookedModel | None) -> Iterator[Computation]:
    """Names, what the device says, and what the CPU says: for least squares, in float64."""
    pairs = normal(generator_for(0), 3, 2, TIME, 1, WIDTH)

    def solved(parts: Float[Tensor, "three batch time heads d"]) -> Tensor:
        ridge = torch.tensor([RIDGE], dtype=parts.dtype, device=parts.device)
        keys, values, queries = parts
        return mesa_layer(keys, values, queries, ridge, method=Direct(parts.dtype))

    yield "least squares", lambda: solved(pairs.float().to(device)), lambda: solved(pairs)
    models: dict[str, HookedModel] = {"a small transformer": _transformer()}
    if model is not None:
        models["the model"] = model
    for name, one in models.items():
        tokens = trial_tokens(one)
        moved = partial(_said, one, tokens, device)
        yield name, moved, partial(one, tokens)


def _said(model: HookedModel, tokens: Tokens, device: str) -> Tensor:
    said: Tensor = _moved(model, device)(tokens.to(device))
    return said


def _moved(model: HookedModel, device: str) -> HookedModel:
    return deepcopy(model).to(device)


def _transformer() -> SequenceTransformer:
    """Blocks of linear and of softmax attention, with an MLP."""
    blocks = tuple(
        BlockConfig(KINDS[kind](2, 4), positions=4, d_mlp=8) for kind in ("linear", "softmax")
    )
    model = SequenceTransformer(ModelConfig(WIDTH, 8, WIDTH, blocks, projected=True))
    model.initialise(0.4, generator_for(1))
    return model.eval().requires_grad_(False)
