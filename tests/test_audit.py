"""The audit passes models whose hooks are right, and names what is wrong in others."""

from copy import deepcopy

import pytest
import torch

from probe.analysis import choose_analyses
from probe.audit import audit, failed, trial_tokens
from probe.models.attention import LinearAttention, MesaAttention, SoftmaxAttention
from probe.models.hooked import Heads, HeadSites
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.sampling import generator_for

KINDS = (LinearAttention(2, 4), SoftmaxAttention(2, 4), MesaAttention(2, 4))


def right(model_class=SequenceTransformer, kinds=KINDS) -> SequenceTransformer:
    blocks = tuple(BlockConfig(kind, d_mlp=8) for kind in kinds)
    model = model_class(ModelConfig(6, 12, 3, blocks, projected=True))
    model.initialise(0.4, generator_for(1))
    return model.eval().requires_grad_(False)


class AttentionHalved(SequenceTransformer):
    """Says of every block's attention that it adds half of what it adds."""

    def run_with_cache(self, tokens, **wanted):
        output, cache = super().run_with_cache(tokens, **wanted)
        site = self.update_sites()[1]
        return output, {n: cache[n] * (0.5 if n == site else 1.0) for n in cache}


class OneBlockOff(SequenceTransformer):
    """Shows the stream one block too late."""

    def layer_sites(self):
        sites = super().layer_sites()
        return (*sites[1:], sites[-1])


class OneSumForAll(SequenceTransformer):
    """Tells the sum of its first block for every block."""

    def residual_sums(self):
        return super().residual_sums()[:1] * self.layers


class UnknownRule(SequenceTransformer):
    """Does not say what its heads make of queries, keys and values."""

    def mix(self, layer, heads):
        return None


class HeadsDoubled(SequenceTransformer):
    """Says that it has twice as many heads."""

    def head_sites(self, layer):
        sites = super().head_sites(layer)
        return HeadSites(sites.seen, sites.gathered, 2 * sites.count)


class RolesSwapped(SequenceTransformer):
    """Takes queries for keys."""

    def heads(self, layer, cache):
        seen = super().heads(layer, cache)
        return Heads(seen.keys, seen.queries, seen.values, seen.gathered)


class GatheredElsewhere(SequenceTransformer):
    """Says that heads gather at a site that nothing reads."""

    def __init__(self, config):
        super().__init__(config)
        self.hook_unread = type(self.hook_embed)()
        self.setup()

    def head_sites(self, layer):
        sites = super().head_sites(layer)
        return HeadSites(sites.seen, "hook_unread", sites.count)


def test_a_right_model_passes_everything():
    model = right()
    checks = audit(model, trial_tokens(model), model)
    assert all(check.ok for check in checks)
    assert {c.part for c in checks} == {
        "output",
        "streams",
        "updates",
        "heads",
        "edits",
        "head edits",
    }
    assert max(check.error for check in checks if check.tolerance) < 1e-5


@pytest.mark.parametrize(
    ("wrong", "part", "says"),
    [
        (AttentionHalved, "updates", "in block 1"),
        (OneBlockOff, "streams", "in block 0"),
        (OneSumForAll, "updates", "in block 1"),
        (UnknownRule, "heads", "in block 0"),
        (HeadsDoubled, "heads", "in block 0"),
        (RolesSwapped, "heads", "in block 0"),
        (GatheredElsewhere, "head edits", "no change from block 0"),
    ],
)
def test_a_wrong_hook_is_found_and_named(wrong, part, says):
    model = right(wrong)
    checks = audit(model, trial_tokens(model))
    check = failed(checks, frozenset({part}))
    assert check is not None and says in check.reads
    assert failed(checks, frozenset({"output"})) is None


def test_another_output_than_the_original_is_found():
    model, other = right(), right()
    other.W_U.mul_(1.001)
    checks = audit(model, trial_tokens(model), other)
    assert failed(checks, frozenset({"output"})).name == "wrapped beside original"


def test_half_precision_passes_by_its_own_tolerance_and_a_wrong_hook_does_not():
    kinds = KINDS[:2]  # no solver in half precision
    model, wrong = right(kinds=kinds).bfloat16(), right(OneBlockOff, kinds).bfloat16()
    tokens = trial_tokens(model).bfloat16()
    assert all(check.ok for check in audit(model, tokens))
    assert failed(audit(wrong, tokens), frozenset({"streams"}))


def test_the_model_is_left_as_it_is():
    model = right()
    before = deepcopy(model.state_dict())
    audit(model, trial_tokens(model))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_failed_part_leaves_out_what_rests_on_it(tiny_subject):
    from probe.tasks.base import find_task

    subject, task = tiny_subject, find_task(tiny_subject.task)
    checks = audit(right(RolesSwapped), trial_tokens(right()))
    asked = choose_analyses(subject, task, audit=checks)
    names = {one.name for one in (*asked.analyses, *asked.jobs)}
    assert "rule of queries, keys and values" in asked.left_out["head_atlas"]
    assert "head_atlas" not in names and {"behaviour", "linear_probing"} <= names
    assert "head_atlas" not in choose_analyses(subject, task).left_out
