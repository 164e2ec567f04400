"""Dark regions at many thresholds, how nucleus-like each is, and the best set of them that do not overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

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
    return _described(labels, pixels, labels.ravel().take(pixels).astype(np.intp) - 1, number, fields)


def drawn(regions: Regions, shape: tuple[int, int]) -> Labels:
    """Return regions as labels 1 … k, (h, w), 0 where there is none."""
    out = np.zeros(shape[0] * shape[1], dtype=np.int32)
    out[regions.pixels] = regions.owner + 1
    return out.reshape(shape)


def _described(
    labels: Labels, pixels: NDArray[np.intp], owner: NDArray[np.intp], number: int, fields: Fields
) -> Regions:
    """Describe some regions of a label image, given their pixels (p,) and whose these are, 0 … ``number`` − 1."""
    width = labels.shape[1]
    area = np.bincount(owner, minlength=number).astype(np.float64)
    safe = np.maximum(area, 1)
    first, last = _runs(pixels, owner, labels.shape)

    def mean(values: NDArray[np.floating], whose: NDArray[np.intp] = owner) -> Floats:
        return np.asarray(np.bincount(whose, values, number) / safe)

    # Sums over the pixels of a run follow from its ends; all are whole numbers, and exact.
    whose, long = owner.take(first), (last - first + 1).astype(np.float64)
    rows, columns = (v.astype(np.float64) for v in np.divmod(pixels.take(first), width))
    along = long * (columns + (long - 1) / 2)
    squares = long * columns**2 + (long - 1) * long * (columns + (2 * long - 1) / 6)
    my, mx = mean(long * rows, whose), mean(along, whose)
    yy = mean(long * rows * rows, whose) - my * my + 1 / 12
    xx, xy = mean(squares, whose) - mx * mx + 1 / 12, mean(rows * along, whose) - mx * my
    ellipse = area / (4 * np.pi * np.sqrt(np.maximum(yy * xx - xy * xy, 1e-9)))
    root = np.sqrt((yy - xx) ** 2 + 4 * xy * xy)
    eccentricity = np.sqrt(np.clip(1 - (yy + xx - root) / (yy + xx + root), 0, 1))

    sides, rim, beyond = _rims(labels, pixels, owner, number, fields, first, last)
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


def _runs(
    pixels: NDArray[np.intp], owner: NDArray[np.intp], shape: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where each run begins and ends among the pixels (p,): neighbours in one row, and of one region."""
    begins = np.ones(len(pixels), dtype=np.bool_)
    np.not_equal(pixels[1:], pixels[:-1] + 1, out=begins[1:])
    begins[1:] |= owner[1:] != owner[:-1]
    height, width = shape
    row = np.searchsorted(pixels, np.arange(height) * width)
    begins[row[row < len(pixels)]] = True
    first = np.flatnonzero(begins)
    return first, np.append(first[1:], len(pixels))[: len(first)] - 1


def _rims(
    labels: Labels,
    pixels: NDArray[np.intp],
    owner: NDArray[np.intp],
    number: int,
    fields: Fields,
    first: NDArray[np.intp],
    last: NDArray[np.intp],
) -> tuple[Floats, Floats, Floats]:
    """Return, for each region, how many sides of pixels face another region or none, and the sums along them of the
    darkness inside and of that two pixels further out; beyond the image there is nothing to face.

    ``first`` and ``last`` pixels of runs are those whose sides in their row face something else.
    """
    width = labels.shape[1]
    flat, dark = labels.ravel(), fields.dark.ravel()
    own = flat.take(pixels)
    below = flat.take(pixels + width, mode="clip") != own
    below &= pixels < flat.size - width
    above = flat.take(pixels - width, mode="clip") != own
    above &= pixels >= width
    right, left = last[pixels.take(last) % width < width - 1], first[pixels.take(first) % width > 0]
    totals = np.zeros((3, number))
    for at, ahead in zip((right, left, np.flatnonzero(below), np.flatnonzero(above)), fields.ahead, strict=True):
        whose, where = owner.take(at), pixels.take(at)
        totals[0] += np.bincount(whose, minlength=number)
        totals[1] += np.bincount(whose, dark.take(where), number)
        totals[2] += np.bincount(whose, ahead.take(where), number)
    return totals[0], totals[1], totals[2]


def candidates(fields: Fields, *, thresholds: Floats, smallest: int, largest: int, hole: int) -> list[Regions]:
    """Return the dark connected regions at each threshold, from the lowest to the highest, holes filled.

    Each region of a higher threshold lies inside one of the lower ones, so that they form trees.
    """
    found = []
    for threshold in thresholds:
        mask = fields.dark > threshold
        outside, _ = ndimage.label(~mask)
        small = np.bincount(outside.ravel()) < hole
        small[0] = False
        mask |= small.take(outside)
        labels, number = ndimage.label(mask)
        pixels = np.flatnonzero(mask)  # a third of the image, so that what follows is not done on all of it
        owner = labels.ravel().take(pixels)
        area = np.bincount(owner, minlength=number + 1)
        fits = (area >= smallest) & (area <= largest)
        kept = int(fits.sum())
        if kept:
            numbers = np.full(number + 1, -1)
            numbers[fits] = np.arange(kept)
            owner = numbers.take(owner)
            inside = np.flatnonzero(owner >= 0)
            found.append(_described(labels, pixels.take(inside), owner.take(inside), kept, fields))
    return found


def best_set(levels: list[Regions], score: Score, shape: tuple[int, int], *, least: float, power: float) -> Regions:
    """Return the regions that do not overlap and whose summed value is largest.

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
        inner = within.take(level.pixels)
        some = np.flatnonzero(inner >= 0)
        parent[inner.take(some)] = level.owner.take(some) + start  # a region lies in one other, whichever its pixel
        child = np.flatnonzero((parent >= start) & (parent < start + number))
        below = np.bincount(parent[child] - start, value[child], number)
        taken[start : start + number] = (own >= below) & (own > 0)
        value[start : start + number] = np.maximum(own, below)
        within[level.pixels] = level.owner + start
    covered = np.zeros(total, dtype=np.bool_)
    chosen, number = [], 0
    for k, level in enumerate(levels):
        ids = np.arange(starts[k], starts[k + 1])
        up = parent[ids]
        covered[ids] = np.where(up >= 0, covered[up] | taken[up], False)
        chosen.append(_some(level, taken[ids] & ~covered[ids], number))
        number += len(chosen[-1].area)
    none = np.zeros(0, dtype=np.intp)
    return Regions(
        np.concatenate([none, *(part.pixels for part in chosen)]),
        np.concatenate([none, *(part.owner for part in chosen)]),
        np.concatenate([np.zeros(0), *(part.area for part in chosen)]),
        np.concatenate([np.zeros((0, len(FEATURES))), *(part.features for part in chosen)]),
    )


def _some(regions: Regions, wanted: NDArray[np.bool_], first: int) -> Regions:
    """Return some of the regions, numbered from ``first`` on."""
    numbers = np.full(len(wanted), -1)
    numbers[wanted] = first + np.arange(int(wanted.sum()))
    owner = numbers[regions.owner]
    shown = owner >= 0
    return Regions(regions.pixels[shown], owner[shown], regions.area[wanted], regions.features[wanted])


def split_touching(regions: Regions, fields: Fields, score: Score, *, apart: int) -> Labels:
    """Return regions as labels (h, w), split where their parts look more like nuclei than the whole.

    The parts are those of a watershed on the distance to the region's rim, with maxima at least ``apart`` pixels apart.
    """
    labels, number = drawn(regions, fields.dark.shape), len(regions.area)
    if number == 0:
        return labels
    doubtful = (regions.features[:, 1] < 0.95) & (regions.area >= 40)  # ellipses are one nucleus already
    mask = np.concatenate([[False], doubtful])[labels]
    distance = ndimage.distance_transform_cdt(_parted(labels) & mask, metric="taxicab").astype(np.float32)
    distance = ndimage.gaussian_filter(distance, 1.0)
    top = (distance == ndimage.maximum_filter(distance, 2 * apart + 1)) & mask & (distance > 0.5)
    markers, n_markers = ndimage.label(top, structure=np.ones((3, 3)))
    at = np.flatnonzero(markers)
    pairs = np.unique(labels.ravel()[at].astype(np.intp) * (n_markers + 1) + markers.ravel()[at])
    several = np.bincount(pairs // (n_markers + 1), minlength=number + 1) > 1
    mask = several[labels]  # regions of one maximum are not parted
    parts: Labels = watershed(-distance, markers * mask, mask=mask).astype(np.int32)  # type: ignore[no-untyped-call]
    n = int(parts.max())
    if n == 0:
        return labels
    described = describe(parts, n, fields)
    holder = np.zeros(n, dtype=np.intp)
    holder[described.owner] = labels.ravel()[described.pixels] - 1
    share = np.bincount(holder, described.area, number)
    together = np.bincount(holder, described.area * np.clip(score(described.features), 0, 1), number)
    better = several[1:] & (together > share * score(regions.features))
    replace = np.concatenate([[False], better])[labels] & (parts > 0)
    return np.where(replace, parts + np.int32(number), labels)


def _parted(labels: Labels) -> NDArray[np.bool_]:
    """Return the regions' pixels without those that touch another region above or to the left."""
    inside = labels > 0
    inside[1:] &= (labels[1:] == labels[:-1]) | (labels[:-1] == 0)
    inside[:, 1:] &= (labels[:, 1:] == labels[:, :-1]) | (labels[:, :-1] == 0)
    return inside
