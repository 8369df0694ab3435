"""From measures to layers: which lags are bound, where first, and whether the measures agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from probe.statistics import Interval
from probe.token_binding.decoding import Decoding
from probe.token_binding.measure import Measures, ratio
from probe.views import SUBJECT, TWIN

HOLDS = 0.75  # share of its innovation from which a token counts as held
MARGIN = 0.02  # by which a layer must hold more than that of the permuted twin
TRACE = 0.1  # share below which a layer holds next to nothing of a token
USED = 0.05  # of the prediction's energy, by which it changes without what is copied
REACH = 0.05  # share of the prediction's derivatives beyond the bound tokens


@dataclass(frozen=True)
class Binding:
    """An earlier token that is held.

    Attributes:
        lag: Its lag.
        layer: The first layer that holds it; 0: the token at t itself does.
        held: Share of its innovation there.
        gain: The same less that of the layer before.
        above_twin: The same less that of the permuted twin.
    """

    lag: int
    layer: int
    held: Interval
    gain: Interval
    above_twin: Interval


def bindings(decoded: Mapping[str, Decoding]) -> tuple[Binding, ...]:
    """Every lag that some layer holds, with the first that does."""
    subject = decoded[SUBJECT]
    found = (_first(decoded, lag) for lag in range(1, subject.lags) if subject.is_open(lag))
    return tuple(binding for binding in found if binding is not None)


def _first(decoded: Mapping[str, Decoding], lag: int) -> Binding | None:
    subject, twin = decoded[SUBJECT], decoded[TWIN]
    for layer in range(subject.layers):
        held = subject.held(layer, lag)
        if held.lo <= HOLDS:
            continue
        above = subject.gain(layer, twin, layer, lag)
        # Tokens are no work of the weights, so the twin's hold the same.
        if layer == 0 or above.lo > MARGIN:
            gain = subject.gain(layer, subject, layer - 1, lag) if layer else held
            return Binding(lag, layer, held, gain, above)
    return None


@dataclass(frozen=True)
class Copying:
    """The first layer that adds earlier tokens, by all three measures.

    Attributes:
        bindings: The tokens that it is the first to hold, the nearest first.
        attention: What its heads write from the weakest of these tokens over what they write from
            the strongest of all other earlier ones.
        derivatives: The same ratio of the derivatives of its stream.
        twin_attention: The first ratio in the permuted twin.
        twin_derivatives: The second ratio in the permuted twin.
        use: Change of the prediction once the layer writes nothing from these tokens, in energy.
        twin_use: The same in the permuted twin.
    """

    bindings: tuple[Binding, ...]
    attention: Interval
    derivatives: Interval
    twin_attention: Interval
    twin_derivatives: Interval
    use: Interval
    twin_use: Interval

    @property
    def layer(self) -> int:
        """The layer."""
        return self.bindings[0].layer

    @property
    def agree(self) -> bool:
        """Whether attention and derivatives name the same tokens as the probes."""
        return min(self.attention.lo, self.derivatives.lo) > 1

    @property
    def used(self) -> bool:
        """Whether the prediction needs what is copied."""
        return self.use.lo > USED


@dataclass(frozen=True)
class Reading:
    """What the measures say.

    Attributes:
        bindings: All tokens that are held.
        copying: The first layer that adds some; None if none does.
        reach: Share of the prediction's derivatives by tokens before all that are held; not a
            number where every lag is held.
    """

    bindings: tuple[Binding, ...]
    copying: Copying | None
    reach: Interval

    @property
    def in_tokens(self) -> tuple[Binding, ...]:
        """Those that the token itself holds."""
        return tuple(binding for binding in self.bindings if binding.layer == 0)

    @property
    def horizon(self) -> int:
        """The largest lag that is held; 0 if none is."""
        return max((binding.lag for binding in self.bindings), default=0)

    @property
    def reaches(self) -> bool:
        """Whether the prediction depends on tokens before all that are held."""
        return self.reach.lo > REACH

    @property
    def stops(self) -> bool:
        """Whether it does not."""
        return self.reach.hi < REACH


def read(measures: Measures) -> Reading:
    """The reading."""
    found = bindings(measures.decoded)
    added = [binding for binding in found if binding.layer > 0]
    reach = _reach(measures, max((binding.lag for binding in found), default=1))
    if not added:
        return Reading(found, None, reach)
    layer = min(binding.layer for binding in added)
    first = tuple(binding for binding in added if binding.layer == layer)
    return Reading(found, _copying(measures, first), reach)


def _reach(measures: Measures, horizon: int) -> Interval:
    """The share of derivatives beyond a lag; unknown where that is the largest."""
    output = measures.middle.output
    if horizon + 1 >= output.shape[1]:
        return Interval(nan, nan, nan)
    return ratio(output[:, horizon + 1 :].sum(1), output.sum(1))


def _copying(measures: Measures, first: tuple[Binding, ...]) -> Copying:
    layer, lags = first[0].layer, [binding.lag for binding in first]

    def attention(view: str) -> Interval:
        written = measures.attention[view][layer - 1].together().by_lag[:, 0]
        return contrast(written, lags)

    def derivatives(view: str) -> Interval:
        return contrast(measures.late[view].stream[:, layer], lags)

    return Copying(
        bindings=first,
        attention=attention(SUBJECT),
        derivatives=derivatives(SUBJECT),
        twin_attention=attention(TWIN),
        twin_derivatives=derivatives(TWIN),
        use=measures.change_without(SUBJECT, layer, lags),
        twin_use=measures.change_without(TWIN, layer, lags),
    )


def contrast(by_lag: Float[Tensor, "batch lags"], named: list[int]) -> Interval:
    """The weakest of the named lags over the strongest of the others, lag 0 aside."""
    mean = by_lag.mean(0)
    others = [lag for lag in range(1, len(mean)) if lag not in named]
    if not others:
        return Interval(float("inf"), float("inf"), float("inf"))
    weakest = min(named, key=lambda lag: float(mean[lag]))
    strongest = max(others, key=lambda lag: float(mean[lag]))
    tiny = torch.finfo(by_lag.dtype).tiny
    return ratio(by_lag[:, weakest], by_lag[:, strongest].clamp_min(tiny))
