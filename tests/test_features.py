"""A learner in known features is read in them, at its layer; wrong and untrained ones are not."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from analyses.features import FeaturesAnalysis
from probe.analysis import Bench
from probe.capture import capture, predictor_only
from probe.checkpoints.base import Subject, load
from probe.extensions import ExtensionStage, Responses, places_of
from probe.feature_study import candidates_of, has_features
from probe.features import (
    AfterAttention,
    AfterBlock,
    Delays,
    Elsewhere,
    TaskFeatures,
    posed,
    sites_of,
)
from probe.findings import Finding
from probe.models.attention import KINDS
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.pilot import scout
from probe.plan import PILOT, Plan
from probe.planted.features import feature_learner
from probe.report.figures import render
from probe.sampling import generator_for
from probe.stages import Batch, Context
from probe.sweep import Sweep
from probe.tasks.base import Task, find_task
from probe.tasks.nonlinear_dynamics import FeatureMap, NonlinearDynamics, PlainFeatureMap
from probe.tasks.partial_observation import PartialObservation
from probe.tasks.teachers import Orthogonal
from probe.views import SUBJECT

PHI = PlainFeatureMap.from_seed(4, hidden=12, seed=3)
PLAIN = NonlinearDynamics("plain", Orthogonal(), PHI, width=4, length=24, noise=0.3)
UNIT = replace(PLAIN, name="unit", feature_map=FeatureMap.from_seed(4, 12, 1), noise=0.01)


def subject_of(model: SequenceTransformer) -> Subject:
    return Subject("planted", "none", model, None, "", ())


def finding(model: SequenceTransformer, task: Task, sequences: int = 512) -> Finding:
    plan = Plan(task, sequences, 0, workers=1)
    bench = Bench(subject_of(model), plan, scout(plan, len(model.blocks)), {})
    return FeaturesAnalysis().run(bench)


def test_the_planted_model_is_ridge_in_its_features() -> None:
    model = feature_learner(PHI, PLAIN.length, 0.1).double()
    sequences = PLAIN.sample(64, generator_for(1))
    context = Context(sequences, PLAIN.problem(sequences))
    said = model(sequences.tokens.double())[:, 1:]
    want = context.spectrum.predict(lambda mu: 1 / (mu + 0.1))[:, 1:]
    assert torch.allclose(said, want, atol=1e-4)
    raw = Context(sequences, replace(context.problem, queries=sequences.tokens))
    assert not torch.allclose(
        said, raw.spectrum.predict(lambda mu: 1 / (mu + 0.1))[:, 1:], atol=0.1
    )


def test_features_of_the_first_mlp_are_named_at_its_layer() -> None:
    found = finding(feature_learner(PHI, PLAIN.length, 0.1), PLAIN)
    assert found.outcome == "supports"
    assert found.metrics["r2 true features"].value > 0.999
    assert found.metrics["gain_over_raw_inputs"].lo > 0.01
    assert found.metrics["decoded_above_controls"].lo > 0.5
    assert "true features, which the MLP of layer 1 provides" in found.bearing
    # Controls.
    assert abs(found.controls["r2 another sequence"].value) < 0.05
    assert found.controls["r2 planted mesa-layer"].value > 0.999
    decoded = found.tables[1].frame.set_index(["site", "view"])["r2"]
    assert decoded["1, MLP", "subject"] > 0.999 > decoded["1, attention", "subject"] + 0.05
    for figure in found.figures:
        assert render(figure).startswith("<svg")


def test_a_learner_in_wrong_features_is_not_read_in_the_true_ones() -> None:
    found = finding(feature_learner(PHI.another(7), PLAIN.length, 0.1), PLAIN)
    assert "true features" not in found.bearing
    assert found.metrics["r2 true features"].value < 0.98
    assert "decoded_above_controls" not in found.metrics


def test_an_untrained_model_has_no_features() -> None:
    blocks = (BlockConfig(KINDS["softmax"](2, 4), d_mlp=24),) * 2
    model = SequenceTransformer(ModelConfig(4, 12, 4, blocks, projected=True))
    model.initialise(0.3, generator_for(0))
    found = finding(model, PLAIN)
    assert found.outcome == "inconclusive" and found.bearing == ""
    assert found.statement.startswith("Cannot tell")
    assert "decoded_above_controls" not in found.metrics


def responses(task: Task, ridge: float) -> Mapping[str, float]:
    """R^2 of each candidate for a predictor without insides that runs ridge in the task's own."""
    plan = Plan(task, 512, 0, workers=1)
    setting = scout(plan, 1)
    places = places_of(setting.windows.judged, 4)
    sequences = plan.draw(PILOT, 0, 32)
    context = Context(sequences, task.problem(sequences))
    pilot = Batch(context, predictor_only(sequences.oracle), torch.arange(32))
    tried = [posed(features, pilot, places) for features in candidates_of(task, 0).every]
    stage = ExtensionStage((*tried, Elsewhere(tried[0])), places, setting.step_bound, 1.0)

    def learner(context: Context, captures: object) -> tuple[Context, object]:
        said = context.spectrum.predict(lambda mu: 1 / (mu + ridge))
        return context, predictor_only(said.float())

    measured = Sweep(plan, {}, {SUBJECT: learner}, capture).run((stage,))[stage, SUBJECT]
    read = Responses(stage, measured)
    return {posing.name: read.r2(place).value for place, posing in enumerate(stage.posings)}


def test_predictors_are_read_in_the_features_of_their_task() -> None:
    r2 = responses(UNIT, 0.1)
    assert r2["true features"] > 0.999
    assert max(r2["raw inputs"], r2["wrong features 1"], r2["wrong features 2"]) < 0.97
    assert abs(r2["true features of another sequence"]) < 0.05


def test_predictors_are_read_at_the_depth_of_their_embedding() -> None:
    task = PartialObservation("small", Orthogonal(), hidden=6, observed=2, length=30, depth=3)
    r2 = responses(task, 0.1)
    assert r2["3 delays"] > 0.999 > 0.97 > r2["2 delays"] > r2["raw inputs"]
    assert abs(r2["3 delays of another sequence"]) < 0.05


def test_only_tasks_with_features_are_asked() -> None:
    subject = subject_of(feature_learner(PHI, PLAIN.length, 0.1))
    analysis = FeaturesAnalysis()
    assert analysis.lacks(subject, find_task("linear")) == "the task is linear in its observations"
    assert analysis.lacks(subject, find_task("regression")) is not None
    assert has_features(PLAIN) and analysis.lacks(subject, PLAIN) is None
    with pytest.raises(TypeError, match="linear is linear in its observations"):
        candidates_of(find_task("linear"), 0)


def test_sites_follow_the_blocks() -> None:
    sites = sites_of(feature_learner(PHI, PLAIN.length, 0.1))
    assert sites == (
        AfterBlock(0, False),
        AfterAttention(1),
        AfterBlock(1, True),
        AfterAttention(2),
        AfterBlock(2, True),
        AfterBlock(3, False),
    )
    seen = capture(feature_learner(PHI, PLAIN.length, 0.1), torch.zeros(2, PLAIN.length, 4), 2)
    assert torch.equal(sites[0].of(seen), seen.layers[0])
    assert torch.equal(sites[1].of(seen), seen.layers[0] + seen.updates[0])
    assert torch.equal(sites[-1].of(seen), seen.layers[3])
    assert Delays(1).name == "raw inputs" and TaskFeatures().name == "true features"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "preset", "own", "best", "raw", "provider"),
    [
        ("nonlinear_seq_fully", "nonlinear-softmax-7l", "true features", 0.99, 0.96, "the MLP"),
        ("linear_seq_partial", "partial-softmax-7l", "5 delays", 0.92, 0.46, "the attention"),
    ],
)
def test_published_models(paper_data, path, preset, own, best, raw, provider) -> None:
    checkpoint = paper_data / path / "model_sm_7l_fullfledged.pkl"
    subject = load(checkpoint, f"von-oswald-2023/{preset}")
    found = finding(subject.model, find_task(subject.task))
    assert found.outcome == "supports"
    assert found.metrics[f"r2 {own}"].value > best
    assert found.metrics["r2 raw inputs"].value < raw
    assert f"which {provider} of layer 1 provides" in found.bearing
