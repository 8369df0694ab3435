"""What a track says: when, where, and whether the loss fell with it."""

from collections.abc import Mapping
from dataclasses import dataclass

from probe.report.text import scalar, share
from probe.response_stage import OUTPUT
from probe.rule import LEARNERS, Thresholds
from probe.statistics import Interval
from probe.tracking.measure import Track
from probe.tracking.onset import (
    Absent,
    Course,
    Fall,
    Onset,
    Present,
    Rises,
    find_onset,
    overlap,
    share_of_fall,
    steepest_fall,
)

# The rule leaves it open which learner it is where a short iteration and least squares both fit.
READ_AS_LEARNER = (*LEARNERS, "inconclusive")


@dataclass(frozen=True)
class Conclusion:
    """The answers to the three questions.

    Attributes:
        strengths: The strength of the response at each site, over the steps.
        onsets: When the response rises at each site: "output", "decoded:l", "readout:l".
        log_loss: The logarithm of the loss, over the steps.
        fall: Where the loss falls fastest; None if it does not fall.
        learner: The first step from the onset on at which the rule reads a learner, if any.
        before: The best null at the last checkpoint before the onset; "none" without one.
    """

    strengths: Mapping[str, Course]
    onsets: Mapping[str, Onset]
    log_loss: Course
    fall: Fall | None
    learner: int | None
    before: str

    @property
    def onset(self) -> Onset:
        """When the response rises at the output."""
        return self.onsets[OUTPUT]

    @property
    def fall_within(self) -> tuple[Interval, float] | None:
        """The share of the fall of the log loss within the onset's interval, and of the steps."""
        if not isinstance(self.onset, Rises) or self.fall is None:
            return None
        first, last = float(self.log_loss.steps[0]), float(self.log_loss.steps[-1])
        stop = min(self.onset.hi, last)
        share = share_of_fall(self.log_loss, self.onset.lo, stop)
        return share, (stop - self.onset.lo) / (last - first)


def conclude(track: Track) -> Conclusion:
    """Finds every onset; a response has risen where the rule would no longer name a null."""
    rule = Thresholds.load()
    strengths = {site: track.strength(site) for site in track.measurements[0].sites}
    onsets = {site: find_onset(course, 1 - rule.null_share) for site, course in strengths.items()}
    log_loss = track.log_loss()
    onset = onsets[OUTPUT]
    return Conclusion(
        strengths,
        onsets,
        log_loss,
        steepest_fall(log_loss),
        _learner_from(track, onset),
        _null_before(track, onset.step),
    )


def _learner_from(track: Track, onset: Onset) -> int | None:
    if isinstance(onset, Absent):
        return None
    read = [m.step for m in track.measurements if m.found.name in READ_AS_LEARNER]
    return next((step for step in read if step >= onset.step), None)


def _null_before(track: Track, step: float) -> str:
    earlier = [m.output.null.family for m in track.measurements if m.step < step]
    return earlier[-1] if earlier else "none"


def written(step: float | int) -> str:
    """A step as readers see it."""
    return scalar(round(step)) if step < float("inf") else "after the last checkpoint"


def span(lo: float | int, hi: float | int) -> str:
    """A range of steps."""
    return f"{written(lo)} to {written(hi)}"


def answer(found: Conclusion) -> str:
    """The headline: when the optimizer appears, with its interval, and the loss beside it."""
    onset = found.onset
    if isinstance(onset, Absent):
        return f"No optimizer appears in this series: {_absence(onset)}."
    stays = "" if onset.lasts else " and is gone again at the last checkpoint"
    if isinstance(onset, Present):
        what = "A response to the context" if found.learner is None else "An optimizer"
        early = "without any training" if onset.step == 0 else "so it appeared before"
        where = f"at the first checkpoint, step {written(onset.step)}"
        return f"{what} is there {where}, {early}{stays}; {loss_clause(found)}."
    when = f"at step {written(onset.step)} (95 % interval {span(onset.lo, onset.hi)})"
    if found.learner is None:
        return (
            f"A response to the context appears {when}{stays}, but no checkpoint reads as a "
            "learner by the rule."
        )
    return f"An optimizer appears {when}{stays}; {loss_clause(found)}."


def _absence(onset: Absent) -> str:
    peak = onset.peak
    if peak.hi == 0:
        return "at no checkpoint does a response to the context explain more than the best null"
    return (
        f"a response to the context explains at most {share(peak.value)} ({share(peak.lo)} to "
        f"{share(peak.hi)}) of what the best null leaves, at step {written(onset.step)}"
    )


def loss_clause(found: Conclusion) -> str:
    """Whether the loss falls fastest before, at or after the onset."""
    onset, fall = found.onset, found.fall
    if fall is None:
        return "the loss does not fall in this series"
    where = f"between steps {span(fall.lo, fall.hi).replace(' to ', ' and ')}"
    if not isinstance(onset, Rises):
        return f"the loss falls fastest {where}"
    if overlap((onset.lo, onset.hi), (fall.lo, fall.hi)):
        return f"the loss falls fastest with it, {where}"
    return f"the loss falls fastest {'before' if fall.hi <= onset.lo else 'after'} it, {where}"


def onset_words(onset: Onset) -> str:
    """An onset in a few words."""
    if isinstance(onset, Absent):
        return "does not rise"
    if isinstance(onset, Present):
        return f"there from the first, step {written(onset.step)}"
    return f"{written(onset.step)} ({span(onset.lo, onset.hi)})"
