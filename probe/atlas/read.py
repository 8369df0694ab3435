"""One streaming pass over sequences reads every head of every layer, its twin and its rule.

Half of the sequences fit every constant, the other half score. Only sums are kept; the memory does
not grow with the number of sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.atlas.causal import causal_weights, unit_of
from probe.atlas.explanations import Group, explanations, penalties_for, planted_ridge, planted_step
from probe.atlas.naming import (
    OPTIMIZERS,
    SOLVERS,
    Controls,
    Name,
    Planted,
    is_linear,
    name_of,
    read_planted,
)
from probe.atlas.problem import HeadProblem, answers, pose
from probe.atlas.rule import finite, rule_on_noise
from probe.atlas.scores import Score, Sums, products, scores
from probe.errors import InputError
from probe.models.hooked import Heads, HookedModel, Tokens, reading_device
from probe.plan import FIT, TEST
from probe.sampling import generator_for
from probe.statistics import BLOCKS
from probe.views import permuted_twin

SHARD = 8  # sequences that are read at once
POSITIONS = 8  # of each sequence, at most
EARLY = 4  # the first quarter of the positions is left out
CONTROLLED = 4  # controls are read on a quarter of the sequences, but on 2 shards at least
ABLATED = 8  # sequences on which heads are ablated
WORK = 3  # of a shard with controls, where one without is 1
NUMBERS = 2**23  # of the pairs' products that are held at once
LEAST_SEQUENCES, LEAST_TIME = 64, 8
WEIGHTY = 0.01  # causal weight from which on a head matters
_NOISE = 9
Draw = Callable[[int, int], Tokens]


@dataclass(frozen=True)
class HeadReading:
    """What the atlas says of one head.

    Attributes:
        layer: Its layer, from 0.
        head: Its place in the layer, from 0.
        name: What explains its answers.
        by_construction: Whether its rule solves any problem that it is given.
        linear: Whether it is a softmax head in its linear regime: a gradient step from the mean.
        score: How well each group explains it.
        controls: The same in the twin, and of the rule on white noise.
        planted: How a planted solver on its problem is read, by solver.
        weight: Its causal weight.
    """

    layer: int
    head: int
    name: Name
    by_construction: bool
    linear: bool
    score: Score = field(repr=False)
    controls: Controls = field(repr=False)
    planted: dict[Group, Planted]
    weight: float

    @property
    def acts(self) -> bool:
        """Whether it is an optimizer that the output depends on."""
        return self.name in OPTIMIZERS and self.weight >= WEIGHTY


@dataclass(frozen=True)
class Atlas:
    """All heads of a model.

    Attributes:
        heads: By layer, then by place.
        sequences: How many were read.
        positions: The positions that were read, from 0.
        unit: What causal weights are counted in.
    """

    heads: tuple[HeadReading, ...]
    sequences: int
    positions: tuple[int, ...]
    unit: str

    @property
    def misread(self) -> int:
        """On how many heads a planted solver is misread."""
        return sum("misread" in head.planted.values() for head in self.heads)


def work_of(sequences: int) -> int:
    """How much there is to do on so many sequences, as progress counts it, without ablations."""
    shards = sequences // (2 * SHARD)
    return 2 * (shards + (WORK - 1) * min(shards, _controlled(shards)))


def _controlled(shards: int) -> int:
    """Shards of a split on which controls are read."""
    return max(2, shards // CONTROLLED)


def positions_of(time: int) -> Int[Tensor, " at"]:
    """The positions that are read: evenly over all but the first quarter.

    Raises:
        InputError: Too few tokens.
    """
    if time < LEAST_TIME:
        raise InputError(f"the head atlas needs sequences of {LEAST_TIME} tokens, not {time}")
    return torch.linspace(time // EARLY, time - 1, POSITIONS).round().long().unique()


@torch.no_grad()
def read_atlas(
    model: HookedModel,
    draw: Draw,
    sequences: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Atlas:
    """Reads all heads of a model.

    Args:
        model: Any model whose heads can be seen.
        draw: (first, count) to the tokens of these sequences; all of one length.
        sequences: How many to read, half of them to fit; what is over whole shards is left out.
        seed: Of the twin and the noise.
        progress: Called with (done, in all).

    Raises:
        InputError: No heads, too few or too short sequences.
    """
    layers = [layer for layer in range(model.layers) if model.head_sites(layer) is not None]
    if not layers:
        raise InputError("the model has no attention heads that can be read")
    if sequences < LEAST_SEQUENCES:
        raise InputError(f"the head atlas needs {LEAST_SEQUENCES} sequences, not {sequences}")
    shards = sequences // (2 * SHARD)
    total = work_of(sequences) + len(layers)
    done = 0
    reader = _Reader(model, layers, seed)
    for index in range(2 * shards):
        split, shard = (FIT, index) if index < shards else (TEST, index - shards)
        tokens = draw(index * SHARD, SHARD)
        controlled = shard < _controlled(shards)
        reader.read(split, shard, tokens, controlled)
        done += WORK if controlled else 1
        progress(done, total)
    steps = iter(range(done + 1, total + 1))
    weights = causal_weights(
        model,
        draw(shards * SHARD, min(ABLATED, shards * SHARD)),
        int(reader.at[0]),
        lambda: progress(next(steps), total),
    )
    heads = tuple(
        reading
        for layer in layers
        for reading in _readings(layer, reader.found(layer), weights[layer])
    )
    return Atlas(heads, 2 * shards * SHARD, tuple(reader.at.tolist()), unit_of(model))


class _View:
    """The sums of one layer as it is seen in one way, and the penalties that suit it."""

    def __init__(self, first: HeadProblem, targets: tuple[str, ...]):
        self.penalties = penalties_for(first)
        self.sums = {target: Sums(first.keys.shape[1]) for target in targets}

    def add(self, split: int, heads: Heads, problem: HeadProblem, start: int) -> None:
        """Adds a shard; a few sequences at a time, so that no more is held than `NUMBERS`."""
        answer = answers(heads, problem.at)
        size = max(1, NUMBERS // problem.size)
        for part in torch.arange(len(answer)).split(size):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            self._add(split, answer[rows], problem.rows(rows), (start + part) % BLOCKS)

    def _add(self, split: int, answer: Tensor, problem: HeadProblem, blocks: Tensor) -> None:
        explained = explanations(problem, self.penalties)
        targets = {"own": lambda: answer, "step": lambda: planted_step(problem)}
        targets["ridge"] = lambda: planted_ridge(problem, self.penalties)
        values = problem.values.square().sum((-1, -2))
        said = torch.stack([targets[target]() for target in self.sums])
        found = products(said, problem.mean_value, explained)
        for sums, seen in zip(self.sums.values(), found, strict=True):
            if split == FIT:
                sums.add_fit(seen)
            else:
                sums.add_test(seen, values, blocks)

    def scores(self, target: str = "own") -> tuple[Score, ...]:
        """One score per head."""
        return scores(self.sums[target], self.penalties)


class _Reader:
    """Adds up shards: the model itself, its twin, and the rules of its heads on white noise."""

    def __init__(self, model: HookedModel, layers: list[int], seed: int):
        self.model, self.layers, self.seed = model, layers, seed
        self.twin = permuted_twin(model, seed)
        self.views: dict[tuple[int, str], _View] = {}
        self.gated: dict[int, bool] = {}
        self.averages: dict[int, Bool[Tensor, " heads"]] = {}
        self.at = torch.empty(0, dtype=torch.long)

    def read(self, split: int, shard: int, tokens: Tokens, controlled: bool) -> None:
        """Adds a shard; the controls too, if it is one of those that they are read on."""
        self.at = positions_of(tokens.shape[1])
        for layer, heads in _heads_of(self.model, tokens, self.layers):
            if not all(bool(part.isfinite().all()) for part in _parts(heads)):
                raise InputError(f"layer {layer}: what its heads work with is not finite")
            self.gated[layer] = heads.write is not None or heads.forget is not None
            self._add((layer, "model"), split, shard, heads, ("own", "step", "ridge"))
            if controlled and (noise := self._noise(layer, heads, split, shard)) is not None:
                self._add((layer, "rule"), split, shard, finite(noise))
        if controlled:
            for layer, heads in _heads_of(self.twin, tokens, self.layers):
                # A twin that overflows cannot be read, and then no claim is made against it.
                self._add((layer, "twin"), split, shard, finite(heads))

    def _add(
        self,
        key: tuple[int, str],
        split: int,
        shard: int,
        heads: Heads,
        targets: tuple[str, ...] = ("own",),
    ) -> None:
        problem = pose(heads, positions_of(heads.keys.shape[1]))
        if key not in self.views:
            self.views[key] = _View(problem.rows(slice(0, 2)), targets)
        self.views[key].add(split, heads, problem, shard * SHARD)

    def _noise(self, layer: int, heads: Heads, split: int, shard: int) -> Heads | None:
        """The rule of the layer on white noise."""
        seen = rule_on_noise(
            self.model, layer, heads, generator_for(self.seed, split, shard, layer, _NOISE)
        )
        if seen is None:
            return None
        self.averages[layer] = self.averages.get(layer, seen.averages) & seen.averages
        return seen.heads

    def found(self, layer: int) -> "_Found":
        """What the sums of a layer say."""
        own, twin = self.views[layer, "model"], self.views[layer, "twin"].scores()
        rule = self.views.get((layer, "rule"))
        rules = rule.scores() if rule else (None,) * len(twin)
        none = torch.zeros(len(twin), dtype=torch.bool)
        averages = self.averages.get(layer, none).tolist()
        return _Found(
            own.scores(),
            tuple(
                Controls(*scored, self.gated[layer], average)
                for scored, average in zip(zip(twin, rules, strict=True), averages, strict=True)
            ),
            {group: own.scores(group) for group in SOLVERS},
        )


@dataclass(frozen=True)
class _Found:
    own: tuple[Score, ...]
    controls: tuple[Controls, ...]
    planted: dict[Group, tuple[Score, ...]]


def _heads_of(model: HookedModel, tokens: Tokens, layers: list[int]) -> list[tuple[int, Heads]]:
    wanted = {name for layer in layers if (sites := model.head_sites(layer)) for name in sites.seen}
    device = reading_device(model)
    _, cache = model.run_with_cache(tokens.to(device), names_filter=lambda name: name in wanted)
    return [(layer, model.heads(layer, cache)) for layer in layers]


def _parts(heads: Heads) -> list[Tensor]:
    return [part for part in vars(heads).values() if part is not None]


def _readings(layer: int, found: _Found, weights: Tensor) -> list[HeadReading]:
    readings = []
    for head, (score, controls) in enumerate(zip(found.own, found.controls, strict=True)):
        name = name_of(score, controls)
        readings.append(
            HeadReading(
                layer,
                head,
                name,
                by_construction=name in OPTIMIZERS and controls.by_construction,
                linear=is_linear(score, name),
                score=score,
                controls=controls,
                planted={
                    group: read_planted(planted[head], group)
                    for group, planted in found.planted.items()
                },
                weight=float(weights[head]),
            )
        )
    return readings
