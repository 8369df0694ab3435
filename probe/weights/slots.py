"""The stream of a model in the basis of its token's slots."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.errors import InputError
from probe.models.attention import BidirectionalAttention, LinearAttention
from probe.models.transformer import SequenceTransformer


@dataclass(frozen=True)
class SlotBasis:
    """Slots of equal width, side by side: a stream x holds z = x @ read, and x = z @ write.

    Attributes:
        count: Number of slots.
        width: Width d of a slot.
        read: From the stream to the slots.
        write: From the slots to the stream; the read-in matrix of the model, where it has one.
        out: What the read-out makes of the slots.
    """

    count: int
    width: int
    read: Float[Tensor, "d_model n"] = field(repr=False)
    write: Float[Tensor, "n d_model"] = field(repr=False)
    out: Float[Tensor, "n d_out"] = field(repr=False)

    @classmethod
    def of(cls, model: SequenceTransformer, slots: int) -> "SlotBasis":
        """The basis that the token gives the stream.

        Args:
            model: A model of linear attention without MLPs, positions, norms and biases.
            slots: Number of slots of its token.

        Raises:
            InputError: The model's stream has no such basis.
        """
        if reason := lacks_slots(model, slots):
            raise InputError(f"no basis of {slots} slots: {reason}")
        n = model.config.d_model
        write = torch.eye(n).double() if model.W_E is None else model.W_E.detach().double()
        reads_first = torch.eye(n, model.config.d_out).double()
        out = reads_first if model.W_U is None else write @ model.W_U.detach().double()
        return cls(slots, n // slots, torch.linalg.inv(write), write, out)

    def reads(self, model: SequenceTransformer, layer: int) -> Bool[Tensor, " slots"]:
        """The slots that block `layer` can read: all but those that are masked before the first."""
        seen = torch.ones(self.count * self.width, dtype=torch.bool)
        if layer == 0:
            seen[: model.config.masked] = False
        return seen.view(self.count, self.width).any(1)

    def writes(self, model: SequenceTransformer, layer: int) -> Bool[Tensor, " slots"]:
        """The slots into which block `layer` can write to some effect: of the last, those read."""
        if layer < len(model.blocks) - 1:
            return torch.ones(self.count, dtype=torch.bool)
        size = self.out.view(self.count, -1).abs().amax(1)
        return size > 1e-9 * size.max()


def token_slots(model: SequenceTransformer) -> int:
    """The slots of a token, if each is as wide as a prediction."""
    return model.config.d_in // model.config.d_out


def lacks_slots(model: SequenceTransformer, slots: int) -> str | None:
    """Why a model's stream is not made of a token's slots, in a few words; None if it is."""
    config = model.config
    kinds = {type(block.attention) for block in config.blocks}
    if not kinds <= {LinearAttention, BidirectionalAttention}:
        return "its attention is not linear"
    if any(block.d_mlp for block in config.blocks):
        return "it has MLPs"
    if not config.bare:
        return "it has norms or biases"
    if config.n_ctx or any(block.positions or block.unit for block in config.blocks):
        return "it has positions or normalised heads"
    if slots < 2 or config.d_in != slots * config.d_out:
        return "its token is not made of slots"
    if config.d_model != config.d_in:
        return "its stream is not as wide as its token"
    if model.W_E is not None:
        singular = torch.linalg.svdvals(model.W_E.detach().double())
        if config.masked or not float(singular[-1]) > 1e-6 * float(singular[0]):
            return "its read-in matrix hides slots"
    return None
