"""What every way of solving is given: keys, values, queries, the penalty and the gates."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.linalg import LinAlgError


@dataclass(frozen=True)
class ForgetData:
    """Old pairs fade, the penalty stays: H_t = gamma_t G_{t-1} + beta_t k_t k_t^T + Lambda.

    Attributes:
        gate: gamma_t in (0, 1], by which all that came before t is multiplied.
    """

    gate: Float[Tensor, "batch time heads"]


@dataclass(frozen=True)
class ForgetAll:
    """Pairs and penalty fade together: H_t = gamma_t H_{t-1} + beta_t k_t k_t^T, H_0 = Lambda.

    Attributes:
        gate: gamma_t in (0, 1], by which all that came before t is multiplied.
    """

    gate: Float[Tensor, "batch time heads"]


@dataclass(frozen=True)
class LeastSquares:
    """The least-squares problem of every head at every prefix.

    Attributes:
        keys: k_j.
        values: v_j.
        queries: q_t.
        ridge: The diagonal of Lambda.
        write: beta_j >= 0; None: all 1.
        log_forget: Logarithms of gamma_t; None: nothing is forgotten.
        fades: Whether the penalty is forgotten with the pairs.
    """

    keys: Float[Tensor, "batch heads time d_k"]
    values: Float[Tensor, "batch heads time d_v"]
    queries: Float[Tensor, "batch heads time d_k"]
    ridge: Float[Tensor, "heads d_k"]
    write: Float[Tensor, "batch heads time"] | None = None
    log_forget: Float[Tensor, "batch heads time"] | None = None
    fades: bool = False

    @classmethod
    def pose(
        cls,
        keys: Float[Tensor, "batch time heads d_k"],
        values: Float[Tensor, "batch time heads d_v"],
        queries: Float[Tensor, "batch time heads d_k"],
        ridge: Float[Tensor, " heads"] | Float[Tensor, "heads d_k"],
        forget: ForgetData | ForgetAll | None = None,
        write: Float[Tensor, "batch time heads"] | None = None,
    ) -> "LeastSquares":
        """Puts heads before time and checks the gates; float64 if any of q, k, v is, else float32.

        Raises:
            ValueError: A gate outside its range.
            torch.linalg.LinAlgError: A penalty that is not finite.
        """
        dtype = torch.promote_types(torch.promote_types(keys.dtype, values.dtype), queries.dtype)
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        if not bool(ridge.isfinite().all()):
            raise LinAlgError("mesa-layer: the penalty is not finite")
        if write is not None and not bool((write >= 0).all()):
            raise ValueError("write gates must be 0 or more")
        if forget is not None and not bool(((forget.gate > 0) & (forget.gate <= 1)).all()):
            raise ValueError("forget gates must lie in (0, 1]")
        k, v, q = (t.to(dtype).transpose(1, 2) for t in (keys, values, queries))
        return cls(
            k,
            v,
            q,
            ridge.to(dtype).reshape(len(ridge), -1).expand(-1, keys.shape[-1]),
            None if write is None else write.to(dtype).transpose(1, 2),
            None if forget is None else forget.gate.to(dtype).log().transpose(1, 2),
            isinstance(forget, ForgetAll),
        )

    @property
    def start(self) -> Float[Tensor, "heads d_k d_k"]:
        """Lambda."""
        return torch.diag_embed(self.ridge)

    @property
    def stays(self) -> bool:
        """Whether the penalty outlasts what is forgotten, so that it is no part of the state."""
        return self.log_forget is not None and not self.fades

    def to(self, dtype: torch.dtype) -> "LeastSquares":
        """The same problem in another precision."""
        tensors = {n: t for n, t in vars(self).items() if isinstance(t, Tensor)}
        moved: Any = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return replace(self, **moved)
