"""Dark regions at many thresholds, how nucleus-like each is, and the best set of them that do not overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int32]
Score = Callable[[Floats], Floats]

FEATURES = ("log area", "ellipse", "eccentricity", "edge", "mean", "rim", "circularity", "spread", "hue", "local")
"""What is read of a region: area (log, relative to 30 µm²), area over that of the ellipse of equal moments,
eccentricity, drop of hematoxylin across the rim, hematoxylin inside and at the rim, circularity, standard deviation
inside, blue minus red absorption, and how much darker it is than its surroundings of 12 µm. Amounts of hematoxylin are
relative to the image: 0 is its median, 1 its 99.5th percentile."""

_TYPICAL = 120.0  # pixels of 0.5 µm: 30 µm²


@dataclass(frozen=True)
class Fields:
    """An image of 0.5 µm per pixel, prepared."""

    dark: NDArray[np.float32]
    """(h, w) hematoxylin, 0 at the image's median and 1 at its 99.5th percentile."""
    hue: NDArray[np.float32]
    """(h, w) blue minus red absorption, relative to the whole."""
    around: NDArray[np.float32]
    """(h, w) mean of ``dark`` over 12 µm."""

    @cached_property
    def ahead(self) -> tuple[NDArray[np.float32], ...]:
        """``dark`` two pixels to the right, to the left, below and above of each, flat; the edge repeated."""
        wide = np.pad(self.dark, 2, mode="edge")
        return tuple(
            np.ascontiguousarray(part).ravel()
            for part in (wide[2:-2, 4:], wide[2:-2, :-4], wide[4:, 2:-2], wide[:-4, 2:-2])
        )


@dataclass(frozen=True)
class Regions:
    """Regions that do not overlap: k of them, with p pixels in all."""

    pixels: NDArray[np.intp]
    """(p,) flat index of each pixel."""
    owner: NDArray[np.intp]
    """(p,) region of each pixel."""
    area: Floats
    """(k,)"""
    features: Floats
    """(k, len(FEATURES))"""


def describe(labels: Labels, number: int, fields: Fields) -> Regions:
    """Return the regions 1 … ``number`` of a label image (h, w), with what is read of them."""
    pixels = np.flatnonzero(labels)
    return _described(
        labels, np.arange(number + 1), pixels, labels.ravel().take(pixels).astype(np.intp), number, fields
    )


def _described(
    labels: Labels,
    numbers: NDArray[np.intp],
    pixels: NDArray[np.intp],
    owner: NDArray[np.intp],
    number: int,
    fields: Fields,
) -> Regions:
    """Describe regions of a label image, given the number of each label (0: not wanted), their pixels and owners."""
    width = labels.shape[1]
    owner = owner - 1
    area = np.bincount(owner, minlength=number).astype(np.float64)
    safe = np.maximum(area, 1)

    def mean(values: NDArray[np.floating]) -> Floats:
        return np.asarray(np.bincount(owner, values, number) / safe)

    rows = pixels // width
    y, x = rows.astype(np.float64), (pixels - rows * width).astype(np.float64)
    my, mx = mean(y), mean(x)
    yy, xx, xy = mean(y * y) - my * my + 1 / 12, mean(x * x) - mx * mx + 1 / 12, mean(x * y) - mx * my
    ellipse = area / (4 * np.pi * np.sqrt(np.maximum(yy * xx - xy * xy, 1e-9)))
    root = np.sqrt((yy - xx) ** 2 + 4 * xy * xy)
    eccentricity = np.sqrt(np.clip(1 - (yy + xx - root) / (yy + xx + root), 0, 1))

    sides, rim, beyond = _rims(labels, numbers, number, fields)
    sides = np.maximum(sides, 1)
    inside = fields.dark.ravel().take(pixels).astype(np.float64)
    average = mean(inside)
    spread = np.sqrt(np.maximum(mean(inside * inside) - average * average, 0))
    features = np.stack(
        [
            np.log(safe / _TYPICAL),
            ellipse,
            eccentricity,
            (rim - beyond) / sides,
            average,
            rim / sides,
            16 * area / sides**2,  # 1 for a square: sides are counted, not their length
            spread,
            mean(fields.hue.ravel().take(pixels)),
            average - mean(fields.around.ravel().take(pixels)),
        ],
        axis=1,
    )
    return Regions(pixels, owner, area, features)


def _rims(labels: Labels, numbers: NDArray[np.intp], number: int, fields: Fields) -> tuple[Floats, Floats, Floats]:
    """Return, for each region, how many sides of pixels face another region or none, and the sums along them of the
    darkness inside and of that two pixels further out."""
    width = labels.shape[1]
    flat, dark = labels.ravel(), fields.dark.ravel()
    sideways = np.flatnonzero(labels[:, 1:] != labels[:, :-1])
    sideways += sideways // (width - 1)  # as pixels of the whole image
    downward = np.flatnonzero(labels[1:] != labels[:-1])
    totals = np.zeros((3, number + 1))
    for at, ahead in zip((sideways, sideways + 1, downward, downward + width), fields.ahead, strict=True):
        own = numbers.take(flat.take(at))
        totals[0] += np.bincount(own, minlength=number + 1)
        totals[1] += np.bincount(own, dark.take(at), number + 1)
        totals[2] += np.bincount(own, ahead.take(at), number + 1)
    return totals[0, 1:], totals[1, 1:], totals[2, 1:]


def candidates(fields: Fields, *, thresholds: Floats, smallest: int, largest: int, hole: int) -> list[Regions]:
    """Return the dark connected regions at each threshold, from the lowest to the highest, holes filled.

    Each region of a higher threshold lies inside one of the lower ones, so that they form trees.
    """
    from scipy import ndimage

    found = []
    for threshold in thresholds:
        mask = fields.dark > threshold
        outside, _ = ndimage.label(~mask)
        small = np.bincount(outside.ravel()) < hole
        small[0] = False
        mask |= small.take(outside)
        labels, number = ndimage.label(mask)
        pixels = np.flatnonzero(mask)  # a third of the image, so that what follows is not done on all of it
        owner = labels.ravel().take(pixels).astype(np.intp)
        area = np.bincount(owner, minlength=number + 1)
        fits = (area >= smallest) & (area <= largest)
        kept = int(fits.sum())
        if kept:
            numbers = np.zeros(number + 1, dtype=np.intp)
            numbers[fits] = np.arange(1, kept + 1)
            owner = numbers.take(owner)
            inside = owner > 0
            found.append(_described(labels, numbers, pixels[inside], owner[inside], kept, fields))
    return found


def best_set(levels: list[Regions], score: Score, shape: tuple[int, int], *, least: float, power: float) -> Labels:
    """Return the regions that do not overlap and whose summed value is largest, as labels (h, w).

    A region's value is its score above ``least`` times its area to the ``power``; going from the highest threshold to
    the lowest, a region is preferred to those inside it when its value is at least their sum.
    """
    starts = np.cumsum([0] + [len(level.area) for level in levels])
    total = int(starts[-1])
    value, taken, parent = np.zeros(total), np.zeros(total, dtype=np.bool_), np.full(total, -1)
    within = np.full(shape[0] * shape[1], -1, dtype=np.intp)
    for k in range(len(levels) - 1, -1, -1):
        level, start = levels[k], int(starts[k])
        own = level.area**power * np.maximum(score(level.features) - least, 0)
        number = len(own)
        inner = within[level.pixels]
        some = inner >= 0
        child, first = np.unique(inner[some], return_index=True)  # a region lies in one other, whichever its pixel
        holder = level.owner[some][first]
        parent[child] = holder + start
        below = np.bincount(holder, value[child], number)
        taken[start : start + number] = (own >= below) & (own > 0)
        value[start : start + number] = np.maximum(own, below)
        within[level.pixels] = level.owner + start
    out = np.zeros(shape[0] * shape[1], dtype=np.int32)
    covered = np.zeros(total, dtype=np.bool_)
    number = 0
    for k, level in enumerate(levels):
        ids = np.arange(starts[k], starts[k + 1])
        up = parent[ids]
        covered[ids] = np.where(up >= 0, covered[up] | taken[up], False)
        final = taken[ids] & ~covered[ids]
        names = np.zeros(len(ids), dtype=np.int32)
        names[final] = number + 1 + np.arange(int(final.sum()))
        number += int(final.sum())
        name = names[level.owner]
        shown = name > 0
        out[level.pixels[shown]] = name[shown]
    return out.reshape(shape)


def split_touching(labels: Labels, fields: Fields, score: Score, *, apart: int) -> Labels:
    """Return labels in which regions are parted where their parts look more like nuclei than the whole.

    The parts are those of a watershed on the distance from the region's own rim, with its maxima ``apart`` pixels or
    more apart.
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    number = int(labels.max())
    if number == 0:
        return labels
    whole = describe(labels, number, fields)
    doubtful = (whole.features[:, 1] < 0.95) & (whole.area >= 40)  # ellipses are one nucleus already
    mask = np.concatenate([[False], doubtful])[labels]
    distance = ndimage.distance_transform_cdt(_parted(labels) & mask, metric="taxicab").astype(np.float32)
    distance = ndimage.gaussian_filter(distance, 1.0)
    top = (distance == ndimage.maximum_filter(distance, 2 * apart + 1)) & mask & (distance > 0.5)
    markers, _ = ndimage.label(top, structure=np.ones((3, 3)))
    parts: Labels = watershed(-distance, markers, mask=mask).astype(np.int32)  # type: ignore[no-untyped-call]
    n = int(parts.max())
    if n == 0:
        return labels
    described = describe(parts, n, fields)
    holder = np.zeros(n, dtype=np.intp)
    holder[described.owner] = labels.ravel()[described.pixels] - 1
    share = np.bincount(holder, described.area, number)
    together = np.bincount(holder, described.area * np.clip(score(described.features), 0, 1), number)
    several = np.bincount(holder, minlength=number) > 1
    better = several & (together > share * score(whole.features))
    replace = np.concatenate([[False], better])[labels] & (parts > 0)
    return np.where(replace, parts + np.int32(number), labels)


def _parted(labels: Labels) -> NDArray[np.bool_]:
    """Return the regions' pixels without those that touch another region above or to the left."""
    inside = labels > 0
    inside[1:] &= (labels[1:] == labels[:-1]) | (labels[:-1] == 0)
    inside[:, 1:] &= (labels[:, 1:] == labels[:, :-1]) | (labels[:, :-1] == 0)
    return inside
