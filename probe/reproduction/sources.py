"""Reads published result files; what cannot be read becomes a reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.checkpoints.safe_pickle import read_pickle
from probe.errors import InputError
from probe.reproduction import published
from probe.reproduction.measure import SEEDS
from probe.reproduction.published import Claim
from probe.solvers.chebyshev_recursion import Recursion

Keys = tuple[str | int, ...]

# No published data file holds these two; the others are read from the folder.
_STATED = {
    "constructed": Recursion(
        (1.0257748, 3.2508426, 3.2583678, 3.2122886, 2.694414, 1.2727231),
        (0.0, 0.6787798, 0.30748147, 0.74470717, 1.8360422, 2.3438027),
    ),
    "partial": Recursion(
        (1.0931315, 3.109863, 3.1626225, 3.0759215, 1.9025781, 0.22242576),
        (0.0, 0.7379088, 0.18275392, 0.7571611, 1.2497796, 2.2919629),
    ),
}
# Entry 2 claims to be that of partial observation, but repeats entry 0.
_ENTRIES = {"linear": 0, "linear-2": 1, "nonlinear": 3}


# Files that hold means and standard deviations instead of seeds; where each stands in an entry.
_TOKENS = (("results_means", 0), ("results_svs", 0))
_MEANS: Mapping[str, tuple[Keys, Keys | None]] = {
    published.BINDING: _TOKENS,
    published.FEATURES: _TOKENS,
    published.EMBEDDED_FEATURES: _TOKENS,
    published.SENSITIVITY: ((0, "*", 0), (1, "*", 0)),
    published.SENSITIVITY_TO_OLDER: ((2, "*", 0), None),
}


@dataclass(frozen=True)
class Published:
    """A published array.

    Attributes:
        mean: Mean over the published seeds.
        spread: Standard deviation over the seeds (with n - 1); None where it was not published.
        mean_spread: That of the mean over positions and columns, likewise.
    """

    mean: Float[Tensor, "positions columns"]
    spread: Float[Tensor, "positions columns"] | None = None
    mean_spread: float | None = None


@dataclass(frozen=True)
class Source:
    """A copy of the folder experiment_results; each file is read once."""

    folder: Path
    _contents: dict[str, Any] = field(default_factory=dict, repr=False)

    def holds(self, file: str) -> bool:
        """Whether a file, or the file of `FILE#TREE`, is there."""
        return (self.folder / file.partition("#")[0]).is_file()

    def files(self) -> tuple[str, ...]:
        """Paths of all files in the folder, sorted."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return tuple(sorted(path.relative_to(self.folder).as_posix() for path in found))

    def read(self, claim: Claim) -> Published:
        """The array of a claim.

        Raises:
            InputError: The file is missing or damaged, or holds something else at this place.
        """
        if claim.quantity in _MEANS:
            mean, spread = _MEANS[claim.quantity]
            return Published(self._means(claim, mean), self._spreads(claim, spread))
        runs = self._array(claim, claim.keys)
        if runs.ndim == 0:
            return Published(runs[None, None])
        if runs.ndim not in (2, 3):
            raise _unreadable(claim)
        if claim.quantity == published.CONTROL:  # the same number in the column of every layer
            runs = runs[..., :1]
        runs = runs if runs.ndim == 3 else runs[..., None]
        mean_spread = float(runs.mean((1, 2)).std(correction=1))
        return Published(runs.mean(0), runs.std(0, correction=1), mean_spread)

    @cached_property
    def recursions(self) -> dict[str, Recursion]:
        """Trained constants by name; without the file, those that are stated elsewhere."""
        try:
            alphas, betas = (self._at(published.CHEBYSHEV, (name,)) for name in ("alphas", "betas"))
            stored = {
                name: Recursion(tuple(map(float, alphas[entry])), tuple(map(float, betas[entry])))
                for name, entry in _ENTRIES.items()
            }
        except (InputError, IndexError, TypeError, ValueError):
            stored = {}
        return _STATED | stored

    def _means(self, claim: Claim, keys: Keys) -> Tensor:
        """Positions in ascending order by columns."""
        found = self._array(claim, (*claim.keys, *keys))
        if found.ndim not in (1, 2):
            raise _unreadable(claim)
        found = found[:, None] if found.ndim == 1 else found.mT
        # Sensitivities are listed from the token itself backwards.
        return found.flip(0) if claim.quantity == published.SENSITIVITY else found

    def _spreads(self, claim: Claim, keys: Keys | None) -> Tensor | None:
        """The files hold standard deviations with n, not n - 1."""
        if keys is None:
            return None
        return self._means(claim, keys) * (SEEDS / (SEEDS - 1)) ** 0.5

    def _array(self, claim: Claim, keys: Keys) -> Tensor:
        try:
            found = np.asarray(self._at(claim.file, keys), dtype=np.float64)
        except (ValueError, TypeError):
            raise _unreadable(claim) from None
        array = torch.from_numpy(found)
        if not array.numel() or not bool(array.isfinite().all()):
            raise _unreadable(claim)
        return array

    def _at(self, file: str, keys: Keys) -> Any:
        if not self.holds(file):
            raise InputError(f"{file}: not in the folder")
        if file not in self._contents:
            self._contents[file] = read_pickle(self.folder / file)
        try:
            return _walk(self._contents[file], keys)
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{file}: nothing at {'/'.join(map(str, keys))}") from None


def _walk(value: Any, keys: Keys) -> Any:
    """What stands at the end of the keys; "*" walks on in every item."""
    for depth, key in enumerate(keys):
        if key == "*":
            return [_walk(item, keys[depth + 1 :]) for item in value]
        value = value[key]
    return value


def _unreadable(claim: Claim) -> InputError:
    where = "/".join(map(str, claim.keys))
    return InputError(f"{claim.file}: no finite numbers by seed and position at {where}")
