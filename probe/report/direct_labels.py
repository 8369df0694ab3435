"""Labels written beside the lines that they name, where there is room."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from probe.report.axes import Array
from probe.report.svg import HALO

_GAP = 3.0
_CLEARANCE = 1.5
_ENOUGH = 8.0
_APART = 9.0
_STRIDE = 5
_LIFTS = (0.0, 4.0, 8.0, 13.0)
_DENSE = 300


class LabelSpace:
    """The free room of one plot: keeps labels clear of all lines and of each other.

    Args:
        axes: Axes whose limits and layout are final.
        lines: x and y of every line in data coordinates, under the label that it belongs to.
        color: Colour of the labels.
    """

    def __init__(self, axes: Axes, lines: Sequence[tuple[str, Array, Array]], color: str):
        self.axes = axes
        self.color = color
        self.owners = [owner for owner, *_ in lines]
        self.lines = [self._on_screen(x, y) for _, x, y in lines]
        self.labels = np.empty((0, 2))
        self.frame = axes.get_window_extent()
        self.corner = (axes.get_xlim()[0], axes.get_ylim()[0])

    def place(self, label: str, at: int) -> bool:
        """Names line `at` where it runs apart from all others; False if there is no room."""
        text = self.axes.text(
            *self.corner, label, color=self.color, fontsize=8, ha="center", va="center"
        )
        text.set_gid(HALO)
        text.set_in_layout(False)
        box = text.get_window_extent()
        half = np.array([box.width, box.height]) / 2
        line = self.lines[at][::_STRIDE]
        pairs = list(zip(self.owners, self.lines, strict=True))
        others = np.concatenate([self.labels, *(xy for owner, xy in pairs if owner != label)])
        apart = line[_nearest(line, others, np.zeros(2)) > _APART]
        obstacles = np.concatenate([others, *(xy for owner, xy in pairs if owner == label)])
        for lift in _LIFTS:
            centers = self._candidates(apart, half, lift)
            clearance = _nearest(centers, obstacles, half)
            if clearance.size and clearance.max() >= _CLEARANCE:
                # The middle of the places that are free enough, not the very freest.
                free = np.flatnonzero(clearance >= min(clearance.max(), _ENOUGH))
                self._move(text, centers[free[len(free) // 2]], half)
                return True
        text.remove()
        return False

    def _on_screen(self, x: Array, y: Array) -> Array:
        """The line as dense points in pixels."""
        points: Array = self.axes.transData.transform(np.column_stack([x, y]))
        points = points[np.isfinite(points).all(1)]
        if len(points) < 2:
            return points
        steps = np.linspace(0, len(points) - 1, _DENSE)
        at = np.arange(len(points))
        return np.column_stack([np.interp(steps, at, points[:, k]) for k in (0, 1)])

    def _candidates(self, line: Array, half: Array, lift: float) -> Array:
        """Centres above and below the line whose boxes lie inside the frame."""
        shift = np.array([0.0, half[1] + _GAP + lift])
        centers = np.concatenate([line + shift, line - shift])
        lowest = np.array([self.frame.x0, self.frame.y0]) + half + 1
        highest = np.array([self.frame.x1, self.frame.y1]) - half - 1
        return centers[((centers >= lowest) & (centers <= highest)).all(1)]

    def _move(self, text: Text, center: Array, half: Array) -> None:
        text.set_position(tuple(self.axes.transData.inverted().transform(center)))
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 21)] * 2), -1).reshape(-1, 2)
        self.labels = np.concatenate([self.labels, center + grid * half])


def _nearest(centers: Array, points: Array, half: Array) -> Array:
    """Distance in pixels from the box around each centre to the nearest point; 0 if inside."""
    if not centers.size or not points.size:
        return np.full(len(centers), np.inf)
    outside = np.maximum(np.abs(points - centers[:, None]) - half, 0)
    distances: Array = np.hypot(outside[..., 0], outside[..., 1]).min(axis=1)
    return distances
