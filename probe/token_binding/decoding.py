"""Earlier tokens, read from every layer by ridge regressions that all late positions share.

Tokens depend on each other, so that a layer which holds s_t alone may tell s_{t-1} as well. What
is held is therefore measured by what the more recent tokens leave open of s_{t-j}: the innovation,
the error of the best linear prediction from s_t .. s_{t-j+1}. A layer that holds these tokens and
no more explains none of it; one that holds s_{t-j} itself explains all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.moments import Moments
from probe.plan import FOLDS
from probe.ridge import fit_ridge
from probe.stages import Batch, Results, Sums
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.token_binding.window import LagWindow
from probe.views import ANOTHER, SUBJECT, TWIN

OPEN = 1e-6  # of a token's energy: what float32 leaves open of a token that others determine


@dataclass(frozen=True)
class LayerLags:
    """Ridge regressions of s_t .. s_{t-j} on the stream of each layer, without an intercept.

    Attributes:
        window: Where.
        width: Width of an observation.
    """

    window: LagWindow
    width: int
    views: tuple[str, ...] = (SUBJECT, TWIN, ANOTHER)
    folds: int = FOLDS

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Stream (layers, rows, d_model) and tokens (rows, lags * width), positions as rows."""
        stream = batch.capture.layers[:, :, self.window.positions].double().flatten(1, 2)
        return stream, _tokens(self.window, batch).flatten(0, 1)

    def fit(self, batch: Batch) -> Sums:
        """Moments of every layer with the tokens."""
        x, y = self._rows(batch)
        yy = y.square().sum(0).expand(len(x), -1)
        return {"xx": x.mT @ x, "xy": x.mT @ y, "yy": yy}

    def learn(self, sums: Sums) -> Float[Tensor, "layers d_model lags_and_width"]:
        """The maps; one penalty per layer and lag, by cross-validation."""
        return fit_ridge(Moments(**sums), (self.width,) * self.window.lags).weights

    def test(self, batch: Batch, learned: Tensor) -> Sums:
        """Squared errors and squares by block, layer and lag."""
        x, y = self._rows(batch)
        shape = (len(batch.blocks), -1, self.window.lags, self.width)
        left = (y - x @ learned).square().unflatten(1, shape[:2]).unflatten(-1, shape[2:])
        return {
            "error": batch.by_block(left.sum((2, 4)).transpose(0, 1)),
            "energy": batch.by_block(y.square().view(shape).sum((1, 3))),
        }


@dataclass(frozen=True)
class TokenLags:
    """Ridge regressions of s_{t-j} on the more recent tokens s_t .. s_{t-j+1}, for every lag j."""

    window: LagWindow
    width: int
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = FOLDS

    def fit(self, batch: Batch) -> Sums:
        """Second moments of the tokens of all lags, which hold every such regression."""
        y = _tokens(self.window, batch).flatten(0, 1)
        return {"gram": y.mT @ y}

    def learn(self, sums: Sums) -> Float[Tensor, "lags lags_and_width width"]:
        """For every lag a map from all tokens, which reads the more recent ones alone."""
        lags, width = self.window.lags, self.width
        recent = torch.ones(lags, lags, dtype=torch.float64).tril(-1)
        seen = recent.repeat_interleave(width, 1)
        gram = sums["gram"][:, None]
        xx = gram * seen[:, :, None] * seen[:, None, :]
        by_lag = gram[:, 0].unflatten(-1, (lags, width)).movedim(-2, 1)
        yy = sums["gram"].diagonal(dim1=1, dim2=2).unflatten(-1, (lags, width))
        return fit_ridge(Moments(xx, by_lag * seen[:, :, None], yy), (width,)).weights

    def test(self, batch: Batch, learned: Tensor) -> Sums:
        """Squared innovations by block and lag, and the number of sequences."""
        y = _tokens(self.window, batch)
        told = y @ learned.transpose(0, 1).flatten(1)
        shape = (*y.shape[:2], self.window.lags, self.width)
        return {
            "innovation": batch.by_block((y - told).square().view(shape).sum((1, 3))),
            "sequences": batch.by_block(torch.ones(len(y))),
        }


def _tokens(window: LagWindow, batch: Batch) -> Float[Tensor, "batch positions lags_and_width"]:
    """The tokens of all lags side by side, shared by the stages."""
    sequences = batch.context.sequences
    return batch.context.once(
        ("earlier tokens", window),
        lambda: window.earlier(sequences.observations).double().flatten(2),
    )


@dataclass(frozen=True)
class Decoding:
    """What was read from the layers of one view.

    Attributes:
        error: Squared errors.
        energy: Squared tokens.
        innovation: Squares of what the more recent tokens leave open.
        numbers: Numbers decoded per sequence and lag: positions times channels.
        sequences: Sequences of each block.
    """

    error: Float[Tensor, "blocks layers lags"]
    energy: Float[Tensor, "blocks lags"]
    innovation: Float[Tensor, "blocks lags"]
    numbers: int
    sequences: Float[Tensor, " blocks"]

    @property
    def layers(self) -> int:
        """Number of streams: before the first block and after each."""
        return self.error.shape[1]

    @property
    def lags(self) -> int:
        """Number of lags."""
        return self.error.shape[2]

    def r2(self, layer: int, lag: int) -> Interval:
        """Uncentred R^2 of s_{t-lag}, held out."""
        return share_explained(self.error[:, layer, lag], self.energy[:, lag])

    def r2_map(self) -> Float[Tensor, "layers lags"]:
        """R^2 everywhere."""
        return 1 - self.error.sum(0) / self.energy.sum(0)

    def is_open(self, lag: int) -> bool:
        """Whether the more recent tokens leave anything open of s_{t-lag}."""
        return float(self.innovation[:, lag].sum()) > OPEN * float(self.energy[:, lag].sum())

    def held(self, layer: int, lag: int) -> Interval:
        """Share of the innovation of s_{t-lag} that the layer explains; 1: it holds the token."""
        return share_explained(self.error[:, layer, lag], self.innovation[:, lag])

    def gain(self, layer: int, over: "Decoding", before: int, lag: int) -> Interval:
        """`held` of a layer less that of layer `before` of the same or of another view."""
        gain = over.error[:, before, lag] - self.error[:, layer, lag]
        return bootstrap_interval(lambda w: (w @ gain) / (w @ self.innovation[:, lag]))

    def mean_square(self, layer: int, lag: int) -> Interval:
        """Mean squared error of one channel."""
        error = self.error[:, layer, lag] / self.numbers
        return bootstrap_interval(lambda w: (w @ error) / (w @ self.sequences))


def decodings(results: Results, layers: LayerLags, tokens: TokenLags) -> dict[str, Decoding]:
    """What was read, by view."""
    told = results[tokens, SUBJECT].sums
    numbers = (layers.window.stop - layers.window.first) * layers.width
    return {
        view: Decoding(**results[layers, view].sums, **told, numbers=numbers)
        for view in layers.views
    }
