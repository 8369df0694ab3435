"""Planted models equal their solvers, and their states do what is said of them."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from probe.models.attention import SoftmaxAttention
from probe.planted.base import Planted, error_against_solver, families_planted
from probe.planted.descent import Steps, plant_descent
from probe.planted.frame import Frame, ring, standard_clock
from probe.planted.lookup import Recognised
from probe.planted.mixture import Switched
from probe.planted.momentum import HeavyBall
from probe.planted.ridge import LeastSquares
from probe.planted.scales import SAMPLE, scales_of
from probe.planted.slots import SHUT, Hidden, Layer, Slots, assemble, gated, linear
from probe.problem import prefix_moments
from probe.sampling import generator_for, normal
from probe.solvers import chebyshev, gradient_descent, momentum, ridge
from probe.stages import Context
from probe.tasks.base import Task, find_task, shifted
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics
from probe.tasks.teachers import Contracting, GivenSpectrum, Orthogonal, Pool

LEARNERS = ("gradient_descent", "richardson", "chebyshev", "momentum", "ridge")
OTHERS = ("kernel_smoother", "mean", "two_lag_copy", "context_free", "mixture")
SMALL = LinearDynamics("small", Orthogonal(), width=5, length=30)
TASKS: dict[str, Task] = {
    task.name: task
    for raw in (
        find_task("linear"),
        SMALL,
        replace(SMALL, name="small-contracting", teacher=Contracting(), clip=2.0),
        replace(SMALL, name="small-spectrum", teacher=GivenSpectrum((1.0, -1.0, 0.9))),
        replace(SMALL, name="small-pool", teacher=Pool.from_seed(3, 5, 0)),
    )
    for task in (raw, replace(raw, name=f"{raw.name}-constructed", layout=ConstructedTokens()))
}
LAYOUTS = ("small", "small-constructed")
SEQUENCES = 24


def draw(family: str, task: Task, seed: int = 0) -> Planted:
    return families_planted()[family].draw(task, generator_for(seed))


def in_double(planted: Planted) -> Planted:
    """The same weights without the rounding of float32 sums."""
    return replace(planted, model=deepcopy(planted.model).double())


def context_of(task: Task, seed: int = 9) -> Context:
    sequences = task.sample(SEQUENCES, generator_for(seed))
    return Context(sequences, task.problem(sequences))


# --- Outputs. ---


CASES = [
    *((family, task) for family in (*LEARNERS, *OTHERS) for task in TASKS),
    *(("lookup", task) for task in TASKS if "pool" in task),
]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_the_output_is_the_solver_s(family: str, task: str) -> None:
    assert families_planted()[family].fits(TASKS[task])
    for seed in range(3 if task in LAYOUTS or family == "lookup" else 1):
        planted = draw(family, TASKS[task], seed)
        assert error_against_solver(in_double(planted), SEQUENCES, generator_for(9)) < 1e-5
        assert error_against_solver(planted, SEQUENCES, generator_for(9)) < 1e-3


@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("family", [name for name in (*LEARNERS, *OTHERS) if name != "mean"])
def test_other_constants_are_another_algorithm(family: str, task: str) -> None:
    planted, other = (draw(family, TASKS[task], seed) for seed in (0, 1))
    mixed = replace(planted, solver=other.solver)
    assert error_against_solver(mixed, SEQUENCES, generator_for(9)) > 1e-2
    mean = replace(planted, solver=draw("mean", TASKS[task]).solver)
    assert error_against_solver(mean, SEQUENCES, generator_for(9)) > 1e-1


@pytest.mark.parametrize("family", [*LEARNERS, *OTHERS])
def test_the_same_generator_draws_the_same_model(family: str) -> None:
    one, again, other = (draw(family, SMALL, seed) for seed in (3, 3, 5))
    assert one.name == again.name and one.truth == again.truth
    pairs = zip(one.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (
        family == "mean" or one.solver(context_of(SMALL)).ne(other.solver(context_of(SMALL))).any()
    )


def test_truths_are_those_of_the_verdict() -> None:
    expected = {
        "gradient_descent": ("first_order", "gradient_descent"),
        "richardson": ("first_order", "polynomial"),
        "chebyshev": ("first_order", "chebyshev"),
        "momentum": ("first_order", "momentum"),
        "ridge": ("least_squares", "ridge"),
        "kernel_smoother": ("kernel", "kernel_smoother"),
        "mean": ("kernel", "mean"),
        "two_lag_copy": ("copy", "two_lag_copy"),
        "context_free": ("context_free", "memorised_map"),
        "mixture": ("mixture", "none"),
        "lookup": ("lookup", "pool_lookup"),
    }
    for family, named in expected.items():
        planted = draw(family, TASKS["small-pool-constructed"])
        truth = planted.truth
        assert (truth.algorithm_class, truth.family) == named
        first_order = truth.algorithm_class == "first_order"
        assert truth.degree == (len(planted.states) if first_order else None)
        assert planted.exact and planted.disguises == ()


# --- Responses and states. ---

CURVES: list[tuple[Callable, torch.Tensor]] = [
    (Steps((0.3,) * 4), gradient_descent.shrinkage(torch.linspace(0.1, 4, 9).double(), 4, 0.3)),
    (
        Steps(tuple((1 / chebyshev.nodes(5, 0.2, 4.5)).tolist())),
        chebyshev.shrinkage(torch.linspace(0.1, 4, 9).double(), 5, 0.2, 4.5),
    ),
    (
        HeavyBall(3, 0.4, 0.5),
        momentum.shrinkage(torch.linspace(0.1, 4, 9).double(), 3, 0.4, 0.5),
    ),
    (LeastSquares(0.7), ridge.shrinkage(torch.linspace(0.1, 4, 9).double(), 0.7)),
]


@pytest.mark.parametrize("case", range(len(CURVES)))
def test_responses_are_those_of_the_solver_families(case: int) -> None:
    mu = torch.linspace(0.1, 4, 9).double()
    response, curve = CURVES[case]
    assert torch.allclose(mu * response(mu), curve)
    assert not torch.allclose(mu * response(mu), CURVES[case - 1][1], rtol=1e-2)
    zero = torch.zeros(1, dtype=torch.float64)
    assert torch.allclose(response(zero), response(zero + 1e-7), rtol=1e-4)


def through_context(context: Context, curve: Callable, vectors: torch.Tensor) -> torch.Tensor:
    """C_t T(G_t) v_t, by the eigenvectors of each moment matrix."""
    mu, basis = torch.linalg.eigh(context.moments.gram)
    inside = basis @ (curve(mu.clamp(min=0))[..., None] * (basis.mT @ vectors[..., None]))
    return (context.moments.cross @ inside)[..., 0]


def streams(planted: Planted, context: Context) -> list[torch.Tensor]:
    """The stream before every block, of a model in double."""
    found: list[torch.Tensor] = []
    sites = planted.model.layer_sites()
    hooks = [(site, lambda stream, hook: found.append(stream)) for site in sites]
    planted.model.run_with_hooks(context.sequences.tokens.double(), fwd_hooks=hooks)
    return found


@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("family", LEARNERS)
def test_a_change_of_the_state_moves_the_output_as_stated(family: str, task: str) -> None:
    planted, context = in_double(draw(family, TASKS[task], 1)), context_of(TASKS[task])
    seen, t = streams(planted, context), 17
    before = planted.model.read_out(seen[-1])
    front = 0 if "constructed" in task else 1
    assert len(planted.states) == len(planted.model.blocks)
    for state in planted.states:
        stream = seen[state.layer]
        dr = torch.zeros_like(context.problem.queries, dtype=torch.float64)
        dr[:, t] = normal(generator_for(state.layer + 1), SEQUENCES, dr.shape[-1])
        edited = stream + dr @ state.write
        assert torch.allclose((edited - stream) @ state.read, dr)
        moved = planted.model.resume(edited, state.layer) - before
        expected = through_context(context, state.remaining, dr)
        scale = max(1.0, float(expected[:, t].square().mean().sqrt()))
        assert float((moved - expected).abs().max()) < 1e-5 * scale
        assert float(moved[:, t].square().mean().sqrt()) > 1e-3
        others = [other for other in planted.states if other.layer not in (0, state.layer)]
        if state.layer < front or family == "ridge":
            continue  # the layers of the front leave the state alone
        for other in others:
            wrong = through_context(context, other.remaining, dr)
            assert float((moved - wrong)[:, t].abs().max()) > 1e-3 * scale


@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("family", [name for name in LEARNERS if name != "momentum"])
def test_the_state_is_the_residual_that_later_layers_work_on(family: str, task: str) -> None:
    """What comes after layer l is C T_l(G) r_l; the heavy ball also carries its last step."""
    planted, context = in_double(draw(family, TASKS[task], 1)), context_of(TASKS[task])
    seen = streams(planted, context)
    output = planted.model.read_out(seen[-1])
    queries = context.problem.queries.double()
    for state in planted.states:
        residual = seen[state.layer] @ state.read
        rest = output - planted.model.read_out(seen[state.layer])
        expected = through_context(context, state.remaining, residual)
        assert torch.allclose(rest, expected, atol=1e-5, rtol=1e-5)
        if not torch.allclose(residual, queries, atol=1e-3):
            wrong = through_context(context, state.remaining, queries)
            assert not torch.allclose(rest, wrong, atol=1e-3)


def test_steps_keep_the_range_of_the_task() -> None:
    scales = scales_of(SMALL, generator_for(5))
    problem = SMALL.problem(SMALL.sample(SAMPLE, generator_for(5)))
    mu = torch.linalg.eigvalsh(prefix_moments(problem).gram[:, -1])
    assert scales.top == pytest.approx(float(mu[:, -1].quantile(0.99)))
    assert scales.low == pytest.approx(float(mu[:, 0].median()))
    flat = replace(SMALL, teacher=GivenSpectrum((1.0, 0.0)))  # noise alone fills two directions
    assert scales_of(flat, generator_for(5)).low < 0.1 * scales.low
    for seed in range(3):
        steps = draw("gradient_descent", SMALL, seed).states[-1].remaining
        assert isinstance(steps, Steps) and 0.2 < steps.etas[0] * scales.top < 1.8


# --- The parts of the constructions. ---


def test_slots_are_read_and_written_apart() -> None:
    slots = Slots({"a": 2, "b": 3})
    vector = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    stream = vector @ slots.write("b")
    assert torch.equal(stream @ slots.read("b"), vector)
    assert torch.equal(stream @ slots.read("a"), torch.zeros(1, 2, dtype=torch.float64))
    change = normal(generator_for(1), 3, 4)
    assert torch.equal(stream @ slots.read("b", change), vector @ change)


def mlp_of(hidden: Hidden) -> Callable[[torch.Tensor], torch.Tensor]:
    width = len(hidden.into)
    eye = torch.eye(width, dtype=torch.float64)
    none = torch.zeros(0, width, dtype=torch.float64)
    model = assemble(eye, none, (Layer(hidden=(hidden,)),), eye).double()
    return lambda x: (model(x[None]) - x)[0]


def test_pairs_of_hidden_units_are_linear_and_can_be_shut() -> None:
    slots = Slots({"x": 3, "y": 3, "gate": 1})
    x = torch.cat([normal(generator_for(1), 50, 6), torch.zeros(50, 1).double()], 1)
    x[:, :3] *= 20
    read, write = slots.read("x"), slots.write("y")
    assert torch.allclose(mlp_of(linear(read, write))(x), x[:, :3] @ write)
    gate = mlp_of(gated(read, slots.read("gate", -SHUT), write))
    assert torch.allclose(gate(x), x[:, :3] @ write)
    shut = x.clone()
    shut[:, -1] = 1
    assert torch.equal(gate(shut), torch.zeros_like(shut))
    ajar = x.clone()
    ajar[:, -1] = 1 / SHUT
    assert not torch.allclose(gate(ajar), x[:, :3] @ write, atol=1e-1)
    half = Hidden(read, write)
    assert not torch.allclose(mlp_of(half)(x), x[:, :3] @ write, atol=1e-1)


@pytest.mark.parametrize("length", [6, 30, 224])
def test_raw_tokens_are_copied_to_the_next_position(length: int) -> None:
    task = replace(SMALL, length=length)
    frame = Frame.of(task)
    model = frame.build(
        (Layer(hidden=(linear(frame.slots.read("prev"), frame.slots.write("y")),)),)
    )
    tokens = context_of(task).sequences.tokens
    assert torch.allclose(model(tokens), shifted(tokens), atol=1e-6)
    assert not torch.allclose(model(tokens), tokens, atol=1e-1)
    assert torch.allclose(ring(length).norm(dim=1), torch.ones(length).double())
    assert isinstance(frame.front[0].config.attention, SoftmaxAttention)


def test_constructed_tokens_need_no_positions_and_no_copy() -> None:
    frame = Frame.of(TASKS["small-constructed"])
    assert frame.front == () and len(frame.positions) == 0
    assert frame.slots.d_model == 4 * 5
    marked = Frame.of(TASKS["small-constructed"], clock=standard_clock(30))
    assert marked.slots.d_model == 4 * 5 + 3
    with pytest.raises(TypeError, match="nothing can be planted on partial"):
        Frame.of(find_task("partial"))


# --- Single families. ---


def test_a_mixture_changes_at_its_position() -> None:
    for seed in range(4):
        planted, context = draw("mixture", TASKS["small"], seed), context_of(TASKS["small"])
        solver = planted.solver
        assert isinstance(solver, Switched)
        output = planted.model(context.sequences.tokens).double()
        early, late = solver.early(context), solver.late(context)
        at = slice(1, solver.start), slice(solver.start, None)
        assert torch.allclose(output[:, at[0]], early[:, at[0]], atol=1e-3)
        assert torch.allclose(output[:, at[1]], late[:, at[1]], atol=1e-3)
        assert not torch.allclose(output[:, at[0]], late[:, at[0]], atol=1e-1)
        assert not torch.allclose(output[:, at[1]], early[:, at[1]], atol=1e-1)
        first, stop = TASKS["small"].windows.judged
        assert first < solver.start < stop


@pytest.mark.parametrize("task", ["finite-pool", "finite-pool-constructed"])
def test_a_lookup_knows_its_teachers_and_no_others(task: str) -> None:
    planted, context = draw("lookup", find_task(task)), context_of(find_task(task))
    output = planted.model(context.sequences.tokens)
    assert torch.allclose(output[:, 2:], context.sequences.oracle[:, 2:], atol=1e-4)
    strangers = context_of(replace(find_task(task), teacher=Orthogonal()))
    said = planted.model(strangers.sequences.tokens)
    missed = (said - strangers.sequences.oracle)[:, 2:].square().mean()
    assert missed > 0.5 * strangers.sequences.oracle.square().mean()
    other = Pool.from_seed(4, 10, seed=1).matrices
    mixed = replace(planted, solver=Recognised(other, 10.0))
    assert error_against_solver(mixed, SEQUENCES, generator_for(9)) > 0.1


def test_a_lookup_needs_a_pool() -> None:
    assert not families_planted()["lookup"].fits(SMALL)
    with pytest.raises(TypeError, match="small has no finite pool"):
        draw("lookup", SMALL)


def test_one_teacher_is_memorised() -> None:
    task = find_task("fixed-teacher")
    planted, context = draw("context_free", task), context_of(task)
    output = planted.model(context.sequences.tokens)
    assert torch.allclose(output, context.sequences.oracle, atol=1e-5)
    random, others = draw("context_free", find_task("linear")), context_of(find_task("linear"))
    assert (random.model(others.sequences.tokens) - others.sequences.oracle).abs().max() > 1


def test_a_wrong_step_is_seen() -> None:
    planted = plant_descent(SMALL, "gd", (0.02, 0.02), "gradient_descent")
    weight = planted.model.blocks[-1].attn.W_O
    assert error_against_solver(in_double(planted), SEQUENCES, generator_for(9)) < 1e-5
    weight *= 1.01
    assert error_against_solver(in_double(planted), SEQUENCES, generator_for(9)) > 1e-4


def test_a_pool_draws_its_matrices_and_no_others() -> None:
    pool = Pool.from_seed(3, 4, 7)
    drawn = pool.draw(300, 4, generator_for(0))
    which = (drawn[:, None] - pool.matrices).abs().amax((2, 3)).eq(0)
    assert which.sum(1).eq(1).all() and (which.sum(0) > 60).all()
    assert torch.allclose(pool.matrices @ pool.matrices.mT, torch.eye(4).double().expand(3, 4, 4))
    assert not torch.equal(pool.matrices, Pool.from_seed(3, 4, 8).matrices)
    described = find_task("finite-pool").params()
    assert json.loads(json.dumps(described))["teacher"]["kind"] == "Pool"
