"""Memory of this process and of the machine, as the system tells it."""

import os
import resource
from contextlib import suppress
from pathlib import Path

from probe.allocator import release_freed_memory

CONTROL_GROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self")


def peak_bytes() -> int:
    """The most that this process has held, since `restart_peak` where the system can forget."""
    return _told(PROCESS / "status", "VmHWM") or _largest()


def held_bytes() -> int:
    """What this process holds now, or the most that it held where the system does not tell."""
    return _told(PROCESS / "status", "VmRSS") or _largest()


def restart_peak() -> None:
    """Gives back what is free and lets the peak begin anew; elsewhere than on Linux it stays."""
    release_freed_memory()
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def free_bytes() -> int | None:
    """What this process may still take, by the system and by its control groups; None: untold."""
    told = _told(Path("/proc/meminfo"), "MemAvailable")
    limits = [] if told is None else [told]
    for folder in _control_groups():
        with suppress(OSError, ValueError):
            most, used = (int((folder / name).read_text()) for name in _names(folder))
            limits.append(max(most - used, 0))
    if not limits:
        with suppress(OSError, ValueError):
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def _control_groups() -> list[Path]:
    """The folders of the groups that this process is in, and of those around them."""
    try:
        lines = (PROCESS / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds in ("", "memory"):
            group = CONTROL_GROUPS / kinds / path.lstrip("/")
            found += [group, *group.parents[: len(Path(path).parts) - 1]]
    return found


def _names(folder: Path) -> tuple[str, str]:
    """The files of a limit and of what is used, in either version of control groups."""
    if (folder / "memory.max").exists():
        return "memory.max", "memory.current"
    return "memory.limit_in_bytes", "memory.usage_in_bytes"


def _told(file: Path, name: str) -> int | None:
    """A line of a file that tells KiB by name."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
