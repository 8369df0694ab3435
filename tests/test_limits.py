"""A run that cannot fit is refused with one that does; a run that fits is not."""

import re
import time
from collections import namedtuple
from dataclasses import replace

import pytest

from probe import limits
from probe.errors import InputError
from probe.footprint import needed
from probe.language import Survey
from probe.limits import refuse
from probe.pipeline import Request
from probe.plan import Plan
from probe.tasks.base import find_task
from probe.text import RandomIds

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def request_(tiny):
    from probe.checkpoints.base import load

    subject = load(tiny)
    return Request(subject, Plan(find_task(subject.task), 4096, 0, workers=4))


@pytest.fixture
def machine(monkeypatch):
    """Sets what is free."""

    def has(memory=64 * GIB, disk=64 * GIB):
        monkeypatch.setattr(limits, "free_bytes", lambda: memory)
        monkeypatch.setattr(limits.shutil, "disk_usage", lambda place: Usage(disk, 0, disk))

    return has


def test_a_run_that_fits_is_not_refused(request_, machine, tmp_path):
    machine()
    started = time.process_time()
    refuse(request_, tmp_path / "not" / "there")
    assert time.process_time() - started < 1.0


def test_the_run_that_is_proposed_fits(request_, machine, tmp_path, command, tiny):
    one = replace(request_, plan=replace(request_.plan, workers=1))
    machine(needed(one).memory + 2**20)
    with pytest.raises(
        InputError, match=r"GiB of memory and .* are free; .*--workers 1"
    ) as refused:
        refuse(request_, tmp_path)
    assert "\n" not in str(refused.value)
    refuse(one, tmp_path)
    said = command("analyze", tiny, "--workers", 4, "--out", tmp_path / "none")
    assert said.code == 2 and said.err.count("\n") == 1 and not (tmp_path / "none").exists()
    advice = re.search(r"; (--.*) would need", said.err)
    assert advice
    named = dict(re.findall(r"--([\w-]+) (\S+)", advice[1]))
    size = int(named.get("batch-size", request_.plan.batch_size))
    plan = replace(request_.plan, workers=int(named["workers"]), batch_size=size)
    only = tuple(filter(None, named.get("only", "").split(",")))
    refuse(replace(request_, plan=plan, only=only), tmp_path)


def test_where_nothing_fits_it_is_said(request_, machine, tmp_path):
    machine(memory=2**20)
    with pytest.raises(InputError, match=r"no smaller .* would fit"):
        refuse(request_, tmp_path)
    machine(disk=2**16)
    with pytest.raises(InputError, match="of disk and 0 MiB are free"):
        refuse(request_, tmp_path)


def test_a_language_model_is_measured_too(machine, tmp_path):
    from tiny_language_models import language_folder

    from probe.checkpoints.base import load

    subject = load(language_folder(tmp_path / "gpt2", "gpt2"))
    survey = Survey(subject, RandomIds(61, 24), 64, 0)
    machine()
    refuse(survey, tmp_path)
    machine(memory=2**10)
    with pytest.raises(InputError, match="of memory and 0 MiB are free"):
        refuse(survey, tmp_path)
