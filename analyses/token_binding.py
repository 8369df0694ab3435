"""Which earlier tokens does each layer hold?

Hypothesis: a model of raw tokens that learns from pairs must set a token's key beside it, so an
early layer copies s_{t-1} next to s_t; on constructed tokens the pair is in the token already.
Three measures: held-out probes of s_{t-j} at every layer, what the heads write from each earlier
token, and derivatives of every layer's stream by an earlier token. Controls: the permuted twin,
another sequence's stream, and for each lag what the more recent tokens tell of it.
Test statistic: the first layer that holds more than three quarters of what the more recent tokens
leave open of s_{t-j}, clearly more than the twin's. Since a model that only mixes the last two
tokens binds them as well, the prediction must also depend on tokens before those that are held,
and change once the layer copies no more.
Refuted by: no layer that holds an earlier token, or a prediction that looks no further back.
Cost: two forward passes over 1,024 sequences and forward-mode derivatives of some twenty.
"""

from collections.abc import Iterator
from math import inf, isnan

from probe.analysis import Bench
from probe.checkpoints.base import Subject, lacks_weights, transformer_of
from probe.findings import Finding, Metric, Outcome
from probe.sampling import generator_for
from probe.statistics import Interval
from probe.tasks.base import Task, lacks_questions
from probe.token_binding.charts import figures
from probe.token_binding.decoding import Decoding
from probe.token_binding.measure import Measures, measure
from probe.token_binding.reading import HOLDS, TRACE, Reading, read
from probe.token_binding.tables import tables
from probe.token_binding.window import LagWindow
from probe.views import ANOTHER, SUBJECT, TWIN

MANY = 1000  # times, from which a number says no more


class TokenBinding:
    """Decodes earlier tokens from every layer, and traces them through the weights."""

    name = "token_binding"
    place = 25
    rests_on = frozenset({"streams", "heads"})
    question = "Which earlier tokens does each layer hold?"
    thorough = False

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Pairs that reach over tokens, seen through causal attention."""
        if lacking := lacks_weights(subject):
            return lacking
        blocks = transformer_of(subject).config.blocks
        if any(block.attention.kind == "linear-bidirectional" for block in blocks):
            return "its attention is not causal"
        if lacking := lacks_questions(task):
            return lacking
        if LagWindow.late(task.length).lags < 2:
            return "its sequences are too short for a lag"
        if task.problem(task.sample(1, generator_for(0))).first == 0:
            return "its tokens hold whole pairs, which need no binding"
        return None

    def run(self, bench: Bench) -> Finding:
        """Names the copying layer and how far back it holds."""
        model = transformer_of(bench.subject)
        measures = measure(model, bench.plan, bench.progress)
        reading = read(measures)
        softmax = any(b.attention.kind == "softmax" for b in model.config.blocks)
        outcome = _outcome(reading, measures.decoded[SUBJECT], softmax)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=outcome,
            statement=_statement(reading, measures, outcome),
            metrics=_metrics(reading, measures),
            controls=_controls(reading, measures),
            does_not_show=(
                "That anything is learned from what is held: an average that weighs tokens by "
                "the ones before them needs pairs as well, and is no optimiser."
            ),
            tables=tables(measures),
            figures=figures(measures, reading.copying.layer if reading.copying else 1),
            bearing=_bearing(reading, outcome),
        )


def _best(decoded: Decoding) -> tuple[int, int]:
    """The layer after a block, and the lag, of which most is held."""
    held = 1 - decoded.error.sum(0) / decoded.innovation.sum(0)
    place = int(held[1:, 1:].nan_to_num(nan=-inf).argmax())
    return place // (decoded.lags - 1) + 1, place % (decoded.lags - 1) + 1


def _outcome(reading: Reading, decoded: Decoding, softmax: bool) -> Outcome:
    """Softmax heads average tokens, and an average of pairs obeys the map of the pairs."""
    if reading.bindings and reading.stops:
        return "contradicts"
    if reading.copying:
        return "supports" if reading.reaches and reading.copying.used else "inconclusive"
    if reading.bindings or softmax or decoded.held(*_best(decoded)).hi > TRACE:
        return "inconclusive"
    return "contradicts"


def _tokens(lags: list[int]) -> str:
    names = [f"s_{{t-{lag}}}" for lag in lags]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _statement(reading: Reading, measures: Measures, outcome: Outcome) -> str:
    parts = [_sources(reading), *_copied(reading, measures)]
    if reading.bindings:
        parts.append(_reach(reading))
    else:
        decoded = measures.decoded[SUBJECT]
        layer, lag = _best(decoded)
        parts.append(
            f"Most is held of {_tokens([lag])} by layer {layer}: "
            f"{_in_words(decoded.held(layer, lag))} of what more recent tokens leave open."
        )
        if outcome == "inconclusive":
            parts.append("A learner could still work on mixtures of many pairs.")
    return " ".join(part for part in parts if part)


def _sources(reading: Reading) -> str:
    """Where earlier tokens come from."""
    given = [binding.lag for binding in reading.in_tokens]
    added = [binding for binding in reading.bindings if binding.layer > 0]
    said = [f"The tokens themselves set {_tokens(given)} beside s_t."] if given else []
    layers = sorted({binding.layer for binding in added})
    for layer in layers:
        own = [binding.lag for binding in added if binding.layer == layer]
        said.append(f"Layer {layer} sets {_tokens(own)} beside s_t.")
    return " ".join(said) if said else "No layer binds earlier tokens."


def _copied(reading: Reading, measures: Measures) -> Iterator[str]:
    copying = reading.copying
    if copying is None:
        return
    nearest = copying.bindings[0]
    yield (
        f"Of what more recent tokens leave open of {_tokens([nearest.lag])} it holds "
        f"{_in_words(nearest.held)}, {nearest.gain.value:.3f} more than the layer before and "
        f"{nearest.above_twin.value:.3f} more than in the permuted twin."
    )
    yield f"The horizon is lag {reading.horizon}{_beyond(reading, measures.decoded[SUBJECT])}."
    yield (
        f"Attention and derivatives {'agree' if copying.agree else 'do not agree'}: from the "
        f"weakest of these tokens they bring {_times(copying.attention)} and "
        f"{_times(copying.derivatives)} times what they bring from any other earlier token. "
        f"Without this copy the prediction changes by {_in_words(copying.use)} times its energy."
    )


def _times(contrast: Interval) -> str:
    return f"{contrast.value:.1f}" if contrast.value < MANY else f"over {MANY}"


def _beyond(reading: Reading, decoded: Decoding) -> str:
    """What is held of the token before the horizon, at best."""
    lag = reading.horizon + 1
    if lag >= decoded.lags or not decoded.is_open(lag):
        return ""
    best = max((decoded.held(layer, lag) for layer in range(decoded.layers)), key=_value)
    return f"; of lag {lag} at most {_in_words(best)} is held"


def _reach(reading: Reading) -> str:
    if isnan(reading.reach.value):
        return ""
    verb = "depends" if reading.reaches else "does not clearly depend"
    verb = "hardly depends" if reading.stops else verb
    return (
        f"The prediction {verb} on tokens before {_tokens([reading.horizon])}: they have "
        f"{_in_words(reading.reach)} of its derivatives."
    )


def _value(interval: Interval) -> float:
    return interval.value


def _in_words(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.lo:.3f}, {interval.hi:.3f}]"


def _bearing(reading: Reading, outcome: Outcome) -> str:
    """One sentence for the verdict."""
    if not reading.bindings:
        if outcome == "contradicts":
            return "No layer binds earlier tokens, so there are no pairs to learn from."
        return "No layer holds an earlier token by itself; pairs are mixed, if there are any."
    if reading.stops:
        return f"{_sources(reading)} The prediction looks no further back: nothing is learned."
    copying = reading.copying
    if copying is None:
        return f"{_sources(reading)} No layer needs to copy."
    lags = [binding.lag for binding in copying.bindings]
    weakest = min(binding.held.value for binding in copying.bindings)
    if not copying.used:
        return f"{_sources(reading)} The prediction does not clearly need it."
    how = f"{weakest:.3f} or more of each" if len(lags) > 1 else f"{weakest:.3f} of it"
    return (
        f"Layer {copying.layer} sets {_tokens(lags)} beside s_t and holds {how}: the pairs that "
        "later layers can learn from."
    )


def _metrics(reading: Reading, measures: Measures) -> dict[str, Metric]:
    decoded = measures.decoded[SUBJECT]
    found = {
        "horizon": Metric(reading.horizon, "largest lag of a token that a layer holds; 0: none"),
        "reach": Metric.of(
            reading.reach,
            "share of the prediction's derivatives by tokens before all that are held",
        ),
    }
    held = "share that is explained of what more recent tokens leave open"
    if reading.horizon:
        last = next(b for b in reading.bindings if b.lag == reading.horizon)
        found["held_at_horizon"] = Metric.of(
            last.held, f"{held} of s_{{t-{last.lag}}}, layer {last.layer}; {HOLDS:g} is needed"
        )
    copying = reading.copying
    if copying is None:
        layer, lag = _best(decoded)
        best = decoded.held(layer, lag)
        found["most_held"] = Metric.of(best, f"{held} of s_{{t-{lag}}}, layer {layer}")
        return found
    nearest = copying.bindings[0]
    where = f"s_{{t-{nearest.lag}}}, layer {copying.layer}"
    found |= {
        "copying_layer": Metric(copying.layer, "first layer that adds an earlier token"),
        "r2": Metric.of(decoded.r2(copying.layer, nearest.lag), f"held-out R^2 of {where}"),
        "held": Metric.of(nearest.held, f"{held} of {where}"),
        "gain": Metric.of(nearest.gain, f"the same less that of layer {copying.layer - 1}"),
        "attention_contrast": Metric.of(copying.attention, _CONTRAST.format("what heads write")),
        "derivative_contrast": Metric.of(copying.derivatives, _CONTRAST.format("derivatives")),
        "use": Metric.of(copying.use, _USE),
    }
    return found


_USE = "change of the prediction without this copy, over the prediction, in energy"
_CONTRAST = "{} from the weakest token newly held over the strongest other, at the copying layer"


def _controls(reading: Reading, measures: Measures) -> dict[str, Metric]:
    twin, another = measures.decoded[TWIN], measures.decoded[ANOTHER]
    copying = reading.copying
    if copying is None:
        layer, lag = _best(measures.decoded[SUBJECT])
    else:
        layer, lag = copying.layer, copying.bindings[0].lag
    where = f"s_{{t-{lag}}}, layer {layer}"
    found = {
        "permuted_twin_held": Metric.of(twin.held(layer, lag), f"share held of {where}; twin"),
        "another_sequence_r2": Metric.of(
            another.r2(layer, lag), f"R^2 of {where}, decoded from the stream of another sequence"
        ),
    }
    if copying is not None:
        for name, value in (
            ("attention", copying.twin_attention),
            ("derivative", copying.twin_derivatives),
        ):
            found[f"permuted_twin_{name}_contrast"] = Metric.of(
                value, f"{name} contrast of the same tokens; view {TWIN}"
            )
        found["permuted_twin_use"] = Metric.of(copying.twin_use, f"{_USE}; view {TWIN}")
    return found


NAMED = {"token_binding": TokenBinding()}
