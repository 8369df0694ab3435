"""A run that is killed at random moments, and the same command again, until it gets through.

    python tests/killing.py CHECKPOINT --kills 50 --out DIR [options of analyze]

kills the command so many times, each time a random while after it began, lets it finish then, and
compares its results with those of a run that nobody disturbed.
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RUN = "import sys; from probe.cli import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class Killed:
    """What became of the runs: those that died, what the last one wrote, and what is left over."""

    deaths: int
    results: bytes
    leftovers: tuple[str, ...]


def analyze(arguments: list[str], out: Path) -> "subprocess.Popen[bytes]":
    """The command, begun."""
    whole = [sys.executable, "-c", RUN, "analyze", *arguments, "--out", str(out)]
    return subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def undisturbed(arguments: list[str], out: Path) -> tuple[bytes, float]:
    """The results of a run that is left alone, and its seconds."""
    started = time.monotonic()
    if analyze(arguments, out).wait():
        raise RuntimeError("the undisturbed run failed")
    return (out / "results.json").read_bytes(), time.monotonic() - started


def killed(arguments: list[str], out: Path, kills: int, within: float, seed: int = 0) -> Killed:
    """Kills the command `kills` times, each within so many seconds, then lets it finish.

    A run that got through before its moment came is begun anew, so that every kill hits one.
    """
    chance = random.Random(seed)
    deaths = 0
    while deaths < kills:
        (out / "results.json").unlink(missing_ok=True)
        process = analyze(arguments, out)
        try:
            process.wait(chance.uniform(0, within))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            deaths += 1
            print(f"killed {deaths} of {kills}", flush=True)
    if analyze(arguments, out).wait():
        raise RuntimeError("the last run failed")
    hidden = tuple(str(path) for path in out.rglob("*") if path.name.startswith("."))
    left = ("unfinished",) if (out / "unfinished").exists() else ()
    return Killed(deaths, (out / "results.json").read_bytes(), hidden + left)


def main() -> int:
    """Prints what became of it; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    known, options = parser.parse_known_args()
    arguments = [known.checkpoint, *options]
    expected, seconds = undisturbed(arguments, known.out / "undisturbed")
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    found = killed(arguments, known.out / "killed", known.kills, seconds, known.seed)
    same = found.results == expected
    print(f"{found.deaths} deaths; same bytes: {same}; left over: {found.leftovers or 'nothing'}")
    return 0 if same and not found.leftovers else 1


if __name__ == "__main__":
    sys.exit(main())
