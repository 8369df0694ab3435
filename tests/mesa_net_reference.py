"""MesaNet in float64, position by position, straight from its equations; nothing of `probe`."""

from typing import Any

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """y_t = silu(sum_i w_i x_(t - W + 1 + i)), every channel for itself."""
    window, length = weight.shape[-1], len(x)
    rows = []
    for t in range(length):
        first = t - window + 1
        terms = [weight[:, 0, i] * x[first + i] for i in range(window) if first + i >= 0]
        rows.append(torch.stack(terms).sum(0))
    return silu(torch.stack(rows))


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def solved(
    q: Tensor, k: Tensor, v: Tensor, gates: tuple[Tensor, Tensor], penalty: Tensor
) -> Tensor:
    """One head: G_t = gamma_t G + beta_t k k^T, C_t alike, o_t = C_t (G_t + Lambda)^-1 q_t."""
    write, forget = gates
    d = k.shape[-1]
    moments, cross, answers = torch.zeros(d, d).double(), torch.zeros(d, d).double(), []
    for t in range(len(q)):
        moments = forget[t] * moments + write[t] * torch.outer(k[t], k[t])
        cross = forget[t] * cross + write[t] * torch.outer(v[t], k[t])
        answers.append(cross @ torch.linalg.solve(moments + torch.diag(penalty), q[t]))
    return torch.stack(answers)


def attention(x: Tensor, block: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    heads = config["num_heads"]

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1))

    q, k = (
        unit(split(convolved(x @ block[f"{r}_proj.weight"].T, block[f"{r}_conv1d.weight"])))
        for r in "qk"
    )
    v = split(x @ block["v_proj.weight"].T)
    write, forget = (
        1 / (1 + (-(x @ block[f"{r}_proj.weight"].T + block[f"{r}_proj.bias"])).exp()) for r in "ba"
    )
    penalty = (1 + split(block["lambda_params"]).exp()).log() + config["lambda_lower_bound"]
    answers = [
        solved(q[:, h], k[:, h], v[:, h], (write[:, h], forget[:, h]), penalty[h])
        for h in range(heads)
    ]
    o = rms(torch.stack(answers, 1), block["o_norm.weight"], config["norm_eps"])
    if config["use_output_gate"]:
        o = o * silu(split(x @ block["g_proj.weight"].T))
    return o.flatten(1) @ block["o_proj.weight"].T


def logits(tokens: Tensor, tensors: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """Of one sequence, (time, vocabulary)."""
    wide, eps = {name: tensor.double() for name, tensor in tensors.items()}, config["norm_eps"]
    x = wide["model.embeddings.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}."
        block = {n.removeprefix(start): t for n, t in wide.items() if n.startswith(start)}
        inner = {n.removeprefix("attn."): t for n, t in block.items()}
        x = x + attention(rms(x, block["attn_norm.weight"], eps), inner, config)
        normed = rms(x, block["mlp_norm.weight"], eps)
        gated = silu(normed @ block["mlp.gate_proj.weight"].T)
        x = x + (gated * (normed @ block["mlp.up_proj.weight"].T)) @ block["mlp.down_proj.weight"].T
    head = wide.get("lm_head.weight", wide["model.embeddings.weight"])
    return rms(x, wide["model.norm.weight"], eps) @ head.T
