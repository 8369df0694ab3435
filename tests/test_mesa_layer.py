"""The mesa-layer against scikit-learn, its own optimality condition and its limits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from probe.mesa_layer import mesa_layer
from probe.sampling import generator_for, normal

shapes = st.tuples(
    st.integers(1, 2), st.integers(1, 7), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)
)


def pairs(
    batch: int, length: int, heads: int, d_k: int, d_v: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = generator_for(1, batch, length, heads, d_k, d_v)
    keys, queries = (normal(generator, batch, length, heads, d_k) for _ in range(2))
    ridge = torch.linspace(0.2, 3.0, heads, dtype=torch.float64)
    return keys, normal(generator, batch, length, heads, d_v), queries, ridge


@given(shapes)
def test_equals_scikit_learn_at_every_prefix_and_head(shape: tuple[int, ...]) -> None:
    keys, values, queries, ridge = pairs(*shape)
    out = mesa_layer(keys, values, queries, ridge)
    for b in range(shape[0]):
        for h in range(shape[2]):
            for t in range(shape[1]):
                fit = Ridge(alpha=float(ridge[h]), fit_intercept=False, solver="cholesky")
                fit.fit(keys[b, : t + 1, h].numpy(), values[b, : t + 1, h].numpy())
                want = torch.from_numpy(fit.predict(queries[b, t : t + 1, h].numpy())).reshape(-1)
                assert torch.allclose(out[b, t, h], want, atol=1e-10)


def test_control_another_ridge_is_another_answer() -> None:
    keys, values, queries, ridge = pairs(2, 6, 2, 3, 3)
    out = mesa_layer(keys, values, queries, ridge)
    assert (out - mesa_layer(keys, values, queries, ridge.flip(0))).abs().max() > 0.05


def test_optimality_condition() -> None:
    """With the unit vectors as queries the layer shows Phi_t; there the loss has no slope."""
    generator = generator_for(2)
    keys, values = normal(generator, 1, 6, 1, 4), normal(generator, 1, 6, 1, 3)
    ridge = torch.tensor([0.7], dtype=torch.float64)

    def phi_at_end() -> torch.Tensor:
        columns = [
            mesa_layer(keys, values, unit.expand(1, 6, 1, 4), ridge)[0, -1, 0]
            for unit in torch.eye(4, dtype=torch.float64)
        ]
        return torch.stack(columns, -1)

    def slope(phi: torch.Tensor) -> torch.Tensor:
        phi = phi.clone().requires_grad_(True)
        error = values[0, :, 0] - keys[0, :, 0] @ phi.T
        loss = 0.5 * error.square().sum() + 0.5 * ridge[0] * phi.square().sum()
        return torch.autograd.grad(loss, phi)[0]

    phi = phi_at_end()
    assert slope(phi).abs().max() < 1e-12
    assert slope(phi + 0.01).abs().max() > 1e-3


def test_gradients() -> None:
    arguments = [tensor.requires_grad_(True) for tensor in pairs(1, 4, 2, 3, 2)]
    assert torch.autograd.gradcheck(mesa_layer, arguments)


def test_causal() -> None:
    keys, values, queries, ridge = pairs(2, 8, 2, 3, 3)
    before = mesa_layer(keys, values, queries, ridge)
    for tensor in (keys, values, queries):
        changed = [t.clone() if t is tensor else t for t in (keys, values, queries)]
        next(t for t, old in zip(changed, (keys, values, queries), strict=True) if old is tensor)[
            :, 5:
        ] += 1.0
        after = mesa_layer(*changed, ridge)
        assert torch.equal(after[:, :5], before[:, :5])
        assert (after[:, 5:] - before[:, 5:]).abs().amax((0, 2, 3)).min() > 1e-3


def test_large_ridge_is_one_gradient_step() -> None:
    """lambda -> infinity: C_t q_t / lambda, with an error of order 1 / lambda^2."""
    keys, values, queries, _ = pairs(2, 6, 2, 3, 3)
    ridge = torch.tensor([1e7, 1e8], dtype=torch.float64)
    step = torch.einsum("bthk,bjhk->bhtj", queries, keys).tril() @ values.transpose(1, 2)
    step = step.transpose(1, 2)
    scaled = mesa_layer(keys, values, queries, ridge) * ridge[:, None]
    assert torch.allclose(scaled, step, rtol=1e-4, atol=1e-5)
    small = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert not torch.allclose(mesa_layer(keys, values, queries, small), step, rtol=0.1)


def test_tiny_ridge_learns_a_noiseless_map() -> None:
    """v = W k with more pairs than dimensions: the layer answers W q, before that it cannot."""
    generator = generator_for(3)
    keys, queries = normal(generator, 1, 9, 1, 4), normal(generator, 1, 9, 1, 4)
    teacher = normal(generator, 4, 4)
    out = mesa_layer(keys, keys @ teacher.T, queries, torch.tensor([1e-9], dtype=torch.float64))
    error = (out - queries @ teacher.T).abs().amax((0, 2, 3))
    assert error[3:].max() < 1e-4
    assert error[:3].min() > 0.05


def test_answers_in_the_dtype_of_the_values_but_solves_in_float64() -> None:
    keys, values, queries, ridge = pairs(2, 6, 2, 3, 3)
    exact = mesa_layer(keys, values, queries, ridge)
    rounded = mesa_layer(keys.float(), values.float(), queries.float(), ridge.float())
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded.double(), exact, atol=1e-5)


def test_ridge_must_be_positive() -> None:
    keys, values, queries, ridge = pairs(1, 3, 2, 4, 2)
    with pytest.raises(torch.linalg.LinAlgError, match="positive-definite"):
        mesa_layer(keys, values, queries, -ridge)


def test_one_ridge_per_head() -> None:
    keys, values, queries, _ = pairs(1, 3, 2, 4, 2)
    with pytest.raises(TypeError, match="ridge"):
        mesa_layer(keys, values, queries, torch.ones(3, dtype=torch.float64))
