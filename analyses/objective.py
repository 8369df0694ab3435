"""Which least-squares objective do the predictions solve?

Hypothesis: the plain sum over all pairs, each of equal weight, in the coordinates of the tokens,
with a penalty lambda |W|^2. Alternatives: pairs that fade with their age by a factor gamma per
position, pairs whose weight is a power of their position, and keys and queries that a fixed matrix
has changed, here the whitening of the task's keys.
Test statistic: the held-out R^2 that the response of the best alternative, chosen on the fit
split, gains over that of plain least squares, paired by block. Gamma and the power are fitted
between the points of their grids, lambda freely, all with intervals.
Refuted if one gains more than the margin delta. Costs one eigendecomposition per objective at every
third position of some of the sequences.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from probe.analysis import Setting
from probe.extensions import ExtensionStage, Responses
from probe.findings import Finding, LineChart, Metric, Outcome, Series, Table
from probe.objective_fit import PLAIN, ObjectiveFit
from probe.objectives import GAMMAS, POWERS, objective_stage
from probe.profiles import Profile
from probe.rule import Thresholds
from probe.stages import Results
from probe.statistics import Interval
from probe.views import PLANTED, SUBJECT

FORMULAE = {
    "forgetting": "sum_j gamma^(t-j) |v_j - W k_j|^2",
    "weighting": "sum_j j^a |v_j - W k_j|^2",
    "preconditioner": "sum_j |v_j - W P k_j|^2 with whitened keys and queries",
}


@dataclass(frozen=True)
class ObjectiveAnalysis:
    """Fits the response under each objective, and the constants of the objective."""

    name: str = "objective"
    place: int = 100
    question: str = "Which least-squares objective do the predictions solve?"

    def stages(self, setting: Setting) -> tuple[ExtensionStage, ...]:
        """The responses under all objectives."""
        return (objective_stage(setting),)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if a response explains the predictions and no alternative gains delta."""
        (stage,) = self.stages(setting)
        thresholds = Thresholds.load()
        fits = {
            view: ObjectiveFit(Responses(stage, results[stage, view]), thresholds.delta)
            for view in (SUBJECT, PLANTED)
        }
        fit = fits[SUBJECT]
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=_outcome(fit, thresholds),
            statement=_statement(fit, thresholds),
            metrics={
                "plain_r2": Metric.of(
                    fit.responses.r2(PLAIN), "R^2 of the best response of plain least squares"
                ),
                **_metrics(fit),
            },
            controls={
                f"{name} (planted mesa-layer)": metric
                for name, metric in _metrics(fits[PLANTED]).items()
            },
            does_not_show=(
                "An objective that gains nothing may still be the one that is solved, where the "
                "task makes both the same; and only one fixed matrix is tried. Gamma and the power "
                "are fitted one at a time."
            ),
            tables=(Table(self.name, pd.DataFrame(_rows(fit))),),
            figures=tuple(_charts(fits)),
            bearing=_bearing(fit, thresholds),
        )


def _best(fit: ObjectiveFit) -> float:
    return max(fit.responses.r2(place).value for place in range(len(fit.objectives)))


def _outcome(fit: ObjectiveFit, thresholds: Thresholds) -> Outcome:
    explained = fit.responses.r2(PLAIN).value >= thresholds.explained
    close = all(one.gain.hi < thresholds.delta for one in fit.alternatives.values())
    return "supports" if explained and close else "inconclusive"


def _statement(fit: ObjectiveFit, thresholds: Thresholds) -> str:
    plain = fit.responses.r2(PLAIN).value
    if not _best(fit) >= thresholds.something:
        return "No response explains the predictions, so there is no objective to name."
    share = f"plain least squares explains {plain:.1%} of the predictions"
    if fit.named:
        gains = " or ".join(_words(fit, kind) for kind in fit.named)
        untold = ", which cannot be told apart" if len(fit.named) > 1 else ""
        return f"A response of {share}; {gains}{untold}. {_formula(fit)}"
    others = "neither forgetting, nor weights by position, nor a preconditioner adds"
    return f"A response of {share}; {others} {fit.delta:g}. {_formula(fit)} {_excluded(fit)}"


def _words(fit: ObjectiveFit, kind: str) -> str:
    gain = f"adds {fit.alternatives[kind].gain.value:.3f}"
    return {
        "forgetting": f"forgetting by {_gamma(fit)} per position {gain}",
        "weighting": f"weighting pairs by j^a, a = {_power(fit)}, {gain}",
        "preconditioner": f"whitening keys and queries {gain}",
    }[kind]


def _formula(fit: ObjectiveFit) -> str:
    """The objective with its penalty, as far as a penalty describes the response."""
    formula = FORMULAE[fit.named[0]] if fit.named else "sum_j |v_j - W k_j|^2"
    ridge = _with_interval(fit.ridge)
    if fit.beyond_ridge.lo <= fit.delta:
        return f"Its response is that of the minimum of {formula} + lambda |W|^2, lambda = {ridge}."
    return (
        f"It descends on {formula} without solving it: the nearest penalty lambda |W|^2, lambda = "
        f"{ridge}, leaves {fit.beyond_ridge.value:.3f} of R^2 that the free response explains."
    )


def _excluded(fit: ObjectiveFit) -> str:
    """What surely loses the margin, and what might as well be true."""
    found = fit.excluded()
    gammas, powers = found["gamma"], found["power"]
    parts = [f"forgetting by {max(gammas):.2g} or faster"] if gammas else []
    parts += [f"weights j^{power:g}" for power in powers]
    parts += ["whitening"] if fit.whitening_loses else []
    said = f"Excluded: {', '.join(parts)}." if parts else "Nothing that was tried is excluded."
    fitted = f"gamma = {_gamma(fit)}, weights j^a with a = {_power(fit)}"
    untold = "" if fit.whitening_loses else "; whitening cannot be told apart"
    return f"{said} Fitted freely: {fitted}{untold}."


def _bearing(fit: ObjectiveFit, thresholds: Thresholds) -> str:
    if not fit.named or _best(fit) < thresholds.explained:
        return ""
    return f"The objective is not plain least squares: {_words(fit, fit.named[0])} to R^2."


def _gamma(fit: ObjectiveFit) -> str:
    return _within(fit.gamma, GAMMAS[-1])


def _power(fit: ObjectiveFit) -> str:
    return _within(fit.power, POWERS[0], POWERS[-1])


def _within(interval: Interval, *ends: float) -> str:
    """A constant with its interval, or that it lies at an end of what was tried."""
    if interval.value in ends:
        return f"{interval.value:.3g} or beyond, the last that was tried"
    return _with_interval(interval)


def _with_interval(interval: Interval) -> str:
    return f"{interval.value:.3g} [{interval.lo:.3g}, {interval.hi:.3g}]"


def _metrics(fit: ObjectiveFit) -> dict[str, Metric]:
    gains = {
        f"{kind}_gain": Metric.of(
            one.gain, f"R^2 that the best {kind} adds to the best plain response"
        )
        for kind, one in fit.alternatives.items()
    }
    return gains | {
        "gamma": Metric.of(fit.gamma, "the factor by which pairs fade per position"),
        "weight_power": Metric.of(fit.power, "the power a of a pair's position that weights it"),
        "lambda": Metric.of(fit.ridge, "the penalty of the ridge nearest to the response"),
        "beyond_ridge": Metric.of(fit.beyond_ridge, "R^2 of the free response minus that of ridge"),
    }


def _rows(fit: ObjectiveFit) -> Iterator[dict[str, object]]:
    for place, objective in enumerate(fit.objectives):
        for family in fit.responses.families(place):
            r2 = fit.responses.r2(place, family)
            yield {
                "objective": objective.name,
                "family": family,
                "r2": r2.value,
                "r2_lo": r2.lo,
                "r2_hi": r2.hi,
            }


def _charts(fits: Mapping[str, ObjectiveFit]) -> Iterator[LineChart]:
    profiles = {view: (fit.fading, fit.weighting) for view, fit in fits.items()}
    gammas = [math.exp(-rate) for rate in fits[SUBJECT].fading.grid]
    powers = list(fits[SUBJECT].weighting.grid)
    caption = (
        "Held-out R^2 of the free response under each objective, less the best, with 95 % "
        "intervals. Plain least squares at {}. The planted mesa-layer, which solves it, shows what "
        "other objectives cost on this task."
    )
    for place, (name, title, x_label, x) in enumerate(
        (
            ("objective_forgetting", "Do pairs fade with age?", "gamma, per position", gammas),
            ("objective_weighting", "Do pairs count by position?", "a, weights j^a", powers),
        )
    ):
        yield LineChart(
            name,
            title,
            caption.format("gamma = 1" if place == 0 else "a = 0"),
            x_label,
            "R^2 less that of the best",
            tuple(_line(view, x, parts[place]) for view, parts in profiles.items()),
        )


def _line(view: str, x: list[float], profile: Profile) -> Series:
    below = profile.below_best()
    parts = ([getattr(one, part) for one in below] for part in ("value", "lo", "hi"))
    rows = sorted(zip(x, *parts, strict=True))
    places, values, low, high = (list(column) for column in zip(*rows, strict=True))
    if view == SUBJECT:
        return Series("model", places, values, low, high)
    return Series("planted mesa-layer", places, values, low, high, "control")


NAMED = {"objective": ObjectiveAnalysis()}
