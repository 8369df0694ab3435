"""Does the output follow a solver's state that is swapped, written or erased inside the model?

Hypothesis: at some layer the stream holds the state z = g(G) q of a solver, such as the residual of
the steps so far, and the blocks above act on it: swapping z between two sequences at one position
moves the output by C_t T(G_t) dz, with one curve T for all sequences (fitted on half of the pairs,
scored on the other half). z is what the next block acts on, as the growth of the model's own
read-out tells it; where that follows no such curve, or the stream does not hold it, it is the
residual of a ridge regression or of a few gradient steps whose probe gains most likelihood over
layer 0. z is read by a linear probe and written along its pattern, with the query, the token before
and the layer's own prediction held fixed.
Controls: the raw query and the prediction, each as far as it goes beyond the state, which is held;
random directions; the twin.
Test statistic: share of the output's change explained through the context, beyond a direct
term; rows with an effect under 2 % of the output are not scored. T then predicts two other edits:
the next layer's state written into this one, and the state erased (LEACE, Belrose et al. 2023).
Refuted by: controls that transfer as well. Cost: some hundred sequences per edit, layer and place.
"""

import pandas as pd
import torch
from torch import Tensor

from probe.analysis import Setting
from probe.causal.interchange_stage import EDITS, SWAPS, InterchangeStage, Learned
from probe.causal.states import known_states
from probe.causal.transfer import GAP, Transfer, fit_response, loss_after, score
from probe.checkpoints.base import Subject
from probe.findings import Finding, IntervalChart, LineChart, Metric, Outcome, Series, Table
from probe.rule import Thresholds
from probe.stages import Results
from probe.statistics import Interval, against_margin, bootstrap_interval, holm
from probe.tasks.base import Task, lacks_questions
from probe.views import SUBJECT, TWIN

FIT_SEQUENCES, TEST_SEQUENCES = 2048, 512
CONTROLS = ("query", "prediction", "random")
VISIBLE = 0.02  # of the output's energy
HELD = 0.05  # R^2 that a state's probe must gain over layer 0


class Interchange:
    """Edits the state of a solver in the stream and watches the output."""

    name = "interchange"
    place = 60
    rests_on = frozenset({"streams", "edits"})
    question = "Does the output follow a solver's state that is swapped inside the model?"

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Positions of edits are counted in tokens."""
        return lacks_questions(task)

    def stages(self, setting: Setting) -> tuple[InterchangeStage, ...]:
        """One stage; nothing for models of one block, whose state is the query itself."""
        if setting.layers < 2:
            return ()
        first, stop = setting.windows.judged
        third = max(1, (stop - first) // 3)
        half = setting.sequences / 2
        return (
            InterchangeStage(
                setting.layers,
                (first + third, first + 2 * third),
                setting.knots,
                known_states(setting.knots, setting.mu_top),
                min(1.0, FIT_SEQUENCES / half),
                min(1.0, TEST_SEQUENCES / half),
            ),
        )

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if some layer's state transfers, above every control."""
        stages = self.stages(setting)
        if not stages:
            return self._silent("One block: the state before it is the query itself.")
        subject, twin = (_Rows(stages[0], results, view) for view in (SUBJECT, TWIN))
        layer = subject.best()
        if layer is None:
            return self._silent("No swap of a state moves the output by 2 % of its energy.")
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=_outcome(subject, layer),
            statement=_statement(subject, layer),
            metrics=_metrics(subject, layer),
            controls=_controls(subject, twin, layer),
            does_not_show=(
                "That the layer holds exactly this state: its pattern may carry others that go "
                "with it. What transfers at one layer need not be all that the output rests on."
            ),
            tables=(Table("interchange", subject.table()),),
            figures=(_figure(subject, layer), _by_layer(subject)),
        )

    def _silent(self, statement: str) -> Finding:
        return Finding(
            self.name, self.question, "inconclusive", statement, {}, {}, "Nothing was tested."
        )


class _Rows:
    """The transfers of one view, by layer (from 1) and edit; positions are added up."""

    def __init__(self, stage: InterchangeStage, results: Results, view: str):
        measured = results[stage, view]
        self.learned: Learned = measured.learned
        self.gram, energy = measured.sums["gram"], measured.sums["energy"]
        self.layers = range(1, stage.layers)
        self.transfers = {
            (layer, name): self._transfer(layer, name, energy)
            for layer in self.layers
            for name in EDITS
        }

    def _grams(self, layer: int, edit: str) -> list[Tensor]:
        at = self.gram[:, :, layer - 1, EDITS.index(edit)]
        return list(at.unbind(1))

    def _transfer(self, layer: int, edit: str, energy: Tensor) -> Transfer:
        """Swaps fit T themselves; writing and erasing must follow the T of the swapped state."""
        whole = None
        frozen = edit not in SWAPS
        states = self._grams(layer, "state")
        for place, gram in enumerate(self._grams(layer, edit)):
            response = fit_response(states[place]) if frozen else None
            found = score(gram, energy[:, place], response)
            whole = found if whole is None else whole.plus(found)
        if whole is None:
            raise ValueError("no position")
        return whole

    def losses(self, layer: int) -> tuple[Interval, Interval]:
        """Loss per place after erasing the state, as a ratio to before: measured, predicted."""
        pairs = zip(self._grams(layer, "erasing"), self._grams(layer, "state"), strict=True)
        after = [loss_after(gram, fit_response(state)) for gram, state in pairs]
        before = torch.stack([g[:, GAP, GAP] for g in self._grams(layer, "erasing")]).sum(0)

        def ratio(found: list[Tensor]) -> Interval:
            total = torch.stack(found).sum(0)
            return bootstrap_interval(lambda weights: (weights @ total) / (weights @ before))

        return ratio([measured for measured, _ in after]), ratio([p for _, p in after])

    def gained(self, layer: int) -> float:
        """R^2 of the state's probe at the layer minus layer 0."""
        here, below = self.learned.decodability[layer - 1]
        return here - below

    def scored(self, layer: int, edit: str) -> bool:
        """Whether the edit moved the output enough to be judged."""
        return self.transfers[layer, edit].effect >= VISIBLE

    def best(self) -> int | None:
        """The layer whose state stands highest above its highest control."""
        layers = [layer for layer in self.layers if self.scored(layer, "state")]
        return max(layers, key=lambda layer: self.margin(layer).value, default=None)

    def margin(self, layer: int) -> Interval:
        """Transfer of the state above the highest control that is scored."""
        state = self.transfers[layer, "state"]
        rivals = [self.transfers[layer, c] for c in CONTROLS if self.scored(layer, c)]
        if not rivals:
            return state.through_context
        return min((state.above(rival) for rival in rivals), key=lambda gap: gap.lo)

    def adjusted(self, needed: float) -> dict[int, float]:
        """P-values against a transfer of no more than `needed`, by scored layer (Holm 1979)."""
        layers = [layer for layer in self.layers if self.scored(layer, "state")]
        states = [self.transfers[layer, "state"] for layer in layers]
        tests = [against_margin(state.gain, state.moved, needed).above for state in states]
        return dict(zip(layers, holm(tests), strict=True))

    def table(self) -> pd.DataFrame:
        """One row per layer and edit."""
        rows = []
        for (layer, edit), found in self.transfers.items():
            r2, through = found.r2, found.through_context
            rows.append(
                {
                    "layer": layer,
                    "edit": edit,
                    "state": str(self.learned.states[layer - 1]),
                    "effect": found.effect,
                    "scored": found.effect >= VISIBLE,
                    "r2": r2.value,
                    "r2_lo": r2.lo,
                    "r2_hi": r2.hi,
                    "through_context": through.value,
                    "through_context_lo": through.lo,
                    "through_context_hi": through.hi,
                }
            )
        return pd.DataFrame(rows)


def _outcome(rows: _Rows, layer: int) -> Outcome:
    """The state must transfer, after adjustment over the layers, and beyond every control.

    What the stream does not hold cannot be swapped: that it does not transfer speaks against
    nothing.
    """
    thresholds, margin = Thresholds.load(), rows.margin(layer)
    state = rows.transfers[layer, "state"].through_context
    if rows.adjusted(thresholds.transfer)[layer] < thresholds.level and margin.lo > 0:
        return "supports"
    if rows.gained(layer) < HELD:
        return "inconclusive"
    low = state.hi < thresholds.transfer / 2
    return "contradicts" if low or margin.hi < 0 else "inconclusive"


def _metrics(rows: _Rows, layer: int) -> dict[str, Metric]:
    state = rows.transfers[layer, "state"]
    share = "share of the output's change that is explained"
    measured, predicted = rows.losses(layer)
    found = {
        "layer": Metric(layer, "the layer whose state stands highest above its controls"),
        "constant": Metric(
            rows.learned.states[layer - 1].constant,
            f"the number in the name of the state: {rows.learned.states[layer - 1]}",
        ),
        "decodability": Metric(
            rows.learned.decodability[layer - 1][0],
            "R^2 of the state's probe at that layer, on the fit split",
        ),
        "decodability_gain": Metric(
            rows.gained(layer),
            "R^2 of the state's probe at that layer minus layer 0",
        ),
        "transfer_r2": Metric.of(state.r2, f"{share} when the state is swapped between sequences"),
        "transfer_through_context": Metric.of(
            state.through_context, f"{share} through the context, beyond a direct term"
        ),
        "above_controls": Metric.of(
            rows.margin(layer), "transfer through the context minus the highest scored control's"
        ),
        "effect": Metric(state.effect, "energy of the output's change over that of the output"),
        "loss_after_erasing": Metric.of(measured, "loss with the state erased over loss before"),
        "loss_predicted": Metric.of(predicted, "the same as the swapped state's T predicts"),
    }
    for edit, words in (
        ("writing", "the next layer's state written into this one"),
        ("erasing", "the state erased"),
    ):
        if rows.scored(layer, edit):
            found[f"{edit}_r2"] = Metric.of(
                rows.transfers[layer, edit].r2, f"{share} by the swapped state's T: {words}"
            )
    return found


def _controls(rows: _Rows, twin: _Rows, layer: int) -> dict[str, Metric]:
    words = {
        "query": "the raw query swapped, the state held",
        "prediction": "the decoded prediction swapped, the state held",
        "random": "random directions swapped",
    }
    found = {
        f"{name}_through_context": Metric.of(
            rows.transfers[layer, name].through_context, f"through the context: {text}"
        )
        for name, text in words.items()
        if rows.scored(layer, name)
    }
    if twin.scored(layer, "state"):
        found["permuted_twin_through_context"] = Metric.of(
            twin.transfers[layer, "state"].through_context, "the same in the permuted twin"
        )
    return found


def _statement(rows: _Rows, layer: int) -> str:
    state, margin = rows.transfers[layer, "state"], rows.margin(layer)
    measured, predicted = rows.losses(layer)
    through = state.through_context
    absent = (
        "" if rows.gained(layer) >= HELD else " The stream hardly holds it: no test of the model."
    )
    return (
        f"Swapping the state, {rows.learned.states[layer - 1]}, between sequences "
        f"after layer {layer} moves the output by {state.effect:.0%} of its energy; one curve over "
        f"the context's eigenvalues explains {through.value:.3f} [{through.lo:.3f}, "
        f"{through.hi:.3f}] of that, {margin.value:.2f} [{margin.lo:.2f}, {margin.hi:.2f}] more "
        f"than of any control. Erasing it multiplies the loss by {measured.value:.2f}; that curve "
        f"predicts {predicted.value:.2f}.{absent}"
    )


def _figure(rows: _Rows, layer: int) -> IntervalChart:
    """Every scored edit at the best layer."""
    shown = [name for name in EDITS if rows.scored(layer, name)]
    shares = {name: rows.transfers[layer, name].through_context for name in shown}
    shown.sort(key=lambda name: -shares[name].value)
    kinds = {"state": "solver", "writing": "solver", "erasing": "solver"}
    return IntervalChart(
        name="interchange",
        title=f"Edits of the stream after layer {layer}",
        caption=(
            "Share of the output's change that is explained through the context, with 95 % "
            "intervals. Writing and erasing are predicted by the curve of the swapped state."
        ),
        x_label="explained through the context",
        labels=tuple(_LABELS[name] for name in shown),
        values=tuple(shares[name].value for name in shown),
        lo=tuple(shares[name].lo for name in shown),
        hi=tuple(shares[name].hi for name in shown),
        groups=tuple(kinds.get(name, "null") for name in shown),
    )


def _by_layer(rows: _Rows) -> LineChart:
    """Every swap that moves the output enough, through the layers."""
    series = []
    for name in SWAPS:
        layers = [layer for layer in rows.layers if rows.scored(layer, name)]
        shares = [rows.transfers[layer, name].through_context for layer in layers]
        if layers:
            series.append(
                Series(
                    label=_LABELS[name],
                    x=layers,
                    y=[share.value for share in shares],
                    lo=[share.lo for share in shares],
                    hi=[share.hi for share in shares],
                    role="model" if name == "state" else "control",
                )
            )
    return LineChart(
        name="interchange_by_layer",
        title="Swaps through the layers",
        caption=(
            "Share of the output's change that is explained through the context, with 95 % "
            "intervals; swaps that move the output by less than 2 % of its energy are left out."
        ),
        x_label="after layer",
        y_label="explained through the context",
        series=tuple(series),
    )


_LABELS = {
    "state": "state swapped",
    "query": "query swapped, state held",
    "prediction": "prediction swapped, state held",
    "random": "random directions swapped",
    "writing": "next layer's state written",
    "erasing": "state erased",
}


NAMED = {"interchange": Interchange()}
