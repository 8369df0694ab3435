"""The steps around a transplant: the verdict it rests on, what is written, the verdict after."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.checkpoints.base import Subject, load
from probe.checkpoints.native import write_native
from probe.errors import InputError
from probe.pipeline import Progress, Request, analyze
from probe.plan import Plan
from probe.progress import Phases
from probe.report.results import read_results, results_dict
from probe.report.write import write_report
from probe.transplant.run import STEPS, Refusal, Transplant, transplant


@dataclass(frozen=True)
class Done:
    """What came of it.

    Attributes:
        found: The transplant, or why there is none.
        before: The old model's results, as in results.json.
        after: The new model's; None where nothing was replaced.
    """

    found: Transplant | Refusal
    before: Mapping[str, Any]
    after: Mapping[str, Any] | None


def carry_out(
    subject: Subject,
    plan: Plan,
    finished: Path | None,
    tuning_steps: int,
    tolerance: float,
    folder: Path,
    progress: Progress,
) -> Done:
    """Analyses, replaces, writes and analyses again.

    Args:
        subject: The model.
        plan: The data.
        finished: The results.json of the model, if it has been analysed.
        tuning_steps: Steps of fine-tuning.
        tolerance: Nothing is replaced if the loss rises by more than this share.
        folder: Gets the new checkpoint, and its report in report/; nothing where none is made.
        progress: Called with (done, in all).

    Raises:
        InputError: The results cannot be read or are another model's.
    """
    phases = Phases(progress, (finished is None) + len(STEPS) + (tuning_steps > 0) + 1)
    before = (
        _read(finished, subject)
        if finished
        else results_dict(analyze(Request(subject, plan), phases.next()))
    )
    found = transplant(subject, plan, before["verdict"], tuning_steps, phases)
    if isinstance(found, Refusal):
        return Done(found, before, None)
    if (ratio := found.final.ratio).value > 1 + tolerance:
        reason = (
            f"An explicit layer would multiply the loss by {ratio.value:.3f} "
            f"({ratio.lo:.3f} to {ratio.hi:.3f}), more than 1 + {tolerance:g} allows."
        )
        return Done(Refusal(reason, found.bindings), before, None)
    write_native(found.model, plan.task.name, folder)
    report = analyze(Request(load(folder), plan), phases.next())
    write_report(report, folder / "report")
    return Done(found, before, results_dict(report))


def _read(path: Path, subject: Subject) -> Mapping[str, Any]:
    results = read_results(path)
    if results["subject"]["sha256"] != subject.sha256:
        raise InputError(f"{path}: results of another model, {results['subject']['name']}")
    return results
