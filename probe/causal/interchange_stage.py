"""The measurement behind interchange: states swapped, written and erased in the stream.

On the fit split it learns, for every layer and position, which state the stream holds best and
what reads and writes it; on the test split it edits the stream and keeps the products of
what the edits should do and what they did.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.causal.erasure import erasing
from probe.causal.patterns import Products, pattern, ridge_solve
from probe.causal.states import SolverState, acted_on, filtered_queries, step_knots
from probe.causal.transfer import Place, columns
from probe.sampling import generator_for, normal
from probe.stages import Batch, Sums
from probe.views import SUBJECT, TWIN

SWAPS = ("state", "query", "prediction", "random")
EDITS = (*SWAPS, "writing", "erasing")
LEAST = 1e-6  # of a share that a probe leaves: float32 streams
SILENT = 1e-4  # share of the largest growth of the read-out below which a block adds nothing
STEPPED, HELD = 0.95, 0.9  # R^2 of a block's growth by its state, and of the state's probe


@dataclass(frozen=True)
class Edit:
    """A linear change of the stream: dh = du B with du = source @ read - own @ read.

    Attributes:
        reads: Reads u from the stream of this layer.
        pattern: Writes a change of u.
    """

    reads: Float[Tensor, "d_model width"]
    pattern: Float[Tensor, "width d_model"]


@dataclass(frozen=True)
class Plan:
    """What to do at one layer and position.

    Attributes:
        swaps: One edit per name in SWAPS.
        next_reads: Reads the same state from the stream of the next layer.
        erase: The affine change that erases the state: dh = [h, held] @ erase.
    """

    swaps: dict[str, Edit]
    next_reads: Float[Tensor, "d_model width"]
    erase: Float[Tensor, "d_model_and_held d_model"]


@dataclass(frozen=True)
class Learned:
    """What the fit split gives.

    Attributes:
        states: The state of each layer, from layer 1 on.
        decodability: R^2 of the probe of that state, and of the same state at layer 0.
        plans: By layer and position.
    """

    states: tuple[SolverState, ...]
    decodability: tuple[tuple[float, float], ...]
    plans: dict[tuple[int, int], Plan]


@dataclass(frozen=True)
class Held:
    """Columns of the quantities beside the stream: 1, q, the token before, the output, states."""

    width: int
    out: int

    @property
    def fixed(self) -> list[int]:
        """1, q and the token before."""
        return list(range(1 + 2 * self.width))

    @property
    def without_query(self) -> list[int]:
        """1 and the token before."""
        return [0, *range(1 + self.width, 1 + 2 * self.width)]

    @property
    def query(self) -> slice:
        """The query itself."""
        return slice(1, 1 + self.width)

    @property
    def output(self) -> slice:
        """The model's prediction."""
        return slice(1 + 2 * self.width, 1 + 2 * self.width + self.out)

    def state(self, index: int) -> slice:
        """One of the candidates."""
        start = 1 + 2 * self.width + self.out + index * self.width
        return slice(start, start + self.width)


@dataclass(frozen=True)
class InterchangeStage:
    """Swaps, writes and erases states.

    Attributes:
        layers: Number of blocks.
        positions: Where.
        knots: Knots of T.
        candidates: The states that are looked for.
        fit_share: Share of the fit split that is looked at.
        test_share: Share of the test split.
    """

    layers: int
    positions: tuple[int, ...]
    knots: tuple[float, ...]
    candidates: tuple[SolverState, ...]
    fit_share: float
    test_share: float
    views: tuple[str, ...] = (SUBJECT, TWIN)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Products of the stream with the quantities beside it, by position and layer."""
        batch = batch.head(self.fit_share)
        sums: dict[str, list[Tensor]] = {}
        for t in self.positions:
            stream = batch.capture.layers[:, :, t].double()
            readouts = batch.capture.readouts[:, :, t].double()
            filtered = filtered_queries(batch.context.spectrum, t, step_knots(self.knots))
            beside = self._beside(batch, t, filtered)
            steps = (batch.context.moments.cross[:, t].double() @ filtered).flatten(0, 1)
            growth = readouts.diff(dim=0).flatten(1).mT
            found = {
                "hh": stream.mT @ stream,
                "hv": stream.mT @ beside,
                "vv": beside.mT @ beside,
                "hy": stream.mT @ readouts,
                "steps": steps.mT @ steps,
                "growth": steps.mT @ growth,
                "grown": growth.square().sum(0),
                "rows": torch.tensor(float(len(growth))),
            }
            for name, value in found.items():
                sums.setdefault(name, []).append(value)
        return {name: torch.stack(values) for name, values in sums.items()}

    def _beside(
        self, batch: Batch, t: int, filtered: Float[Tensor, "batch d_k hats"]
    ) -> Float[Tensor, "batch quantities"]:
        """The quantities of `Held`, with the hats of the query in place of what is acted on."""
        problem, spectrum = batch.context.problem, batch.context.spectrum
        mu, query = spectrum.mu[:, t], spectrum.query[:, t]
        left = torch.stack([query * state.residual(mu) for state in self.candidates], -1)
        states = spectrum.basis[:, t] @ left
        parts = [
            torch.ones(len(states), 1, dtype=torch.float64),
            problem.queries[:, t],
            problem.keys[:, t],
            batch.capture.output[:, t],
            states.mT.flatten(1),
            filtered.mT.flatten(1),
        ]
        return torch.cat([part.double() for part in parts], -1)

    def learn(self, sums: Sums) -> Learned:
        """For each layer its state, then what reads and writes it at each position."""
        total = {name: value.sum(0) for name, value in sums.items()}
        growth = {name: total[name].sum(0) for name in ("steps", "growth", "grown", "rows")}
        acted = acted_on(
            growth["steps"],
            growth["growth"],
            growth["grown"],
            int(growth["rows"]),
            step_knots(self.knots),
        )
        known, out = len(self.candidates), total["hy"].shape[-1]
        hats = len(growth["steps"])
        held = Held((total["vv"].shape[-1] - 1 - out) // (2 + known + hats), out)
        total |= _with_curves(total, held, known, [state.curve for state in acted])
        states, seen, plans = [], [], {}
        for layer in range(1, self.layers):
            adds = next((i for i in range(layer, len(acted)) if acted[i].share > SILENT), layer)
            index, decoded = self._choose(total, held, layer, known + adds, acted[adds].r2)
            states.append((*self.candidates, *acted)[index])
            seen.append(decoded)
            for place, t in enumerate(self.positions):
                plans[layer, t] = _plan(total, held, layer, place, held.state(index))
        return Learned(tuple(states), tuple(seen), plans)

    def _choose(
        self, total: Sums, held: Held, layer: int, acted: int, growth: float
    ) -> tuple[int, tuple[float, float]]:
        """The state that the next block acts on, if its growth shows one and the stream holds it.

        Otherwise the candidate whose probe gains most likelihood over layer 0, averaged over
        positions.
        """
        places = range(len(self.positions))

        def decoded(at: int, index: int) -> float:
            found = [_products(total, p, at).decodability(held.state(index)) for p in places]
            return sum(found) / len(found)

        pairs = {
            i: (decoded(layer, i), decoded(0, i)) for i in (*range(len(self.candidates)), acted)
        }
        best = max(pairs, key=lambda i: _log_gain(*pairs[i]))
        if growth >= STEPPED and pairs[acted][0] >= HELD:
            best = acted
        return best, pairs[best]

    def test(self, batch: Batch, learned: Learned) -> Sums:
        """Products of what the edits should do and what they did, by block."""
        batch = batch.head(self.test_share)
        grams, energies = [], []
        for t in self.positions:
            place = Place.at(batch.context, t, torch.tensor(self.knots, dtype=torch.float64))
            for layer in range(1, self.layers):
                grams.append(self._edited(batch, learned.plans[layer, t], place, layer, t))
            energies.append(batch.by_block(batch.capture.output[:, t].double().square().sum(-1)))
        shape = (len(self.positions), self.layers - 1, len(EDITS))
        if not grams:
            return {}
        gram = torch.stack(grams, 1).unflatten(1, shape[:2])
        return {"gram": gram, "energy": torch.stack(energies, 1)}

    def _edited(
        self, batch: Batch, plan: Plan, place: Place, layer: int, t: int
    ) -> Float[Tensor, "blocks edits columns columns"]:
        runner, capture = batch.capture.runner, batch.capture
        if runner is None:
            raise TypeError("a predictor without an inside cannot be edited")
        stream = capture.layers[:, :, : t + 1]
        changes = self._changes(batch, plan, layer, t)
        edited = stream[layer, :, t] + torch.stack([dh for _, dh in changes]).to(stream)
        outputs = runner.resume_last(stream[:-1, :, :t], edited, layer).double()
        before = capture.output[:, t].double()
        gap = batch.context.problem.targets[:, t].double() - before
        found = [
            columns(place, du, output - before, gap)
            for (du, _), output in zip(changes, outputs, strict=True)
        ]
        return torch.stack([batch.by_block(c.mT @ c) for c in found], 1)

    def _changes(self, batch: Batch, plan: Plan, layer: int, t: int) -> list[tuple[Tensor, Tensor]]:
        """(du, dh) of every edit."""
        own = batch.capture.layers[layer][:, t].double()
        changes = []
        for name in SWAPS:
            edit = plan.swaps[name]
            values = own @ edit.reads
            du = values.roll(1, 0) - values
            changes.append((du, du @ edit.pattern))
        state = plan.swaps["state"]
        du = batch.capture.layers[layer + 1][:, t].double() @ plan.next_reads - own @ state.reads
        changes.append((du, du @ state.pattern))
        problem = batch.context.problem
        ones = torch.ones(len(own), 1, dtype=torch.float64)
        fixed = torch.cat([own, ones, problem.queries[:, t], problem.keys[:, t]], -1)
        dh = fixed @ plan.erase
        changes.append((dh @ torch.linalg.pinv(state.pattern), dh))
        return changes


def _log_gain(here: float, before: float) -> float:
    """Log of what a probe leaves unexplained before over here; exact probes are rounded."""
    return math.log(max(1 - before, LEAST)) - math.log(max(1 - here, LEAST))


def _with_curves(total: Sums, held: Held, known: int, curves: list[tuple[float, ...]]) -> Sums:
    """The products with the hats of the query replaced by curves of them."""
    width, start = held.width, held.state(known).start
    weights = torch.tensor(curves, dtype=torch.float64)
    combine = torch.kron(weights.mT.contiguous(), torch.eye(width, dtype=torch.float64))
    change = torch.block_diag(torch.eye(start, dtype=torch.float64), combine)
    return {"hv": total["hv"] @ change, "vv": change.mT @ total["vv"] @ change}


def _products(total: Sums, place: int, layer: int) -> Products:
    return Products(total["hh"][place, layer], total["hv"][place, layer], total["vv"][place])


def _plan(total: Sums, held: Held, layer: int, place: int, state: slice) -> Plan:
    here = _products(total, place, layer)
    reads = here.probe(state)
    readout = ridge_solve(here.hh, total["hy"][place, layer])
    query, output = here.probe(held.query), here.probe(held.output)
    width = reads.shape[1]
    noise = normal(generator_for(0, layer, place + 1), len(reads), width)
    both = torch.cat([reads, readout], 1)
    swaps = {
        "state": Edit(reads, pattern(here, reads, readout, held.fixed)),
        "query": Edit(here.beyond(query, both), pattern(here, query, both, held.without_query)),
        "prediction": Edit(here.beyond(output, reads), pattern(here, output, reads, held.fixed)),
        "random": Edit(noise, pattern(here, noise, noise[:, :0], [0])),
    }
    next_reads = _products(total, place, layer + 1).probe(state)
    return Plan(swaps, next_reads, erasing(here, readout, held.fixed, state))
