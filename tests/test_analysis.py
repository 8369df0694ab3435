"""Which analyses run, in which order, and why others do not."""

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from probe import analysis
from probe.analysis import Asked, Bench, choose_analyses, installed_analyses
from probe.errors import InputError
from probe.findings import Finding, Metric
from probe.pipeline import Request, analyze
from probe.plan import Plan


@dataclass(frozen=True)
class Counting:
    """A job that counts the sequences of its plan."""

    name: str = "counting"
    question: str = "How many sequences are there?"
    place: int = 1
    thorough: bool = False
    missing: str | None = None
    benches: list[Bench] = field(default_factory=list, compare=False)

    def lacks(self, subject, task) -> str | None:
        return self.missing

    def run(self, bench: Bench) -> Finding:
        self.benches.append(bench)
        bench.progress(1, 1)
        count = Metric(bench.plan.sequences, "number of sequences")
        return Finding(
            self.name, self.question, "inconclusive", "Counted.", {"count": count}, {}, "Anything.",
            bearing="Counted them.",
        )  # fmt: skip


@pytest.fixture()
def offered(monkeypatch):
    """Offers analyses as a package of another distribution would; returns how to offer one."""
    package, discover = ModuleType("offered"), analysis.registry.discover

    def offer(*jobs: Counting) -> None:
        named = {job.name: job for job in jobs}
        monkeypatch.setattr(
            analysis, "entry_points", lambda group: [SimpleNamespace(load=lambda: package)]
        )
        monkeypatch.setattr(
            analysis.registry,
            "discover",
            lambda asked: dict(named) if asked is package else discover(asked),
        )

    return offer


def test_every_module_of_the_package_is_found() -> None:
    found = installed_analyses()
    assert {"behaviour", "spectral_response", "update_law"} <= set(found)
    assert all(one.name == name for name, one in found.items())
    places = [one.place for one in found.values()]
    assert len(set(places)) == len(places)


def test_an_unknown_name_is_refused(tiny_subject, small_task) -> None:
    with pytest.raises(InputError, match=r"unknown analysis nonsense; known: .*behaviour"):
        choose_analyses(tiny_subject, small_task, ("nonsense",))


def test_what_takes_minutes_runs_when_asked_for(offered, tiny_subject, small_task) -> None:
    offered(Counting(thorough=True))
    by_default = choose_analyses(tiny_subject, small_task)
    assert not by_default.jobs and "--thorough" in by_default.left_out["counting"]
    assert choose_analyses(tiny_subject, small_task, thorough=True).jobs
    assert choose_analyses(tiny_subject, small_task, ("counting",)).jobs


def test_what_cannot_be_asked_is_left_out_and_refused_by_name(
    offered, tiny_subject, small_task
) -> None:
    offered(Counting(missing="no softmax"))
    asked = choose_analyses(tiny_subject, small_task)
    assert asked == Asked((), (), {"counting": "no softmax"})
    with pytest.raises(InputError, match=r"counting cannot be asked of .*: no softmax"):
        choose_analyses(tiny_subject, small_task, ("counting",))


def test_a_job_runs_after_the_sweep_and_bears_on_the_verdict(
    offered, tiny_subject, small_task
) -> None:
    job, absent = Counting(), Counting("absent", thorough=True)
    offered(job, absent)
    report = analyze(Request(tiny_subject, Plan(small_task, 256, 0, workers=1)))
    assert report.findings[0].metrics["count"].value == 256
    assert report.verdict.notes == ("Counted them.",)
    assert list(report.left_out) == ["absent"]
    (bench,) = job.benches
    assert bench.subject is tiny_subject and bench.results
