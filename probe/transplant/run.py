"""From a checkpoint and its verdict to the model with an explicit mesa-layer, or to a refusal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probe.capture import capture, capture_output
from probe.checkpoints.base import Subject, transformer_of
from probe.closeness import LossStage, change_to, ratio
from probe.comparison.losses import Band, band
from probe.models.recipes import Optimiser, Recipe
from probe.models.training import Trainer
from probe.models.transformer import SequenceTransformer
from probe.pipeline import Progress, check_fit
from probe.plan import PILOT, Plan
from probe.progress import Phases
from probe.rule import LEARNERS
from probe.stages import Measured, Stage, View
from probe.statistics import Interval, mean_per_sequence, share_explained
from probe.sweep import Sweep
from probe.tasks.base import Spaced
from probe.threads import one_thread
from probe.transplant.binding import Binding, BindingStage, bindings
from probe.transplant.explicit import Answer, ExplicitStage
from probe.transplant.surgery import transplant as build
from probe.views import SUBJECT, seen_as

STEPS = ("bindings", "answer", "exchange")
EXPLICIT, CHANGE = "explicit", "change"
TUNING_BATCH, TUNING_RATE = 64, 3e-4


@dataclass(frozen=True)
class Refusal:
    """Why nothing is replaced.

    Attributes:
        reason: One sentence.
        bindings: What was read off each layer, where it came to that.
    """

    reason: str
    bindings: tuple[Binding, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """The new model beside the old one, on the same test sequences.

    Attributes:
        before: Loss of the old model.
        after: Loss of the new one.
        ratio: after / before, paired.
        before_by_position: Loss of the old model at each position.
        after_by_position: Loss of the new one.
        agreement: Share of the old model's predictions that the new one explains.
    """

    before: Interval
    after: Interval
    ratio: Interval
    before_by_position: Band
    after_by_position: Band
    agreement: Interval


@dataclass(frozen=True)
class Transplant:
    """An explicit layer that does what the layers did whose place it has taken.

    Attributes:
        model: The new model.
        binding: How the layer reads its problem.
        bindings: What can be read off each layer of the old model.
        answer: Its penalty and output map, in closed form.
        exchange: Losses before and after.
        tuned: The same after fine-tuning; None if that was not asked for.
        old_parameters: Trained numbers of the old model.
        removed: Number of blocks that were taken out.
    """

    model: SequenceTransformer
    binding: Binding
    bindings: tuple[Binding, ...]
    answer: Answer
    exchange: Exchange
    tuned: Exchange | None
    old_parameters: int
    removed: int

    @property
    def parameters(self) -> int:
        """Trained numbers of the new model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def final(self) -> Exchange:
        """The losses of the model as it is saved."""
        return self.tuned or self.exchange


def transplant(
    subject: Subject,
    plan: Plan,
    verdict: Mapping[str, Any],
    tuning_steps: int = 0,
    phases: Phases | None = None,
) -> Transplant | Refusal:
    """Replaces the layers that learn by one mesa-layer, if the verdict names a learner.

    Args:
        subject: The model.
        plan: The data; half of the sequences fit the layer, half compare the models.
        verdict: The model's verdict, as in results.json.
        tuning_steps: Steps of training for the new layer and the read-out, from the closed form.
        phases: Told of each of STEPS, and of the measurement after fine-tuning.

    Raises:
        InputError: The task does not fit the model, or its outputs are not finite.
    """
    if reason := unfit(verdict):
        return Refusal(reason)
    if isinstance(plan.task, Spaced):
        return Refusal(
            "Pairs lie on two tokens: no token's stream can state the problem by itself."
        )
    check_fit(subject, plan)
    old = transformer_of(subject)
    if not old.config.bare:
        return Refusal("The model reads its stream through norms or biases; a new layer has none.")
    phases = phases or Phases(lambda done, total: None, len(STEPS) + (tuning_steps > 0))
    with one_thread():
        found = _bindings(subject, plan, phases.next())
        complete = [binding for binding in found if binding.complete]
        if not complete:
            return Refusal("No layer's stream tells a token its pair and its query.", found)
        binding = complete[0]
        answer = _answer(subject, plan, binding, phases.next())
        model = build(old, binding, answer)
        exchange = exchanged(old, model, plan, phases.next())
        tuned = None
        if tuning_steps:
            model = fine_tuned(model, plan, tuning_steps, binding.layer)
            tuned = exchanged(old, model, plan, phases.next())
    removed = old.layers - binding.layer
    return Transplant(model, binding, found, answer, exchange, tuned, subject.parameters, removed)


def unfit(verdict: Mapping[str, Any]) -> str | None:
    """Why a model with this verdict has nothing to replace; None if it has."""
    if not verdict["instruments_ok"]:
        return "The instruments misread, so there is no verdict to act on."
    if verdict["class"] not in LEARNERS:
        named = str(verdict["class"]).replace("_", " ")
        return f"The verdict is {named}: there is no optimizer to replace."
    if verdict["evidence_level"] < 1:
        return "The evidence is at level 0: the optimizer is not established."
    return None


def _bindings(subject: Subject, plan: Plan, progress: Progress) -> tuple[Binding, ...]:
    stage = BindingStage.of(plan.task.problem(plan.draw(PILOT, 0, 2)))
    return bindings(stage, _measured(subject, plan, stage, progress))


def _answer(subject: Subject, plan: Plan, binding: Binding, progress: Progress) -> Answer:
    learned: Answer = _measured(subject, plan, ExplicitStage(binding), progress).learned
    return learned


def _measured(subject: Subject, plan: Plan, stage: Stage, progress: Progress) -> Measured:
    models, views = {SUBJECT: subject.model}, {SUBJECT: seen_as(SUBJECT)}
    return Sweep(plan, models, views, capture, progress).run((stage,))[stage, SUBJECT]


def exchanged(
    old: SequenceTransformer, new: SequenceTransformer, plan: Plan, progress: Progress
) -> Exchange:
    """Both models on the test sequences."""
    views: dict[str, View] = {name: seen_as(name) for name in (SUBJECT, EXPLICIT)}
    views[CHANGE] = change_to(EXPLICIT)
    stage = LossStage(tuple(views))
    sweep = Sweep(plan, {SUBJECT: old, EXPLICIT: new}, views, capture_output, progress)
    results = sweep.run((stage,))
    sums = {view: results[stage, view].sums for view in stage.views}
    count = sums[SUBJECT]["sequences"]
    before, after = (sums[view]["loss"] for view in (SUBJECT, EXPLICIT))
    return Exchange(
        before=mean_per_sequence(before.mean(1), count),
        after=mean_per_sequence(after.mean(1), count),
        ratio=ratio(after, before),
        before_by_position=band(before, count[:, None]),
        after_by_position=band(after, count[:, None]),
        agreement=share_explained(sums[CHANGE]["energy"], sums[SUBJECT]["energy"]),
    )


def fine_tuned(
    model: SequenceTransformer, plan: Plan, steps: int, layer: int
) -> SequenceTransformer:
    """The model after training of its explicit layer and read-out; what is below stays."""
    optimiser = Optimiser(
        steps=steps,
        batch=TUNING_BATCH,
        peak_rate=TUNING_RATE,
        floor_rate=0.0,
        warmup=0,
        weight_decay=0.0,
        gradient_clip=1.0,
        init_std=1.0,
    )
    trainer = Trainer(Recipe("fine-tuning", plan.task.name, model.config, optimiser, plan.seed))
    trainer.model.load_state_dict(model.state_dict())
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_(name.startswith((f"blocks.{layer}.", "W_U")))
    while trainer.done < steps:
        trainer.step()
    return trainer.model.eval().requires_grad_(False)
