"""Token by token: a root of the inverse is carried along (Sherman and Morrison 1950)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.precision import state_dtype
from probe.mesa_layer.problem import LeastSquares
from probe.mesa_layer.stream import InverseStream


@dataclass(frozen=True)
class Recursion:
    """A Python loop over positions with plain autograd; O(T d^2) memory for the backward pass."""

    def refuses(self, problem: LeastSquares) -> str | None:
        """A penalty that stays while data fade makes the update one of full rank."""
        return "a penalty that is not forgotten" if problem.stays else None

    def solve(self, problem: LeastSquares) -> Float[Tensor, "batch heads time d_v"]:
        """Phi_t q_t."""
        wide = problem.to(state_dtype(problem))
        batch, _, time, _ = wide.keys.shape
        root = torch.diag_embed(wide.ridge.rsqrt()).expand(batch, -1, -1, -1)
        shape = (*root.shape[:2], wide.values.shape[-1], root.shape[-1])
        state = InverseStream(root, root.new_zeros(shape))
        gamma = None if wide.log_forget is None else wide.log_forget.exp()
        outputs = []
        for t in range(time):
            forget, write = (None if gate is None else gate[..., t] for gate in (gamma, wide.write))
            pair = wide.keys[..., t, :], wide.values[..., t, :]
            state, output = state.step(*pair, wide.queries[..., t, :], forget, write)
            outputs.append(output)
        return torch.stack(outputs, -2).to(problem.values.dtype)
