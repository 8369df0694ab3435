"""Writes small random MesaNets as flash-linear-attention saves them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "architectures": ["MesaNetForCausalLM"],
    "attn": None,
    "attn_mode": "chunk",
    "attnres_block_size": None,
    "bos_token_id": 1,
    "conv_size": 4,
    "dtype": "float32",
    "eos_token_id": 2,
    "fuse_cross_entropy": True,
    "fuse_linear_cross_entropy": False,
    "fuse_norm": True,
    "fuse_swiglu": True,
    "head_dim": 8,
    "hidden_act": "swish",
    "hidden_ratio": 4,
    "hidden_size": 20,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "lambda_lower_bound": 0.25,
    "max_cg_step_decoding": 30,
    "max_cg_step_training": 30,
    "max_position_embeddings": 2048,
    "model_type": "mesa_net",
    "norm_eps": 1e-6,
    "num_heads": 3,
    "num_hidden_layers": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "use_l2warp": False,
    "use_output_gate": True,
    "use_short_conv": True,
    "vocab_size": 50,
}


def described(**changes: Any) -> dict[str, Any]:
    """What config.json says, with changes."""
    return {**CONFIG, **changes}


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Tensors in the names and shapes of flash-linear-attention; nothing is at its default.

    Gates vary from token to token around a half-life of some ten tokens; penalties vary from
    channel to channel.
    """
    generator = torch.Generator().manual_seed(seed)
    d, width = config["hidden_size"], config["num_heads"] * config["head_dim"]
    hidden, heads = config["intermediate_size"], config["num_heads"]

    def normal(*shape: int, std: float | None = None, mean: float = 0.0) -> Tensor:
        scale = shape[-1] ** -0.5 if std is None else std
        return mean + scale * torch.randn(*shape, generator=generator)

    tensors = {"model.embeddings.weight": normal(config["vocab_size"], d, std=1.0)}
    for layer in range(config["num_hidden_layers"]):
        block = {
            "attn_norm.weight": normal(d, std=0.3, mean=1.0),
            "attn.lambda_params": normal(width, std=1.0),
            **{f"attn.{role}_proj.weight": normal(width, d) for role in "qkv"},
            "attn.a_proj.weight": normal(heads, d),
            "attn.a_proj.bias": normal(heads, std=0.5, mean=3.0),
            "attn.b_proj.weight": normal(heads, d),
            "attn.b_proj.bias": normal(heads, std=0.5),
            **{
                f"attn.{role}_conv1d.weight": normal(width, 1, config["conv_size"]) for role in "qk"
            },
            "attn.o_norm.weight": normal(config["head_dim"], std=0.3, mean=1.0),
            "attn.o_proj.weight": normal(d, width),
            "mlp_norm.weight": normal(d, std=0.3, mean=1.0),
            "mlp.gate_proj.weight": normal(hidden, d),
            "mlp.up_proj.weight": normal(hidden, d),
            "mlp.down_proj.weight": normal(d, hidden),
        }
        if config["use_output_gate"]:
            block["attn.g_proj.weight"] = normal(width, d)
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in block.items()}
    tensors["model.norm.weight"] = normal(d, std=0.3, mean=1.0)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(config["vocab_size"], d)
    return tensors


def write_mesa_net(
    folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None
) -> Path:
    """A folder with config.json and model.safetensors; by default random."""
    config = described() if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write_parts(folder: Path, tensors: dict[str, Tensor], parts: int = 2) -> None:
    """The tensors in several files with an index, in place of model.safetensors."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, listed = sorted(tensors), {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        held = names[part::parts]
        save_file({name: tensors[name] for name in held}, folder / file)
        listed |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 0}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
