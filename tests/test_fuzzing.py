"""Mutated files end as they should, and the judge would see it if they did not."""

import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing.campaign import campaign
from fuzzing.cases import Case, Mutation
from fuzzing.judge import GROWTH, wrong_with
from fuzzing.mutations import MUTATIONS
from fuzzing.seeds import Seed, all_seeds, write_all
from fuzzing.supervisor import Supervisor

COUNT, WARM_UP = 160, 80
CHEAP = (
    *("native-linear", "native-mesa", "torch", "torch-preset", "safetensors", "flax-pickle"),
    *("flax-pickle-list", "garg", "adapter", "series", "hugging-face-gpt2", "hugging-face-parts"),
    *("tokenizer-old-files", "mesa-net", "recipe", "training"),
)


def command(arguments: list[str]) -> None:
    from probe.cli import main

    if arguments[0] not in ("analyze", "track"):  # seconds each
        main(arguments)


@pytest.fixture(scope="module")
def seeds() -> dict[str, Seed]:
    import probe.cli  # once, not in every worker
    import probe.doctor
    import probe.models.bridge  # noqa: F401

    return {name: all_seeds()[name] for name in CHEAP}


@pytest.fixture(scope="module")
def place(seeds: dict[str, Seed], tmp_path_factory: Any) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzzing")
    write_all(folder, seeds)
    yield folder


def test_mutated_files_are_read_or_refused(seeds: dict[str, Seed], place: Path) -> None:
    with Supervisor(command, seeds, place) as supervisor:
        tally = campaign(supervisor, COUNT, number=0)
    assert not tally.failures
    assert tally.growth(WARM_UP) < GROWTH
    assert {name for name, _ in tally.counts} == set(seeds)
    refused = sum(count for (_, outcome), count in tally.counts.items() if outcome == "refused")
    assert COUNT / 4 < refused < COUNT  # the mutations bite, and not all of them


def raises(arguments: list[str]) -> None:
    raise KeyError("model")


def hangs(arguments: list[str]) -> None:
    while True:
        pass


def waits(arguments: list[str]) -> None:
    time.sleep(60)


def takes_memory(arguments: list[str]) -> None:
    bytearray(1700 << 20)


def is_refused_memory(arguments: list[str]) -> None:
    bytearray(1 << 40)


def dies(arguments: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def says_two_lines(arguments: list[str]) -> None:
    print("mesaprobe: one\nmesaprobe: two", file=sys.stderr)
    sys.exit(2)


def ends_with_one(arguments: list[str]) -> None:
    raise SystemExit(1)


BROKEN = {
    raises: "traceback",
    hangs: "hang",
    waits: "hang",
    takes_memory: "peak of memory",
    is_refused_memory: "memory",
    dies: "died (-9)",
    says_two_lines: "not one line",
    ends_with_one: "traceback",
}
UNCHANGED = Case("safetensors", 0, ())


@pytest.mark.parametrize("broken", BROKEN, ids=lambda run: run.__name__)
def test_control_what_is_broken_is_seen(broken: Any, seeds: dict[str, Seed], place: Path) -> None:
    soon = {"seconds": 1.5, "idle": 1.5} if BROKEN[broken] == "hang" else {}
    with Supervisor(broken, seeds, place, **soon) as supervisor:
        assert wrong_with(supervisor.outcome(UNCHANGED)) == BROKEN[broken]


KEPT: list[bytes] = []


def leaks(arguments: list[str]) -> None:
    KEPT.append(b"x" * (4 << 20))


def test_control_a_leak_is_seen(seeds: dict[str, Seed], place: Path) -> None:
    with Supervisor(leaks, seeds, place) as supervisor:
        tally = campaign(supervisor, 80, number=0)
    assert not tally.failures
    assert tally.growth(warm_up=10) > GROWTH


def test_a_case_can_be_made_again(place: Path, tmp_path: Path) -> None:
    """Every kind changes something, and the same way each time."""
    (place / "recipe" / "table.csv").write_text("step,loss\n1,0.5\n")
    for kind in MUTATIONS:
        folders = [tmp_path / f"{kind}-{copy}" for copy in "ab"]
        for folder in folders:
            mutations = tuple(Mutation(kind, number) for number in range(4))
            for name in ("safetensors", "torch", "tokenizer-old-files", "flax-pickle", "recipe"):
                plain = Case(name, 0, mutations).to_dict()
                Case.from_dict(plain).prepare(place, folder / name)
        one, two = map(content, folders)
        assert one == two or kind == "torch_file"  # the old form of torch.save holds addresses
        names = {path.partition("/")[0] for path in one}
        assert any(content(place / name) != content(folders[0] / name) for name in names)


def content(folder: Path) -> dict[str, object]:
    """Files by name, and what stands in the place of files."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode, size = path.lstat().st_mode, path.lstat().st_size
        readable = stat.S_ISREG(mode) and size < 2**26
        found[path.relative_to(folder).as_posix()] = (mode, path.read_bytes() if readable else size)
    return found
