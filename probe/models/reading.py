"""Where the parts of a module are: what an adapter has to say of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from probe.errors import InputError
from probe.models.hooked import Heads


@dataclass(frozen=True)
class Site:
    """A tensor that passes a module.

    Attributes:
        module: Name of the module, as `named_modules` has it. It is called once in a pass.
        side: Whether the tensor goes in or comes out.
        place: Which argument by place or keyword, or which entry of a tuple that comes out.
    """

    module: str
    side: Literal["input", "output"] = "output"
    place: int | str = 0


@dataclass(frozen=True)
class HeadView:
    """Vectors of heads in a tensor.

    The tensor is (batch, time, channels), with the channels of a head side by side, or
    (batch, heads, time, channels of a head).

    Attributes:
        site: The tensor.
        heads: How many heads it holds; for keys and values, how many groups.
        start: First of their channels, where several roles are fused.
        stop: One past the last; None: to the end.
    """

    site: Site
    heads: int
    start: int = 0
    stop: int | None = None

    def of(self, tensor: Tensor) -> Float[Tensor, "batch time heads d_head"]:
        """The vectors.

        Raises:
            InputError: The tensor does not hold that many heads.
        """
        if tensor.ndim == 4 and tensor.shape[1] == self.heads:
            return tensor[..., self.start : self.stop].transpose(1, 2)
        part = tensor[..., self.start : self.stop]
        if tensor.ndim != 3 or part.shape[-1] % self.heads:
            shape = list(part.shape)
            raise InputError(f"{self.site.module}: shape {shape} holds no {self.heads} heads")
        return part.unflatten(-1, (self.heads, -1))

    def put(self, vectors: Float[Tensor, "batch time heads d_head"], tensor: Tensor) -> Tensor:
        """The tensor with these vectors in it."""
        laid = vectors.transpose(1, 2) if tensor.ndim == 4 else vectors.flatten(2)
        changed = tensor.clone()
        changed[..., self.start : self.stop] = laid
        return changed


@dataclass(frozen=True)
class AttentionReading:
    """Where the heads of a block are, and what they make of queries, keys and values.

    Attributes:
        q: Queries, as they meet in the score.
        k: Keys.
        v: Values.
        gathered: What each head gathered; often the input of the output projection.
        scale: Factor of every score; None: 1 / sqrt(d_k).
        causal: Whether a query sees its past alone.
        rule: From `Heads` to what they gather; None: softmax of the scaled scores.
    """

    q: HeadView
    k: HeadView
    v: HeadView
    gathered: HeadView
    scale: float | None = None
    causal: bool = True
    rule: Callable[[Heads], Tensor] | None = None

    def mix(self, heads: Heads) -> Float[Tensor, "batch time heads d_v"]:
        """What the rule makes of queries, keys and values."""
        if self.rule is not None:
            return self.rule(heads)
        q, k, v = (part.transpose(1, 2) for part in (heads.queries, heads.keys, heads.values))
        mixed = functional.scaled_dot_product_attention(
            q, k, v, is_causal=self.causal, scale=self.scale
        )
        return mixed.transpose(1, 2)


@dataclass(frozen=True)
class BlockReading:
    """Where the parts of a block are.

    Attributes:
        stream: The stream before it, where the skip connection has not yet left it.
        attention: What the attention adds to the stream.
        mlp: What the MLP adds; None if there is none.
        heads: The heads; None if they pose no problem.
    """

    stream: Site
    attention: Site
    mlp: Site | None = None
    heads: AttentionReading | None = None


@dataclass(frozen=True)
class Reading:
    """How a module is read.

    Attributes:
        blocks: Its blocks, from the bottom.
        after: The stream after the last block.
        read_out: Names of the modules that lead from there to the output, in order; or a function
            (module, stream). It must not hold on to a module of its own, as models are copied.
        said: The prediction in what the module hands back; the first tensor by default.
    """

    blocks: tuple[BlockReading, ...]
    after: Site
    read_out: tuple[str, ...] | Callable[[Any, Tensor], Tensor]
    said: Callable[[Any], Tensor] | None = None


def attach(part: nn.Module, site: Site, through: Callable[[Tensor], Tensor]) -> Any:
    """Sends one tensor of a module through a function, in every call."""
    if site.side == "input":
        return part.register_forward_pre_hook(
            lambda _, given, named: _changed_input(site, given, named, through), with_kwargs=True
        )
    return part.register_forward_hook(lambda _, given, out: _changed(site, out, through))


def _changed_input(
    site: Site, given: tuple[Any, ...], named: dict[str, Any], through: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(site.place, int):
        return _changed(site, given, through), named
    if site.place not in named:
        raise InputError(f"{site.module}: no argument {site.place!r}")
    return given, {**named, site.place: through(named[site.place])}


def _changed(site: Site, held: Any, through: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or a tuple with one of its entries changed."""
    if isinstance(held, Tensor):
        return through(held)
    place = site.place
    if not (isinstance(held, tuple) and isinstance(place, int) and place < len(held)):
        raise InputError(f"{site.module}: no tensor at place {place!r} of its {site.side}")
    return (*held[:place], through(held[place]), *held[place + 1 :])
