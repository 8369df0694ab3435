"""Refuses a run that cannot fit before it begins, and says what would."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from probe.errors import InputError
from probe.footprint import PROBES, Bytes, needed
from probe.language import Survey
from probe.memory import free_bytes
from probe.pipeline import Request

SMALLER = (64, 16)  # sequences of a forward pass that are proposed
FEWEST = "spectral_response"  # what every run measures anyway


@dataclass(frozen=True)
class Room:
    """Bytes that are free for a run; None: the system does not tell.

    Attributes:
        memory: Of the machine.
        disk: Where the report is written.
        device: Of the accelerator.
    """

    memory: int | None
    disk: int | None
    device: int | None

    def lacks(self, need: Bytes) -> str | None:
        """What is needed beside what there is, where that is less; in words."""
        for wanted, free, of in (
            (need.memory, self.memory, "memory"),
            (need.device, self.device, "memory of the device"),
            (need.disk, self.disk, "disk"),
        ):
            if free is not None and wanted > free:
                return f"about {_told(wanted)} of {of} and {_told(free)} are free"
        return None


def room_for(asked: Request | Survey, folder: Path) -> Room:
    """What there is for a run that writes into a folder, which need not be there yet."""
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    return Room(
        memory=free_bytes(),
        disk=shutil.disk_usage(there).free,
        device=_device_bytes(_device_of(asked)),
    )


def refuse(asked: Request | Survey, folder: Path) -> None:
    """Refuses a run that cannot fit. It takes well below a second: the model is not run.

    Args:
        asked: The run.
        folder: Where its report would be.

    Raises:
        InputError: It needs more memory or disk than there is; one line says what would fit.
    """
    lacking = room_for(asked, folder).lacks(needed(asked))
    if lacking is None:
        return
    for options, smaller in _smaller(asked):
        need = needed(smaller)
        if room_for(smaller, folder).lacks(need) is None:
            advice = f"{options} would need {_told(need.memory)} and {_told(need.disk)} of disk"
            break
    else:
        advice = "no smaller batches, fewer workers or analyses would fit"
    raise InputError(f"this run needs {lacking}; {advice}")


def _smaller(asked: Request | Survey) -> Iterator[tuple[str, Request]]:
    """Runs that need less and less, each with the options that ask for it."""
    if isinstance(asked, Survey):
        return
    plan = asked.plan
    device = {"": plan.device, "--device cpu ": "cpu"} if plan.device != "cpu" else {"": "cpu"}
    batches = {"": plan.batch_size}
    batches |= {f"--batch-size {size} ": size for size in SMALLER if size < plan.batch_size}
    workers = {"": plan.workers, "--workers 1 ": 1} if plan.workers > 1 else {"": 1}
    only = {"": asked.only}
    if not asked.only or PROBES in asked.only:
        rest = tuple(name for name in asked.only if name != PROBES) or (FEWEST,)
        only[f"--only {','.join(rest)} "] = rest
    for names, analyses in only.items():
        for place, where in device.items():
            for threads, count in workers.items():
                for size, batch in batches.items():
                    options = f"{place}{threads}{size}{names}".strip()
                    less = replace(plan, workers=count, batch_size=batch, device=where)
                    if options:
                        yield options, replace(asked, plan=less, only=analyses)


def _device_of(asked: Request | Survey) -> str:
    return "cpu" if isinstance(asked, Survey) else asked.plan.device


def _device_bytes(device: str) -> int | None:
    """Free memory of a CUDA device; others share that of the machine, or do not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else None


def _told(count: int) -> str:
    """GiB, or MiB below one."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
