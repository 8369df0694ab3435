"""MesaNet folders of flash-linear-attention: config.json beside safetensors."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.checkpoints.base import (
    Source,
    Subject,
    Weights,
    check_stream,
    described_by,
    fill,
    hash_of,
    match,
)
from probe.checkpoints.tensor_folder import TensorFolder
from probe.checkpoints.tokenizer import tokenizer_of
from probe.errors import InputError
from probe.models.mesa_net import MesaNet, MesaNetConfig

MODEL_TYPE = "mesa_net"
LARGEST_SIDE, LARGEST_VOCABULARY, MOST_BLOCKS = 100_000, 4_000_000, 200
_SHAPE = (
    "vocab_size hidden_size num_hidden_layers num_heads head_dim conv_size lambda_lower_bound "
    "norm_eps use_output_gate"
)
# Only these values are read here; where the field is absent they are meant.
_FIXED = {"attn": None, "attnres_block_size": None, "hidden_act": "swish", "attn_mode": "chunk"}
# How it was trained or is computed; none changes what is solved. The layer has its convolutions
# whatever use_short_conv says, and the steps of conjugate gradient only come near the solution.
_SILENT = """
    _name_or_path architectures bos_token_id chunk_size_feed_forward dtype eos_token_id
    fuse_cross_entropy fuse_linear_cross_entropy fuse_norm fuse_swiglu hidden_ratio id2label
    initializer_range intermediate_size is_encoder_decoder label2id max_cg_step_decoding
    max_cg_step_training max_position_embeddings model_type output_attentions
    output_hidden_states pad_token_id problem_type return_dict tie_word_embeddings torch_dtype
    transformers_version use_cache use_l2warp use_short_conv
"""
_OURS = {
    "model.embeddings.": "embed.",
    "model.layers.": "blocks.",
    "model.norm.": "ln_final.",
    "lm_head.": "unembed.",
}


class MesaNetFolder:
    """A folder as MesaNetForCausalLM.save_pretrained writes it."""

    name = "mesa-net"

    def recognises(self, source: Source) -> bool:
        """A folder whose config.json says that it holds a MesaNet."""
        return source.path.is_dir() and described_by(source.path).get("model_type") == MODEL_TYPE

    def read(self, source: Source) -> Subject:
        """Reads config.json, then the tensors that it calls for.

        Sizes are compared with the headers of the files before memory is taken for them.

        Raises:
            InputError: A part that is not read here, a damaged file, or one that does not match.
        """
        path = source.path
        if source.preset is not None:
            raise InputError(f"{path}: a MesaNet folder states its own model; leave out --preset")
        try:
            config = config_of(described_by(path))
        except InputError as error:
            raise InputError(f"{path / 'config.json'}: {error}") from None
        folder, tokenizer = TensorFolder.open(path), tokenizer_of(path, config.vocabulary)
        with torch.device("meta"):
            model = MesaNet(config, tokenizer)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        again = "lm_head.weight" if config.tied and "lm_head.weight" in folder.described else None
        match(path, expected, _renamed(folder.described, again))
        tensors = folder.read()
        if again and not torch.equal(tensors[again], tensors["model.embeddings.weight"]):
            raise InputError(f"{path}: {again} is not the embedding that it is said to be tied to")
        table = fill(path, model, _renamed(tensors, again))
        _check_penalties(path, model)
        check_stream(path, model, torch.arange(16).reshape(2, 8) % config.vocabulary)
        dropped = (again,) if again else ()
        name = path.resolve().name
        return Subject(name, self.name, model, None, hash_of(table), table, dropped)


def config_of(plain: dict[str, Any]) -> MesaNetConfig:
    """The shape that a config.json of flash-linear-attention describes.

    Raises:
        InputError: A field is missing, unknown, out of range, or asks for what is not read here.
    """
    _check_fields(plain)
    config = MesaNetConfig(
        vocabulary=_whole(plain, "vocab_size", LARGEST_VOCABULARY),
        d_model=_whole(plain, "hidden_size"),
        layers=_whole(plain, "num_hidden_layers", MOST_BLOCKS),
        heads=_whole(plain, "num_heads"),
        d_head=_whole(plain, "head_dim"),
        d_mlp=_mlp_width(plain),
        window=_whole(plain, "conv_size"),
        least_penalty=_number(plain, "lambda_lower_bound"),
        norm_eps=_number(plain, "norm_eps"),
        output_gate=_flag(plain, "use_output_gate"),
        tied=_flag({"tie_word_embeddings": False} | plain, "tie_word_embeddings"),
    )
    if config.heads * config.d_head > LARGEST_SIDE:
        raise InputError(f"{config.heads} heads of width {config.d_head} are too wide")
    return config


def _check_fields(plain: dict[str, Any]) -> None:
    """All that shape the model, and no other that might."""
    for name, only in _FIXED.items():
        if plain.get(name, only) != only:
            raise InputError(f"{name} is {plain[name]!r:.80}, only {only!r} is read")
    shape = set(_SHAPE.split())
    wrong = [f"missing {name}" for name in sorted(shape - plain.keys())]
    unknown = plain.keys() - shape - _FIXED.keys() - set(_SILENT.split())
    wrong += [f"unknown {name!a:.40}" for name in sorted(unknown)]
    if wrong:
        raise InputError("; ".join(wrong[:6]))


def _whole(plain: dict[str, Any], name: str, most: int = LARGEST_SIDE) -> int:
    value = plain[name]
    if type(value) is not int or not 1 <= value <= most:
        raise InputError(f"{name} is {value!r:.40}, expected a whole number from 1 to {most}")
    return value


def _number(plain: dict[str, Any], name: str) -> float:
    value = plain[name]
    if type(value) not in (int, float) or not 0 <= value < LARGEST_SIDE:
        raise InputError(f"{name} is {value!r:.40}, expected a number from 0 to {LARGEST_SIDE}")
    return float(value)


def _flag(plain: dict[str, Any], name: str) -> bool:
    value = plain[name]
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r:.40}, expected true or false")
    return value


def _mlp_width(plain: dict[str, Any]) -> int:
    """The stated width; without one 2/3 of the ratio, filled up to a multiple of 256."""
    if plain.get("intermediate_size") is not None:
        return _whole(plain, "intermediate_size")
    ratio = 4.0 if plain.get("hidden_ratio") is None else _number(plain, "hidden_ratio")
    width = int(_whole(plain, "hidden_size") * ratio * 2 / 3)
    return _whole({"the width of the MLP": 256 * -(-width // 256)}, "the width of the MLP")


def _renamed(tensors: dict[str, Tensor], leave_out: str | None) -> Weights:
    names = {_our_name(name): name for name in tensors if name != leave_out}
    given = {ours: tensors[theirs] for ours, theirs in names.items()}
    return Weights(given, {ours: f"{theirs:.200}" for ours, theirs in names.items()})


def _our_name(name: str) -> str:
    """Parts of the model are called as in TransformerLens, what is inside a block as it was."""
    for theirs, ours in _OURS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"unknown {name}"


def _check_penalties(path: Path, model: MesaNet) -> None:
    for layer in range(model.layers):
        if not bool((model.attention(layer).penalty > 0).all()):
            raise InputError(f"{path}: a penalty in block {layer} is 0, which has no solution")


NAMED = {MesaNetFolder.name: MesaNetFolder()}
