"""One step of an iteration removed: a model that stops short, and a label that says so."""

from dataclasses import dataclass, replace

import torch

from probe.planted.base import Planted, Truth
from probe.planted.descent import Filtered, Steps
from probe.planted.disguises.surgery import blocks_of, with_blocks
from probe.planted.momentum import HeavyBall
from probe.planted.scales import whole

Iteration = Steps | HeavyBall


@dataclass(frozen=True)
class Pruned:
    """Drops one layer of gradient steps or of the heavy ball; what is left is an iteration too."""

    name: str = "pruned"

    def fits(self, planted: Planted) -> bool:
        """Two steps at least, one per layer, in a model that nothing has changed yet."""
        iteration = _iteration(planted)
        return iteration is not None and _count(iteration) > 1 and not planted.disguises

    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """Draws the step.

        Raises:
            TypeError: The model runs no iteration of separate steps.
        """
        iteration = _iteration(planted)
        if iteration is None:
            raise TypeError(f"{planted.name} has no step that can be dropped")
        dropped = whole(generator, 0, _count(iteration) - 1)
        blocks = blocks_of(planted)
        front = len(blocks) - _count(iteration)
        del blocks[front + dropped]
        left = _without(iteration, dropped)
        shorter = with_blocks(planted, blocks)
        states = tuple(
            replace(state, remaining=_rest(left, max(state.layer - front, 0)))
            for state in shorter.states
        )
        return replace(
            shorter,
            name=f"{planted.name} without step {dropped + 1}",
            truth=_truth(planted.truth, left),
            solver=Filtered(left),
            states=states,
            disguises=(*planted.disguises, self.name),
        )


def _iteration(planted: Planted) -> Iteration | None:
    curve = planted.solver.f if isinstance(planted.solver, Filtered) else None
    return curve if isinstance(curve, Steps | HeavyBall) else None


def _count(iteration: Iteration) -> int:
    return len(iteration.etas) if isinstance(iteration, Steps) else iteration.steps


def _without(iteration: Iteration, step: int) -> Iteration:
    if isinstance(iteration, HeavyBall):  # all of its layers are the same
        return replace(iteration, steps=iteration.steps - 1)
    return Steps(iteration.etas[:step] + iteration.etas[step + 1 :])


def _rest(iteration: Iteration, done: int) -> Iteration:
    """The steps that remain after `done` of them."""
    if isinstance(iteration, HeavyBall):
        return replace(iteration, steps=iteration.steps - done)
    return Steps(iteration.etas[done:])


def _truth(before: Truth, left: Iteration) -> Truth:
    """One step is a gradient step; the sizes of Chebyshev's steps were made for all of them."""
    steps = _count(left)
    family = "polynomial" if before.family == "chebyshev" else before.family
    return replace(before, family="gradient_descent" if steps == 1 else family, degree=steps)


NAMED = {"pruned": Pruned()}
