"""docs/growth.md and its figures, from benchmarks/growth.json: no number is written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth.figures import Curve, Panel, draw
from benchmarks.growth.fits import Fit, fit
from benchmarks.growth.scale import Large, costs, first_to_break

DOCS = Path(__file__).parents[2] / "docs"
FLAT_FROM = 10_000  # sequences from which memory is compared

Measured = dict[str, Any]


def points(measured: Measured, series: str, field: str) -> tuple[list[float], list[float]]:
    """The axis and one field of a series, in order of x."""
    own = sorted((p for p in measured["points"] if p["series"] == series), key=lambda p: p["x"])
    return [p["x"] for p in own], [p[field] for p in own]


def fitted(measured: Measured, series: str, field: str, powers: tuple[int, ...]) -> Fit:
    """The curve through a series."""
    return fit(*points(measured, series, field), powers)


def write(measured: Measured, folder: Path = DOCS) -> Path:
    """Writes the figures and the page."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    _figures(measured, figures)
    page = folder / "growth.md"
    parts = (_machine, _sequences, _workers, _streams, _large, _again)
    page.write_text("\n".join(part(measured) for part in parts))
    return page


def _figures(measured: Measured, figures: Path) -> None:
    names = {"sequences": "small model", "demo": "demo, all analyses"}

    def curve(series: str, field: str, powers: tuple[int, ...] | None, label: str) -> Curve:
        x, y = points(measured, series, field)
        if field == "peak":
            y = [value / 1e6 for value in y]
        return Curve(label, x, y, fit(x, y, powers) if powers else None)

    time = tuple(curve(s, "wall", (0, 1), label) for s, label in names.items())
    cpu = tuple(curve(s, "cpu", (0, 1), f"{label}, CPU") for s, label in names.items())
    memory = tuple(curve(s, "peak", None, label) for s, label in names.items())
    draw(
        (
            Panel("time of `analyze`", "sequences", "seconds", (*time, *cpu)),
            Panel("memory of `analyze`", "sequences", "peak, MB", memory, log=False),
        ),
        figures / "sequences.svg",
    )
    works = {"probes": "probes of all layers", "forward": "the blocks alone"}
    axes = {"length": (0, 1, 2), "layers": (0, 1), "width": (0, 1, 2, 3)}
    draw(
        [
            Panel(
                f"by {axis}",
                axis,
                "CPU seconds",
                tuple(curve(f"{w}, {axis}", "cpu", powers, label) for w, label in works.items()),
            )
            for axis, powers in axes.items()
        ],
        figures / "streams.svg",
    )


def _machine(measured: Measured) -> str:
    m = measured["machine"]
    rates = [
        [name, *(f"{rate:,.1f}" for rate in by.values())] for name, by in measured["rates"].items()
    ]
    counts = [f"{n} threads" for n in next(iter(measured["rates"].values()))]
    return f"""# How time and memory grow

Measured {measured["date"]} on {m["cpu"]}, {m["cores"]} cores, torch {m["torch"]}. Every point ran
in a process of its own; seconds are without the interpreter's start, memory is the peak that the
kernel counted. Curves are sums of powers with coefficients that are not negative, fitted to
relative residuals; R^2 and the worst residual stand beside each.

{_table(["", *counts], rates)}
"""


def _sequences(measured: Measured) -> str:
    rows = []
    for series in ("sequences", "demo"):
        for field in ("wall", "cpu"):
            rows.append([series, field, *_said(fitted(measured, series, field, (0, 1)))])
    x, peak = points(measured, "sequences", "peak")
    flat = [value for n, value in zip(x, peak, strict=True) if n >= FLAT_FROM]
    widest = max(flat) / min(flat) - 1
    last_x, last_wall = x[-1], points(measured, "sequences", "wall")[1][-1]
    grid = [
        [f"{n:,.0f}", f"{w:,.1f}", f"{c:,.1f}", f"{p / 1e6:,.0f}"]
        for n, w, c, p in zip(
            x,
            points(measured, "sequences", "wall")[1],
            points(measured, "sequences", "cpu")[1],
            peak,
            strict=True,
        )
    ]
    return f"""## Sequences

`mesaprobe analyze` on one layer of linear attention (width 10, eleven questions, `--only
behaviour`, two workers):

{_table(["sequences", "wall, s", "CPU, s", "peak, MB"], grid)}

From {FLAT_FROM:,} to {last_x:,.0f} sequences peak memory varies by {widest:.1%}; {last_x:,.0f}
sequences take {last_wall:,.0f} s. The demo runs with all analyses.

{_table(["series", "seconds", "fit", "R^2", "worst residual"], rows)}

![time and memory by sequences](figures/sequences.svg)
"""


def _workers(measured: Measured) -> str:
    rows = []
    for two, one in (("sequences", "one worker"), ("demo", "demo, one worker")):
        walls = {s: dict(zip(*points(measured, s, "wall"), strict=True)) for s in (two, one)}
        peaks = {s: dict(zip(*points(measured, s, "peak"), strict=True)) for s in (two, one)}
        for n in sorted(walls[two].keys() & walls[one].keys()):
            faster = walls[one][n] / walls[two][n]
            more = (peaks[two][n] - peaks[one][n]) / 1e6
            rows.append([two, f"{n:,.0f}", f"{faster:.2f}", f"{more:,.0f}"])
    head = ["series", "sequences", "one worker's seconds over two's", "MB of the second worker"]
    return f"""## Workers

{_table(head, rows)}
"""


def _streams(measured: Measured) -> str:
    shape = measured["shape"]
    rows = []
    for axis, powers in (("length", (0, 1, 2)), ("layers", (0, 1)), ("width", (0, 1, 2, 3))):
        for work in ("probes", "forward"):
            rows.append([axis, work, *_said(fitted(measured, f"{work}, {axis}", "cpu", powers))])
    x, peak = points(measured, "probes, batches", "peak")
    memory = ", ".join(f"{p / 1e6:,.0f} MB at {n:,.0f}" for n, p in zip(x, peak, strict=True))
    return f"""## Streams and probes

Probes of all streams of a GPT-2 from their moments, and its blocks alone on the same tokens, on one
thread. Where one of them varies, the others are {shape["layers"]} layers, width {shape["width"]},
{shape["time"]} tokens a sequence and {shape["batches"]} batches of 2 sequences to fit and as many
to score.

{_table(["axis", "work", "CPU seconds", "R^2", "worst residual"], rows)}

Peak memory by number of batches: {memory}; that is {max(peak) / min(peak) - 1:.1%} between the
least and the most.

![time by length, layers and width](figures/streams.svg)
"""


def _large(measured: Measured) -> str:
    large = Large(**measured["large"])
    eigen = fitted(measured, "eigendecomposition", "cpu", (3,))
    found = costs(large, eigen)
    worst = first_to_break(found)
    held = large.site_bytes * -(-large.sites // large.gpus)
    weights = 2 * large.parameters / large.gpus
    rows = [[c.part, f"{c.seconds:,.1f}", c.how] for c in found]
    return f"""## {large.parameters / 1e9:.0f} billion parameters on {large.gpus} GPUs

This is an extrapolation; nothing of it was run. Assumed: {large.layers} layers of width
{large.width:,}, {large.sites} sites, {large.tokens:,} tokens, {large.targets} targets; GPUs with
{large.memory / 1e9:.0f} GB, {large.bandwidth / 1e12:.2f} TB/s, {large.bf16 / 1e12:.0f} Tflop/s in
bfloat16 and {large.float32 / 1e12:.0f} in float32, of which {large.reached:.0%} are reached; a
network of {large.network / 1e9:.0f} GB/s per GPU and one disk of {large.disk / 1e9:.0f} GB/s.

The sums of one site are {large.site_bytes / 2**20:,.0f} MiB, those of all
{large.sites * large.site_bytes / 2**30:,.0f} GiB, on the disk as well. Shared out they take
{held / 2**30:.1f} GiB of each GPU beside {weights / 2**30:.1f} GiB of weights,
{(held + weights) / large.memory:.1%} of its memory.

{_table(["part", "seconds", "how"], rows)}

An eigendecomposition of width {large.width:,} takes {eigen(large.width):,.0f} s on one core by the
fit {_said(eigen)[0]} (R^2 {eigen.r2:.4f}, worst residual {eigen.worst:.0%}).

What breaks first is *{worst.part}*: {worst.seconds:,.1f} s beside {found[0].seconds:,.1f} s of
forward passes.
"""


def _again(measured: Measured) -> str:
    left = ", ".join(
        f"{p['series']} at {p['x']:,} (about {p['expected_s']:,.0f} s)"
        for p in measured["left_out"]
    )
    return f"""## Made again

`make growth` measures and writes this page; `make growth-page` writes it from
`benchmarks/growth.json`. Points left out to keep to the budget of time: {left or "none"}.
"""


def _said(found: Fit) -> list[str]:
    """Formula, R^2, worst residual."""
    terms = [
        f"{c:.3g}" + ("" if p == 0 else " x" if p == 1 else f" x^{p}")
        for c, p in zip(found.coefficients, found.powers, strict=True)
        if c > 0
    ]
    return [" + ".join(terms), f"{found.r2:.4f}", f"{found.worst:.0%}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
