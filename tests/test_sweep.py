"""The sweep: the same bits however the work is cut, and a state that does not grow."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.capture import capture
from probe.closeness import LossStage
from probe.columns import Columns
from probe.errors import InputError
from probe.pilot import scout
from probe.plan import FIT, FOLDS, SHARD, TEST, Plan
from probe.reference import ReferenceStage
from probe.response_stage import ResponseStage
from probe.sampling import generator_for
from probe.stages import Batch, Context, Sums
from probe.statistics import BLOCKS
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.views import SUBJECT, SWAPPED, all_views


@dataclass(frozen=True)
class Count:
    """Counts sequences, and adds up what the model said."""

    views: tuple[str, ...] = (SUBJECT,)
    folds: int = FOLDS

    def fit(self, batch: Batch) -> Sums:
        return {
            "count": torch.tensor(float(len(batch.capture.output))),
            "said": batch.capture.output.double().sum((0, 1)),
        }

    def learn(self, sums: Sums) -> Sums:
        return sums

    def test(self, batch: Batch, learned: Sums) -> Sums:
        ones = torch.ones(len(batch.capture.output))
        return {"count": batch.by_block(ones), "said": batch.by_block(batch.capture.output)}


def swept(task, model, stages, sequences=512, seed=0, **how):
    plan = Plan(task, sequences, seed, **how)
    views = {name: all_views(0.1)[name] for name in (SUBJECT, SWAPPED)}
    return Sweep(plan, {SUBJECT: model}, views, capture).run(stages)


def stages_of(task):
    setting = scout(Plan(task, 256, 0), 2)
    columns = Columns(setting.knots, ("kernel_smoother", "oracle"))
    fixed = setting.windows, columns, setting.step_bound
    return (
        ResponseStage(*fixed, (SUBJECT,), layered=True),
        ResponseStage(*fixed, (SWAPPED,), layered=False),
        ReferenceStage(setting.ridge, views=(SUBJECT,)),
        Count(),
    )


def tensors_of(results):
    return [
        value
        for measured in results.values()
        for sums in (measured.sums, getattr(measured.learned, "maps", {}))
        for value in sums.values()
    ]


@pytest.mark.parametrize("kind", ["linear", "softmax", "mesa"])
def test_bits_depend_on_the_seed_alone(small_task, tiny_model, kind) -> None:
    model, stages = tiny_model(kind), stages_of(small_task)
    first = tensors_of(swept(small_task, model, stages, batch_size=256, workers=1))
    assert len(first) > 20
    again = tensors_of(swept(small_task, model, stages, batch_size=37, workers=2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # Control: another seed moves everything but the counts.
    own = swept(small_task, model, (Count(),))[Count(), SUBJECT].sums
    other = swept(small_task, model, (Count(),), seed=1)[Count(), SUBJECT].sums
    assert torch.equal(own["count"], other["count"])
    assert (own["said"] == other["said"]).double().mean() < 0.01


@pytest.mark.parametrize("kind", ["linear", "softmax", "mesa"])
@pytest.mark.parametrize("count", [163, 192])
def test_the_cut_into_batches_does_not_show(small_task, tiny_model, kind, count) -> None:
    model, tokens = tiny_model(kind), small_task.sample(count, generator_for(0)).tokens
    whole = capture(model, tokens, count)
    for batch_size in (1, 5, 16, 37, 64, 131):
        cut = capture(model, tokens, batch_size)
        for name in ("output", "layers", "updates", "readouts"):
            assert torch.equal(getattr(cut, name), getattr(whole, name)), (batch_size, name)
    assert not torch.equal(capture(model, tokens.roll(1, 0), 37).output, whole.output)


def test_state_does_not_grow_with_the_sequences(small_task, tiny_model) -> None:
    model, stages = tiny_model("linear"), stages_of(small_task)
    sizes = []
    for sequences in (256, 600):
        results = swept(small_task, model, stages, sequences, workers=1)
        sizes.append([tensor.shape for tensor in tensors_of(results)])
    assert sizes[0] == sizes[1]
    assert all(shape[0] == BLOCKS for shape in sizes[0][:3])


def test_folds_and_blocks_cover_every_sequence_once(small_task, tiny_model) -> None:
    stage, model = Count(), tiny_model("linear")
    measured = swept(small_task, model, (stage,), 1301, workers=1)[stage, SUBJECT]
    assert measured.learned["count"].shape == (FOLDS,)
    assert measured.learned["count"].sum() == 651
    assert (measured.learned["count"] > 0).all()
    assert measured.sums["count"].sum() == 650
    assert measured.sums["count"].max() - measured.sums["count"].min() <= 1
    # The test split by hand: its shards drawn again, one by one.
    plan = Plan(small_task, 1301, 0)
    said = torch.zeros(BLOCKS, 12, 3, dtype=torch.float64)
    for shard, (start, count) in enumerate(plan.shards(TEST)):
        output = model(plan.draw(TEST, shard, count).tokens).double()
        said.index_add_(0, (start + torch.arange(count)) % BLOCKS, output)
    assert torch.allclose(measured.sums["said"], said, atol=1e-5)
    assert not torch.allclose(measured.sums["said"], said.roll(1, 0), atol=1e-2)


@given(st.integers(4 * BLOCKS, 20000), st.sampled_from([FIT, TEST]))
def test_shards_cover_the_counts(small_task, sequences: int, split: int) -> None:
    shards = Plan(small_task, sequences, 0).shards(split)
    expected = sequences // 2 + (sequences % 2 if split == FIT else 0)
    assert sum(count for _, count in shards) == expected
    assert all(0 < count <= SHARD for _, count in shards) and len(shards) >= FOLDS
    starts = [start for start, _ in shards]
    assert starts[0] == 0
    assert starts[1:] == [start + count for start, count in shards[:-1]]


def test_no_sequence_is_drawn_twice(small_task) -> None:
    plan = Plan(small_task, 4096, 0)
    firsts = [
        tuple(plan.draw(split, shard, 1).tokens[0, 0].tolist())
        for split in (0, FIT, TEST)
        for shard in range(4)
    ]
    assert len(set(firsts)) == len(firsts)
    again = Plan(small_task, 4096, 0).draw(FIT, 2, 3)
    assert torch.equal(again.tokens, plan.draw(FIT, 2, 3).tokens)
    assert not torch.equal(again.tokens, Plan(small_task, 4096, 1).draw(FIT, 2, 3).tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": 3}, "--sequences 3: too few"),
        ({"sequences": 255}, "--sequences 255: too few"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**32}, "--seed"),
        ({"batch_size": 0}, "batch size and workers"),
        ({"workers": 0}, "batch size and workers"),
    ],
)
def test_impossible_plans_are_refused(small_task, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        Plan(**{"task": small_task, "sequences": 256, "seed": 0, **changes})
    assert Plan(small_task, 256, 0).sequences == 256


def test_a_stage_runs_once_and_progress_is_told(small_task, tiny_model) -> None:
    told = []
    plan = Plan(small_task, 512, 0, workers=2)
    views = {SUBJECT: all_views(0.1)[SUBJECT]}
    sweep = Sweep(
        plan,
        {SUBJECT: tiny_model("linear")},
        views,
        capture,
        lambda done, total: told.append((done, total)),
    )
    results = sweep.run((Count(), Count()))
    assert list(results) == [(Count(), SUBJECT)]
    assert results[Count(), SUBJECT].sums["count"].sum() == 256
    assert told == [(i, 8) for i in range(1, 9)]


def test_a_split_that_nothing_is_fitted_on_is_not_run(small_task, tiny_model) -> None:
    told = []
    views = {SUBJECT: all_views(0.1)[SUBJECT]}
    losses, model = LossStage((SUBJECT,)), tiny_model("linear")

    def run(*stages):
        told.clear()
        plan = Plan(small_task, 512, 0, workers=2)
        sweep = Sweep(plan, {SUBJECT: model}, views, capture, lambda *done: told.append(done))
        return sweep.run(stages)[losses, SUBJECT].sums

    alone = run(losses)
    assert told == [(i, 4) for i in range(1, 5)]
    beside = run(losses, Count())
    assert told == [(i, 8) for i in range(1, 9)]  # control: the other stage is fitted
    assert all(torch.equal(alone[name], beside[name]) for name in ("loss", "energy", "sequences"))


def test_the_clipped_share_of_the_inputs_is_kept(tiny_model) -> None:
    from dataclasses import replace

    task = replace(find_task("linear"), width=3, length=12)
    for clip, low, high in ((0.6, 0.1, 1.0), (100.0, 0.0, 0.0)):
        changed = replace(task, clip=clip)
        views = {SUBJECT: all_views(0.1)[SUBJECT]}
        sweep = Sweep(Plan(changed, 256, 0), {SUBJECT: tiny_model("linear")}, views, capture)
        sweep.run((Count(),))
        assert low <= sweep.clipped_share <= high


def test_shared_work_is_done_once_and_problems_are_exchanged(small_task) -> None:
    sequences = small_task.sample(6, generator_for(0))
    context = Context(sequences, small_task.problem(sequences))
    asked = []
    for _ in range(3):
        found = context.once("key", lambda: asked.append(1) or len(asked))
    assert found == 1 and asked == [1]
    swapped, another = context.swapped, context.another
    assert torch.equal(swapped.problem.queries, context.problem.queries)
    assert torch.equal(swapped.moments.gram, context.moments.gram.roll(1, 0))
    assert torch.equal(another.problem.queries, context.problem.queries.roll(1, 0))
    # What is taken over from the moments equals what would be computed afresh.
    for seen in (swapped, another):
        fresh = Context(seen.sequences, seen.problem)
        for curve in (torch.ones_like, lambda mu: 1 / (mu + 0.3)):
            ours, theirs = seen.spectrum.predict(curve), fresh.spectrum.predict(curve)
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
            own = context.spectrum.predict(curve)
            assert not torch.allclose(ours[:, 3:], own[:, 3:], rtol=1e-2)
