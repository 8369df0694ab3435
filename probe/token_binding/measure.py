"""All three measures of one model, each beside its controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import Capture, capture
from probe.models.transformer import SequenceTransformer
from probe.plan import Plan
from probe.progress import Phases
from probe.sampling import generator_for
from probe.stages import Context
from probe.statistics import BLOCKS, Interval, bootstrap_interval
from probe.sweep import Sweep
from probe.token_binding.attention import Contributions, contributions, without
from probe.token_binding.decoding import Decoding, LayerLags, TokenLags, decodings
from probe.token_binding.sensitivity import Sensitivity, sensitivity
from probe.token_binding.window import LagWindow
from probe.views import ANOTHER, SUBJECT, TWIN, permuted_twin, seen_as

SEQUENCES = 1024  # to decode; each gives many positions
NUMBERS, FEWEST, MOST = 12_000, 16, 32  # of tokens, and sequences, whose derivatives are taken
PHASES = 4  # what is decoded, and three sets of derivatives
STREAM = 7  # of random numbers, beside the splits

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Measures:
    """What was measured.

    Attributes:
        window: The late positions, and the lags.
        decoded: What was decoded, by view.
        attention: What the heads of each block write at these positions, by view.
        late: Derivatives by the last token that has all lags behind it, by view.
        middle: The same by a token in the middle, of the subject.
        models: The models, by view.
        tokens: The sequences that were traced.
    """

    window: LagWindow
    decoded: Mapping[str, Decoding]
    attention: Mapping[str, tuple[Contributions, ...]]
    late: Mapping[str, Sensitivity]
    middle: Sensitivity
    models: Mapping[str, SequenceTransformer]
    tokens: Float[Tensor, "batch time d_in"]

    def change_without(self, view: str, layer: int, lags: Sequence[int]) -> Interval:
        """Energy by which late predictions change once a layer copies no more, over their own."""
        model, late = self.models[view], self.window.positions
        before, after = (
            without(model, self.tokens, layer - 1, removed)[:, late].double()
            for removed in ((), lags)
        )
        change = after - before
        return ratio(change.square().sum((1, 2)), before.square().sum((1, 2)))


def measure(model: SequenceTransformer, plan: Plan, progress: Progress) -> Measures:
    """Decodes on a part of the plan's sequences, and traces a few more through the weights."""
    window = LagWindow.late(plan.task.length)
    twin = permuted_twin(model, plan.seed)
    count = max(FEWEST, min(MOST, NUMBERS // (plan.task.length * plan.task.width_in)))
    tokens = plan.task.sample(count, generator_for(plan.seed, STREAM)).tokens
    both = {SUBJECT: model, TWIN: twin}
    late = window.stop - window.lags
    phases = Phases(progress, PHASES)

    def derive(seen: SequenceTransformer, position: int) -> Sensitivity:
        derived = sensitivity(seen, tokens, position, window.lags)
        phases.next()(1, 1)
        return derived

    return Measures(
        window,
        _decode(both, plan, window, phases.next()),
        {view: contributions(seen, tokens, window) for view, seen in both.items()},
        {view: derive(seen, late) for view, seen in both.items()},
        derive(model, late // 2),
        both,
        tokens,
    )


def _decode(
    models: Mapping[str, SequenceTransformer], plan: Plan, window: LagWindow, progress: Progress
) -> Mapping[str, Decoding]:
    """Half of the sequences fit, half test."""
    smaller = replace(plan, sequences=min(plan.sequences, SEQUENCES))
    width = plan.draw(STREAM, 0, 1).observations.shape[-1]
    stages = LayerLags(window, width), TokenLags(window, width)
    views = {SUBJECT: seen_as(SUBJECT), TWIN: seen_as(TWIN), ANOTHER: _another}
    results = Sweep(smaller, models, views, capture, progress).run(stages)
    return decodings(results, *stages)


def _another(context: Context, captures: Mapping[str, Capture]) -> tuple[Context, Capture]:
    """The stream of the sequence before."""
    seen = captures[SUBJECT]
    return context, replace(seen, layers=seen.layers.roll(1, 1))


def mean_over_sequences(values: Float[Tensor, " batch"]) -> Interval:
    """The mean with its interval."""
    return ratio(values, torch.ones_like(values))


def ratio(part: Float[Tensor, " batch"], whole: Float[Tensor, " batch"]) -> Interval:
    """sum(part) / sum(whole) over sequences, no more than there are blocks, with its interval."""
    part, whole = (
        torch.nn.functional.pad(each.double(), (0, BLOCKS - len(each))) for each in (part, whole)
    )
    return bootstrap_interval(lambda weights: (weights @ part) / (weights @ whole))
