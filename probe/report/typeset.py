"""Plain text of findings as people read it: R² for R^2, λ for lambda, words for identifiers."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from probe.report.text import words

T = TypeVar("T")

# Fields that name something for a program: files, marks, places in a table.
_NAMES = frozenset({"name", "analysis", "outcome", "role", "groups", "subject", "task", "run"})
_LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?<=[R|)])\^2\b", "²"),
    (r"\^-1\b", "⁻¹"),
    (r"\bs_t-1\b", "sₜ₋₁"),
    (r"\bs_\{t-(\d+)\}", lambda lag: "sₜ₋" + lag[1].translate(_LOWERED)),
    (r"\bsum_j (?=\|)", "Σⱼ"),
    (r"\bsum_j\b", "Σⱼ"),
    (r"\b([vk])_j\b", r"\1ⱼ"),
    (r"\bj\^a\b", "jᵃ"),
    (r"\bs_t\b", "sₜ"),
    (r"\byhat\b", "ŷ"),
    (r"\bsum (?=\|)", "Σ"),
    (r"(?<!\d)1/2\b", "½"),
    (r"(?<=\d)\.\.(?=\d)", "–"),
    (r"(?<=[\w|²)]) - (?=[\w|(ŷ])", " − "),
    (r"(?<![\w.])[-−](?=0\.0+(?!\d))", ""),
    (r"(?<![\w.})/-])-(?=\d)", "−"),
    (r"(?<= )>=(?= )", "≥"),
    (r"(?<= )<=(?= )", "≤"),
    (r"\b[a-z]{2,}(?:_[a-z0-9]+)+\b", lambda name: words(name[0])),
    (
        r"(?<![\w-])(?:lambda|mu|eta|alpha|tau|newton|chebyshev)(?![\w-])",
        lambda name: words(name[0]),
    ),
)
_COMPILED = [(re.compile(pattern), new) for pattern, new in _RULES]


def prose(text: str) -> str:
    """One text with signs for what plain ASCII spells out.

    >>> prose("R^2 of next_token over t = 5..49, lambda -0.25")
    'R² of next token over t = 5–49, λ −0.25'
    """
    for pattern, new in _COMPILED:
        text = pattern.sub(new, text)
    return text


def typeset(value: T) -> T:
    """The same report, finding or figure, with every text for readers as prose."""
    result: Any = _typeset(value)
    return result


def _typeset(value: Any) -> Any:
    if isinstance(value, str):
        return prose(value)
    if isinstance(value, tuple):
        return tuple(map(_typeset, value))
    if isinstance(value, Mapping):
        return {key: _typeset(entry) for key, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = [part.name for part in fields(value) if part.name not in _NAMES]
        return replace(value, **{part: _typeset(getattr(value, part)) for part in parts})
    return value
