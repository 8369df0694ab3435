"""The report is complete, self-contained, the same every time, and all or nothing."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe.errors import InputError
from probe.findings import (
    CategoryMap,
    Figure,
    Finding,
    HeatMap,
    HeatMaps,
    Instrument,
    IntervalChart,
    LineChart,
    Metric,
    Panels,
    Reference,
    Report,
    Series,
    SmallMap,
    Span,
    Table,
    Verdict,
)

HOSTILE = "<script>alert('x')</script> & $x_1$ \\1 {{ 7 * 7 }}"
LONG = "a label that goes on for much longer than any reader would like to follow it"
NAN = float("nan")


def series(label: str, role: str, scale: float = 1.0) -> Series:
    x = np.logspace(-3, 1.7, 20)
    y = scale * x / (x + 1)
    y[3] = NAN
    return Series(label, x.tolist(), y.tolist(), (y - 0.1).tolist(), (y + 0.1).tolist(), role)  # type: ignore[arg-type]


def line_chart(name: str, log_y: bool = False) -> LineChart:
    lines = (
        *(series(f"layer {layer}", "model", layer / 8) for layer in range(8)),
        series(HOSTILE, "theory"),
        series("diverges", "theory", 1e6),
        series(LONG, "control", 0.0),
        Series("nothing known", (1.0, 2.0), (NAN, NAN), role="control"),
    )
    return LineChart(name, "Lines", "Caption.", "mu", "f", lines, log_x=True, log_y=log_y)


def figures() -> tuple[Figure, ...]:
    grid = tuple(tuple(NAN if r == c else r * c / 400 for c in range(50)) for r in range(8))
    small = ((1.0, -1.0), (NAN, 0.5))
    columns = tuple(map(str, range(50)))
    rows = (LONG, HOSTILE, *"abcdef")
    values = (0.99, 0.98, NAN, -40.0)
    return (
        line_chart("lines"),
        line_chart("log-lines", log_y=True),
        LineChart("no-lines", "Empty", "Nothing was measured.", "x", "y", ()),
        HeatMap("map", "Map", "Caption.", "t", "layer", "R^2", columns, rows, grid),
        HeatMap("signed", "Signed", "Caption.", "t", "layer", "R^2", ("0", "1"), ("a", "b"), small),
        IntervalChart(
            "ranks", HOSTILE, LONG, "R^2", (LONG, HOSTILE, "c", "d"), values, values, values
        ),
        Panels("panels", "Panels", "Caption.", tuple(line_chart(f"p{k}") for k in range(4))),
        small_maps("maps", 2, 3),
        small_maps("no-maps", 0, 0),
        kinds("kinds", 12, 12),
        kinds("wide-kinds", 2, 70),
    )


def kinds(name: str, rows: int, columns: int) -> CategoryMap:
    names = ("a strong kind", HOSTILE, LONG)
    cells = tuple(tuple((*names, "")[(r + c) % 4] for c in range(columns)) for r in range(rows))
    x, y = (tuple(map(str, range(count))) for count in (columns, rows))
    return CategoryMap(name, "Kinds", LONG, "head", "block", x, y, names, ("S", "H", "L"), 1, cells)


def small_maps(name: str, rows: int, columns: int) -> HeatMaps:
    values = ((0.5, -1.0, NAN, 0.0),) * 4
    one = SmallMap(HOSTILE, values, (("+", "−"), ("", "−")))
    grid = tuple((one,) * (columns - row) for row in range(rows))
    return HeatMaps(name, "Maps", LONG, "key", "query", "share", ("a", HOSTILE), grid)


def make_report(instruments_ok: bool = True, drawings: tuple[Figure, ...] = ()) -> Report:
    frame = pd.DataFrame({"layer": [0, 1], "r2": [NAN, 1 / 3]})
    metrics = {
        "spline_r2": Metric(1 / 3, "Held-out R^2.", 0.3, 0.4),
        "effective_lambda": Metric(NAN, HOSTILE),
        "ratio": Metric(float("inf"), "Overflows."),
    }
    controls = {"spline_r2": Metric(-0.002, "Twin."), "alone": Metric(0.1, "Only a control.")}
    findings = (
        Finding("zebra", "Last?", "inconclusive", "No.", {}, {}, "Much."),
        Finding("behaviour", "Second?", "contradicts", LONG, {}, {}, "Anything."),
        Finding(
            "spectral_response", HOSTILE, "supports", HOSTILE, metrics, controls, HOSTILE,
            (Table("families", frame),), drawings,
        ),
    )  # fmt: skip
    verdict = Verdict(
        "least_squares", "ridge", None, {"lambda": 0.2}, ("ridge", "newton"), (), 1, NAN,
        "The model runs ridge regression.", instruments_ok,
        (Instrument("permuted twin", "no learner", HOSTILE, instruments_ok),), HOSTILE,
    )  # fmt: skip
    subject = {"name": HOSTILE, "format": "native", "sha256": "00", "layers": 2, "parameters": 9}
    task = {"name": "linear-dynamics", "params": {"noise": 0.1}, "sequences": 64, "seed": 0}
    reference = Reference(0.2, 0.41, 0.42, 0.01, 0.0, 0.02, 0.98, NAN)
    run = {"host": HOSTILE, "path": Path("x"), "versions": {"numpy": "2"}, "layers": np.int64(3)}
    return Report({**subject, "note": HOSTILE}, task, verdict, reference, findings, run)


class Page(HTMLParser):
    """Collects tags, links and text, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        values = {name: value or "" for name, value in attrs}
        self.links += [values[key] for key in ("href", "src", "xlink:href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from probe.report.write import write_report

    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert write_report(make_report(drawings=figures()), out) == out / "report.html"
    return out


def test_writes_all_files_of_the_contract(folder):
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    drawn = {f"figures/{figure.name}.svg" for figure in figures()}
    fixed = {"results.json", "run.json", "report.html", "report.md", "tables/families.csv"}
    assert written == fixed | drawn


def test_page_is_well_formed_and_needs_nothing_else(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "img", "object"}
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert "url(#" in text and "url(h" not in text
    beside = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    for link in page.links:
        assert link in beside or link.startswith("data:image/png;base64,") or link[1:] in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert len(text.encode()) < 3_000_000


def test_hostile_text_stays_text(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert HOSTILE in page.text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "&lt;script&gt;" in markdown


def test_findings_stay_in_the_order_of_the_report(folder):
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    places = [text.index(f"{name} ") for name in ("zebra", "behaviour", "spectral response")]
    assert places == sorted(places)


def test_page_shows_numbers_controls_and_limits(folder):
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    for piece in ("0.333", "0.300 to 0.400", "−0.002", "Does not show", "2 representational"):
        assert piece in text
    assert "The model runs ridge regression." in text


def test_without_a_task_there_is_no_verdict_and_the_page_says_so():
    from probe.report.write import render_files

    report = dataclasses.replace(make_report(), verdict=None, reference=None)
    files = render_files(report)
    assert json.loads(files["results.json"])["verdict"] is None
    for page in (files["report.html"], files["report.md"]):
        assert "No task was posed" in page
        assert "Evidence" not in page and "instruments read true" not in page
    assert "Evidence" in render_files(make_report())["report.html"]


def test_misread_instruments_replace_the_verdict():
    from probe.report.content import MISREAD
    from probe.report.html import html
    from probe.report.markdown import markdown

    report = make_report(instruments_ok=False)
    for text in (html(report, {}), markdown(report)):
        assert MISREAD in text
        assert report.verdict.statement not in text


@pytest.mark.parametrize("figure", figures(), ids=lambda figure: figure.name)
def test_figures_are_small_text_that_repeats(figure):
    from probe.report.figures import render

    text = render(figure)
    assert text == render(figure)
    assert len(text.encode()) < 80_000
    assert "nan" not in text.lower().replace("finance", "")
    root = ElementTree.fromstring(text)
    names = {element.tag.rsplit("}")[-1] for element in root.iter()}
    assert "text" in names or figure.name == "no-lines"
    assert "script" not in names and "metadata" not in names


def test_inline_drawing_follows_the_theme():
    from probe.report import palette
    from probe.report.figures import render
    from probe.report.svg import inline

    drawing = inline(render(line_chart("x")))
    assert not any(ink.light in drawing for ink in palette.INKS)
    assert "var(--ink)" in drawing and "var(--ramp-9)" in drawing
    assert len({ink.light for ink in palette.INKS}) == len(palette.INKS)


def test_theory_that_diverges_does_not_flatten_the_model():
    from probe.report.axes import limits_of_y

    lo, hi = limits_of_y(line_chart("x").series, log=False)
    assert -0.5 < lo < 0 < 1 < hi < 1.5


def test_same_report_same_bytes():
    from probe.report.write import render_files

    report = make_report(drawings=figures()[:1])
    assert render_files(report) == render_files(report)


def test_tables_keep_nine_digits_and_gaps(folder):
    assert (folder / "tables/families.csv").read_text() == "layer,r2\n0,\n1,0.333333333\n"


def test_files_of_an_earlier_run_go_and_others_stay(tmp_path):
    from probe.report.write import write_report

    write_report(make_report(drawings=figures()[3:4]), tmp_path)
    mine = tmp_path / "figures" / "mine.svg"
    mine.write_text("mine")
    write_report(make_report(drawings=figures()[4:5]), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"signed.svg", "mine.svg"}


@pytest.mark.parametrize("names", [("a", "a"), ("../a",), ("a/b",), ("",)])
def test_bad_names_leave_nothing(tmp_path, names):
    from probe.report.write import write_report

    drawings = tuple(dataclasses.replace(figures()[2], name=name) for name in names)
    with pytest.raises(ValueError, match="names of figures must be unique and plain"):
        write_report(make_report(drawings=drawings), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_keeps_the_old_report(tmp_path, monkeypatch):
    from probe.report import write

    write.write_report(make_report(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(write, "markdown", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write.write_report(make_report(instruments_ok=False), tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_unwritable_folder_is_the_users_error(tmp_path):
    from probe.report.write import write_report

    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(InputError, match=f"^cannot write the report to {re.escape(str(blocked))}"):
        write_report(make_report(), blocked)
    assert blocked.read_text() == "in the way"


def test_run_json_holds_the_run(folder):
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run == {"host": HOSTILE, "path": "x", "versions": {"numpy": "2"}, "layers": 3}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9912, "0.991"),
        (-0.0331, "−0.0331"),
        (1234.4, "1234"),
        (0.0, "0"),
        (2.5e-7, "2.50 × 10⁻⁷"),
        (-3e8, "−3.00 × 10⁸"),
        (NAN, "–"),
        (float("-inf"), "−∞"),
        (None, "–"),
    ],
)
def test_numbers_read_well(value, text):
    from probe.report.text import number

    assert number(value) == text


def test_log_ticks_are_few_and_inside():
    from probe.report.axes import log_ticks

    for lo, hi in [(1e-3, 50.0), (0.2, 3.0), (1e-12, 1e12)]:
        ticks = log_ticks(lo, hi)
        assert 2 <= len(ticks) <= 8
        assert all(lo <= tick <= hi for tick in ticks)
    assert log_ticks(1.01, 1.02) == ()


def test_theory_is_named_where_it_runs_alone():
    from probe.report.figures import render

    x = np.logspace(-3, 2, 30).tolist()
    rising = Series("model", x, np.linspace(0, 1, 30).tolist())
    apart = Series("theory alone", x, np.linspace(1, 0.9, 30).tolist(), role="theory")
    hidden = Series("theory behind", x, np.linspace(0, 1, 30).tolist(), role="theory")
    chart = LineChart("x", "T", "C", "x", "y", (rising, apart, hidden), log_x=True)
    drawing = render(chart)
    on_paper = re.findall(r"paint-order: stroke\">\s*<text[^>]*>([^<]*)<", drawing)
    assert on_paper == ["theory alone"]
    assert drawing.count("theory alone") == drawing.count(">theory behind<") == 1


@pytest.mark.parametrize(
    ("plain", "read"),
    [
        ("1 - sum |y - yhat|^2 / sum |y|^2", "1 − Σ|y − ŷ|² / Σ|y|²"),
        ("C (G + lambda)^-1 q, s_t and s_{t-1}", "C (G + λ)⁻¹ q, sₜ and sₜ₋₁"),
        ("s_{t-2} to s_{t-15} of s_{t-j}", "sₜ₋₂ to sₜ₋₁₅ of s_{t-j}"),
        ("sum_j j^a |v_j - W k_j|^2", "Σⱼ jᵃ |vⱼ − W kⱼ|²"),
        ("sum_j |v_j - W k_j|^2", "Σⱼ|vⱼ − W kⱼ|²"),
        ("from -0.159 to -0.000, t = 15..45", "from −0.159 to 0.000, t = 15–45"),
        ("newton; preconditioned_gd", "Newton; preconditioned gradient descent"),
        ("mesa-layer, softmax-7l, gradient-descent", "mesa-layer, softmax-7l, gradient-descent"),
        (HOSTILE, HOSTILE),
    ],
)
def test_plain_text_is_typeset(plain, read):
    from probe.report.typeset import prose

    assert prose(plain) == read
    assert prose(read) == read


def test_controls_stand_beside_their_numbers():
    from probe.report.content import metric_rows

    one = Metric(0.5, "R^2.", 0.4, 0.6)
    twin = Metric(1.0, "the twin: R^2.")
    controls = {"r2": twin, "r2 (swapped_context)": one, "permuted_twin_r2": one, "other": one}
    rows = metric_rows(Finding("a", "?", "supports", "", {"r2": one}, controls, ""))
    assert [row.name for row in rows] == ["R²", "control: other"]
    views = [("the twin", "1.000"), *((v, "0.500 (0.400 to 0.600)") for v in TWO_VIEWS)]
    assert [(name, value) for value, name in rows[0].controls] == views


TWO_VIEWS = ("swapped context", "permuted twin")


def test_groups_have_marks_and_a_key():
    from probe.report.figures import render

    chart = dataclasses.replace(figures()[5], groups=("bound", "solver", "null", "null"))
    assert render(figures()[5]).count(">null<") == 0
    drawing = render(chart)
    assert all(drawing.count(f">{group}<") == 1 for group in ("bound", "solver", "null"))


def test_lines_outside_the_frame_are_said_to_be():
    from probe.report.figures import render

    drawing = render(line_chart("x"))
    assert drawing.count("(off the scale)") <= 1
    far = Series("far", (0.0, 1.0), (1e9, 1e9), role="theory")
    near = Series("near", (0.0, 1.0), (0.0, 1.0))
    drawing = render(LineChart("x", "T", "C", "x", "y", (near, far)))
    assert "far (off the scale)" in drawing


def test_colours_of_a_map_can_have_ends_of_their_own():
    from probe.report.figures import render

    free = HeatMap("m", "M", "C", "x", "y", "v", ("0", "1"), ("a",), ((0.0, 0.02),))
    fixed = dataclasses.replace(free, limits=(0, 1))
    assert ">1.00<" in render(fixed) and ">1.00<" not in render(free)


def test_small_maps_carry_their_signs_and_share_one_scale():
    from probe.report.figures import render

    drawing = render(small_maps("maps", 2, 3))
    assert drawing.count(">+<") == 5 and drawing.count(">−<") == 10
    assert drawing.count("<image") == 5 + 1  # and the scale
    assert ">1.0<" in drawing and ">−1.0<" in drawing


@pytest.mark.parametrize("panels", [False, True])
def test_spans_are_marked_and_named_once(panels):
    from probe.report import palette
    from probe.report.figures import render

    spans = Span("onset", 2, 5, 3), Span("fall", -100, 4)
    plain = LineChart("x", "T", "C", "x", "y", (Series("line", (0, 9), (0.0, 1.0)),))
    marked = dataclasses.replace(plain, spans=spans)

    def drawn(chart: LineChart) -> str:
        return render(Panels("x", "T", "C", (chart, chart)) if panels else chart)

    assert all(drawn(marked).count(f">{span.label}<") == 1 for span in spans)
    hues = [palette.MODEL[-1].light, palette.MODEL[-2].light]
    assert all(hue in drawn(marked) and hue not in drawn(plain) for hue in hues)
    # A span that leaves the frame does not widen the axis.
    assert ">-100<" not in drawn(marked) and ">−100<" not in drawn(marked)


@pytest.mark.parametrize("value", [1, 0.5, np.float64(0.5)])
def test_whole_numbers_and_numpy_floats_are_numbers(value):
    from probe.report.content import metric_rows

    finding = Finding("a", "?", "supports", "", {"n": Metric(value, "", value, value)}, {}, "")
    assert metric_rows(finding)[0].value in ("1", "0.500")


def test_cells_of_a_map_of_kinds_bear_their_marks():
    from probe.report.figures import render

    text = render(kinds("kinds", 3, 5))
    for mark, count in (("S", 4), ("H", 4), ("L", 4)):
        assert text.count(f">{mark}<") == count
    assert "a strong kind (4)" in text
    assert ">S<" not in render(kinds("wide", 2, 70))  # too narrow for marks
