"""The tasks of von Oswald et al. 2023 whose constants are part of the task.

The arrays beside this file were computed from the seeds that the paper's code states (W:
orthogonal, seed 42; A and B: Gaussian times 1.1, seeds 421 and 422).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics
from probe.tasks.nonlinear_dynamics import FeatureMap, NonlinearDynamics
from probe.tasks.teachers import Fixed, Orthogonal

with np.load(Path(__file__).with_suffix(".npz"), allow_pickle=False) as _arrays:
    _CONSTANTS = {name: torch.from_numpy(_arrays[name]).double() for name in _arrays}

_FIXED = LinearDynamics("von-oswald-2023/fixed-teacher", Fixed(_CONSTANTS["W"]))

NAMED = {
    _FIXED.name: _FIXED,
    "von-oswald-2023/fixed-teacher-constructed": replace(
        _FIXED, name="von-oswald-2023/fixed-teacher-constructed", layout=ConstructedTokens()
    ),
    "von-oswald-2023/nonlinear": NonlinearDynamics(
        "von-oswald-2023/nonlinear", Orthogonal(), FeatureMap(_CONSTANTS["A"], _CONSTANTS["B"])
    ),
}
