"""Measures one model on one sample, under the published protocol."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.capture import capture
from probe.errors import InputError
from probe.models.transformer import SequenceTransformer
from probe.problem import prefix_moments
from probe.reproduction import in_sample, published
from probe.reproduction.published import Probing
from probe.sampling import generator_for
from probe.solvers.chebyshev_recursion import Recursion
from probe.tasks.base import Sequences, Task, asked_tokens
from probe.tasks.nonlinear_dynamics import FeatureMap, NonlinearDynamics

SEQUENCES = 256
SEEDS = 5
LENGTH = 50
OUTLIER = 2.0  # a sample this many standard deviations or more above the mean norm is dropped
BINDING_LAGS = 7
BINDING_LAYER = 1
FEATURE_LAYERS = 7  # the embedding and six blocks

Measured = dict[str, Float[Tensor, "positions columns"]]


def sample(task: Task, seed: int, repetition: int) -> Sequences:
    """A fresh sample; all models on one kind of dynamics see the same one, as was published."""
    return task.sample(SEQUENCES, generator_for(seed, repetition))


def loss_by_position(
    predictions: Float[Tensor, "batch time d_v"], targets: Float[Tensor, "batch time d_v"]
) -> Float[Tensor, "time 1"]:
    """L_t: half the mean squared norm of the error."""
    error = predictions.double() - targets.double()
    return error.square().sum(-1).mean(0)[:, None] / 2


@dataclass(frozen=True)
class Prober:
    """Everything that is measured of a model.

    Attributes:
        task: Its task.
        quantities: What is asked for.
        probing: How the preconditioned probe is set; needed for it and its control only.
        recursions: Trained constants by name.
    """

    task: Task
    quantities: frozenset[str]
    probing: Probing | None
    recursions: Mapping[str, Recursion]

    def measure(self, model: SequenceTransformer, sequences: Sequences) -> Measured:
        """One forward pass, then every quantity."""
        seen = capture(model, sequences.tokens, SEQUENCES).at(asked_tokens(self.task))
        following = self.task.problem(sequences).targets
        found = {published.LOSS: loss_by_position(seen.output, following)}
        if self.quantities & {published.CURRENT, published.NEXT}:
            found |= _plain_probes(seen.layers, sequences.features, following)
        if self.quantities & {published.PRECONDITIONED, published.CONTROL}:
            target = self._preconditioned(sequences)
            found |= _preconditioned_probes(seen.layers, following, target)
        if published.BINDING in self.quantities:
            found[published.BINDING] = _binding(seen.layers[BINDING_LAYER], sequences)
        if published.FEATURES in self.quantities:
            decoded = decoded_features(self.task, seen.layers[:FEATURE_LAYERS], sequences)
            found |= {published.FEATURES: decoded, published.EMBEDDED_FEATURES: decoded[:, :1]}
        return {name: value for name, value in found.items() if name in self.quantities}

    def _preconditioned(self, sequences: Sequences) -> Float[Tensor, "batch time d"]:
        assert self.probing is not None
        gram = prefix_moments(self.task.problem(sequences)).gram
        gram = gram + self.probing.ridge * torch.eye(gram.shape[-1], dtype=gram.dtype)
        recursion = self.recursions[self.probing.recursion]
        return recursion.solve(gram, sequences.features.double()[..., None])[..., 0]


def without_outliers(
    targets: Float[Tensor, "time batch d"],
) -> Bool[Tensor, "time batch"]:
    """Samples whose target norm is less than two standard deviations above the mean."""
    norm = targets.norm(dim=-1)
    mean, spread = norm.mean(1, keepdim=True), norm.std(1, keepdim=True, correction=0)
    return norm - mean < OUTLIER * spread


def _plain_probes(layers: Tensor, current: Tensor, following: Tensor) -> Measured:
    cells = layers.transpose(1, 2)
    everyone = torch.ones(cells.shape[1:3], dtype=torch.bool)
    fitted = in_sample.fit(cells, everyone)
    return {
        published.CURRENT: fitted.loss(current.transpose(0, 1)).mT,
        published.NEXT: fitted.loss(following.transpose(0, 1)).mT,
    }


def _preconditioned_probes(layers: Tensor, following: Tensor, target: Tensor) -> Measured:
    """The probe for the target, and its control: does the target alone give the next token?"""
    targets = target.transpose(0, 1)
    kept = without_outliers(targets)
    control = in_sample.fit(targets.to(layers.dtype), kept).loss(following.transpose(0, 1))
    return {
        published.PRECONDITIONED: in_sample.fit(layers.transpose(1, 2), kept).loss(targets).mT,
        published.CONTROL: control[:, None],
    }


def _binding(stream: Tensor, sequences: Sequences) -> Tensor:
    """Mean squared error per channel of decoding s_{t-7} .. s_t from the stream at the last t."""
    tokens = sequences.observations[:, :-1]
    targets = tokens[:, -1 - BINDING_LAGS :].transpose(0, 1)
    everyone = torch.ones(1, len(stream), dtype=torch.bool)
    last = stream[None, :, -1].expand(len(targets), -1, -1)
    return in_sample.fit(last, everyone).loss(targets)[:, None] * 2 / tokens.shape[-1]


def decoded_features(
    task: Task, layers: Float[Tensor, "layers batch time d_model"], sequences: Sequences
) -> Float[Tensor, "lags layers"]:
    """Mean squared error per channel of decoding B gelu(A s) of s_{t-7} .. s_t at the last t.

    Those are the features before they are normalised, which is all that the dynamics use.

    Raises:
        InputError: The task has no such features.
    """
    features = task.feature_map if isinstance(task, NonlinearDynamics) else None
    if not isinstance(features, FeatureMap):
        raise InputError(f"task {task.name} has no features to decode")
    tokens = sequences.tokens[:, -1 - BINDING_LAGS :].transpose(0, 1)
    targets = features.unnormalised(tokens)
    everyone = torch.ones(1, targets.shape[1], dtype=torch.bool)
    fitted = in_sample.fit(layers[:, None, :, -1], everyone)
    return fitted.loss(targets).mT * 2 / targets.shape[-1]
