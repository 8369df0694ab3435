"""Language models without a task: the audit and the atlas of their heads, through the command."""

import json
import socket

import pandas as pd
import pytest
import torch
from mesa_net_folder import write_mesa_net
from tiny_language_models import language_folder

OPTIMIZERS = {"gradient step", "least squares", "step or least squares"}
ISSUED = ("gpt2", "gpt_neox", "llama", "qwen2", "gemma")


@pytest.fixture
def offline(monkeypatch):
    """Every socket is refused."""

    def refuse(*given, **named):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def survey(command, model, out, *options):
    said = command("analyze", model, "--out", out, "--sequences", 64, "--length", 24, *options)
    assert said.code == 0, said.err
    results = json.loads((out / "results.json").read_text())
    return results, pd.read_csv(out / "tables" / "heads.csv"), said


@pytest.mark.slow
@pytest.mark.parametrize("family", ISSUED)
def test_random_models_of_every_family_pass_and_have_no_optimizer(
    command, tmp_path, offline, family
):
    results, heads, said = survey(
        command, language_folder(tmp_path / family, family), tmp_path / "o"
    )
    assert results["verdict"] is None and results["task"]["name"] == "text"
    assert len(results["audit"]) == 8 and all(check["ok"] for check in results["audit"])
    assert len(heads) == 12 and not OPTIMIZERS & set(heads["name"])
    assert "No head is an optimizer" in said.out


def test_a_text_is_read_and_told_again_the_same(command, tmp_path, offline):
    model = language_folder(tmp_path / "gpt2", "gpt2", words=True)
    text = tmp_path / "text.txt"
    numbers = torch.randint(9, (2000,), generator=torch.Generator().manual_seed(0))
    text.write_text(" ".join(map(str, numbers.tolist())))
    first, heads, _ = survey(command, model, tmp_path / "a", "--text", text)
    again, _, _ = survey(command, model, tmp_path / "b", "--text", text)
    assert first == again and first["task"]["params"]["text"] == "text.txt"
    assert not OPTIMIZERS & set(heads["name"])
    short = command("analyze", model, "--text", text, "--sequences", 128, "--length", 24)
    assert "83 windows of 24 tokens" in short.problem


def test_a_mesa_net_reads_as_least_squares(command, tmp_path, offline):
    folder = write_mesa_net(tmp_path / "mesa")
    results, heads, _ = survey(command, folder, tmp_path / "out")
    assert all(check["ok"] for check in results["audit"])
    assert set(heads["name"]) == {"least squares"}
    assert float(heads["ridge_r2"].min()) >= 0.99


def test_a_wrong_hook_takes_the_atlas_with_it(command, tmp_path, monkeypatch):
    from probe.models.bridge import BridgedModel
    from probe.models.hooked import Heads

    heads = BridgedModel.heads

    def swapped(self, layer, cache):
        seen = heads(self, layer, cache)
        return Heads(seen.keys, seen.queries, seen.values, seen.gathered)

    monkeypatch.setattr(BridgedModel, "heads", swapped)
    model = language_folder(tmp_path / "gpt2", "gpt2")
    said = command("analyze", model, "--out", tmp_path / "out", "--sequences", 64, "--length", 24)
    assert said.code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["findings"] == []
    wrong = [check["name"] for check in results["audit"] if not check["ok"]]
    assert wrong == ["rule of queries, keys and values"]
    assert wrong[0] in results["left_out"]["head_atlas"]
    assert wrong[0] in (tmp_path / "out" / "report.html").read_text()


def test_options_that_do_not_go_together(command, tiny, tmp_path):
    model = language_folder(tmp_path / "gpt2", "gpt2")
    assert "--text and --length" in command("analyze", tiny, "--length", 20).problem
    assert "no such file or folder" in command("analyze", "owner/model").problem
    assert "64 are the least" in command("analyze", model, "--sequences", 63).problem
    assert "no task of its own" not in command("analyze", model, "--task", "linear").problem
