"""Linear probing, on streams whose content is known."""

import pytest
import torch

from analyses.linear_probing import CROSS, NEXT, QUERY, LinearProbing, Target, _outcome
from probe.analysis import Setting
from probe.capture import Capture, capture
from probe.plan import Plan
from probe.sampling import generator_for, normal
from probe.statistics import Interval
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.views import ANOTHER, SUBJECT, SWAPPED, TWIN

TASK = find_task("linear")
PARTIAL = find_task("partial")
SETTING = Setting(TASK, 1, TASK.windows, (1.0, 2.0), 2.0, 1.0, 0.01)


def stream(kind, context):
    """A stream after the only layer; before it there is only the token."""
    query = context.spectrum.filtered_query(lambda mu: 1 / (mu + 1))
    tokens = context.problem.queries
    noise = normal(generator_for(7, int(tokens.sum() * 1e3) % 997), *tokens.shape)
    contents = {
        "learner": lambda: torch.cat([query, context.problem.oracle], -1),
        "random": lambda: torch.cat([noise, noise.roll(1, 0)], -1),
        "token": lambda: torch.cat([tokens, torch.zeros_like(tokens)], -1),
    }
    return contents[kind]().float()


def finding_of(kind, twin="token"):
    def view(name, seen=lambda context: context):
        def make(context, captures):
            before, after = stream("token", context), stream(name, context)
            layers = torch.stack([before, after]) @ normal(generator_for(1), 20, 20).float()
            return seen(context), Capture(layers[-1], layers, layers[1:], layers)

        return make

    views = {
        SUBJECT: view(kind),
        TWIN: view(twin),
        SWAPPED: view(kind, lambda context: context.swapped),
        ANOTHER: view(kind, lambda context: context.another),
    }
    analysis = LinearProbing()
    results = Sweep(Plan(TASK, 1024, 0, workers=1), {}, views, capture).run(
        analysis.stages(SETTING)
    )
    return analysis.conclude(SETTING, results)


@pytest.fixture(scope="module")
def learner():
    return finding_of("learner")


def test_a_stream_that_holds_the_solution_supports(learner):
    assert learner.outcome == "supports"
    assert learner.metrics[f"{QUERY}_last_layer"].value > 0.999
    assert learner.metrics[f"{NEXT}_last_layer"].value > 0.99
    assert learner.metrics["context_gain"].lo > 0.02
    assert learner.controls["permuted_twin_gain"].value == pytest.approx(0, abs=0.01)
    assert learner.controls["another_sequence_next_token"].value < 0.01


@pytest.mark.parametrize("kind", ["random", "token"])
def test_a_stream_without_it_does_not_support(kind):
    finding = finding_of(kind)
    assert finding.outcome == "inconclusive"  # one layer need not show what it solves with
    assert _outcome(Interval(0.0, -0.01, 0.01), Interval(0.0, 0.0, 0.0), layers=6) == "contradicts"
    assert finding.metrics[f"{NEXT}_last_layer"].value < 0.01


def test_a_twin_that_gains_more_forbids_support():
    assert finding_of("token", twin="learner").outcome != "supports"


def test_table_has_a_row_for_every_probe(learner):
    frame = learner.tables[0].frame
    assert list(frame.columns) == [
        "layer", "position", "target", "loss", "loss_in_sample", "r2", "control_r2",
    ]  # fmt: skip
    assert len(frame) == 2 * 50 * 16 and not frame.duplicated(["layer", "position", "target"]).any()
    at = frame[(frame.layer == 0) & (frame.position == 30)].set_index("target")
    assert at.loc["current_token", "r2"] == pytest.approx(1, abs=1e-4)
    assert at.loc["next_token", "loss"] == pytest.approx(10 / 6, rel=0.1)
    assert frame[frame.target == "previous_token_7"].r2[frame.position < 7].isna().all()


def test_loss_in_sample_flatters_only_a_little(learner):
    frame = learner.tables[0].frame
    noisy = frame[(frame.layer == 0) & (frame.target == NEXT) & (frame.position > 0)]
    assert 0.9 < (noisy.loss_in_sample / noisy.loss).median() <= 1.0


def test_figures_span_layers_positions_and_targets(learner):
    positions, targets, lines = learner.figures
    assert len(positions.values) == 2 and len(positions.values[0]) == 50
    assert len(targets.values) == len(targets.y) == 16 and len(targets.values[0]) == 2
    assert {series.role for series in lines.series} == {"model", "control"}


def test_wide_cross_moments_are_left_out():
    narrow, wide = (
        {t.name for t in LinearProbing().stages(setting)[0].targets}
        for setting in (
            SETTING,
            Setting(PARTIAL, 1, PARTIAL.windows, (1.0, 2.0), 2.0, 1.0, 0.01),
        )
    )
    assert CROSS in narrow and CROSS in wide  # 10 x 10 and 5 x 25 channels
    assert Target(NEXT, 10) in LinearProbing().stages(SETTING)[0].targets
