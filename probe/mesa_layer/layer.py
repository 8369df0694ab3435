"""The layer as a function of keys, values, queries, penalty and gates."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.chunkwise import Chunkwise
from probe.mesa_layer.conjugate_gradient import ConjugateGradient
from probe.mesa_layer.problem import ForgetAll, ForgetData, LeastSquares


@runtime_checkable
class Method(Protocol):
    """A way to solve the problem."""

    def refuses(self, problem: LeastSquares) -> str | None:
        """What it cannot solve, if the problem has it."""

    def solve(self, problem: LeastSquares) -> Float[Tensor, "batch heads time d_v"]:
        """Phi_t q_t."""


def mesa_layer(
    keys: Float[Tensor, "batch time heads d_k"],
    values: Float[Tensor, "batch time heads d_v"],
    queries: Float[Tensor, "batch time heads d_k"],
    ridge: Float[Tensor, " heads"] | Float[Tensor, "heads d_k"],
    forget: ForgetData | ForgetAll | None = None,
    write: Float[Tensor, "batch time heads"] | None = None,
    method: Method | None = None,
) -> Float[Tensor, "batch time heads d_v"]:
    """Phi_t q_t at every position; differentiable with respect to every tensor.

    The state is float32 for inputs of float32, float16 and bfloat16, and float64 for inputs of
    float64. At condition number kappa the relative error is about kappa times the rounding unit;
    where that would pass 1e-3 the state is widened to float64, with a warning.

    Args:
        keys: k_j.
        values: v_j.
        queries: q_t.
        ridge: The diagonal of Lambda, > 0, in the units of the keys squared: one number per head,
            or one per head and channel.
        forget: What is forgotten, and how fast; None: nothing.
        write: beta_j >= 0, the weight of a pair; None: 1.
        method: How to solve; by default `choose` decides.

    Returns:
        The answers, in the dtype of the values.

    Raises:
        ValueError: A gate outside its range, or a method that cannot solve this problem.
        torch.linalg.LinAlgError: A moment matrix is not positive definite, as with ridge <= 0.
    """
    problem = LeastSquares.pose(keys, values, queries, ridge, forget, write)
    method = method or choose(problem)
    if refused := method.refuses(problem):
        raise ValueError(f"mesa-layer: {type(method).__name__} cannot solve for {refused}")
    return method.solve(problem).transpose(1, 2).to(values.dtype)


def choose(problem: LeastSquares) -> Method:
    """Chunks are exact and fastest; conjugate gradient does what they refuse."""
    chunkwise = Chunkwise()
    return ConjugateGradient() if chunkwise.refuses(problem) else chunkwise
