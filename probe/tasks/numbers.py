"""Linear regression as numbers in a text, for language models: "x 31 72 y 45", one line per pair.

Numbers are shown as whole numbers from 0 to an even top; what is shown as n has the value
(n - top / 2) / (top / 2), so that values lie in [-1, 1] around 0. Every number is a single token,
so that each question stands right before one token, and every line has as many tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from probe.errors import InputError
from probe.models.hooked import LanguageModel
from probe.problem import InContextProblem
from probe.sampling import generator_for, uniform
from probe.tasks.base import Sequences, Windows, growing_windows
from probe.tasks.few_shot import pairs_problem
from probe.tasks.functions import Linear

LEAST_TOP, LEAST_POINTS = 8, 8  # coarser numbers, or fewer examples, show no regression
LINES, SAMPLES = 3, 4  # of the texts that are tokenised to find and to check the layout


@dataclass(frozen=True)
class UniformWeights:
    """Entries U(-1, 1) / width, so that w . x of inputs in [-1, 1] stays there."""

    def matrices(
        self, count: int, rows: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch rows width"]:
        """Weights in float64."""
        return uniform(generator, -1.0, 1.0, count, rows, width) / width


@dataclass(frozen=True)
class Numerals:
    """The whole numbers 0 to `top` and their values.

    Attributes:
        top: The largest number, even.
        answers: The token of each number where an answer stands.
    """

    top: int
    answers: tuple[int, ...]

    @property
    def half(self) -> int:
        """What is shown for the value 0, and how many numbers make a value of 1."""
        return self.top // 2

    def values(self) -> Float[Tensor, " numbers"]:
        """The value of each number, in float64."""
        return torch.arange(-self.half, self.half + 1, dtype=torch.float64) / self.half

    def shown(self, values: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """The nearest number of each value in [-1, 1]."""
        return (values * self.half).round().long().clamp(-self.half, self.half) + self.half


@dataclass(frozen=True)
class LineTokens:
    """How lines become tokens: some before the first number, then one stretch per line.

    Attributes:
        before: Tokens up to the first number.
        stretch: Tokens from the first number of a line to the first of the next.
        places: Where numbers stand in a stretch: the inputs, then the answer.
        numbers: The token of each number at each of these places.
    """

    before: tuple[int, ...]
    stretch: tuple[int, ...]
    places: tuple[int, ...]
    numbers: tuple[tuple[int, ...], ...]

    @property
    def asked(self) -> slice:
        """The tokens right before the answers."""
        return slice(len(self.before) + self.places[-1] - 1, None, len(self.stretch))

    def length(self, lines: int) -> int:
        """Number of tokens."""
        return len(self.before) + len(self.stretch) * lines

    def lines(self, tokens: int) -> int:
        """How many lines have room in so many tokens."""
        return (tokens - len(self.before)) // len(self.stretch)

    def tokens(self, shown: Int[Tensor, "batch lines numbers"]) -> Int[Tensor, "batch tokens"]:
        """The tokens of whole lines."""
        batch, lines, _ = shown.shape
        stretches = torch.tensor(self.stretch).repeat(batch, lines, 1)
        for place, table, numbers in zip(self.places, self.numbers, shown.unbind(2), strict=True):
            stretches[:, :, place] = torch.tensor(table)[numbers]
        return torch.cat([torch.tensor(self.before).repeat(batch, 1), stretches.flatten(1)], 1)


@dataclass(frozen=True)
class NumberPrompts:
    """y = w . x + rounding, with w one draw per text; predict y from the lines before it and x.

    Inputs are uniform numbers. A tokenizer makes a task of it, see `bound_to`.

    Attributes:
        name: Name of the task.
        width: Numbers of an input.
        points: Number of lines, as many as the model reads.
        top: The largest number, where the tokenizer knows so many.
    """

    name: str
    width: int
    points: int
    top: int = 100

    def bound_to(self, model: LanguageModel) -> "BoundPrompts":
        """The task in the tokens of a model.

        Numbers and lines are fewer where the tokenizer or the model has no room for all; the
        parameters of the task say how many are left.

        Raises:
            InputError: No tokenizer, too few numbers that are single tokens, or too little room.
        """
        if model.tokenizer is None:
            raise InputError(f"task {self.name}: the checkpoint has no tokenizer to read text with")
        text = _Text(self.name, self.width, model.tokenizer)
        tokens = text.layout(self.top, model.vocabulary)
        room = self.points if model.longest is None else tokens.lines(model.longest)
        if room < LEAST_POINTS:
            raise InputError(
                f"task {self.name}: the model reads {model.longest} tokens, room for {room} lines; "
                f"{LEAST_POINTS} are the least"
            )
        numerals = Numerals(len(tokens.numbers[-1]) - 1, tokens.numbers[-1])
        task = BoundPrompts(self.name, self.width, min(self.points, room), numerals, tokens)
        text.check(task)
        return task


@dataclass(frozen=True)
class _Text:
    """The text of lines, and what a tokenizer makes of it."""

    task: str
    width: int
    tokenizer: Any = field(repr=False)

    def ids(self, lines: list[list[int]]) -> list[int]:
        """Ids of one line per list of numbers, the last of which is the answer.

        They stand behind the mark of a beginning, where the tokenizer has one.
        """
        text = "".join(f"x {' '.join(map(str, x))} y {y}\n" for *x, y in lines)
        start = getattr(self.tokenizer, "bos_token_id", None)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*([] if start is None else [start]), *ids]

    def layout(self, top: int, vocabulary: int) -> LineTokens:
        """Where numbers stand in a line, and the tokens of 0 to the largest even one up to top.

        Raises:
            InputError: Lines are cut unevenly, or too few numbers are single tokens.
        """
        zero, one = self._repeated(0), self._repeated(1)
        places = [at for at, (a, b) in enumerate(zip(zero, one, strict=False)) if a != b]
        slots = self.width + 1
        starts, inside = places[::slots], [at - places[0] for at in places[:slots]]
        if places != [start + at for start in starts for at in inside] or len(starts) != LINES:
            raise self._too_few(0)
        known = [zero]
        while len(known) <= top and self._single(ids := self._repeated(len(known)), known, places):
            known.append(ids)
        if len(known) <= LEAST_TOP or max(max(ids) for ids in known) >= vocabulary:
            raise self._too_few(len(known))
        kept = known[: (len(known) - 1) // 2 * 2 + 1]
        numbers = tuple(tuple(ids[at] for ids in kept) for at in places[:slots])
        stretch = zero[starts[0] : starts[1]]
        return LineTokens(tuple(zero[: starts[0]]), tuple(stretch), tuple(inside), numbers)

    def _repeated(self, number: int) -> list[int]:
        return self.ids([[number] * (self.width + 1)] * LINES)

    def _single(self, ids: list[int], known: list[list[int]], places: list[int]) -> bool:
        """Whether a number is one token at all places that reads as it, and nothing else moves."""
        if len(ids) != len(known[0]):
            return False
        moved = [at for at, (a, b) in enumerate(zip(ids, known[0], strict=True)) if a != b]
        read = {self.tokenizer.decode([ids[at]]).strip() for at in places}
        return moved == places and read == {str(len(known))}

    def _too_few(self, first: int) -> InputError:
        return InputError(
            f"task {self.task}: numbers 0 to {LEAST_TOP} at least must be single tokens in lines "
            f"of text; in this tokenizer {first} is not"
        )

    def check(self, task: "BoundPrompts") -> None:
        """Tokens that are put together must be those of the text as a whole."""
        shape = (SAMPLES, task.points, task.width + 1)
        shown = torch.randint(task.numerals.top + 1, shape, generator=generator_for(0))
        for lines, tokens in zip(shown.tolist(), task.line_tokens.tokens(shown), strict=True):
            ids = self.ids(lines)
            if ids[: len(tokens)] != tokens.tolist()[: len(ids)]:
                raise InputError(
                    f"task {task.name}: the tokenizer joins numbers with what stands beside them"
                )


@dataclass(frozen=True)
class BoundPrompts:
    """Number prompts in the tokens of a model.

    The problem has one position per line, where the pairs of earlier lines are known. Its keys,
    queries and targets are the values that are shown, so a target holds the rounding.

    Attributes:
        name: Name of the task.
        width: Numbers of an input.
        points: Number of lines.
        numerals: The numbers.
        line_tokens: How lines become tokens.
    """

    name: str
    width: int
    points: int
    numerals: Numerals
    line_tokens: LineTokens = field(repr=False)

    @property
    def teacher(self) -> Linear:
        """W with entries U(-1, 1) / width."""
        return Linear(UniformWeights())

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.line_tokens.length(self.points)

    @property
    def asked(self) -> slice:
        """The tokens right before the answers."""
        return self.line_tokens.asked

    @property
    def width_in(self) -> int:
        """A token is one id."""
        return 1

    @property
    def width_out(self) -> int:
        """One number."""
        return 1

    @property
    def windows(self) -> Windows:
        """The context grows from line to line."""
        return growing_windows(self.width, self.points)

    def inputs(
        self, count: int, lines: int, generator: torch.Generator
    ) -> Float[Tensor, "batch lines width"]:
        """Values of uniform numbers, in float64."""
        shape = (count, lines, self.width)
        return self.numerals.values()[
            torch.randint(self.numerals.top + 1, shape, generator=generator)
        ]

    def tokens(
        self, x: Float[Tensor, "batch lines width"], y: Float[Tensor, "batch lines 1"]
    ) -> Int[Tensor, "batch tokens"]:
        """The text of any number of lines."""
        return self.line_tokens.tokens(self.numerals.shown(torch.cat([x, y], -1)))

    def asking(
        self, x: Float[Tensor, "batch lines width"], y: Float[Tensor, "batch told 1"]
    ) -> Int[Tensor, "batch tokens"]:
        """The text up to the question of the last line, the only one without an answer."""
        last = self.asked.start + len(self.line_tokens.stretch) * (x.shape[1] - 1)
        return self.tokens(x, pad(y, (0, 0, 0, 1)))[:, : last + 1]

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Draws weights, then inputs."""
        functions = self.teacher.draw(count, self.width, generator)
        x = self.inputs(count, self.points, generator)
        oracle = functions(x)
        y = self.numerals.values()[self.numerals.shown(oracle)]
        told = torch.cat([torch.zeros_like(y[:, :1]), y], 1)
        return Sequences(
            tokens=self.tokens(x, y),
            # (x_i, y_{i-1}), and what follows the last.
            observations=torch.cat([pad(x, (0, 0, 0, 1)), told], -1).float(),
            oracle=oracle.float(),
            features=x.float(),
            teachers=functions.weights.float(),
            clipped_share=0.0,
        )

    def problem(self, sequences: Sequences) -> InContextProblem:
        """k_i = x_{i-1}, v_i = y_{i-1}, q_i = x_i, at every line i."""
        posed = pairs_problem(sequences.features, sequences.observations[:, 1:, -1:])
        return replace(posed, oracle=sequences.oracle)

    def params(self) -> Mapping[str, object]:
        """What is drawn, what is shown for it, and how long the text is."""
        return {
            "width": self.width,
            "points": self.points,
            "numbers": f"0 to {self.numerals.top}",
            "value": f"(number - {self.numerals.half}) / {self.numerals.half}",
            "teacher": "uniform weights in [-1, 1] / width",
            "length": self.length,
        }


PROMPTS = {
    prompts.name: prompts
    for prompts in (
        NumberPrompts("numbers-1d", width=1, points=24),
        NumberPrompts("numbers-2d", width=2, points=32),
        NumberPrompts("numbers-4d", width=4, points=41),
    )
}
