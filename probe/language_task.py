"""A language model on number prompts, as a subject that the whole instrument can analyse."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from probe.checkpoints.base import Subject
from probe.errors import InputError
from probe.models.hooked import LanguageModel, Tokens
from probe.models.number_reader import NumberReader
from probe.tasks.base import Task
from probe.tasks.numbers import PROMPTS, BoundPrompts, NumberPrompts

NO_NUMBERS = "numbers in text"


def find_prompts(name: str) -> NumberPrompts:
    """The number prompts of that name.

    Raises:
        InputError: No such prompts.
    """
    if name not in PROMPTS:
        raise InputError(f"unknown task {name!r} of numbers in text; known: {', '.join(PROMPTS)}")
    return PROMPTS[name]


def posed(subject: Subject, prompts: NumberPrompts) -> tuple[Subject, BoundPrompts]:
    """The subject as a model of regression on numbers in text, and its task.

    Raises:
        InputError: It reads no text, or numbers are no single tokens of its tokenizer.
    """
    model = subject.model
    if not isinstance(model, LanguageModel):
        raise InputError(f"{subject.name}: reads vectors, task {prompts.name} is a text")
    task = prompts.bound_to(model)
    reader = NumberReader(model, task.numerals)
    original = subject.original and _reading(reader, subject.original)
    return replace(subject, model=reader, task=task.name, original=original), task


def _reading(
    reader: NumberReader, original: Callable[[Tokens], Tensor]
) -> Callable[[Tokens], Tensor]:
    """What the model said before it was wrapped, read alike."""
    return lambda tokens: reader.expected(original(tokens))


def reader_of(subject: Subject) -> NumberReader:
    """The reader of a posed subject.

    Raises:
        InputError: It is not one.
    """
    if not isinstance(subject.model, NumberReader):
        raise InputError(f"{subject.name}: does not read {NO_NUMBERS}")
    return subject.model


def lacks_numbers(subject: Subject, task: Task) -> str | None:
    """What other subjects and tasks lack for an analysis of number prompts."""
    both = isinstance(subject.model, NumberReader) and isinstance(task, BoundPrompts)
    return None if both else NO_NUMBERS
