"""Where in the stream a token meets its pair: keys, values and queries read off each layer.

A least-squares layer at position t needs the newest pair (k_t, v_t) and the query q_t from the
stream at t alone. Each is regressed on the stream of every layer, all positions that hold a pair
pooled, without an intercept since a head has none. Where there is no pair yet a block that copies
the token before copies something else; the layer that is built skips those positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.moments import Moments
from probe.plan import FOLDS
from probe.problem import InContextProblem
from probe.ridge import fit_ridge, group_sums
from probe.stages import Batch, Measured, Sums
from probe.statistics import Interval, share_explained
from probe.views import SUBJECT

ROLES = ("keys", "values", "queries")
BOUND = 0.95  # held-out R^2 of all roles from which the pairs count as there


@dataclass(frozen=True)
class Binding:
    """What the stream before one block tells of the in-context problem.

    Attributes:
        layer: The block whose input it is.
        maps: For each role, the matrix that reads it from the stream, (d_model, width).
        r2: For each role, the held-out share of it that is read, uncentred.
        second: Second moments of the stream there.
        unpaired: Positions before the first pair.
    """

    layer: int
    maps: Mapping[str, Float[Tensor, "d_model _"]]
    r2: Mapping[str, Interval]
    second: Float[Tensor, "d_model d_model"]
    unpaired: int

    @property
    def complete(self) -> bool:
        """Whether every role is read."""
        return min(r2.value for r2 in self.r2.values()) >= BOUND

    def read(
        self, stream: Float[Tensor, "batch time d_model"], problem: InContextProblem
    ) -> InContextProblem:
        """The problem that the stream states; its targets are those of `problem`."""
        read = {role: stream.double() @ self.maps[role] for role in ROLES}
        read["keys"][:, : problem.first] = 0.0
        return InContextProblem(
            **read,
            targets=problem.targets.double(),
            oracle=problem.oracle.double(),
            first=problem.first,
        )


def roles(problem: InContextProblem) -> list[Float[Tensor, "batch time _"]]:
    """Keys, values and queries at the positions that hold a pair."""
    parts = (problem.keys, problem.values, problem.queries)
    return [part[:, problem.first :].double() for part in parts]


@dataclass(frozen=True)
class Maps:
    """What a BindingStage learns of every layer.

    Attributes:
        maps: The matrices of all roles side by side.
        second: Sums of x x^T over the fit split.
    """

    maps: Float[Tensor, "layers d_model _"]
    second: Float[Tensor, "layers d_model d_model"]


@dataclass(frozen=True)
class BindingStage:
    """Reads the roles from the stream before each block.

    Attributes:
        widths: Widths of keys, values and queries.
        unpaired: Positions before the first pair.
    """

    widths: tuple[int, int, int]
    unpaired: int
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = FOLDS

    @classmethod
    def of(cls, problem: InContextProblem) -> "BindingStage":
        """For problems of these widths."""
        keys, values, queries = (role.shape[-1] for role in roles(problem))
        return cls((keys, values, queries), problem.first)

    def fit(self, batch: Batch) -> Sums:
        """Moments of every layer with the roles."""
        problem = batch.context.problem
        x = batch.capture.layers[:-1, :, problem.first :].double().flatten(1, 2)
        y = torch.cat(roles(problem), -1).flatten(0, 1)
        yy = y.square().sum(0).expand(len(x), -1)
        return {"xx": x.mT @ x, "xy": x.mT @ y, "yy": yy}

    def learn(self, sums: Sums) -> Maps:
        """The maps of every layer, side by side; penalties by cross-validation."""
        return Maps(fit_ridge(Moments(**sums), self.widths).weights, sums["xx"].sum(0))

    def test(self, batch: Batch, learned: Maps) -> Sums:
        """Squared errors and squares of the roles by block."""
        problem = batch.context.problem
        y = torch.cat(roles(problem), -1)
        read = batch.capture.layers[:-1, :, problem.first :].double() @ learned.maps[:, None]
        errors = (read - y).square().sum(2)
        return {
            "error": batch.by_block(group_sums(errors, self.widths).transpose(0, 1)),
            "square": batch.by_block(group_sums(y.square().sum(1), self.widths)),
        }


def bindings(stage: BindingStage, measured: Measured) -> tuple[Binding, ...]:
    """The bindings of all layers, first to last."""
    error, square = measured.sums["error"], measured.sums["square"]

    def binding(layer: int) -> Binding:
        parts = measured.learned.maps[layer].split(stage.widths, -1)
        shares = [share_explained(error[:, layer, role], square[:, role]) for role in range(3)]
        return Binding(
            layer,
            dict(zip(ROLES, parts, strict=True)),
            dict(zip(ROLES, shares, strict=True)),
            measured.learned.second[layer],
            stage.unpaired,
        )

    return tuple(binding(layer) for layer in range(len(measured.learned.maps)))
