"""Reads published result files; what cannot be read becomes a reason."""

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
from probe.reproduction.published import Claim
from probe.solvers.chebyshev_recursion import Recursion

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


@dataclass(frozen=True)
class Published:
    """A published array.

    Attributes:
        mean: Mean over the published seeds.
        spread: Standard deviation over the seeds (with n - 1).
    """

    mean: Float[Tensor, "positions columns"]
    spread: Float[Tensor, "positions columns"]


@dataclass(frozen=True)
class Source:
    """A copy of the folder experiment_results; each file is read once."""

    folder: Path
    _contents: dict[str, Any] = field(default_factory=dict, repr=False)

    def holds(self, file: str) -> bool:
        """Whether a file, or the file of `FILE#TREE`, is there."""
        return (self.folder / file.partition("#")[0]).is_file()

    def read(self, claim: Claim) -> Published:
        """The array of a claim.

        Raises:
            InputError: The file is missing or damaged, or holds something else at this place.
        """
        value = self._at(claim.file, claim.keys)
        if claim.quantity == published.BINDING:
            mean, spread = (_array(claim, value, name) for name in ("results_means", "results_svs"))
            # The file holds standard deviations over 5 seeds with n, not n - 1.
            return Published(mean[0][:, None], spread[0][:, None] * (5 / 4) ** 0.5)
        runs = _array(claim, value)
        if claim.quantity == published.CONTROL:  # the same number in the column of every layer
            runs = runs[..., :1]
        runs = runs if runs.ndim == 3 else runs[..., None]
        return Published(runs.mean(0), runs.std(0, correction=1))

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

    def _at(self, file: str, keys: tuple[str | int, ...]) -> Any:
        if not self.holds(file):
            raise InputError(f"{file}: not in the folder")
        if file not in self._contents:
            self._contents[file] = read_pickle(self.folder / file)
        value = self._contents[file]
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{file}: nothing at {'/'.join(map(str, keys))}") from None
        return value


def _array(claim: Claim, value: Any, name: str | None = None) -> Tensor:
    try:
        found = np.asarray(value[name] if name else value, dtype=np.float64)
    except (ValueError, TypeError, KeyError):
        found = np.empty(0)
    array = torch.from_numpy(found)
    if array.ndim not in (2, 3) or not len(array) or not bool(array.isfinite().all()):
        where = "/".join(map(str, claim.keys))
        raise InputError(f"{claim.file}: no finite numbers by seed and position at {where}")
    return array
