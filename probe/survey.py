"""The input laws under which a model of a task can be asked, from a pilot sample of each."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from probe.columns import Columns
from probe.input_laws import Inputs, candidates
from probe.plan import PILOT, Plan
from probe.response import log_knots
from probe.solvers.base import ColumnFamily, families
from probe.stages import Context

SEARCHED = 512
PILOTED = 128


@dataclass(frozen=True)
class Law:
    """An input law, and what a pilot sample says of it.

    Attributes:
        inputs: The task under this law.
        low: The 1 % quantile of the eigenvalues of G_t over the judged positions.
        top: Their 99 % quantile.
        beyond: Their 99.9 % quantile.
        highest: The largest of them.
        clipped: Share of entries that the task's clip has changed.
    """

    inputs: Inputs
    low: float
    top: float
    beyond: float
    highest: float
    clipped: float


@dataclass(frozen=True)
class Survey:
    """The laws that a solver of the task's own law can be asked about.

    Attributes:
        laws: The task's own law first.
        skipped: Why the others are left out, by name.
        columns: The columns of all of them, on common knots.
    """

    laws: tuple[Law, ...]
    skipped: Mapping[str, str]
    columns: Columns


def survey(plan: Plan, clipped: float) -> Survey:
    """Pilots every candidate law; `clipped` is how much more than its own law a model can take.

    A law with eigenvalues beyond the largest of the own law, but for one in a thousand, is left
    out too: iterations tuned to the own law diverge there, and so would a model.
    """
    itself, *changed = candidates(plan.task)
    own = _pilot(plan, itself, SEARCHED)  # its rare eigenvalues set the range of all
    others = [_pilot(plan, inputs, PILOTED) for inputs in changed]
    skipped = {law.inputs.name: _unfit(law, own, clipped) for law in others}
    usable = (own, *(law for law in others if not skipped[law.inputs.name]))
    knots = log_knots(min(law.low for law in usable), own.highest)
    ready = [
        name
        for name, family in families().items()
        if isinstance(family, ColumnFamily) and (not family.is_null or name == "oracle")
    ]
    columns = Columns(tuple(knots.tolist()), tuple(ready))
    return Survey(usable, {name: why for name, why in skipped.items() if why}, columns)


def _pilot(plan: Plan, inputs: Inputs, count: int) -> Law:
    """Eigenvalues and clipping on a few sequences of their own."""
    sequences = plan_under(plan, inputs, plan.sequences).draw(PILOT, 0, count)
    spectrum = Context(sequences, inputs.task.problem(sequences)).spectrum
    first, stop = inputs.task.windows.judged
    mu = spectrum.mu[:, first:stop][spectrum.present[:, first:stop]]
    shares = torch.tensor([0.01, 0.99, 0.999, 1.0], dtype=mu.dtype)
    low, top, beyond, highest = torch.quantile(mu, shares).tolist()
    return Law(inputs, low, top, beyond, highest, sequences.clipped_share)


def plan_under(plan: Plan, inputs: Inputs, sequences: int) -> Plan:
    """The same plan for the task under a law."""
    return Plan(inputs.task, sequences, plan.seed, plan.batch_size, plan.workers, plan.device)


def _unfit(law: Law, own: Law, clipped: float) -> str:
    """Why a law is left out; nothing if it is not."""
    if law.clipped - own.clipped > clipped:
        return f"clips {law.clipped:.1%} of the entries, the own law {own.clipped:.1%}"
    if law.beyond > own.highest:
        return f"eigenvalues up to {law.beyond:.3g}, under the own law up to {own.highest:.3g}"
    return ""
