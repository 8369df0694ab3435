"""Many cases, what came of them, and whether memory grew meanwhile."""

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as count_from

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from fuzzing.cases import Case, cases
from fuzzing.judge import wrong_with
from fuzzing.supervisor import Supervisor
from fuzzing.worker import Ended

READ, REFUSED = "read", "refused"
TURN = 10  # cases of one seed before the next has its turn
Tell = Callable[[Case, str, Ended], None]
WINDOW = 50  # cases over which resident memory is averaged: some leave more behind than others


@dataclass
class Tally:
    """What has been seen so far.

    Attributes:
        counts: Cases by seed and outcome.
        failures: Every case that ended as it must not, with what was wrong.
        slowest: CPU seconds of the slowest case.
        highest: MiB of the highest peak of a case.
        resident: MiB that the worker held after each of its cases; one list per worker.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[tuple[Case, str, Ended]] = field(default_factory=list)
    slowest: float = 0.0
    highest: float = 0.0
    resident: list[list[float]] = field(default_factory=lambda: [[]])

    def add(self, case: Case, ended: Ended) -> str | None:
        """Judges a case; returns what is wrong with it."""
        wrong = wrong_with(ended)
        self.counts[case.seed, wrong or (READ if ended.code == 0 else REFUSED)] += 1
        self.slowest, self.highest = max(self.slowest, ended.seconds), max(self.highest, ended.peak)
        if wrong:
            self.failures.append((case, wrong, ended))
        if ended.code is None:
            self.resident.append([])
        else:
            self.resident[-1].append(ended.resident)
        return wrong

    def growth(self, warm_up: int) -> float:
        """MiB by which a worker has grown since that many cases, at most; 0 if none lived long."""
        grown = [
            statistics.median(held[-WINDOW:]) - statistics.median(held[warm_up : warm_up + WINDOW])
            for held in self.resident
            if len(held) > warm_up + WINDOW
        ]
        return max(grown, default=0.0)


def campaign(
    supervisor: Supervisor,
    count: int,
    number: int,
    tell: Tell = lambda case, wrong, ended: None,
) -> Tally:
    """So many cases, which the number decides.

    Args:
        supervisor: Runs them.
        count: How many.
        number: Seed of hypothesis.
        tell: Called with each failure as it comes.
    """
    tally = Tally()
    for turn in count_from(0):
        for place, (name, one) in enumerate(supervisor.seeds.items()):
            if tally.counts.total() == count:
                return tally
            _turn(
                supervisor,
                cases(name, one),
                number * 10**9 + turn * 1000 + place,
                tally,
                count,
                tell,
            )
    raise AssertionError


def _turn(
    supervisor: Supervisor,
    strategy: SearchStrategy[Case],
    number: int,
    tally: Tally,
    count: int,
    tell: Tell,
) -> None:
    """A few cases of one seed; as many of each make the table even."""

    @seed(number)
    @settings(
        max_examples=TURN,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Case) -> None:
        if tally.counts.total() < count:
            ended = supervisor.outcome(case)
            if wrong := tally.add(case, ended):
                tell(case, wrong, ended)

    run()
