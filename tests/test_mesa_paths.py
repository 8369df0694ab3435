"""Every way of solving the mesa-layer against a float64 direct solve at every prefix."""

import warnings
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probe.mesa_layer import (
    Chunkwise,
    ConjugateGradient,
    Direct,
    ForgetAll,
    ForgetData,
    IllConditioned,
    LeastSquares,
    Method,
    Recursion,
    choose,
    diagnose,
    mesa_layer,
    stream_after,
)
from probe.sampling import generator_for, normal, uniform

METHODS = (Chunkwise(), Chunkwise(longest=8), ConjugateGradient(longest=8), Recursion())
SHAPES = ((2, 5, 2, 8, 3), (1, 40, 2, 6, 4))  # batch, time, heads, d_k, d_v: T < d and T > d
GATES = ("none", "write", "forget all", "forget all, write", "forget data", "forget data, write")
RIDGES = (1e-6, 1e-3, 1.0, 1e3)
KINDS = {"all": ForgetAll, "data": ForgetData}


def drawn(shape: tuple[int, ...], repeated: bool = False) -> list[Tensor]:
    """Keys, values and queries."""
    batch, time, heads, d_k, d_v = shape
    generator = generator_for(4, *shape)
    keys, queries = (normal(generator, batch, time, heads, d_k) for _ in range(2))
    if repeated:
        keys = keys[:, :1].expand(-1, time, -1, -1).contiguous()
    return [keys, normal(generator, batch, time, heads, d_v), queries]


def gated(shape: tuple[int, ...], gates: str, least: float) -> dict[str, Tensor]:
    """The gates that are named, uniform from `least` to 1."""
    generator = generator_for(5, *shape)
    wanted = [name for name in ("forget", "write") if name in gates]
    return {name: uniform(generator, least, 1.0, *shape[:3]) for name in wanted}


def answer(
    method: Method, qkv: list[Tensor], ridge: Tensor, gates: dict[str, Tensor], kind: str
) -> list[Tensor]:
    """The output, then the gradient of every argument under a fixed incoming one."""
    leaves = [t.clone().requires_grad_(True) for t in (*qkv, ridge, *gates.values())]
    given_gates = dict(zip(gates, leaves[4:], strict=True))
    forget = given_gates.get("forget")
    forgetting = None if forget is None else next(KINDS[k] for k in KINDS if k in kind)(forget)
    out = mesa_layer(*leaves[:4], forgetting, given_gates.get("write"), method)
    incoming = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, incoming)]


def errors(got: list[Tensor], want: list[Tensor], qkv: list[Tensor]) -> list[float]:
    """Relative errors; penalty and gates against the terms that their gradients are sums of."""
    terms = sum(float((x * g).norm()) for x, g in zip(qkv[:2], want[1:3], strict=True))
    scales = [float(t.norm()) for t in want]
    scales = scales[:4] + [max(scale, terms) for scale in scales[4:]]
    pairs = zip(got, want, scales, strict=True)
    return [float((a.double() - b).norm()) / scale for a, b, scale in pairs]


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("gates", GATES)
def test_all_paths_agree_with_the_direct_solve_in_float64(gates: str, ridge: float) -> None:
    for shape, repeated, least in product(SHAPES, (False, True), (0.01, 0.9)):
        if repeated and "all" in gates and least == 0.01:
            continue  # the penalty fades below rounding: no problem with one answer is left
        qkv, opened = drawn(shape, repeated), gated(shape, gates, least)
        penalty = ridge * uniform(generator_for(6), 1.0, 2.0, shape[2], shape[3])
        want = answer(Direct(), qkv, penalty, opened, gates)
        problem = posed(qkv, penalty, opened, gates)
        kappa = float(diagnose(problem).condition.max())
        for method in METHODS:
            if method.refuses(problem):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IllConditioned)
                got = answer(method, qkv, penalty, opened, gates)
            assert max(errors(got, want, qkv)) < 1e-9 * max(1.0, kappa / 1e6), (method, shape)


def posed(
    qkv: list[Tensor], ridge: Tensor, gates: dict[str, Tensor], kind: str = ""
) -> LeastSquares:
    forget = gates.get("forget")
    forgetting = None if forget is None else next(KINDS[k] for k in KINDS if k in kind)(forget)
    return LeastSquares.pose(*qkv, ridge, forgetting, gates.get("write"))


@pytest.mark.parametrize("gates", GATES)
def test_control_every_gate_changes_the_answer(gates: str) -> None:
    shape = SHAPES[1]
    qkv, penalty = drawn(shape), torch.ones(2, 6, dtype=torch.float64)
    plain = answer(Direct(), qkv, penalty, {}, "")[0]
    other = answer(choose(posed(qkv, penalty, gated(shape, gates, 0.3), gates)), qkv, penalty,
                   gated(shape, gates, 0.3), gates)[0]  # fmt: skip
    assert ((plain - other).abs().max() > 0.05) == (gates != "none")


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *product([Chunkwise(2), ConjugateGradient(longest=2), Recursion()], ["none", "all"]),
        (ConjugateGradient(longest=2), "data"),
    ],
)
def test_gradcheck(method: Method, kind: str) -> None:
    shape = (1, 5, 2, 3, 2)
    qkv, penalty = drawn(shape), torch.ones(2, 3, dtype=torch.float64)
    gates = gated(shape, "write" if kind == "none" else "forget, write", 0.3)
    leaves = [t.requires_grad_(True) for t in (*qkv, penalty, *gates.values())]

    def layer(*tensors: Tensor) -> Tensor:
        opened = dict(zip(gates, tensors[4:], strict=True))
        forgetting = KINDS[kind](opened["forget"]) if "forget" in opened else None
        return mesa_layer(*tensors[:4], forgetting, opened["write"], method)

    assert torch.autograd.gradcheck(layer, leaves)


def test_a_closed_write_gate_has_a_gradient() -> None:
    """beta = 0: the pair is not there, and its gradient says what it would bring."""
    shape = (1, 6, 1, 3, 2)
    qkv, penalty = drawn(shape), torch.ones(1, 3, dtype=torch.float64)
    gates = {"write": torch.tensor([1.0, 0, 1, 0, 1, 1], dtype=torch.float64)[None, :, None]}
    want, got = (answer(m, qkv, penalty, gates, "") for m in (Direct(), Chunkwise(4)))
    assert torch.allclose(got[-1], want[-1], atol=1e-12)
    assert got[-1].abs().min() > 1e-3


@pytest.mark.parametrize(("shape", "ridge"), list(product(((4, 50, 2, 20, 20), (1, 300, 2, 32, 16)),
                                                           (10.0, 1.0, 0.3))))  # fmt: skip
def test_float32_is_as_exact_as_a_direct_solve_in_float32(shape, ridge: float) -> None:
    qkv = drawn(shape)
    penalty = torch.full((2, shape[3]), ridge, dtype=torch.float64)
    want = answer(Direct(), qkv, penalty, {}, "")
    single = [t.float() for t in qkv]
    with warnings.catch_warnings():
        warnings.simplefilter("error", IllConditioned)  # none may be needed here
        direct = errors(answer(Direct(torch.float32), single, penalty.float(), {}, ""), want, qkv)
        for method in (Chunkwise(), Chunkwise(16)):
            ours = errors(answer(method, single, penalty.float(), {}, ""), want, qkv)
            assert all(a <= 3 * b for a, b in zip(ours, direct, strict=True)), (
                method,
                ours,
                direct,
            )


@pytest.mark.parametrize("method", [Chunkwise(), ConjugateGradient(), Recursion()])
@pytest.mark.parametrize("ridge", [1e-2, 1e-4, 1e-9])
def test_an_ill_conditioned_state_is_carried_in_float64_and_says_so(method, ridge: float) -> None:
    shape = (2, 50, 2, 20, 20)
    qkv = [t.float() for t in drawn(shape)]
    penalty = torch.full((2, 20), ridge)
    exact = [t.double() for t in qkv]
    want = answer(Direct(), exact, penalty.double(), {}, "")
    with pytest.warns(IllConditioned, match="float64"):
        got = answer(method, qkv, penalty, {}, "")
    assert got[0].dtype == torch.float32
    assert max(errors(got, want, exact)) < 1e-6 if ridge > 1e-5 else 1e-2
    narrow = answer(Direct(torch.float32), qkv, penalty, {}, "") if ridge > 1e-5 else None
    assert narrow is None or max(errors(narrow, want, exact)) > 1e-5


def test_bfloat16_is_within_two_per_cent() -> None:
    shape = (2, 50, 2, 20, 20)
    qkv = [t.bfloat16() for t in drawn(shape)]
    penalty = torch.ones(2, 20).bfloat16()
    exact = [t.double() for t in qkv]
    want = answer(Direct(), exact, penalty.double(), {}, "")
    got = answer(Chunkwise(), qkv, penalty, {}, "")
    assert got[0].dtype == torch.bfloat16
    assert max(errors(got, want, exact)) < 0.02


@pytest.mark.parametrize("kind", ["none", "all", "data"])
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 9), st.integers(1, 4))
def test_a_stream_goes_on_where_chunks_end(kind: str, prefill: int, d_k: int) -> None:
    shape = (2, 10, 2, d_k, 3)
    qkv, penalty = drawn(shape), torch.full((2, d_k), 0.5, dtype=torch.float64)
    gates = gated(shape, "write" if kind == "none" else "forget, write", 0.3)
    problem = posed(qkv, penalty, gates, kind)
    want = choose(problem).solve(problem).transpose(1, 2)
    head = [t[:, :prefill] for t in qkv], penalty, {n: g[:, :prefill] for n, g in gates.items()}
    state = stream_after(posed(*head, kind))
    for t in range(prefill, 10):
        forget = gates["forget"][:, t] if "forget" in gates else None
        pair = [tensor[:, t] for tensor in qkv]
        state, out = state.step(*pair, forget, gates["write"][:, t])
        assert torch.allclose(out, want[:, t], atol=1e-10)
        assert not torch.allclose(out, want[:, t - 1], atol=1e-3)


def cases() -> Iterator[tuple[Method, LeastSquares]]:
    shape = (1, 4, 1, 2, 2)
    qkv, penalty = drawn(shape), torch.ones(1, 2, dtype=torch.float64)
    problem = posed(qkv, penalty, gated(shape, "forget", 0.5), "data")
    yield from ((method, problem) for method in (Chunkwise(), Recursion()))


@pytest.mark.parametrize(("method", "problem"), list(cases()))
def test_what_a_method_cannot_solve_it_refuses(method: Method, problem: LeastSquares) -> None:
    assert method.refuses(problem)
    assert isinstance(choose(problem), ConjugateGradient)
    qkv = [t.transpose(1, 2) for t in (problem.keys, problem.values, problem.queries)]
    gate = problem.log_forget.exp().transpose(1, 2)
    with pytest.raises(ValueError, match="cannot solve for a penalty that is not forgotten"):
        mesa_layer(*qkv, problem.ridge, ForgetData(gate), method=method)


def test_gates_outside_their_range_are_refused() -> None:
    shape = (1, 4, 1, 2, 2)
    qkv, penalty = drawn(shape), torch.ones(1, dtype=torch.float64)
    gate = torch.full(shape[:3], 0.5, dtype=torch.float64)
    for wrong in (0.0 * gate, 1.5 * gate + 1, gate * float("nan")):
        with pytest.raises(ValueError, match="forget gates"):
            mesa_layer(*qkv, penalty, ForgetAll(wrong))
    with pytest.raises(ValueError, match="write gates"):
        mesa_layer(*qkv, penalty, write=-gate)
    for wrong in (float("inf"), float("nan")):
        with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
            mesa_layer(*qkv, penalty * wrong)


def test_diagnosis_knows_an_orthogonal_problem() -> None:
    """Keys e_1, e_1, e_2 under lambda = 1: eigenvalues {2, 1}, {3, 1}, {3, 2}."""
    keys = torch.eye(2, dtype=torch.float64)[[0, 0, 1]][None, :, None]
    found = diagnose(LeastSquares.pose(keys, keys, keys, torch.ones(1, dtype=torch.float64)))
    assert torch.allclose(found.condition[0, 0], torch.tensor([2, 3, 1.5], dtype=torch.float64))
    assert torch.allclose(found.smallest[0, 0], torch.tensor([1, 1, 2], dtype=torch.float64))
    assert found.residual.max() < 1e-15
    rough = diagnose(LeastSquares.pose(*[keys.float()] * 3, torch.full((1,), 0.1)))
    assert 1e-15 < rough.residual.max() < 1e-6
