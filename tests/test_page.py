"""A page about several models: all files from one record, and nothing from a bad one."""

import json

import pandas as pd
import pytest


@pytest.fixture
def page():
    from probe.findings import LineChart, Series, Table
    from probe.report.page import Page, Section

    chart = LineChart(
        "losses", "Loss <by> position", "Caption.", "t", "loss", (Series("a", [1, 2], [2.0, 1.0]),)
    )
    frame = pd.DataFrame({"model": ["a|b", "<c>"], "loss": [0.25, float("nan")], "steps": [3, 4]})
    section = Section("Which is best?", "The first.", (chart,), (Table("models", frame),))
    return Page("compare", "A and B", "A is better.", (("seed", "0"),), (section,), {"n": 2})


def test_all_files_come_from_one_record(page, tmp_path):
    from probe.report.page import write_page

    path = write_page(page, tmp_path)
    html, md = path.read_text(), (tmp_path / "compare.md").read_text()
    for text in (html, md):
        assert "A is better." in text and "Which is best?" in text and "0.250" in text
    assert "&lt;c&gt;" in html and "<c>" not in html and "<c>" not in md
    assert "| a\\|b | 0.250 | 3 |" in md
    assert "http" not in html.replace("http://www.w3.org", "")
    assert json.loads((tmp_path / "compare.json").read_text())["n"] == 2
    assert (tmp_path / "figures" / "losses.svg").read_text().startswith("<svg")
    assert (tmp_path / "tables" / "models.csv").read_text().splitlines()[1] == "a|b,0.25,3"


def test_clashing_names_write_nothing(page, tmp_path):
    from dataclasses import replace

    from probe.report.page import write_page

    doubled = replace(page, sections=page.sections * 2)
    with pytest.raises(ValueError, match="unique"):
        write_page(doubled, tmp_path / "out")
    assert not (tmp_path / "out").exists()
