"""Mutations of tensors and of what files declare of them: safetensors and files of torch.save."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fuzzing.edit import Edit, Rng, edits_of_bytes, ends_in

_SIDES = (0, 1, -1, 2**20, 2**31, 2**40, 2**62, 2**63, 10**30, 1.5, None, "3")
_OFFSETS = ([0, 0], [0, 2**40], [8, 4], [-1, 4], [2**63, 2**63], [0, 4, 8], [], None, ["a", "b"])
_TYPES = ("F64", "F16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", "", 3, None)
_FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e30, 0.0, 1e-45)
_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
_ONLY_TORCH = (torch.complex64, torch.float8_e4m3fn)
Tensors = dict[Any, Any]


def declare_otherwise(content: bytes, rng: Rng) -> bytes:
    """The header of a safetensors file says something else of one tensor."""
    header, data = _split(content)
    if not (names := [name for name in header if isinstance(header[name], dict)]):
        return content
    name = rng.choice(names)
    field = rng.choice(("shape", "shape", "dtype", "data_offsets", "name", "lost", "extra"))
    if field == "shape":
        shape = list(header[name].get("shape") or [1])
        shape[rng.randrange(len(shape))] = rng.choice(_SIDES)
        header[name]["shape"] = rng.choice((shape, shape * 3, [], None, [0, 2**62]))
    elif field == "dtype":
        header[name]["dtype"] = rng.choice(_TYPES)
    elif field == "data_offsets":
        header[name]["data_offsets"] = rng.choice(_OFFSETS)
    elif field == "name":
        header[rng.choice(("", "a\nb", "k" * 50_000, name.upper(), "\ud800"))] = header.pop(name)
    elif field == "lost":
        del header[name]
    else:
        header["more"] = {"dtype": "F32", "shape": [0, 2**50], "data_offsets": [0, 0]}
    return _joined(header, data)


def lie_of_the_header(content: bytes, rng: Rng) -> bytes:
    """Its length, or all of it."""
    sizes = (0, 1, 2**20, 2**31, 2**33, 2**62, 2**64 - 1)
    headers = (b"[" * 100_000, b"{}", b"null", b'{"__metadata__": {"a": 3}}', b"\xff" * 50)
    if rng.random() < 0.5:
        return struct.pack("<Q", rng.choice(sizes)) + content[8:]
    header = rng.choice(headers)
    return struct.pack("<Q", len(header)) + header + content[8:]


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
    except (struct.error, ValueError, RecursionError):
        return {}, b""
    return (header, content[8 + size :]) if isinstance(header, dict) else ({}, b"")


def _joined(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _numbers(tensors: Tensors, name: Any, rng: Rng) -> None:
    """One number, or all, become huge, tiny or no number."""
    flat = tensors[name].clone().flatten()
    if len(flat):
        place = rng.choice((slice(None), rng.randrange(len(flat))))
        value = rng.choice(_FLOATS)
        flat[place] = value if flat.is_floating_point() else 1
    tensors[name] = flat.view(tensors[name].shape)


def _scale(tensors: Tensors, name: Any, rng: Rng) -> None:
    factor = rng.choice((0.0, -1.0, 1e-30, 100.0, 1e10, 1e30))
    for key in rng.choice(([name], list(tensors))):
        tensors[key] = (tensors[key].double() * factor).to(tensors[key].dtype)


def _cast(tensors: Tensors, name: Any, rng: Rng) -> None:
    dtype = rng.choice(_DTYPES)
    for key in rng.choice(([name], list(tensors))):
        tensors[key] = tensors[key].to(dtype)


def _reshape(tensors: Tensors, name: Any, rng: Rng) -> None:
    value = tensors[name]
    shapes = (value.flatten(), value[None], value[..., None], value.mT if value.ndim > 1 else value)
    parts = (
        value[:0],
        value[:1],
        value.new_zeros(()),
        torch.cat([value, value]) if value.ndim else value,
    )
    tensors[name] = rng.choice(shapes + (parts if value.ndim else ())).contiguous()


def _lose(tensors: Tensors, name: Any, rng: Rng) -> None:
    del tensors[name]


def _more(tensors: Tensors, name: Any, rng: Rng) -> None:
    names = ("more", "a\nb", "", f"{name}.bias", str(name).replace("0", "7"), "k" * 1000)
    tensors[rng.choice(names)] = tensors[name].clone()


def _swap(tensors: Tensors, name: Any, rng: Rng) -> None:
    other = rng.choice(sorted(tensors, key=str))
    tensors[name], tensors[other] = tensors[other], tensors[name]


_CHANGES = (_numbers, _numbers, _scale, _cast, _reshape, _lose, _more, _swap)


def _safetensors(path: Path, rng: Rng) -> None:
    try:
        tensors = dict(load_file(path))
    except (SafetensorError, OSError, ValueError):
        return
    _change(tensors, rng)
    save_file({name: value.clone() for name, value in tensors.items()}, path)


def _change(tensors: Tensors, rng: Rng) -> None:
    names = sorted((name for name in tensors if isinstance(tensors[name], Tensor)), key=str)
    if names:
        rng.choice(_CHANGES)(tensors, rng.choice(names), rng)


def _torch_file(path: Path, rng: Rng) -> None:
    """The tensors change, or the way in which they are saved."""
    content = _loaded(path)
    if not (isinstance(content, dict) and content):
        return
    state = next((inner for inner in content.values() if isinstance(inner, dict)), content)
    if rng.random() < 0.5:
        _change(state, rng)
        torch.save(content, path)
    else:
        rng.choice(_WAYS)(content, state, path, rng)


def _loaded(path: Path) -> Any:
    """What the file holds, if earlier mutations have left it readable."""
    try:
        return torch.load(path, weights_only=True)
    except Exception:
        return None


def _legacy(content: Any, state: Tensors, path: Path, rng: Rng) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _other_layout(content: Any, state: Tensors, path: Path, rng: Rng) -> None:
    """Sparse, quantised, complex, on no device, expanded, sliced, shared, or a parameter."""
    name = rng.choice(sorted(state, key=str))
    value = state[name]
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.ndim):
        return
    ways: tuple[Callable[[Tensor], Any], ...] = (
        lambda t: t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        lambda t: t.to(rng.choice(_ONLY_TORCH)),
        lambda t: t.to("meta"),
        lambda t: t.flatten()[:1].expand(t.numel()).view(t.shape) if t.numel() else t,
        lambda t: torch.cat([t, t])[: len(t)],
        lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
        lambda t: torch.nn.Parameter(t),
        lambda t: torch.zeros(10**12, dtype=t.dtype, device="meta"),
    )
    state[name] = rng.choice(ways)(value)
    torch.save(content, path)


def _other_content(content: Any, state: Tensors, path: Path, rng: Rng) -> None:
    first = next(iter(state))
    made: tuple[Any, ...] = (
        [],
        {},
        None,
        state[first],
        [state],
        {"state_dict": state},
        {"model": {"model": state}},
        {"model_state_dict": []},
        {**state, 3: state[first]},
        {**state, "a\nb": state[first]},
        {**state, "more": "text"},
        {f"module.{name}": value for name, value in state.items()},
        {f"model._orig_mod.{name}": value for name, value in state.items()},
        {**content, "train_step": rng.choice((-1, 2**70, "x", 1.5, None))},
        dict.fromkeys(state, state[first]),
        Path("x"),
    )
    torch.save(rng.choice(made), path)


_WAYS = (_legacy, _other_layout, _other_layout, _other_content)
_TORCH = (".pt", ".pth", ".bin")
EDITS = {
    **edits_of_bytes(ends_in(".safetensors"), declare_otherwise, lie_of_the_header),
    "tensors": Edit(_safetensors, ends_in(".safetensors")),
    "torch_file": Edit(_torch_file, ends_in(*_TORCH)),
}
