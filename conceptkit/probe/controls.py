"""Concepts and features that mean nothing, or next to nothing: what a score has to be read against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.targets import Target

RANDOM_CONCEPTS = 20
"""Random concepts whose mean score is taken from a concept's own."""

SHUFFLES = 5
"""Shuffles of a concept's values whose mean score is shown."""


def random_concepts(target: Target, draws: int, seed: int) -> NDArray[Any]:
    """Draw concepts that have nothing to do with any activation, as much a matter of the group as ``target`` is.

    A continuous one is √ρ·u_g + √(1 − ρ)·ε with standard normal u and ε and ρ the target's intra-class correlation
    (0 when it is negative or there are no groups). A categorical one takes the class of its group, drawn from the
    target's shares, with probability √ρ and else a class drawn by itself: indicators of its classes then correlate by
    ρ within groups.

    Returns
    -------
    (n, draws) values, or class numbers
    """
    if target.kind == "continuous":
        of_group, own = random_parts(target, draws, seed)
        weight, other = part_weights(target)
        continuous: Floats = weight * of_group + other * own
        return continuous
    rng = np.random.default_rng([seed, 1])
    n, clusters, g = len(target.y), target.clusters, target.n_groups
    rho = _share_of_groups(target)
    share = np.bincount(target.y.astype(np.intp), minlength=target.n_classes) / n
    of_groups: NDArray[Any] = rng.choice(target.n_classes, size=(g, draws), p=share)[clusters]
    alone = rng.choice(target.n_classes, size=(n, draws), p=share)
    return np.where(rng.random((n, draws)) < np.sqrt(rho), of_groups, alone)


def random_parts(target: Target, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Draw u_g and ε (n, draws) of continuous random concepts: the same for all targets on the same rows and groups."""
    rng = np.random.default_rng([seed, 1])
    of_group = rng.normal(size=(target.n_groups, draws))[target.clusters]
    return of_group, rng.normal(size=(len(target.y), draws))


def part_weights(target: Target) -> tuple[float, float]:
    """Return √ρ and √(1 − ρ), by which a target's random concepts are made of these parts."""
    rho = _share_of_groups(target)
    return math.sqrt(rho), math.sqrt(1.0 - rho)


def _share_of_groups(target: Target) -> float:
    return min(max(target.icc, 0.0), 1.0) if np.isfinite(target.icc) else 0.0


def shuffled_values(target: Target, draws: int, seed: int) -> NDArray[Any]:
    """Return the target's own values (n, draws), each draw in another order of all rows."""
    rng = np.random.default_rng([seed, 2])
    return np.stack([rng.permutation(target.y) for _ in range(draws)], axis=1)


PIXEL_STATISTICS = 34
"""Number of raw pixel and colour statistics of a patch."""

_LEVELS = np.arange(256) / 255.0
_PERCENTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def pixel_statistics(pixels: NDArray[np.uint8]) -> Floats:
    """Return raw colour and texture statistics of patches: features that no network computed.

    Parameters
    ----------
    pixels : (n, h, w, 3) RGB

    Returns
    -------
    (n, 34): per channel the mean, the standard deviation, the skewness and the 5th, 25th, 50th, 75th and 95th
    percentile; the correlations between channels; of the grey image the mean and standard deviation of the gradient's
    length, the standard deviation and mean size of the Laplacian, and the mean difference of grey at distances of 2, 4
    and 8 pixels
    """
    return np.stack([np.concatenate([_colour(image), _texture(image)]) for image in pixels])


def _colour(image: NDArray[np.uint8]) -> Floats:
    """Return 27 statistics; all but the correlations come from the channels' histograms."""
    flat = image.reshape(-1, 3)
    out = []
    for channel in range(3):
        share = np.bincount(flat[:, channel], minlength=256) / len(flat)
        mean = share @ _LEVELS
        centred = _LEVELS - mean
        deviation = np.sqrt(share @ centred**2)
        skewness = share @ centred**3 / deviation**3 if deviation > 0 else 0.0
        at = np.searchsorted(np.cumsum(share), _PERCENTILES - 1e-12)
        out.append(np.concatenate([[mean, deviation, skewness], _LEVELS[np.minimum(at, 255)]]))
    values = flat.astype(np.float32)
    values -= values.mean(0)
    products = (values.T @ values).astype(np.float64)
    length = np.sqrt(np.diagonal(products))
    length = np.where(length > 0, length, 1.0)
    return np.concatenate([*out, (products / np.outer(length, length))[np.triu_indices(3, 1)]])


def _texture(image: NDArray[np.uint8]) -> Floats:
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / np.float32(255)
    down, across = np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1]
    gradient = np.sqrt(down * down + across * across)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    far = [
        0.5 * (np.abs(grey[:, k:] - grey[:, :-k]).mean() + np.abs(grey[k:] - grey[:-k]).mean())
        if k < min(grey.shape)
        else 0.0
        for k in (2, 4, 8)
    ]
    return np.array([gradient.mean(), gradient.std(), laplacian.std(), np.abs(laplacian).mean(), *far], dtype=float)
