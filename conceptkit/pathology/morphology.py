"""Every nucleus of a batch of label masks at once: size, shape, place and neighbours, by sums over pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, cKDTree

MOST_LABEL = 1 << 22
"""Largest product of patches and labels that is counted in place; above, labels are renumbered first."""


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of a batch of n patches, one entry for each of m nuclei, in the order of patch and label."""

    n: int
    """Patches."""
    patch: NDArray[np.intp]
    """(m,) the patch that a nucleus lies in."""
    area: NDArray[np.float64]
    """(m,) pixels."""
    y: NDArray[np.float64]
    """(m,) row of the centre, in pixels."""
    x: NDArray[np.float64]
    """(m,) column of the centre."""
    moments: NDArray[np.float64]
    """(m, 3) variance of rows, of columns, and their covariance."""
    whole: NDArray[np.bool_]
    """(m,) whether it does not touch the patch's border, so that its shape is its own."""
    pixels: NDArray[np.intp]
    """(p,) flat index into (n, h, w) of each nuclear pixel."""
    owner: NDArray[np.intp]
    """(p,) nucleus of each nuclear pixel."""
    shape: tuple[int, int]
    """Height and width of a patch."""

    def mean(self, values: NDArray[np.float64], which: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Return the mean of (m,) values over the nuclei of each patch, (n,); NaN where there is none."""
        patch = self.patch
        if which is not None:
            values, patch = values[which], patch[which]
        out = np.full(self.n, np.nan)
        number = np.bincount(patch, minlength=self.n)
        np.divide(np.bincount(patch, values, self.n), number, out=out, where=number > 0)
        return out

    def sd(self, values: NDArray[np.float64], which: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Return their standard deviation (n - 1) in each patch, (n,); NaN below two nuclei."""
        mean = self.mean(values, which)
        squares = (values - mean[self.patch]) ** 2
        number = np.bincount(self.patch if which is None else self.patch[which], minlength=self.n)
        out = np.full(self.n, np.nan)
        total = self.mean(squares, which) * number
        np.divide(total, number - 1, out=out, where=number > 1)
        root: NDArray[np.float64] = np.sqrt(out)
        return root

    def inside(self, image: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of (n, h, w) values over each nucleus, (m,) each."""
        values = image.reshape(-1)[self.pixels].astype(np.float64)
        m = len(self.area)
        mean = np.bincount(self.owner, values, m) / self.area
        square = np.bincount(self.owner, (values - mean[self.owner]) ** 2, m) / self.area
        return mean, np.sqrt(square)

    def eccentricity(self) -> NDArray[np.float64]:
        """Return the eccentricity of the ellipse of equal moments, (m,): 0 for a circle, towards 1 for a line."""
        yy, xx, xy = self.moments.T
        root = np.sqrt((yy - xx) ** 2 + 4 * xy**2)
        major, minor = (yy + xx + root) / 2, (yy + xx - root) / 2
        share = np.ones(len(major))  # a single pixel counts as round
        np.divide(minor, major, out=share, where=major > 0)
        out: NDArray[np.float64] = np.sqrt(np.clip(1 - share, 0, 1))
        return out

    def solidity(self) -> NDArray[np.float64]:
        """Return area over the area of the convex hull of the pixels' corners, (m,): 1 where there is no dent."""
        hull = np.empty(len(self.area))
        order = np.argsort(self.owner, kind="stable")
        starts = np.searchsorted(self.owner[order], np.arange(len(self.area) + 1))
        height, width = self.shape
        rows, columns = np.divmod(self.pixels[order] % (height * width), width)
        for k in range(len(self.area)):
            part = slice(starts[k], starts[k + 1])
            hull[k] = _hull_area(rows[part], columns[part])
        return self.area / hull

    def neighbour_distance(self) -> NDArray[np.float64]:
        """Return the distance of each nucleus' centre to the nearest other one of its patch, (m,) px; NaN if single."""
        if len(self.area) == 0:
            return np.empty(0)
        # Patches are laid out far apart, so that one tree serves the batch and no neighbour is of another patch.
        apart = 4.0 * sum(self.shape)
        points = np.column_stack([self.y, self.x + apart * self.patch])
        distances = cKDTree(points).query(points, k=2)[0][:, 1]
        return np.where(distances < apart / 2, distances, np.nan)


def find_nuclei(masks: NDArray[np.integer]) -> Nuclei:
    """Return the nuclei of (n, h, w) label masks: 0 is background, each nucleus of a patch its own integer."""
    n, height, width = masks.shape
    flat = np.ascontiguousarray(masks).reshape(-1)
    pixels = np.flatnonzero(flat)
    labels = flat[pixels]
    place = pixels // (height * width)
    labels = labels.astype(np.int64) if labels.dtype.itemsize < 8 else labels
    top = int(labels.max()) + 1 if labels.size else 1
    if n * top > MOST_LABEL:
        labels = np.unique(labels, return_inverse=True)[1]
        top = int(labels.max()) + 1
    codes = place * top + labels.astype(np.int64)
    counts = np.bincount(codes, minlength=0)
    present = np.flatnonzero(counts)
    number = np.zeros(counts.size, dtype=np.intp)
    number[present] = np.arange(len(present))
    owner = number[codes]
    area = counts[present].astype(np.float64)
    m = len(present)
    rows, columns = np.divmod(pixels - place * (height * width), width)
    y, x = np.bincount(owner, rows, m) / area, np.bincount(owner, columns, m) / area
    dy, dx = rows - y[owner], columns - x[owner]  # centred first: raw squares would cancel
    moments = np.stack([np.bincount(owner, v, m) / area for v in (dy * dy, dx * dx, dy * dx)], axis=1)
    border = (rows == 0) | (columns == 0) | (rows == height - 1) | (columns == width - 1)
    whole = np.ones(m, dtype=np.bool_)
    whole[owner[border]] = False
    return Nuclei(n, present // top, area, y, x, moments, whole, pixels, owner, (height, width))


def _hull_area(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
    """Return the area of the convex hull of pixels as unit squares; rows come in order."""
    y, first = np.unique(rows, return_index=True)
    low, high = np.minimum.reduceat(columns, first), np.maximum.reduceat(columns, first) + 1
    corners = np.concatenate([np.column_stack([v, e]) for v in (y, y + 1) for e in (low, high)])
    return float(ConvexHull(corners).volume)  # in two dimensions qhull calls the area a volume
