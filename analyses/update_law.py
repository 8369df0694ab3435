"""By which law does the response grow from layer to layer?

Hypotheses, fitted together since each can imitate another: a gradient step,
w' = w + eta mu (1 - w); Newton, w' = 2 w - w^2; a ridge path, w' = mu / (mu + lambda'); and no
new solving, w' = c w. Here w = mu f(mu) is the response of one layer and w' that of the next.
Test statistic: held-out R^2 of what the next layer says; a law holds within the margin of that
layer's free response. A falling ridge path also fits Newton's law, so this analysis alone never
supports Newton.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from probe.analysis import Setting
from probe.findings import Finding, Metric, Outcome, Table
from probe.response import FINE
from probe.response_stage import Learned, ResponseStage, response_stages
from probe.scores import Reading, Score, read
from probe.solvers.base import Quadratic, zoom
from probe.solvers.ridge import shrinkage as ridge_shrinkage
from probe.stages import Measured, Results
from probe.statistics import Interval
from probe.views import SUBJECT

MARGIN = 0.02
VISIBLE = 0.5
SOLVING = ("gradient_step", "newton", "ridge_path")


@dataclass(frozen=True)
class Transition:
    """One step from layer to layer, at one kind of site.

    Attributes:
        layer: The layer that is reached.
        kind: decoded or readout.
        free: R^2 of the free response there.
        laws: By law, its coefficient, R^2, and the deficit against the free response.
    """

    layer: int
    kind: str
    free: float
    laws: dict[str, tuple[float, float, Interval]]

    @property
    def within(self) -> tuple[str, ...]:
        """The laws that cannot be told from the free response."""
        return tuple(name for name, (_, _, gap) in self.laws.items() if gap.hi < MARGIN)


@dataclass(frozen=True)
class UpdateLaw:
    """Fits all laws to all transitions."""

    name: str = "update_law"
    place: int = 50
    rests_on: frozenset[str] = frozenset({"streams"})
    question: str = "By which law does the response grow from layer to layer?"

    def stages(self, setting: Setting) -> tuple[ResponseStage, ...]:
        """The responses of the layers."""
        return response_stages(setting)[:1]

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if most visible transitions follow a law of solving that is not mere scaling."""
        stage = self.stages(setting)[0]
        measured = results[stage, SUBJECT]
        transitions = [
            _transition(stage, measured, kind, layer)
            for kind in ("decoded", "readout")
            for layer in range(2, setting.layers + 1)
        ]
        visible = [t for t in transitions if t.kind == "decoded" and t.free >= VISIBLE]
        lawful = [t for t in visible if set(t.within) & set(SOLVING)]
        solving = [t for t in lawful if "scaled" not in t.within]
        names = [
            name for name in SOLVING if sum(name in t.within for t in visible) * 2 > len(visible)
        ]
        return Finding(
            self.name,
            self.question,
            _outcome(len(visible), len(lawful), len(solving)),
            _statement(len(visible), len(lawful), len(solving), names),
            {
                "transitions_explained": Metric(
                    len(lawful), "transitions that a law of solving explains"
                ),
                "transitions": Metric(
                    len(visible), "transitions to layers with a response, R^2 >= 0.5"
                ),
            },
            {
                "transitions_explained": Metric(
                    len([t for t in visible if "scaled" in t.within]),
                    "visible transitions that mere scaling explains as well",
                )
            },
            "A ridge path whose lambda falls also fits Newton's law, so neither is shown by this.",
            (Table("update_law", pd.DataFrame(_rows(transitions), columns=_COLUMNS)),),
        )


_COLUMNS = ["layer", "law", "coefficient", "r2", "deficit_lo", "deficit_hi", "site"]


def _outcome(visible: int, lawful: int, solving: int) -> Outcome:
    if visible == 0:
        return "inconclusive"
    if 2 * lawful > visible and solving > 0:
        return "supports"
    return "contradicts" if lawful == 0 else "inconclusive"


def _statement(visible: int, lawful: int, solving: int, names: list[str]) -> str:
    if visible == 0:
        return "No two successive layers show a response, so there is no law to read."
    laws = ", ".join(name.replace("_", " ") for name in names) or "no single law"
    return (
        f"{lawful} of {visible} transitions follow a law of solving within {MARGIN} of R^2, "
        f"{solving or 'none'} of them better than mere scaling; in most transitions: {laws}."
    )


def _transition(stage: ResponseStage, measured: Measured, kind: str, layer: int) -> Transition:
    learned: Learned = measured.learned
    before = _curve(learned, f"{kind}:{layer - 1}")
    site = f"{kind}:{layer}"
    errors = learned.errors[site, "judged"].part(slice(0, FINE))
    reading = read(stage, measured, site, "judged")
    free = reading.chosen("spline")
    laws = {}
    for name, fit in _LAWS.items():
        coefficient, curve = fit(errors, stage.mu, before)
        score = _score(stage, measured, site, reading, curve)
        laws[name] = (coefficient, reading.value(score), reading.deficit(score, free))
    return Transition(layer, kind, reading.value(free), laws)


def _curve(learned: Learned, site: str) -> Tensor:
    spline = next(m for m in learned.members[site, "judged"] if m.family == "spline")
    return spline.weights[:FINE]


def _score(
    stage: ResponseStage, measured: Measured, site: str, reading: Reading, curve: Tensor
) -> Score:
    gram = measured.sums["gram"][:, stage.within("judged")].sum(1)
    sites = measured.learned.sites
    place = gram.shape[-1] - len(sites) + sites.index(site)
    explained = torch.einsum("c,bcd,d->b", curve, gram[:, :FINE, :FINE], curve)
    error = explained - 2 * gram[:, place, :FINE] @ curve + reading.energy
    return Score("law", {}, None, 1, 0.0, error)


def _linear(errors: Quadratic, fixed: Tensor, slope: Tensor) -> tuple[float, Tensor]:
    """The best curve fixed + c slope."""
    pull = slope @ (errors.cross - errors.gram @ fixed)
    coefficient = pull / (slope @ errors.gram @ slope)
    return float(coefficient), fixed + coefficient * slope


def _gradient_step(errors: Quadratic, mu: Tensor, before: Tensor) -> tuple[float, Tensor]:
    return _linear(errors, before, mu * (1 - before))


def _newton(errors: Quadratic, mu: Tensor, before: Tensor) -> tuple[float, Tensor]:
    return float("nan"), 2 * before - before**2


def _ridge_path(errors: Quadratic, mu: Tensor, before: Tensor) -> tuple[float, Tensor]:
    penalty = zoom(
        errors, lambda p: ridge_shrinkage(mu, p), float(mu[0]) * 1e-3, float(mu[-1]) * 10
    )
    return penalty, ridge_shrinkage(mu, penalty)


def _scaled(errors: Quadratic, mu: Tensor, before: Tensor) -> tuple[float, Tensor]:
    return _linear(errors, torch.zeros_like(before), before)


Law = Callable[[Quadratic, Tensor, Tensor], tuple[float, Tensor]]
_LAWS: dict[str, Law] = {
    "gradient_step": _gradient_step,
    "newton": _newton,
    "ridge_path": _ridge_path,
    "scaled": _scaled,
}


def _rows(transitions: list[Transition]) -> Iterator[dict[str, object]]:
    for transition in transitions:
        for law, (coefficient, r2, gap) in transition.laws.items():
            yield {
                "layer": transition.layer,
                "law": law,
                "coefficient": coefficient,
                "r2": r2,
                "deficit_lo": gap.lo,
                "deficit_hi": gap.hi,
                "site": transition.kind,
            }


NAMED = {"update_law": UpdateLaw()}
