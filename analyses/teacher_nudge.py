"""Does the model follow its teacher when the teacher is turned a little?

Hypothesis: a learner follows the turned teacher W (alpha = 1); a memorised map, or a table of a
few of them, stays with the old one W_f (alpha = 0). W = W_f exp(eps K) stays in the distribution
of W_f, unlike a fresh teacher.
alpha = <y - W_f q, (W - W_f) q> / |(W - W_f) q|^2 over the judged positions. Costs a quarter of
the sweep's forward passes.
"""

from dataclasses import dataclass

import pandas as pd

from probe.analysis import Setting
from probe.findings import Finding, Metric, Outcome, Table
from probe.nudge import NudgeStage, nudge_of
from probe.rule import Thresholds
from probe.stages import Results
from probe.statistics import Interval


@dataclass(frozen=True)
class TeacherNudge:
    """Draws the conclusion from the nudge that every run measures."""

    name: str = "teacher_nudge"
    place: int = 120
    question: str = "Does the model follow a teacher that is turned a little?"

    def stages(self, setting: Setting) -> tuple[NudgeStage, ...]:
        """The nudge, where the teacher acts on what the model sees."""
        return nudge_of(setting)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if alpha is nearer to 1 than to 0."""
        stages = self.stages(setting)
        if not stages:
            return self._finding(
                "inconclusive",
                "No teacher of this task can be turned a little.",
                {},
                (),
            )
        alpha, fixed = stages[0].read(results)
        outcome = _outcome(alpha)
        statement = (
            f"The predictions follow the turned teacher by {alpha.value:.2f} "
            f"[{alpha.lo:.2f}, {alpha.hi:.2f}]: 1 is a learner that has solved the problem, less "
            "one that has not, 0 a memorised map."
        )
        metrics = {
            "alpha": Metric(
                alpha.value,
                "sum (y - W_f q).(W - W_f) q / sum |(W - W_f) q|^2, with W the turned teacher",
                alpha.lo,
                alpha.hi,
            ),
            "fixed_r2": Metric(
                fixed.value, "R^2 of the unturned teacher's map", fixed.lo, fixed.hi
            ),
        }
        frame = pd.DataFrame([{"alpha": alpha.value, "fixed_r2": fixed.value}])
        return self._finding(outcome, statement, metrics, (Table("teacher_nudge", frame),))

    def _finding(
        self,
        outcome: Outcome,
        statement: str,
        metrics: dict[str, Metric],
        tables: tuple[Table, ...],
    ) -> Finding:
        return Finding(
            self.name,
            self.question,
            outcome,
            statement,
            metrics,
            {},
            "Following the teacher does not say by which algorithm.",
            tables,
        )


def _outcome(alpha: Interval) -> Outcome:
    limit = Thresholds.load().nudge_follows
    if alpha.lo > 0.5:
        return "supports"
    return "contradicts" if alpha.hi < limit else "inconclusive"


NAMED = {"teacher_nudge": TeacherNudge()}
