"""The points: what is varied in each series, and how many points a budget allows."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import child
from benchmarks.growth.scale import LARGE
from benchmarks.machine import described, rates

WORK = "benchmarks.growth.work"
LAYERS, WIDTH, TIME, BATCHES = 4, 256, 256, 4  # of the language model, where they are not varied


@dataclass(frozen=True)
class Series:
    """Points along one axis, cheapest first.

    Attributes:
        name: Name of the series in the file.
        work: A function of `benchmarks.growth.work`.
        points: Values along the axis.
        arguments: What the function is given at each.
    """

    name: str
    work: str
    points: tuple[int, ...]
    arguments: tuple[tuple[int, ...], ...] = field(repr=False)


def series() -> list[Series]:
    """All of them."""
    counts = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    demo = (1_024, 2_048, 4_096, 8_192)
    lengths = (50, 64, 128, 256, 512, 1_024, 2_048, 4_096)
    depths, widths = (2, 4, 8, 16), (64, 128, 256, 512, 1_024)
    found = [
        Series("sequences", "analyze_small", counts, tuple((n, 2) for n in counts)),
        Series("one worker", "analyze_small", counts[:5], tuple((n, 1) for n in counts[:5])),
        Series("demo", "analyze_demo", demo, tuple((n, 2) for n in demo)),
        Series("demo, one worker", "analyze_demo", demo[:3], tuple((n, 1) for n in demo[:3])),
    ]
    for work in ("probes", "forward"):
        by_length = tuple((LAYERS, WIDTH, n, BATCHES) for n in lengths)
        by_depth = tuple((n, WIDTH, TIME, BATCHES) for n in depths)
        by_width = tuple((LAYERS, n, TIME, BATCHES) for n in widths)
        found += [
            Series(f"{work}, length", work, lengths, by_length),
            Series(f"{work}, layers", work, depths, by_depth),
            Series(f"{work}, width", work, widths, by_width),
        ]
    tokens = (4, 16, 64)
    batches = tuple((LAYERS, WIDTH, TIME, n) for n in tokens)
    found.append(Series("probes, batches", "probes", tokens, batches))
    sizes = (256, 512, 1_024, 2_048)
    found.append(Series("eigendecomposition", "eigendecomposition", sizes, tuple(zip(sizes))))
    return found


def measure(minutes: float, keep: Callable[[dict[str, Any]], None]) -> None:
    """All series, their cheapest points first; a point that would overrun the budget is left out.

    What a point will take is judged by the last one of its series, as if time were linear in it.
    Nothing else should run on the machine.

    Args:
        minutes: The budget; the first point of each series is measured in any case.
        keep: Is shown everything so far after each point, and at the end.
    """
    ends = time.monotonic() + 60 * minutes
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    measured = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "machine": described(),
        "rates": rates(),
        "shape": {"layers": LAYERS, "width": WIDTH, "time": TIME, "batches": BATCHES},
        "large": asdict(LARGE),
        "points": points,
        "left_out": left_out,
    }
    waiting = [(one, index) for one in series() for index in range(len(one.points))]
    walls: dict[str, float] = {}
    for one, index in sorted(waiting, key=lambda job: job[1]):
        x = one.points[index]
        expected = walls.get(one.name, 0.0) * x / one.points[max(index - 1, 0)]
        if one.name in walls and time.monotonic() + expected > ends:
            left_out.append({"series": one.name, "x": x, "expected_s": expected})
            continue
        used = child.run(f"{WORK}:{one.work}", *one.arguments[index])
        walls[one.name] = used.wall
        points.append({"series": one.name, "x": x, **asdict(used)})
        print(f"{one.name} {x:,}: {used.wall:.1f} s, {used.peak / 1e6:,.0f} MB", flush=True)
        keep(measured)
    keep(measured)  # what was left out after the last point as well
