"""Devices are chosen by name, trusted after a known computation, and change no verdict."""

import json
from pathlib import Path

import pytest
import torch

from probe import devices
from probe.devices import choose, complaint
from probe.errors import InputError

ROOT = Path(__file__).parents[1]


def test_the_cpu_agrees_with_itself(tiny_model):
    assert complaint("cpu") is None
    assert complaint("cpu", tiny_model("mesa")) is None


def test_a_device_that_lacks_a_kernel_is_not_trusted(monkeypatch):
    def absent(*given):
        raise NotImplementedError

    expected = torch.cholesky_solve
    monkeypatch.setattr(
        torch,
        "cholesky_solve",
        lambda given, factor: (expected if given.dtype == torch.float64 else absent)(given, factor),
    )
    assert "least squares cannot be computed there" in complaint("cpu")


def test_a_kernel_that_is_a_little_wrong_is_seen(monkeypatch):
    right = torch.cholesky_solve

    def wrong(*given):
        said = right(*given)
        return said * 1.01 if said.dtype == torch.float32 else said

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cholesky_solve", wrong)
        assert "least squares is off by 0.01" in complaint("cpu")
    monkeypatch.setattr(devices, "_moved", lambda model, device: lambda x: model(x) * 1.01)
    assert "a small transformer is off by 0.01" in complaint("cpu")


def test_mps_is_taken_by_name_only_and_after_its_computation(monkeypatch, command, tiny):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device mps: there is no MPS device"):
        choose("mps")
    said = command("analyze", tiny, "--device", "mps")
    assert said.code == 2 and said.err.count("\n") == 1 and "no MPS device" in said.err
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("auto") == "cpu"
    monkeypatch.setattr(devices, "complaint", lambda device, model: None)
    assert choose("mps") == "mps"
    monkeypatch.setattr(devices, "complaint", lambda device, model: "it is off by 0.5 there")
    with pytest.raises(InputError, match=r"off by 0\.5 there; use --device cpu"):
        choose("mps")


def verdict_of(subject, device="cpu"):
    """Class, family and response of a short run."""
    from probe.pipeline import Request, analyze
    from probe.plan import Plan
    from probe.tasks.base import find_task

    plan = Plan(find_task(subject.task), 256, 0, workers=1, device=device)
    report = analyze(Request(subject, plan, only=("spectral_response",)))
    (response,) = report.findings
    return report.verdict, response.metrics


@pytest.fixture(scope="session")
def demo():
    from probe.checkpoints.base import load

    return load(ROOT / "examples" / "demo")


@pytest.mark.slow
def test_weights_in_bfloat16_are_widened_and_read_the_same(demo, tmp_path):
    from safetensors.torch import load_file, save_file

    from probe.checkpoints.base import load

    source, folder = demo.source.path, tmp_path / "half"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    state = load_file(source / "model.safetensors")
    half = {name: part.bfloat16() for name, part in state.items()}
    save_file(half, folder / "model.safetensors")
    subject = load(folder)
    held = subject.model.state_dict()
    assert {part.dtype for part in held.values()} == {torch.float32}
    assert all(torch.equal(held[name], part.float()) for name, part in half.items())
    assert subject.sha256 != demo.sha256  # rounding is another model, and is told as one
    verdict, _ = verdict_of(subject)
    published = json.loads((ROOT / "reports/gallery/demo/results.json").read_text())["verdict"]
    assert (verdict.algorithm_class, verdict.family) == (published["class"], published["family"])
    assert verdict.algorithm_class == "least_squares"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_and_cpu_give_the_same_verdict(demo):
    (here, near), (there, far) = verdict_of(demo), verdict_of(demo, "cuda")
    assert here.instruments_ok and there.instruments_ok
    assert (here.algorithm_class, here.family) == (there.algorithm_class, there.family)
    for name, metric in near.items():
        assert far[name].value == pytest.approx(metric.value, rel=1e-3, abs=1e-4)
