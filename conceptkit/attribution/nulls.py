"""Null distributions of scores: directions fitted to shuffled concepts with the same groups."""

from __future__ import annotations

import numpy as np

from conceptkit.attribution.directions import Orders
from conceptkit.attribution.tcav import SCORES
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.permutation import level_of
from conceptkit.probe.targets import Target
from conceptkit.probe.testing import blocks_between, blocks_within


def shuffle_rows(target: Target, draws: int, seed: int) -> Orders:
    """Shuffle a concept at the level at which it varies (see :func:`conceptkit.probe.permutation.level_of`).

    Without groups, rows are permuted. A concept that varies only within groups is permuted in each. Otherwise groups
    are permuted, and the rows in them too: a group takes the values of another one, repeated if that is smaller, so
    that patches of a patient remain as similar as before. Permutations stay within known centers in which the concept
    varies.

    Returns
    -------
    (draws, n) source row of each row's value; draws without one of the classes are repeated
    """
    rng = np.random.default_rng([seed, 3])
    level = level_of(target).name
    blocks = blocks_between(target) if level == "groups" else blocks_within(target)
    cells = np.zeros(len(target.y), dtype=np.intp) if blocks.strata is None else blocks.strata
    clusters = target.clusters if level == "groups" or blocks.units is not None else cells
    strata = np.arange(int(clusters.max()) + 1)
    if level == "groups":
        strata = np.zeros_like(strata) if blocks.strata is None else blocks.strata
    members = [np.flatnonzero(clusters == g) for g in range(len(strata))]
    out = np.empty((draws, len(target.y)), dtype=np.intp)
    for order in out:
        while True:
            source = np.arange(len(members))
            for stratum in np.unique(strata):
                at = np.flatnonzero(strata == stratum)
                source[at] = rng.permutation(at)
            for own, other in zip(members, source, strict=True):
                order[own] = np.resize(rng.permutation(members[other]), len(own))
            if len(np.unique(target.y[order])) >= max(2, target.n_classes):
                break
    return out


def score_all(S: Floats, r2: Floats | float) -> dict[str, Floats]:
    """Return every score (t,) of derivatives S (n, t)."""
    return {name: score(S, r2) for name, score in SCORES.items()}


def two_sided_p(observed: float, null: Floats, indifferent: float = 0.0) -> float:
    """Return (1 + #{null at least as far from indifference}) / (1 + number); NaN for a score without a value.

    A shuffle whose score has no value counts as at least as far.
    """
    if not np.isfinite(observed) or not len(null):
        return float("nan")
    reached = ~(np.abs(null - indifferent) < abs(observed - indifferent) * (1 - 1e-9))
    return float((1 + reached.sum()) / (1 + len(null)))
