"""Fixtures. `probe` is imported inside them, so that shapes and types are checked in the tests."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from command_line import Outcome
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from probe.models.transformer import ModelConfig, SequenceTransformer
    from probe.tasks.linear_dynamics import LinearDynamics

settings.register_profile(
    "mesaprobe",
    deadline=None,
    derandomize=True,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("mesaprobe")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first: begun last, they would leave a worker idle at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


TINY_HEADS, TINY_WIDTH, TINY_D_HEAD = 2, 3, 4


@pytest.fixture(scope="session")
def paper_data() -> Path:
    """The folder of published checkpoints and results."""
    place = os.environ.get("MESAPROBE_PAPER_DATA")
    if not place:
        pytest.skip("MESAPROBE_PAPER_DATA does not point to the published experiment_results")
    folder = Path(place)
    if not folder.is_dir():
        pytest.skip(f"MESAPROBE_PAPER_DATA: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def small_task() -> "LinearDynamics":
    """Linear dynamics with 3 channels and 12 positions."""
    from probe.tasks.linear_dynamics import LinearDynamics
    from probe.tasks.teachers import Orthogonal

    return LinearDynamics("small", Orthogonal(), width=TINY_WIDTH, length=12)


@pytest.fixture(scope="session")
def small_constructed_task(small_task: "LinearDynamics") -> "LinearDynamics":
    """The small task on constructed tokens."""
    from probe.tasks.linear_dynamics import ConstructedTokens

    return replace(small_task, name="small-constructed", layout=ConstructedTokens())


@pytest.fixture(scope="session")
def tiny_config() -> "Callable[[str], ModelConfig]":
    """Shape of a two-block model of one kind of attention, with every option switched on."""
    from probe.models.attention import KINDS
    from probe.models.transformer import BlockConfig, ModelConfig

    def build(kind: str) -> ModelConfig:
        attention = KINDS[kind](TINY_HEADS, TINY_D_HEAD)
        blocks = (
            BlockConfig(attention, positions=6, d_mlp=5, clip=2.0),
            BlockConfig(attention, unit=("q", "k")),
        )
        return ModelConfig(TINY_WIDTH, 6, TINY_WIDTH, blocks, projected=True)

    return build


@pytest.fixture(scope="session")
def tiny_model(
    tiny_config: "Callable[[str], ModelConfig]",
) -> "Callable[[str], SequenceTransformer]":
    """A random model of one kind of attention: "linear", "softmax" or "mesa"."""
    from probe.models.transformer import SequenceTransformer
    from probe.sampling import generator_for

    def build(kind: str, seed: int = 0) -> SequenceTransformer:
        model = SequenceTransformer(tiny_config(kind))
        model.initialise(0.4, generator_for(seed))
        return model.eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def tiny_subject(tiny_model, tmp_path_factory):
    """The tiny model with linear attention, written to a folder and loaded."""
    from probe.checkpoints.base import load
    from probe.checkpoints.native import write_native

    folder = tmp_path_factory.mktemp("subject") / "tiny"
    write_native(tiny_model("linear"), "linear", folder)
    return load(folder)


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs the command in an empty folder."""
    from probe.cli import main

    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*arguments: object) -> Outcome:
        code = 0
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        seen = capsys.readouterr()
        return Outcome(code, seen.out, seen.err)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A random softmax model of two blocks for linear dynamics, as a native folder."""
    from probe.checkpoints.native import write_native
    from probe.models.attention import KINDS
    from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
    from probe.sampling import generator_for

    attention = KINDS["softmax"](1, 4)
    blocks = (BlockConfig(attention, positions=6), BlockConfig(attention, d_mlp=5))
    model = SequenceTransformer(ModelConfig(10, 12, 10, blocks, projected=True))
    model.initialise(0.3, generator_for(0))
    assert sum(p.numel() for p in model.parameters()) < 2000
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_native(model, "linear", folder)
    return folder
