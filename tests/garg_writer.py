"""The model of Garg et al. 2022 around the GPT-2 of transformers, and the run folders it leaves.

The names in its state dict are those that torch and transformers give, not ours.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from probe.models.transformer import SequenceTransformer


class GargModel(nn.Module):
    """Read-in, GPT-2 and read-out with the weights of one of our models."""

    def __init__(self, model: SequenceTransformer):
        super().__init__()
        config = model.config
        gpt2 = GPT2Config(
            n_positions=config.n_ctx,
            n_embd=config.d_model,
            n_layer=model.layers,
            n_head=config.blocks[0].attention.heads,
            vocab_size=3,
        )
        self._read_in = nn.Linear(config.d_in, config.d_model)
        self._backbone = GPT2Model(gpt2)
        self._read_out = nn.Linear(config.d_model, config.d_out)
        self.eval().requires_grad_(False)
        self._fill(model)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = self._backbone(inputs_embeds=self._read_in(tokens)).last_hidden_state
        return self._read_out(seen)

    def _fill(self, model: SequenceTransformer) -> None:
        self._read_in.weight.copy_(model.W_E.T)
        self._read_in.bias.copy_(model.b_E)
        self._read_out.weight.copy_(model.W_U.T)
        self._read_out.bias.copy_(model.b_U)
        self._backbone.wpe.weight.copy_(model.W_pos)
        norms = [(self._backbone.ln_f, model.ln_final)]
        for theirs, ours in zip(self._backbone.h, model.blocks, strict=True):
            norms += [(theirs.ln_1, ours.ln1), (theirs.ln_2, ours.ln2)]
            heads = [ours.attn.W_Q, ours.attn.W_K, ours.attn.W_V]
            fused = [torch.cat(list(weight), 1) for weight in heads]
            theirs.attn.c_attn.weight.copy_(torch.cat(fused, 1))
            biases = [ours.attn.b_Q, ours.attn.b_K, ours.attn.b_V]
            theirs.attn.c_attn.bias.copy_(torch.cat([bias.flatten() for bias in biases]))
            theirs.attn.c_proj.weight.copy_(torch.cat(list(ours.attn.W_O), 0))
            theirs.attn.c_proj.bias.copy_(ours.attn.b_O)
            theirs.mlp.c_fc.weight.copy_(ours.mlp.W_in)
            theirs.mlp.c_fc.bias.copy_(ours.mlp.b_in)
            theirs.mlp.c_proj.weight.copy_(ours.mlp.W_out)
            theirs.mlp.c_proj.bias.copy_(ours.mlp.b_out)
        for theirs, ours in norms:
            theirs.weight.copy_(ours.w)
            theirs.bias.copy_(ours.b)


def garg_state(model: SequenceTransformer, prefix: str = "") -> dict[str, Tensor]:
    """The state dict, with the buffers that older versions of GPT-2 left in it."""
    state = dict(GargModel(model).state_dict())
    for layer in range(model.layers):
        mask = torch.ones(model.config.n_ctx, model.config.n_ctx, dtype=torch.bool).tril()
        state[f"_backbone.h.{layer}.attn.bias"] = mask[None, None]
        state[f"_backbone.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return {f"{prefix}{name}": value for name, value in state.items()}


def garg_config(model: SequenceTransformer, **training: Any) -> dict[str, Any]:
    """What config.yaml states of a model trained on as many points as it has positions for."""
    config = model.config
    points = {"start": 5, "end": config.n_ctx // 2, "inc": 2, "interval": 2000}
    dims = {"start": 2, "end": config.d_in, "inc": 1, "interval": 2000}
    return {
        "out_dir": "../models/run",
        "test_run": False,
        "model": {
            "family": "gpt2",
            "n_dims": config.d_in,
            "n_positions": config.n_ctx // 2,
            "n_embd": config.d_model,
            "n_layer": model.layers,
            "n_head": config.blocks[0].attention.heads,
        },
        "training": {
            "task": "linear_regression",
            "task_kwargs": {},
            "data": "gaussian",
            "num_tasks": None,
            "num_training_examples": None,
            "batch_size": 64,
            "learning_rate": 1e-4,
            "curriculum": {"points": points, "dims": dims},
            **training,
        },
    }


def write_run(model: SequenceTransformer, folder: Path, step: int = 100, **training: Any) -> Path:
    """A folder with config.yaml and state.pt, an optimiser's state in it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = garg_config(model, **training)
    (folder / "config.yaml").write_text(yaml.dump(plain, default_flow_style=False))
    state = garg_state(model)
    moments = {"step": torch.tensor(float(step)), "exp_avg": torch.zeros(3, 4)}
    groups = [{"lr": 1e-4, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}]
    optimiser = {"state": {0: moments}, "param_groups": groups}
    content = {"model_state_dict": state, "optimizer_state_dict": optimiser, "train_step": step}
    torch.save(content, folder / "state.pt")
    return folder
