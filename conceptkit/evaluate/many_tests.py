"""The correction for many tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def adjust_for_many(p: Sequence[float | None]) -> list[float]:
    """Return q: p adjusted by Benjamini and Hochberg (1995) over those that are numbers; NaN for the others."""
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p, dtype=np.float64)  # None becomes NaN
    tested = np.isfinite(values)
    out = np.full(len(values), np.nan)
    if tested.any():
        out[tested] = multipletests(values[tested], method="fdr_bh")[1]
    return [float(v) for v in out]
