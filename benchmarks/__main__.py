"""Prints benchmarks as a table and appends the run to benchmarks/history.json.

`python -m benchmarks` runs all modules of this folder that have a function `measure`;
`python -m benchmarks mesa streaming` runs those named.
"""

import argparse
import importlib
import json
import pkgutil
import time
from collections.abc import Callable
from pathlib import Path

import benchmarks
from benchmarks.machine import Row, described, rates
from probe.allocator import keep_freed_memory
from probe.progress import print_table

HISTORY = Path(__file__).with_name("history.json")


def found() -> dict[str, Callable[[], list[Row]]]:
    """What can be run, by name of its module."""
    names = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_"]
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    return {name: m.measure for name, m in modules.items() if hasattr(m, "measure")}


def main() -> None:
    """Runs the benchmarks that are asked for, each shown as soon as it is there."""
    known = found()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--history", type=Path, default=HISTORY, help="where the run is appended")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(known)):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    keep_freed_memory()
    speeds = rates()
    print_table("Rates", ("", *(f"{n} threads" for n in _counts(speeds))), _rate_lines(speeds))
    rows: list[Row] = []
    for name in asked.names or known:
        new = [{"module": name, **row} for row in known[name]()]
        print_table(name, ("", "ratio", "ours, s", "peer, s", "peer", ""), [_line(r) for r in new])
        rows += new
    append(
        asked.history,
        {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "machine": described(),
            "rates": speeds,
            "rows": rows,
        },
    )


def append(history: Path, run: dict[str, object]) -> None:
    """Adds a run to a history."""
    runs = json.loads(history.read_text()) if history.exists() else []
    history.write_text(json.dumps([*runs, run], indent=1) + "\n")


def _counts(speeds: dict[str, dict[str, float]]) -> tuple[str, ...]:
    return tuple(next(iter(speeds.values())))


def _rate_lines(speeds: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    return [(name, *(f"{rate:.1f}" for rate in by.values())) for name, by in speeds.items()]


def _line(row: Row) -> tuple[str, ...]:
    numbers = (f"{row['ratio']:.2f}", f"{row['ours_s']:.3f}", f"{row['peer_s']:.3f}")
    return (str(row["name"]), *numbers, str(row["peer"]), str(row.get("note", "")))


if __name__ == "__main__":
    main()
