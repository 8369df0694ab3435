"""Modules of other people through an adapter; each wrong description fails at its own check."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probe.audit import audit, trial_tokens
from probe.checkpoints.adapted import load_adapted
from probe.checkpoints.base import load
from probe.doctor import examine
from probe.errors import InputError
from probe.findings import Check
from probe.models.reading import AttentionReading, BlockReading, HeadView, Reading, Site
from probe.models.wrapped import WrappedLanguageModel, WrappedSequenceModel
from probe.views import permuted_twin

DEPTH, HEADS, GROUPS, D_HEAD, WIDTH, D_IN = 3, 4, 2, 8, 24, 5
EXAMPLE = Path(__file__).parent.parent / "examples" / "adapter.py"


class Attention(nn.Module):
    """Fused queries, keys and values; a key and its value may serve several queries."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups, self.qkv = groups, nn.Linear(WIDTH, (HEADS + 2 * groups) * D_HEAD)
        self.out = nn.Linear(HEADS * D_HEAD, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        sizes = [count * D_HEAD for count in (HEADS, self.groups, self.groups)]
        q, k, v = (
            part.unflatten(-1, (-1, D_HEAD)).transpose(1, 2)
            for part in self.qkv(x).split(sizes, -1)
        )
        mixed = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=0.7, enable_gqa=True
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), "and something else"


class Layer(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention(groups)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU())
        self.mlp.append(nn.Linear(32, WIDTH))

    def forward(self, *, stream: Tensor) -> Tensor:
        stream = stream + self.attention(self.norm(stream))[0]
        return stream + self.mlp(stream)


class Net(nn.Module):
    """A model that knows nothing of hooks; blocks take the stream by keyword."""

    def __init__(self, embed: nn.Module, groups: int) -> None:
        super().__init__()
        self.embed, self.final = embed, nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer(groups) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, D_IN)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens)
        for layer in self.layers:
            stream = layer(stream=stream)
        said: Tensor = self.head(self.final(stream))
        return said


def block(n: int, groups: int = GROUPS) -> BlockReading:
    """The right description of a block of `Net`."""
    fused, first, second = Site(f"layers.{n}.attention.qkv"), HEADS * D_HEAD, groups * D_HEAD
    return BlockReading(
        Site(f"layers.{n}", "input", "stream"),
        Site(f"layers.{n}.attention"),
        Site(f"layers.{n}.mlp"),
        AttentionReading(
            HeadView(fused, HEADS, 0, first),
            HeadView(fused, groups, first, first + second),
            HeadView(fused, groups, first + second),
            HeadView(Site(f"layers.{n}.attention.out", "input"), HEADS),
            scale=0.7,
        ),
    )


def reading(**changed: Any) -> Reading:
    """The right description of `Net`, or one that is changed."""
    right = Reading(
        tuple(block(n) for n in range(DEPTH)), Site(f"layers.{DEPTH - 1}"), ("final", "head")
    )
    return replace(right, **changed)


def with_heads(
    n: int, change: Callable[[AttentionReading], AttentionReading], groups: int = GROUPS
) -> Reading:
    """A description that is mistaken about the heads of one block."""
    blocks = [block(m, groups) for m in range(DEPTH)]
    read = blocks[n].heads
    assert read is not None
    blocks[n] = replace(blocks[n], heads=change(read))
    return reading(blocks=tuple(blocks))


def net(embed: nn.Module | None = None, groups: int = GROUPS) -> Net:
    torch.manual_seed(0)
    return Net(embed or nn.Linear(D_IN, WIDTH), groups)


def wrapped(described: Reading, groups: int = GROUPS) -> WrappedSequenceModel:
    return WrappedSequenceModel(net(groups=groups), described, D_IN)


def failures(model: WrappedSequenceModel | WrappedLanguageModel) -> list[Check]:
    return [c for c in audit(model, trial_tokens(model), model.bare) if not c.ok]


def test_right_descriptions_pass() -> None:
    words = WrappedLanguageModel(net(nn.Embedding(D_IN, WIDTH)), reading())
    for model in (wrapped(reading()), words):
        checks = audit(model, trial_tokens(model), model.bare)
        assert len(checks) == 8
        assert [check.name for check in checks if not check.ok] == []
    assert (words.vocabulary, words.layers, words.d_model) == (D_IN, DEPTH, WIDTH)


def test_swapped_queries_and_keys_fail() -> None:
    """With as many keys as queries: nothing but their roles is mistaken."""
    same = wrapped(with_heads(1, lambda read: read, HEADS), HEADS)
    assert failures(same) == []
    swapped = with_heads(1, lambda read: replace(read, q=read.k, k=read.q), HEADS)
    (check,) = failures(wrapped(swapped, HEADS))
    assert (check.name, check.part) == ("rule of queries, keys and values", "heads")
    assert check.reads.endswith("in block 1")


def test_a_stream_one_block_off_fails() -> None:
    blocks = [block(n) for n in range(DEPTH)]
    blocks[1] = replace(blocks[1], stream=blocks[2].stream)
    failed = {check.name: check.reads for check in failures(wrapped(reading(blocks=tuple(blocks))))}
    assert failed["residual sum"].endswith("in block 0")


def test_a_wrong_count_of_heads_fails() -> None:
    def halve(read: AttentionReading) -> AttentionReading:
        roles = {role: getattr(read, role) for role in ("q", "k", "v", "gathered")}
        return replace(read, **{r: replace(v, heads=v.heads // 2) for r, v in roles.items()})

    (check,) = failures(wrapped(with_heads(2, halve)))
    assert (check.name, check.part) == ("rule of queries, keys and values", "heads")
    assert check.reads.endswith("in block 2")
    with pytest.raises(InputError, match=r"layers\.0\.attention\.qkv: shape .* holds no 5 heads"):
        wrapped(with_heads(0, lambda read: replace(read, q=replace(read.q, heads=5))))


def test_a_stream_that_the_skip_connection_passes_by_fails() -> None:
    blocks = [block(n) for n in range(DEPTH)]
    blocks[1] = replace(blocks[1], stream=Site("layers.1.norm", "input"))
    failed = {check.name: check.reads for check in failures(wrapped(reading(blocks=tuple(blocks))))}
    assert failed["streams at the hook sites"].endswith("in block 1")


def test_names_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"Net has no module 'layers\.7'; close: layers"):
        wrapped(reading(after=Site("layers.7")))
    with pytest.raises(InputError, match="no module 'fina'; close: final"):
        wrapped(reading(read_out=("fina", "head")))
    with pytest.raises(InputError, match="layers: called 0 times in a pass"):
        wrapped(reading(after=Site("layers")))
    shared = net()
    shared.layers[1] = shared.layers[0]
    with pytest.raises(InputError, match=r"layers\.0: called 2 times in a pass"):
        WrappedSequenceModel(shared, reading(), D_IN)


def test_copies_share_nothing() -> None:
    model = wrapped(reading())
    tokens = trial_tokens(model)
    before = model(tokens)
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(0.5)
    site = copy.head_sites(0)
    assert site is not None
    with copy.hooks(fwd_hooks=[(site.gathered, lambda value, hook: torch.zeros_like(value))]):
        edited = copy(tokens)
        assert torch.equal(model(tokens), before)
    assert not torch.allclose(edited, copy(tokens))
    assert torch.equal(copy(tokens), copy.bare(tokens))
    assert all(not part._forward_hooks for part in model.module.modules())


def test_heads_are_put_back_where_they_were() -> None:
    tensor = torch.randn(2, 3, 10)
    view = HeadView(Site(""), 2, 4, 10)
    assert torch.equal(view.put(view.of(tensor), tensor), tensor)
    changed = view.put(view.of(tensor) * 0, tensor)
    assert torch.equal(changed[..., :4], tensor[..., :4]) and not changed[..., 4:].any()
    split = torch.randn(2, 4, 3, 5)
    view = HeadView(Site(""), 4)
    assert view.of(split).shape == (2, 3, 4, 5)
    assert torch.equal(view.put(view.of(split), split), split)
    with pytest.raises(InputError, match="holds no 3 heads"):
        HeadView(Site(""), 3).of(split)


def test_rules_of_their_own() -> None:
    """A rule that is right passes; softmax of everything is not what the heads do."""

    def mean(read: AttentionReading) -> AttentionReading:
        return replace(read, rule=lambda heads: heads.values.mean(1, keepdim=True))

    def own(read: AttentionReading) -> AttentionReading:
        return replace(read, rule=read.mix)

    assert failures(wrapped(with_heads(0, own))) == []
    for wrong in (mean, lambda read: replace(read, causal=False)):
        (check,) = failures(wrapped(with_heads(0, wrong)))
        assert check.part == "heads"


def adapter(folder: Path, body: str) -> str:
    file = folder / "mine.py"
    file.write_text(body)
    return f"{file}:build"


def test_loads_by_file_and_function(tmp_path: Path, command: Callable[..., Any]) -> None:
    body = "from test_adapter import net, reading, wrapped\n\n\ndef build(path):\n    {}\n"
    spec = adapter(tmp_path, body.format("return wrapped(reading())"))
    subject = load(tmp_path, adapter=spec)
    assert subject.format == "adapter"
    assert subject.parameters == sum(p.numel() for p in net().parameters())
    assert subject.original is not None
    assert examine(subject).complaint is None
    assert command("doctor", str(tmp_path), "--adapter", spec).code == 0
    asked = ("describe", tmp_path, "--adapter", spec, "--task", "linear")
    assert "tokens of width 10; the model reads 5" in command(*asked).problem
    again = adapter(tmp_path, body.format("return net()"))
    with pytest.raises(InputError, match="made a Net, not a HookedModel"):
        load_adapted(again, tmp_path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def build(path):\n    return {}['a']\n", r"mine\.py:2: KeyError: 'a'"),
        ("def build(path)\n    pass\n", r"mine\.py:1: SyntaxError"),
        ("import nowhere_at_all\n", r"mine\.py:1: ModuleNotFoundError"),
        ("def other(path): ...\n", "has no function 'build'"),
        (
            "from test_adapter import Site, reading, wrapped\n"
            "def build(path):\n    return wrapped(reading(after=Site('layer.2')))\n",
            r"mine\.py:3: Net has no module 'layer\.2'; close: layers\.2",
        ),
    ],
)
def test_errors_are_one_line_with_their_place(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_adapted(adapter(tmp_path, body), tmp_path)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_installed() -> None:
    with pytest.raises(InputError, match=r"nowhere: not FILE\.py:FUNCTION, nor installed"):
        load_adapted("nowhere", Path())
    with pytest.raises(InputError, match=r"no file /none\.py"):
        load_adapted("/none.py:build", Path())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"read_out": lambda module, stream: module.head(stream)}, "streams at the hook sites"),
        ({"mlp": None}, "residual sum"),
        ({"attention": Site("layers.1.mlp")}, "residual sum"),
    ],
)
def test_other_mistakes_fail(changes: dict[str, Any], name: str) -> None:
    if "read_out" not in changes:
        blocks = [block(n) for n in range(DEPTH)]
        blocks[1] = replace(blocks[1], **changes)
        changes = {"blocks": tuple(blocks)}
    failed = {check.name: check.reads for check in failures(wrapped(reading(**changes)))}
    assert "in block" in failed[name]


def test_weights_can_be_permuted() -> None:
    model = wrapped(reading())
    tokens = trial_tokens(model)
    assert not torch.allclose(permuted_twin(model, 0)(tokens), model(tokens))


def test_an_edit_at_the_stream_that_is_resumed_is_kept() -> None:
    model = wrapped(reading())
    site = model.layer_sites()[1]
    _, cache = model.run_with_cache(trial_tokens(model))
    silent = torch.zeros_like(cache[site])
    with model.hooks(fwd_hooks=[(site, lambda value, hook: silent)]):
        edited = model.resume(cache[site], 1)
    assert torch.equal(edited, model.resume(silent, 1))
    assert not torch.allclose(edited, model.resume(cache[site], 1))


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A module that the example reads, and its weights."""
    known = pytest.importorskip("x_transformers", reason="x-transformers is not installed")
    torch.manual_seed(0)
    layers = known.Decoder(dim=32, depth=2, heads=2, attn_dim_head=16)
    made = known.ContinuousTransformerWrapper(
        dim_in=10, dim_out=10, max_seq_len=64, attn_layers=layers
    )
    torch.save(made.state_dict(), tmp_path / "x.pt")
    return made.eval(), tmp_path / "x.pt"


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 30


def test_the_example_reads_x_transformers(
    command: Callable[..., Any], theirs: tuple[nn.Module, Path]
) -> None:
    made, file = theirs
    subject = load(file, adapter=f"{EXAMPLE}:build")
    assert examine(subject).complaint is None
    tokens = trial_tokens(subject.model)
    assert torch.allclose(subject.model(tokens), made(tokens), atol=1e-6)
    shown = command("describe", file, "--adapter", f"{EXAMPLE}:build", "--task", "linear", "--json")
    assert "blocks.1.attn.hook_z" in shown.out
    assert "attn_layers.layers.0.1.to_q.weight" in shown.out
    with pytest.raises(InputError, match="65 tokens; the model reads at most 64"):
        subject.model(torch.zeros(1, 65, 10))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("range(3)", "(1, 0, 2)", "rule of queries, keys and values"),
        ("BlockReading(stream[n]", "BlockReading(stream[n + 1]", "residual sum"),
        ("role), heads)", "role), heads + 1)", "attend: shape"),
    ],
)
def test_mistakes_in_the_example_are_caught(
    command: Callable[..., Any],
    theirs: tuple[nn.Module, Path],
    tmp_path: Path,
    right: str,
    wrong: str,
    said: str,
) -> None:
    text = EXAMPLE.read_text()
    assert right in text
    spec = adapter(tmp_path, text.replace(right, wrong))
    outcome = command("doctor", theirs[1], "--adapter", spec)
    assert outcome.code == 2 and said in outcome.err


@pytest.mark.slow
def test_the_example_is_analysed(
    command: Callable[..., Any], theirs: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    asked = ("--adapter", f"{EXAMPLE}:build", "--task", "linear", "--sequences", 256)
    some = ("--only", "behaviour,linear_probing,ablation")
    outcome = command("analyze", theirs[1], *asked, *some, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "solves" not in outcome.out and "gradient" not in outcome.out
