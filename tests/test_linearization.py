"""Linear attention is found where it is, and softmax attention that is none is left standing."""

from dataclasses import replace

import pytest
import torch

from analyses.linearization import Linearization, conclude
from probe.checkpoints.base import load
from probe.linearization.distill import Pairs, Round, distil, searched, share_left
from probe.linearization.run import Effort, Linearised, linearise, passing
from probe.linearization.surgery import with_layers, without_layers
from probe.models.attention import (
    Attention,
    AveragedAttention,
    LinearAttention,
    SoftmaxAttention,
)
from probe.plan import Plan
from probe.planted.frame import Frame, standard_clock
from probe.planted.kernel_smoother import plant_smoother
from probe.planted.scales import scales_of
from probe.planted.slots import SHUT, Head, Layer, gated
from probe.sampling import generator_for, normal
from probe.tasks.base import find_task

CONSTRUCTED, RAW = "linear-narrow-constructed", "linear-narrow"
QUICK = Effort(Round(32, 10), Round(128, 15), 5)
EPSILON, SINK = 0.02, 9.2


def attention(kind, positions: int = 4, seed: int = 0) -> Attention:
    """A random layer."""
    layer = Attention(kind, 6, positions, ()).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(0.4 * normal(generator_for(seed), *parameter.shape))
    return layer


def stream(count: int, seed: int) -> torch.Tensor:
    """Correlated tokens of which one direction is never taken."""
    tokens = normal(generator_for(seed), count, 9, 5) @ normal(generator_for(1), 5, 6)
    return tokens.float()


@pytest.mark.parametrize("kind", [LinearAttention, AveragedAttention])
def test_a_layer_of_linear_attention_is_found_from_a_perturbed_start(kind) -> None:
    truth, begun, fresh = attention(kind(2, 3)), attention(kind(2, 3)), stream(64, 3)
    for parameter in begun.parameters():
        parameter.add_(0.1 * normal(generator_for(7), *parameter.shape))
    pairs = Pairs(stream(128, 2), truth(stream(128, 2)))
    found, left = searched(begun, kind(2, 3), pairs, 100)
    assert share_left(found, Pairs(fresh, truth(fresh))) < 1e-3
    assert left[-1] < 1e-3 < left[0]


def test_what_another_sequence_adds_is_not_explained() -> None:
    kind = LinearAttention(2, 3)
    truth, x = attention(kind), stream(256, 2)
    mixed = Pairs(x, truth(x).roll(1, 0))
    found, _ = searched(truth, kind, mixed.part(0, 128), 30)
    assert share_left(found, mixed.part(128, 256)) > 0.9


def test_the_output_map_is_the_regression_and_the_search_never_ends_worse() -> None:
    softmax, kind = attention(SoftmaxAttention(2, 3)), AveragedAttention(2, 3)
    pairs = Pairs(stream(128, 2), softmax(stream(128, 2)))
    found = distil(softmax, pairs, kind, (Round(32, 10), Round(128, 20)), generator_for(0))
    gathered = found.layer.gathered(pairs.stream).flatten(2).flatten(0, 1).double()
    added = pairs.added.flatten(0, 1).double()
    solved = torch.linalg.lstsq(gathered, added).solution
    least = float((added - gathered @ solved).square().sum() / added.square().sum())
    assert share_left(found.layer, pairs) == pytest.approx(least, rel=1e-4)
    assert least <= min(found.left) * (1 + 1e-4) and set(found.tried) == {
        "own maps",
        "random maps",
    }


def test_only_the_named_layers_change(tiny_model) -> None:
    model, tokens = tiny_model("softmax"), stream(4, 5)[..., :3]
    layer = Attention(LinearAttention(2, 4), 6, 0, ()).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(normal(generator_for(0), *parameter.shape))
    new = with_layers(model, LinearAttention, {1: layer}, 100.0)
    before, after = passing(model, tokens, 1), passing(new, tokens, 1)
    assert torch.equal(before.pairs.stream, after.pairs.stream)
    assert torch.allclose(after.pairs.added, layer(before.pairs.stream))
    assert isinstance(model.config.blocks[1].attention, SoftmaxAttention)
    assert not passing(without_layers(model, (0,)), tokens, 0).pairs.added.any()


def descent_by_softmax(steps: int):
    """Gradient steps by softmax heads of tiny scores.

    A sink at position 0 takes nearly all of the weight, so that the others see no normalisation;
    heads of opposite sign cancel what does not depend on the scores.
    """
    task = find_task(CONSTRUCTED)
    eta = 1.0 / scales_of(task, generator_for(0)).top
    frame = Frame.of(task, extras={"value": task.width_out}, clock=standard_clock(task.length))
    read, write = frame.slots.read, frame.slots.write
    scale = eta * float(torch.tensor(SINK).exp()) / (2 * EPSILON)

    def pair(value: str, into: str, size: float) -> tuple[Head, Head]:
        key = torch.cat([read("prev"), read("first")], 1)
        query = [torch.cat([read("r", s * EPSILON), read("one", SINK)], 1) for s in (1, -1)]
        plus, minus = (
            Head(q, key, read(value), write(into, s * size))
            for q, s in zip(query, (1, -1), strict=True)
        )
        return plus, minus

    values = gated(read("x"), read("first", -SHUT), write("value"))
    heads = (*pair("value", "y", scale), *pair("prev", "r", -scale))
    layers = (Layer(hidden=(values,)), *(Layer(SoftmaxAttention, heads) for _ in range(steps)))
    return frame.build(layers), task


@pytest.fixture(scope="module")
def descent() -> Linearised:
    model, task = descent_by_softmax(2)
    return linearise(model, Plan(task, 512, 0), effort=QUICK)


@pytest.fixture(scope="module")
def smoother() -> Linearised:
    planted = plant_smoother(find_task(RAW), "smoother", 8.0, "kernel_smoother")
    return linearise(planted.model, Plan(planted.task, 512, 0), effort=QUICK)


def table(found: Linearised, task: str):
    tables = {t.name: t.frame for t in conclude(found, find_task(task)).tables}
    return tables["linearization"].set_index(["layer", "replacement"])


def test_softmax_of_tiny_scores_reads_linear(descent) -> None:
    rows = table(descent, CONSTRUCTED)
    assert descent.layers == descent.joint == (1, 2)
    for layer in (2, 3):
        assert rows.loc[(layer, "linear"), "r2"] > 0.99
        assert rows.loc[(layer, "linear"), "loss_ratio"] == pytest.approx(1, abs=0.02)
        assert rows.loc[(layer, "linear"), "reads"] == "linear attention"
        assert rows.loc[(layer, "map"), "loss_ratio"] > 1.03
    finding = conclude(descent, find_task(CONSTRUCTED))
    assert finding.metrics["together_linear_ratio"].value < 1.05
    assert finding.bearing.startswith("Its softmax layers 2 and 3 act as linear attention (each")


def test_copying_and_smoothing_are_not_linear(smoother) -> None:
    rows, finding = table(smoother, RAW), conclude(smoother, find_task(RAW))
    for layer in (1, 2):
        assert rows.loc[(layer, "linear"), "r2"] < 0.8
        assert rows.loc[(layer, "linear"), "loss_ratio"] > 1.15
        assert rows.loc[(layer, "linear"), "reads"] == "not linear"
    assert finding.outcome == "inconclusive" and finding.bearing == ""


def test_an_idle_layer_is_no_linear_layer(descent) -> None:
    """Were a layer not needed, its replacement would cost nothing either."""
    sums = dict(descent.replaced.sums)
    sums["loss"] = sums["loss"] * 0 + descent.losses["subject"][:, None, None]
    idle = replace(descent, replaced=replace(descent.replaced, sums=sums))
    finding = conclude(idle, find_task(CONSTRUCTED))
    assert set(finding.tables[0].frame["reads"]) == {"idle"}
    assert finding.outcome == "inconclusive" and finding.bearing == ""


def test_a_replacement_must_save_half_of_what_the_layer_is_worth(descent) -> None:
    """A layer of which little depends is not replaced by whatever costs less than it."""
    sums, clean = dict(descent.replaced.sums), descent.losses["subject"][:, None]
    ways = torch.tensor([1.13, 1.05, 1.2, 1.2, 1.2], dtype=torch.float64)
    for worth, reading in ((1.2, "averaged linear attention"), (1.08, "not linear")):
        ways[-1] = worth
        sums["loss"] = (clean * ways)[:, None].expand(-1, 2, -1)
        changed = replace(descent, replaced=replace(descent.replaced, sums=sums))
        assert set(conclude(changed, find_task(CONSTRUCTED)).tables[0].frame["reads"]) == {reading}


def test_bits_do_not_depend_on_workers_or_batch(tiny_model, small_task) -> None:
    effort = Effort(Round(16, 3), Round(32, 3), 2)
    plans = (Plan(small_task, 256, 1, 256, 1), Plan(small_task, 256, 1, 16, 2))
    first, second = (linearise(tiny_model("softmax"), plan, effort=effort) for plan in plans)
    for name, values in first.replaced.sums.items():
        assert torch.equal(values, second.replaced.sums[name]), name
    for name, loss in first.losses.items():
        assert torch.equal(loss, second.losses[name]), name


def test_models_without_softmax_are_not_asked(tiny_subject, tiny) -> None:
    asked, task = Linearization(), find_task("linear")
    assert "softmax" in (asked.lacks(tiny_subject, task) or "")
    assert asked.lacks(load(tiny), task) is None


@pytest.mark.slow
def test_the_published_layers_cost_less_after_the_first(paper_data) -> None:
    subject = load(
        paper_data / "linear_seq_fully" / "model_sm_7l_fullfledged.pkl",
        "von-oswald-2023/softmax-7l",
    )
    effort = Effort(Round(64, 8), Round(128, 10), 1)
    found = linearise(subject.model, Plan(find_task("linear"), 256, 0), effort=effort)
    rows = table(found, "linear")
    for form in ("linear", "averaged"):
        assert rows.loc[(1, form), "loss_ratio"] > 1.5
        assert rows.loc[(7, form), "loss_ratio"] < 1.15
    for layer in range(3, 8):
        cost, without = (rows.loc[(layer, way), "loss_ratio"] for way in ("averaged", "zero"))
        assert cost < 1 + (without - 1) / 2
        assert rows.loc[(layer, "averaged"), "r2"] > rows.loc[(layer, "linear"), "r2"]
