"""`python -m fuzzing`: many cases in several processes; ends with 1 if one ended as it must not."""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from fuzzing.campaign import READ, REFUSED, Tally, campaign
from fuzzing.cases import Case
from fuzzing.judge import GROWTH, wrong_with
from fuzzing.seeds import Seed, all_seeds, write_all
from fuzzing.supervisor import Supervisor
from fuzzing.warm import import_all
from fuzzing.worker import Ended

DEAR = 3  # the share of commands that take seconds
WARM_UP = 300  # cases, after which a worker has met every format several times


def main() -> int:
    asked = _asked()
    import_all()
    known, wanted = all_seeds(), asked.only.split(",")
    seeds = {name: one for name, one in known.items() if any(text in name for text in wanted)}
    with tempfile.TemporaryDirectory(prefix="fuzzing-seeds-") as folder:
        place = Path(folder)
        write_all(place, seeds)
        if asked.replay:
            return _replay(asked.replay, seeds, place)
        wrong = _unmutated(seeds, place, all_of_them=not asked.count)
        if asked.count and not wrong:
            shares = [asked.count // asked.jobs] * asked.jobs
            shares[0] += asked.count - sum(shares)
            with ProcessPoolExecutor(asked.jobs, get_context("fork")) as pool:
                jobs = [
                    pool.submit(_job, seeds, place, share, asked.seed * 1000 + job, asked.failures)
                    for job, share in enumerate(shares)
                ]
                return _tell([job.result() for job in jobs])
        return int(wrong)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzzing", description=__doc__)
    parser.add_argument(
        "--count",
        type=int,
        default=10_000,
        help="cases in all; 0: only the valid folders, with every command",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--jobs", type=int, default=2, help="processes that work at once")
    parser.add_argument("--only", default="", metavar="A,B", help="seeds with this in their name")
    parser.add_argument("--failures", type=Path, default=Path("fuzzing-failures.jsonl"))
    parser.add_argument("--replay", type=Path, help="run the cases of such a file again")
    return parser.parse_args()


def _command(arguments: list[str]) -> None:
    from probe.cli import main as run

    run(arguments)


def _unmutated(seeds: Mapping[str, Seed], place: Path, all_of_them: bool) -> bool:
    """The commands on the valid folders: each must end with 0, or the rest means nothing."""
    wrong = False
    with Supervisor(_command, seeds, place) as supervisor:
        for name, one in seeds.items():
            for number, command in enumerate(one.commands):
                if all_of_them or command.share > DEAR:
                    ended = supervisor.outcome(Case(name, number, ()))
                    if ended.code != 0 or wrong_with(ended):
                        print(f"{name}: {' '.join(command.arguments)}: {ended}", flush=True)
                        wrong = True
    return wrong


def _job(seeds: Mapping[str, Seed], place: Path, count: int, number: int, path: Path) -> Tally:
    def tell(case: Case, wrong: str, ended: Ended) -> None:
        last = ended.err.strip().splitlines()[-1:] or [""]
        print(f"{case.seed}: {wrong}: {last[0]:.200}", flush=True)
        plain = {**case.to_dict(), "wrong": wrong, "err": ended.err[-3000:]}
        with path.open("a") as file:
            file.write(json.dumps(plain) + "\n")

    with Supervisor(_command, seeds, place) as supervisor:
        return campaign(supervisor, count, number, tell)


def _replay(path: Path, seeds: Mapping[str, Seed], place: Path) -> int:
    """How the recorded cases end now."""
    still = 0
    with Supervisor(_command, seeds, place) as supervisor:
        for line in path.read_text().splitlines():
            case = Case.from_dict(json.loads(line))
            if case.seed in seeds:
                ended = supervisor.outcome(case)
                wrong = wrong_with(ended)
                still += wrong is not None
                print(
                    f"{case}\n  {wrong or 'as it should'}: {ended.err.strip()[-2000:]}", flush=True
                )
    return int(still > 0)


def _tell(tallies: list[Tally]) -> int:
    """Counts by seed and outcome, then what must stay small."""
    counts = sum((tally.counts for tally in tallies), Counter[tuple[str, str]]())
    outcomes = sorted(
        {outcome for _, outcome in counts}, key=lambda o: (o != READ, o != REFUSED, o)
    )
    names = sorted({name for name, _ in counts})
    width = max(map(len, names))
    print(f"{'':{width}}", *(f"{outcome:>12}" for outcome in outcomes))
    for name in names:
        print(f"{name:{width}}", *(f"{counts[name, outcome]:>12}" for outcome in outcomes))
    totals = (sum(counts[name, outcome] for name in names) for outcome in outcomes)
    print(f"{'all':{width}}", *(f"{total:>12}" for total in totals))
    growth = max(tally.growth(WARM_UP) for tally in tallies)
    failures = sum(len(tally.failures) for tally in tallies)
    print(f"slowest case: {max(tally.slowest for tally in tallies):.1f} s of CPU")
    print(f"highest peak of a case: {max(tally.highest for tally in tallies):.0f} MiB")
    print(
        f"memory of a worker since its first {WARM_UP} cases: {growth:+.1f} MiB, allowed {GROWTH:g}"
    )
    print(f"{counts.total()} cases, {failures} failures")
    return int(failures > 0 or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
