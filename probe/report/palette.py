"""The colours of figures and page, each for a light and a dark ground.

A figure is drawn in its light colours; on the page each of them is replaced by its CSS variable.
"""

from dataclasses import dataclass

from matplotlib.colors import LinearSegmentedColormap, to_hex


@dataclass(frozen=True)
class Ink:
    """One colour: the name of its CSS variable, and its value on white and on black."""

    name: str
    light: str
    dark: str


INK = Ink("ink", "#1b2530", "#e8ebef")
MUTED = Ink("muted", "#55606c", "#a4aeb9")
GRID = Ink("grid", "#e4e8ec", "#2b333c")
PAPER = Ink("paper", "#ffffff", "#12171d")
THEORY = Ink("theory", "#6f7a86", "#98a3af")
CONTROL = Ink("control", "#9aa4ae", "#737e8a")

# Told apart by readers with any colour vision (after Okabe and Ito), and by lightness in grey.
MODEL = (
    Ink("model-0", "#0a4f8f", "#6cb6f5"),
    Ink("model-1", "#cf5a0c", "#ff9a5a"),
    Ink("model-2", "#0b8a6a", "#3fd0a8"),
    Ink("model-3", "#a3559a", "#dc9ad6"),
)

_RAMP_LIGHT = ("#e6a23a", "#da5a3c", "#a82a6a", "#5c2088", "#1b195c")
_RAMP_DARK = ("#7463d0", "#bb5abf", "#ee6e8c", "#fba660", "#fde694")
_STEPS = 10


def _ramp() -> tuple[Ink, ...]:
    """Steps of falling lightness on white, rising on black: the last is always the strongest."""
    light, dark = (
        [
            to_hex(color)
            for color in LinearSegmentedColormap.from_list("ramp", anchors, N=_STEPS)(range(_STEPS))
        ]
        for anchors in (_RAMP_LIGHT, _RAMP_DARK)
    )
    return tuple(
        Ink(f"ramp-{step}", *pair) for step, pair in enumerate(zip(light, dark, strict=True))
    )


RAMP = _ramp()
INKS = (INK, MUTED, GRID, PAPER, THEORY, CONTROL, *MODEL, *RAMP)


def model_inks(count: int) -> tuple[Ink, ...]:
    """Distinct hues for a few lines, a ramp for many; the ramp repeats beyond its steps."""
    if count <= len(MODEL):
        return MODEL[:count]
    shown = min(count, _STEPS)
    steps = [round(step * (_STEPS - 1) / (shown - 1)) for step in range(shown)]
    return tuple(RAMP[steps[line % shown]] for line in range(count))


def css_variables(ground: str) -> str:
    """Declarations of all colours for the ground `light` or `dark`."""
    return "".join(f"--{ink.name}:{getattr(ink, ground)};" for ink in INKS)
