"""Modules of other people are read through a layout; the audit finds what is wrong in one."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from probe.audit import audit, failed, trial_tokens
from probe.errors import InputError
from probe.models.wrapped import (
    BlockPlaces,
    Layout,
    WrappedLanguage,
    WrappedSequence,
    into,
    out_of,
)
from probe.views import permuted_twin

WIDTH, HEADS, DEPTH, D = 12, 3, 2, 4
ADAPTER = Path(__file__).parents[1] / "examples" / "adapter.py"


class Layer(nn.Module):
    """A block as many write it: one map for q, k and v."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.mlp = (
            nn.Linear(WIDTH, WIDTH),
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH)
            ),
        )

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Somebody(nn.Module):
    """A model of somebody's."""

    def __init__(self, reads: nn.Module, says: int):
        super().__init__()
        self.reads = reads
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.norm, self.says = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, says)

    def forward(self, tokens):
        x = self.reads(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.says(self.norm(x))


def layout(**changes) -> Layout:
    blocks = tuple(
        BlockPlaces(
            into(f"layers.{i}"),
            out_of(f"layers.{i}.out"),
            **{role: out_of(f"layers.{i}.qkv", j, 3) for j, role in enumerate("qkv")},
            z=into(f"layers.{i}.out"),
            mlp=out_of(f"layers.{i}.mlp"),
        )
        for i in range(DEPTH)
    )
    whole = Layout(
        blocks,
        out_of(f"layers.{DEPTH - 1}"),
        HEADS,
        WIDTH // HEADS,
        WIDTH,
        lambda module, stream: module.says(module.norm(stream)),
    )
    return replace(whole, **changes)


def somebody(reads=None, says=D) -> Somebody:
    torch.manual_seed(0)
    module = Somebody(reads or nn.Linear(D, WIDTH), says)
    for layer in module.layers:
        nn.init.normal_(layer.qkv.weight, std=0.5)
    return module


def wrapped(**changes) -> WrappedSequence:
    return WrappedSequence(somebody(), layout(**changes), D, D)


def each_block(**changes):
    """The layout with places of every block changed by functions of the block."""
    blocks = tuple(
        replace(block, **{name: change(block, i) for name, change in changes.items()})
        for i, block in enumerate(layout().blocks)
    )
    return {"blocks": blocks}


def test_a_right_layout_passes_the_audit_and_changes_nothing():
    model = wrapped()
    tokens = trial_tokens(model)
    assert torch.equal(model(tokens), somebody()(tokens))
    assert all(check.ok for check in audit(model, tokens, somebody()))
    speaker = WrappedLanguage(somebody(nn.Embedding(30, WIDTH), 30), layout(), 30)
    assert all(check.ok for check in audit(speaker, trial_tokens(speaker)))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (each_block(q=lambda b, i: b.k, k=lambda b, i: b.q), "heads"),
        (each_block(v=lambda b, i: b.k), "heads"),
        ({"heads": 2, "d_head": 6}, "heads"),
        (each_block(stream=lambda b, i: out_of(f"layers.{i}")), "updates"),
        (each_block(mlp=lambda b, i: None), "updates"),
        (each_block(attention=lambda b, i: out_of(f"layers.{i}.mlp")), "updates"),
        (each_block(stream=lambda b, i: into(f"layers.{i}.norm")), "streams"),
        ({"read_out": lambda module, stream: stream[..., :D]}, None),
    ],
)
def test_a_wrong_layout_fails_where_it_is_wrong(changes, part):
    model = wrapped(**changes)
    checks = audit(model, trial_tokens(model))
    if part is None:  # read_out stands apart from the forward pass: no check can miss it
        said = model.read_out(model.run_with_cache(trial_tokens(model))[1]["hook_resid_final"])
        assert not torch.allclose(said, model(trial_tokens(model)))
    else:
        assert "block 0" in failed(checks, frozenset({part})).reads


def test_copies_share_nothing():
    model = wrapped()
    copy, tokens = deepcopy(model), trial_tokens(model)
    site = "blocks.1.hook_resid_pre"
    with copy.hooks(fwd_hooks=[(site, lambda value, hook: value * 0)]):
        silenced, untouched = copy(tokens), model(tokens)
    assert torch.equal(untouched, somebody()(tokens))
    assert not torch.allclose(silenced, untouched)
    assert torch.equal(copy(tokens), untouched)
    assert bool(permuted_twin(model, 0)(tokens).isfinite().all())


def test_a_head_count_that_does_not_fit_is_named():
    model = wrapped(heads=2)
    with pytest.raises(InputError, match="block 0 has 3 heads, the layout says 2"):
        audit(model, trial_tokens(model))
    model = wrapped(d_head=5)
    with pytest.raises(InputError, match="12 wide, no multiple of 5"):
        model(trial_tokens(model))


def test_a_module_that_is_not_there_is_named_with_close_names():
    with pytest.raises(InputError, match=r"no module 'layers.0.atn'; close names: layers.0"):
        wrapped(last=into("layers.0.atn"))


def write(path, body):
    path.write_text(body)
    return path


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def build(path):\n    return 3\n", "returned int, no HookedModel"),
        ("def build(path):\n    raise OSError('gone')\n", "my.py:2: OSError: gone"),
        ("import nothing_like_it\n", "ModuleNotFoundError"),
        ("def other(path):\n    pass\n", "has no function build"),
    ],
)
def test_an_adapter_that_fails_is_one_line(command, tiny, tmp_path, body, says):
    file = write(tmp_path / "my.py", body)
    assert says in command("doctor", tiny, "--adapter", f"{file}:build").problem


def test_an_adapter_that_is_not_there(command, tiny):
    assert "expected FILE.py:FUNCTION" in command("doctor", tiny, "--adapter", "no.py:f").problem


@pytest.fixture
def weights(tmp_path):
    """Weights of the module that the example reads."""
    x_transformers = pytest.importorskip("x_transformers")
    decoder = x_transformers.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8)
    model = x_transformers.ContinuousTransformerWrapper(
        dim_in=10, dim_out=10, max_seq_len=64, attn_layers=decoder
    )
    torch.save(model.state_dict(), tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_the_example_is_short_and_right(command, weights):
    assert len(ADAPTER.read_text().splitlines()) < 30
    assert command("doctor", weights, "--adapter", f"{ADAPTER}:build").code == 0


def test_queries_and_keys_swapped_in_the_example_are_caught(command, weights, tmp_path):
    text = ADAPTER.read_text()
    swapped = text.replace(".1.to_q", ".1.to_?").replace(".1.to_k", ".1.to_q")
    file = write(tmp_path / "swapped.py", swapped.replace(".1.to_?", ".1.to_k"))
    said = command("doctor", weights, "--adapter", f"{file}:build")
    assert said.code == 2 and "rule of queries, keys and values" in said.err


def test_the_example_is_analysed(command, weights, tmp_path):
    asked = ("--adapter", f"{ADAPTER}:build", "--task", "linear", "--sequences", 256)
    said = command("analyze", weights, *asked, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "solves" not in said.out and "gradient" not in said.out
