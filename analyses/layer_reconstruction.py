"""What each layer's attention adds to the stream, as a linear map of known algorithm steps.

Hypothesis: a layer adds a step of gradient descent, built from C q, G q and C G q, or of least
squares, built from (G + lambda)^-1 q and C (G + lambda)^-1 q; s_t and s_{t-1} are open to both.
Each block of features passes through its own linear map, the same at all judged positions. Sums
over the context grow with t where attention is linear and are means where it is a softmax, so
every moment block is offered twice, with G and C as sums and as means over the t + 1 tokens seen
(C (G + lambda)^-1 q is the same in both): both families are free to scale with t in the same way.
Test statistic: R^2 of all blocks over the layers, its excess over another sequence's blocks and
over the tokens alone. Refuted by: blocks that explain no more than tokens do.
Cost: all layers and all subsets of blocks share one Gram matrix of the features.
"""

from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.columns import rows_by_block
from probe.findings import Figure, Finding, HeatMap, LineChart, Metric, Outcome, Series, Table
from probe.moments import Moments
from probe.plan import FOLDS
from probe.ridge import fit_ridge
from probe.sampling import generator_for
from probe.stages import Batch, Context, Results, Sums, previous
from probe.statistics import Interval, bootstrap_interval
from probe.views import ANOTHER, SUBJECT, TWIN

GRADIENT = ("C q", "G q", "C G q")
LEAST_SQUARES = ("(G + lambda)^-1 q", "C (G + lambda)^-1 q")
TOKENS = ("s_t", "s_{t-1}")
BLOCK_NAMES = (*GRADIENT, *LEAST_SQUARES, *TOKENS)
FAMILIES = {
    "all": BLOCK_NAMES,
    "gradient_step": (*GRADIENT, *TOKENS),
    "least_squares": (*LEAST_SQUARES, *TOKENS),
    "context": (*GRADIENT, *LEAST_SQUARES),
    "tokens": TOKENS,
}
SUBSETS: dict[str, tuple[str, ...]] = {
    **FAMILIES,
    **{name: (name,) for name in BLOCK_NAMES},
    **{f"without {name}": tuple(b for b in BLOCK_NAMES if b != name) for name in BLOCK_NAMES},
}
# What is left of "all" when what belongs to a row of the table alone is taken away.
REST = {
    "gradient_step": "least_squares",
    "least_squares": "gradient_step",
    "context": "tokens",
    "tokens": "context",
    **{name: f"without {name}" for name in BLOCK_NAMES},
}
ROWS = ("all", *REST)
EXPLAINED, MARGIN, EQUIVALENT = 0.5, 0.05, 0.01


def features(context: Context, ridge: float) -> dict[str, Float[Tensor, "batch time _"]]:
    """The blocks, with G and C as sums over the context, then as means."""
    spectrum, observations = context.spectrum, context.sequences.observations
    time = observations.shape[1] - 1
    seen = torch.arange(1, time + 1, dtype=torch.float64)[:, None]
    solved = spectrum.filtered_query(lambda mu: 1 / (mu + ridge))
    return {
        "C q": _sum_and_mean(spectrum.predict(torch.ones_like), 1 / seen),
        "G q": _sum_and_mean(spectrum.filtered_query(lambda mu: mu), 1 / seen),
        "C G q": _sum_and_mean(spectrum.predict(lambda mu: mu), 1 / seen.square()),
        "(G + lambda)^-1 q": _sum_and_mean(solved, seen),
        "C (G + lambda)^-1 q": spectrum.predict(lambda mu: 1 / (mu + ridge)),
        "s_t": previous(observations, 0, time),
        "s_{t-1}": previous(observations, 1, time),
    }


def _sum_and_mean(block: Tensor, scale: Tensor) -> Tensor:
    return torch.cat([block, block * scale], -1)


@dataclass(frozen=True)
class Reconstruction:
    """Regression of all layers' attention outputs on the blocks, pooled over positions.

    Attributes:
        ridge: lambda of the least squares blocks.
        positions: The judged positions [start, stop).
        widths: Channels of each block.
        layers: Number of layers.
        views: The views.
        folds: The folds of fit sums.
    """

    ridge: float
    positions: tuple[int, int]
    widths: tuple[int, ...]
    layers: int
    views: tuple[str, ...] = (SUBJECT, ANOTHER, TWIN)
    folds: int = FOLDS

    def fit(self, batch: Batch) -> Sums:
        """Moments of blocks and updates, in the dtype of the updates."""
        x, y = self._rows(batch)
        return vars(_moments(x.flatten(0, 1), y.flatten(0, 1)))

    def learn(self, sums: Sums) -> Float[Tensor, "subsets p k"]:
        """Maps from each subset of the blocks to all layers; one penalty per layer and subset.

        Each subset is a cell in which the other features are blotted out. Features are scaled to
        one size first, or the penalty would see only the largest.
        """
        size = sums["xx"].sum(0).diagonal().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        used = self._used() / size
        xx = sums["xx"][:, None] * used[:, :, None] * used[:, None, :]
        xy = sums["xy"][:, None] * used[:, :, None]
        yy = sums["yy"][:, None].expand(-1, len(used), -1)
        widths = (xy.shape[-1] // self.layers,) * self.layers
        return fit_ridge(Moments(xx, xy, yy), widths).weights * used[:, :, None]

    def test(self, batch: Batch, learned: Float[Tensor, "subsets p k"]) -> Sums:
        """Squared errors of all subsets, from the moments of each block of sequences."""
        rows = (rows_by_block(part[:, :, None], batch.blocks) for part in self._rows(batch))
        moments = {name: t.double() for name, t in vars(_moments(*rows)).items()}
        maps = learned.unflatten(-1, (self.layers, -1))
        squares = torch.einsum("spld,sqld->slpq", maps, maps)
        xy = moments["xy"].unflatten(-1, (self.layers, -1))
        energy = moments["yy"].unflatten(-1, (self.layers, -1)).sum(-1)
        fitted = torch.einsum("bpq,slpq->bsl", moments["xx"], squares)
        error = energy[:, None] - 2 * torch.einsum("bpld,spld->bsl", xy, maps) + fitted
        return {"error": error, "energy": energy}

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Blocks, and updates of all layers, side by side at the judged positions."""
        judged = slice(*self.positions)
        updates = batch.capture.updates[:, :, judged]

        def blocks() -> Tensor:
            found = features(batch.context, self.ridge).values()
            return torch.cat([block[:, judged].to(updates) for block in found], -1)

        return batch.context.once(self, blocks), updates.permute(1, 2, 0, 3).flatten(2)

    def _used(self) -> Float[Tensor, "subsets p"]:
        """1 where a subset has the feature, else 0."""
        blocks = [[float(name in subset) for name in BLOCK_NAMES] for subset in SUBSETS.values()]
        wide = torch.tensor(self.widths)
        return torch.tensor(blocks, dtype=torch.float64).repeat_interleave(wide, -1)


def _moments(x: Float[Tensor, "*cells rows p"], y: Float[Tensor, "*cells rows k"]) -> Moments:
    return Moments(x.mT @ x, x.mT @ y, y.square().sum(-2))


@dataclass(frozen=True)
class Scores:
    """Test sums of one view."""

    error: Float[Tensor, "blocks subsets layers"]
    energy: Float[Tensor, "blocks layers"]

    def r2(
        self, weights: Float[Tensor, "draws blocks"], subset: str
    ) -> Float[Tensor, "draws layers"]:
        """R^2 of a subset of the blocks at each layer, with blocks of sequences weighted."""
        error = self.error[:, list(SUBSETS).index(subset)]
        return 1 - (weights @ error) / (weights @ self.energy)

    def median(self, subset: str, minus: str | None = None) -> Interval:
        """Median over layers of R^2, or of its excess over another subset."""
        return bootstrap_interval(lambda w: self._excess(w, subset, minus).nanquantile(0.5, -1))

    def by_layer(self, subset: str, minus: str | None = None) -> list[Interval]:
        """R^2 at each layer, or its excess over another subset."""
        layers = range(self.energy.shape[1])
        return [
            bootstrap_interval(partial(self._at, subset=subset, minus=minus, layer=layer))
            for layer in layers
        ]

    def _at(self, weights: Tensor, subset: str, minus: str | None, layer: int) -> Tensor:
        return self._excess(weights, subset, minus)[:, layer]

    def _excess(self, weights: Tensor, subset: str, minus: str | None) -> Tensor:
        r2 = self.r2(weights, subset)
        return r2 if minus is None else r2 - self.r2(weights, minus)


class LayerReconstruction:
    """Reconstructs each layer's attention output from steps of known algorithms."""

    name = "layer_reconstruction"
    place = 40
    rests_on = frozenset({"streams", "updates"})
    question = "Which step of which algorithm does each layer's attention take?"

    def stages(self, setting: Setting) -> tuple[Reconstruction, ...]:
        """One regression; the widths of its blocks are read off a single sequence."""
        sequences = setting.task.sample(1, generator_for(0))
        blocks = features(Context(sequences, setting.task.problem(sequences)), setting.ridge)
        widths = tuple(block.shape[-1] for block in blocks.values())
        judged = setting.windows.judged
        return (Reconstruction(setting.ridge, judged, widths, setting.layers),)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Judges the median layer, and names the better family at each."""
        (stage,) = self.stages(setting)
        scores = {view: Scores(**results[stage, view].sums) for view in stage.views}
        subject, another = scores[SUBJECT], scores[ANOTHER]
        metrics = _metrics(subject)
        controls = _controls(scores)
        outcome = _outcome(metrics, controls)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=outcome,
            statement=_statement(metrics, controls, subject),
            metrics=metrics,
            controls=controls,
            does_not_show=(
                "That the layer takes this step: outputs that agree on these sequences may be "
                "computed otherwise. The blocks are correlated, so that a low unique share does "
                "not exclude a block; layers after the first may act on what earlier ones wrote."
            ),
            tables=(_table(subject, another),),
            figures=_figures(subject, another),
        )


def _outcome(metrics: dict[str, Metric], controls: dict[str, Metric]) -> Outcome:
    """Learning shows in blocks that explain the layer, beyond the controls and the tokens."""
    whole, share = metrics["full_r2"], metrics["context_share"]
    bar = max(EXPLAINED, *(_hi(controls[f"{view}_full_r2"]) for view in (ANOTHER, TWIN)))
    if _lo(whole) > bar and _lo(share) > MARGIN:
        return "supports"
    return "contradicts" if _hi(whole) < bar or _hi(share) < MARGIN else "inconclusive"


def _lo(metric: Metric) -> float:
    return metric.value if metric.lo is None else metric.lo


def _hi(metric: Metric) -> float:
    return metric.value if metric.hi is None else metric.hi


def _metrics(subject: Scores) -> dict[str, Metric]:
    r2 = "held-out R^2 of the attention output, median over layers, reconstructed from"
    return {
        "full_r2": Metric.of(subject.median("all"), f"{r2} all blocks"),
        "gradient_r2": Metric.of(
            subject.median("gradient_step"), f"{r2} C q, G q, C G q, s_t and s_t-1"
        ),
        "least_squares_r2": Metric.of(
            subject.median("least_squares"),
            f"{r2} (G + lambda)^-1 q, C (G + lambda)^-1 q, s_t and s_t-1",
        ),
        "context_share": Metric.of(
            subject.median("all", minus="tokens"),
            "full R^2 minus that of s_t and s_t-1 alone, median over layers",
        ),
        "gradient_minus_least_squares": Metric.of(
            subject.median("gradient_step", minus="least_squares"),
            "R^2 of the gradient step's blocks minus that of the least squares blocks, "
            "median over layers",
        ),
    }


def _controls(scores: dict[str, Scores]) -> dict[str, Metric]:
    families = {
        "full_r2": "all",
        "gradient_r2": "gradient_step",
        "least_squares_r2": "least_squares",
    }
    return {
        f"{view}_{name}": Metric.of(scores[view].median(subset), f"{name}, in the view {view}")
        for view in (ANOTHER, TWIN)
        for name, subset in families.items()
    }


def better_family(subject: Scores) -> list[str]:
    """For each layer the family that is better by more than EQUIVALENT at 95 %, or neither."""
    return [_leader(gap) for gap in subject.by_layer("gradient_step", minus="least_squares")]


def _leader(gap: Interval) -> str:
    if gap.lo > EQUIVALENT:
        return "gradient step"
    return "least squares" if gap.hi < -EQUIVALENT else "neither"


def _statement(metrics: dict[str, Metric], controls: dict[str, Metric], subject: Scores) -> str:
    better = better_family(subject)
    layers = {
        family: ", ".join(str(i + 1) for i, name in enumerate(better) if name == family)
        for family in dict.fromkeys(better)
    }
    named = "; ".join(
        f"{family} reconstructs better at {'layers' if ',' in places else 'layer'} {places}"
        for family, places in layers.items()
    )
    value = {name: f"{metric.value:.3f}" for name, metric in {**metrics, **controls}.items()}
    return (
        f"At the median layer the blocks explain {value['full_r2']} of the attention output "
        f"(blocks of another sequence {value[f'{ANOTHER}_full_r2']}; the permuted twin's output "
        f"{value[f'{TWIN}_full_r2']}), {value['context_share']} of it beyond the tokens. Blocks of "
        f"a gradient step alone explain {value['gradient_r2']}, of least squares alone "
        f"{value['least_squares_r2']}. {named[0].upper()}{named[1:]}."
    )


def _table(subject: Scores, another: Scores) -> Table:
    """One row per layer and block; layer l is the attention between streams l - 1 and l."""
    ones = torch.ones(1, len(subject.energy), dtype=torch.float64)
    whole = subject.r2(ones, "all")[0]
    frames = []
    for block in ROWS:
        r2 = subject.r2(ones, block)[0]
        unique = whole - subject.r2(ones, REST[block])[0] if block in REST else r2
        frames.append(
            pd.DataFrame(
                {
                    "layer": range(1, len(r2) + 1),
                    "block": block,
                    "r2": r2.numpy(),
                    "unique_r2": unique.numpy(),
                    "control_r2": another.r2(ones, block)[0].numpy(),
                }
            )
        )
    frame = pd.concat(frames).sort_values("layer", kind="stable", ignore_index=True)
    return Table("layer_reconstruction", frame)


def _figures(subject: Scores, another: Scores) -> tuple[Figure, ...]:
    lines = (
        ("all blocks", subject, "all"),
        ("gradient step", subject, "gradient_step"),
        ("least squares", subject, "least_squares"),
        ("tokens alone", subject, "tokens"),
        ("all blocks of another sequence", another, "all"),
    )
    ones = torch.ones(1, len(subject.energy), dtype=torch.float64)
    alone = torch.stack([subject.r2(ones, block)[0] for block in BLOCK_NAMES], 1)
    return (
        LineChart(
            name="reconstruction_by_layer",
            title="Reconstruction of each layer's attention output",
            caption="Held-out R^2 over the judged positions, with 95 % intervals over sequences.",
            x_label="layer",
            y_label="R^2",
            series=tuple(_series(label, scores, subset) for label, scores, subset in lines),
        ),
        HeatMap(
            name="reconstruction_by_block",
            title="What a single block reconstructs",
            caption="Held-out R^2 of each block of features alone.",
            x_label="block",
            y_label="layer",
            value_label="R^2",
            x=BLOCK_NAMES,
            y=tuple(str(layer + 1) for layer in range(len(alone))),
            values=tuple(map(tuple, alone.tolist())),
        ),
    )


def _series(label: str, scores: Scores, subset: str) -> Series:
    points = scores.by_layer(subset)
    return Series(
        label=label,
        x=[float(layer + 1) for layer in range(len(points))],
        y=[point.value for point in points],
        lo=[point.lo for point in points],
        hi=[point.hi for point in points],
        role="control" if "another" in label or subset == "tokens" else "model",
    )


NAMED = {"layer_reconstruction": LayerReconstruction()}
