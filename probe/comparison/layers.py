"""Effective lambda and number of steps by layer, from the tables that `analyze` writes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from probe.rule import Thresholds

SITES = ("decoded", "readout", "output")
_STEPS = re.compile(r"\b(?:steps|degree)=(\d+)")


@dataclass(frozen=True)
class LayerReading:
    """How far a layer, or the output, has solved the context.

    Attributes:
        layer: The layer; 0 is the stream before the first block, the output has the last one's.
        site: "decoded" by a linear probe, the model's own "readout", or the "output".
        effective_lambda: Smallest mu where mu f(mu) passes 1/2 upwards; NaN if it does not.
        steps: The fewest gradient steps within tau of the best scalar response; None if no number
            of steps is.
        degree: The least degree of a polynomial within tau of it; None if none is.
        spline_r2: R^2 of the best scalar response.
    """

    layer: int
    site: str
    effective_lambda: float
    steps: int | None
    degree: int | None
    spline_r2: float


def read_layers(tables: Mapping[str, pd.DataFrame]) -> tuple[LayerReading, ...]:
    """The readings of a model, by site and layer; none where the tables lack."""
    if "effective_lambda" not in tables or "families" not in tables:
        return ()
    crossings = tables["effective_lambda"].set_index(["site", "layer"])["effective_lambda"]
    families, thresholds = tables["families"], Thresholds.load()
    judged = families[families["site"] == "decoded"]["positions"]
    kept = families["positions"].isin(set(judged)) & families["site"].isin(SITES)
    families = families[kept]
    return tuple(_readings(families, crossings, thresholds))


def _readings(
    families: pd.DataFrame, crossings: pd.Series, thresholds: Thresholds
) -> Iterator[LayerReading]:
    places = sorted(
        {
            (str(site), int(layer))
            for site, layer in zip(families["site"], families["layer"], strict=True)
        },
        key=lambda place: (SITES.index(place[0]), place[1]),
    )
    for site, layer in places:
        part = families[(families["site"] == site) & (families["layer"] == layer)]
        best = float(part[part["family"] == "spline"]["r2"].max())
        level = best - thresholds.tau if best >= thresholds.something else float("inf")
        yield LayerReading(
            layer=layer,
            site=site,
            effective_lambda=float(crossings.get((site, layer), float("nan"))),
            steps=_fewest(part, "gradient_descent", level),
            degree=_fewest(part, "polynomial", level),
            spline_r2=best,
        )


def _fewest(part: pd.DataFrame, family: str, level: float) -> int | None:
    """The fewest steps of a family that reach a level of R^2."""
    reached = part[(part["family"] == family) & (part["r2"] >= level)]
    steps = [int(found[1]) for text in reached["parameters"] if (found := _STEPS.search(text))]
    return min(steps, default=None)
