"""The objective that explains predictions best: which kind, with which constants."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from probe.extensions import Responses
from probe.objectives import Forgetting, Objective, PowerWeighted, Preconditioned, Under
from probe.profiles import Profile
from probe.statistics import Interval, bootstrap_interval

PLAIN = 0
LAMBDAS = 49
KINDS: Mapping[str, type] = {
    "forgetting": Forgetting,
    "weighting": PowerWeighted,
    "preconditioner": Preconditioned,
}


@dataclass(frozen=True)
class Alternative:
    """An objective beside the plain one.

    Attributes:
        place: Its place in the stage.
        objective: The objective.
        gain: What its response gains in R^2 over the plain one.
    """

    place: int
    objective: Objective
    gain: Interval


@dataclass(frozen=True)
class ObjectiveFit:
    """The objective read from the responses of one view; plain least squares stands first.

    Attributes:
        responses: Under every objective.
        delta: The margin in R^2 that an alternative must gain.
    """

    responses: Responses
    delta: float

    @cached_property
    def objectives(self) -> list[Objective]:
        """In the order of the stage."""
        posings = self.responses.stage.posings
        return [posing.objective for posing in posings if isinstance(posing, Under)]

    @cached_property
    def alternatives(self) -> dict[str, Alternative]:
        """Of each kind, the member of least error on the fit split."""
        found = {}
        for kind, type_ in KINDS.items():
            members = [i for i, o in enumerate(self.objectives) if i and isinstance(o, type_)]
            best = min(members, key=lambda i: self.responses.member(i).error)
            gain = self.responses.gain(best, over=PLAIN)
            found[kind] = Alternative(best, self.objectives[best], gain)
        return found

    @cached_property
    def named(self) -> tuple[str, ...]:
        """Kinds that surely gain the margin and are not shown to gain less than the best of them.

        More than one cannot be told apart; none leaves plain least squares.
        """
        gaining = {k: a for k, a in self.alternatives.items() if a.gain.lo > self.delta}
        if not gaining:
            return ()
        best = max(gaining.values(), key=lambda a: a.gain.value)
        deficits = {k: self.responses.gain(best.place, over=a.place) for k, a in gaining.items()}
        alike = [kind for kind, deficit in deficits.items() if deficit.lo <= self.delta]
        return tuple(sorted(alike, key=lambda kind: -gaining[kind].gain.value))

    @property
    def chosen(self) -> int:
        """Place of the objective of highest R^2 among the named ones; else the plain one."""
        return self.alternatives[self.named[0]].place if self.named else PLAIN

    @cached_property
    def fading(self) -> Profile:
        """The error over the rate of forgetting, -log gamma, from 0."""
        rates = {
            -math.log(objective.gamma): place
            for place, objective in enumerate(self.objectives)
            if isinstance(objective, Forgetting)
        }
        return self._profile(rates)

    @cached_property
    def weighting(self) -> Profile:
        """The error over the power of the position that weights a pair."""
        powers = {
            objective.power: place
            for place, objective in enumerate(self.objectives)
            if isinstance(objective, PowerWeighted)
        }
        return self._profile({**powers, 0.0: PLAIN})

    @cached_property
    def penalty(self) -> Profile:
        """The error of ridge over log lambda, under the chosen objective."""
        knots = torch.tensor(self.responses.stage.posings[self.chosen].knots, dtype=torch.float64)
        ends = knots[[0, -1]].log().tolist()
        grid = torch.linspace(ends[0], ends[1], LAMBDAS, dtype=torch.float64)
        errors = self.responses.errors(self.chosen, knots / (knots + grid.exp()[:, None]))
        return Profile(tuple(grid.tolist()), errors, self.responses.energy)

    @cached_property
    def gamma(self) -> Interval:
        """The factor by which pairs fade per position."""
        rate = self.fading.least()
        return Interval(math.exp(-rate.value), math.exp(-rate.hi), math.exp(-rate.lo))

    @cached_property
    def power(self) -> Interval:
        """The power of the position that weights a pair."""
        return self.weighting.least()

    @cached_property
    def ridge(self) -> Interval:
        """The effective lambda, in the units of the eigenvalues."""
        least = self.penalty.least()
        return Interval(*(math.exp(end) for end in (least.value, least.lo, least.hi)))

    @cached_property
    def beyond_ridge(self) -> Interval:
        """What the free response gains in R^2 over the best ridge."""
        free, energy = self.responses.error(self.chosen), self.responses.energy
        ridge = self.responses.error(self.chosen, "ridge")
        return bootstrap_interval(lambda weights: weights @ (ridge - free) / (weights @ energy))

    def excluded(self) -> dict[str, list[float]]:
        """Values of gamma and of the power that surely lose the margin against the best value."""
        return {
            "gamma": [math.exp(-rate) for rate in self.fading.excluded(self.delta)],
            "power": self.weighting.excluded(self.delta),
        }

    @cached_property
    def whitening_loses(self) -> bool:
        """Whether the preconditioner is surely worse than plain least squares by the margin."""
        return self.alternatives["preconditioner"].gain.hi < -self.delta

    def _profile(self, places: Mapping[float, int]) -> Profile:
        grid = sorted(places)
        errors = [self.responses.error(places[value]) for value in grid]
        joined: Float[Tensor, "blocks grid"] = torch.stack(errors, 1)
        return Profile(tuple(grid), joined, self.responses.energy)
