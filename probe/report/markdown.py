"""report.md: the same content as the page, with links to the figures."""

import re
from collections.abc import Iterable, Iterator, Sequence

from probe.findings import Figure, Finding, Report, Verdict
from probe.report import content
from probe.report.text import words
from probe.report.typeset import typeset

_SPECIAL = re.compile(r"([\\`*_\[\]|~#])")


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    report = typeset(report)
    parts = [
        *_verdict(report),
        *_instruments(report.verdict),
        *(line for finding in report.findings for line in _finding(finding)),
        *_reference(report),
        *_details(report),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that stands for itself: no markup, no HTML, no line breaks."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", " ".join(safe.split()))


def _verdict(report: Report) -> Iterator[str]:
    yield f"# {escape(str(report.subject['name']))} on {escape(str(report.task['name']))}"
    verdict = report.verdict
    if verdict is None:
        yield f"**{escape(report.answer)}**"
        return
    if not verdict.instruments_ok:
        yield f"> **{content.MISREAD}** The findings below are shown for diagnosis only."
        return
    yield f"**{escape(verdict.statement)}**"
    yield " · ".join(map(escape, content.verdict_chips(verdict)))
    steps = [
        f"**{level} {name}**" if level == verdict.evidence_level else f"{level} {name}"
        for level, name in enumerate(content.LEVELS)
    ]
    yield f"Evidence: {' · '.join(steps)}"
    yield _table(("", ""), content.verdict_facts(verdict))
    if verdict.notes:
        yield "\n".join(f"- {escape(note)}" for note in verdict.notes)


def _instruments(verdict: Verdict | None) -> Iterator[str]:
    if verdict is None:
        return
    yield "## Do the instruments read true?"
    rows = [
        (check.name, check.must_read, check.reads, "right" if check.ok else "WRONG")
        for check in verdict.instruments
    ]
    yield _table(("Instrument", "Must read", "Reads", ""), rows)


def _reference(report: Report) -> Iterator[str]:
    if report.reference is not None:
        yield "## The model beside the mesa-layer"
        rows = content.reference_rows(report.reference)
        yield _table(
            ("Number", "Value", "95 % interval", "Definition"),
            [(row.name, row.value, row.interval, row.definition) for row in rows],
        )


def _finding(finding: Finding) -> Iterator[str]:
    yield f"## {escape(finding.question)}"
    yield f"*{escape(words(finding.analysis))}: {content.OUTCOMES[finding.outcome]}*"
    yield escape(finding.statement)
    for figure in finding.figures:
        yield _figure(figure)
    rows = content.metric_rows(finding)
    if rows:
        yield _table(
            ("Number", "Value", "95 % interval", "Controls", "Definition"),
            [(r.name, r.value, r.interval, _controls(r), r.definition) for r in rows],
        )
    yield f"**Does not show.** {escape(finding.does_not_show)}"
    if finding.tables:
        links = [f"[{table.name}.csv](tables/{table.name}.csv)" for table in finding.tables]
        yield f"Rows: {', '.join(links)}"


def _controls(row: content.Row) -> str:
    return "; ".join(f"{name} {value}".strip() for value, name in row.controls)


def _figure(figure: Figure) -> str:
    title = escape(figure.title)
    image = f"![{title}](figures/{figure.name}.svg)"
    return f"{image}\n\n**{title}.** {escape(figure.caption)}"


def _details(report: Report) -> Iterator[str]:
    yield "## Details"
    for title, rows in content.details(report):
        yield f"### {title}"
        yield _table(("", ""), rows)
    yield "### Files"
    yield "\n".join(f"- [{file}]({file})" for file in content.files(report))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
