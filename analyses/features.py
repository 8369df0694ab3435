"""In which features of its inputs is the model a linear learner, and which layer provides them?

Hypothesis: the predictions are C f(G) phi(s_t) with the moments of pairs (phi(s_{j-1}), s_j), in
the features phi that the task's teacher acts on, and an early layer writes phi into the stream.
Test statistic: held-out R^2 of the free response in phi, and what it gains over the raw inputs and
over every rival, paired by block; for the layer, the share that a linear map of its stream decodes
of what neither the embedding nor twins with permuted weights do.
Refuted if a rival is as good, or if predictions do not follow the pairs in phi at all.
Costs two passes over at most 512 sequences, and an eigendecomposition per candidate at every sixth
position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd

from probe.analysis import Bench
from probe.checkpoints.base import Subject, lacks_weights
from probe.feature_study import FeatureStudy, Losses, candidates_of, has_features, study
from probe.features import TWINS
from probe.findings import Figure, Finding, IntervalChart, LineChart, Metric, Outcome, Series, Table
from probe.rule import Thresholds
from probe.statistics import Interval, bootstrap_interval
from probe.tasks.base import Task
from probe.tasks.partial_observation import DepthChoice
from probe.views import ANOTHER, SUBJECT

OWN, RAW = 0, 1
LINEAR = "the task is linear in its observations"


@dataclass(frozen=True)
class FeaturesAnalysis:
    """Poses the problem in every candidate, and decodes the task's own features by layer."""

    name: str = "features"
    place: int = 95
    rests_on: frozenset[str] = frozenset({"streams"})
    question: str = "In which features is it a linear learner, and which layer provides them?"
    thorough: bool = False

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Tasks that are linear in what the model reads have no features to be found."""
        return lacks_weights(subject) or (None if has_features(task) else LINEAR)

    def run(self, bench: Bench) -> Finding:
        """Supports if the predictions are linear in a candidate, of their own sequence alone."""
        found = study(bench, candidates_of(bench.setting.task, bench.plan.seed))
        reading = read(found, Thresholds.load())
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=reading.outcome,
            statement=_statement(found, reading),
            metrics=_metrics(found),
            controls=_controls(found),
            does_not_show=(
                "Features that no candidate comes near to; and a layer whose stream holds the "
                "features need not be where the learner reads them."
            ),
            tables=tuple(_tables(found)),
            figures=tuple(_figures(found)),
            bearing=_bearing(found, reading),
        )


@dataclass(frozen=True)
class Reading:
    """What the numbers say.

    Attributes:
        best: Place of the candidate of highest R^2.
        alike: Places of all candidates that are not shown to be worse by delta, the best among
            them.
        explained: Whether the best explains the predictions, and the pairs of another sequence
            do not.
    """

    best: int
    alike: tuple[int, ...]
    explained: bool

    @property
    def outcome(self) -> Outcome:
        """To be linear in context in any features is to learn."""
        return "supports" if self.explained else "inconclusive"

    @property
    def beyond_raw(self) -> bool:
        """Whether features are needed at all."""
        return self.explained and RAW not in self.alike


def read(found: FeatureStudy, thresholds: Thresholds) -> Reading:
    """The best candidate, and those that cannot be told from it."""
    responses, elsewhere = found.subject, len(found.candidates.every)
    places = range(elsewhere)
    best = max(places, key=lambda place: responses.r2(place).value)
    alike = [p for p in places if responses.gain(best, over=p).lo <= thresholds.delta]
    explained = responses.r2(best).value >= thresholds.explained
    follows = responses.r2(elsewhere).hi < thresholds.something
    return Reading(best, tuple(alike), explained and follows)


def _statement(found: FeatureStudy, reading: Reading) -> str:
    names = [features.name for features in found.candidates.every]
    r2 = [found.subject.r2(place).value for place in range(len(names))]
    if not reading.explained:
        best = f"{names[reading.best]}, R^2 {r2[reading.best]:.2f}"
        return f"Cannot tell: no candidate explains the predictions (the best, {best})."
    alike = " or ".join(names[place] for place in reading.alike)
    others = [f"{n} {v:.3f}" for p, (n, v) in enumerate(zip(names, r2, strict=True))]
    rest = "; ".join(text for p, text in enumerate(others) if p not in reading.alike)
    untold = "" if len(reading.alike) == 1 else ", which cannot be told apart"
    said = f"It is a linear learner in {alike}{untold} (R^2 {r2[reading.best]:.3f}; {rest})."
    return " ".join((said, _where(found), _bound(found))).strip()


def _where(found: FeatureStudy) -> str:
    own, i = found.candidates.own.name, found.holds
    if i is None:
        return f"No layer's stream holds {own} above what raw inputs and twins give."
    now, twin = found.decoded(SUBJECT), found.decoded(found.best_twin(i))
    return (
        f"The stream first holds {own} after {found.sites[i].part}: decoded with R^2 "
        f"{now[i].value:.2f}, against {now[max(i - 1, 0)].value:.2f} before it and "
        f"{twin[i].value:.2f} in the best twin with permuted "
        "weights."
    )


def _bound(found: FeatureStudy) -> str:
    choice, losses = found.candidates.choice, found.losses
    if choice is None or losses is None:
        return ""
    return (
        f"Its loss is {losses.model.value:.3f}; ridge regression does best with {choice.depth} "
        f"delays, {min(choice.losses):.3f}, and the Kalman filter, which knows the system, has "
        f"{losses.kalman.value:.3f}."
    )


def _bearing(found: FeatureStudy, reading: Reading) -> str:
    if not reading.beyond_raw:
        return ""
    names = [features.name for features in found.candidates.every]
    rivals = [place for place in range(len(names)) if place not in reading.alike]
    second = max(rivals, key=lambda place: found.subject.r2(place).value)
    provides = ""
    if OWN in reading.alike and found.holds is not None:
        provides = f", which {found.sites[found.holds].part} provides"
    return (
        f"It is linear in {' or '.join(names[place] for place in reading.alike)}{provides} "
        f"(R^2 {found.subject.r2(reading.best).value:.3f}; "
        f"{names[second]} {found.subject.r2(second).value:.3f})."
    )


def _metrics(found: FeatureStudy) -> dict[str, Metric]:
    tried = found.candidates.every
    metrics = {
        f"r2 {features.name}": Metric.of(
            found.subject.r2(place), f"held-out R^2 of the free response in {features.name}"
        )
        for place, features in enumerate(tried)
    }
    metrics["error_r2"] = Metric.of(
        found.subject.error_r2(OWN),
        f"share of the model's distance from the oracle explained in {tried[OWN].name}",
    )
    metrics["gain_over_raw_inputs"] = Metric.of(
        found.subject.gain(OWN, over=RAW), f"R^2 in {tried[OWN].name} minus that in raw inputs"
    )
    if found.holds is not None:
        i = found.holds
        share = bootstrap_interval(partial(found.decodability.above_controls, site=i))
        metrics["decoded_above_controls"] = Metric.of(
            share,
            f"share decoded after {found.sites[i].part} of what the embedding and all twins leave",
        )
    if found.losses and found.candidates.choice:
        metrics["chosen_depth"] = Metric(
            found.candidates.choice.depth, "depth of the delay embedding of least held-out loss"
        )
        metrics["loss"] = Metric.of(found.losses.model, "loss of the model")
        metrics["kalman_loss"] = Metric.of(
            found.losses.kalman, "loss of the Kalman filter, which knows W, C and the noise"
        )
    return metrics


def _controls(found: FeatureStudy) -> dict[str, Metric]:
    own, elsewhere = found.candidates.own.name, len(found.candidates.every)
    most = found.most
    controls = {
        "r2 another sequence": Metric.of(
            found.subject.r2(elsewhere), f"R^2 in {own} with the pairs of another sequence"
        ),
        "r2 planted mesa-layer": Metric.of(
            found.planted.r2(OWN), f"R^2 in {own} of a mesa-layer on {own}: must be 1"
        ),
    }
    for view in (found.best_twin(most), ANOTHER):
        controls[f"decoded {view}"] = Metric.of(
            found.decoded(view)[most],
            f"R^2 of {own} decoded after {found.sites[most].part}; view {view}",
        )
    return controls


def _tables(found: FeatureStudy) -> Iterator[Table]:
    yield Table("features", pd.DataFrame(list(_response_rows(found))))
    views = {view: found.decoded(view) for view in (SUBJECT, *TWINS, ANOTHER)}
    yield Table(
        "feature_decoding",
        pd.DataFrame(
            {
                "site": site.name,
                "view": view,
                "r2": r2[i].value,
                "r2_lo": r2[i].lo,
                "r2_hi": r2[i].hi,
            }
            for i, site in enumerate(found.sites)
            for view, r2 in views.items()
        ),
    )
    if choice := found.candidates.choice:
        depths = {"depth": range(1, 1 + len(choice.losses))}
        yield Table(
            "delay_depths",
            pd.DataFrame({**depths, "ridge": choice.ridges, "loss": choice.losses}),
        )


def _response_rows(found: FeatureStudy) -> Iterator[dict[str, object]]:
    groups = {"model": found.subject, "model, decoded": found.inside, "mesa-layer": found.planted}
    for predictor, responses in groups.items():
        for place, posing in enumerate(responses.stage.posings):
            for family in ("spline", "ridge"):
                r2 = responses.r2(place, family)
                yield {
                    "predictor": predictor,
                    "features": posing.name,
                    "family": family,
                    "r2": r2.value,
                    "r2_lo": r2.lo,
                    "r2_hi": r2.hi,
                    "error_r2": responses.error_r2(place, family).value,
                }


def _figures(found: FeatureStudy) -> Iterator[Figure]:
    yield _candidates_chart(found)
    yield _decoding_chart(found)
    if found.losses and found.candidates.choice:
        yield _depths_chart(found.candidates.choice, found.losses)


def _depths_chart(choice: DepthChoice, losses: Losses) -> LineChart:
    depths = list(range(1, 1 + len(choice.losses)))

    def level(label: str, loss: Interval, role: Literal["model", "control"]) -> Series:
        y, lo, hi = ([end] * len(depths) for end in (loss.value, loss.lo, loss.hi))
        return Series(label, depths, y, lo, hi, role)

    return LineChart(
        "delay_depths",
        "How deep a delay embedding least squares wants",
        "Held-out loss of ridge regression at every prefix, its penalty chosen on another sample. "
        "The Kalman filter knows the system and bounds what any learner can reach.",
        "depth of the delay embedding",
        "loss",
        (
            level("model", losses.model, "model"),
            Series("ridge on delays", depths, list(choice.losses), role="theory"),
            level("Kalman filter", losses.kalman, "control"),
        ),
        log_y=True,
    )


def _candidates_chart(found: FeatureStudy) -> IntervalChart:
    rows = [
        (posing.name, responses.r2(place), _group(found, posing.name))
        for responses in (found.subject, found.inside)
        for place, posing in enumerate(responses.stage.posings)
    ]
    rows.sort(key=lambda row: -row[1].value)
    names, intervals, groups = zip(*rows, strict=True)
    return IntervalChart(
        "features_response",
        "In which features the predictions are linear in context",
        "Held-out R^2 of the freely fitted response, with 95 % intervals. Full dots: candidates, "
        "and what a linear map decodes from the stream at a layer. Hollow dots are controls: "
        "features with other constants, and the pairs of another sequence.",
        "R^2 of the model's predictions",
        names,
        tuple(max(interval.value, -0.1) for interval in intervals),
        tuple(max(interval.lo, -0.1) for interval in intervals),
        tuple(max(interval.hi, -0.1) for interval in intervals),
        groups,
    )


def _group(found: FeatureStudy, name: str) -> str:
    wrong = {features.name for features in found.candidates.wrong}
    return "null" if name in wrong or name.endswith("another sequence") else "solver"


def _decoding_chart(found: FeatureStudy) -> LineChart:
    twin = found.best_twin(found.most)
    labels = {SUBJECT: "model", twin: "permuted twin", ANOTHER: "another sequence"}
    places = [site.depth for site in found.sites]
    series = []
    for view, label in labels.items():
        r2 = found.decoded(view)
        series.append(
            Series(
                label,
                places,
                [i.value for i in r2],
                [i.lo for i in r2],
                [i.hi for i in r2],
                "model" if view == SUBJECT else "control",
            )
        )
    raw = found.decoded(SUBJECT)[0].value
    series.append(Series("raw inputs", places, [raw] * len(places), role="theory"))
    return LineChart(
        "features_decoding",
        f"Where the stream holds {found.candidates.own.name}",
        "Held-out R^2 of a linear map from the stream. Layer 0 is the embedding, half layers lie "
        "between attention and MLP. The twin, the best of three, shows what random weights of the "
        "same size give, "
        "the features of another sequence what a constant gives.",
        "layer",
        "R^2",
        tuple(series),
    )


NAMED = {"features": FeaturesAnalysis()}
