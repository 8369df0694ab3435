"""Newton-Schulz iteration for the inverse: X <- X (2 - G X) from X = c I.

k steps give 1 - mu f(mu) = (1 - c mu)^(2^k): a polynomial of degree 2^k - 1; Fu et al. 2023, eq. 8.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Spectral, zoom

STEPS = tuple(range(2, 11))


def shrinkage(
    mu: Float[Tensor, "*batch"], steps: int, start: float | Tensor
) -> Float[Tensor, "*batch2"]:
    """Mu f(mu) after `steps` steps from start * I."""
    return 1 - ((1 - start * mu) ** 2) ** (2 ** (steps - 1))


@dataclass(frozen=True)
class NewtonSchulz:
    """k >= 2 steps (one step is two of gradient descent).

    The start is one constant between a third of the largest that converges and that. A smaller
    start would turn its first steps into plain gradient descent and let the family imitate it.
    No knot may diverge: past 2 / start the error grows so fast that one rare eigenvalue of the
    test split would decide the score.
    """

    name: str = "newton"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """One constant for each number of steps."""
        return tuple(self._fit(spectral, steps) for steps in STEPS)

    def _fit(self, spectral: Spectral, steps: int) -> Fitted:
        mu, bound = spectral.mu, spectral.step_bound
        high = min(bound, 2 / float(mu[-1]))
        low = min(bound / 3, high / 2)
        start = zoom(spectral.errors, lambda c: shrinkage(mu, steps, c), low, high)
        curve = shrinkage(mu, steps, start)
        constants = {"steps": steps, "start": start}
        return Fitted(self.name, constants, curve, degree=2**steps - 1, free=1)


NAMED = {"newton": NewtonSchulz()}
