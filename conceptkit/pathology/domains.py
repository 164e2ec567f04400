"""Latent domains: how patches are stained, and which groups of patients that falls into when no center is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from conceptkit.errors import InputError, check_at_least
from conceptkit.images.decoding import Pixels
from conceptkit.pathology.stain import lab_statistics, stain_statistics

Floats = NDArray[np.float64]

STAIN_PROFILE = 14
"""Numbers of a patch's stain profile."""

COMPONENTS = 8
"""Principal components that features are reduced to: of more, most would be what tissue differs in."""

REFERENCES = 39
"""Draws without domains that what was found is compared with: the least p is 1 of 40"""


@dataclass(frozen=True)
class Domains:
    """Domains of the rows, and the evidence for them."""

    codes: NDArray[np.intp]
    """(n,) numbers from 0 on, the largest domain of the fitted rows first; −1 where nothing is known"""
    explained: float
    """Share of the variance of what was fitted that lies between domains, along the axes in which these differ"""
    by_chance: float
    """The same, mean over draws from one Gaussian of the same covariance, which has no domains"""
    p: float
    """Share of these draws, and of what was found itself, that explain as much"""


def stain_profile(pixels: Pixels) -> Floats:
    """Return how a patch (h, w, 3) is stained: (14,) numbers, NaN where it shows too little tissue.

    Mean and standard deviation of L*, a* and b* over tissue (6), Macenko's two stain vectors (6) and the 99th
    percentiles of the stains' amounts (2). Texture is not included, as it is what differs between tissues.
    """
    found = np.full(STAIN_PROFILE, np.nan)
    colour, stains = lab_statistics(pixels[None]), stain_statistics(pixels[None])
    if colour is not None and stains is not None:
        found[:] = np.concatenate([colour.mean, colour.sd, stains.vectors.ravel(), stains.most])
    return found


def propose_domains(
    profiles: Floats,
    fitted: NDArray[np.bool_],
    groups: NDArray[np.intp] | None,
    domains: int,
    *,
    features: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> Domains:
    """Assign rows to domains by k-means on stain profiles, fitted on some rows and applied to all.

    With groups the profiles of a group's rows are averaged first: slides of one patient are stained alike, while what
    its patches show differs. Numbers are standardised by mean and spread of the fitted rows. Features of a network are
    added as principal components, scaled as a whole to the variance of the profiles, so that each has equal weight.

    k-means finds domains in anything. The variance that they explain is therefore compared with what k-means explains
    of draws from one Gaussian of exactly the covariance of the fitted rows (after Liu et al., 2008).
    Raises :class:`InputError` when there are fewer distinct profiles than domains.

    Parameters
    ----------
    profiles : (n, p), NaN where unknown
    fitted : (n,) true for training rows: no other row affects means, spreads, components or cluster centers
    groups : (n,) group numbers; ``None``: every row is its own group
    domains : number of domains, at least 2
    features : (n, d) statistics of a network's activations, such as channel means; ``None`` for stain only
    """
    check_at_least("latent", domains, 2)
    known = np.asarray(np.isfinite(profiles).all(axis=1))
    units = np.arange(len(profiles)) if groups is None else groups
    own = _means(profiles, units, np.logical_and(known, fitted))
    inside = np.isfinite(own).all(1)
    if len(np.unique(own[inside].round(9), axis=0)) < domains:
        raise InputError(
            f"latent: {domains} domains need as many {'rows' if groups is None else 'groups'} that are stained "
            f"differently among the training rows, there are {len(np.unique(own[inside].round(9), axis=0))}."
        )
    everywhere = _means(profiles, units, known)
    measured = np.isfinite(everywhere).all(1)
    X, all_X = _standardised(own[inside], everywhere[measured])
    if features is not None:
        values = features.astype(np.float64)
        F = _means(values, units, np.logical_and(known, fitted))[inside]
        parts = _components(*_standardised(F, _means(values, units, known)[measured]))
        scale = np.sqrt((X**2).sum() / max(float((parts[0] ** 2).sum()), 1e-300))
        X, all_X = np.hstack([X, scale * parts[0]]), np.hstack([all_X, scale * parts[1]])
    clusters = KMeans(domains, n_init=10, random_state=seed).fit(X)
    explained = _explained(X, clusters)
    # Given its covariance, a Gaussian sample is a random rotation of its rows, so that p is exact; fresh draws would
    # have covariances of their own, and with few groups too small a spread. Axes do not matter to k-means.
    widths = np.linalg.svd(X, compute_uv=False)[: len(X) - 1]
    rng = np.random.default_rng([seed, 7])
    drawn = []
    for _ in range(REFERENCES):
        normal = rng.normal(size=(len(X), len(widths)))
        cloud = np.linalg.qr(normal - normal.mean(0))[0] * widths
        drawn.append(_explained(cloud, KMeans(domains, n_init=10, random_state=seed).fit(cloud)))
    of_unit = np.full(len(everywhere), -1)
    of_unit[measured] = clusters.predict(all_X)
    found = of_unit[units]
    sizes = np.bincount(found[fitted & (found >= 0)], minlength=domains)
    rank = np.empty(domains + 1, dtype=np.intp)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(domains)
    rank[-1] = -1
    p = (1 + np.sum(np.array(drawn) >= explained)) / (1 + REFERENCES)
    return Domains(rank[found], explained, float(np.mean(drawn)), float(p))


def _standardised(own: Floats, everywhere: Floats) -> tuple[Floats, Floats]:
    """Return both, centred and scaled by the first."""
    middle, spread = own.mean(0), own.std(0)
    spread[spread == 0] = 1.0
    return (own - middle) / spread, (everywhere - middle) / spread


def _components(own: Floats, everywhere: Floats) -> tuple[Floats, Floats]:
    """Return both in the first principal components of the first, which is centred."""
    axes = np.linalg.svd(own, full_matrices=False)[2][:COMPONENTS].T
    return own @ axes, everywhere @ axes


def _explained(X: Floats, clusters: KMeans) -> float:
    """Return the share of the variance of X (n, p) between clusters, along the axes in which their centers differ.

    Along all other axes domains do not differ, and these would hide three tight clouds among many numbers.
    """
    codes: NDArray[np.intp] = clusters.labels_.astype(np.intp)
    middles = clusters.cluster_centers_ - X.mean(0)
    axes = np.linalg.svd(middles, full_matrices=False)[2][: len(middles) - 1].T  # (p, k − 1)
    moved = (X - X.mean(0)) @ axes
    between = (_means(moved, codes, np.ones(len(X), dtype=bool))[codes] ** 2).sum()
    return float(between / max(float((moved**2).sum()), 1e-300))


def _means(profiles: Floats, units: NDArray[np.intp], rows: NDArray[np.bool_]) -> Floats:
    """Return the mean profile of each unit's chosen rows (g, p); not a number where it has none."""
    g = int(units.max()) + 1
    total = np.zeros((g, profiles.shape[1]))
    np.add.at(total, units[rows], profiles[rows])
    count = np.bincount(units[rows], minlength=g)[:, None]
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
