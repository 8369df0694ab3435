"""The Subject, the checks that every load must pass, and the choice of a format."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from probe import checkpoints, registry
from probe.errors import InputError
from probe.files import read_text, reading, require_file
from probe.linalg import LinAlgError
from probe.models.hooked import HookedModel, Tokens
from probe.models.transformer import ModelConfig, SequenceTransformer
from probe.sampling import generator_for, normal

ADAPTER = "adapter"  # the format that reads whatever it is told to
LARGEST_CONFIG = 2**22  # bytes of a config.json that is read at all
NOT_OURS = "a model whose weights have known roles (a SequenceTransformer)"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Source:
    """What a user points at.

    Attributes:
        path: A file or folder, or a name on a hub; `PATH#NAME` picks one of several models.
        preset: Name of what the file does not state.
        allow_hub: Whether the network may be asked.
        adapter: FILE:FUNCTION or a name, where the user says how the model is read.
    """

    path: Path
    preset: str | None = None
    allow_hub: bool = False
    adapter: str | None = None

    @property
    def file(self) -> Path:
        """The path without the name of a member."""
        return Path(str(self.path).partition("#")[0])

    def anywhere(self) -> "Source":
        """The same from any working directory; names on a hub and of adapters stay as they are."""
        path = self.path.resolve() if self.file.exists() else self.path
        file, _, function = (self.adapter or "").rpartition(":")
        adapter = f"{Path(file).resolve()}:{function}" if Path(file).is_file() else self.adapter
        return replace(self, path=path, adapter=adapter)


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
        dropped: Names in the file that no forward pass reads, such as stale buffers.
        original: What the model said before it was wrapped, where it was; an audit compares.
        source: Where it was loaded from.
    """

    name: str
    format: str
    model: HookedModel
    task: str | None
    sha256: str
    tensors: tuple[LoadedTensor, ...]
    dropped: tuple[str, ...] = ()
    original: Callable[[Tokens], Tensor] | None = None
    source: Source | None = None

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


@dataclass(frozen=True)
class Weights:
    """What a format has read: tensors of any kind under our names, and where each came from."""

    tensors: Mapping[str, Shaped[Tensor, "..."]]
    sources: Mapping[str, str]


@runtime_checkable
class Format(Protocol):
    """Reads one kind of checkpoint."""

    name: str

    def recognises(self, source: Source) -> bool:
        """Whether the source looks like this format; at most a small JSON file is read for it.

        No two formats recognise the same source.
        """

    def read(self, source: Source) -> Subject:
        """Reads a checkpoint.

        Raises:
            InputError: It is damaged, hostile, or does not fit its description.
        """


def load(
    path: str | Path,
    preset: str | None = None,
    allow_hub: bool = False,
    adapter: str | None = None,
) -> Subject:
    """Reads a checkpoint of any known format. `PATH#NAME` picks one of several models in a file.

    Raises:
        InputError: Nothing there, an unknown format, or a checkpoint that fails its checks.
    """
    return read(Source(Path(path), preset, allow_hub, adapter))


def read(source: Source) -> Subject:
    """Reads what a source names, in whatever format it is.

    Raises:
        InputError: As `load`.
    """
    with reading(source.path):
        if not source.file.exists() and not source.allow_hub:
            raise InputError(f"{source.path}: no such file or folder (names on a hub: --allow-hub)")
        if source.file.exists() and not source.file.is_dir():
            require_file(source.file)
        known = registry.discover(checkpoints)
        asked = {ADAPTER: known[ADAPTER]} if source.adapter else known
        recognised = (one for one in asked.values() if one.recognises(source))
        if (chosen := next(recognised, None)) is None:
            names = ", ".join(known)
            raise InputError(f"{source.path}: unknown checkpoint format; known: {names}")
        return replace(chosen.read(source), source=source)


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint of some format."""
    return any(known.recognises(Source(path)) for known in registry.discover(checkpoints).values())


def checkpoints_in(folder: Path) -> list[Path]:
    """What a folder holds that is no checkpoint itself, since it describes none; by name."""
    if not folder.is_dir() or _is_described(folder):
        return []
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [
        path for path in inside if is_checkpoint(path) and (path.is_file() or _is_described(path))
    ]


def _is_described(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", "config.yaml"))


def described_by(folder: Path) -> dict[str, Any]:
    """What config.json in a folder says; empty if there is none that can be read.

    Formats recognise their folders by it; what is damaged is refused when it is read in earnest.
    """
    path = folder / "config.json"
    try:
        plain = json.loads(read_text(path, LARGEST_CONFIG))
    except (InputError, ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}


def transformer_of(subject: Subject) -> SequenceTransformer:
    """The model, where it is one of ours, whose weights can be read and replaced.

    Raises:
        InputError: It is somebody else's.
    """
    if not isinstance(subject.model, SequenceTransformer):
        raise InputError(f"{subject.name}: {NOT_OURS}")
    return subject.model


def lacks_weights(subject: Subject) -> str | None:
    """What a model lacks for an analysis that reads or replaces weights by their role."""
    return None if isinstance(subject.model, SequenceTransformer) else NOT_OURS


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
    tensors = fill(path, model, weights)
    length = min(8, config.n_ctx or 8)
    check_stream(path, model, normal(generator_for(0), 2, length, config.d_in).float())
    name = path.name.removesuffix(".pkl")
    return Subject(name, format_name, model, task, hash_of(tensors), tensors)


def fill(path: Path, model: HookedModel, weights: Weights) -> tuple[LoadedTensor, ...]:
    """Gives a model that was built without memory its tensors, as float32, for evaluation.

    Returns:
        The load table.

    Raises:
        InputError: A tensor is missing, unexpected, misshapen or not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    match(path, expected, weights)
    state = {name: weights.tensors[name].float().contiguous() for name in expected}
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    return tuple(row_of(name, weights.sources[name], tensor) for name, tensor in state.items())


def row_of(name: str, source: str, tensor: Float[Tensor, "..."]) -> LoadedTensor:
    """The row of a tensor that was called `source`; its hash is that of its float32 numbers."""
    shape = tuple(tensor.shape)
    numbers = tensor.detach().float().cpu().numpy().astype("<f4").tobytes()
    header = f"{name}:{list(shape)}:float32:".encode()
    return LoadedTensor(name, source, shape, hashlib.sha256(header + numbers).hexdigest())


def hash_of(tensors: Iterable[LoadedTensor]) -> str:
    """Hash over all tensors, independent of the format."""
    return hashlib.sha256("".join(row.sha256 for row in tensors).encode()).hexdigest()


def match(path: Path, expected: Mapping[str, tuple[int, ...]], weights: Weights) -> None:
    """Refuses partial matches; names every problem at once.

    Tensors on the meta device, of which only the description is known, may hold anything.

    Raises:
        InputError: A tensor is missing, unexpected, misshapen, of no float type, or not finite.
    """
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
        elif not (given[name].is_meta or bool(given[name].float().isfinite().all())):
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        shown = "; ".join(sorted(problems)[:6])
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise InputError(f"{path}: {shown}{more}")


@torch.no_grad()
def check_stream(path: Path, model: HookedModel, tokens: Tokens) -> None:
    """What a block adds to the stream before it must make the stream after it.

    Raises:
        InputError: It does not, the stream overflows, or a mesa head cannot be solved.
    """
    try:
        _, cache = model.run_with_cache(tokens)
    except LinAlgError:
        reason = "its moments are not positive definite, or the stream overflows"
        raise InputError(f"{path}: a mesa head cannot be solved: {reason}") from None
    slack = 4 * torch.finfo(next(model.parameters()).dtype).eps
    for layer, identity in enumerate(model.residual_sums()):
        after = cache[identity.after].double()
        if not bool(after.isfinite().all()):
            raise InputError(f"{path}: the stream overflows in block {layer}")
        atol = max(1e-5, slack) * float(after.abs().max())
        if not torch.allclose(identity.total(cache), after, rtol=max(1e-4, slack), atol=atol):
            raise InputError(f"{path}: the stream does not add up in block {layer}")
