"""Comparison of two models as in the paper, by resampled patches and a signed-rank test, here on paired resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from conceptkit.evaluate.scores import Floats, auc

RESAMPLES = 50


@dataclass(frozen=True)
class PatchLevelComparison:
    """AUCs of two models on resampled patches, which do not measure how both differ on new patients."""

    first: Floats
    """(resamples,) AUC of the first model, averaged over seeds"""
    second: Floats
    """(resamples,) AUC of the second model on the same resamples"""

    @property
    def p(self) -> float | None:
        """Two-sided p of Wilcoxon's signed-rank test; ``None`` when the models never differ."""
        gains = self.first - self.second
        return float(wilcoxon(gains, alternative="two-sided").pvalue) if np.any(gains) else None


def patch_resamples(y: NDArray[np.intp], *, n: int = RESAMPLES, seed: int = 0) -> NDArray[np.intp]:
    """Return row numbers (n, rows) of resamples with replacement, each with at least two classes."""
    rng = np.random.default_rng(seed)
    kept: list[NDArray[np.intp]] = []
    while len(kept) < n:
        rows = rng.integers(0, len(y), len(y))
        if len(np.unique(y[rows])) > 1:
            kept.append(rows)
    return np.stack(kept)


def compare_patches(
    y: NDArray[np.intp], first: Sequence[Floats], second: Sequence[Floats], resamples: NDArray[np.intp]
) -> PatchLevelComparison:
    """Score both models, each with scores (n,) or (n, k) per seed, on the same resamples (r, n) of patches."""

    def scores(models: Sequence[Floats]) -> Floats:
        return np.array([np.mean([auc(y[rows], model[rows]) for model in models]) for rows in resamples])

    return PatchLevelComparison(scores(first), scores(second))
