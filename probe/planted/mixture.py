"""One algorithm early, ridge regression late: a gate on the position passes one or the other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.planted import frame
from probe.planted.base import Planted, Truth
from probe.planted.copy import Mixed, draw_mixed
from probe.planted.descent import Filtered, Steps, descent_layers
from probe.planted.frame import Frame
from probe.planted.ridge import LeastSquares, draw_penalty, mesa_layer
from probe.planted.scales import between, scales_of, whole
from probe.planted.slots import SHUT, Layer, gated
from probe.solvers.base import Posed
from probe.tasks.base import Task


@dataclass(frozen=True)
class Switched:
    """`early` before a position, least squares from there on.

    Attributes:
        early: What rules at first.
        late: What takes over.
        start: The first position of the late one.
    """

    early: Filtered | Mixed
    late: Filtered
    start: int

    def __call__(self, posed: Posed) -> Float[Tensor, "batch time d_v"]:
        """Its predictions."""
        late = torch.arange(posed.problem.queries.shape[1]) >= self.start
        return torch.where(late[:, None], self.late(posed), self.early(posed))


@dataclass(frozen=True)
class PlantedMixture:
    """One or two gradient steps, or a copy, up to the middle of the judged positions."""

    name: str = "mixture"
    learns: bool = False

    def fits(self, task: Task) -> bool:
        """Linear dynamics."""
        return frame.fits(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws what is early, when it ends and all constants."""
        first, stop = task.windows.judged
        third = (stop - first) // 3
        start = whole(generator, first + third, stop - third)
        scales = scales_of(task, generator)
        late = LeastSquares(draw_penalty(scales, generator))
        steps = whole(generator, 0, 2)
        early: Steps | Mixed = draw_mixed(generator)
        if steps:
            early = Steps((between(generator, 0.5, 1.5) / scales.top,) * steps)
        words = f"{steps} gradient steps" if steps else "a copy"
        model = _frame(task, start)
        return Planted(
            name=f"{words} before position {start}, then ridge {late.penalty:.3g}",
            model=model.build(_layers(model, early, late)),
            task=task,
            truth=Truth("mixture", "none", None),
            solver=Switched(
                Filtered(early) if isinstance(early, Steps) else early, Filtered(late), start
            ),
        )


def _frame(task: Task, start: int) -> Frame:
    late = (torch.arange(task.length) >= start).double()
    extras = dict.fromkeys(("early_y", "late_y"), task.width_out)
    return Frame.of(task, extras, {"early": 1 - late, "late": late})


def _layers(shared: Frame, early: Steps | Mixed, late: LeastSquares) -> tuple[Layer, ...]:
    """The early algorithm, then the mesa layer, whose MLP opens one of two gates."""
    read, write = shared.slots.read, shared.slots.write
    steps = early.etas if isinstance(early, Steps) else ()
    first = early.read(shared.slots) if isinstance(early, Mixed) else read("early_y")
    shut_late = gated(first, read("late", -SHUT), write("y"))
    shut_early = gated(read("late_y"), read("early", -SHUT), write("y"))
    # The steps change r, but the query is still in x.
    mesa = mesa_layer(shared, late.penalty, query="x", into="late_y")
    last = Layer(mesa.kind, mesa.heads, (shut_late, shut_early), mesa.ridge)
    return (*descent_layers(shared, steps, "early_y"), last)


NAMED = {"mixture": PlantedMixture()}
