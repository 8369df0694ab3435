"""From a model to its linear layers, and to the losses with them in place."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import capture
from probe.closeness import LossStage
from probe.linearization.distill import Distilled, Kind, Pairs, Round, distil, searched
from probe.linearization.stage import ReplacementStage
from probe.linearization.surgery import softmax_layers, with_layers, without_layers
from probe.models.attention import AveragedAttention, LinearAttention
from probe.models.transformer import Block, SequenceTransformer
from probe.plan import FIT, SHARD, Plan
from probe.progress import Phases
from probe.sampling import generator_for
from probe.stages import Measured
from probe.sweep import Sweep
from probe.threads import one_thread
from probe.views import SUBJECT, seen_as

FORMS: Mapping[str, type[Kind]] = {"linear": LinearAttention, "averaged": AveragedAttention}
WITHOUT = "without"
FIRST, SECOND = Round(128, 20), Round(1024, 20)
STARTS = 7001  # a stream of its own, beside the splits


@dataclass(frozen=True)
class Effort:
    """How long is searched.

    Attributes:
        first: The round from both starts.
        second: The round from the better.
        again: Evaluations for each layer on the stream of the model whose earlier layers are
            linear already.
    """

    first: Round = FIRST
    second: Round = SECOND
    again: int = 8

    def rounds(self, sequences: int) -> tuple[Round, Round]:
        """Both rounds, where there are so many sequences to fit."""
        first = Round(min(self.first.sequences, sequences // 2), self.first.evaluations)
        return first, Round(min(self.second.sequences, sequences), self.second.evaluations)


@dataclass(frozen=True)
class Linearised:
    """What was found and measured.

    Attributes:
        layers: The softmax layers, from 0.
        joint: Those that are replaced together.
        found: The linear layer of each form in the place of each.
        stage: Its measurement.
        replaced: What each layer alone costs.
        losses: Losses of the models of `joint` and of the model itself, by block.
    """

    layers: tuple[int, ...]
    joint: tuple[int, ...]
    found: Mapping[str, Mapping[int, Distilled]] = field(repr=False)
    stage: ReplacementStage
    replaced: Measured
    losses: Mapping[str, Float[Tensor, " blocks"]]


def linearise(
    model: SequenceTransformer,
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
    effort: Effort | None = None,
) -> Linearised:
    """Replaces each softmax layer by linear attention, one at a time and together.

    Layers are fitted on the fit split, in as many threads as the plan has workers, with the same
    bits for any number. Together are replaced all softmax layers but that of the first block, or
    that one where it is the only one; see `linear_throughout`. Takes minutes.

    Args:
        model: The model; it is left as it is.
        plan: The data; half of the sequences fit the layers, half measure the losses.
        progress: Called with (done, in all).
        effort: How long is searched.
    """
    effort = effort or Effort()
    phases = Phases(progress, 3)
    rounds = effort.rounds(plan.sequences - plan.sequences // 2)
    tokens = _fit_tokens(plan, rounds[1].sequences)
    layers = softmax_layers(model)
    with one_thread():
        found = _found(model, plan, tokens, rounds, phases.next())
        joint = tuple(layer for layer in layers if layer) or layers
        together, told = {}, phases.next()
        for done, (form, kind) in enumerate(FORMS.items(), 1):
            mine = {layer: found[form][layer] for layer in joint}
            together[form] = linear_throughout(model, kind, mine, tokens, effort.again)
            told(done, len(FORMS))
        together[WITHOUT] = without_layers(model, joint)
        return _measured(model, plan, layers, joint, found, together, phases.next())


def _fit_tokens(plan: Plan, count: int) -> Float[Tensor, "batch time d_in"]:
    shards = plan.shards(FIT)
    drawn = [plan.draw(FIT, shard, size).tokens for shard, (_, size) in enumerate(shards)]
    return torch.cat(drawn)[:count]


@dataclass(frozen=True)
class Passage:
    """What a layer reads and adds, and the largest entry of the stream after its block."""

    pairs: Pairs
    largest: float


@torch.no_grad()
def passing(
    model: SequenceTransformer, tokens: Float[Tensor, "batch time d_in"], layer: int
) -> Passage:
    """What passes a layer."""
    names = ("hook_resid_pre", "hook_attn_out", "hook_resid_post")
    sites = [f"blocks.{layer}.{name}" for name in names]
    parts = [model.run_with_cache(part, names_filter=sites)[1] for part in tokens.split(SHARD)]
    stream, added, after = (torch.cat([part[site] for part in parts]) for site in sites)
    return Passage(Pairs(stream, added), float(after.abs().max()))


def _found(
    model: SequenceTransformer,
    plan: Plan,
    tokens: Tensor,
    rounds: tuple[Round, Round],
    progress: Callable[[int, int], None],
) -> Mapping[str, Mapping[int, Distilled]]:
    """The linear layers of each form, one at a time."""
    jobs = [(form, layer) for form in FORMS for layer in softmax_layers(model)]

    def run(job: tuple[str, int]) -> Distilled:
        form, layer = job
        own = deepcopy(model)  # hooks of concurrent passes would mix
        config, block = own.config.blocks[layer].attention, own.blocks[layer]
        assert isinstance(block, Block)
        return distil(
            block.attn,
            passing(own, tokens, layer).pairs,
            FORMS[form](config.heads, config.d_head),
            rounds,
            generator_for(plan.seed, STARTS, layer),
        )

    found: dict[str, dict[int, Distilled]] = {form: {} for form in FORMS}
    with ThreadPoolExecutor(plan.workers) as pool:
        for done, ((form, layer), one) in enumerate(zip(jobs, pool.map(run, jobs), strict=True), 1):
            found[form][layer] = one
            progress(done, len(jobs))
    return found


def linear_throughout(
    model: SequenceTransformer,
    kind: type[Kind],
    found: Mapping[int, Distilled],
    tokens: Float[Tensor, "batch time d_in"],
    evaluations: int,
) -> SequenceTransformer:
    """The model with all these layers linear, each fitted again on the stream that it meets.

    Its target is what leads from that stream to the one after the layer in the model as it was,
    so that a layer may mend what those below have spoiled. The stream is clipped where it leaves
    the range that it had.
    """
    changed = model
    for layer in sorted(found):
        before, met = passing(model, tokens, layer), passing(changed, tokens, layer).pairs.stream
        after = before.pairs.stream + before.pairs.added
        config = model.config.blocks[layer].attention
        size = kind(config.heads, config.d_head)
        refitted, _ = searched(found[layer].layer, size, Pairs(met, after - met), evaluations)
        changed = with_layers(changed, kind, {layer: refitted}, before.largest)
    return changed


def _measured(
    model: SequenceTransformer,
    plan: Plan,
    layers: tuple[int, ...],
    joint: tuple[int, ...],
    found: Mapping[str, Mapping[int, Distilled]],
    together: Mapping[str, SequenceTransformer],
    progress: Callable[[int, int], None],
) -> Linearised:
    linear = tuple(tuple(found[form][layer].layer for form in FORMS) for layer in layers)
    stage = ReplacementStage(layers, tuple(FORMS), linear)
    losses = LossStage((SUBJECT, *together))
    models = {SUBJECT: model, **together}
    views = {name: seen_as(name) for name in models}
    results = Sweep(plan, models, views, capture, progress).run((stage, losses))
    by_block = {name: results[losses, name].sums["loss"].sum(1) for name in models}
    return Linearised(layers, joint, found, stage, results[stage, SUBJECT], by_block)
