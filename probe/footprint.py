"""Bytes that a run needs, from shapes alone.

Shapes decide what is captured, posed and summed up. How much of it is held at the same time was
read off runs of published models; there the sum is right to about a quarter.
"""

from dataclasses import dataclass

from probe.analysis import Asked, choose_analyses
from probe.audit import LARGEST_COPY
from probe.language import Survey
from probe.models.hooked import HookedModel, LanguageModel, SequenceModel
from probe.pipeline import Request
from probe.plan import FOLDS, PILOT, SHARD, Plan

REPORT, PER_FINDING = 2**18, 2**16  # bytes of a report and of each finding, by those in the gallery
FLOAT = 8  # bytes of the numbers in which problems are solved and sums are kept
COPIES = 6  # of a shard's captures and problems that its stages hold at a time
RESPONSE = 48 * 88  # columns of a response for each channel of the stream and of the values
PROBES, PROBING = "linear_probing", 2.5  # views whose sums are squares of the stream's width
PROBED = 2.5  # entries of what is probed, in those of C_t


@dataclass(frozen=True)
class Bytes:
    """Of memory, of disk and of an accelerator's memory; 0 where none is needed."""

    memory: int
    disk: int
    device: int = 0


@dataclass(frozen=True)
class Shapes:
    """Widths of a run: of tokens in a sequence, of the stream, of keys and values; layers, heads.

    Attributes:
        time: T.
        model: d_model.
        out: Width of a prediction.
        keys: d_k of the task's problem.
        values: d_v.
        layers: Blocks.
        heads: The most heads of a block.
        item: Bytes of a number in which the model computes.
        weights: Bytes of the model's parameters.
    """

    time: int
    model: int
    out: int
    keys: int
    values: int
    layers: int
    heads: int
    item: int
    weights: int

    @property
    def captured(self) -> int:
        """What is kept of a sequence: the stream, the updates, the read-outs and the output."""
        widths = (2 * self.layers + 1) * self.model + (self.layers + 2) * self.out
        return self.time * widths * self.item

    @property
    def posed(self) -> int:
        """Prefix moments and eigenvectors of a sequence, and as many for foreign pairs."""
        return 2 * self.time * (2 * self.keys**2 + self.keys * self.values) * FLOAT

    @property
    def passed(self) -> int:
        """What one block makes of a sequence while it passes."""
        return self.time * (2 * self.heads * self.time + 8 * self.model) * self.item

    def sums(self, probed: bool) -> int:
        """The sums of the fit split, in all their folds."""
        stream = (self.layers + 1) * self.model
        response = RESPONSE * self.values * stream
        targets = PROBED * self.keys * self.values
        probes = PROBING * FOLDS * self.time * stream * (self.model + targets)
        return round(response + probed * probes) * FLOAT


def shapes_of(model: HookedModel, time: int, keys: int = 0, values: int = 0) -> Shapes:
    """The shapes of a model on sequences of `time` tokens."""
    heads = [sites.count for layer in range(model.layers) if (sites := model.head_sites(layer))]
    parameters = list(model.parameters())
    assert isinstance(model, SequenceModel | LanguageModel)
    return Shapes(
        time=time,
        model=model.d_model,
        out=model.d_out if isinstance(model, SequenceModel) else model.vocabulary,
        keys=keys,
        values=values,
        layers=model.layers,
        heads=max(heads, default=1),
        item=max((part.itemsize for part in parameters), default=4),
        weights=sum(part.nbytes for part in parameters),
    )


def report_bytes(asked: Asked) -> int:
    """About what a report takes on disk."""
    return REPORT + PER_FINDING * (len(asked.analyses) + len(asked.jobs))


def needed(asked: Request | Survey) -> Bytes:
    """What a run takes beside the process and the model, which are there already.

    Raises:
        InputError: It asks for analyses that there are not.
    """
    return _of_survey(asked) if isinstance(asked, Survey) else _of_request(asked)


def _of_survey(asked: Survey) -> Bytes:
    shapes = shapes_of(asked.subject.model, asked.reading.length)
    audited = _audited(shapes)
    windows = 16 * (shapes.passed + shapes.captured)
    memory = max(audited, shapes.weights) + windows
    return Bytes(memory, REPORT + PER_FINDING)


def _of_request(asked: Request) -> Bytes:
    subject, plan = asked.subject, asked.plan
    chosen = choose_analyses(subject, plan.task, asked.only, asked.thorough)
    shapes = _shapes_on(subject.model, plan)
    sums = shapes.sums(any(one.name == PROBES for one in chosen.analyses))
    batch = min(plan.batch_size, SHARD)
    passing = batch * (shapes.passed + shapes.captured)
    models = 2 * plan.workers * shapes.weights
    shards = SHARD * COPIES * (2 * shapes.captured + shapes.posed) + sums // FOLDS
    on_cpu = plan.device == "cpu"
    swept = shapes.weights + sums + plan.workers * shards
    if on_cpu:
        swept += models + plan.workers * passing
    return Bytes(
        memory=max(_audited(shapes), swept),
        disk=2 * sums + report_bytes(chosen),  # the sums of both splits are kept on the way
        device=0 if on_cpu else models + plan.workers * passing,
    )


def _shapes_on(model: HookedModel, plan: Plan) -> Shapes:
    sequences = plan.draw(PILOT, 0, 1)
    problem = plan.task.problem(sequences)
    keys, values = problem.keys.shape[2], problem.values.shape[2]
    return shapes_of(model, sequences.tokens.shape[1], keys, values)


def _audited(shapes: Shapes) -> int:
    """The copies that an audit makes: as the model was, and in float64 where that is small."""
    exact = shapes.weights // shapes.item * FLOAT
    return shapes.weights + (exact if exact <= LARGEST_COPY else 0)
