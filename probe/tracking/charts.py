"""The drawings of a track."""

from collections.abc import Callable, Sequence

from probe.findings import Figure, HeatMap, IntervalChart, LineChart, Series, Span
from probe.response_stage import OUTPUT
from probe.rule import Thresholds
from probe.statistics import Interval
from probe.tracking.conclusion import Conclusion
from probe.tracking.measure import Measurement, SiteReading, Track
from probe.tracking.onset import Rises
from probe.tracking.tables import layer_sites, place, score_of

STEP = "training step"
ONSET, FALL = "onset, 95 % interval", "steepest fall of the loss, 95 % interval"


def spans(track: Track, found: Conclusion, with_fall: bool = False) -> tuple[Span, ...]:
    """The intervals that a chart over the steps marks."""
    marks = []
    last = track.measurements[-1].step
    if isinstance(onset := found.onset, Rises):
        marks.append(Span(ONSET, onset.lo, min(onset.hi, last), onset.step))
    if with_fall and found.fall is not None:
        marks.append(Span(FALL, found.fall.lo, found.fall.hi))
    return tuple(marks)


def response_chart(track: Track, found: Conclusion) -> LineChart:
    """What explains the predictions, over the steps."""

    def line(label: str, r2: Callable[[SiteReading], Interval], role: str = "model") -> Series:
        return _line(label, track.measurements, lambda m: r2(m.output), role)

    series = (
        line("best response", lambda s: s.own.r2(s.response)),
        line("least squares", lambda s: s.own.r2(score_of(s.own, "ridge")), "theory"),
        line(
            "one gradient step", lambda s: s.own.r2(score_of(s.own, "one_gradient_step")), "theory"
        ),
        line("best null", lambda s: s.own.r2(s.null)),
        line("moments of another sequence", lambda s: s.own.r2(s.foreign), "control"),
    )
    return LineChart(
        "track_response",
        "What explains the predictions",
        "Held-out R^2 of the model's predictions at each checkpoint, with 95 % bands. An optimizer "
        "shows where the best response to the own context stands above the best null, and not only "
        "above zero: kernel smoothers and memorised maps predict too. The response to the moments "
        "of another sequence must explain nothing.",
        STEP,
        "R^2 of the model's predictions",
        series,
        spans=spans(track, found),
    )


def strength_chart(track: Track, found: Conclusion) -> LineChart:
    """The strength of the response, over the steps, with the least that counts."""
    steps = [m.step for m in track.measurements]
    margin = 1 - Thresholds.load().null_share
    values = found.strengths[OUTPUT].intervals
    return LineChart(
        "track_strength",
        "Strength of the response",
        "The share of what the best null leaves unexplained that the response to the own context "
        "explains, with a 95 % band; its passage through half of its peak is the onset. Dotted: "
        "the margin below which the rule names the null.",
        STEP,
        "share of what the best null leaves",
        (
            _band("output", steps, values),
            Series("margin of the rule", steps, [margin] * len(steps), role="control"),
        ),
        spans=spans(track, found),
    )


def loss_chart(track: Track, found: Conclusion) -> LineChart:
    """The loss, beside that of the mesa-layer, of one gradient step and of the oracle."""
    series = [_line("model", track.measurements, lambda m: m.loss())]
    for name in ("mesa-layer", "one gradient step", "oracle"):
        series.append(_line(name, track.measurements, _loss_of(name), "theory"))
    return LineChart(
        "track_loss",
        "Loss",
        "Loss on fresh sequences, the same at every checkpoint, with a 95 % band. The mesa-layer "
        "and the gradient step are fitted to the task; the oracle knows the teacher.",
        STEP,
        "loss",
        tuple(series),
        log_y=True,
        spans=spans(track, found, with_fall=True),
    )


def _loss_of(name: str) -> Callable[[Measurement], Interval]:
    return lambda measurement: measurement.loss(name)


def onset_chart(track: Track, found: Conclusion) -> IntervalChart | None:
    """Every onset and the fall of the loss on one axis; None if nothing rises in the series."""
    names = {OUTPUT: "response at the output"}
    names |= {site: _site_words(site) for site in layer_sites(track)}
    first, last = track.measurements[0].step, track.measurements[-1].step
    shown = [
        (name, onset.step, onset.lo, min(onset.hi, last))
        for site, name in names.items()
        if isinstance(onset := found.onsets[site], Rises)
    ]
    if not shown:
        return None
    if found.fall is not None:
        middle = (found.fall.start + found.fall.stop) / 2
        shown.append(("steepest fall of the loss", middle, found.fall.lo, found.fall.hi))
    labels, values, lo, hi = zip(*shown, strict=True)
    return IntervalChart(
        "track_onsets",
        "When each part rises",
        "The step at which the response passes half of its peak, with 95 % intervals, which are "
        "never narrower than the distance between checkpoints. What never rises, or was there "
        "before, is not shown. A layer's stream is read by a linear probe (decoded) and by the "
        "model's own read-out.",
        STEP,
        labels,
        values,
        lo,
        hi,
        limits=(first, last),
    )


def layer_maps(track: Track, found: Conclusion) -> tuple[HeatMap, ...]:
    """The strength at each layer and step, decoded and read out."""
    return tuple(
        _layer_map(track, found, kind, title)
        for kind, title in (
            ("decoded", "Strength by layer, decoded by a linear probe"),
            ("readout", "Strength by layer, the model's own read-out"),
        )
    )


def _layer_map(track: Track, found: Conclusion, kind: str, title: str) -> HeatMap:
    sites = [site for site in layer_sites(track) if place(site)[1] == kind]
    sites.sort(key=place, reverse=True)
    return HeatMap(
        f"track_layers_{kind}",
        title,
        "The share of what the best null leaves unexplained that the response to the own context "
        "explains, in the stream after each layer (0: before the first). 0 where a null, or the "
        "moments of another sequence, explain as much.",
        STEP,
        "layer",
        "strength",
        tuple(str(m.step) for m in track.measurements),
        tuple(str(place(site)[0]) for site in sites),
        tuple(tuple(found.strengths[site].value.tolist()) for site in sites),
        limits=(0, 1),
    )


def figures_of_onset(track: Track, found: Conclusion) -> tuple[Figure, ...]:
    """What stands under the first question."""
    chart = onset_chart(track, found)
    lines = response_chart(track, found), strength_chart(track, found)
    return lines if chart is None else (*lines, chart)


def _site_words(site: str) -> str:
    layer, kind = place(site)
    return f"layer {layer}, {'decoded' if kind == 'decoded' else 'own read-out'}"


def _line(
    label: str,
    measurements: Sequence[Measurement],
    statistic: Callable[[Measurement], Interval],
    role: str = "model",
) -> Series:
    steps = [m.step for m in measurements]
    return _band(label, steps, [statistic(m) for m in measurements], role)


def _band(
    label: str, steps: Sequence[int], values: Sequence[Interval], role: str = "model"
) -> Series:
    y = [value.value for value in values]
    if role == "model":
        return Series(label, steps, y, [v.lo for v in values], [v.hi for v in values])
    return Series(label, steps, y, role="theory" if role == "theory" else "control")
