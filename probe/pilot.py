"""A small sample of the task, without the model, that fixes what must be known before the sweep."""

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.plan import PILOT, SHARD, Plan
from probe.response import log_knots
from probe.stages import Context

SHARDS = 2
RIDGES = torch.logspace(-5, 3, 33, dtype=torch.float64)


def scout(plan: Plan, layers: int) -> Setting:
    """Reads knots, step bound and the best ridge of the task off 512 sequences of their own."""
    contexts = [_pose(plan, shard) for shard in range(SHARDS)]
    first = plan.task.windows.judged[0]
    mu = torch.cat([c.spectrum.mu[:, first:][c.spectrum.present[:, first:]] for c in contexts])
    top = _quantile(mu, 0.99)
    loss = torch.stack([_ridge_losses(context, first) for context in contexts]).sum(0)
    ridge = float(RIDGES[int(loss.argmin())])
    return Setting(
        task=plan.task,
        layers=layers,
        windows=plan.task.windows,
        knots=tuple(log_knots(_lowest(mu, ridge), float(mu.max())).tolist()),
        mu_top=top,
        step_bound=2 / top,
        ridge=ridge,
        sequences=plan.sequences,
    )


def _pose(plan: Plan, shard: int) -> Context:
    sequences = plan.draw(PILOT, shard, SHARD)
    return Context(sequences, plan.task.problem(sequences))


def _quantile(values: Tensor, share: float) -> float:
    ordered = values.sort().values
    return float(ordered[round(share * (len(ordered) - 1))])


def _lowest(mu: Tensor, ridge: float) -> float:
    """Where the curve of shrinkage begins, which is constant below.

    The 1 % quantile of the eigenvalues, where least squares has solved these. Where labels are so
    noisy that the best penalty shrinks them too, the curve falls on below, and is followed to a
    thirtieth of the penalty: rare eigenvalues there would outweigh all others otherwise.
    """
    low = _quantile(mu, 0.01)
    return min(low, max(low * low / (10 * ridge), ridge / 30, _quantile(mu, 0.001)))


def _ridge_losses(context: Context, first: int) -> Float[Tensor, " ridges"]:
    """The loss of least squares at every penalty."""
    spectrum = context.spectrum
    targets = context.problem.targets[:, first:, :, None].double()
    kept = torch.where(spectrum.present, spectrum.query, 0.0)[:, first:, :, None]
    filtered = kept / (spectrum.mu[:, first:, :, None] + RIDGES)
    return ((spectrum.maps[:, first:] @ filtered - targets) ** 2).sum((0, 1, 2))
