"""How mesaprobe reads a module of x-transformers; `mesaprobe doctor` checks every line of it."""

import torch
from x_transformers import ContinuousTransformerWrapper, Decoder

from probe.models.wrapped import BlockPlaces, Layout, WrappedSequence, into, out_of

D, DEPTH, HEADS, WIDTH = 10, 2, 4, 32


def build(path):
    """The model whose weights lie at a path."""
    decoder = Decoder(dim=WIDTH, depth=DEPTH, heads=HEADS, attn_dim_head=WIDTH // HEADS)
    model = ContinuousTransformerWrapper(dim_in=D, dim_out=D, max_seq_len=64, attn_layers=decoder)
    model.load_state_dict(torch.load(path, weights_only=True))
    parts = [f"attn_layers.layers.{i}" for i in range(2 * DEPTH)]  # attention and MLP by turns
    streams = [into("attn_layers"), *(out_of(f"{mlp}.2") for mlp in parts[1::2])]
    blocks = tuple(
        BlockPlaces(stream, attention=out_of(f"{part}.1.to_out"), mlp=out_of(f"{mlp}.1.ff"),
                    q=out_of(f"{part}.1.to_q"), k=out_of(f"{part}.1.to_k"),
                    v=out_of(f"{part}.1.to_v"), z=into(f"{part}.1.to_out"))
        for stream, part, mlp in zip(streams, parts[::2], parts[1::2], strict=False)
    )  # fmt: skip
    layout = Layout(
        blocks, streams[-1], HEADS, WIDTH // HEADS, WIDTH,
        read_out=lambda module, stream: module.project_out(module.attn_layers.final_norm(stream)),
    )  # fmt: skip
    return WrappedSequence(model, layout, D, D)
