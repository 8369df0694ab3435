"""results.json keeps its contract."""

import copy
import json
import math

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from test_report import HOSTILE, make_report


@pytest.fixture(scope="module")
def results():
    from probe.report.results import results_dict

    return results_dict(make_report())


def test_schema_is_a_schema():
    from probe.report.results import schema

    Draft202012Validator.check_schema(schema())


def test_results_keep_the_contract_and_its_order(results):
    from probe.report.results import validate

    validate(results)
    assert list(results) == [
        "schema_version", "mesaprobe_version", "subject", "task", "verdict", "reference",
        "findings", "left_out", "audit",
    ]  # fmt: skip
    assert list(results["verdict"])[:10] == [
        "class", "family", "degree", "parameters", "equivalent", "undecided", "evidence_level",
        "distance_to_margin", "statement", "instruments_ok",
    ]  # fmt: skip
    assert list(results["reference"]) == [
        "lambda", "loss", "model_loss", "excess_of_model", "excess_lo", "excess_hi",
        "agreement_r2", "error_r2",
    ]  # fmt: skip
    assert results["findings"][0]["analysis"] == "zebra"


def test_only_what_the_inputs_determine(results):
    assert list(results["subject"]) == ["name", "format", "sha256", "layers", "parameters"]
    assert "host" not in json.dumps(results)
    assert results["subject"]["name"] == HOSTILE


def test_no_number_is_null_and_floats_are_short(results):
    metrics = results["findings"][2]["metrics"]
    assert metrics["spline_r2"]["value"] == 0.333333333
    assert metrics["effective_lambda"]["value"] is None
    assert metrics["ratio"]["value"] is None
    assert results["verdict"]["distance_to_margin"] is None
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("verdict", "class"), "gradient_descent"),
        (("verdict", "family"), "magic"),
        (("verdict", "evidence_level"), 4),
        (("verdict", "degree"), 1.5),
        (("reference", "loss"), "0.4"),
        (("findings", 0, "outcome"), "maybe"),
        (("findings", 2, "tables", 0), "../families"),
        (("subject", "path"), "/home"),
    ],
)
def test_what_breaks_the_contract_is_refused_and_named(results, path, value):
    from probe.report.results import validate

    broken = copy.deepcopy(results)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    where = ".".join(str(key) for key in path if isinstance(key, str)).split(".")[0]
    with pytest.raises(ValueError, match=rf"results break the schema:\n  \$(\.{where})?"):
        validate(broken)


def test_a_missing_field_is_refused(results):
    from probe.report.results import validate

    broken = copy.deepcopy(results)
    del broken["verdict"]["statement"]
    with pytest.raises(ValueError, match="'statement' is a required property"):
        validate(broken)


def test_plain_values():
    from probe.report.results import plain

    assert plain({1: (np.float32(0.5), np.int64(2), math.inf, True, None)}) == {
        "1": [0.5, 2, None, True, None]
    }
    assert plain(np.arange(2.0)) == [0.0, 1.0]
    with pytest.raises(TypeError, match="object has no place in JSON"):
        plain(object())
