"""How well found nuclei agree with drawn ones: aggregated Jaccard index, panoptic quality, Dice, count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError


@dataclass(frozen=True)
class Agreement:
    """The agreement of one label image with another."""

    aji: float
    """Aggregated Jaccard index (Kumar et al. 2017): each annotated nucleus with the detected one of largest overlap
    over union, summed; detected nuclei without a match are added to the union."""
    pq: float
    """Panoptic quality (Kirillov et al. 2019): detection quality times mean overlap over union of the matches, at more
    than one half."""
    dq: float
    """Detection quality: F1 of the matches."""
    sq: float
    """Mean overlap over union of the matches; NaN where there is none."""
    dice: float
    """Dice coefficient of nuclear against other pixels."""
    found: int
    drawn: int


def agreement(found: NDArray[np.integer], drawn: NDArray[np.integer]) -> Agreement:
    """Compare two (h, w) label images, 0 being background.

    Where both are empty all scores are 1; where one is, they are 0.

    Raises :class:`InputError` when the images differ in shape.
    """
    if found.shape != drawn.shape:
        raise InputError(f"found: must have the shape of drawn, {drawn.shape}, got {found.shape}.")
    ours, area_found = _numbered(found)
    theirs, area_drawn = _numbered(drawn)
    n, m = len(area_found), len(area_drawn)
    if n == 0 or m == 0:
        value = 1.0 if n == m else 0.0
        return Agreement(value, value, value, value if n == m else np.nan, value, n, m)
    both = (ours > 0) & (theirs > 0)
    codes, overlap = np.unique(ours[both] * (m + 1) + theirs[both], return_counts=True)
    i, j = codes // (m + 1) - 1, codes % (m + 1) - 1
    union = area_found[i] + area_drawn[j] - overlap
    jaccard = overlap / union

    # The best found nucleus of each drawn one; several drawn ones may share one, as in the published definition.
    best = np.full(m, -1)
    order = np.argsort(jaccard, kind="stable")
    best[j[order]] = order  # of equal keys the last is kept: the largest
    matched = best[best >= 0]
    unused = np.ones(n, dtype=np.bool_)
    unused[i[matched]] = False
    intersection = overlap[matched].sum()
    aggregate = union[matched].sum() + area_drawn[best < 0].sum() + area_found[unused].sum()

    true = jaccard > 0.5  # at more than one half a match is the only one
    tp = int(true.sum())
    dq = 2 * tp / (n + m)
    sq = float(jaccard[true].mean()) if tp else np.nan
    dice = 2 * int(both.sum()) / int(area_found.sum() + area_drawn.sum())
    return Agreement(float(intersection / aggregate), dq * sq if tp else 0.0, dq, sq, dice, n, m)


def _numbered(labels: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the flat labels as 1 … n without gaps, and the area of each."""
    values, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    flat = numbers.ravel().astype(np.int64)
    if values[0] == 0:
        return flat, counts[1:].astype(np.int64)
    return flat + 1, counts.astype(np.int64)
