"""What a run will take: sums are counted as they are; time and memory are tried on little."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep

import pytest
import torch

from probe.analysis import Bench
from probe.errors import InputError
from probe.findings import Finding
from probe.memory import free_bytes, held_bytes, peak_bytes, restart_peak
from probe.pilot import scout
from probe.pipeline import Request
from probe.plan import FIT, FOLDS, TEST, Plan
from probe.planning import Cost, Estimate, estimate
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.trial import LARGE, SMALL, Pace, Step, Tried, try_job

MIB = 2**20


@pytest.fixture
def subject(tiny):
    from probe.checkpoints.base import load

    return load(tiny)


@pytest.fixture
def plan(subject):
    return Plan(find_task(subject.task), 4096, 0)


def test_the_peak_is_that_of_the_process():
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert peak_bytes() == pytest.approx(int(peak) * 1024, rel=0.01)
    assert held_bytes() <= peak_bytes() and free_bytes() > 0


def test_the_peak_begins_anew():
    restart_peak()
    before = peak_bytes()
    block = torch.ones(50 * MIB, dtype=torch.uint8)
    assert peak_bytes() - before == pytest.approx(block.nbytes, rel=0.2)
    del block
    restart_peak()
    assert peak_bytes() - before < 20 * MIB


def test_memory_is_the_most_of_any_step_and_time_the_sum():
    whole = Estimate((Cost("a", memory=3), Cost("b", 2, seconds=0.5, disk=7), Cost("c")), 1.0)
    assert (whole.memory, whole.seconds, whole.disk) == (3, 0.5, 7)
    columns, rows = whole.table()
    assert len(rows) == 5 and {len(row) for row in rows} == {len(columns)}
    assert rows[-1][2] == "1.0"  # of the trial, which is no part of the run


def test_a_longer_shard_holds_more_along_a_line():
    pace = Pace(Step(1.0, 100), Step(2.0, 164))
    assert pace.step(SMALL) == Step(1.0, 100) and pace.step(LARGE) == Step(2.0, 164)
    assert pace.step(256).memory == 100 + (256 - SMALL)
    assert pace.step(2 * LARGE).seconds == 4.0


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_trial_gives_every_worker_every_length_and_every_fold_a_shard(plan, workers):
    tried = Tried.of(replace(plan, workers=workers))
    counts = [count for _, count in tried.shards(FIT)]
    assert counts.count(LARGE) == counts.count(SMALL) == workers and len(counts) >= FOLDS
    assert tried.shards(FIT) == tried.shards(TEST) and len(counts) % workers == 0
    assert sum(counts) < 4096 / 2 if workers < 3 else True


@dataclass(frozen=True)
class Slow:
    """A job of 40 parts, which tells of each of them or of none."""

    tells: bool
    name: str = "slow"
    question: str = "Is it slow?"
    place: int = 1
    thorough: bool = False

    def run(self, bench: Bench) -> Finding:
        """Only waits."""
        for part in range(40):
            sleep(0.005)
            if self.tells:
                bench.progress(part + 1, 40)
        return Finding(self.name, self.question, "inconclusive", "", {}, {}, "")


def test_a_job_is_stopped_and_its_time_told_from_its_first_parts(subject, plan):
    setting = scout(plan, subject.model.layers)
    heard = []

    def bench(tell):
        def hear(done, total):
            heard.append(done)
            tell(done, total)

        return Bench(subject, plan, setting, {}, hear)

    told = try_job(Slow(tells=True), bench)
    assert heard == [1, 2] and told.seconds > 0.15
    silent = try_job(Slow(tells=False), bench)
    assert heard == [1, 2] and silent.seconds > 0.15


def test_the_command_tells_of_all_steps_and_writes_nothing(command, tiny, tmp_path, monkeypatch):
    seen = []
    reduce = Sweep._reduce

    def counted(self, *given):
        totals = reduce(self, *given)
        seen.append(sum(part.nbytes for sums in totals for part in sums.values()))
        return totals

    monkeypatch.setattr(Sweep, "_reduce", counted)
    only = "behaviour,linear_probing,head_atlas"
    said = command("analyze", tiny, "--plan", "--only", only, "--out", tmp_path / "none")
    assert said.code == 0 and not (tmp_path / "none").exists()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines()]
    table = {row[0]: row[1:] for row in rows if row}
    for step in ("fit on 2,048 sequences", "test on 2,048 sequences", "head_atlas"):
        assert float(table[step][0].replace(",", "")) > 100 and float(table[step][1]) > 0
    kept = table["sums that are kept until the run is done"][2]
    assert float(kept) == pytest.approx(sum(seen) / MIB, abs=0.051) and sum(seen) > MIB


def test_what_would_be_refused_is_refused_before_the_trial(subject, plan):
    with pytest.raises(InputError, match="unknown analysis"):
        estimate(Request(subject, plan, only=("nothing",)))
