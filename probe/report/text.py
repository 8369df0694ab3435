"""Numbers and names as people read them."""

import math
from collections.abc import Callable

from probe.statistics import Interval

MISSING = "–"
_GREEK = {"eta": "η", "lambda": "λ", "mu": "μ", "tau": "τ", "alpha": "α", "delta": "δ", "eps": "ε"}
_WORDS = {
    "r2": "R²",
    "gd": "gradient descent",
    "newton": "Newton",
    "chebyshev": "Chebyshev",
    **_GREEK,
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL, _LARGE = 1e-3, 1e5


def number(value: float | int | None) -> str:
    """Three significant digits, a true minus sign, powers of ten only where they help.

    >>> number(-0.99123), number(1234.5), number(2.5e-7), number(float("nan"))
    ('−0.991', '1234', '2.50 × 10⁻⁷', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int) or value == 0:
        return f"{value:.0f}".replace("-", "−")
    if not _SMALL <= abs(value) < _LARGE:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa} × {power_of_ten(int(exponent))}".replace("-", "−")
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    # At most three decimals: 0.012 and 0.991 stand in one column, as shares of one whole.
    decimals = min(decimals, 3) if abs(value) >= 0.1 else decimals
    return f"{value:.{decimals}f}".replace("-", "−")


def share(value: float | int | None) -> str:
    """Three decimals, so that R² of a column can be compared at a glance.

    >>> share(0.98123), share(-0.0002), share(-4321.0)
    ('0.981', '0.000', '−4321')
    """
    if value is None or not abs(value) < 100:
        return number(value)
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def power_of_ten(exponent: int) -> str:
    """10 with a superscript, as plain text."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def interval(
    lo: float | int | None, hi: float | int | None, written: Callable[..., str] = number
) -> str:
    """The two ends, or nothing if neither is known."""
    if all(end is None or math.isnan(end) for end in (lo, hi)):
        return ""
    return f"{written(lo)} to {written(hi)}"


def estimate(value: Interval) -> str:
    """A value with the ends of its interval."""
    return f"{number(value.value)} ({interval(value.lo, value.hi)})"


def words(name: str) -> str:
    """A name as words: gradient_descent becomes gradient descent, error_r2 error R²."""
    return " ".join(_WORDS.get(part, part) for part in name.replace("_", " ").split(" "))


def scalar(value: object) -> str:
    """Any leaf of a nested record."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f").replace("-", "−")
    if isinstance(value, float):
        return number(value)
    return MISSING if value is None else str(value)
