"""The measures as rows."""

from collections.abc import Iterator

import pandas as pd
import torch

from probe.findings import Table
from probe.token_binding.measure import Measures, mean_over_sequences
from probe.views import ANOTHER, SUBJECT, TWIN


def tables(measures: Measures) -> tuple[Table, ...]:
    """One per measure; layer 0 is the stream before the first block, lag 0 the token itself."""
    return (
        Table("token_binding", pd.DataFrame(_decoded(measures))),
        Table("token_binding_attention", pd.DataFrame(_attention(measures))),
        Table("token_binding_derivatives", pd.DataFrame(_derivatives(measures))),
    )


def _decoded(measures: Measures) -> Iterator[dict[str, object]]:
    subject, twin, another = (measures.decoded[view] for view in (SUBJECT, TWIN, ANOTHER))
    for layer in range(subject.layers):
        for lag in range(subject.lags):
            r2, held = subject.r2(layer, lag), subject.held(layer, lag)
            yield {
                "layer": layer,
                "lag": lag,
                "r2": r2.value,
                "r2_lo": r2.lo,
                "r2_hi": r2.hi,
                "held": held.value,
                "held_lo": held.lo,
                "held_hi": held.hi,
                "mean_square": subject.mean_square(layer, lag).value,
                "twin_r2": twin.r2(layer, lag).value,
                "twin_held": twin.held(layer, lag).value,
                "another_r2": another.r2(layer, lag).value,
            }


def _attention(measures: Measures) -> Iterator[dict[str, object]]:
    both = zip(measures.attention[SUBJECT], measures.attention[TWIN], strict=True)
    for block, (subject, twin) in enumerate(both):
        of_all = subject.total.mean(0)
        for head in range(subject.by_lag.shape[1]):
            for lag in range(subject.by_lag.shape[2]):
                norm = mean_over_sequences(subject.by_lag[:, head, lag])
                yield {
                    "layer": block + 1,
                    "head": head + 1,
                    "lag": lag,
                    "contribution": norm.value,
                    "lo": norm.lo,
                    "hi": norm.hi,
                    "share_of_head": norm.value / float(of_all[head]) if of_all[head] else 0.0,
                    "twin_contribution": float(twin.by_lag[:, head, lag].mean()),
                }


def _derivatives(measures: Measures) -> Iterator[dict[str, object]]:
    subject, twin = measures.late[SUBJECT], measures.late[TWIN]
    norms, twins, middle = (
        torch.cat([found.stream, found.output[:, None]], 1)
        for found in (subject, twin, measures.middle)
    )
    names = [*map(str, range(subject.stream.shape[1])), "prediction"]
    for row, layer in enumerate(names):
        for lag in range(norms.shape[2]):
            norm = mean_over_sequences(norms[:, row, lag])
            yield {
                "layer": layer,
                "lag": lag,
                "norm": norm.value,
                "lo": norm.lo,
                "hi": norm.hi,
                "norm_in_the_middle": float(middle[:, row, lag].mean()),
                "twin_norm": float(twins[:, row, lag].mean()),
            }
