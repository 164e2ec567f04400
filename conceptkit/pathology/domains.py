"""Latent domains: how patches are stained, and which groups of patients that falls into when no center is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_at_least
from conceptkit.patches import Pixels
from conceptkit.pathology.stain import lab_statistics, stain_statistics

Floats = NDArray[np.float64]

STAIN_PROFILE = 14
"""Numbers of a patch's stain profile."""


def stain_profile(pixels: Pixels) -> Floats:
    """Return how a patch (h, w, 3) is stained: (14,) numbers, not a number where it shows too little tissue.

    Mean and standard deviation of L*, a* and b* over tissue (6), Macenko's two stain vectors (6) and the 99th
    percentiles of the stains' amounts (2). Texture is left out on purpose, as it is what tissue differs in.
    """
    found = np.full(STAIN_PROFILE, np.nan)
    colour, stains = lab_statistics(pixels[None]), stain_statistics(pixels[None])
    if colour is not None and stains is not None:
        found[:] = np.concatenate([colour.mean, colour.sd, stains.vectors.ravel(), stains.most])
    return found


def propose_domains(
    profiles: Floats, fitted: NDArray[np.bool_], groups: NDArray[np.intp] | None, domains: int, *, seed: int = 0
) -> NDArray[np.intp]:
    """Sort rows into domains by k-means on stain profiles, fitted on some rows and applied to all.

    With groups the profiles of a group's rows are averaged first: slides of one patient are stained alike, while what
    its patches show differs. Numbers are standardised by mean and spread of what is fitted.

    Parameters
    ----------
    profiles : (n, p), rows that hold what is not a number say nothing
    fitted : (n,) true for training rows: no other row enters means, spreads or centers of clusters
    groups : (n,) group numbers; ``None``: every row by itself
    domains : how many, at least 2

    Returns
    -------
    (n,) numbers from 0 on, the largest domain of the fitted rows first; −1 where nothing is known

    Raises
    ------
    InputError
        when there are fewer distinct profiles than domains
    """
    from sklearn.cluster import KMeans

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
    middle, spread = own[inside].mean(0), own[inside].std(0)
    spread[spread == 0] = 1.0
    clusters = KMeans(domains, n_init=10, random_state=seed).fit((own[inside] - middle) / spread)
    everywhere = _means(profiles, units, known)
    told = np.isfinite(everywhere).all(1)
    of_unit = np.full(len(everywhere), -1)
    of_unit[told] = clusters.predict((everywhere[told] - middle) / spread)
    found = of_unit[units]
    sizes = np.bincount(found[fitted & (found >= 0)], minlength=domains)
    rank = np.empty(domains + 1, dtype=np.intp)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(domains)
    rank[-1] = -1
    out: NDArray[np.intp] = rank[found]
    return out


def _means(profiles: Floats, units: NDArray[np.intp], rows: NDArray[np.bool_]) -> Floats:
    """Return the mean profile of each unit's chosen rows (g, p); not a number where it has none."""
    g = int(units.max()) + 1
    total = np.zeros((g, profiles.shape[1]))
    np.add.at(total, units[rows], profiles[rows])
    count = np.bincount(units[rows], minlength=g)[:, None]
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
