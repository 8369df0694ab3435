"""Formats: what is read is what was written, and what does not fit is refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from probe import presets, registry
from probe.checkpoints.base import Subject, load
from probe.checkpoints.native import write_native
from probe.checkpoints.safe_pickle import read_pickle
from probe.errors import InputError
from probe.files import write_atomically
from probe.models.transformer import Block, SequenceTransformer
from probe.presets.base import find_preset
from probe.sampling import generator_for, normal
from probe.tasks.base import find_task

Model = Callable[..., SequenceTransformer]
LINEAR_1L = "von-oswald-2023/linear-1l"
MESA_1L = "von-oswald-2023/mesa-1l"
HYBRID = "von-oswald-2023/hybrid-mesa"
BLOCK = "tf_block/blocklist_0/self_attn"


def refusal(path: Path | str, preset: str | None = None) -> str:
    """The one line with which a load is refused."""
    with pytest.raises(InputError) as caught:
        load(path, preset)
    message = str(caught.value)
    assert message
    assert len(message.splitlines()) == 1
    return message


def linear_leaves(layers: int = 1, heads: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Random leaves that fit a model on constructed tokens."""
    draw = np.random.default_rng(seed)
    leaves = {}
    for layer in range(layers):
        place = f"tf_block/blocklist_{layer}/self_attn"
        for role in "qkv":
            leaves[f"{place}/{role}_proj/kernel"] = draw.standard_normal((40, 20 * heads)) / 10
        leaves[f"{place}/o_proj/kernel"] = draw.standard_normal((20 * heads, 40)) / 10
    return {name: value.astype(np.float32) for name, value in leaves.items()}


def mesa_leaves() -> dict[str, np.ndarray]:
    lambdas = np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    return {**linear_leaves(heads=4), f"{BLOCK}/lambdas": lambdas}


def write(path: Path, leaves: dict[str, np.ndarray], jax: bool = False) -> Path:
    return fabricated.write_tree(path, fabricated.nested(leaves), jax)


# Native folders


@pytest.mark.parametrize("kind", ["linear", "mesa", "softmax"])
def test_native_round_trip_is_bit_exact(kind: str, tiny_model: Model, tmp_path: Path) -> None:
    model = tiny_model(kind)
    write_native(model, "linear", tmp_path / "deep" / "m")
    subject = load(tmp_path / "deep" / "m")
    assert subject.format == "native"
    assert subject.task == "linear"
    assert subject.name == "m"
    assert subject.model.config == model.config
    assert not subject.model.training
    state = model.state_dict()
    assert subject.model.state_dict().keys() == state.keys()
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    x = normal(generator_for(0), 2, 9, 3).float()
    assert torch.equal(subject.model(x), model(x))
    assert subject.parameters == sum(p.numel() for p in model.parameters())
    assert sorted(p.name for p in (tmp_path / "deep" / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_hash_follows_the_weights_and_nothing_else(tiny_model: Model, tmp_path: Path) -> None:
    def written(name: str, seed: int, task: str | None) -> Subject:
        write_native(tiny_model("linear", seed), task, tmp_path / name)
        return load(tmp_path / name)

    one = written("a", 0, "linear")
    assert one.sha256 == written("b", 0, None).sha256
    other = written("c", 1, "linear")
    assert one.sha256 != other.sha256
    assert all(x.sha256 != y.sha256 for x, y in zip(one.tensors, other.tensors, strict=True))
    nudged = tiny_model("linear", 0)
    nudged.W_E[0, 0] = torch.nextafter(nudged.W_E[0, 0], torch.tensor(9.0))
    write_native(nudged, "linear", tmp_path / "d")
    changed = [
        x.name for x, y in zip(one.tensors, load(tmp_path / "d").tensors, strict=True) if x != y
    ]
    assert changed == ["W_E"]


def test_a_native_folder_needs_no_preset(tiny_model: Model, tmp_path: Path) -> None:
    write_native(tiny_model("linear"), None, tmp_path)
    assert load(tmp_path).task is None
    assert "leave out --preset" in refusal(tmp_path, LINEAR_1L)


def test_native_faults_are_all_named(tiny_model: Model, tmp_path: Path) -> None:
    write_native(tiny_model("linear"), None, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["W_X"] = tensors.pop("W_E")
    tensors["W_U"] = tensors["W_U"].T.contiguous()
    tensors["blocks.0.attn.W_Q"][0, 0, 0] = float("nan")
    tensors["blocks.1.attn.W_Q"] = tensors["blocks.1.attn.W_Q"].to(torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    for part in (
        "missing W_E",
        "unexpected W_X",
        "W_U has shape [3, 6], expected [6, 3]",
        "blocks.0.attn.W_Q holds NaN or infinity",
        "blocks.1.attn.W_Q holds torch.int32",
    ):
        assert part in message


def test_what_overflows_float32_is_not_finite(tiny_model: Model, tmp_path: Path) -> None:
    write_native(tiny_model("linear"), None, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["W_E"] = tensors["W_E"].double() * 1e300
    save_file(tensors, tmp_path / "model.safetensors")
    assert "W_E holds NaN or infinity" in refusal(tmp_path)


@pytest.mark.parametrize("log_ridge", [-500.0, 500.0])
def test_a_mesa_head_that_cannot_be_solved_is_refused(
    log_ridge: float, tiny_model: Model, tmp_path: Path
) -> None:
    model = tiny_model("mesa")
    for block in model.blocks:
        block.attn.mixer.log_ridge.fill_(log_ridge)
        block.attn.W_K.fill_(0.0)
    write_native(model, None, tmp_path)
    assert re.search("not positive definite|overflows", refusal(tmp_path))


def test_huge_weights_are_refused(tiny_model: Model, tmp_path: Path) -> None:
    """Finite in float32, yet no stream survives them."""
    model = tiny_model("linear")
    for parameter in model.parameters():
        parameter.fill_(3e38)
    write_native(model, None, tmp_path)
    assert "the stream overflows in block 0" in refusal(tmp_path)


def test_a_stream_that_does_not_add_up_is_refused(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is alive: a block that adds more than its parts fails it."""
    write_native(tiny_model("linear"), None, tmp_path)
    load(tmp_path)
    monkeypatch.setattr(
        Block,
        "forward",
        lambda self, x: self.hook_resid_post(
            1.01 * self.hook_resid_pre(x)
            + self.hook_attn_out(self.attn(x))
            + (0 if self.mlp is None else self.hook_mlp_out(self.mlp(x)))
        ),
    )
    assert "the stream does not add up in block 0" in refusal(tmp_path)


def test_atomic_writes_leave_nothing_behind(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "file"
    write_atomically(target, "first")
    assert target.read_text() == "first"

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("probe.files.os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(target, b"second")
    assert target.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    write_atomically(target, b"second")
    assert target.read_bytes() == b"second"


# Pickles


arrays = st.tuples(
    st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u1", "b1"]),
    st.sampled_from(["<", ">"]),
    st.lists(st.integers(0, 4), max_size=4),
)


@given(arrays, st.booleans())
def test_fabricated_arrays_are_read_exactly(
    tmp_path: Path, array: tuple[str, str, list[int]], jax: bool
) -> None:
    code, order, shape = array
    draw = np.random.default_rng(0).integers(0, 2 if code == "b1" else 100, shape)
    values = np.asarray(draw).astype(order + code)
    path = tmp_path / "x.pkl"
    path.write_bytes(fabricated.whole(fabricated.tree_bytes({"a": values}, jax)))
    got = read_pickle(path)["a"]
    assert got.shape == values.shape
    assert got.dtype.kind == values.dtype.kind
    np.testing.assert_array_equal(got, values)


@given(st.integers(0, 5))
def test_pickles_of_numpy_itself_are_read(tmp_path: Path, protocol: int) -> None:
    """Nested containers and arrays in both orders, as numpy writes them; protocols 3 and up."""
    matrix = np.arange(12.0).reshape(3, 4)
    content = {
        "losses": [[1.5, 2, True, None], (3, "x")],
        "c": matrix,
        "f": np.asfortranarray(matrix),
        "e": np.empty((0, 3), np.float32),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(fabricated.python_pickle(content, protocol))
    if protocol < 3:  # their bytes are a global's work
        with pytest.raises(InputError, match=r"_codecs\.encode"):
            read_pickle(path)
        return
    got = read_pickle(path)
    assert got["losses"] == [[1.5, 2, True, None], [3, "x"]]
    for name in "cfe":
        np.testing.assert_array_equal(got[name], content[name])


@pytest.mark.parametrize("jax", [False, True])
def test_linear_tree_is_read_head_by_head(jax: bool, tmp_path: Path) -> None:
    """Column h * d_head + d of a kernel is channel d of head h."""
    leaves = linear_leaves()
    subject = load(write(tmp_path / "lin.pkl", leaves, jax), LINEAR_1L)
    assert (subject.name, subject.format, subject.task) == (
        "lin",
        "flax-pickle",
        "linear-constructed",
    )
    assert subject.parameters == sum(value.size for value in leaves.values())
    attn = subject.model.blocks[0].attn
    for role in "qkv":
        kernel = leaves[f"{BLOCK}/{role}_proj/kernel"]
        for head in range(2):
            got = getattr(attn, f"W_{role.upper()}")[head].numpy()
            np.testing.assert_array_equal(got, kernel[:, head * 20 : head * 20 + 20])
    out = leaves[f"{BLOCK}/o_proj/kernel"]
    np.testing.assert_array_equal(attn.W_O[1].numpy(), out[20:])
    assert {row.source for row in subject.tensors} == set(leaves)


def test_linear_tree_computes_what_the_file_means(tmp_path: Path) -> None:
    """The published forward pass, written out in numpy from the leaves alone."""
    leaves = linear_leaves()
    model = load(write(tmp_path / "lin.pkl", leaves), LINEAR_1L).model
    x = normal(generator_for(0), 2, 6, 40).float()
    stream = x.numpy().astype(np.float64)
    stream[..., :20] = 0  # one layer: the first 20 channels are masked
    q, k, v = (stream @ leaves[f"{BLOCK}/{role}_proj/kernel"] for role in "qkv")
    mixed = np.zeros_like(v)
    for head in (slice(0, 20), slice(20, 40)):
        scores = np.tril(q[..., head] @ k[..., head].swapaxes(1, 2))
        mixed[..., head] = scores @ v[..., head]
    want = np.clip(stream + mixed @ leaves[f"{BLOCK}/o_proj/kernel"], -4, 4)[..., :10]
    np.testing.assert_allclose(model(x), want, atol=1e-4)


def test_mesa_tree_computes_what_the_file_means(tmp_path: Path) -> None:
    """Keys are v_proj, values k_proj, lambdas inverse, and heads join with the head fastest."""
    leaves = mesa_leaves()
    model = load(write(tmp_path / "mesa.pkl", leaves), MESA_1L).model
    x = normal(generator_for(0), 2, 6, 40).float()
    stream = x.numpy().astype(np.float64)
    stream[..., :20] = 0

    def forward(swap: bool, inverse: bool, fastest: bool) -> np.ndarray:
        names = {"x": "v", "y": "k"} if swap else {"x": "k", "y": "v"}
        part = {
            role: (stream @ leaves[f"{BLOCK}/{name}_proj/kernel"]).reshape(2, 6, 4, 20)
            for role, name in {**names, "q": "q"}.items()
        }
        heads = np.zeros((2, 6, 4, 20))
        for b, t, h in np.ndindex(2, 6, 4):
            keys, values = (part[r][b, : t + 1, h] for r in "xy")
            lam = leaves[f"{BLOCK}/lambdas"][h]
            ridge = 1 / lam if inverse else lam
            gram = keys.T @ keys + ridge * np.eye(20)
            heads[b, t, h] = values.T @ (keys @ np.linalg.solve(gram, part["q"][b, t, h]))
        joined = heads.swapaxes(2, 3) if fastest else heads
        kernel = leaves[f"{BLOCK}/o_proj/kernel"]
        return np.clip(stream + joined.reshape(2, 6, 80) @ kernel, -4, 4)[..., :10]

    got = model(x).numpy()
    np.testing.assert_allclose(got, forward(True, True, True), atol=1e-4)
    for wrong in ((False, True, True), (True, False, True), (True, True, False)):
        assert np.abs(got - forward(*wrong)).max() > 0.01  # controls


def hybrid_leaves() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    shapes = {f"hybrid_block/self_attn/{r}_proj/kernel": (80, 80) for r in "qk"}
    shapes["hybrid_block/self_attn/v_proj/kernel"] = (40, 80)
    shapes["hybrid_block/self_attn/o_proj/kernel"] = (80, 40)
    shapes |= {"input_layer/kernel": (10, 40), "output_layer/kernel": (40, 10)}
    leaves = {name: draw.standard_normal(s).astype(np.float32) / 10 for name, s in shapes.items()}
    return {**leaves, **mesa_leaves()}


def test_hybrid_block_comes_first(tmp_path: Path) -> None:
    leaves = hybrid_leaves()
    subject = load(write(tmp_path / "x.pkl", leaves), HYBRID)
    sources = {row.name: row.source for row in subject.tensors}
    assert sources["blocks.0.attn.W_V"] == "hybrid_block/self_attn/v_proj/kernel"
    assert sources["blocks.1.attn.W_V"] == f"{BLOCK}/k_proj/kernel"
    assert sources["W_E"] == "input_layer/kernel"
    np.testing.assert_array_equal(subject.model.W_U, leaves["output_layer/kernel"])


def test_conversion_keeps_the_hash(tmp_path: Path) -> None:
    for leaves, preset in ((mesa_leaves(), MESA_1L), (hybrid_leaves(), HYBRID)):
        subject = load(write(tmp_path / "x.pkl", leaves), preset)
        write_native(subject.model, subject.task, tmp_path / "native")
        again = load(tmp_path / "native")
        assert again.sha256 == subject.sha256
        assert again.task == subject.task
        assert again.model.config == subject.model.config


def test_several_trees_in_a_file(tmp_path: Path) -> None:
    one, two = (fabricated.nested(linear_leaves(seed=seed)) for seed in (0, 1))
    path = tmp_path / "many.pkl"
    path.write_bytes(fabricated.whole(fabricated.tree_bytes({"state_a": one, "state_b": two})))
    a, b = (load(f"{path}#{name}", LINEAR_1L) for name in ("state_a", "state_b"))
    assert a.sha256 != b.sha256
    assert a.sha256 == load(write(tmp_path / "a.pkl", linear_leaves(seed=0)), LINEAR_1L).sha256
    assert b.name == "many.pkl#state_b"
    for wrong in (path, f"{path}#state_c", f"{path}#"):
        assert "state_a, state_b" in refusal(wrong, LINEAR_1L)


def changed(**edits: Any) -> dict[str, Any]:
    """The leaves of a linear model with some replaced, or dropped where None."""
    leaves: dict[str, Any] = {**linear_leaves(), **edits}
    return {name: value for name, value in leaves.items() if value is not None}


Q, OUT = f"{BLOCK}/q_proj/kernel", f"{BLOCK}/o_proj/kernel"
FLAWED = {
    "missing": (changed(**{Q: None}), ["missing blocks.0.attn.W_Q"]),
    "unexpected": (changed(extra=np.ones(3, np.float32)), ["unexpected extra"]),
    "beyond the last block": (
        changed(**{"tf_block/blocklist_7/self_attn/q_proj/kernel": np.ones((40, 40), np.float32)}),
        ["unexpected tf_block/blocklist_7/self_attn/q_proj/kernel"],
    ),
    "wide": (changed(**{Q: np.ones((40, 42), np.float32)}), ["shape [2, 40, 21]", "[2, 40, 20]"]),
    "odd": (changed(**{Q: np.ones((40, 41), np.float32)}), ["missing blocks.0.attn.W_Q", Q]),
    "vector": (changed(**{Q: np.ones(40, np.float32)}), ["missing blocks.0.attn.W_Q", Q]),
    "scalar": (changed(**{Q: np.float32(1).reshape(())}), ["missing blocks.0.attn.W_Q", Q]),
    "empty": (changed(**{Q: np.ones((40, 0), np.float32)}), ["missing blocks.0.attn.W_Q", Q]),
    "nan": (changed(**{Q: np.full((40, 40), np.nan, np.float32)}), ["W_Q holds NaN"]),
    "infinite": (changed(**{OUT: np.full((40, 40), np.inf, np.float32)}), ["W_O holds NaN"]),
    "overflowing": (changed(**{OUT: np.full((40, 40), 1e300)}), ["W_O holds NaN"]),
    "whole numbers": (changed(**{Q: np.ones((40, 40), np.int32)}), [Q, "no array of floating"]),
    "lambdas without mesa": (
        changed(**{f"{BLOCK}/lambdas": np.ones(4, np.float32)}),
        [f"unexpected {BLOCK}/lambdas"],
    ),
    "two of one name": (
        changed(**{"tf_block/blocklist_0/other/q_proj/kernel": np.ones((40, 40), np.float32)}),
        ["are the same tensor blocks.0.attn.W_Q"],
    ),
    "digits that are no number": (
        changed(**{"tf_block/blocklist_²/self_attn/q_proj/kernel": np.ones((2, 2), np.float32)}),
        ["unexpected tf_block/blocklist_²"],
    ),
    "a leading zero": (
        changed(**{"tf_block/blocklist_00/self_attn/q_proj/kernel": np.ones((40, 40), np.float32)}),
        ["unexpected tf_block/blocklist_00"],
    ),
    "two faults at once": (
        changed(**{Q: None, OUT: np.full((40, 40), np.nan, np.float32), "extra": np.ones(3)}),
        ["missing blocks.0.attn.W_Q", "W_O holds NaN", "unexpected extra"],
    ),
    "more faults than fit": (
        changed(**{f"extra{i}": np.ones(1, np.float32) for i in range(9)}),
        ["unexpected extra0", "and 3 more"],
    ),
}


@pytest.mark.parametrize("flaw", FLAWED)
def test_flawed_trees_are_refused_by_name(flaw: str, tmp_path: Path) -> None:
    leaves, expected = FLAWED[flaw]
    message = refusal(write(tmp_path / "x.pkl", leaves), LINEAR_1L)
    for part in expected:
        assert part in message


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_lambdas_are_refused(value: float, tmp_path: Path) -> None:
    leaves = mesa_leaves()
    leaves[f"{BLOCK}/lambdas"][2] = value
    message = refusal(write(tmp_path / "x.pkl", leaves), MESA_1L)
    assert "blocks.0.attn.mixer.log_ridge holds NaN or infinity" in message


def test_wrong_presets_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pkl", linear_leaves())
    assert "give --preset NAME" in refusal(path)
    assert "unknown preset 'nobody'" in refusal(path, "nobody")
    fitting = {"linear-1l", "contracting-linear-1l", "fixed-teacher-linear-1l"}
    for name in registry.discover(presets):
        if name.removeprefix("von-oswald-2023/") in fitting:
            assert load(path, name).task == find_preset(name).task
        else:
            assert "missing" in refusal(path, name) or "shape" in refusal(path, name)


def test_every_preset_names_a_task_of_its_widths() -> None:
    for name in registry.discover(presets):
        preset = find_preset(name)
        task = find_task(preset.task)
        assert preset.name == name
        assert (task.width_in, task.width_out) == (preset.config.d_in, preset.config.d_out)
        with torch.device("meta"):
            SequenceTransformer(preset.config)


def test_these_presets_exist() -> None:
    constructed = [*(f"linear-{n}l" for n in (1, 2, 4, 6)), "mesa-1l"]
    want = {f"{p}{m}" for p in ("", "contracting-", "fixed-teacher-") for m in constructed}
    want |= {"softmax-3l", "softmax-7l", "hybrid-mesa", "linear-mesa"}
    want |= {
        f"{p}-{m}" for p in ("partial", "nonlinear", "icl") for m in ("softmax-7l", "hybrid-mesa")
    }
    assert {n.removeprefix("von-oswald-2023/") for n in registry.discover(presets)} == want


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "nothing.pkl", LINEAR_1L)
    (tmp_path / "x.txt").write_text("hello")
    assert "unknown checkpoint format; known: " in refusal(tmp_path / "x.txt")
    (tmp_path / "folder.pkl").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.pkl", LINEAR_1L)
    assert "holds no config.json" in refusal(tmp_path)


def test_losses_are_no_model(tmp_path: Path) -> None:
    for content in ([[1.0, 2.0]], 3, None, "x", {"params": 4}, {"params": []}, {}, {"a": {}}):
        (tmp_path / "x.pkl").write_bytes(fabricated.python_pickle(content))
        assert "no parameter tree" in refusal(tmp_path / "x.pkl", LINEAR_1L)
    (tmp_path / "x.pkl").write_bytes(fabricated.python_pickle({"params": {}}))
    assert "missing blocks.0" in refusal(tmp_path / "x.pkl", LINEAR_1L)
    (tmp_path / "x.pkl").write_bytes(fabricated.python_pickle({"params": {"a": [1.0]}}))
    assert "a is no array" in refusal(tmp_path / "x.pkl", LINEAR_1L)


def test_config_of_another_version(tiny_model: Model, tmp_path: Path) -> None:
    write_native(tiny_model("linear"), None, tmp_path)
    config = tmp_path / "config.json"
    plain = json.loads(config.read_text())
    for version in (2, 0, "1", True, None, [1]):
        config.write_text(json.dumps({**plain, "version": version}))
        assert "this program reads 1" in refusal(tmp_path)
    shutil.rmtree(tmp_path)
