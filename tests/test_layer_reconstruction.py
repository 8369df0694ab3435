"""Reconstruction of attention outputs, on layers whose step is known."""

import pytest
import torch

from analyses.layer_reconstruction import LayerReconstruction, features
from probe.analysis import Setting
from probe.capture import Capture, capture
from probe.plan import Plan
from probe.sampling import generator_for, normal
from probe.stages import Context
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.views import ANOTHER, SUBJECT, TWIN

RIDGE = 0.01
TASK = find_task("linear")


def updates(kind, context):
    """The attention output of a layer that does one thing exactly."""
    blocks = features(context, RIDGE)
    seen = torch.arange(1, TASK.length + 1)[:, None]
    steps = {
        "one step": lambda: 0.03 * blocks["C q"][..., :10] + blocks["s_t"],
        "averaged step": lambda: blocks["C q"][..., :10] / seen,
        "least squares": lambda: blocks["C (G + lambda)^-1 q"],
        "copy": lambda: blocks["s_{t-1}"],
        "random": lambda: normal(generator_for(5), *blocks["s_t"].shape),
    }
    return steps[kind]()


def fabricated(added):
    """A capture in which only the updates matter."""
    layers, batch, time, width = added.shape
    stream, readouts = (torch.zeros(layers + 1, batch, time, d) for d in (width, 10))
    return Capture(readouts[0], stream, added, readouts)


def finding_of(*kinds, twin="random"):
    setting = Setting(TASK, len(kinds), TASK.windows, (1.0, 2.0), 2.0, 1.0, RIDGE)

    def view(names, seen=lambda context: context):
        def make(context, captures):
            mixing = normal(generator_for(1), 10, 16)
            added = torch.stack(
                [updates(kind, context).double() @ mixing for kind in names]
            ).float()
            return seen(context), fabricated(added)

        return make

    views = {
        SUBJECT: view(kinds),
        ANOTHER: view(kinds, lambda context: context.another),
        TWIN: view((twin,) * len(kinds)),
    }
    sweep = Sweep(Plan(TASK, 512, 0, workers=1), {}, views, capture)
    analysis = LayerReconstruction()
    results = sweep.run(analysis.stages(setting))
    return analysis.conclude(setting, results)


def rows(finding):
    return finding.tables[0].frame.set_index(["layer", "block"])


def test_knows_a_gradient_step_from_least_squares():
    finding = finding_of("one step", "averaged step", "least squares")
    table = rows(finding)
    assert finding.outcome == "supports"
    for layer in (1, 2):
        assert table.loc[(layer, "gradient_step"), "r2"] > 0.999
        assert table.loc[(layer, "least_squares"), "r2"] < 0.95
        assert table.loc[(layer, "C q"), "unique_r2"] > 0.01
    assert table.loc[(3, "C (G + lambda)^-1 q"), "r2"] > 0.999
    assert table.loc[(3, "gradient_step"), "r2"] < 0.95
    assert abs(table.loc[(1, "all"), "control_r2"]) < 0.05
    assert "Gradient step reconstructs better at layers 1, 2" in finding.statement
    assert "least squares reconstructs better at layer 3" in finding.statement
    assert finding.metrics["full_r2"].lo > 0.99


@pytest.mark.parametrize("kind", ["copy", "random"])
def test_layers_that_do_not_learn_are_no_support(kind):
    finding = finding_of(kind)
    assert finding.outcome == "contradicts"
    assert finding.metrics["context_share"].value < 0.01
    assert "Neither reconstructs better" in finding.statement


def test_a_twin_that_is_explained_as_well_forbids_support():
    assert finding_of("one step", twin="one step").outcome != "supports"


def test_unique_shares_are_consistent():
    table = rows(finding_of("one step"))
    whole = table.loc[(1, "all"), "r2"]
    assert table.loc[(1, "context"), "unique_r2"] == pytest.approx(
        whole - table.loc[(1, "tokens"), "r2"]
    )
    assert (table["unique_r2"] > -0.01).all()


def test_features_are_what_they_are_called():
    sequences = TASK.sample(2, generator_for(0))
    context = Context(sequences, TASK.problem(sequences))
    blocks = features(context, RIDGE)
    gram, cross = context.moments.gram[1, 20], context.moments.cross[1, 20]
    q = context.problem.queries[1, 20].double()
    solved = torch.linalg.solve(gram + RIDGE * torch.eye(10), q)
    expected = {
        "C q": torch.cat([cross @ q, cross @ q / 21]),
        "G q": torch.cat([gram @ q, gram @ q / 21]),
        "C G q": torch.cat([cross @ gram @ q, cross @ gram @ q / 21**2]),
        "(G + lambda)^-1 q": torch.cat([solved, 21 * solved]),
        "C (G + lambda)^-1 q": cross @ solved,
        "s_t": sequences.observations[1, 20],
        "s_{t-1}": sequences.observations[1, 19],
    }
    for name, value in expected.items():
        torch.testing.assert_close(blocks[name][1, 20], value, rtol=1e-4, atol=1e-5)
