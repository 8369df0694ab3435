"""The page about a series: three questions, their answers, and how they were measured."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from probe.report.page import Page, Section
from probe.report.text import scalar, share, words
from probe.tracking import charts, tables
from probe.tracking.conclusion import (
    Conclusion,
    answer,
    loss_clause,
    onset_words,
    span,
    written,
)
from probe.tracking.measure import Track
from probe.tracking.onset import Absent, Present, Rises

NAME = "track"


def track_page(track: Track, found: Conclusion) -> Page:
    """The page; its JSON holds what the inputs determine."""
    folder = track.series.folder.resolve()
    return Page(
        name=NAME,
        eyebrow=f"{folder.parent.name}/{folder.name} through training",
        answer=answer(found),
        facts=_facts(track, found),
        sections=(
            _when(track, found),
            _loss(track, found),
            _where(track, found),
            _checkpoints(track),
        ),
        results=_results(track, found),
    )


def _facts(track: Track, found: Conclusion) -> tuple[tuple[str, str], ...]:
    points, plan = track.series.checkpoints, track.plan
    first, last = track.measurements[0], track.measurements[-1]
    fall = found.fall
    facts = [
        ("Checkpoints", f"{len(points)}, steps {span(points[0].step, points[-1].step)}"),
        ("Response rises", onset_words(found.onset)),
        ("Loss falls fastest", span(fall.lo, fall.hi) if fall else "does not fall"),
        ("Class at the first", tables.class_words(first.found)),
        ("Class at the last", tables.class_words(last.found)),
        ("Duplicates", scalar(len(points) - len(track.series.distinct))),
        ("Task", f"{plan.task.name}, {scalar(plan.sequences)} sequences, seed {plan.seed}"),
    ]
    return tuple(facts)


def _when(track: Track, found: Conclusion) -> Section:
    onset = found.onset
    if isinstance(onset, Rises):
        text = (
            f"At step {written(onset.step)} the strength of the response passes "
            f"{share(onset.level)}, half of its peak; in 95 % of the resamples the passage lies "
            f"within {span(onset.lo, onset.hi)}. At the checkpoint before, the best null is "
            f"{words(found.before)}."
        )
    elif isinstance(onset, Present):
        text = (
            f"At step {written(onset.step)}, the first checkpoint, the strength of the response "
            f"already lies above {share(onset.level)}; earlier checkpoints would be needed to see "
            "it rise."
        )
    else:
        text = (
            "It does not: the strength of the response never lies beyond doubt above the margin at "
            "which the rule stops naming a null."
        )
    if found.learner is not None:
        text += f" The rule first reads a learner at step {written(found.learner)}."
    return Section(
        "When does the optimizer appear?",
        text,
        charts.figures_of_onset(track, found),
        (tables.short_table(track),),
        (tables.checkpoint_table(track, found),),
        "The class of each checkpoint rests on its predictions alone, without the instruments and "
        "the causal evidence of a full analysis; inconclusive means that a short iteration and "
        "least squares explain the predictions alike. An interval holds between the checkpoints "
        "that were kept, for this one training run.",
    )


def _loss(track: Track, found: Conclusion) -> Section:
    clause = loss_clause(found)
    text = f"{clause[0].upper()}{clause[1:]}."
    if found.fall_within is not None:
        part, even = found.fall_within
        text += (
            f" The interval of the onset holds {_percent(part.value)} of the whole fall of the log "
            f"loss ({_percent(part.lo)} to {_percent(part.hi)}) in {_percent(even)} of the steps."
        )
    return Section(
        "Does the loss drop with it?",
        text,
        (charts.loss_chart(track, found),),
        note="That the loss falls while a response rises does not show that one causes the other.",
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _where(track: Track, found: Conclusion) -> Section:
    return Section(
        "In which layer?",
        _layers_text(track, found),
        charts.layer_maps(track, found),
        (tables.short_onset_table(track, found),),
        (tables.onset_table(track, found), tables.layer_table(track, found)),
        "A response at a layer shows what can be decoded there, not that the layer holds an "
        "iterate.",
    )


def _layers_text(track: Track, found: Conclusion) -> str:
    sites = [site for site in tables.layer_sites(track) if site.startswith("decoded")]
    onsets = {site: found.onsets[site] for site in sites}
    risen = [site for site in sites if not isinstance(onsets[site], Absent)]
    if not risen:
        return "In none: no layer's stream shows a response above its nulls."
    layers: dict[str, list[int]] = {}
    for site in sorted(risen, key=lambda site: onsets[site].step):
        layers.setdefault(onset_words(onsets[site]), []).append(tables.place(site)[0])
    told = "; ".join(f"{_layers(which)}: {when}" for when, which in layers.items())
    never = [tables.place(site)[0] for site in sites if site not in risen]
    silent = f" Never in {_layers(never)}." if never else ""
    strengths = [found.strengths[site].intervals[-1].value for site in sites]
    gains = [b - a for a, b in pairwise(strengths)]
    most = 1 + gains.index(max(gains))
    return (
        "What a linear probe decodes of the next token is a response to the context from these "
        f"steps on. {told[0].upper()}{told[1:]}.{silent} At the last checkpoint the strength grows "
        f"most in layer {most}, from {share(strengths[most - 1])} to {share(strengths[most])}."
    )


def _layers(which: Sequence[int]) -> str:
    numbers = ", ".join(map(str, which))
    return f"layer{'s' if len(which) > 1 else ''} {numbers}"


def _checkpoints(track: Track) -> Section:
    series = track.series
    copies = [
        f"step {written(point.step)} has the weights of step {written(point.copy_of)} "
        f"(sha256 {point.subject.sha256[:12]})"
        for point in series.checkpoints
        if point.copy_of is not None
    ]
    text = (
        f"Duplicates, measured and drawn once: {'; '.join(copies)}."
        if copies
        else "No two checkpoints have the same weights (sha256 over all tensors)."
    )
    left = f" Left out: {', '.join(series.left_out)}." if series.left_out else ""
    return Section(
        "Which checkpoints?",
        f"{text}{left} Every checkpoint was measured on the same sequences, half of which fit "
        "every constant while the other half score; intervals resample blocks of sequences, the "
        "same at every checkpoint.",
    )


def _results(track: Track, found: Conclusion) -> Mapping[str, object]:
    frame = tables.checkpoint_table(track, found).frame
    fall, within = found.fall, found.fall_within
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return {
        "answer": answer(found),
        "task": {
            "name": track.plan.task.name,
            "params": track.plan.task.params(),
            "sequences": track.plan.sequences,
            "seed": track.plan.seed,
        },
        "onset": _plain_onset(found, "output"),
        "learner_from_step": found.learner,
        "loss_fall": None if fall is None else vars(fall),
        "share_of_fall_within_onset": None
        if within is None
        else {**vars(within[0]), "share_of_steps": within[1]},
        "layers": {site: _plain_onset(found, site) for site in tables.layer_sites(track)},
        "checkpoints": rows,
        "left_out": list(track.series.left_out),
    }


def _plain_onset(found: Conclusion, site: str) -> Mapping[str, object]:
    onset = found.onsets[site]
    row = tables.onset_row(onset)
    if isinstance(onset, Absent):
        return {**row, "peak": vars(onset.peak)}
    return {**row, "level": onset.level, "lasts": onset.lasts}
