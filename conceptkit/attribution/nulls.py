"""Null distributions of scores: directions fitted to shuffled concepts with the same groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from conceptkit.attribution.directions import Orders
from conceptkit.attribution.tcav import SCORES
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.permutation import level_of
from conceptkit.probe.targets import Target
from conceptkit.probe.testing import blocks_between, blocks_within


def shuffle_rows(target: Target, draws: int, seed: int) -> Orders:
    """Shuffle a concept at the level at which it varies (see :func:`conceptkit.probe.permutation.level_of`).

    Without groups, rows are permuted. A concept that varies only within groups is permuted in each: rows within the
    nested units, or whole nested units where it is constant in each of them. Otherwise groups are permuted, and the
    nested units and rows in them too: a group takes the values of another one, repeated if that is smaller, so that
    patches of a patient or slide remain as similar as before. Permutations stay within known centers in which the
    concept varies.

    Returns
    -------
    (draws, n) source row of each row's value; draws without one of the classes are repeated
    """
    rng = np.random.default_rng([seed, 3])
    whole = level_of(target).name == "groups"
    blocks = blocks_between(target) if whole else blocks_within(target)
    n = len(target.y)
    if blocks.units is not None:
        units = blocks.units
        strata = np.zeros(int(units.max()) + 1, dtype=np.intp) if blocks.strata is None else blocks.strata
    else:  # rows change places within the strata: each of these is a unit that takes its own values
        units = np.zeros(n, dtype=np.intp) if blocks.strata is None else blocks.strata
        strata = np.arange(int(units.max()) + 1)
    inner = target.nested if whole and target.nested is not None else units
    members = [_split(np.flatnonzero(units == unit), inner) for unit in range(len(strata))]
    out = np.empty((draws, n), dtype=np.intp)
    for order in out:
        while True:
            source = np.arange(len(members))
            for stratum in np.unique(strata):
                at = np.flatnonzero(strata == stratum)
                source[at] = rng.permutation(at)
            for own, other in zip(members, source, strict=True):
                for rows, given in zip(own, _taken(members[other], len(own), rng), strict=True):
                    order[rows] = np.resize(rng.permutation(given), len(rows))
            if len(np.unique(target.y[order])) >= max(2, target.n_classes):
                break
    return out


def _split(rows: NDArray[np.intp], inner: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return rows (n,) by their inner unit."""
    return [rows[inner[rows] == unit] for unit in np.unique(inner[rows])]


def _taken(parts: list[NDArray[np.intp]], count: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Return ``count`` of the parts of a unit in another order, repeated where there are fewer."""
    return [parts[i] for i in np.resize(rng.permutation(len(parts)), count)] if count > 1 or len(parts) > 1 else parts


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
