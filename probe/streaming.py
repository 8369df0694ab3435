"""Moments of residual streams, batch by batch: no token is kept, so memory does not grow with them.

Symmetric products are taken in float32, half of the matrix at a time: 128 rows a product, since a
BLAS adds up so many numbers one by one, and sixteen products before they are added in float64.
What they are rounded by is about eps sqrt(128) of sqrt(xx_ii xx_jj), and adding many of them adds
nothing to that. Streams of bfloat16 are widened first, which is exact: their moments are those of
the rounded stream, to the same error. Rows and strips are so few that both stay in the cache: on
768 channels the whole is faster than one full product.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.capture import read_sites
from probe.errors import InputError
from probe.models.hooked import HookedModel, Tokens
from probe.moments import CentredMoments, Moments

PART = 128  # rows of a product in float32
ROWS = 16 * PART  # rows whose products are added in float32
COLUMNS = 128  # of a strip of the symmetric product
BOUND = 2**30  # bytes of sums that are held at once


@dataclass(frozen=True)
class Targets:
    """What is to be read off a stream.

    Attributes:
        of: The targets of a batch of tokens, at the tokens that are asked.
        asked: The tokens of each sequence whose stream counts.
        width: Number of targets, K.
    """

    of: Callable[[Tokens], Float[Tensor, "batch asked k"]]
    width: int
    asked: slice = field(default_factory=lambda: slice(None))


NOTHING = Targets(lambda tokens: torch.zeros(*tokens.shape[:2], 0), 0)


def next_token(vectors: Float[Tensor, "vocabulary k"]) -> Targets:
    """The vector of the token that comes next; the last token of a sequence does not count."""
    return Targets(lambda tokens: vectors[tokens[:, 1:].cpu()], vectors.shape[1], slice(None, -1))


@dataclass(frozen=True)
class StreamSums:
    """Sums over the tokens that passed a site, in float64, where the site is; they merge.

    Attributes:
        rows: Number of tokens.
        x: sum x of the stream.
        y: sum y of the targets.
        products: sum x x^T, of which only strips on and above the diagonal are filled; sum x y^T;
            sum y^2.
    """

    rows: Int[Tensor, ""]
    x: Float[Tensor, " d"]
    y: Float[Tensor, " k"]
    products: Moments

    @classmethod
    def empty(cls, d: int, k: int, device: torch.device) -> "StreamSums":
        """No tokens yet."""
        shapes = ((d,), (k,), (d, d), (d, k), (k,))
        x, y, *products = (torch.zeros(s, dtype=torch.float64, device=device) for s in shapes)
        return cls(torch.zeros((), dtype=torch.int64, device=device), x, y, Moments(*products))

    @staticmethod
    def size(d: int, k: int) -> int:
        """Bytes of the sums of one site."""
        return 8 * (1 + d + k + d * d + d * k + k)

    def add_(self, x: Float[Tensor, "rows d"], y: Float[Tensor, "rows k"]) -> None:
        """Adds tokens in place."""
        self.rows.add_(len(x))
        sums = self.products
        wide = x.float()
        for rows, wanted in zip(wide.split(PART), y.split(PART), strict=True):
            targets = wanted.float()
            self.x.add_(rows.sum(0, dtype=torch.float64))
            self.y.add_(targets.sum(0, dtype=torch.float64))
            sums.xy.add_((targets.T @ rows).T)
            sums.yy.add_(targets.double().square().sum(0))
        for rows in wide.split(ROWS):
            for first in range(0, rows.shape[1], COLUMNS):
                strip = slice(first, first + COLUMNS)
                sums.xx[strip, first:].add_(_product(rows[:, strip], rows[:, first:]))

    def merge(self, other: "StreamSums") -> "StreamSums":
        """The sums over the tokens of both."""
        ours, theirs = self.products, other.products
        products = Moments(ours.xx + theirs.xx, ours.xy + theirs.xy, ours.yy + theirs.yy)
        return StreamSums(self.rows + other.rows, self.x + other.x, self.y + other.y, products)

    def moments(self) -> Moments:
        """Moments about the origin, on the CPU."""
        xx, xy, yy = (part.cpu() for part in vars(self.products).values())
        return Moments(xx.triu() + xx.triu(1).T, xy, yy)

    def centred(self) -> CentredMoments:
        """Moments about the means, on the CPU.

        Where a channel's mean is m times its spread, they are known 1 + m^2 times less exactly.
        """
        return CentredMoments.from_sums(int(self.rows), self.x.cpu(), self.y.cpu(), self.moments())


def _product(a: Float[Tensor, "rows m"], b: Float[Tensor, "rows n"]) -> Float[Tensor, "m n"]:
    """a^T b, in their dtype."""
    total = a.new_zeros(a.shape[1], b.shape[1])
    for some, others in zip(a.split(PART), b.split(PART), strict=True):
        total.addmm_(some.T, others)
    return total


def site_groups(
    sites: tuple[str, ...], d: int, k: int, bound: int = BOUND
) -> tuple[tuple[str, ...], ...]:
    """Sites in their order, in groups whose sums fit into the bound together.

    Raises:
        InputError: Not even one site fits.
    """
    fitting = bound // StreamSums.size(d, k)
    if not fitting:
        size = StreamSums.size(d, k)
        raise InputError(f"moments of one site are {size} bytes; the bound is {bound}")
    return tuple(sites[i : i + fitting] for i in range(0, len(sites), fitting))


@torch.no_grad()
def stream_sums(
    model: HookedModel,
    batches: Iterable[Tensor],
    sites: tuple[str, ...],
    targets: Targets = NOTHING,
) -> Mapping[str, StreamSums]:
    """Sums at sites of the stream from one pass over the batches, by site.

    No block above the deepest site is run.

    Raises:
        InputError: There are no tokens, a site is never passed, or a stream is not finite.
    """
    sums: dict[str, StreamSums] = {}

    def add(stream: Tensor, site: str, wanted: Tensor) -> None:
        x = stream[:, targets.asked].flatten(0, 1)
        if site not in sums:
            sums[site] = StreamSums.empty(x.shape[-1], targets.width, x.device)
        sums[site].add_(x, wanted.flatten(0, 1).to(x.device))

    for tokens in batches:
        wanted = targets.of(tokens)
        read_sites(model, tokens, {site: partial(add, site=site, wanted=wanted) for site in sites})
    for site in sites:
        if site not in sums:
            raise InputError("no tokens to take moments of")
        if not bool(sums[site].x.isfinite().all()):
            raise InputError(f"{site}: the stream is not finite")
    return sums


def stream_groups(
    model: HookedModel,
    batches: Iterable[Tensor],
    sites: tuple[str, ...],
    targets: Targets = NOTHING,
    bound: int = BOUND,
) -> Iterator[Mapping[str, StreamSums]]:
    """Sums of all sites, one group after the other, so that no more than `bound` bytes are held.

    Every group takes a pass of its own over the batches, as far as its own deepest site. Whoever
    takes the next group should have let go of the one before.

    Raises:
        InputError: As in `stream_sums`; or there are several groups, but the batches can be gone
            through only once.
    """
    groups = site_groups(sites, model.d_model, targets.width, bound)
    if len(groups) > 1 and iter(batches) is batches:
        raise InputError(f"{len(groups)} passes are needed, but the batches can be read only once")
    for group in groups:
        yield stream_sums(model, batches, group, targets)
