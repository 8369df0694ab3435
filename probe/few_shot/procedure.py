"""The experiment: tokens tuned on the model and on its twin, both measured on fresh pairs."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

from probe.few_shot.losses import Learner, LossByPair, frozen, losses, nothing
from probe.few_shot.references import References, fitted
from probe.few_shot.tuning import (
    Budget,
    Tuned,
    check_loss,
    random_eos,
    tuned_eos,
    tuned_prefix,
)
from probe.models.transformer import SequenceTransformer
from probe.plan import Plan
from probe.progress import Phases
from probe.tasks.few_shot import Bare, FewShot, PairLayout, TaskSwitch, WithEos
from probe.threads import one_thread
from probe.views import permuted_twin

BARE, EOS, PREFIX, RANDOM = "bare", "eos", "prefix", "random_eos"
LEAST_SQUARES, NO_RESET, FORGETTING = "least_squares", "least_squares_without_reset", "forgetting"
TRANSITIONS, NOTHING = "all_transitions", "zero"
ARMS = (BARE, EOS, PREFIX)
PHASES = 5  # tuning of two tokens on two models, and the measurement
PAIRS_PER_CHANNEL, SWITCH_PER_CHANNEL = 6, 2  # the paper's 60 pairs of 10 channels, 20 of them old


@dataclass(frozen=True)
class Arms:
    """One model and the tokens that were tuned on it.

    Attributes:
        eos: The tuned EOS token.
        prefix: The tuned prefix under it.
        layouts: The layouts to be measured, by name.
        checks: Loss of each tuned or bare layout on the check sequences.
    """

    eos: Tuned
    prefix: Tuned
    layouts: Mapping[str, PairLayout]
    checks: Mapping[str, float]

    @property
    def best(self) -> str:
        """The layout with the lowest loss on the check sequences."""
        return min(ARMS, key=lambda arm: self.checks[arm])


@dataclass(frozen=True)
class Measurement:
    """Losses by number of pairs on the test sequences.

    Attributes:
        task: Pairs of one matrix.
        switched: The same with a task switch.
        subject: The model's layouts.
        twin: Those of the model with permuted weights.
        references: The fitted references.
        single: Losses on one task by learner.
        switch: Losses with a task switch by learner.
        control: Losses of the twin on one task by learner.
    """

    task: FewShot
    switched: FewShot
    subject: Arms
    twin: Arms
    references: References
    single: Mapping[str, LossByPair]
    switch: Mapping[str, LossByPair]
    control: Mapping[str, LossByPair]

    @property
    def after(self) -> int:
        """Number of pairs before the task switch."""
        assert isinstance(self.switched.course, TaskSwitch)
        return self.switched.course.after


def tasks(width: int) -> tuple[FewShot, FewShot]:
    """One task, and one with a switch, in the paper's proportions of pairs to channels."""
    single = FewShot("few-shot", width=width, pairs=PAIRS_PER_CHANNEL * width)
    course = TaskSwitch(SWITCH_PER_CHANNEL * width)
    return single, replace(single, name="few-shot-switch", course=course)


def longest(width: int, budget: Budget) -> int:
    """Number of tokens of the longest sequences: those with a prefix."""
    return budget.prefix + 3 * PAIRS_PER_CHANNEL * width


def run(model: SequenceTransformer, plan: Plan, budget: Budget, phases: Phases) -> Measurement:
    """Tunes and measures.

    Args:
        model: The model; copies of it are used.
        plan: Seeds, device and number of test sequences; its task gives the number of channels.
        budget: How tokens are tuned.
        phases: Told of PHASES phases.
    """
    single, switched = tasks(plan.task.width_out)
    with one_thread():
        frozen_model = deepcopy(model).requires_grad_(False).to(plan.device)
        twin = permuted_twin(frozen_model, plan.seed)
        subject, control = (
            _arms(one, single, plan, budget, phases) for one in (frozen_model, twin)
        )
        references = fitted(single, switched, plan)
        progress = phases.next()
        alone: dict[str, Learner] = {
            LEAST_SQUARES: references.alone,
            TRANSITIONS: references.transitions,
            NOTHING: nothing,
        }
        knowing: dict[str, Learner] = {
            LEAST_SQUARES: references.reset,
            NO_RESET: references.alone,
            FORGETTING: references.forgetting,
            NOTHING: nothing,
        }
        on_one = _measured(frozen_model, subject, single, plan, alone)
        progress(1, 3)
        on_two = _measured(frozen_model, subject, switched, plan, knowing)
        progress(2, 3)
        on_twin = _measured(twin, control, single, plan, {})
        progress(3, 3)
    return Measurement(single, switched, subject, control, references, on_one, on_two, on_twin)


def _arms(
    model: SequenceTransformer, task: FewShot, plan: Plan, budget: Budget, phases: Phases
) -> Arms:
    eos = tuned_eos(model, task, budget, plan.seed, phases.next())
    assert isinstance(eos.layout, WithEos)
    prefix = tuned_prefix(model, task, eos.layout, budget, plan.seed, phases.next())
    bare = Bare()
    layouts: dict[str, PairLayout] = {
        BARE: bare,
        EOS: eos.layout,
        PREFIX: prefix.layout,
        RANDOM: random_eos(task.width, plan.seed),
    }
    checks = {
        BARE: check_loss(model, task, bare, budget, plan.seed),
        EOS: eos.check,
        PREFIX: prefix.check,
    }
    return Arms(eos, prefix, layouts, checks)


def _measured(
    model: SequenceTransformer,
    arms: Arms,
    task: FewShot,
    plan: Plan,
    references: Mapping[str, Learner],
) -> dict[str, LossByPair]:
    learner = frozen(model, plan.batch_size)
    found = {
        name: losses(learner, replace(task, layout=layout), plan)
        for name, layout in arms.layouts.items()
    }
    return found | {name: losses(one, task, plan) for name, one in references.items()}
