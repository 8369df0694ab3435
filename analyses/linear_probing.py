"""What can be read linearly from each layer, at each position.

Hypothesis: a model that learns in context holds what its algorithm works with: past tokens, the
query preconditioned by the context's own G_t, the next token; and holds it better layer by layer.
Test statistic, named in advance: R^2 of the preconditioned query (G_t + I)^-1 q_t, mean over the
middle positions, last layer minus layer 0, less the same for the context of another sequence.
Refuted by: no gain, or a gain that a foreign context or the permuted twin shows as well.
Cost: per shard and view one product of the activations with the targets; fit sums of
4 folds x layers x positions x (D x K) float64 numbers, 130 MB per full view at 8 x 50 x (40 x 250).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.findings import Figure, Finding, HeatMap, LineChart, Metric, Outcome, Series, Table
from probe.moments import Moments, layer_moments
from probe.plan import FOLDS
from probe.ridge import fit_ridge, group_sums
from probe.sampling import generator_for
from probe.stages import Batch, Context, Results, Sums, previous
from probe.statistics import BLOCKS, Interval, bootstrap_interval
from probe.views import ANOTHER, SUBJECT, SWAPPED, TWIN

LAMBDAS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
LAGS = range(1, 8)
WIDEST_CROSS = 256
CURRENT, NEXT, ORACLE, CROSS = "current_token", "next_token", "oracle_next_token", "value_key_sums"
MARGIN = 0.02

Reader = Callable[[Context], Float[Tensor, "batch time k"]]


def preconditioned(ridge: float) -> str:
    """Name of the target (G_t + ridge)^-1 q_t."""
    return f"preconditioned_query_{ridge:g}"


QUERY = preconditioned(1.0)


def _filtered(context: Context, ridge: float) -> Tensor:
    return context.spectrum.filtered_query(lambda mu: 1 / (mu + ridge)).float()


def _lagged(context: Context, lag: int) -> Tensor:
    observations = context.sequences.observations
    return previous(observations, lag, observations.shape[1] - 1)


READERS: dict[str, Reader] = {
    CURRENT: partial(_lagged, lag=0),
    NEXT: lambda context: context.problem.targets,
    ORACLE: lambda context: context.problem.oracle,
    **{f"previous_token_{lag}": partial(_lagged, lag=lag) for lag in LAGS},
    **{preconditioned(ridge): partial(_filtered, ridge=ridge) for ridge in LAMBDAS},
    CROSS: lambda context: context.moments.cross.flatten(2).float(),
}


CONTEXTS: dict[str, Callable[[Context, Reader], Tensor]] = {
    SUBJECT: lambda context, read: context.once(read, lambda: read(context)),
    # What is read of the sequence before is what the sequence before reads.
    ANOTHER: lambda context, read: context.once(read, lambda: read(context)).roll(1, 0),
    SWAPPED: lambda context, read: read(context.swapped),
}


@dataclass(frozen=True)
class Target:
    """Something to decode; all of its channels share one penalty.

    Attributes:
        name: What it is.
        width: Its channels.
        of: Whose it is: that of the own sequence, or of a control.
    """

    name: str
    width: int
    of: str = SUBJECT

    def read(self, context: Context) -> Float[Tensor, "batch time width"]:
        """Its values."""
        return CONTEXTS[self.of](context, READERS[self.name])


@dataclass(frozen=True)
class Decoders:
    """What the fit split has taught.

    Attributes:
        weights: Maps from each layer to all targets, at each position.
        in_sample: Mean over fitted sequences of 1/2 the squared error of each target.
        at_edge: Share of the penalties of each target at an end of their grid.
    """

    weights: Float[Tensor, "layers time d k"]
    in_sample: Float[Tensor, "layers time targets"]
    at_edge: Float[Tensor, " targets"]


@dataclass(frozen=True)
class Probes:
    """Uncentred ridge regressions of targets on the stream, per layer and position.

    Controls that look for something else in the same stream are targets too: they share its moments
    and their eigendecompositions.
    """

    targets: tuple[Target, ...]
    views: tuple[str, ...]
    folds: int = FOLDS

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the targets."""
        return tuple(target.width for target in self.targets)

    def places(self, of: str) -> list[int]:
        """Places of the targets of the own sequence, or of a control."""
        return [place for place, target in enumerate(self.targets) if target.of == of]

    def read(self, context: Context) -> Float[Tensor, "batch time k"]:
        """All targets side by side."""
        return torch.cat([target.read(context) for target in self.targets], -1)

    def fit(self, batch: Batch) -> Sums:
        """Moments of stream and targets, in the dtype of the stream."""
        moments = layer_moments(batch.capture.layers, self.read(batch.context))
        return {**vars(moments), "sequences": torch.tensor(len(batch.blocks))}

    def learn(self, sums: Sums) -> Decoders:
        """Ridge regressions, one penalty per layer, position and target."""
        fit = fit_ridge(Moments(sums["xx"], sums["xy"], sums["yy"]), self.widths)
        in_sample = fit.in_sample / (2 * sums["sequences"].sum())
        return Decoders(fit.weights.float(), in_sample, fit.at_edge.double().mean((0, 1)))

    def test(self, batch: Batch, learned: Decoders) -> Sums:
        """Squared errors and squared targets by block."""
        y = self.read(batch.context)
        by_position = y.transpose(0, 1).contiguous()
        residual = torch.empty_like(by_position)  # of one layer: all would take 100 MB
        errors = []
        for x, weights in zip(batch.capture.layers, learned.weights, strict=True):
            torch.baddbmm(by_position, x.transpose(0, 1), weights, alpha=-1, out=residual)
            errors.append(self._by_block(residual.square_(), batch))
        return {
            "error": torch.stack(errors, 1).double(),
            "energy": self._by_block(by_position.square(), batch).double(),
            "sequences": batch.by_block(torch.ones(len(y))),
        }

    def _by_block(
        self, squares: Float[Tensor, "time batch k"], batch: Batch
    ) -> Float[Tensor, "blocks time targets"]:
        """Sums over the sequences of each block first, which leaves few numbers to group."""
        sums = squares.new_zeros(len(squares), BLOCKS, squares.shape[-1])
        sums.index_add_(1, batch.blocks, squares)
        return group_sums(sums, self.widths).transpose(0, 1)


@dataclass(frozen=True)
class Scores:
    """Test sums of one view.

    Attributes:
        targets: What was decoded.
        error: Squared errors.
        energy: Squared targets.
        count: Sequences of each block.
    """

    targets: tuple[str, ...]
    error: Float[Tensor, "blocks layers time targets"]
    energy: Float[Tensor, "blocks time targets"]
    count: Float[Tensor, " blocks"]

    def by_position(self) -> Float[Tensor, "layers time targets"]:
        """R^2 at each position."""
        return 1 - self.error.sum(0) / self.energy.sum(0)

    def pooled(self, positions: slice) -> Float[Tensor, "layers targets"]:
        """R^2 over positions together."""
        error = self.error[:, :, positions].sum((0, 2))
        return 1 - error / self.energy[:, positions].sum((0, 1))

    def loss(self) -> Float[Tensor, "layers time targets"]:
        """1/2 mean squared norm of the error."""
        return self.error.sum(0) / (2 * self.count.sum())

    def mean_r2(
        self, weights: Float[Tensor, "draws blocks"], name: str, layer: int, positions: slice
    ) -> Float[Tensor, " draws"]:
        """Mean over positions of R^2, with blocks weighted."""
        target = self.targets.index(name)
        error = weights @ self.error[:, layer, positions, target]
        return (1 - error / (weights @ self.energy[:, positions, target])).mean(-1)

    def gain(
        self, weights: Float[Tensor, "draws blocks"], name: str, positions: slice
    ) -> Float[Tensor, " draws"]:
        """`mean_r2` of the last layer minus that of layer 0."""
        first, last = (self.mean_r2(weights, name, layer, positions) for layer in (0, -1))
        return last - first


class LinearProbing:
    """Decodes the quantities of the in-context problem from every layer at every position."""

    name = "linear_probing"
    place = 30
    rests_on = frozenset({"streams"})
    question = "What can be read linearly from each layer, and does it become more readable?"

    def stages(self, setting: Setting) -> tuple[Probes, ...]:
        """All targets of the own and of a foreign sequence; a few under the other controls."""
        targets = _targets(setting)
        foreign = tuple(replace(target, of=ANOTHER) for target in targets)
        few = tuple(target for target in targets if target.name in (NEXT, QUERY))
        swapped = tuple(replace(target, of=SWAPPED) for target in few if target.name == QUERY)
        return Probes((*targets, *foreign, *swapped), (SUBJECT,)), Probes(few, (TWIN,))

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Tests the statistic that was named in advance; tabulates the rest."""
        probes, twin = self.stages(setting)
        scores = {view: _scores(results, probes, SUBJECT, view) for view in CONTEXTS}
        scores[TWIN] = _scores(results, twin, TWIN, SUBJECT)
        positions = slice(*setting.windows.probed)
        gain = {
            view: partial(s.gain, name=QUERY, positions=positions) for view, s in scores.items()
        }
        named = bootstrap_interval(lambda weights: gain[SUBJECT](weights) - gain[SWAPPED](weights))
        gains = {view: bootstrap_interval(statistic) for view, statistic in gain.items()}
        outcome = _outcome(named, gains[TWIN], setting.layers)
        decoders: Decoders = results[probes, SUBJECT].learned
        own = probes.places(SUBJECT)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=outcome,
            statement=_statement(outcome, named, gains, scores[SUBJECT], positions),
            metrics=_metrics(
                named, scores[SUBJECT], float(decoders.at_edge[own].mean()), positions
            ),
            controls=_controls(scores, gains, positions),
            does_not_show=(
                "That the model uses what can be decoded, or that a layer computes it: a probe "
                "reads what is present, by whatever way it came there."
            ),
            tables=(_table(scores[SUBJECT], scores[ANOTHER], decoders.in_sample[..., own]),),
            figures=_figures(scores, positions),
        )


def _targets(setting: Setting) -> tuple[Target, ...]:
    """All targets with their widths, which are read off a single sequence."""
    sequences = setting.task.sample(1, generator_for(0))
    context = Context(sequences, setting.task.problem(sequences))
    targets = [Target(name, read(context).shape[-1]) for name, read in READERS.items()]
    return tuple(t for t in targets if t.name != CROSS or t.width <= WIDEST_CROSS)


def _scores(results: Results, stage: Probes, view: str, of: str) -> Scores:
    sums, places = results[stage, view].sums, stage.places(of)
    names = tuple(stage.targets[place].name for place in places)
    error, energy = (sums[name][..., places] for name in ("error", "energy"))
    return Scores(names, error, energy, sums["sequences"])


def _outcome(named: Interval, twin: Interval, layers: int) -> Outcome:
    """One or two layers can solve the problem without ever showing a preconditioned query."""
    if named.lo > MARGIN and twin.value <= named.value:
        return "supports"
    return "contradicts" if named.hi < MARGIN and layers > 2 else "inconclusive"


def _statement(
    outcome: Outcome,
    named: Interval,
    gains: dict[str, Interval],
    subject: Scores,
    positions: slice,
) -> str:
    read = [
        bootstrap_interval(partial(subject.mean_r2, name=NEXT, layer=layer, positions=positions))
        for layer in (0, -1)
    ]
    verb = {
        "supports": "becomes more readable",
        "contradicts": "does not become more readable",
        "inconclusive": "is not shown to become more readable",
    }[outcome]
    return (
        f"Through the layers the preconditioned query {verb}: R^2 changes by "
        f"{gains[SUBJECT].value:+.3f}, and by {gains[SWAPPED].value:+.3f} where the context is "
        f"swapped, a difference of {named.value:.3f} [{named.lo:.3f}, {named.hi:.3f}]. R^2 of the "
        f"next token goes from {read[0].value:.3f} to {read[1].value:.3f}."
    )


def _metrics(
    named: Interval, subject: Scores, at_edge: float, positions: slice
) -> dict[str, Metric]:
    where = f"mean over t = {positions.start + 1}..{positions.stop}, held out"
    metrics = {
        "context_gain": Metric.of(
            named,
            f"gain in R^2 of (G + 1)^-1 q from layer 0 to the last, minus the same with the "
            f"context of another sequence; {where}; named in advance",
        ),
        "penalties_at_edge": Metric(
            at_edge,
            "share of probes whose penalty lies at an end of its grid",
        ),
    }
    for name, (layer, place) in product((NEXT, QUERY), ((0, "first"), (-1, "last"))):
        read = partial(subject.mean_r2, name=name, layer=layer, positions=positions)
        words = f"R^2 of {name} decoded from the {place} layer; {where}"
        metrics[f"{name}_{place}_layer"] = Metric.of(bootstrap_interval(read), words)
    return metrics


def _controls(
    scores: dict[str, Scores], gains: dict[str, Interval], positions: slice
) -> dict[str, Metric]:
    gain = "gain in R^2 of (G + 1)^-1 q from layer 0 to the last"
    controls = {
        f"{view}_gain": Metric.of(gains[view], f"{gain}; view {view}")
        for view in (SWAPPED, ANOTHER, TWIN)
    }
    for view in (ANOTHER, TWIN):
        read = partial(scores[view].mean_r2, name=NEXT, layer=-1, positions=positions)
        words = f"R^2 of the next token decoded from the last layer; view {view}"
        controls[f"{view}_next_token"] = Metric.of(bootstrap_interval(read), words)
    return controls


def _table(
    subject: Scores, another: Scores, in_sample: Float[Tensor, "layers time targets"]
) -> Table:
    r2 = subject.by_position()
    layers, time, _ = r2.shape
    names = list(subject.targets)
    index = pd.MultiIndex.from_product(
        [range(layers), range(1, time + 1), names], names=["layer", "position", "target"]
    )
    columns = {
        "loss": subject.loss(),
        "loss_in_sample": in_sample,
        "r2": r2,
        "control_r2": another.by_position(),
    }
    # A target that is zero at a position, such as a token before the first, has no R^2.
    finite = {name: values.where(values.isfinite(), torch.nan) for name, values in columns.items()}
    flat = {name: values.flatten().numpy() for name, values in finite.items()}
    return Table("linear_probing", pd.DataFrame(flat, index=index).reset_index())


def _figures(scores: dict[str, Scores], positions: slice) -> tuple[Figure, ...]:
    subject = scores[SUBJECT]
    r2 = subject.by_position()[..., subject.targets.index(NEXT)]
    pooled = subject.pooled(positions)
    layers = tuple(str(layer) for layer in range(len(r2)))
    window = f"t = {positions.start + 1}..{positions.stop}"
    return (
        HeatMap(
            name="probing_next_token",
            title="The next token, decoded from each layer",
            caption="Held-out R^2 of a linear probe for each layer and position; 0 is chance.",
            x_label="position t (tokens seen)",
            y_label="layer",
            value_label="R^2",
            x=tuple(str(position + 1) for position in range(r2.shape[1])),
            y=layers,
            values=tuple(map(tuple, r2.tolist())),
        ),
        HeatMap(
            name="probing_gain",
            title="What becomes more readable than at layer 0",
            caption=f"R^2 minus that of layer 0, held out, {window} pooled.",
            x_label="layer",
            y_label="",
            value_label="gain in R^2",
            x=layers,
            y=tuple(name.replace("_", " ") for name in subject.targets),
            values=tuple(map(tuple, (pooled - pooled[:1]).T.tolist())),
        ),
        _chart(scores, positions, window),
    )


def _chart(scores: dict[str, Scores], positions: slice, window: str) -> LineChart:
    lines = (
        ("next token", SUBJECT, NEXT),
        ("preconditioned query", SUBJECT, QUERY),
        ("next token, permuted twin", TWIN, NEXT),
        ("next token, another sequence", ANOTHER, NEXT),
        ("preconditioned query, swapped context", SWAPPED, QUERY),
    )
    return LineChart(
        name="probing_by_layer",
        title="Decoding through the layers",
        caption=f"Held-out R^2, mean over {window}, with 95 % intervals over sequences.",
        x_label="layer",
        y_label="R^2",
        series=tuple(
            _series(label, scores[view], name, positions, control=view != SUBJECT)
            for label, view, name in lines
        ),
    )


def _series(label: str, scores: Scores, name: str, positions: slice, control: bool) -> Series:
    layers = range(scores.error.shape[1])
    points = [
        bootstrap_interval(partial(scores.mean_r2, name=name, layer=layer, positions=positions))
        for layer in layers
    ]
    return Series(
        label=label,
        x=[float(layer) for layer in layers],
        y=[point.value for point in points],
        lo=[point.lo for point in points],
        hi=[point.hi for point in points],
        role="control" if control else "model",
    )


NAMED = {"linear_probing": LinearProbing()}
