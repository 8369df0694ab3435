"""Labels written beside the lines that they name, where there is room."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from probe.report.axes import Array
from probe.report.svg import HALO

_GAP = 3.0
_CLEARANCE = 1.5
_DENSE = 600


class LabelSpace:
    """The free room of one plot: keeps labels clear of all lines and of each other.

    Args:
        axes: Axes whose limits and layout are final.
        lines: x and y of every line in data coordinates.
    """

    def __init__(self, axes: Axes, lines: list[tuple[Array, Array]]):
        self.axes = axes
        self.obstacles = np.concatenate(
            [self._on_screen(x, y) for x, y in lines] or [np.empty((0, 2))]
        )
        self.frame = axes.get_window_extent()

    def place(self, label: str, x: Array, y: Array, color: str) -> bool:
        """Writes the label at the freest place along the line; False if there is none."""
        text = self.axes.text(0, 0, label, color=color, fontsize=8, ha="center", va="center")
        text.set_gid(HALO)
        text.set_in_layout(False)
        box = text.get_window_extent()
        half = np.array([box.width, box.height]) / 2
        candidates = self._candidates(self._on_screen(x, y), half)
        if not len(candidates):
            text.remove()
            return False
        clearance = np.array([self._clearance(center, half) for center in candidates])
        best = int(clearance.argmax())
        if clearance[best] < _CLEARANCE:
            text.remove()
            return False
        self._move(text, candidates[best], half)
        return True

    def _on_screen(self, x: Array, y: Array) -> Array:
        """The line as dense points in pixels."""
        points = self.axes.transData.transform(np.column_stack([x, y]))
        points = points[np.isfinite(points).all(1)]
        if len(points) < 2:
            return points
        steps = np.linspace(0, len(points) - 1, _DENSE)
        at = np.arange(len(points))
        return np.column_stack([np.interp(steps, at, points[:, k]) for k in (0, 1)])

    def _candidates(self, line: Array, half: Array) -> Array:
        """Centres above and below the line whose boxes lie inside the frame."""
        shift = np.array([0.0, half[1] + _GAP])
        centers = np.concatenate([line[::10] + shift, line[::10] - shift])
        lowest = np.array([self.frame.x0, self.frame.y0]) + half + 1
        highest = np.array([self.frame.x1, self.frame.y1]) - half - 1
        return centers[((centers >= lowest) & (centers <= highest)).all(1)]

    def _clearance(self, center: Array, half: Array) -> float:
        """Distance in pixels from the box to the nearest line; 0 if one runs through it."""
        outside = np.maximum(np.abs(self.obstacles - center) - half, 0)
        return float(np.hypot(*outside.T).min())

    def _move(self, text: Text, center: Array, half: Array) -> None:
        text.set_position(tuple(self.axes.transData.inverted().transform(center)))
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 21)] * 2), -1).reshape(-1, 2)
        self.obstacles = np.concatenate([self.obstacles, center + grid * half])
