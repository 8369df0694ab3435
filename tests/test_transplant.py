"""An optimizer that is found is replaced by an explicit layer; what is none is left alone."""

import json
from pathlib import Path

import pytest
import torch

from probe.checkpoints.base import load
from probe.checkpoints.native import write_native
from probe.mesa_layer import mesa_layer
from probe.models.attention import LinearAttention
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.plan import Plan
from probe.planted.base import families_planted
from probe.sampling import generator_for
from probe.tasks.base import find_task
from probe.transplant.run import Refusal, Transplant, exchanged, fine_tuned, transplant, unfit

TASK = "linear-narrow-constructed"
LEARNER = {"class": "least_squares", "instruments_ok": True, "evidence_level": 1}


@pytest.fixture(scope="module")
def descent(tmp_path_factory) -> Path:
    """Planted gradient descent of several steps, as a checkpoint."""
    planted = families_planted()["gradient_descent"].draw(find_task(TASK), generator_for(3))
    assert len(planted.model.blocks) > 1
    folder = tmp_path_factory.mktemp("descent")
    write_native(planted.model, TASK, folder)
    return folder


def plan(task: str = TASK) -> Plan:
    return Plan(find_task(task), 512, 0)


@pytest.fixture(scope="module")
def replaced(descent) -> Transplant:
    found = transplant(load(descent), plan(), LEARNER)
    assert isinstance(found, Transplant)
    return found


def test_gradient_descent_gives_way_to_the_exact_solution(replaced, descent) -> None:
    assert replaced.exchange.ratio.hi < 1
    assert replaced.removed == len(load(descent).model.blocks) and replaced.binding.layer == 0
    assert len(replaced.model.blocks) == 1 and replaced.parameters < replaced.old_parameters
    assert min(r2.value for r2 in replaced.binding.r2.values()) > 0.999


def test_the_new_model_is_the_mesa_layer_on_the_problem_of_the_task(replaced) -> None:
    task = find_task(TASK)
    sequences = task.sample(8, generator_for(9))
    problem = task.problem(sequences)
    heads = [part.double()[:, :, None] for part in (problem.keys, problem.values, problem.queries)]
    ridge = torch.tensor([replaced.answer.ridge], dtype=torch.float64)
    want = mesa_layer(*heads, ridge)[:, :, 0] @ replaced.answer.out
    got = replaced.model(sequences.tokens).double()
    error = float((got - want)[:, 2:].norm() / want[:, 2:].norm())
    assert error < 0.02
    other = float((got - want.roll(1, 0))[:, 2:].norm() / want[:, 2:].norm())
    assert other > 0.5


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"class": "unexplained"}, "The verdict is unexplained"),
        ({"class": "context_free"}, "The verdict is context free"),
        ({"instruments_ok": False}, "instruments misread"),
        ({"evidence_level": 0}, "level 0"),
    ],
)
def test_what_is_no_optimizer_is_left_alone(descent, changed, reason) -> None:
    verdict = {**LEARNER, **changed}
    assert reason in (unfit(verdict) or "")
    found = transplant(load(descent), plan(), verdict)
    assert isinstance(found, Refusal) and not found.bindings
    assert unfit(LEARNER) is None


def test_a_stream_without_pairs_is_left_alone(tmp_path) -> None:
    """On raw tokens a block without positions or copies never sees the token before."""
    model = SequenceTransformer(
        ModelConfig(10, 16, 10, (BlockConfig(LinearAttention(1, 4)),), projected=True)
    )
    model.initialise(0.1, generator_for(0))
    write_native(model, "linear", tmp_path)
    found = transplant(load(tmp_path), plan("linear"), LEARNER)
    assert isinstance(found, Refusal) and "pair" in found.reason
    assert [b.complete for b in found.bindings] == [False]


def test_fine_tuning_trains_the_new_layer_alone(replaced) -> None:
    tuned = fine_tuned(replaced.model, plan(), 20, replaced.binding.layer)
    before, after = replaced.model.state_dict(), tuned.state_dict()
    assert not torch.equal(before["blocks.0.attn.W_O"], after["blocks.0.attn.W_O"])
    assert exchanged(replaced.model, tuned, plan(), lambda done, total: None).ratio.hi < 1.05
    assert not any(p.requires_grad for p in tuned.parameters())


def test_blocks_below_stay_as_they_are() -> None:
    """A copying block below the learner keeps its weights, and the read-out is drowned out."""
    from probe.transplant.binding import ROLES, Binding
    from probe.transplant.explicit import Answer
    from probe.transplant.surgery import transplant as build

    blocks = (BlockConfig(LinearAttention(2, 3), positions=4),) * 3
    model = SequenceTransformer(ModelConfig(4, 12, 4, blocks, projected=True))
    model.initialise(0.3, generator_for(1))
    model.requires_grad_(False)
    tokens = torch.randn(64, 9, 4, generator=generator_for(2))
    stream = model.blocks[0](tokens @ model.W_E)
    rows = stream.flatten(0, 1).double()
    maps = {role: torch.eye(12, 4, dtype=torch.float64).roll(i, 0) for i, role in enumerate(ROLES)}
    binding = Binding(1, maps, {}, rows.T @ rows, 1)
    new = build(model, binding, Answer(0.5, 2 * torch.eye(4, dtype=torch.float64)))
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks.0.") or name == "W_E":
            assert torch.equal(tensor, new.state_dict()[name])
    heads = [(stream @ matrix.float())[:, :, None] for matrix in maps.values()]
    heads[0][:, 0] = 0  # the first token is no pair
    want = 2 * mesa_layer(*heads, torch.tensor([0.5]))[:, :, 0]
    assert float((new(tokens) - want).norm() / want.norm()) < 0.01
    assert float((new.read_out(stream)).norm() / want.norm()) < 0.01
    assert float(model.read_out(stream).norm() / want.norm()) > 0.05


def test_the_command_writes_a_checkpoint_that_is_judged(command, descent, tmp_path) -> None:
    out = tmp_path / "out"
    counts = ("--sequences", 512)
    read = command("analyze", descent, *counts, "--only", "behaviour", "--out", tmp_path / "read")
    assert read.code == 0, read.err
    asked = ("transplant", descent, *counts, "--out", out)
    outcome = command(*asked, "--results", tmp_path / "read" / "results.json", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["replaced"] and results["closed_form"]["ratio"]["hi"] < 1
    assert results["after"]["verdict"]["class"] == "least_squares"
    assert load(out).sha256 == results["after"]["subject"]["sha256"]
    for name in ("transplant.html", "transplant.md", "report/results.json"):
        assert (out / name).stat().st_size > 1000
    again = command(*asked, "--results", out / "report" / "results.json").problem
    assert "results of another model" in again


def test_the_command_says_when_nothing_is_replaced(command, descent, tmp_path) -> None:
    from probe.views import permuted_twin

    write_native(permuted_twin(load(descent).model, 0), TASK, tmp_path / "twin")
    out = tmp_path / "out"
    outcome = command("transplant", tmp_path / "twin", "--sequences", 512, "--out", out)
    assert outcome.code == 0 and "Nothing is replaced." in outcome.out
    assert not (out / "model.safetensors").exists() and (out / "transplant.html").exists()


@pytest.mark.slow
def test_a_published_model_is_replaced(command, paper_data, tmp_path):
    path = paper_data / "linear_seq_fully" / "model_sm_7l_fullfledged.pkl"
    named = (path, "--preset", "von-oswald-2023/softmax-7l", "--sequences", 2048)
    read = command("analyze", *named, "--only", "behaviour", "--out", tmp_path / "read")
    assert read.code == 0, read.err
    before = ("--results", tmp_path / "read" / "results.json")
    outcome = command("transplant", *named, *before, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["first_layer"] == 2
    assert results["closed_form"]["ratio"]["hi"] < 0.95
    verdict = results["after"]["verdict"]
    assert (verdict["class"], verdict["evidence_level"]) == ("least_squares", 3)
