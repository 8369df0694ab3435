"""Laws of the hidden matrix W, and the input laws that change them."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.sampling import generator_for, normal, uniform


@runtime_checkable
class TeacherLaw(Protocol):
    """Draws hidden matrices."""

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """Draws `count` matrices of `width` x `width`, in float64."""


def _similar_to_diagonal(
    eigenvalues: Float[Tensor, "batch width"], generator: torch.Generator
) -> Float[Tensor, "batch width width"]:
    """M diag(eigenvalues) M^-1 with a Gaussian M."""
    count, width = eigenvalues.shape
    change = normal(generator, count, width, width)
    return torch.linalg.solve(change, change * eigenvalues[:, None, :], left=False)


@dataclass(frozen=True)
class Orthogonal:
    """Uniformly (Haar) random orthogonal W, fresh for every sequence."""

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """QR of a Gaussian matrix with its signs made uniform (Mezzadri 2007, eq. 5.12)."""
        q, r = torch.linalg.qr(normal(generator, count, width, width))
        return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]


@dataclass(frozen=True)
class Gaussian:
    """W with entries N(0, tau^2 / width), fresh for every sequence."""

    tau: float = 1.0

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """Predictions have tau times the size of the inputs on average."""
        return self.tau * normal(generator, count, width, width) / width**0.5


@dataclass(frozen=True)
class Contracting:
    """W = M diag(lambda) M^-1, lambda ~ U(low, high) with one pinned to `high`, in random order."""

    low: float = 0.3
    high: float = 0.9

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """Draws eigenvalues, then the basis."""
        eigenvalues = uniform(generator, self.low, self.high, count, width)
        pinned = torch.randint(width, (count, 1), generator=generator)
        return _similar_to_diagonal(eigenvalues.scatter(1, pinned, self.high), generator)


@dataclass(frozen=True)
class GivenSpectrum:
    """W = Q diag(eigenvalues) Q^T with a Haar Q; the eigenvalues repeat to fill the width."""

    eigenvalues: tuple[float, ...]

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """A symmetric matrix in a random basis."""
        spectrum = torch.tensor(self.eigenvalues, dtype=torch.float64)
        spectrum = spectrum.repeat(-(-width // len(spectrum)))[:width]
        basis = Orthogonal().draw(count, width, generator)
        return (basis * spectrum) @ basis.mT


@dataclass(frozen=True)
class Fixed:
    """One W for all sequences: nothing is left to be learned in context."""

    matrix: Float[Tensor, "width width"] = field(repr=False)

    @property
    def matrices(self) -> Float[Tensor, "1 width width"]:
        """The one matrix, as a pool."""
        return self.matrix[None]

    @classmethod
    def from_seed(cls, width: int, seed: int) -> "Fixed":
        """A random orthogonal matrix of our own."""
        generator = generator_for(seed)
        return cls(Orthogonal().draw(1, width, generator)[0])

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """The same matrix, `count` times."""
        return self.matrix.double().expand(count, width, width)


@dataclass(frozen=True)
class Pool:
    """One of a few known matrices for every sequence: enough to recognise which."""

    matrices: Float[Tensor, "pool width width"] = field(repr=False)

    @classmethod
    def from_seed(cls, count: int, width: int, seed: int) -> "Pool":
        """Random orthogonal matrices of our own."""
        return cls(Orthogonal().draw(count, width, generator_for(seed)))

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """Each matrix is as likely as any other."""
        return self.matrices.double()[
            torch.randint(len(self.matrices), (count,), generator=generator)
        ]


@dataclass(frozen=True)
class Nudged:
    """W = W_f exp(eps K), K antisymmetric with standard normal entries, fresh for every sequence.

    The sequences stay in the distribution of W_f, yet a learner follows W and a memorised map W_f.
    """

    base: Fixed | Pool
    eps: float = 0.05

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """Turns a known teacher a little."""
        noise = normal(generator, count, width, width)
        turn = torch.linalg.matrix_exp(self.eps * (noise - noise.mT) / 2**0.5)
        return self.base.draw(count, width, generator) @ turn


def nudged(teacher: TeacherLaw, width: int, eps: float, seed: int = 0) -> Nudged:
    """Small rotations of the known teachers, or of one draw where the task's law has many."""
    if isinstance(teacher, Fixed | Pool):
        return Nudged(teacher, eps)
    return Nudged(Fixed(teacher.draw(1, width, generator_for(seed))[0]), eps)
