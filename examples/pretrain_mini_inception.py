"""Pretrain the small bundled network on drawn shapes and textures: an ImageNet in miniature.

The network of the embedded study needs features that were learned elsewhere, as ImageNet features are in pathology.
This script makes them from nothing but drawings: 40 families of shapes and textures, told apart by supervised
classification. Within every family the place, angle and colours of what is drawn, the texture of the background, blur,
contrast and noise are random, and so are the number and size of objects, by one law for all families of shapes; each
family of textures has its own range of grains and periods.

What the network does not see: a tissue image; an image of conceptkit's synthetic tissue study; a concept value. The
number, size and contrast of objects are never a label, only the family is. The linear probe printed with ``--check``
is made on further drawings after training; the recipe was set by the training loss and not by that probe.

The bundled file was made by::

    python examples/pretrain_mini_inception.py --check
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from conceptkit.models import mini_inception
from conceptkit.models.mini_inception import LAYER_NAMES, MEAN, STD, MiniInception, load_mini_inception

SIZE = 96
Array = NDArray[np.float64]
Rng = np.random.Generator
# A shape maps coordinates u, v (radius 1 about its centre), the number of edge widths per radius and a field of noise
# to its depth (positive inside, in radii) and to a tint (-1 to 1) that mixes its two colours.
Shape = Callable[[Array, Array, float, Array], tuple[Array, Array | float]]

ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)


# ---------------------------------------------------------------------------------------------------- shared drawing


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


# ------------------------------------------------------------------------------------------------ scattered objects


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


# ----------------------------------------------------------------------------------------------------------- textures


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


# ------------------------------------------------------------------------------------------------------------- corpus


def colours(rng: Rng) -> tuple[Array, Array, Array]:
    """Return background, first and second foreground colour, (3,) each on 0 to 1, any hue, never too alike."""
    while True:
        background, first = rng.uniform(0.02, 0.98, 3), rng.uniform(0.02, 0.98, 3)
        if rng.uniform() < 0.4:  # pale or dim backgrounds, as most pictures have
            background = np.clip(rng.choice([0.15, 0.85]) + rng.normal(0, 0.1, 3), 0, 1)
        if np.linalg.norm(background - first) > 0.6:
            break
    while True:
        second = np.clip(first + rng.normal(0, 0.3, 3), 0, 1)
        if np.linalg.norm(second - first) > 0.25:
            return background, first, second


def draw_image(seed: int, index: int) -> NDArray[np.uint8]:
    """Return image ``index`` (96, 96, 3) of the corpus of ``seed``; its family is ``index`` modulo their number."""
    rng = np.random.default_rng([seed, index])
    name = FAMILIES[index % len(FAMILIES)]
    if name in SHAPES:
        alpha, tint = scatter(rng, SHAPES[name])
    else:
        alpha, tint = TEXTURES[name](rng), rng.uniform(0, 0.6) * np.clip(smooth_noise(rng, rng.uniform(4, 20)), -1, 1)
    ground, first, second = colours(rng)
    backdrop = np.broadcast_to(ground, (SIZE, SIZE, 3)).copy()
    for scale, strength in ((log_uniform(rng, 1.5, 8), 0.05), (log_uniform(rng, 8, 50), 0.08)):
        backdrop += (rng.uniform(0, strength) * smooth_noise(rng, scale))[..., None] * rng.uniform(-0.3, 1.0, 3)
    mix = ((1 - tint) / 2)[..., None]
    paint = (1 - mix) * second + mix * first if name in SHAPES else first + tint[..., None] * (second - first) / 2
    paint = paint + (rng.uniform(0, 0.05) * smooth_noise(rng, log_uniform(rng, 1.5, 10)))[..., None]
    alpha = (alpha * rng.uniform(0.7, 1.0))[..., None]
    image = backdrop * (1 - alpha) + paint * alpha
    if rng.uniform() < 0.5:
        image = blurred(image, rng.uniform(0.4, 1.0))
    image = 0.5 + rng.uniform(0.75, 1.1) * (image - 0.5) + rng.normal(0, 0.05)
    image = image + log_uniform(rng, 0.005, 0.06) * rng.standard_normal(image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _draw_range(bounds: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    return np.stack([draw_image(seed, i) for i in range(*bounds)])


def draw_corpus(number: int, *, seed: int, first: int = 0, workers: int = 1) -> tuple[Tensor, Tensor]:
    """Draw images ``first`` to ``first + number`` of the corpus of ``seed``, whatever the number of ``workers``.

    Returns
    -------
    images, targets
        uint8 (number, 3, 96, 96), and the number of each image's family, int64 (number,).
    """
    last = first + number
    bounds = [(i, min(i + 500, last)) for i in range(first, last, 500)]
    if workers == 1:
        parts = [_draw_range(b, seed) for b in bounds]
    else:
        # Matrices this small are slower on many threads; the processes read this when NumPy is imported.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(partial(_draw_range, seed=seed), bounds))
    images = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
    return images, torch.arange(first, last) % len(FAMILIES)


# ----------------------------------------------------------------------------------------------------------- training


def normalised(images: Tensor) -> Tensor:
    """Map uint8 ``images`` (n, 3, h, w) to what the network expects, channels last."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, crop: int, generator: torch.Generator, *, standardise: bool = False) -> Tensor:
    """Return normalised random windows (n, 3, crop, crop) of uint8 ``images``, turned, mirrored and recoloured.

    ``standardise`` takes mean and deviation off every window, so that its colours are out of the way.
    """
    n = len(images)
    top, left = (int(torch.randint(0, SIZE - crop + 1, (), generator=generator)) for _ in range(2))
    x = normalised(images[:, :, top : top + crop, left : left + crop])
    x = torch.rot90(x, int(torch.randint(0, 4, (), generator=generator)), (2, 3))
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(3)
    if standardise:
        x = x - x.mean((2, 3), keepdim=True)
        x = x / (x.std((1, 2, 3), keepdim=True) + 0.05)
    recolour = torch.eye(3) + 0.1 * torch.randn(n, 3, 3, generator=generator)  # mixes channels, changes contrast
    x = torch.einsum("nij,njhw->nihw", recolour, x) + 0.1 * torch.randn(n, 3, 1, 1, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def classifier(inputs: int) -> nn.Module:
    # Pooled features differ little between images beside their mean: unscaled, the first steps would be lost on it.
    return nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, len(FAMILIES)))


def train(
    images: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    seed: int,
    batch: int = 64,
    peak_rate: float = 3e-3,
    bfloat16: bool = False,
    report: Callable[[str], None] = print,
) -> tuple[MiniInception, list[float]]:
    """Train the network to name the family of uint8 ``images`` (n, 3, 96, 96), and return it with each step's loss.

    AdamW, a one-cycle rate, label smoothing and two auxiliary classifiers. The first half of the epochs sees windows
    without their mean colour and contrast, as form is learned sooner where arbitrary hues do not hide it; all but the
    last sixth see windows of 64 pixels, which cost less than half of whole images.
    """
    model = load_mini_inception(pretrained=False, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.fc = classifier(model.num_features)
        heads = nn.ModuleDict({"mixed2": classifier(48), "mixed7": classifier(128)})
    model = model.to(memory_format=torch.channels_last).train()
    parameters = [*model.parameters(), *heads.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim == 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}])
    per_epoch = max(1, len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=peak_rate, total_steps=epochs * per_epoch, pct_start=0.2, cycle_momentum=False
    )
    objective = nn.CrossEntropyLoss(label_smoothing=0.05)
    generator = torch.Generator().manual_seed(seed)
    whole = epochs - max(1, epochs // 6)
    losses: list[float] = []
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for step in range(per_epoch):
            rows = order[step * batch : (step + 1) * batch]
            crop = 64 if epoch < whole else SIZE
            x = augmented(images[rows], crop, generator, standardise=epoch < epochs // 2)
            auxiliary = []
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                x = model.stem(x)
                for name in LAYER_NAMES:
                    x = model.get_submodule(name)(x)
                    if name in heads:
                        auxiliary.append(objective(heads[name](x.mean((2, 3))), targets[rows]))
                loss = objective(model.forward_head(x), targets[rows])
            optimiser.zero_grad()
            (loss + 0.5 * sum(auxiliary)).backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            if (step + 1) % 100 == 0 or step + 1 == per_epoch:
                recent = np.mean(losses[-min(step + 1, 100) :])
                report(
                    f"epoch {epoch + 1}/{epochs}, step {step + 1}/{per_epoch}: loss {recent:.3f}, "
                    f"{time.perf_counter() - start:.0f} s"
                )
    return model.eval(), losses


@torch.no_grad()
def predicted(model: MiniInception, images: Tensor) -> Tensor:
    """Return the family that ``model`` names for uint8 ``images`` (n, 3, 96, 96), int64 (n,)."""
    return torch.cat([model(normalised(part)).argmax(1) for part in images.split(250)])


def save_body(model: MiniInception, path: Path, *, seed: int, corpus: str) -> None:
    """Write all but the last layer as float16 to ``path``, at one stroke, with its provenance as metadata."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state = {k: v.contiguous() for k, v in state.items() if not k.startswith("fc.")}
    metadata = {
        "architecture": "MiniInception",
        "mean": ", ".join(map(str, MEAN)),
        "std": ", ".join(map(str, STD)),
        "corpus": corpus,
        "seed": str(seed),
        "script": "examples/pretrain_mini_inception.py",
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(state, temporary, metadata=metadata)
    temporary.chmod(0o644)
    temporary.replace(path)


# -------------------------------------------------------------------------------------------------------------- check


def draw_check(number: int, seed: int) -> tuple[Tensor, Array]:
    """Draw pink images of dark irregular ellipses for a linear probe, and return their number and mean radius.

    Returns
    -------
    images, values
        uint8 (number, 3, 96, 96); number of ellipses and mean radius in pixels, (number, 2).
    """
    images, values = [], []
    for i in range(number):
        rng = np.random.default_rng([seed, i, 1])
        count, size = int(rng.integers(5, 41)), rng.uniform(3.0, 6.5)
        pink = np.array([0.9, 0.7, 0.82]) + rng.normal(0, 0.04, 3)
        dark = np.array([0.4, 0.22, 0.52]) + rng.normal(0, 0.06, 3)
        image = np.broadcast_to(pink, (SIZE, SIZE, 3)).copy()
        for scale in (2.0, 6.0, 18.0):
            image += (rng.uniform(0, 0.05) * smooth_noise(rng, scale))[..., None]
        radii = size * np.exp(rng.normal(0, 0.15, count))
        for radius in radii:
            y, x = rng.uniform(0, SIZE, 2)
            angle, q, phase = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0), rng.uniform(0, 6, 2)
            dy, dx = (ROWS - y) / radius, (COLUMNS - x) / radius
            u, v = dx * np.cos(angle) + dy * np.sin(angle), (dy * np.cos(angle) - dx * np.sin(angle)) / q
            turn = np.arctan2(v, u)
            outline = 1 + 0.12 * np.cos(2 * turn + phase[0]) + 0.1 * np.cos(3 * turn + phase[1])
            alpha = (rng.uniform(0.6, 1.0) * coverage(q * radius * (outline - np.hypot(u, v)), 1.5))[..., None]
            image = image * (1 - alpha) + (dark + rng.normal(0, 0.04, 3)) * alpha
        image = 0.6 + rng.uniform(0.7, 1.1) * (image - 0.6) + rng.uniform(0, 0.04) * rng.standard_normal(image.shape)
        images.append((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
        values.append((count, radii.mean()))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), np.array(values)


@torch.no_grad()
def probe_scores(model: MiniInception, images: Tensor, values: Array) -> dict[str, list[float]]:
    """Return, per layer, the five-fold R² of a ridge from pooled features to each column of ``values`` (n, k)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    taken: dict[str, list[Tensor]] = {"mixed2": [], "mixed7": [], "mixed10": []}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, i, out, name=name: taken[name].append(out.mean((2, 3)))
        )
        for name in taken
    ]
    model.eval()
    for part in images.split(200):
        model(normalised(part))
    for hook in hooks:
        hook.remove()
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    folds = KFold(5, shuffle=True, random_state=0)
    return {
        name: [
            float(r2_score(column, cross_val_predict(ridge, torch.cat(parts).double().numpy(), column, cv=folds)))
            for column in values.T
        ]
        for name, parts in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=24_000, help="drawings to train on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(mini_inception.__file__).with_name(mini_inception.WEIGHTS_FILE)
    )
    parser.add_argument("--threads", type=int, default=2, help="threads to train with, and processes to draw with")
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="train in mixed precision"
    )
    parser.add_argument("--check", action="store_true", help="probe number and size of ellipses after training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    held_out = 2_000
    start = time.perf_counter()
    images, targets = draw_corpus(options.images + held_out, seed=options.seed, workers=options.threads)
    print(f"{len(images)} drawings of {len(FAMILIES)} families in {time.perf_counter() - start:.0f} s", flush=True)
    model, _ = train(
        images[: options.images],
        targets[: options.images],
        epochs=options.epochs,
        seed=options.seed,
        bfloat16=options.bfloat16,
        report=partial(print, flush=True),
    )
    correct = (predicted(model, images[options.images :]) == targets[options.images :]).float().mean()
    print(f"held-out accuracy {correct:.3f} on {held_out} new drawings (chance {1 / len(FAMILIES):.3f})")
    corpus = f"{options.images} procedural drawings of {len(FAMILIES)} families of shapes and textures, no tissue"
    save_body(model, options.out, seed=options.seed, corpus=f"{corpus}; {options.epochs} epochs")
    print(f"wrote {options.out.name}, {options.out.stat().st_size / 1e6:.2f} MB")

    if options.check:
        pink, values = draw_check(600, options.seed)
        networks = {"pretrained": model, "random": load_mini_inception(pretrained=False, seed=options.seed)}
        for name, network in networks.items():
            for layer, (number, size) in probe_scores(network, pink, values).items():
                print(f"{name:>10} {layer:>7}: R² of number {number:.2f}, of mean radius {size:.2f}")


if __name__ == "__main__":
    main()
