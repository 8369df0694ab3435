"""Equations as text."""

from probe.report.text import number
from probe.weights.equations import Equation, Term
from probe.weights.roles import Roles

MOST_TERMS = 4


def written(equation: Equation, most: int = MOST_TERMS) -> str:
    """An update with its strongest terms, the block's number first.

    Slots are called by letters of what the token holds there; later blocks find there what the
    blocks before have made of it.
    """
    terms = equation.terms[:most]
    more = len(equation.terms) - len(terms)
    sums = "".join(_signed(term, first=place == 0) for place, term in enumerate(terms)) or "0"
    rest = f" + {more} smaller" if more else ""
    return f"block {equation.layer + 1}: {equation.into}ₜ += {sums}{rest}"


def closed_form(equation: Equation, roles: Roles) -> str:
    """The prediction of a model of one block."""
    sums = "".join(_signed(term, first=place == 0) for place, term in enumerate(equation.terms))
    return f"ŷₜ = {_in_states(sums) if roles.lagged else sums}"


def _signed(term: Term, first: bool) -> str:
    size = number(abs(term.coefficient))
    minus = term.coefficient < 0
    sign = ("−" if minus else "") if first else (" − " if minus else " + ")
    return f"{sign}{size} Σⱼ {term.value}ⱼ ({term.key}ⱼ·{term.query}ₜ)"


def _in_states(text: str) -> str:
    """In dynamics the key is the state before."""
    return text.replace("kⱼ", "sⱼ₋₁").replace("kₜ", "sₜ₋₁")
