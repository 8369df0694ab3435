"""Carrying out what was asked: who measures, what an earlier run has left, and what is said."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probe.commands.options import output_folder
from probe.errors import InputError

if TYPE_CHECKING:
    from probe.engines.base import Engine
    from probe.findings import Report
    from probe.journal import FolderJournal
    from probe.language import Survey
    from probe.pipeline import Request

PAGE = "report.html"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint.

    Attributes:
        name: Of the checkpoint.
        said: What the report says first; or why there is none.
        page: The report; None if there is none yet.
        results: The content of results.json.
    """

    name: str
    said: str
    page: Path | None = None
    results: dict[str, Any] | None = None


@dataclass(frozen=True)
class Local:
    """Threads of this process."""

    def engine(self, asked: "Request", folder: Path, progress: Progress) -> "Engine":
        """Who measures."""
        from probe.engines.threads import Threads

        return Threads()


@dataclass(frozen=True)
class Devices:
    """A process for each device; `names` are numbers of GPUs, or cpu, with commas between."""

    names: str

    @property
    def kind(self) -> str:
        """What they are, as `--device` calls it.

        Raises:
            InputError: As `chosen`, or some are GPUs and some are not.
        """
        kinds = {name.partition(":")[0] for name in self.chosen}
        if len(kinds) > 1:  # results would depend on who measured what
            raise InputError(f"--devices {self.names}: the last digits of cpu and GPUs differ")
        return kinds.pop()

    @property
    def chosen(self) -> tuple[str, ...]:
        """The devices as torch calls them.

        Raises:
            InputError: There is no such device.
        """
        import torch

        there = {str(number): f"cuda:{number}" for number in range(torch.cuda.device_count())}
        there["cpu"] = "cpu"
        for name in self.names.split(","):
            if name not in there:
                raise InputError(f"--devices {self.names}: {name!r} is none of {', '.join(there)}")
        return tuple(there[name] for name in self.names.split(","))

    def engine(self, asked: "Request", folder: Path, progress: Progress) -> "Engine":
        """Who measures."""
        from probe.engines.processes import Processes

        return Processes(self.chosen)


@dataclass(frozen=True)
class Cluster:
    """The machines of a Ray cluster."""

    address: str

    def engine(self, asked: "Request", folder: Path, progress: Progress) -> "Engine":
        """Who measures."""
        from probe.engines.ray import RayCluster

        return RayCluster.joined(self.address, asked.plan.device)


@dataclass(frozen=True)
class OnePart:
    """One of several parts, which `mesaprobe merge` joins; `numbered` is I/N."""

    numbered: str
    by: Local | Devices | Cluster

    def engine(self, asked: "Request", folder: Path, progress: Progress) -> "Engine":
        """Who measures."""
        from probe.engines.parts import Part

        number, of = self.numbers
        return Part(self.by.engine(asked, folder, progress), folder, number, of, progress)

    @property
    def numbers(self) -> tuple[int, int]:
        """I and N.

        Raises:
            InputError: They are no such numbers.
        """
        number, slash, of = self.numbered.partition("/")
        if slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return int(number), int(of)
        raise InputError(f"--shard {self.numbered}: must be I/N, with I from 1 to N")


@dataclass(frozen=True)
class AllParts:
    """What the parts in these folders have measured."""

    folders: tuple[Path, ...]

    def engine(self, asked: "Request", folder: Path, progress: Progress) -> "Engine":
        """Who measures."""
        from probe.engines.parts import Merged
        from probe.engines.threads import Threads

        return Merged(Threads(), folder, self.folders)


Way = Local | Devices | Cluster | OnePart | AllParts


def carry_out(asked: "Request | Survey", folder: Path, way: Way, fresh: bool = False) -> Outcome:
    """Goes on with what an earlier run has left in the folder, and writes the report there.

    Raises:
        InputError: It cannot be done; what was finished is kept.
        Waiting: This part is done, and others are not.
    """
    from probe.journal import journal_in
    from probe.limits import refuse
    from probe.pipeline import Request, check_fit
    from probe.report.results import results_dict
    from probe.report.write import write_report
    from probe.run_key import digest, key_of

    output_folder(folder)
    key, name = key_of(asked), asked.subject.name
    if not fresh and (found := _finished(folder, digest(key))):
        said = f"Finished before; --fresh starts over. {_answer(found)}"
        return Outcome(name, said, folder / PAGE, found)
    if isinstance(asked, Request):
        check_fit(asked.subject, asked.plan)
    refuse(asked, folder)
    with journal_in(folder, key, fresh) as journal:
        report = _report(asked, folder, way, journal)
        report = replace(report, run={**report.run, "key": digest(key)})
        page = write_report(report, folder)
    return Outcome(name, report.answer, page, results_dict(report))


def _report(
    asked: "Request | Survey", folder: Path, way: Way, journal: "FolderJournal"
) -> "Report":
    from probe.language import Survey, survey
    from probe.pipeline import analyze
    from probe.progress import reporting
    from probe.sweep import Means

    name = asked.subject.name
    with reporting(f"analysing {name}") as progress:
        if not isinstance(asked, Survey):
            return analyze(asked, progress, Means(way.engine(asked, folder, progress), journal))
        if not isinstance(way, Local):
            raise InputError(f"{name}: without --task a language model is read by one process")
        return survey(asked, progress)


def _finished(folder: Path, digest: str) -> dict[str, Any] | None:
    """The results of a report that is whole, if it is of this very run."""
    from probe.files import read_text
    from probe.report.results import read_results

    try:
        run = json.loads(read_text(folder / "run.json"))
    except (InputError, ValueError, RecursionError):
        return None
    if not (isinstance(run, dict) and run.get("key") == digest and (folder / PAGE).is_file()):
        return None
    try:
        return read_results(folder / "results.json")
    except InputError:
        return None


def _answer(results: dict[str, Any]) -> str:
    if results["verdict"] is not None:
        return str(results["verdict"]["statement"])
    return " ".join(finding["statement"] for finding in results["findings"])


def print_outcomes(outcomes: Sequence[Outcome], as_json: bool) -> None:
    """One outcome as a sentence, several as a table; or results.json, of several in a list."""
    from probe.progress import print_table
    from probe.report.results import json_text

    done = [outcome.results for outcome in outcomes if outcome.results is not None]
    if as_json and len(outcomes) == 1 and done:
        click.echo(json_text(done[0]), nl=False)
    elif as_json and outcomes:
        click.echo(json.dumps(done, indent=2, ensure_ascii=False, allow_nan=False))
    elif len(outcomes) == 1 and outcomes[0].page is not None:
        click.echo(f"Report: {outcomes[0].page}")
        click.echo(outcomes[0].said)
    elif outcomes:
        rows = [(one.name, one.said, str(one.page or "none")) for one in outcomes]
        print_table("Checkpoints", ("", "what it runs", "report"), rows)
