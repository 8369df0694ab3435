"""Hooks to activations: one forward pass per batch, read at the sites that the stages ask for."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import InputError
from probe.models.hooked import HookedModel, Tokens, reading_device

GROUP = 16


Edit = Callable[[Tensor], Tensor]
Reader = Callable[[Tensor], None]


class _Deepest(Exception):
    """All sites have been read."""


@torch.no_grad()
def read_sites(model: HookedModel, tokens: Tokens, readers: Mapping[str, Reader]) -> None:
    """Shows each reader what passes its site, and leaves the model behind the deepest of them.

    Readers are shown the model's own tensors, on whatever device they are, and must not keep or
    change them.

    Raises:
        InputError: The model has run, and a site was not passed.
    """
    left = set(readers)

    def show(tensor: Tensor, hook: object, site: str) -> None:
        readers[site](tensor)
        left.discard(site)
        if not left:
            raise _Deepest

    hooks: list[tuple[Any, Callable[..., Any]]] = [
        (site, partial(show, site=site)) for site in readers
    ]
    with suppress(_Deepest), model.hooks(fwd_hooks=hooks):
        model(tokens.to(reading_device(model)))
    if left:
        raise InputError(f"the model does not pass {', '.join(sorted(left))}")


@dataclass(frozen=True)
class Runner:
    """Runs a model again, on other tokens, from the middle or with edits at its hooks.

    Results come back to the CPU. Models are not shared between threads, so edits never mix.

    Attributes:
        model: The model; used through this class only.
        batch_size: Sequences per forward pass, rounded up as in `capture`.
        asked: The tokens whose predictions are handed back.
    """

    model: HookedModel
    batch_size: int = 256
    asked: slice = field(default_factory=lambda: slice(None))

    @property
    def _size(self) -> int:
        return -(-self.batch_size // GROUP) * GROUP

    @torch.no_grad()
    def run(
        self,
        tokens: Tokens,
        edits: Mapping[str, Edit] = MappingProxyType({}),
    ) -> Float[Tensor, "batch asked d_v"]:
        """Predictions with what passes each named hook replaced by its edit.

        Edits see all sequences at once; so with edits there is one forward pass.
        """
        return self._through(self.model, tokens, edits)

    @torch.no_grad()
    def resume(
        self,
        stream: Float[Tensor, "batch time d_model"],
        layer: int,
        edits: Mapping[str, Edit] = MappingProxyType({}),
    ) -> Float[Tensor, "batch asked d_v"]:
        """Predictions from the stream before block `layer`, with edits as in `run`."""
        return self._through(lambda part: self.model.resume(part, layer), stream, edits)

    @torch.no_grad()
    def resume_last(
        self,
        before: Float[Tensor, "layers batch time d_model"],
        last: Float[Tensor, "changes batch d_model"],
        layer: int,
    ) -> Float[Tensor, "changes batch d_v"]:
        """`HookedModel.resume_last`, of all sequences at once."""
        device = reading_device(self.model)
        return self.model.resume_last(before.to(device), last.to(device), layer).cpu()

    def _through(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor, edits: Mapping[str, Edit]
    ) -> Tensor:
        hooks = [(site, _as_hook(edit)) for site, edit in edits.items()]
        size = len(inputs) if edits else self._size
        device = reading_device(self.model)
        with self.model.hooks(fwd_hooks=hooks):
            said = [forward(part.to(device)).cpu() for part in inputs.split(size)]
        return torch.cat(said)[:, self.asked]


def _as_hook(edit: Edit) -> Callable[..., Tensor]:
    """Hooks of TransformerLens are handed the hook point too."""
    return lambda tensor, hook: edit(tensor.cpu()).to(tensor)


@dataclass(frozen=True)
class Capture:
    """What a model did on a batch.

    Attributes:
        output: Its predictions.
        layers: The stream before the first block and after each block; no layers for a predictor
            that has no inside.
        updates: What the attention of each block added to the stream.
        readouts: The model's own read-out of each of `layers`.
        runner: Runs the model again; None for a predictor that has no inside.
    """

    output: Float[Tensor, "batch time d_v"]
    layers: Float[Tensor, "layers_and_one batch time d_model"]
    updates: Float[Tensor, "layers batch time d_model"]
    readouts: Float[Tensor, "layers_and_one batch time d_v"]
    runner: Runner | None = None

    def edited(
        self, tokens: Tokens, layer: int, edits: Mapping[str, Edit]
    ) -> Float[Tensor, "batch asked d_v"]:
        """What the model says of the tokens with edits inside block `layer`.

        It runs from the stream before that block, where the stream of all tokens was kept.

        Raises:
            TypeError: The predictor has no inside.
        """
        if self.runner is None:
            raise TypeError("a predictor without an inside cannot be edited")
        if self.layers.shape[2] == tokens.shape[1]:
            return self.runner.resume(self.layers[layer], layer, edits)
        return self.runner.run(tokens, edits)

    def until(self, stop: int) -> "Capture":
        """What the model did at the tokens before `stop`; what follows is of no account to it."""
        return self._cut(slice(stop), self.runner)

    def at(self, asked: slice) -> "Capture":
        """What the model did at some of the tokens; runs of its runner are read there too."""
        return self._cut(asked, replace(self.runner, asked=asked) if self.runner else None)

    def _cut(self, tokens: slice, runner: Runner | None) -> "Capture":
        return Capture(
            output=self.output[:, tokens],
            layers=self.layers[:, :, tokens],
            updates=self.updates[:, :, tokens],
            readouts=self.readouts[:, :, tokens],
            runner=runner,
        )


Forward = Callable[[HookedModel, Tensor, int], Capture]  # a model on tokens, so many at a time


def predictor_only(output: Float[Tensor, "batch time d_v"]) -> Capture:
    """The capture of a predictor without an inside."""
    nothing = output.new_zeros(0, *output.shape[:2], 0)
    return Capture(output, nothing, nothing, output.new_zeros(0, *output.shape))


def capture_output(model: HookedModel, tokens: Tokens, batch_size: int) -> Capture:
    """Predictions alone, as `capture` sees them, for stages that look at nothing inside."""
    return predictor_only(Runner(model, batch_size).run(tokens))


@torch.no_grad()
def capture(model: HookedModel, tokens: Tokens, batch_size: int) -> Capture:
    """Runs the model on `batch_size` sequences at a time and keeps the stream and the updates.

    The batch size is rounded up to a multiple of 16: narrow float32 products take rows in groups,
    and those left over are rounded otherwise, so that the cut would show in the last bits.
    The model runs where its parameters are; what is kept comes back to where the tokens are.
    """
    device = reading_device(model)
    stream = model.layer_sites()
    updates = model.update_sites()
    wanted = {*stream, *updates}
    outputs, kept = [], []
    for part in torch.split(tokens, -(-batch_size // GROUP) * GROUP):
        output, cache = model.run_with_cache(
            part.to(device), names_filter=lambda name: name in wanted
        )
        outputs.append(output)
        kept.append(cache)
    layers, added = (
        _together([torch.stack([cache[site] for site in sites]) for cache in kept], 1)
        for sites in (stream, updates)
    )
    found = (_together(outputs, 0), layers, added, model.read_out(layers))
    output, layers, added, readouts = (part.to(tokens.device) for part in found)
    return Capture(output, layers, added, readouts, Runner(model, batch_size))


def _together(parts: list[Tensor], axis: int) -> Tensor:
    """The parts as one; a single part needs no copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
