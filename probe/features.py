"""Features of the inputs in which a model may learn linearly, and where its stream holds them.

A learner that is linear in phi predicts C f(G) phi(s_t), with the moments G and C of the pairs
(phi(s_{j-1}), s_j). Candidates for phi are types: what the task says, the inputs themselves, delay
embeddings, other maps of the same kind, and what a linear map decodes from the stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import Capture
from probe.extensions import Places
from probe.models.transformer import SequenceTransformer
from probe.moments import Moments
from probe.plan import FOLDS
from probe.problem import PrefixMoments, Spectrum, prefix_moments, spectrum
from probe.response import log_knots
from probe.ridge import RidgeFit, fit_ridge
from probe.stages import Batch, Sums
from probe.tasks.base import shifted
from probe.tasks.nonlinear_dynamics import Map
from probe.tasks.partial_observation import delay_embedding
from probe.views import ANOTHER, SUBJECT

TWINS = ("twin 1", "twin 2", "twin 3")  # random features differ in what they happen to hold


@runtime_checkable
class Features(Protocol):
    """A map phi of the inputs."""

    @property
    def name(self) -> str:
        """The features in words."""

    def of(self, batch: Batch) -> Float[Tensor, "batch time d_feature"]:
        """Phi at every position."""


@dataclass(frozen=True)
class Delays:
    """The last `depth` observations side by side; the inputs themselves for depth 1."""

    depth: int

    @property
    def name(self) -> str:
        """With its depth."""
        return "raw inputs" if self.depth == 1 else f"{self.depth} delays"

    def of(self, batch: Batch) -> Float[Tensor, "batch time d_feature"]:
        """Zeros before the start."""
        return delay_embedding(batch.context.sequences.observations[:, :-1], self.depth)


@dataclass(frozen=True)
class TaskFeatures:
    """What the task's teacher acts on linearly."""

    name: str = "true features"

    def of(self, batch: Batch) -> Float[Tensor, "batch time d_feature"]:
        """As the task gives them."""
        return batch.context.sequences.features


@dataclass(frozen=True)
class Mapped:
    """A feature map of the observations, such as one of another seed: the control."""

    name: str
    feature_map: Map

    def of(self, batch: Batch) -> Float[Tensor, "batch time d_feature"]:
        """Phi at every position."""
        return self.feature_map(batch.context.sequences.observations[:, :-1])


@runtime_checkable
class Site(Protocol):
    """A place of the residual stream."""

    @property
    def name(self) -> str:
        """The place in words."""

    @property
    def part(self) -> str:
        """What has written last."""

    @property
    def depth(self) -> float:
        """How many blocks lie before it; half of one before an MLP."""

    def of(self, capture: Capture) -> Float[Tensor, "batch time d_model"]:
        """The stream there."""


@dataclass(frozen=True)
class AfterAttention:
    """The stream between the attention and the MLP of a block; blocks count from 1."""

    block: int

    @property
    def name(self) -> str:
        """Layer and part."""
        return f"{self.block}, attention"

    @property
    def part(self) -> str:
        """The attention."""
        return f"the attention of layer {self.block}"

    @property
    def depth(self) -> float:
        """Half of the block lies before it."""
        return self.block - 0.5

    def of(self, capture: Capture) -> Float[Tensor, "batch time d_model"]:
        """What came in, plus what the attention added."""
        return capture.layers[self.block - 1] + capture.updates[self.block - 1]


@dataclass(frozen=True)
class AfterBlock:
    """The stream after a block; 0: the embedding, from which the raw inputs are decoded.

    Attributes:
        block: Blocks count from 1.
        has_mlp: Whether the block ends with an MLP.
    """

    block: int
    has_mlp: bool

    @property
    def name(self) -> str:
        """Layer and part."""
        if self.block == 0:
            return "embedding"
        return f"{self.block}, {'MLP' if self.has_mlp else 'attention'}"

    @property
    def part(self) -> str:
        """The last part of the block."""
        if self.block == 0:
            return "the embedding"
        return f"the {'MLP' if self.has_mlp else 'attention'} of layer {self.block}"

    @property
    def depth(self) -> float:
        """The whole block lies before it."""
        return float(self.block)

    def of(self, capture: Capture) -> Float[Tensor, "batch time d_model"]:
        """As captured."""
        return capture.layers[self.block]


def sites_of(model: SequenceTransformer) -> tuple[Site, ...]:
    """The embedding, then the stream after every part of every block."""
    sites: list[Site] = [AfterBlock(0, False)]
    for block, shape in enumerate(model.config.blocks, 1):
        if shape.d_mlp:
            sites.append(AfterAttention(block))
        sites.append(AfterBlock(block, bool(shape.d_mlp)))
    return tuple(sites)


@dataclass(frozen=True)
class Decoded:
    """What a linear map reads from the stream at a site."""

    site: Site
    weights: Float[Tensor, "d_model d_feature"] = field(repr=False)

    @property
    def name(self) -> str:
        """With its site."""
        return f"decoded ({self.site.name})"

    def of(self, batch: Batch) -> Float[Tensor, "batch time d_feature"]:
        """The stream times the map."""
        return self.site.of(batch.capture) @ self.weights.float()


@dataclass(frozen=True)
class In:
    """The in-context problem posed in features: k_j = phi_{j-1}, v_j = s_j, q_t = phi_t.

    Attributes:
        features: The features.
        knots: Knots of the response.
    """

    features: Features
    knots: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of the features."""
        return self.features.name

    def moments(self, batch: Batch, places: Places) -> tuple[PrefixMoments, Tensor]:
        """G_t and C_t at the places, and the queries there."""
        phi, at = self.features.of(batch).double(), list(places)
        whole = prefix_moments(replace(batch.context.problem, keys=shifted(phi), queries=phi))
        return PrefixMoments(whole.gram[:, at], whole.cross[:, at]), phi[:, at]

    def spectrum(self, batch: Batch, places: Places) -> Spectrum:
        """The moments of the features in their eigenbases."""
        return spectrum(*self.moments(batch, places))


def posed(features: Features, pilot: Batch, places: Places) -> In:
    """The problem in features, with knots between the 1 % quantile and the largest eigenvalue.

    Args:
        features: The features.
        pilot: A sample of the task that no split holds.
        places: The positions at which the response is read.
    """
    seen = In(features, ()).spectrum(pilot, places)
    mu = seen.mu[seen.present]
    knots = log_knots(float(mu.quantile(0.01)), float(mu.max()))
    return In(features, tuple(knots.tolist()))


@dataclass(frozen=True)
class Elsewhere:
    """The same problem of the sequence before: what no prediction can follow."""

    posing: In

    @property
    def name(self) -> str:
        """Marked as a control."""
        return f"{self.posing.name} of another sequence"

    @property
    def knots(self) -> tuple[float, ...]:
        """As they are."""
        return self.posing.knots

    def spectrum(self, batch: Batch, places: Places) -> Spectrum:
        """That of the sequence before."""
        own = self.posing.spectrum(batch, places)
        return Spectrum(*(part.roll(1, 0) for part in vars(own).values()))


@dataclass(frozen=True)
class DecodingStage:
    """Linear maps from the stream to the features, one per site for all judged positions.

    Attributes:
        sites: Where the stream is read.
        features: What is decoded.
        window: The judged positions.
        views: The subject; its twins and the features of another sequence as controls.
    """

    sites: tuple[Site, ...]
    features: Features
    window: tuple[int, int]
    views: tuple[str, ...] = (SUBJECT, *TWINS, ANOTHER)
    folds: int = FOLDS

    def fit(self, batch: Batch) -> Sums:
        """Moments of stream and features."""
        stream, phi = self._rows(batch)
        yy = phi.square().sum(0).expand(len(stream), -1)
        return {"xx": stream.mT @ stream, "xy": stream.mT @ phi, "yy": yy}

    def learn(self, sums: Sums) -> RidgeFit:
        """Ridge regression, its penalty by cross-validation over the folds."""
        folds = Moments(sums["xx"], sums["xy"], sums["yy"])
        return fit_ridge(folds, (folds.yy.shape[-1],))

    def test(self, batch: Batch, learned: RidgeFit) -> Sums:
        """Squared errors by block and site, and the energy of the features by block."""
        stream, phi = self._rows(batch)
        error = (stream @ learned.weights - phi).square().sum(-1)
        by_sequence = error.unflatten(1, (len(batch.blocks), -1)).sum(-1)
        energy = phi.square().sum(-1).unflatten(0, (len(batch.blocks), -1)).sum(-1)
        return {"error": batch.by_block(by_sequence.mT), "energy": batch.by_block(energy)}

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The stream at all sites, and the features, position by position, in float64."""
        within = slice(*self.window)
        stream = torch.stack([site.of(batch.capture)[:, within] for site in self.sites])
        phi = self.features.of(batch)[:, within]
        return stream.flatten(1, 2).double(), phi.flatten(0, 1).double()


@dataclass(frozen=True)
class Decodability:
    """How much of the features is decoded at each site, beside what needs no learning.

    Attributes:
        errors: Summed squared error by block and site, by view.
        energy: Summed squares of the features by block.
    """

    errors: Mapping[str, Float[Tensor, "blocks sites"]]
    energy: Float[Tensor, " blocks"]

    def r2(
        self, weights: Float[Tensor, "draws blocks"], view: str, site: int
    ) -> Float[Tensor, " draws"]:
        """1 - sum |phi - decoded|^2 / sum |phi|^2."""
        return 1 - (weights @ self.errors[view][:, site]) / (weights @ self.energy)

    def above_controls(
        self, weights: Float[Tensor, "draws blocks"], site: int
    ) -> Float[Tensor, " draws"]:
        """The share that the subject decodes of what no control decodes.

        The controls are the embedding, which holds the raw inputs, and the twins at the same site.
        """
        twins = [self.r2(weights, twin, site) for twin in TWINS]
        controls = torch.stack([self.r2(weights, SUBJECT, 0), *twins]).amax(0)
        return (self.r2(weights, SUBJECT, site) - controls) / (1 - controls)
