"""What a run will take: bytes are exact where shapes decide them; the rest is tried."""

import re
from pathlib import Path

import pytest

from probe.capture import capture
from probe.errors import InputError
from probe.pipeline import Request
from probe.plan import PILOT, SHARD, Plan
from probe.planning import (
    PER_FINDING,
    REPORT,
    Cost,
    Estimate,
    capture_bytes,
    estimate,
    peak_bytes,
    problem_bytes,
)
from probe.stages import Context
from probe.tasks.base import find_task


@pytest.fixture
def subject(tiny):
    from probe.checkpoints.base import load

    return load(tiny)


@pytest.fixture
def plan(subject):
    return Plan(find_task(subject.task), 4096, 0)


def test_captures_are_counted_as_they_are(subject, plan):
    model = subject.model
    seen = capture(model, plan.draw(PILOT, 0, SHARD).tokens, SHARD)
    parts = (seen.output, seen.layers, seen.updates, seen.readouts)
    assert capture_bytes(model, plan) == sum(part.nbytes for part in parts)


def test_the_peak_is_that_of_the_process():
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert peak_bytes() == pytest.approx(int(peak) * 1024, rel=0.01)


def test_problems_hold_moments_and_eigenvectors(plan):
    sequences = plan.draw(PILOT, 0, 4)
    context = Context(sequences, plan.task.problem(sequences))
    moments = sum(part.double().nbytes for part in vars(context.moments).values())
    vectors = context.spectrum.mu[..., None].expand(-1, -1, -1, context.spectrum.mu.shape[-1])
    per_sequence = (moments + vectors.numel() * 8) / 4
    assert problem_bytes(plan) == pytest.approx(2 * SHARD * per_sequence, rel=0.1)


def test_sums_leave_out_what_does_not_apply():
    whole = Estimate((Cost("a", memory=3), Cost("b", seconds=0.5, disk=7), Cost("c")))
    assert (whole.memory, whole.seconds, whole.disk) == (3, 0.5, 7)
    columns, rows = whole.table()
    assert len(rows) == 4 and {len(row) for row in rows} == {len(columns)}


def test_more_sequences_take_more_time_and_no_more_memory(subject, plan):
    few, many = (
        estimate(Request(subject, Plan(plan.task, count, 0), only=("behaviour",)))
        for count in (1024, 65536)
    )
    shards = [[cost.memory for cost in found.costs[1:]] for found in (few, many)]
    assert shards[0] == shards[1] and few.disk == REPORT + PER_FINDING
    assert few.costs[0].memory <= many.costs[0].memory < 1.2 * few.costs[0].memory
    assert many.seconds > few.seconds > 0


def test_the_command_prints_and_writes_nothing(command, tiny, subject, tmp_path):
    said = command("analyze", tiny, "--plan", "--only", "behaviour", "--out", tmp_path / "none")
    assert said.code == 0 and "memory, MiB" in said.out and "in all" in said.out
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="unknown analysis"):
        estimate(Request(subject, Plan(find_task(subject.task), 256, 0), only=("nothing",)))
