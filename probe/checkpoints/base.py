"""The Subject, the checks that every load must pass, and the choice of a format."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe import checkpoints, registry
from probe.errors import InputError
from probe.linalg import LinAlgError
from probe.models.transformer import ModelConfig, SequenceTransformer
from probe.sampling import generator_for, normal

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LoadedTensor:
    """One row of the load table."""

    name: str
    source: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Subject:
    """A model that passed its load checks.

    Attributes:
        name: How reports call it.
        format: Name of the checkpoint format.
        model: The model, in evaluation mode.
        task: Name of its default task, where the checkpoint or preset states one.
        sha256: Hash over all tensors, independent of the format.
        tensors: The load table.
    """

    name: str
    format: str
    model: SequenceTransformer
    task: str | None
    sha256: str
    tensors: tuple[LoadedTensor, ...]

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


@dataclass(frozen=True)
class Weights:
    """What a format has read: the model's tensors under our names, and where each came from."""

    tensors: Mapping[str, Float[Tensor, "..."]]
    sources: Mapping[str, str]


@runtime_checkable
class Format(Protocol):
    """Reads one kind of checkpoint."""

    name: str

    def recognises(self, path: Path) -> bool:
        """Whether the path looks like this format, judged without reading untrusted content."""

    def read(self, path: Path, preset: str | None) -> Subject:
        """Reads a checkpoint.

        Raises:
            InputError: It is damaged, hostile, or does not fit its description.
        """


def load(path: str | Path, preset: str | None = None) -> Subject:
    """Reads a checkpoint of any known format. `PATH#NAME` picks one of several models in a file.

    Raises:
        InputError: Nothing there, an unknown format, or a checkpoint that fails its checks.
    """
    path = Path(path)
    if not Path(str(path).partition("#")[0]).exists():
        raise InputError(f"{path}: no such file or folder")
    for known in registry.discover(checkpoints).values():
        if known.recognises(path):
            subject: Subject = known.read(path, preset)
            return subject
    names = ", ".join(registry.discover(checkpoints))
    raise InputError(f"{path}: unknown checkpoint format; known: {names}")


def build_subject(
    path: Path, format_name: str, config: ModelConfig, weights: Weights, task: str | None
) -> Subject:
    """Fills a model with weights and checks it.

    Raises:
        InputError: A tensor is missing, unexpected, misshapen or not finite, or the stream of the
            filled model does not add up.
    """
    with torch.device("meta"):
        model = SequenceTransformer(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _match(path, expected, weights)
    state = {name: weights.tensors[name].float().contiguous() for name in expected}
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    _check_stream(path, model)
    table = tuple(
        LoadedTensor(name, weights.sources[name], tuple(t.shape), _hash(name, t))
        for name, t in state.items()
    )
    whole = hashlib.sha256("".join(row.sha256 for row in table).encode()).hexdigest()
    name = path.name.removesuffix(".pkl")
    return Subject(name, format_name, model, task, whole, table)


def _match(path: Path, expected: Mapping[str, tuple[int, ...]], weights: Weights) -> None:
    """Refuses partial matches; names every problem at once."""
    given = weights.tensors
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [
        f"unexpected {weights.sources.get(name, name)}" for name in given if name not in expected
    ]
    for name in expected.keys() & given.keys():
        if tuple(given[name].shape) != expected[name]:
            found = list(given[name].shape)
            problems.append(f"{name} has shape {found}, expected {list(expected[name])}")
        elif given[name].dtype not in _FLOATS:
            problems.append(f"{name} holds {given[name].dtype}, expected floating-point numbers")
        elif not bool(given[name].float().isfinite().all()):
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        shown = "; ".join(sorted(problems)[:6])
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise InputError(f"{path}: {shown}{more}")


@torch.no_grad()
def _check_stream(path: Path, model: SequenceTransformer) -> None:
    """resid_pre + attn_out + mlp_out must equal resid_post in every block."""
    tokens = normal(generator_for(0), 2, 8, model.config.d_in).float()
    try:
        _, cache = model.run_with_cache(tokens)
    except LinAlgError:
        raise InputError(f"{path}: a mesa head's moments are not positive definite") from None
    for layer, block in enumerate(model.blocks):
        parts = ["hook_resid_pre", "hook_attn_out"] + ["hook_mlp_out"] * (block.mlp is not None)
        total = sum(cache[f"blocks.{layer}.{part}"] for part in parts)
        after = cache[f"blocks.{layer}.hook_resid_post"]
        if not bool(after.isfinite().all()):
            raise InputError(f"{path}: the stream overflows in block {layer}")
        if not torch.allclose(total, after, rtol=1e-4, atol=1e-5 * float(after.abs().max())):
            raise InputError(f"{path}: the stream does not add up in block {layer}")


def _hash(name: str, tensor: Tensor) -> str:
    header = f"{name}:{list(tensor.shape)}:float32:".encode()
    return hashlib.sha256(header + tensor.cpu().numpy().astype("<f4").tobytes()).hexdigest()
