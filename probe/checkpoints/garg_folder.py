"""Run folders of in-context function learning, Garg et al. 2022: config.yaml beside state.pt.

The model is GPT-2 between a linear read-in and a linear read-out, on tokens x_1, y_1, x_2, y_2, ...
of the inputs' width. `FOLDER#STEP` picks model_STEP.pt; without it the newest weights are read.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from probe.checkpoints.base import Source, Subject, Weights, build_subject
from probe.checkpoints.garg_config import model_of, read_yaml, task_of
from probe.checkpoints.torch_archive import read_archive
from probe.checkpoints.torch_state import read_state, state_of, wrapped
from probe.errors import InputError
from probe.models.config import ModelConfig

CONFIG, STATE = "config.yaml", "state.pt"
_STEP = re.compile(r"model_(0|[1-9][0-9]{0,11})\.pt")
_STALE = re.compile(r"_backbone\.(wte\.weight|h\.[0-9]+\.attn\.(bias|masked_bias))")
_IN_BLOCK = re.compile(r"_backbone\.h\.(0|[1-9][0-9]{0,3})\.(.+)")
_PARTS = {
    "ln_1.weight": "ln1.w",
    "ln_1.bias": "ln1.b",
    "ln_2.weight": "ln2.w",
    "ln_2.bias": "ln2.b",
    "attn.c_proj.bias": "attn.b_O",
    "mlp.c_fc.weight": "mlp.W_in",
    "mlp.c_fc.bias": "mlp.b_in",
    "mlp.c_proj.weight": "mlp.W_out",
    "mlp.c_proj.bias": "mlp.b_out",
}
_OUTSIDE = {
    "_read_in.bias": "b_E",
    "_read_out.bias": "b_U",
    "_backbone.wpe.weight": "W_pos",
    "_backbone.ln_f.weight": "ln_final.w",
    "_backbone.ln_f.bias": "ln_final.b",
}
_TRANSPOSED = {"_read_in.weight": "W_E", "_read_out.weight": "W_U"}


class GargFolder:
    """A folder with a config.yaml and no config.json."""

    name = "garg"

    def recognises(self, source: Source) -> bool:
        """By the files in it."""
        folder = source.file
        return (folder / CONFIG).is_file() and not (folder / "config.json").exists()

    def read(self, source: Source) -> Subject:
        """Reads config.yaml, then the weights.

        Raises:
            InputError: A file is missing, damaged or hostile, or states what is not known.
        """
        if source.preset is not None:
            raise InputError(
                f"{source.path}: a run folder states its own model; leave out --preset"
            )
        place = source.file / CONFIG
        stated = read_yaml(place)
        try:
            config, task = model_of(stated), task_of(stated)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        path, state = _weights(source)
        weights, dropped = _translate(path, state, config)
        subject = build_subject(source.path.resolve(), self.name, config, weights, task)
        return replace(subject, dropped=dropped)


def _weights(source: Source) -> tuple[Path, dict[str, Tensor]]:
    """The file of the step that is asked for, or of the newest, and the state dict in it."""
    folder, step = source.file, str(source.path).partition("#")[2]
    found = {m[1]: folder / m[0] for p in folder.iterdir() if (m := _STEP.fullmatch(p.name))}
    if step and step not in found:
        known = ", ".join(sorted(found, key=int)[:10]) or "none"
        raise InputError(f"{source.path}: no model_{step:.20}.pt in it; steps: {known}")
    newest = max(found, key=int, default=None)
    if not step and (folder / STATE).is_file():
        content = read_archive(folder / STATE)
        at = content.get("train_step") if isinstance(content, dict) else None
        if newest is None or (type(at) is int and at >= int(newest)):
            return folder / STATE, state_of(folder / STATE, content)
    chosen = step or newest
    if chosen is None:
        raise InputError(f"{folder}: holds neither {STATE} nor model_STEP.pt")
    return found[chosen], read_state(found[chosen])


def _translate(
    path: Path, state: Mapping[str, Tensor], config: ModelConfig
) -> tuple[Weights, tuple[str, ...]]:
    """Our tensors, and the names of those that no forward pass reads."""
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    dropped, start = [], wrapped(state)
    for name, value in state.items():
        plain = name[start:]
        if _STALE.fullmatch(plain):
            dropped.append(f"{name:.200}")
            continue
        for ours, tensor in _renamed(plain, value, config).items():
            if ours in tensors:
                raise InputError(
                    f"{path}: {name:.100} and {sources[ours]} are the same tensor {ours}"
                )
            tensors[ours], sources[ours] = tensor.detach().clone(), f"{name:.200}"
    return Weights(tensors, sources), tuple(dropped)


def _renamed(name: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """What one tensor of the file is to us; what is not known is refused later."""
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: tensor}
    if name in _TRANSPOSED and tensor.ndim == 2:
        return {_TRANSPOSED[name]: tensor.mT}
    found = _IN_BLOCK.fullmatch(name)
    parts = _in_block(found[2], tensor, config) if found else {}
    if found is None or not parts:
        return {f"unknown {name}": tensor}
    return {f"blocks.{found[1]}.{ours}": part for ours, part in parts.items()}


def _in_block(part: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """GPT-2 holds queries, keys and values side by side, each of them head by head.

    Nothing is returned for a part that it does not have, or of another shape.
    """
    width, heads = config.d_model, config.blocks[0].attention.heads
    if part in _PARTS:
        return {_PARTS[part]: tensor}
    if part == "attn.c_attn.weight" and tensor.shape == (width, 3 * width):
        maps = tensor.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        return {f"attn.W_{role}": one for role, one in zip("QKV", maps, strict=True)}
    if part == "attn.c_attn.bias" and tensor.shape == (3 * width,):
        biases = tensor.unflatten(0, (3, heads, -1))
        return {f"attn.b_{role}": one for role, one in zip("QKV", biases, strict=True)}
    if part == "attn.c_proj.weight" and tensor.shape == (width, width):
        return {"attn.W_O": tensor.unflatten(0, (heads, -1))}
    return {}


NAMED = {GargFolder.name: GargFolder()}
