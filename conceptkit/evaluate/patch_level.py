"""The paper's comparison of two models: resamples of patches and a signed-rank test, here at least on paired ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats, auc

RESAMPLES = 50


@dataclass(frozen=True)
class PatchLevelComparison:
    """What resamples of patches say of two models: nothing of new patients."""

    first: Floats
    """(resamples,) AUC of the one, averaged over seeds"""
    second: Floats
    """(resamples,) AUC of the other on the same resamples"""

    @property
    def p(self) -> float | None:
        """Return the two-sided p of Wilcoxon's signed-rank test; ``None`` when the models never differ."""
        from scipy.stats import wilcoxon

        gains = self.first - self.second
        if not np.any(gains):
            return None
        return float(wilcoxon(gains, alternative="two-sided").pvalue)


def patch_resamples(y: NDArray[np.intp], *, n: int = RESAMPLES, seed: int = 0) -> NDArray[np.intp]:
    """Return row numbers (n, rows) of resamples with replacement, each with two classes at least."""
    rng = np.random.default_rng(seed)
    found: list[NDArray[np.intp]] = []
    while len(found) < n:
        rows = rng.integers(0, len(y), len(y))
        if len(np.unique(y[rows])) > 1:
            found.append(rows)
    return np.stack(found)


def compare_patches(
    y: NDArray[np.intp], first: Sequence[Floats], second: Sequence[Floats], resamples: NDArray[np.intp]
) -> PatchLevelComparison:
    """Score both models on the same resamples of patches.

    Parameters
    ----------
    y : (n,) class numbers
    first, second : one (n,) or (n, k) per seed
    resamples : (r, n) row numbers
    """

    def scores(models: Sequence[Floats]) -> Floats:
        return np.array([np.mean([auc(y[rows], model[rows]) for model in models]) for rows in resamples])

    return PatchLevelComparison(scores(first), scores(second))
