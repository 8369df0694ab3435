"""What a run has finished: kept, gone on with, or refused, and never half there."""

import errno
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from probe import accumulators
from probe.accumulators import read_sums, write_sums
from probe.capture import capture
from probe.engines.base import Order, Worker
from probe.engines.threads import Threads
from probe.errors import InputError
from probe.findings import Finding, HeatMap, IntervalChart, LineChart, Metric, Panels, Series, Table
from probe.halving import halving, refusing_when_full
from probe.journal import FOLDER, FolderJournal, finding_of, journal_in, text_of
from probe.plan import FOLDS, LEASES, TEST, Plan
from probe.report.figures import render
from probe.report.files import csv_text
from probe.stages import Batch, Sums
from probe.sweep import Means, Sweep
from probe.views import SUBJECT, seen_as


@dataclass(frozen=True)
class Said:
    """Adds up what the model said."""

    views: tuple[str, ...] = (SUBJECT,)
    folds: int = FOLDS

    def fit(self, batch: Batch) -> Sums:
        return {"said": batch.capture.output.double().sum((0, 1))}

    def learn(self, sums: Sums) -> Sums:
        return sums

    def test(self, batch: Batch, learned: Sums) -> Sums:
        return {"said": batch.by_block(batch.capture.output)}


class Counting:
    """Hands on to threads, and counts the leases."""

    name = "counting"

    def __init__(self):
        self.engine, self.leases = Threads(), []

    def workers(self, plan):
        return 1

    def gather(self, work, leases, order):
        self.leases += [(lease.split, lease.index) for lease in leases]
        return self.engine.gather(work, leases, order)


def sums_of(small_task, tiny_model, stage, means=None, **how):
    plan = Plan(small_task, 2 * 5 * 256, 0, **how)
    models, views = {SUBJECT: tiny_model("linear")}, {SUBJECT: seen_as(SUBJECT)}
    sweep = Sweep(plan, models, views, capture, means=means)
    return sweep.run((stage,))[stage, SUBJECT]


def test_a_run_goes_on_where_it_died(small_task, tiny_model, tmp_path, monkeypatch):
    whole = sums_of(small_task, tiny_model, Said())
    monkeypatch.setattr("probe.journal.PACE", 0)
    calls = []

    def test(self, batch, learned):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"said": batch.by_block(batch.capture.output)}

    with monkeypatch.context() as patched:
        patched.setattr(Said, "test", test)
        with pytest.raises(KeyboardInterrupt), journal_in(tmp_path, {"a": 1}) as journal:
            sums_of(small_task, tiny_model, Said(), Means(journal=journal), workers=1)
    counting = Counting()
    with journal_in(tmp_path, {"a": 1}) as journal:
        found = sums_of(small_task, tiny_model, Said(), Means(counting, journal), workers=1)
        assert journal.resumed
    assert torch.equal(found.sums["said"], whole.sums["said"])
    assert torch.equal(found.learned["said"], whole.learned["said"])
    begun = [index for split, index in counting.leases if split == TEST]
    assert len(counting.leases) == len(begun) and 1 <= min(begun) <= 2
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("again", [{"key": {"a": 2}}, {"key": {"a": 1}, "fresh": True}])
def test_other_work_is_thrown_away(tmp_path, again):
    sums = ({"x": torch.ones(3)},)

    class Stop(Exception):
        pass

    with pytest.raises(Stop), journal_in(tmp_path, {"a": 1}) as journal:
        journal.keep("main-fit", sums, {"leases": 1}, complete=True)
        raise Stop
    # Control: the same run finds its sums.
    with pytest.raises(Stop), journal_in(tmp_path, {"a": 1}) as journal:
        kept, about = journal.sums("main-fit")
        assert torch.equal(kept[0]["x"], sums[0]["x"]) and about == {"leases": 1}
        raise Stop
    with journal_in(tmp_path, **again) as journal:
        assert journal.sums("main-fit") is None and not journal.resumed


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        journal_in(tmp_path, {}),
        pytest.raises(InputError, match="another run"),
        journal_in(tmp_path, {}),
    ):
        pass


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    journal = FolderJournal(tmp_path)
    journal.keep("main-fit", ({"x": torch.ones(3)},), {"leases": 1}, complete=True)

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(accumulators.np, "savez", full)
    with pytest.raises(InputError, match=r"No space left on device.*goes on from there"):
        journal.keep("main-fit", ({"x": torch.zeros(3)},), {"leases": 2}, complete=True)
    kept, about = journal.sums("main-fit")
    assert float(kept[0]["x"].sum()) == 3 and about["leases"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["main-fit.npz"]


def test_sums_come_back_to_the_bit(tmp_path):
    sums = ({"a": torch.randn(3, 2).double(), "b/c": torch.zeros(0)}, {}, {"a": torch.ones(())})
    write_sums(tmp_path / "sums.npz", sums, {"leases": 3})
    found, about = read_sums(tmp_path / "sums.npz")
    assert about == {"leases": 3} and [set(one) for one in found] == [{"a", "b/c"}, set(), {"a"}]
    assert all(torch.equal(found[i][n], t) for i, one in enumerate(sums) for n, t in one.items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
    ],
)
def test_damaged_sums_are_not_gone_on_with(tmp_path, damage):
    journal = FolderJournal(tmp_path)
    journal.keep("main-fit", ({"x": torch.ones(300)},), {"leases": 1}, complete=True)
    path = tmp_path / "main-fit.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert journal.sums("main-fit") is None
    with pytest.raises(InputError, match="damaged"):
        read_sums(path)


def finding() -> Finding:
    frame = {"layer": [0, 1], "r2": [0.1 + 0.2, float("nan")], "site": ["a", "b"]}
    line = LineChart("l", "t", "c", "x", "y", (Series("s", [1, 2], [0.5, float("nan")]),), True)
    map_ = HeatMap("h", "t", "c", "x", "y", "v", ("0", "1"), ("a",), ((0.1, float("inf")),))
    bars = IntervalChart("i", "t", "c", "x", ("a",), (1.0,), (0.5,), (1.5,))
    return Finding(
        analysis="one",
        question="q?",
        outcome="supports",
        statement="s",
        metrics={"count": Metric(3, "n"), "r2": Metric(1 / 3, "d", 0.1, float("nan"))},
        controls={"none": Metric(np.float64(0.25), "d")},
        does_not_show="all",
        tables=(Table("t", pd.DataFrame(frame)),),
        figures=(line, map_, bars, Panels("p", "t", "c", (line, line))),
        bearing="b",
    )


def test_a_finding_comes_back_as_it_was(tmp_path):
    before = finding()
    after = finding_of(text_of(before))
    assert csv_text(after.tables[0]) == csv_text(before.tables[0])
    assert str(after.metrics) == str(before.metrics)
    assert type(after.metrics["count"].value) is int
    for figure, again in zip(before.figures, after.figures, strict=True):
        assert type(again) is type(figure) and render(again) == render(figure)
    # It is found once.
    journal = FolderJournal(tmp_path)
    assert journal.finding("one", lambda: before) is before
    assert journal.finding("one", lambda: pytest.fail("found again")).statement == "s"


def test_a_batch_that_does_not_fit_is_halved(small_task, tiny_model):
    whole = sums_of(small_task, tiny_model, Said())
    sizes = []

    def scarce(model, tokens, batch_size):
        sizes.append(batch_size)
        if batch_size > 64:
            raise MemoryError
        return capture(model, tokens, batch_size)

    plan = Plan(small_task, 2 * 5 * 256, 0, workers=1)
    sweep = Sweep(plan, {SUBJECT: tiny_model("linear")}, {SUBJECT: seen_as(SUBJECT)}, scarce)
    found = sweep.run((Said(),))[Said(), SUBJECT]
    assert torch.equal(found.sums["said"], whole.sums["said"])
    assert sweep.batch_size == 64 and {256, 128, 64} == set(sizes)


def test_what_never_fits_is_refused_and_other_errors_are_not_memory():
    def never(size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match="out of memory with 16 sequences"):
        halving(never, 256)

    with pytest.raises(InputError, match="out of memory in Probes"), refusing_when_full("Probes"):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    def bug(size):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(bug, 256)
    with pytest.raises(RuntimeError, match="shapes differ"), refusing_when_full("Probes"):
        bug(256)


@pytest.mark.parametrize("sequences", [256, 4096, 64 * 512, 100_000, 1_000_000])
def test_leases_hold_every_shard_once(small_task, sequences):
    plan = Plan(small_task, sequences, 0)
    leases = plan.leases(TEST)
    assert FOLDS <= len(leases) <= LEASES
    assert [shard for lease in leases for shard in lease.shards] == list(plan.shards(TEST))
    assert [lease.first for lease in leases[1:]] == [
        lease.first + len(lease.shards) for lease in leases[:-1]
    ]
    assert sum(lease.count for lease in leases) == sequences // 2


def test_sums_of_a_lease_are_those_of_its_shards(small_task, tiny_model):
    plan = Plan(small_task, 1000, 0)
    worker = Worker(plan, {SUBJECT: tiny_model("linear")}, {SUBJECT: seen_as(SUBJECT)}, capture)
    one, two = plan.leases(TEST)[:2]
    both = type(one)(TEST, 0, 0, one.shards + two.shards)
    order = Order(((Said(), SUBJECT),), (None,))
    alone = [worker.measure(lease, order).sums[0]["said"] for lease in (one, two)]
    assert torch.equal(worker.measure(both, order).sums[0]["said"], alone[0] + alone[1])
