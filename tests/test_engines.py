"""Whoever measures, and however the work is cut: the same bytes of results."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from command_line import Outcome

OPTIONS = ("--sequences", 256, "--only", "behaviour")


def results(folder: Path) -> bytes:
    return (folder / "results.json").read_bytes()


def run_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory) -> Path:
    """The report of a run in one process."""
    from probe.cli import main

    out = tmp_path_factory.mktemp("expected")
    main(["analyze", str(tiny), *map(str, OPTIONS), "--out", str(out)])
    return out


@pytest.fixture
def whole(expected, tmp_path) -> Path:
    """A copy of that report."""
    return Path(shutil.copytree(expected, tmp_path / "whole"))


def parts(command, tiny, of, *more) -> list[Outcome]:
    return [
        command("analyze", tiny, *OPTIONS, "--out", f"part{i}", "--shard", f"{i}/{of}", *more)
        for i in range(1, of + 1)
    ]


def test_parts_are_merged_in_two_rounds_to_the_same_bytes(command, tiny, whole):
    folders = ["part2", "part1"]
    assert all("of the fit half is done" in part.out for part in parts(command, tiny, 2))
    first = command("merge", *folders, "--out", "merged")
    assert first.code == 0 and "Run the commands of the parts again" in first.out
    alone = command("analyze", tiny, *OPTIONS, "--out", "part1", "--shard", "1/2")
    assert "of the test half is done" in alone.out
    missing = command("merge", *folders, "--out", "merged").err
    assert "part2" in missing and "has not finished its test" in missing
    assert all("of the test half is done" in part.out for part in parts(command, tiny, 2))
    last = command("merge", *folders, "--out", "merged")
    assert last.code == 0 and "Report: merged/report.html" in last.out
    assert results(Path("merged")) == results(whole)
    assert run_of(Path("merged"))["engine"] == "2 parts, merged"


def test_parts_that_do_not_belong_together_are_refused(command, tiny):
    one, two = parts(command, tiny, 2)
    assert one.code == two.code == 0
    assert "given are the parts 1" in command("merge", "part1", "--out", "merged").problem
    again = command("merge", "part1", "part1", "--out", "merged")
    assert "given are the parts 1, 1" in again.problem
    wrong = command("analyze", tiny, *OPTIONS, "--out", "part1", "--shard", "2/2")
    assert "holds another part than 2/2" in wrong.problem
    seed = command("analyze", tiny, *OPTIONS, "--seed", 1, "--out", "part2", "--shard", "2/2")
    assert seed.code == 0
    assert "seed differ" in command("merge", "part1", "part2", "--out", "merged").problem
    assert "part.json: No such file" in command("merge", "nowhere", "--out", "merged").problem


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/99"])
def test_a_part_that_cannot_be_is_refused(command, tiny, shard):
    said = command("analyze", tiny, *OPTIONS, "--shard", shard, "--out", "part")
    assert said.code == 2 and f"--shard {shard}" in said.err and "Traceback" not in said.err


def test_what_is_finished_is_not_done_again(command, tiny, whole):
    before = run_of(whole)
    again = command("analyze", tiny, *OPTIONS, "--out", whole, "--workers", 1)
    assert "Finished before" in again.out and run_of(whole) == before
    fresh = command("analyze", tiny, *OPTIONS, "--out", whole, "--workers", 1, "--fresh")
    assert "Finished before" not in fresh.out and run_of(whole)["workers"] == 1


def test_many_checkpoints_are_read_in_one_go(command, tiny, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("first", "second"):
        (folder / name).symlink_to(tiny)
    broken = tmp_path / "broken"
    broken.mkdir()
    said = command("analyze", folder, broken, *OPTIONS, "--out", "all")
    assert said.code == 2 and "not analysed:" in said.err and str(broken) in said.err
    assert results(Path("all/first")) and results(Path("all/second"))
    before = run_of(Path("all/first"))
    alone = command("analyze", folder, *OPTIONS, "--out", "all", "--workers", 1)
    assert alone.code == 0 and run_of(Path("all/first")) == before
    twice = command("analyze", folder / "first", folder / "first", *OPTIONS, "--out", "all")
    assert "two checkpoints are called first" in twice.problem


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--devices", "7"), "--devices 7"),
        (("--devices", "cpu,tpu"), "'tpu' is none of cpu"),
        (("--devices", "cpu", "--engine", "ray"), "a Ray cluster knows its own"),
    ],
)
def test_devices_that_are_not_there_are_refused(command, tiny, options, problem):
    said = command("analyze", tiny, *OPTIONS, *options)
    assert said.code == 2 and problem in said.err and "Traceback" not in said.err


@pytest.mark.slow
def test_processes_give_the_same_bytes(command, tiny, whole):
    out = Path("processes")
    assert command("analyze", tiny, *OPTIONS, "--devices", "cpu,cpu", "--out", out).code == 0
    assert results(out) == results(whole)
    assert run_of(out)["engine"] == "processes on cpu, cpu"


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_though_a_node_dies(command, tiny, whole, monkeypatch):
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra ray")
    import ray

    node = {"num_cpus": 1, "object_store_memory": 2**28}
    head = {**node, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**node) for _ in range(2)]
    try:
        cluster.wait_for_nodes()
        where = ("--engine", "ray", "--address", cluster.address)
        out = Path("ray")
        first = threading.Event()
        kill_after_the_first_lease(monkeypatch, first)
        killer = threading.Thread(target=lambda: first.wait(300) and cluster.remove_node(nodes[1]))
        killer.start()
        said = command("analyze", tiny, *OPTIONS, *where, "--out", out)
        killer.join()
        assert said.code == 0, said.err
        assert len([n for n in ray.nodes() if n["Alive"]]) == 2
        assert results(out) == results(whole)
        assert run_of(out)["engine"] == "Ray on cpu"
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_after_the_first_lease(monkeypatch, first: threading.Event) -> None:
    """Sets the event when the first sums have come back."""
    from probe.engines import remote

    come_back = remote.gathered_of

    def tell(found):
        first.set()
        return come_back(found)

    monkeypatch.setattr(remote, "gathered_of", tell)


@pytest.mark.slow
def test_a_run_that_is_killed_loses_nothing(tiny, tmp_path):
    from killing import killed, undisturbed

    arguments = [str(tiny), *map(str, OPTIONS)]
    expected, seconds = undisturbed(arguments, tmp_path / "undisturbed")
    found = killed(arguments, tmp_path / "killed", kills=2, within=seconds, seed=os.getpid())
    assert found.deaths == 2 and found.results == expected and not found.leftovers


def test_what_the_file_system_forbids_is_one_line(command, tiny, monkeypatch):
    from probe.checkpoints import base

    def forbidden(*given):
        raise PermissionError(13, "Permission denied", "/there/model")

    monkeypatch.setattr(base, "load", forbidden)
    assert "/there/model: Permission denied" in command("analyze", tiny).problem

    def bug(*given):
        raise OSError("no file is to blame")

    monkeypatch.setattr(base, "load", bug)
    with pytest.raises(OSError, match="no file is to blame"):
        command("analyze", tiny)


def test_what_a_message_quotes_is_short_and_printable(command, tiny):
    problem = command("analyze", tiny, "--task", "\x1b[31m" + "k" * 10_000).problem
    assert problem.isprintable() and len(problem) < 2_100 and "unknown task" in problem
