"""Laws from layer to layer, on layers that hold the iterates of a known iteration."""

from collections.abc import Callable

import pytest
import torch

from analyses.update_law import UpdateLaw
from probe.capture import Capture, capture
from probe.findings import Finding
from probe.pilot import scout
from probe.plan import Plan
from probe.sampling import generator_for, normal
from probe.solvers import gradient_descent, newton, ridge
from probe.sweep import Sweep
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.teachers import Orthogonal
from probe.views import SUBJECT

TASK = LinearDynamics("planted", Orthogonal(), width=5, length=24)
PLAN = Plan(TASK, 512, 0, workers=1)
LAYERS = 3
MIX = normal(generator_for(1), 5, 5).float()


@pytest.fixture(scope="module")
def setting():
    return scout(PLAN, LAYERS)


def finding_of(setting, curve: Callable[[int, torch.Tensor], torch.Tensor] | None) -> Finding:
    """A model whose layer l holds C f_l(G) q, mixed linearly; noise without a curve."""

    def view(context, captures):
        zero = context.problem.queries.float()
        said = [zero]
        for layer in range(1, LAYERS + 1):
            if curve is None:
                seed = int(float(zero.abs().sum()) * 100) % 9973
                said.append(normal(generator_for(seed, layer), *zero.shape).float())
            else:
                found = context.spectrum.predict(lambda mu, at=layer: curve(at, mu) / mu)
                said.append(found.float())
        readouts = torch.stack(said)
        layers = readouts @ MIX
        return context, Capture(said[-1], layers, layers[1:] - layers[:-1], readouts)

    analysis = UpdateLaw()
    stages = analysis.stages(setting)
    results = Sweep(PLAN, {}, {SUBJECT: view}, capture).run(stages)
    return analysis.conclude(setting, results)


def r2(finding: Finding, law: str, site: str = "readout"):
    frame = finding.tables[0].frame
    return frame[(frame["law"] == law) & (frame["site"] == site)].set_index("layer")


def test_gradient_steps_follow_their_own_law(setting) -> None:
    eta = 0.25 * setting.step_bound
    found = finding_of(setting, lambda layer, mu: gradient_descent.shrinkage(mu, layer, eta))
    assert "gradient step" in found.statement
    steps = r2(found, "gradient_step")
    assert (steps["r2"] > 0.9999).all() and (steps["deficit_hi"] < 1e-3).all()
    assert steps["coefficient"].to_numpy() == pytest.approx([eta, eta], rel=0.02)
    for other in ("scaled", "ridge_path"):
        assert (r2(found, other)["deficit_lo"] > 0.005).all()
    # A probe of the next token scales each iterate to fit, so that it cannot show the step.
    decoded = r2(found, "gradient_step", "decoded")["coefficient"].to_numpy()
    assert (decoded < 0.5 * eta).all()


def test_newton_doubles_what_is_solved(setting) -> None:
    start = 0.1 * setting.step_bound
    found = finding_of(setting, lambda layer, mu: newton.shrinkage(mu, layer + 1, start))
    doubled = r2(found, "newton")
    assert (doubled["r2"] > 0.999).all() and (doubled["deficit_hi"] < 1e-3).all()
    for other in ("gradient_step", "scaled", "ridge_path"):
        assert (r2(found, other)["deficit_lo"] > doubled["deficit_hi"]).all()


def test_a_ridge_path_gives_back_its_penalties(setting) -> None:
    penalties = {1: 30.0, 2: 2.0, 3: 0.1}
    found = finding_of(setting, lambda layer, mu: ridge.shrinkage(mu, penalties[layer]))
    path = r2(found, "ridge_path")
    assert found.outcome == "supports" and "ridge path" in found.statement
    assert (path["r2"] > 0.99).all()
    assert path["coefficient"].to_numpy() == pytest.approx([2.0, 0.1], rel=0.05)
    assert (r2(found, "scaled")["deficit_lo"] > 0.02).all()
    assert "neither is shown" in found.does_not_show


def test_mere_scaling_is_no_solving(setting) -> None:
    scales = {1: 0.1, 2: 0.2, 3: 0.7}
    found = finding_of(setting, lambda layer, mu: scales[layer] * ridge.shrinkage(mu, 0.5))
    assert found.outcome != "supports"
    scaled = r2(found, "scaled")
    assert (scaled["r2"] > 0.99).all()
    assert scaled["coefficient"].to_numpy() == pytest.approx([2.0, 3.5], rel=0.05)


def test_noise_follows_no_law(setting) -> None:
    found = finding_of(setting, None)
    assert found.outcome == "inconclusive"
    assert "no law to read" in found.statement
    assert (found.tables[0].frame["r2"] < 0.1).all()
