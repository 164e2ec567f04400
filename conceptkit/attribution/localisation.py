"""Whether concept maps lie on nuclei: pointing game and precision-recall at the layer's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.paired import PairedInterval, Scored, paired_interval
from conceptkit.evaluate.scores import Floats

COVERED = 0.25
"""Share of a position that nuclei cover from which it counts as theirs"""

SHIFTS = 20
"""Random cyclic moves of each map"""


@dataclass(frozen=True)
class Localised:
    """Scores of a map, mean over patients."""

    auprc: float
    shifted: float
    random: float
    gain: PairedInterval
    """Of ``auprc`` over ``shifted``"""
    pointing: float
    pointing_shifted: float
    patches: int


def covered(labels: NDArray[np.integer], rows: int, columns: int) -> Floats:
    """Return the share (rows, columns) of each position that nuclei of a label image (h, w) cover."""
    whole = (labels > 0).astype(np.float64)
    for axis, count in ((0, rows), (1, columns)):
        ends = np.linspace(0, whole.shape[axis], count + 1)
        sums = np.insert(whole.cumsum(axis), 0, 0.0, axis=axis)
        # Interpolated sums: the positions of a layer need not be whole pixels wide.
        lower = np.minimum(ends.astype(np.intp), whole.shape[axis])
        upper = np.minimum(lower + 1, whole.shape[axis])
        share = (ends - lower).reshape([-1 if k == axis else 1 for k in range(2)])
        at = np.take(sums, lower, axis) * (1 - share) + np.take(sums, upper, axis) * share
        whole = np.diff(at, axis=axis) / (ends[1] - ends[0])
    return whole


def average_precision(maps: Floats, there: NDArray[np.bool_]) -> Floats:
    """Return the area under precision and recall (k,) of scores (k, p) for positions ``there`` (p,)."""
    hits = there[np.argsort(-maps, axis=1, kind="stable")]
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    out: Floats = (precision * hits).sum(1) / there.sum()
    return out


def localise(
    maps: Sequence[Floats], random: Sequence[Floats], coverage: Sequence[Floats], groups: NDArray[np.intp], seed: int
) -> Localised | None:
    """Score the maps of a concept against the positions that nuclei cover.

    Parameters
    ----------
    maps : of each patch (rows, columns)
    random : of each patch (k, rows, columns), the maps of random vectors
    coverage : of each patch (rows, columns), of :func:`covered`
    groups : patient of each patch, a number
    seed : of the moves

    Returns
    -------
    ``None`` where no patch has positions of both kinds
    """
    rng = np.random.default_rng(seed)
    found = []
    kept = []
    for k, (own, other, share) in enumerate(zip(maps, random, coverage, strict=True)):
        there = (share >= COVERED).ravel()
        if not there.any() or there.all():
            continue
        moves = rng.integers(0, share.shape, (SHIFTS, 2))
        moves[(moves == 0).all(1)] = 1
        moved = np.stack([np.roll(own, move, axis=(0, 1)).ravel() for move in moves])
        own_ap, shifted = average_precision(own.reshape(1, -1), there)[0], average_precision(moved, there).mean()
        noise = average_precision(other.reshape(len(other), -1), there).mean()
        found.append((own_ap, shifted, noise, there[own.argmax()], there[moved.argmax(1)].mean()))
        kept.append(k)
    if not found:
        return None
    scores, patients = np.array(found, dtype=np.float64), np.unique(groups[kept], return_inverse=True)[1]
    means = np.stack([np.bincount(patients, column) / np.bincount(patients) for column in scores.T], axis=1)
    g = len(means)
    scored = []
    for column in means[:, :2].T:
        deleted = (column.sum() - column) / max(g - 1, 1)
        scored.append(Scored(float(column.mean()), deleted))
    auprc, shifted, noise, pointing, by_shift = (float(value) for value in means.mean(0))
    gain = paired_interval([scored[0]], [scored[1]])
    return Localised(auprc, shifted, noise, gain, pointing, by_shift, len(found))
