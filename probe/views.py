"""The same subject seen otherwise: the controls and instruments of every run."""

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

import torch

from probe.capture import Capture, predictor_only
from probe.mesa_layer import ForgetData, mesa_layer
from probe.models.hooked import HookedModel
from probe.models.transformer import Block
from probe.problem import InContextProblem
from probe.sampling import generator_for
from probe.stages import Context, View

SUBJECT = "subject"
TWIN = "permuted_twin"
SWAPPED = "swapped_context"
ANOTHER = "another_sequence"
PLANTED = "planted_mesa"
LARGEST = 1e4  # of what the twin's stream may hold
Model = TypeVar("Model", bound=HookedModel)
PERMUTATION = 4  # a stream of its own beside the splits


def all_views(ridge: float) -> dict[str, View]:
    """Every view; `ridge` is the lambda of the planted mesa-layer."""

    def planted(context: Context, _: Mapping[str, Capture]) -> tuple[Context, Capture]:
        return context, predictor_only(planted_mesa(context.problem, ridge))

    return {
        SUBJECT: seen_as(SUBJECT),
        TWIN: seen_as(TWIN),
        SWAPPED: lambda context, captures: (context.swapped, captures[SUBJECT]),
        ANOTHER: lambda context, captures: (context.another, captures[SUBJECT]),
        PLANTED: planted,
    }


def seen_as(model: str) -> View:
    """The view of one model as it is."""
    return lambda context, captures: (context, captures[model])


def planted_mesa(
    problem: InContextProblem, ridge: float, forget: ForgetData | None = None
) -> torch.Tensor:
    """Predictions of the reference mesa-layer on a problem, solved in float64."""
    parts = (problem.keys, problem.values, problem.queries)
    keys, values, queries = (part.double()[:, :, None] for part in parts)
    penalty = torch.tensor([ridge], dtype=torch.float64)
    answers = mesa_layer(keys, values, queries, penalty, forget)
    return answers[:, :, 0].to(problem.values.dtype)


@torch.no_grad()
def permuted_twin(model: Model, seed: int) -> Model:
    """The model with the entries of each trained matrix permuted: same sizes, nothing learned."""
    twin = deepcopy(model)
    generator = generator_for(seed, PERMUTATION)
    for parameter in twin.parameters():
        order = torch.randperm(parameter.numel(), generator=generator)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    for block in twin.modules():  # layers that cube their input could overflow
        if isinstance(block, Block):
            block.clip = min(block.clip or LARGEST, LARGEST)
    return twin
