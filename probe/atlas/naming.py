"""The name of a head: what explains its answers, by a rule that claims an optimizer last.

A softmax head is explained by its own softmax, whatever it does for the model; so is one that looks
through a window or otherwise averages its values by positive weights. In its linear regime softmax
is the mean and a gradient step from it; this is remarked upon and not called an optimizer.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from probe.atlas.explanations import Group
from probe.atlas.scores import Score

Name = Literal[
    "gradient step",
    "least squares",
    "step or least squares",
    "kernel smoother",
    "mean",
    "copy",
    "silent",
    "unexplained",
]
NAMES: tuple[Name, ...] = get_args(Name)
OPTIMIZERS: tuple[Name, ...] = NAMES[:3]
LEAST, MARGIN = 0.9, 0.01
NULLS: tuple[Group, ...] = ("copy", "mean", "softmax", "smoother")  # the simplest first
SOLVERS: tuple[Group, ...] = ("step", "ridge")
_WORDS: dict[Group, Name] = {
    "step": "gradient step",
    "ridge": "least squares",
    "copy": "copy",
    "mean": "mean",
    "softmax": "kernel smoother",
    "smoother": "kernel smoother",
}


@dataclass(frozen=True)
class Controls:
    """The same head where nothing of what was trained is left.

    Attributes:
        twin: The head of the twin with permuted weights; None if there is no twin.
        rule: The rule of the head on white noise; None where the rule is not known.
        gated: Whether the head has gates for its pairs, as only layers that learn from pairs do.
        averages: Whether its rule takes averages of the values, whatever it is given.
    """

    twin: Score | None
    rule: Score | None
    gated: bool = False
    averages: bool = False

    @property
    def by_construction(self) -> bool:
        """Whether the rule solves whatever problem it is given, so that training has no part."""
        if self.rule is not None:
            return bool(claims(self.rule))
        return self.gated


NO_CONTROLS = Controls(None, None)


def claims(score: Score) -> tuple[Group, ...]:
    """Which of step and ridge explain a head, better than every null and with its own pairs only.

    Explained is 0.9 of the answers at least; better is by 0.01 at least, both with the whole
    interval.
    """
    return tuple(group for group in SOLVERS if not score.silent and _stands(score, group))


def _stands(score: Score, group: Group) -> bool:
    one = score.groups[group]
    rivals = [score.groups[null] for null in NULLS] + [score.shuffled[group]]
    return one.share.lo >= LEAST and all(one.ahead_of(rival).lo > MARGIN for rival in rivals)


def solver_of(score: Score) -> Name | None:
    """The solver that explains a head, by `claims` alone; None if none does."""
    standing = claims(score)
    if not standing:
        return None
    step, ridge = (score.groups[group] for group in SOLVERS)
    lead = ridge.ahead_of(step)
    if lead.lo > MARGIN and "ridge" in standing:
        return "least squares"
    if lead.hi < -MARGIN and "step" in standing:
        return "gradient step"
    return "step or least squares"


def name_of(score: Score, controls: Controls = NO_CONTROLS) -> Name:
    """The name of a head.

    Args:
        score: How well each group explains it.
        controls: What must not be explained as well, unless the rule of the head is the solver.
    """
    if score.silent:
        return "silent"
    solver = None if controls.averages else solver_of(score)
    if solver and (controls.by_construction or not _in_twin(score, controls.twin)):
        return solver
    best = max(NULLS, key=lambda null: score.groups[null].value)
    simplest = next(
        null for null in NULLS if not score.groups[best].ahead_of(score.groups[null]).value > MARGIN
    )
    explained = score.groups[simplest].share.lo >= LEAST
    if explained:
        return _WORDS[simplest]
    return "kernel smoother" if controls.averages else "unexplained"


def _in_twin(score: Score, twin: Score | None) -> bool:
    """Whether the twin is explained as well; a twin that cannot be read excludes nothing."""
    if twin is None:
        return False
    claimed = claims(score)
    return any(
        not twin.groups[group].value < score.groups[group].value - MARGIN for group in claimed
    )


def is_linear(score: Score, name: Name) -> bool:
    """Whether a softmax head is a gradient step from the mean: explained beyond it by 0.9."""
    smooth = name in ("kernel smoother", "mean")
    return smooth and not score.silent and score.beyond_mean.share.lo >= LEAST


Planted = Literal["named", "no power", "misread"]


def read_planted(score: Score, group: Group) -> Planted:
    """Whether a planted solver is named on the head's own problem.

    "no power": a null, or keys that are shuffled, give the same answers there. A planted solver
    that its own explanation does not reach is misread.
    """
    allowed = ("step or least squares", _WORDS[group])
    found = solver_of(score)
    if found is not None:
        return "named" if found in allowed else "misread"
    one = score.groups[group]
    rivals = [score.groups[null] for null in NULLS] + [score.shuffled[group]]
    weak = any(not one.ahead_of(rival).lo > MARGIN for rival in rivals)
    return "no power" if score.silent or (one.share.lo >= LEAST and weak) else "misread"
