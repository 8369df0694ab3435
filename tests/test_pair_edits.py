"""Edits of pairs and queries in the last block, and layers removed: planted models follow."""

import pytest
import torch
from planted_states import expected_change, slope_and_share

from analyses.ablation import Ablation, _Removed
from analyses.pair_edits import EDITS, PairEdits, _Edits, _swapped_at
from probe.analysis import Analysis
from probe.capture import capture
from probe.findings import Finding
from probe.pilot import scout
from probe.plan import Plan
from probe.planted.base import Planted, families_planted
from probe.planted.descent import plant_descent
from probe.planted.disguises.base import disguises
from probe.sampling import generator_for
from probe.solvers.chebyshev import nodes
from probe.stages import Context, Results
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.views import SUBJECT, TWIN, all_views, permuted_twin

RAW, CONSTRUCTED = "linear-narrow", "linear-narrow-constructed"


def measured(analysis: Analysis, planted: Planted) -> tuple[Results, Finding]:
    plan = Plan(planted.task, 512, 0, workers=1)
    setting = scout(plan, len(planted.model.blocks))
    models = {SUBJECT: planted.model, TWIN: permuted_twin(planted.model, 0)}
    views = {name: view for name, view in all_views(1.0).items() if name in models}
    results = Sweep(plan, models, views, capture).run(tuple(analysis.stages(setting)))
    return results, analysis.conclude(setting, results)


def draw(family: str, task: str, *hidden_by: str) -> Planted:
    generator = generator_for(3, 1)
    planted = families_planted()[family].draw(find_task(task), generator)
    for name in hidden_by:
        planted = disguises()[name].apply(planted, generator)
    return planted


@pytest.mark.parametrize(
    ("task", "hidden_by"), [(CONSTRUCTED, ()), (RAW, ()), (CONSTRUCTED, ("change_of_basis",))]
)
def test_a_planted_mesa_layer_follows_its_edits(task: str, hidden_by: tuple[str, ...]) -> None:
    results, finding = measured(PairEdits(), draw("ridge", task, *hidden_by))
    assert finding.outcome == "supports"
    edits = _Edits(results, next(iter(results))[0], SUBJECT)
    for edit in EDITS:
        assert edits.r2(edit).lo > 0.98
        assert edits.control(edit).hi < 0.7  # a change that was not made explains less
    assert all(finding.controls[f"permuted_twin_{edit}_r2"].value < 0.2 for edit in EDITS)


@pytest.mark.parametrize(
    ("task", "hidden_by"), [(CONSTRUCTED, ()), (RAW, ("distractors", "change_of_basis"))]
)
def test_a_swapped_query_moves_a_mesa_layer_as_planted(task: str, hidden_by: tuple[str, ...]):
    planted = draw("ridge", task, *hidden_by)
    sequences = planted.task.sample(256, generator_for(9))
    context = Context(sequences, planted.task.problem(sequences))
    t, last = 12, len(planted.model.blocks) - 1
    seen = capture(planted.model, sequences.tokens, 256)
    edit = {f"blocks.{last}.attn.hook_q": _swapped_at(t)}
    moved = (seen.runner.run(sequences.tokens, edit) - seen.output)[:, t].double()
    query = context.problem.queries[:, t].double()
    state = planted.states[-1]
    slope, share = slope_and_share(
        moved, expected_change(context, t, state, query.roll(1, 0) - query)
    )
    assert slope == pytest.approx(1, abs=0.01) and share > 0.99
    wrong = expected_change(context, t, state, query - query.roll(1, 0))  # control
    assert slope_and_share(moved, wrong)[0] < 0


def test_a_context_free_map_follows_no_pairs() -> None:
    """Control: its output does not come from the pairs, so nothing moves as it should."""
    _, finding = measured(PairEdits(), draw("kernel_smoother", CONSTRUCTED))
    assert finding.outcome != "supports"


def test_where_lower_layers_speak_the_last_is_not_judged() -> None:
    task = find_task(CONSTRUCTED)
    _, finding = measured(PairEdits(), plant_descent(task, "gd", (0.02, 0.02), "gradient_descent"))
    assert finding.outcome == "inconclusive"
    assert "Not judged" in finding.statement


ABLATED = [
    (CONSTRUCTED, ()),
    (CONSTRUCTED, ("rotation",)),
    (CONSTRUCTED, ("distractors", "change_of_basis")),
    (RAW, ("rotation",)),
]
CHEBYSHEV = tuple((1 / nodes(3, 5.0, 100.0)).tolist())


@pytest.mark.parametrize("etas", [(0.03, 0.012, 0.02), CHEBYSHEV])
@pytest.mark.parametrize(("task", "hidden_by"), ABLATED)
def test_without_a_layer_the_algorithm_lacks_its_step(
    task: str, hidden_by: tuple[str, ...], etas: tuple[float, ...]
) -> None:
    planted = plant_descent(find_task(task), "gd", etas, "polynomial")
    for name in hidden_by:
        planted = disguises()[name].apply(planted, generator_for(8))
    results, finding = measured(Ablation(), planted)
    assert finding.outcome == "supports"
    (measured_,) = results.values()
    front = len(planted.model.blocks) - len(etas)  # a layer that copies is no step
    found = measured_.learned.etas[front:]
    assert torch.allclose(found, torch.tensor(etas, dtype=torch.float64), rtol=0.01)
    for layer in range(front, len(planted.model.blocks)):
        removed = _Removed(measured_.sums, layer)
        assert removed.predicted.lo > 0.98
        assert removed.predicted_loss.value == pytest.approx(removed.loss.value, rel=0.05)
        assert removed.unchanged.value < removed.predicted.value - 0.005  # control


def test_one_step_leaves_nothing_to_predict() -> None:
    planted = plant_descent(find_task(CONSTRUCTED), "gd", (0.02,), "gradient_descent")
    assert measured(Ablation(), planted)[1].outcome == "inconclusive"


def test_read_outs_without_steps_predict_nothing() -> None:
    """Control: a mesa-layer takes no gradient step."""
    assert measured(Ablation(), draw("ridge", RAW))[1].outcome == "inconclusive"
