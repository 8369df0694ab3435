"""Update equations of blocks of linear attention, term by term, and how they read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.stages import Sums
from probe.statistics import Interval
from probe.weights.roles import Roles
from probe.weights.terms import Scores, members

EXPLAINED, UNEXPLAINED = 0.95, 0.5
NEGLIGIBLE = 0.01  # share of what a block adds in all
NEGLIGIBLE_ERROR = 1e-6  # share of an update; what is below needs no more terms

Letters = tuple[str, str, str]


@dataclass(frozen=True)
class Term:
    """coefficient * sum_j value_j (key_j . query_t).

    Attributes:
        query: Letter of the query's slots.
        key: Letter of the key's slots.
        value: Letter of the value's slots.
        coefficient: Read off the weights, summed over heads and over slots of the same letter.
        refitted: The same by least squares on the update, beside the other terms that are kept.
        alone: Share of the update that it explains by itself, with the coefficient read off.
        energy: Its own energy, as a share of that of the update.
    """

    query: str
    key: str
    value: str
    coefficient: float
    refitted: float
    alone: Interval
    energy: float

    @property
    def letters(self) -> Letters:
        """Query, key and value."""
        return self.query, self.key, self.value


@dataclass(frozen=True)
class Step:
    """The gradient step sum_j value_j (key_j . query_t) within an update of the prediction.

    Attributes:
        eta: Its coefficient.
        alone: Share of the update that it explains by itself.
        foreign: The same with the pairs of another sequence.
        mirrored: The same with keys and values exchanged.
    """

    eta: float
    alone: Interval
    foreign: Interval
    mirrored: Interval

    @property
    def holds(self) -> bool:
        """It explains the update and its controls do not."""
        controls = max(self.foreign.hi, self.mirrored.hi)
        return self.alone.lo >= EXPLAINED and controls < UNEXPLAINED and self.eta > 0


@dataclass(frozen=True)
class Equation:
    """What a block adds to one slot.

    Attributes:
        layer: The block, from 0.
        into: Name of the slot.
        letter: Its letter.
        terms: Those that the Bayesian information criterion keeps, largest first.
        kept: Share of the update that they explain, with the coefficients read off.
        all: Share that all terms explain.
        energy: Energy of the update, as a share of all that the block adds.
        shrinkage: Share that terms sum_j x_j (x_j . e_t) explain, which scale the slot e itself
            along what was seen, as GD++ does with its inputs (von Oswald et al. 2022).
        step: The gradient step, if the slot is the prediction.
    """

    layer: int
    into: str
    letter: str
    terms: tuple[Term, ...]
    kept: Interval
    all: Interval
    energy: float
    shrinkage: Interval
    step: Step | None

    @property
    def reading(self) -> str:
        """What it is in the words of an optimiser, if that explains it alone."""
        if self.step is not None and self.step.holds:
            return f"gradient step, eta {self.step.eta:.3g}"
        if self.shrinkage.lo >= EXPLAINED:
            return f"{self.letter} scaled along the pairs seen, as in GD++"
        return "no reading"


def equations(
    coefficients: Float[Tensor, "slots slots slots slots"],
    fit: Sums,
    scores: Scores,
    roles: Roles,
    layer: int,
) -> Iterator[Equation]:
    """The equations of one block, for every slot to which it adds more than a negligible part.

    Args:
        coefficients: c[a, b, c, e]; zero where nothing is read or written to any effect.
        fit: Moments of the fit split for this block, which choose the terms.
        scores: Those of the test split, which score them.
        roles: The letters of the slots.
        layer: The block.
    """
    energies = scores.energies * coefficients.abs().amax((0, 1, 2)).gt(0)
    for into in range(len(roles.letters)):
        share = float(energies[into] / energies.sum())
        if share > NEGLIGIBLE:
            yield _equation(coefficients[..., into], fit, scores, roles, (layer, into, share))


def _equation(
    weights: Float[Tensor, "slots slots slots"],
    fit: Sums,
    scores: Scores,
    roles: Roles,
    place: tuple[int, int, float],
) -> Equation:
    layer, into, energy = place
    groups = _groups(roles)
    present = {letters: mark for letters, mark in groups.items() if bool((weights * mark).any())}
    chosen = chosen_by_bic(present, fit, into)
    terms = [
        Term(
            *letters,
            coefficient=float((weights * groups[letters]).sum()),
            refitted=refitted,
            alone=scores.share(weights * groups[letters], into),
            energy=scores.energy(weights * groups[letters], into),
        )
        for letters, refitted in chosen.items()
    ]
    terms.sort(key=lambda term: -term.energy)
    mask = sum((groups[letters] for letters in chosen), start=torch.zeros_like(weights))
    letter = roles.letters[into]
    return Equation(
        layer=layer,
        into=roles.names[into],
        letter=letter,
        terms=tuple(terms),
        kept=scores.share(weights * mask, into),
        all=scores.share(weights, into),
        energy=energy,
        shrinkage=scores.share(weights * _shrinking(groups, letter), into),
        step=_step(weights, scores, roles, into) if letter == "y" else None,
    )


def _step(weights: Tensor, scores: Scores, roles: Roles, into: int) -> Step:
    step = weights * members(roles.step, len(roles.letters))
    return Step(
        eta=float(step.sum()),
        alone=scores.share(step, into),
        foreign=scores.foreign_share(step, into),
        mirrored=scores.share(step.transpose(1, 2), into),
    )


def _shrinking(groups: Mapping[Letters, Tensor], letter: str) -> Tensor:
    """Marks the terms whose query is the slot itself and whose key is their value."""
    return torch.stack([m for (a, b, c), m in groups.items() if a == letter and b == c]).sum(0)


def _groups(roles: Roles) -> dict[Letters, Float[Tensor, "slots slots slots"]]:
    slots = roles.groups
    return {
        (a, b, c): members([slots[a], slots[b], slots[c]], len(roles.letters))
        for a, b, c in product(slots, repeat=3)
    }


def chosen_by_bic(
    groups: Mapping[Letters, Float[Tensor, "slots slots slots"]], fit: Sums, into: int
) -> dict[Letters, float]:
    """Terms with their least-squares coefficients, by backward elimination.

    From all terms that vary, the one whose loss raises the error least is dropped as long as
    n log(error) + k log(n) falls; n counts sequences, since positions of one sequence depend on
    each other (Schwarz 1978).

    Args:
        groups: Terms by letters, as marks on the places (a, b, c).
        fit: Moments of the fit split.
        into: The slot that is written.
    """
    varies = fit["gram"].diagonal() > 0
    marks = torch.stack([mark.flatten() * varies for mark in groups.values()])
    marks = marks / marks.sum(1, keepdim=True).clamp(min=1)
    gram = (marks @ fit["gram"] @ marks.mT).numpy()
    cross, energy = (marks @ fit["cross"][:, into]).numpy(), float(fit["energy"][into])
    count = float(fit["sequences"])
    size = np.sqrt(gram.diagonal())
    kept = [place for place in range(len(size)) if size[place] > 1e-6 * size.max()]
    least, chosen, weights = np.inf, [], np.empty(0)
    while kept:
        inverse = np.linalg.pinv(gram[np.ix_(kept, kept)], rcond=1e-10, hermitian=True)
        solution = inverse @ cross[kept]
        error = max(energy - float(solution @ cross[kept]), NEGLIGIBLE_ERROR * energy)
        bic = count * np.log(error) + len(kept) * np.log(count)
        if bic >= least:
            break
        least, chosen, weights = bic, list(kept), solution
        raised = solution**2 / inverse.diagonal().clip(1e-300)
        kept.pop(int(raised.argmin()))
    names = list(groups)
    return {names[place]: float(weight) for place, weight in zip(chosen, weights, strict=True)}
