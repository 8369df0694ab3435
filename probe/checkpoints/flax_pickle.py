"""Pickled Flax parameter trees as published with von Oswald et al. 2023; read without jax."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.checkpoints.base import Source, Subject, Weights, build_subject
from probe.checkpoints.safe_pickle import read_pickle
from probe.errors import InputError
from probe.models.attention import MesaAttention
from probe.models.transformer import BlockConfig, ModelConfig
from probe.presets.base import find_preset


class FlaxPickle:
    """A .pkl file; `FILE#TREE` picks one of several trees in it, `FILE#LIST.0` one of a list."""

    name = "flax-pickle"

    def recognises(self, source: Source) -> bool:
        """By its suffix."""
        return source.file.name.endswith(".pkl")

    def read(self, source: Source) -> Subject:
        """Reads the tree, then fits it to the model that the preset describes.

        Raises:
            InputError: No preset, a tree that is damaged or hostile, or one that does not match.
        """
        path = source.path
        if source.preset is None:
            raise InputError(f"{path}: the file does not state its model; give --preset NAME")
        described = find_preset(source.preset)
        name, _, member = path.name.partition("#")
        tree = _tree(path, read_pickle(path.with_name(name)), member)
        weights = _translate(path, _flatten(path, tree), described.config)
        return build_subject(path, self.name, described.config, weights, described.task)


def _tree(path: Path, content: object, member: str) -> dict[str, Any]:
    if isinstance(content, dict) and not member and "params" in content:
        member = "params"
    found = _member(content, member)
    if not isinstance(found, dict):
        known = ", ".join(list(content)[:10]) if isinstance(content, dict) else "none"
        raise InputError(f"{path}: no parameter tree {member!r}; name one by FILE#TREE: {known}")
    return found


def _member(content: object, member: str) -> object:
    """An entry of the file, or NAME.INDEX of a list in it."""
    if not isinstance(content, dict):
        return None
    name, _, index = member.rpartition(".")
    listed = content.get(name)
    if isinstance(listed, list) and index.isdecimal() and int(index) < len(listed):
        return listed[int(index)]
    return content.get(member)


def _flatten(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """The leaves by path.

    Nothing may stand in the tree twice: a few shared dicts can make a tree without end.
    """
    leaves: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            leaf = prefix + key
            if isinstance(value, dict | np.ndarray) and id(value) in seen:
                raise InputError(f"{path}: {leaf} stands in the tree twice")
            seen.add(id(value))
            if isinstance(value, dict):
                visit(value, f"{leaf}/")
            elif leaf in leaves:
                raise InputError(f"{path}: two leaves are called {leaf}")
            else:
                leaves[leaf] = value

    visit(tree, "")
    return leaves


def _translate(path: Path, leaves: dict[str, Any], config: ModelConfig) -> Weights:
    """Our tensors from the file's leaves; those that no tensor wants are refused later."""
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for leaf, value in leaves.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise InputError(f"{path}: {leaf} is no array of floating-point numbers")
        if leaf.endswith("_fm/kernel"):
            continue  # where training put weights to interpolate with; no forward pass reads them
        with np.errstate(over="ignore"):  # what overflows is refused later, as not finite
            numbers = torch.from_numpy(value.astype(np.float32))
        name, tensor = _rename(leaf, numbers, config)
        if name in tensors:
            raise InputError(f"{path}: {leaf} and {sources[name]} are the same tensor {name}")
        tensors[name], sources[name] = tensor, leaf
    return Weights(tensors, sources)


def _rename(leaf: str, tensor: Tensor, config: ModelConfig) -> tuple[str, Tensor]:
    if leaf == "input_layer/kernel":
        return "W_E", tensor
    if leaf == "output_layer/kernel":
        return "W_U", tensor
    block, _, part = _locate(leaf, config)
    if block is None or block >= len(config.blocks):
        return leaf, tensor
    name, tensor = _rename_in_block(part, tensor, config.blocks[block])
    return f"blocks.{block}.{name}", tensor


def _locate(leaf: str, config: ModelConfig) -> tuple[int | None, str, str]:
    """Index of the block that a leaf belongs to: the hybrid block, where there is one, is first."""
    if leaf.startswith("hybrid_block/"):
        return 0, "hybrid", leaf.removeprefix("hybrid_block/")
    if leaf.startswith("tf_block/blocklist_"):
        index, _, part = leaf.removeprefix("tf_block/blocklist_").partition("/")
        if re.fullmatch("0|[1-9][0-9]{0,3}", index):
            return int(index) + config.projected, "list", part
    return None, "", leaf


def _rename_in_block(part: str, tensor: Tensor, block: BlockConfig) -> tuple[str, Tensor]:
    mesa = isinstance(block.attention, MesaAttention)
    heads = block.attention.heads
    # The published mesa head regresses k_proj on v_proj: its keys are called v, its values k.
    role = {"q_proj": "W_Q", "k_proj": "W_V" if mesa else "W_K", "v_proj": "W_K" if mesa else "W_V"}
    attention, _, leaf = part.partition("/")
    if part in ("linear_0/kernel", "linear_2/kernel"):
        return ("mlp.W_in" if "0" in attention else "mlp.W_out"), tensor
    projection = leaf.removesuffix("/kernel")
    if tensor.numel() == 0:
        return part, tensor
    if projection in role and tensor.ndim == 2 and tensor.shape[1] % heads == 0:
        return f"attn.{role[projection]}", tensor.unflatten(1, (heads, -1)).transpose(0, 1)
    if projection == "o_proj" and tensor.ndim == 2 and tensor.shape[0] % heads == 0:
        if mesa:  # its heads are joined with the head index fastest
            return "attn.W_O", tensor.unflatten(0, (-1, heads)).transpose(0, 1)
        return "attn.W_O", tensor.unflatten(0, (heads, -1))
    if leaf == "lambdas" and mesa:
        return "attn.mixer.log_ridge", -tensor.log()
    return part, tensor


NAMED = {FlaxPickle.name: FlaxPickle()}
