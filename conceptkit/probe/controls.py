"""Controls and baselines of a score: random concepts, shuffled values, pixel statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.targets import Target

RANDOM_CONCEPTS = 20
"""Number of random concepts over which the control is averaged."""

SHUFFLES = 5
"""Number of shuffles over which the control is averaged."""


def random_concepts(target: Target, draws: int, seed: int) -> NDArray[Any]:
    """Draw concepts (n, draws) unrelated to activations, with the intra-class correlation ρ of ``target``.

    Continuous values are √ρ·u_g + √(1 − ρ)·ε with standard normal u and ε (ρ = 0 when it is negative or without
    groups). A categorical row takes the class of its group with probability √ρ, and otherwise a class of its own, both
    drawn with the frequencies of the target: class indicators then correlate by ρ within groups.
    """
    if target.kind == "continuous":
        weights, parts = part_weights(target), random_parts(target, draws, seed)
        return weights[0] * parts[0] + weights[1] * parts[1]
    rng = np.random.default_rng([seed, 1])
    n, clusters, g = len(target.y), target.clusters, target.n_groups
    share = np.bincount(target.y.astype(np.intp), minlength=target.n_classes) / n
    of_groups: NDArray[Any] = rng.choice(target.n_classes, size=(g, draws), p=share)[clusters]
    alone = rng.choice(target.n_classes, size=(n, draws), p=share)
    return np.where(rng.random((n, draws)) < part_weights(target)[0], of_groups, alone)


def random_parts(target: Target, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Draw u_g and ε (n, draws) of continuous random concepts, equal for all targets on the same rows and groups."""
    rng = np.random.default_rng([seed, 1])
    of_group = rng.normal(size=(target.n_groups, draws))[target.clusters]
    return of_group, rng.normal(size=(len(target.y), draws))


def part_weights(target: Target) -> tuple[float, float]:
    """Return √ρ and √(1 − ρ), the weights of these parts in a target's random concepts."""
    icc = target.icc
    rho = min(max(icc, 0.0), 1.0) if np.isfinite(icc) else 0.0
    return math.sqrt(rho), math.sqrt(1.0 - rho)


def shuffled_values(target: Target, draws: int, seed: int) -> NDArray[Any]:
    """Return the target's values in random orders of all rows (n, draws)."""
    rng = np.random.default_rng([seed, 2])
    return np.stack([rng.permutation(target.y) for _ in range(draws)], axis=1)


PIXEL_STATISTICS = 34
"""Number of raw pixel and colour statistics of a patch."""

_LEVELS = np.arange(256) / 255.0
_PERCENTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def pixel_statistics(pixels: NDArray[np.uint8]) -> Floats:
    """Return raw colour and texture statistics of patches, a baseline without a network.

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
    """Return 27 statistics, all except the correlations computed from histograms."""
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
