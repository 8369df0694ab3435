"""Capture: what the hooks saw is what the model did, for any batch size."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.capture import capture, capture_output, predictor_only
from probe.models.attention import KINDS
from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for, normal

Model = Callable[..., SequenceTransformer]
each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def tokens(count: int) -> torch.Tensor:
    return normal(generator_for(count), count, 7, 3).float()


@each_kind
def test_capture_is_what_the_model_did(kind: str, tiny_model: Model) -> None:
    model, x = tiny_model(kind), tokens(5)
    seen = capture(model, x, batch_size=2)
    output, cache = model.run_with_cache(x)
    assert torch.allclose(seen.output, output, atol=1e-6)
    assert seen.layers.shape == (3, 5, 7, 6)
    assert seen.updates.shape == (2, 5, 7, 6)
    for index, site in enumerate(model.layer_sites()):
        assert torch.allclose(seen.layers[index], cache[site], atol=1e-6)
        assert torch.allclose(seen.readouts[index], model.read_out(cache[site]), atol=1e-5)
    for layer in range(2):
        assert torch.allclose(
            seen.updates[layer], cache[f"blocks.{layer}.hook_attn_out"], atol=1e-6
        )
    assert torch.allclose(seen.readouts[-1], output, atol=1e-5)
    assert not torch.allclose(seen.layers[0], seen.layers[1], atol=0.01)  # control


@each_kind
def test_updates_move_the_stream(kind: str, tiny_model: Model) -> None:
    """The last block has neither MLP nor clip: its update is the difference of the stream."""
    seen = capture(tiny_model(kind), tokens(4), batch_size=4)
    assert torch.allclose(seen.layers[2] - seen.layers[1], seen.updates[1], atol=1e-5)
    assert not torch.allclose(seen.layers[1] - seen.layers[0], seen.updates[0], atol=0.01)


@given(count=st.integers(1, 7), batch_size=st.integers(1, 9))
def test_batch_size_changes_nothing(tiny_model: Model, count: int, batch_size: int) -> None:
    model, x = tiny_model("softmax"), tokens(count)
    one, other = capture(model, x, batch_size), capture(model, x, count)
    for name in ("output", "layers", "updates", "readouts"):
        assert getattr(one, name).shape == getattr(other, name).shape
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    shuffled = capture(model, x.flip(0), batch_size)
    assert torch.allclose(shuffled.layers.flip(1), one.layers, atol=1e-6)


@each_kind
def test_no_hook_stays_behind(kind: str, tiny_model: Model) -> None:
    model, x = tiny_model(kind), tokens(3)
    before = model(x)
    capture(model, x, batch_size=2)
    assert all(not hook.fwd_hooks for hook in model.hook_dict.values())
    assert torch.equal(model(x), before)


def test_no_hook_stays_behind_when_the_model_fails(tiny_model: Model) -> None:
    model, x = tiny_model("mesa"), tokens(3)
    model.blocks[1].attn.mixer.log_ridge.fill_(float("nan"))
    with pytest.raises(torch.linalg.LinAlgError):
        capture(model, x, batch_size=2)
    assert all(not hook.fwd_hooks for hook in model.hook_dict.values())


def test_capture_keeps_no_gradient(tiny_model: Model) -> None:
    model, x = tiny_model("linear").requires_grad_(True), tokens(2)
    assert model(x).requires_grad
    seen = capture(model, x, batch_size=2)
    assert not any(getattr(seen, n).requires_grad for n in ("output", "layers", "updates"))


def test_a_predictor_without_an_inside() -> None:
    output = normal(generator_for(0), 4, 7, 3)
    seen = predictor_only(output)
    assert seen.output is output
    assert len(seen.layers) == len(seen.updates) == len(seen.readouts) == 0


def test_misshapen_tokens_are_refused(tiny_model: Model) -> None:
    with pytest.raises(TypeError, match="tokens"):
        capture(tiny_model("linear"), torch.zeros(7, 3), batch_size=2)


def test_predictions_alone_are_the_same_bits(tiny_model: Model) -> None:
    model, x = tiny_model("softmax"), tokens(40)
    alone = capture_output(model, x, 16)
    assert torch.equal(alone.output, capture(model, x, 16).output)
    assert len(alone.layers) == 0 and alone.runner is None


def test_a_runner_edits_and_resumes(tiny_model: Model) -> None:
    model = tiny_model("linear")
    x = tokens(5)
    seen = capture(model, x, 256)
    runner = seen.runner
    assert runner is not None
    assert torch.allclose(runner.run(x), seen.output)
    assert torch.allclose(runner.resume(seen.layers[1], 1), seen.output, atol=1e-6)
    site = "blocks.1.hook_attn_out"
    without = runner.run(x, {site: torch.zeros_like})
    assert torch.allclose(without, runner.run(x, {site: lambda x: 0 * x}))
    assert (without - seen.output).abs().max() > 1e-4
    assert torch.allclose(runner.run(x), seen.output), "edits must not stay"


def test_edits_run_from_the_stream_where_all_of_it_was_kept(tiny_model: Model) -> None:
    model, x = tiny_model("softmax"), tokens(5)
    seen, edits = capture(model, x, 256), {"blocks.1.hook_attn_out": torch.zeros_like}
    assert seen.runner is not None
    want = seen.runner.run(x, edits)
    assert torch.allclose(seen.edited(x, 1, edits), want, atol=1e-6)
    assert torch.allclose(seen.until(4).edited(x[:, :4], 1, edits), want[:, :4], atol=1e-6)
    asked = seen.at(slice(1, None, 2))
    assert torch.equal(asked.edited(x, 1, edits), want[:, 1::2])
    assert not torch.allclose(seen.output, want, atol=1e-3)  # Control: without the edit.
    with pytest.raises(TypeError, match="inside"):
        predictor_only(seen.output).edited(x, 1, edits)
