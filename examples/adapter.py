"""How mesaprobe reads a module of x-transformers; `mesaprobe doctor` checks every line of it."""

from pathlib import Path

import torch
from x_transformers import ContinuousTransformerWrapper, Decoder

from probe.models.reading import AttentionReading, BlockReading, HeadView, Reading, Site
from probe.models.wrapped import WrappedSequenceModel as Model


def build(path: Path, d=10, depth=2, heads=2, width=16) -> Model:
    """PATH holds the state dict; the sizes are those it was trained with."""
    layers = Decoder(dim=heads * width, depth=depth, heads=heads, attn_dim_head=width)
    net = ContinuousTransformerWrapper(dim_in=d, dim_out=d, max_seq_len=64, attn_layers=layers)
    net.load_state_dict(torch.load(path, weights_only=True))
    after = (Site(f"attn_layers.layers.{2 * n + 1}.2") for n in range(depth))
    stream = [Site("emb_dropout"), *after]
    blocks = []
    for n in range(depth):
        attention, mlp = (f"attn_layers.layers.{2 * n + part}.1" for part in (0, 1))
        qkv = [HeadView(Site(f"{attention}.attend", "input", role), heads) for role in range(3)]
        read = AttentionReading(*qkv, HeadView(Site(f"{attention}.to_out", "input"), heads))
        blocks.append(BlockReading(stream[n], Site(f"{attention}.to_out"), Site(mlp), read))
    read_out = ("attn_layers.final_norm", "project_out")
    return Model(net, Reading(tuple(blocks), stream[-1], read_out), d_in=d, longest=64)
