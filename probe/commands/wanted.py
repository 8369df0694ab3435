"""What `analyze` was asked for, as plain values, so that `merge` can ask for it again."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from probe.commands.options import choose_device, with_task
from probe.errors import InputError

if TYPE_CHECKING:
    from probe.language import Survey
    from probe.pipeline import Request

SEQUENCES, WINDOWS = 4096, 256  # of a task; of a text


@dataclass(frozen=True)
class Wanted:
    """The options of `analyze` that say what is analysed and how, by their names there."""

    checkpoint: str
    preset: str | None
    task_name: str | None
    text: str | None
    length: int | None
    allow_hub: bool
    adapter: str | None
    sequences: int | None
    seed: int
    only: str
    thorough: bool
    protocol: str
    discriminate: bool
    batch_size: int
    workers: int
    device: str

    def anywhere(self) -> "Wanted":
        """The same from any working directory."""
        from probe.checkpoints.base import Source

        source = Source(Path(self.checkpoint), adapter=self.adapter).anywhere()
        return replace(self, checkpoint=str(source.path), adapter=source.adapter)

    def read(self) -> "Request | Survey":
        """The checkpoint, and what is to be done with it.

        Raises:
            InputError: It cannot be read, or cannot be asked that.
        """
        from probe.checkpoints.base import load
        from probe.language import Survey
        from probe.models.hooked import LanguageModel
        from probe.pipeline import Request
        from probe.plan import Plan
        from probe.text import reading_of

        subject = load(self.checkpoint, self.preset, self.allow_hub, self.adapter)
        if isinstance(subject.model, LanguageModel) and self.task_name is None:
            text = None if self.text is None else Path(self.text)
            reading = reading_of(subject.model, text, self.length)
            return Survey(subject, reading, self.sequences or WINDOWS, self.seed)
        if self.text is not None or self.length is not None:
            raise InputError("--text and --length are for language models without --task")
        subject, task = with_task(subject, self.task_name)
        count = SEQUENCES if self.sequences is None else self.sequences
        device = choose_device(self.device, subject.model)
        plan = Plan(task, count, self.seed, self.batch_size, self.workers, device)
        names = tuple(name for name in self.only.split(",") if name)
        published = self.protocol != "held-out"
        return Request(subject, plan, names, self.thorough, published, self.discriminate)
