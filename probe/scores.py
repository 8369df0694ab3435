"""How well each solver explains a predictor, held out, with paired intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.response import COARSE, FINE, coarse_to_fine, second_differences
from probe.response_stage import Learned, ResponseStage
from probe.solvers.base import Fitted, families
from probe.stages import Measured, Sums
from probe.statistics import (
    Interval,
    bootstrap_interval,
    resample_weights,
    share_explained,
)

SIMPLER = 0.002


@dataclass(frozen=True)
class Score:
    """One member of a family at one site.

    Attributes:
        family: Its family.
        constants: Its fitted constants.
        degree: Degree of its polynomial, if it is one.
        free: How many constants were fitted.
        fit_error: Its error on the fit split, as a share.
        error: Its summed squared error on the test split, by block.
    """

    family: str
    constants: Mapping[str, float | int]
    degree: int | None
    free: int
    fit_error: float
    error: Float[Tensor, " blocks"]


def simplest(scores: Sequence[Score]) -> Score:
    """The first whose error on the fit split is within 0.002 of the best; the first is simplest.

    A site that says nothing has errors of NaN: any member is as good as another.
    """
    limit = min(score.fit_error for score in scores) + SIMPLER
    return next((score for score in scores if score.fit_error <= limit), scores[0])


@dataclass(frozen=True)
class Reading:
    """All scores at one site over one window of positions.

    Attributes:
        scores: One per member.
        energy: Summed squares of what the site says, by block.
        oracle_error: Summed squared distance of the site from the oracle, by block.
    """

    scores: tuple[Score, ...]
    energy: Float[Tensor, " blocks"]
    oracle_error: Float[Tensor, " blocks"]

    def r2(self, score: Score) -> Interval:
        """1 - sum |y - yhat|^2 / sum |y|^2."""
        return share_explained(score.error, self.energy)

    def error_r2(self, score: Score) -> Interval:
        """1 - sum |y - yhat|^2 / sum |y - oracle|^2: the share of the model's error explained."""
        return share_explained(score.error, self.oracle_error)

    def value(self, score: Score) -> float:
        """R^2 without its interval."""
        return 1 - float(score.error.sum() / self.energy.sum())

    def deficit(self, score: Score, best: Score) -> Interval:
        """R^2 of `best` minus R^2 of `score`, paired by block."""
        difference = score.error - best.error
        return bootstrap_interval(lambda weights: (weights @ difference) / (weights @ self.energy))

    def members(self, family: str) -> list[Score]:
        """All members of a family."""
        return [score for score in self.scores if score.family == family]

    def chosen(self, family: str) -> Score:
        """The simplest member whose error on the fit split is within 0.002 of the family's best."""
        return simplest(self.members(family))

    def names(self) -> list[str]:
        """The families that were scored here."""
        return list(dict.fromkeys(score.family for score in self.scores))


def read(stage: ResponseStage, measured: Measured, site: str, window: str) -> Reading:
    """The scores at a site over a window of positions."""
    learned: Learned = measured.learned
    gram = measured.sums["gram"][:, stage.within(window)].sum(1)
    place = gram.shape[-1] - len(learned.sites) + learned.sites.index(site)
    reading = scored(gram, learned.members[site, window], place)
    maps = _map_scores(learned, measured.sums, site, window)
    return replace(reading, scores=(*reading.scores, *maps))


def scored(
    gram: Float[Tensor, "blocks columns_and_sites columns_and_sites"],
    members: tuple[Fitted, ...],
    place: int,
) -> Reading:
    """The scores of fitted members at the site in column `place`, from products by block."""
    weights = torch.stack([member.weights for member in members])
    width = weights.shape[1]
    energy = gram[:, place, place].clone()  # a view would keep all products alive
    explained = torch.einsum("fc,bcd,fd->bf", weights, gram[:, :width, :width], weights)
    errors = explained - 2 * gram[:, place, :width] @ weights.mT + energy[:, None]
    scores = tuple(
        Score(m.family, m.constants, m.degree, m.free, m.error, errors[:, i])
        for i, m in enumerate(members)
    )
    oracle = next(score for score in scores if score.family == "oracle")
    return Reading(scores, energy, oracle.error)


def _map_scores(learned: Learned, sums: Sums, site: str, window: str) -> list[Score]:
    """Map families know the output and the read-outs, not what is decoded."""
    known = [name for name in learned.sites if not name.startswith("decoded")]
    if site not in known:
        return []
    place = known.index(site)
    shares = learned.map_shares
    return [
        Score(
            family=name,
            constants={},
            degree=None,
            free=maps[place].numel(),
            fit_error=float(shares[name, at][place]),
            error=sums[f"{name}:{window}"][:, place],
        )
        for (name, at), maps in learned.maps.items()
        if at == window
    ]


def nulls() -> set[str]:
    """Families that are no learning algorithm."""
    return {name for name, family in families().items() if family.is_null}


@dataclass(frozen=True)
class CurveBand:
    """A shrinkage curve at the knots, with a pointwise 95 % band."""

    curve: Float[Tensor, " knots"]
    lo: Float[Tensor, " knots"]
    hi: Float[Tensor, " knots"]


def curve_band(stage: ResponseStage, measured: Measured, site: str) -> CurveBand:
    """The spline fitted on the fit split; its band from refits on resampled blocks of the test."""
    learned: Learned = measured.learned
    spline = next(m for m in learned.members[site, "judged"] if m.family == "spline")
    gram = measured.sums["gram"][:, stage.within("judged")].sum(1)
    place = gram.shape[-1] - len(learned.sites) + learned.sites.index(site)
    spread = coarse_to_fine()
    weights = resample_weights(400)
    grams = torch.einsum("rb,bcd->rcd", weights, spread.mT @ gram[:, :FINE, :FINE] @ spread)
    crosses = weights @ (gram[:, :FINE, place] @ spread)
    # The resamples count the test split once, as the penalty counted the fit split.
    smooth = spline.constants["smoothing"] * second_differences(COARSE)
    floor = 1e-9 * grams.diagonal(dim1=-2, dim2=-1).mean() * torch.eye(COARSE, dtype=torch.float64)
    refits = torch.linalg.solve(grams + smooth + floor, crosses[..., None])[..., 0] @ spread.mT
    ends = torch.quantile(refits, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    curve = spline.weights[:FINE]
    return CurveBand(curve, curve + ends[0] - refits.mean(0), curve + ends[1] - refits.mean(0))
