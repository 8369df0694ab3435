"""Our MesaNet against flash-linear-attention's own, whose kernels run in Triton's interpreter.

There a head takes 30 steps of conjugate gradient with 1e-5 in their denominators, on queries and
keys in half precision. So agreement is asked for thrice: to rounding with its exact solution in
the place of its kernel; with its kernel as it is, as far as such steps lead; and the distance that
remains must be that of the steps and of half precision.
"""

import builtins
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from probe.checkpoints.base import load
from probe.models.mesa_net import MesaNet

if importlib.util.find_spec("fla") is None or importlib.util.find_spec("triton") is None:
    pytest.skip("flash-linear-attention with triton is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow  # the interpreter takes most of a minute

LENGTH = 100  # more than a chunk of its kernel
Solver = Callable[..., tuple[Tensor, Any, Any]]


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    """Its kernels on the CPU, past three gaps of the interpreter.

    Nothing can be timed there, so the first of the configurations to choose from is taken; a loop
    counts in plain integers, which have no dtype; and bfloat16 is not multiplied.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from triton.runtime import autotuner, interpreter

        patch.setattr(autotuner.Autotuner, "prune_configs", lambda self, _: self.configs[:1])
        from fla.ops.mesa_net import chunk, chunk_h_fwd

        def count(stop: Any) -> Iterator[Any]:
            return map(interpreter._implicit_cvt, builtins.range(int(stop)))

        states = chunk_h_fwd.chunk_mesa_fwd_h
        patch.setattr(chunk_h_fwd, "range", count, raising=False)
        patch.setattr(
            chunk, "chunk_mesa_fwd_h", lambda **given: states(**{**given, "states_in_fp32": True})
        )
        yield


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 50, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def peer(folder: Path, **changes: Any) -> Any:
    """One of its models with nothing at its default, saved by itself."""
    from fla.models import MesaNetConfig, MesaNetForCausalLM

    sizes = {"hidden_size": 32, "num_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
    more = {"vocab_size": 50, "intermediate_size": 48}
    torch.manual_seed(1)
    model = MesaNetForCausalLM(MesaNetConfig(**sizes, **more, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif "lambda" in name or "bias" in name:
                parameter.copy_(noise + 3 * ("a_proj" in name))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def said(model: Any, tokens: Tensor, solver: Solver | None = None) -> Tensor:
    """Its logits, by another solver in the place of its kernel if one is given."""
    from fla.layers import mesa_net

    with pytest.MonkeyPatch.context() as patch:
        if solver is not None:
            patch.setattr(mesa_net, "chunk_mesa_net", solver)
        logits: Tensor = model(tokens, use_cache=False).logits
    return logits


@torch.no_grad()
def ours(folder: Path, tokens: Tensor) -> Tensor:
    model = load(folder).model
    assert isinstance(model, MesaNet)
    logits: Tensor = model(tokens)
    return logits


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def exact(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lamb: Tensor, **_: Any
) -> tuple[Tensor, Any, Any]:
    from fla.modules.l2norm import l2_norm
    from fla.ops.mesa_net.naive import naive_mesa_net_exact

    return naive_mesa_net_exact(l2_norm(q), l2_norm(k), v, g, lamb, beta)


def stepped(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lamb: Tensor, **_: Any
) -> tuple[Tensor, Any, Any]:
    """Its plain conjugate gradient on queries and keys in half precision."""
    from fla.modules.l2norm import l2_norm
    from fla.ops.mesa_net.naive import naive_mesa_net_CG

    def filled(x: Tensor) -> Tensor:
        return functional.pad(x, [0, 0] * (x.ndim - 2) + [0, -LENGTH % 64])

    q, k = (l2_norm(x).half().float() for x in (q, k))
    q, k, v, g, beta = (filled(x) for x in (q, k, v, g, beta))
    answer, *state = naive_mesa_net_CG(q, k, v, g, lamb, beta, 64, 30)
    return answer[:, :LENGTH], *state


VARIANTS = [
    {"use_output_gate": True},
    {"tie_word_embeddings": True, "fuse_norm": False, "fuse_swiglu": False},
    {"conv_size": 3, "lambda_lower_bound": 1.5, "use_short_conv": False, "norm_eps": 1e-3},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=["gated", "tied", "other constants"])
def test_logits_are_those_of_its_exact_solution(
    tmp_path: Path, tokens: Tensor, changes: dict[str, Any]
) -> None:
    theirs = said(peer(tmp_path, **changes), tokens, exact)
    assert distance(ours(tmp_path, tokens), theirs) < 1e-5


def test_its_kernel_differs_by_steps_and_half_precision(tmp_path: Path, tokens: Tensor) -> None:
    model = peer(tmp_path, use_output_gate=True)
    kernel, solved = said(model, tokens), ours(tmp_path, tokens)
    assert distance(solved, kernel) < 5e-3
    assert distance(said(model, tokens, stepped), kernel) < 0.5 * distance(solved, kernel)


def test_other_gates_are_told_apart(tmp_path: Path, tokens: Tensor) -> None:
    """The control: what its solver makes of gates that are not those of the model."""

    def swapped(*, g: Tensor, beta: Tensor, **given: Any) -> tuple[Tensor, Any, Any]:
        return exact(g=beta.log(), beta=g.exp(), **given)

    def kept(*, g: Tensor, **given: Any) -> tuple[Tensor, Any, Any]:
        return exact(g=torch.zeros_like(g), **given)

    model = peer(tmp_path)
    solved = ours(tmp_path, tokens)
    for wrong in (swapped, kept):
        assert distance(solved, said(model, tokens, wrong)) > 0.05
