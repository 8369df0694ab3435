"""Checks of a model's load and hooks, made before anything is claimed about it.

Each check is of one part of what analyses rest on: a part that fails takes with it the analyses
that look there. Errors are relative to the largest entry of what is compared.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from probe.capture import Runner
from probe.findings import Check
from probe.linalg import LinAlgError
from probe.models.hooked import (
    Cache,
    HookedModel,
    LanguageModel,
    SequenceModel,
    Tokens,
    reading_device,
)
from probe.sampling import generator_for, normal

SEQUENCES, LENGTH = 4, 16
EXACT = 1e-5  # of one forward pass beside another
PARTIAL = {torch.float32: 1e-4, torch.float64: 1e-8}  # of sums and mixtures, by precision
ROUGH = 3e-2  # in half precision
RESUMED = 1e-3  # through up to dozens of blocks
STRAY = 1e-6  # a change smaller than this is none
LARGEST_COPY = 2**32  # bytes of the copy in float64


@dataclass(frozen=True)
class _Seen:
    """One pass through the model, with all that the checks look at."""

    model: HookedModel
    tokens: Tokens
    output: Tensor
    cache: Cache

    @property
    def tolerance(self) -> float:
        """Of sums and mixtures, by the precision of the weights."""
        return PARTIAL.get(next(self.model.parameters()).dtype, ROUGH)


def audit(
    model: HookedModel, tokens: Tokens, original: Callable[[Tokens], Tensor] | None = None
) -> tuple[Check, ...]:
    """All checks that can be made of a model.

    Args:
        model: The model; left as it is.
        tokens: A few sequences that it can read.
        original: What it said before it was wrapped, where it was.
    """
    seen = _look(model, tokens)
    checks = [*_outputs(seen, original), _streams(seen), _sums(seen), *_heads(seen)]
    return tuple([*checks, _round_trip(seen), *_edits(seen)])


def trial_tokens(model: HookedModel) -> Tokens:
    """Tokens for a model of which no task is known: normal vectors, or uniform ids."""
    generator = generator_for(0)
    assert isinstance(model, SequenceModel | LanguageModel)
    length = min(LENGTH, model.longest or LENGTH)
    if isinstance(model, LanguageModel):
        return torch.randint(model.vocabulary, (SEQUENCES, length), generator=generator)
    return normal(generator, SEQUENCES, length, model.d_in).float()


def failed(checks: tuple[Check, ...], parts: frozenset[str]) -> Check | None:
    """The first check that failed of any of these parts."""
    return next((check for check in checks if not check.ok and check.part in parts), None)


@torch.no_grad()
def _look(model: HookedModel, tokens: Tokens) -> _Seen:
    sites = {*model.layer_sites(), *model.update_sites()}
    for identity in model.residual_sums():
        sites |= {*identity.parts, identity.after}
    for layer in range(model.layers):
        if heads := model.head_sites(layer):
            sites |= {*heads.seen, heads.gathered}
    output, cache = model.run_with_cache(
        tokens.to(reading_device(model)), names_filter=lambda name: name in sites
    )
    return _Seen(
        model, tokens, output.cpu(), {name: cache[name].cpu() for name in sites if name in cache}
    )


def _outputs(seen: _Seen, original: Callable[[Tokens], Tensor] | None) -> Iterator[Check]:
    """The output beside that of the model as it was, and beside one in float64 on the CPU."""
    if original is not None:
        error = _apart(seen.output, original(seen.tokens).cpu())
        yield _check("wrapped beside original", "the same output", "output", error, EXACT)
    size = sum(parameter.numel() for parameter in seen.model.parameters()) * 8
    if size > LARGEST_COPY:
        return
    exact = deepcopy(seen.model).to("cpu").double()
    tokens = seen.tokens.double() if seen.tokens.is_floating_point() else seen.tokens
    with torch.no_grad():
        error = _apart(seen.output, exact(tokens))
    # Rounding grows through the blocks, so this is looser than one product.
    yield _check(
        "device beside float64 on the CPU", "the same output", "output", error, 10 * seen.tolerance
    )


def _streams(seen: _Seen) -> Check:
    """Each captured stream, handed to the blocks above it, must lead to the output."""
    runner = Runner(seen.model)
    errors = [
        _apart(runner.resume(seen.cache[site], layer), seen.output)
        for layer, site in enumerate(seen.model.layer_sites())
    ]
    tolerance = max(RESUMED, seen.tolerance)
    return _worst("streams at the hook sites", "the output", "streams", errors, tolerance)


def _sums(seen: _Seen) -> Check:
    """What the parts of each block add to the stream before it must make the stream after it."""
    sums, sites = seen.model.residual_sums(), seen.model.layer_sites()
    errors = [float("inf")] * seen.model.layers  # a block of which no sum is told does not pass
    for layer, (identity, before) in enumerate(zip(sums, sites, strict=False)):
        if before in identity.parts:
            errors[layer] = _apart(identity.total(seen.cache), seen.cache[identity.after])
    return _worst("residual sum", "the stream after the block", "updates", errors, seen.tolerance)


def _heads(seen: _Seen) -> Iterator[Check]:
    """The block's own rule on queries, keys and values must give what was gathered."""
    errors = []
    for layer in range(seen.model.layers):
        sites = seen.model.head_sites(layer)
        if sites is None:
            continue
        heads = seen.model.heads(layer, seen.cache)
        try:
            mixed = seen.model.mix(layer, heads)
        except LinAlgError:
            mixed = torch.full_like(heads.gathered, torch.inf)
        told = seen.cache.get(sites.gathered)
        if mixed is None or told is None or told.shape[2] != sites.count:
            errors.append(float("inf"))  # a rule that is not known cannot say who is who
        else:
            errors.append(max(_apart(mixed, heads.gathered), _apart(told, heads.gathered)))
    if errors:
        must = "what the heads gathered"
        yield _worst("rule of queries, keys and values", must, "heads", errors, 10 * seen.tolerance)


def _round_trip(seen: _Seen) -> Check:
    """Captured values that are written back where they were read leave the output as it is."""
    sites = dict.fromkeys([*seen.model.layer_sites(), *seen.model.update_sites()])
    edits = {site: partial(_written, seen.cache[site]) for site in sites}
    error = _apart(Runner(seen.model).run(seen.tokens, edits), seen.output)
    return _check("values written back", "the same output", "edits", error, seen.tolerance)


def _written(value: Tensor, _: Tensor) -> Tensor:
    return value


def _edits(seen: _Seen) -> Iterator[Check]:
    """A change at a site must be seen behind it."""
    runner = Runner(seen.model)
    sites = list(dict.fromkeys([*seen.model.layer_sites(), *seen.model.update_sites()]))
    deaf = [s for s in sites if _apart(runner.run(seen.tokens, {s: _louder}), seen.output) < STRAY]
    yield _named("edits at the hook sites", "another output", "edits", deaf)
    mute = [str(layer) for layer in range(seen.model.layers) if _is_mute(seen, layer)]
    if any(seen.model.head_sites(layer) for layer in range(seen.model.layers)):
        blocks = [f"block {layer}" for layer in mute]
        yield _named("heads that are silenced", "another update", "head edits", blocks)


def _louder(value: Tensor) -> Tensor:
    """Noise of its own size, or of size 1 where there is nothing."""
    scale = float(value.float().square().mean().sqrt()) or 1.0
    return value + scale * normal(generator_for(1), *value.shape).to(value)


@torch.no_grad()
def _is_mute(seen: _Seen, layer: int) -> bool:
    """Whether a block whose update varies keeps it when its heads gather nothing."""
    sites, update = seen.model.head_sites(layer), seen.model.update_sites()[layer]
    before = seen.cache[update].double()
    varies = before - before.mean((0, 1), keepdim=True)
    if sites is None or float(varies.abs().max()) <= STRAY * float(before.abs().max()):
        return False
    said: list[Tensor] = []
    hooks = [
        (sites.gathered, lambda value, hook: torch.zeros_like(value)),
        (update, lambda value, hook: said.append(value.cpu())),
    ]
    with seen.model.hooks(fwd_hooks=hooks):
        seen.model(seen.tokens.to(reading_device(seen.model)))
    return _apart(said[0], before) < STRAY


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest entry; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.double().cpu(), expected.double().cpu()
    scale = float(expected.abs().max()) or 1.0
    error = float((found - expected).abs().max()) / scale
    return error if error == error else float("inf")


def _check(name: str, must_read: str, part: str, error: float, tolerance: float) -> Check:
    ok = error <= tolerance
    reads = must_read if ok else f"off by {error:.2g}"
    return Check(name, must_read, reads, ok, part, error, tolerance)


def _worst(name: str, must_read: str, part: str, errors: list[float], tolerance: float) -> Check:
    """One check of all blocks; names the first that fails."""
    wrong = [layer for layer, error in enumerate(errors) if not error <= tolerance]
    worst = max(errors, default=0.0)
    ok = not wrong
    reads = must_read if ok else f"off by {errors[wrong[0]]:.2g} in block {wrong[0]}"
    return Check(name, must_read, reads, ok, part, worst, tolerance)


def _named(name: str, must_read: str, part: str, wrong: list[str]) -> Check:
    """A check that something changes; names the first place where nothing does."""
    reads = f"no change from {wrong[0]}" if wrong else must_read
    return Check(name, must_read, reads, not wrong, part, float(len(wrong)), 0.0)
