"""What a subject is made of, and what is installed."""

from dataclasses import dataclass

from probe import checkpoints, presets, registry, solvers, tasks
from probe.analysis import installed_analyses
from probe.checkpoints.base import Subject
from probe.models.recipes import recipe_names
from probe.sampling import generator_for
from probe.tasks.base import Task

SEQUENCES = 256


@dataclass(frozen=True)
class HookSite:
    """A place in the forward pass where activations can be read or changed."""

    name: str
    shape: tuple[int, ...]
    bytes_per_batch: int


@dataclass(frozen=True)
class Description:
    """Tensors and hook sites of a subject on a batch of 256 sequences of its task."""

    subject: Subject
    task: Task
    sites: tuple[HookSite, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "name": self.subject.name,
            "format": self.subject.format,
            "task": self.task.name,
            "sha256": self.subject.sha256,
            "parameters": self.subject.parameters,
            "tensors": [vars(tensor) for tensor in self.subject.tensors],
            "missing": [],
            "unexpected": [],
            "hook_sites": [vars(site) for site in self.sites],
        }

    def tables(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """(title, columns, rows) of each table."""
        tensors: list[tuple[str, ...]] = [
            (t.name, t.source, "x".join(map(str, t.shape)), t.sha256[:12])
            for t in self.subject.tensors
        ]
        sites: list[tuple[str, ...]] = [
            (s.name, "x".join(map(str, s.shape)), f"{s.bytes_per_batch / 2**20:.1f}")
            for s in self.sites
        ]
        title = f"{self.subject.name}: {self.subject.parameters:,} parameters, all tensors matched"
        return [
            (title, ("tensor", "in the file", "shape", "sha256"), tensors),
            ("Hook sites", ("site", f"shape on {SEQUENCES} sequences", "MiB"), sites),
        ]


def describe_subject(subject: Subject, task: Task) -> Description:
    """Runs two sequences through the model and scales what they show to a batch."""
    tokens = task.sample(2, generator_for(0)).tokens
    _, cache = subject.model.run_with_cache(tokens)
    sites = []
    for name, value in cache.items():
        shape = (SEQUENCES, *value.shape[1:])
        size = value.element_size() * value.numel() // 2 * SEQUENCES
        sites.append(HookSite(name, shape, size))
    return Description(subject, task, tuple(sites))


def installed(kind: str) -> list[str]:
    """Names of one kind of plug-in."""
    if kind == "analyses":
        return list(installed_analyses())
    if kind == "recipes":
        return list(recipe_names())
    package = {"tasks": tasks, "solvers": solvers, "presets": presets, "formats": checkpoints}[kind]
    return list(registry.discover(package))
