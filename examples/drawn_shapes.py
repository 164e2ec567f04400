"""Forty families of drawn shapes and textures, on which mini_inception was pretrained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SIZE = 96

ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)

Array = NDArray[np.float64]

Rng = np.random.Generator

# A shape maps coordinates u, v (radius 1 about its centre), the number of edge widths per radius and a field of noise
# to its depth (positive inside, in radii) and to a tint (-1 to 1) that mixes its two colours.
Shape = Callable[[Array, Array, float, Array], tuple[Array, Array | float]]


def smooth_noise(rng: Rng, scale: float) -> Array:
    """Return noise (96, 96) of mean 0 and deviation 1 whose grain is about ``scale`` pixels wide."""
    knots = np.arange(-1.0, SIZE / scale + 2.0) + rng.uniform()
    weights = np.exp(-2.0 * (np.arange(SIZE)[:, None] / scale - knots) ** 2)
    field: Array = weights @ rng.standard_normal((len(knots), len(knots))) @ weights.T
    return (field - field.mean()) / (field.std() + 1e-9)


def blurred(image: Array, sigma: float) -> Array:
    """Return ``image`` (96, 96, 3) after a Gaussian blur of ``sigma`` pixels, normalised at the borders."""
    kernel = np.exp(-0.5 * ((np.arange(SIZE)[:, None] - np.arange(SIZE)) / sigma) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.einsum("ij,jkc->ikc", kernel, np.einsum("jl,ilc->ijc", kernel, image, optimize=True), optimize=True)


def turned(rng: Rng) -> tuple[Array, Array]:
    """Return coordinates (96, 96) along and across a random direction, in pixels from a random origin."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = COLUMNS - rng.uniform(0, SIZE), ROWS - rng.uniform(0, SIZE)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def coverage(depth: Array, edge: float = 1.0) -> Array:
    """Return the share of a pixel that lies inside, from its depth in pixels."""
    return np.clip(0.5 + depth / edge, 0.0, 1.0)


def polygon(u: Array, v: Array, corners: int, inner: float) -> Array:
    angles = 2 * np.pi * np.arange(corners) / corners
    return inner - np.max([u * np.cos(a) + v * np.sin(a) for a in angles], axis=0)


def lobes(u: Array, v: Array, radius: Callable[[Array], Array]) -> Array:
    return radius(np.arctan2(v, u)) - np.hypot(u, v)


def shape_disk(rng: Rng) -> Shape:
    return lambda u, v, s, n: (1 - np.hypot(u, v), 0.0)


def shape_ring(rng: Rng) -> Shape:
    w = rng.uniform(0.1, 0.25)
    return lambda u, v, s, n: (w - np.abs(np.hypot(u, v) - 1 + w), 0.0)


def shape_square(rng: Rng) -> Shape:
    return lambda u, v, s, n: (0.85 - np.maximum(np.abs(u), np.abs(v)), 0.0)


def shape_frame(rng: Rng) -> Shape:
    w = rng.uniform(0.1, 0.22)
    return lambda u, v, s, n: (w - np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.9 + w), 0.0)


def shape_triangle(rng: Rng) -> Shape:
    return lambda u, v, s, n: (polygon(u, v, 3, 0.55), 0.0)


def shape_triangle_outline(rng: Rng) -> Shape:
    w = rng.uniform(0.09, 0.16)
    return lambda u, v, s, n: (w - np.abs(polygon(u, v, 3, 0.6 - w)), 0.0)


def shape_star(rng: Rng) -> Shape:
    points, inner = rng.integers(4, 7), rng.uniform(0.3, 0.5)
    return lambda u, v, s, n: (
        lobes(u, v, lambda t: 1.1 * (inner + (1 - inner) * np.abs((t * points / np.pi) % 2 - 1) ** 1.3)),
        0.0,
    )


def shape_plus(rng: Rng) -> Shape:
    w = rng.uniform(0.15, 0.32)

    def plus(u: Array, v: Array, s: float, n: Array) -> tuple[Array, Array | float]:
        a, b = np.abs(u), np.abs(v)
        return np.maximum(np.minimum(w - a, 1 - b), np.minimum(w - b, 1 - a)), 0.0

    return plus


def shape_ellipse(rng: Rng) -> Shape:
    q = rng.uniform(0.4, 0.7)
    return lambda u, v, s, n: (q * (1.1 - np.hypot(u, v / q)), 0.0)


def shape_bar(rng: Rng) -> Shape:
    w = rng.uniform(0.1, 0.22)
    return lambda u, v, s, n: (np.minimum(1.2 - np.abs(u), w - np.abs(v)), 0.0)


def shape_crescent(rng: Rng) -> Shape:
    shift = rng.uniform(0.35, 0.6)
    return lambda u, v, s, n: (np.minimum(1 - np.hypot(u, v), np.hypot(u - shift, v) - 0.85), 0.0)


def shape_half_disk(rng: Rng) -> Shape:
    return lambda u, v, s, n: (np.minimum(1.1 - np.hypot(u, v), v - 0.05), 0.0)


def shape_hexagon(rng: Rng) -> Shape:
    corners = int(rng.integers(5, 7))
    return lambda u, v, s, n: (polygon(u, v, corners, 0.9), 0.0)


def shape_blob(rng: Rng) -> Shape:
    def blob(u: Array, v: Array, s: float, n: Array) -> tuple[Array, Array | float]:
        phases, sizes = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.04, 0.2, 4)
        wave = [(k + 2, a, p) for k, (a, p) in enumerate(zip(sizes, phases, strict=True))]
        return lobes(u, v, lambda t: np.add.reduce([0.9 + 0 * t] + [a * np.cos(k * t + p) for k, a, p in wave])), 0.0

    return blob


def shape_flower(rng: Rng) -> Shape:
    petals, deep = rng.integers(4, 8), rng.uniform(0.2, 0.35)
    return lambda u, v, s, n: (lobes(u, v, lambda t: 0.85 + deep * np.cos(petals * t)), 0.0)


def shape_burr(rng: Rng) -> Shape:
    spines, body = rng.integers(7, 12), rng.uniform(0.5, 0.65)
    return lambda u, v, s, n: (lobes(u, v, lambda t: body + 0.7 * (1 - body) * np.cos(spines * t / 2) ** 8 * 2), 0.0)


def shape_shard(rng: Rng) -> Shape:
    def shard(u: Array, v: Array, s: float, n: Array) -> tuple[Array, Array | float]:
        corners = rng.integers(4, 6)
        angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
        sides = rng.uniform(0.4, 0.95, corners)
        return -np.max([u * np.cos(a) + v * np.sin(a) - d for a, d in zip(angles, sides, strict=True)], axis=0), 0.0

    return shard


def shape_soft_spot(rng: Rng) -> Shape:
    return lambda u, v, s, n: ((np.exp(-2.5 * (u**2 + v**2)) - 0.5) / s, 0.0)


def shape_speckled(rng: Rng) -> Shape:
    q, grain = rng.uniform(0.5, 0.95), rng.uniform(0.8, 1.5)
    return lambda u, v, s, n: (q * (1.1 - np.hypot(u, v / q)), np.clip(grain * n, -1, 1))


def shape_striped(rng: Rng) -> Shape:
    q, frequency = rng.uniform(0.5, 0.95), rng.uniform(5, 9)
    return lambda u, v, s, n: (q * (1.1 - np.hypot(u, v / q)), np.clip(3 * np.sin(frequency * u), -1, 1))


def shape_rimmed(rng: Rng) -> Shape:
    q, w = rng.uniform(0.5, 0.95), rng.uniform(0.65, 0.8)
    return lambda u, v, s, n: (q * (1.1 - np.hypot(u, v / q)), np.clip(s * (np.hypot(u, v / q) - w), -1, 1))


def shape_dumbbell(rng: Rng) -> Shape:
    r = rng.uniform(0.45, 0.55)
    return lambda u, v, s, n: (r - np.hypot(np.abs(u) - 0.5, v), 0.0)


def shape_chevron(rng: Rng) -> Shape:
    w, slope = rng.uniform(0.1, 0.2), rng.uniform(0.6, 1.2)
    return lambda u, v, s, n: (
        np.minimum(w - np.abs(v + 0.4 - slope * np.abs(u)) / (1 + slope / 2), 1 - np.abs(u)),
        0.0,
    )


def shape_worm(rng: Rng) -> Shape:
    w, bend = rng.uniform(0.1, 0.18), rng.uniform(2.5, 3.5)
    return lambda u, v, s, n: (np.minimum(w - np.abs(v - 0.4 * np.sin(bend * u)), 1.3 - np.abs(u)), 0.0)


def shape_bullseye(rng: Rng) -> Shape:
    w = rng.uniform(0.35, 0.5)
    return lambda u, v, s, n: (1.1 - np.hypot(u, v), np.clip(s * (w - np.hypot(u, v)), -1, 1))


def scatter(rng: Rng, family: Callable[[Rng], Shape]) -> tuple[Array, Array]:
    """Draw a random number of one shape; the number and the size come from the same law in every family.

    Returns
    -------
    alpha, tint
        Share of each pixel that is covered, and mixture of the two colours, (96, 96) each.
    """
    shape = family(rng)
    radius = log_uniform(rng, 5.0, 20.0)
    most = max(1.0, min(45.0, 0.75 * SIZE**2 / (np.pi * radius**2)))
    number = round(log_uniform(rng, 1.0, most) if rng.uniform() < 0.5 else rng.uniform(1.0, most))
    spread, apart = rng.uniform(0.0, 0.3), rng.uniform(0.6, 1.9)
    edge, shades = rng.uniform(0.8, 2.0), rng.uniform(0.0, 0.6)
    noise = smooth_noise(rng, rng.uniform(1.5, 3.0))
    alpha, tint = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    centres: list[tuple[float, float]] = []
    for _ in range(number):
        y, x = rng.uniform(0, SIZE, 2)
        for _ in range(6):
            if all((y - b) ** 2 + (x - a) ** 2 > (apart * radius) ** 2 for b, a in centres):
                break
            y, x = rng.uniform(0, SIZE, 2)
        centres.append((y, x))
        r = radius * np.exp(rng.normal(0, spread))
        angle, reach = rng.uniform(0, 2 * np.pi), 1.5 * r + 2
        top, bottom = max(0, int(y - reach)), min(SIZE, int(y + reach) + 2)
        left, right = max(0, int(x - reach)), min(SIZE, int(x + reach) + 2)
        window = np.s_[top:bottom, left:right]
        dy, dx = (ROWS[window] - y) / r, (COLUMNS[window] - x) / r
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        depth, inside = shape(u, v, r / edge, noise[window])
        part = coverage(depth * r, edge)
        shade = np.clip(inside + rng.uniform(-shades, shades), -1, 1)
        tint[window] = np.where(part > 0.5, shade, tint[window])
        alpha[window] = np.maximum(alpha[window], part)
    return alpha, tint


def texture_stripes(rng: Rng) -> Array:
    along, _ = turned(rng)
    period = log_uniform(rng, 6, 32)
    return coverage(period / 4 * np.sin(2 * np.pi * along / period), 2.0)


def texture_waves(rng: Rng) -> Array:
    along, across = turned(rng)
    period = log_uniform(rng, 8, 26)
    bent = along + rng.uniform(0.25, 0.5) * period * np.sin(across * 2 * np.pi / rng.uniform(18, 40))
    return coverage(period / 4 * (np.sin(2 * np.pi * bent / period) - rng.uniform(-0.3, 0.5)), 2.0)


def texture_checkers(rng: Rng) -> Array:
    along, across = turned(rng)
    period = log_uniform(rng, 10, 40)
    return coverage(period * np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period), 2.0)


def texture_grid(rng: Rng) -> Array:
    along, across = turned(rng)
    period, width = log_uniform(rng, 9, 32), rng.uniform(0.1, 0.2)
    depth = [width * period / 2 - np.abs((c % period) - period / 2) for c in (along, across)]
    return coverage(np.maximum(*depth))


def texture_bricks(rng: Rng) -> Array:
    along, across = turned(rng)
    height, width = log_uniform(rng, 8, 22), rng.uniform(0.1, 0.2)
    along = along + np.floor(across / height) * height  # every other row is shifted by half a brick
    bed = np.minimum(across % height, height - across % height)
    joint = np.minimum(along % (2 * height), 2 * height - along % (2 * height))
    return coverage(width * height / 2 - np.minimum(bed, joint))


def texture_lattice(rng: Rng) -> Array:
    along, across = turned(rng)
    period, share = log_uniform(rng, 8, 26), rng.uniform(0.2, 0.38)
    return coverage(period * share - np.hypot(along % period - period / 2, across % period - period / 2), 1.5)


def texture_grain(rng: Rng) -> Array:
    return coverage(3 * (smooth_noise(rng, log_uniform(rng, 2.5, 12)) - rng.uniform(-0.5, 1.2)), rng.uniform(1, 2.5))


def texture_clouds(rng: Rng) -> Array:
    scales = [3.0 * 2**k for k in range(4)]
    field = np.add.reduce([s**0.7 * smooth_noise(rng, s) for s in scales])
    return np.clip(0.5 + rng.uniform(0.2, 0.35) * field / field.std(), 0, 1)


def texture_gradient(rng: Rng) -> Array:
    along, across = turned(rng)
    ramp = along + rng.uniform(0, 0.01) * across**2
    ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-9)
    return ramp ** rng.uniform(0.6, 1.6)


def nearest_two(rng: Rng) -> tuple[Array, Array, NDArray[np.intp], int]:
    cells = round(log_uniform(rng, 6, 60))
    points = rng.uniform(-8, SIZE + 8, (cells, 2))
    distance = np.hypot(ROWS[..., None] - points[:, 0], COLUMNS[..., None] - points[:, 1])
    nearest = distance.argmin(axis=-1)
    two = np.partition(distance, 1, axis=-1)
    return two[..., 0], two[..., 1], nearest, cells


def texture_cells(rng: Rng) -> Array:
    _, _, nearest, cells = nearest_two(rng)
    shade: Array = rng.uniform(0, 1, cells)[nearest]
    return shade


def texture_cell_walls(rng: Rng) -> Array:
    first, second, _, _ = nearest_two(rng)
    return coverage(rng.uniform(1.0, 2.5) - (second - first))


def texture_rings(rng: Rng) -> Array:
    period = log_uniform(rng, 7, 26)
    rho = np.hypot(ROWS - rng.uniform(10, SIZE - 10), COLUMNS - rng.uniform(10, SIZE - 10))
    return coverage(period / 4 * np.sin(2 * np.pi * rho / period + rng.uniform(0, 6)), 2.0)


def texture_rays(rng: Rng) -> Array:
    y, x = ROWS - rng.uniform(15, SIZE - 15), COLUMNS - rng.uniform(15, SIZE - 15)
    return np.clip(0.5 + 2 * np.sin(rng.integers(5, 16) * np.arctan2(y, x) + rng.uniform(0, 6)), 0, 1)


def lines(rng: Rng, walks: list[tuple[float, float, float, int]], wobble: float, width: float) -> Array:
    """Draw thin curves from walks of start row, start column, heading and number of steps of 1.5 pixels."""
    paint = np.zeros((SIZE, SIZE))
    for y, x, heading, steps in walks:
        headings = heading + np.cumsum(rng.normal(0, wobble, steps))
        ys, xs = y + 1.5 * np.cumsum(np.sin(headings)), x + 1.5 * np.cumsum(np.cos(headings))
        for oy in (0.0, 0.6):
            for ox in (0.0, 0.6):
                rows, columns = np.round(ys + oy).astype(int), np.round(xs + ox).astype(int)
                seen = (rows >= 0) & (rows < SIZE) & (columns >= 0) & (columns < SIZE)
                paint[rows[seen], columns[seen]] = 1.0
    soft = blurred(paint[..., None], width)[..., 0]
    return np.clip(soft * (1.0 + 1.3 * width), 0, 1)


def texture_fibres(rng: Rng) -> Array:
    heading, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.35)
    walks = [
        (*rng.uniform(-10, SIZE + 10, 2), heading + rng.normal(0, spread) + np.pi * rng.integers(2), 50)
        for _ in range(rng.integers(8, 45))
    ]
    return lines(rng, walks, rng.uniform(0.01, 0.08), rng.uniform(0.6, 1.3))


def texture_branches(rng: Rng) -> Array:
    walks: list[tuple[float, float, float, int]] = []
    for _ in range(rng.integers(1, 4)):
        stems = [(*rng.uniform(10, SIZE - 10, 2), rng.uniform(0, 2 * np.pi), 5)]
        while stems and len(walks) < 120:
            y, x, heading, age = stems.pop(0)
            steps = int(rng.integers(6, 16))
            walks.append((y, x, heading, steps))
            y, x = y + 1.5 * steps * np.sin(heading), x + 1.5 * steps * np.cos(heading)
            if age:
                fork = rng.uniform(0.3, 0.8)
                stems += [(y, x, heading + fork, age - 1), (y, x, heading - fork * rng.uniform(0.4, 1), age - 1)]
    # Straight limbs, so that every child starts where its parent ends.
    return lines(rng, walks, 0.0, rng.uniform(0.7, 1.4))


SHAPES: dict[str, Callable[[Rng], Shape]] = {
    "disk": shape_disk,
    "ring": shape_ring,
    "square": shape_square,
    "frame": shape_frame,
    "triangle": shape_triangle,
    "triangle outline": shape_triangle_outline,
    "star": shape_star,
    "plus": shape_plus,
    "ellipse": shape_ellipse,
    "bar": shape_bar,
    "crescent": shape_crescent,
    "half disk": shape_half_disk,
    "hexagon": shape_hexagon,
    "blob": shape_blob,
    "flower": shape_flower,
    "burr": shape_burr,
    "shard": shape_shard,
    "soft spot": shape_soft_spot,
    "speckled ellipse": shape_speckled,
    "striped ellipse": shape_striped,
    "rimmed ellipse": shape_rimmed,
    "dumbbell": shape_dumbbell,
    "chevron": shape_chevron,
    "worm": shape_worm,
    "bullseye": shape_bullseye,
}
"""Families of scattered objects."""

TEXTURES: dict[str, Callable[[Rng], Array]] = {
    "stripes": texture_stripes,
    "waves": texture_waves,
    "checkers": texture_checkers,
    "grid": texture_grid,
    "bricks": texture_bricks,
    "lattice": texture_lattice,
    "grain": texture_grain,
    "clouds": texture_clouds,
    "gradient": texture_gradient,
    "cells": texture_cells,
    "cell walls": texture_cell_walls,
    "rings": texture_rings,
    "rays": texture_rays,
    "fibres": texture_fibres,
    "branches": texture_branches,
}
"""Families of textures."""

FAMILIES = (*SHAPES, *TEXTURES)
"""Names of the classes, in the order of their numbers."""
