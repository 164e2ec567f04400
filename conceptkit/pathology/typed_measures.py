"""Measures of nuclei by type: numbers, densities, shares, areas, and how near inflammatory and neoplastic ones are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from conceptkit.pathology.batch import Batch, PatchMeasure, Values, as_measure

TYPES = {
    "neoplastic": ("neoplastic",),
    "inflammatory": ("inflammatory", "neutrophil", "lymphocyte", "plasma", "eosinophil"),
    "connective": ("connective",),
    "dead": ("dead",),
    "epithelial": ("epithelial",),
}
"""Group of types → the types of masks and networks that belong to it: the five of PanNuke."""

NEAR_UM = 30.0
"""Distance between centres within which an inflammatory nucleus is near a neoplastic one."""

_SAYS = {
    "neoplastic": "tumor",
    "inflammatory": "immune cells, whose number in the tumor goes with outcome",
    "connective": "stroma",
    "dead": "necrosis and apoptosis",
    "epithelial": "epithelium that is not tumor",
}
_SOURCE = "nuclei by type as labelled, grouped as in PanNuke (Gamper et al. 2019)"

_typed = partial(as_measure, takes="batch", level="patch")


def _of(batch: Batch, group: str) -> NDArray[np.bool_]:
    """Return which nuclei of a batch are of a group, (m,)."""
    return np.isin(batch.types_of_nuclei, TYPES[group])


def _count(batch: Batch, *, group: str) -> Values:
    return np.bincount(batch.nuclei.patch[_of(batch, group)], minlength=batch.nuclei.n).astype(np.float64)


def _density(batch: Batch, *, group: str) -> Values:
    height, width = batch.pixels.shape[1:3]
    return np.asarray(_count(batch, group=group) / (height * width * np.square(batch.scale)) * 1e6)


def _share(batch: Batch, *, group: str) -> Values:
    typed = np.bincount(batch.nuclei.patch[batch.types_of_nuclei != ""], minlength=batch.nuclei.n)
    return np.asarray(np.divide(_count(batch, group=group), typed, out=np.full(len(typed), np.nan), where=typed > 0))


def _area(batch: Batch, *, group: str) -> Values:
    return np.asarray(batch.nuclei.mean(batch.nuclei.area, _of(batch, group)) * np.square(batch.scale))


def _measures(group: str) -> tuple[PatchMeasure, ...]:
    """Return count, density, share and area of a group of types."""
    what = _SAYS[group]
    facts = (
        ("count", "nuclei per patch", f"Many {group} nuclei mean {what}.", "types", _count),
        ("density_mm2", "nuclei/mm²", f"Many {group} nuclei per area mean {what}.", "types+mpp", _density),
        ("share", "1", f"A high share of {group} nuclei means {what}.", "types", _share),
        ("area_um2", "µm²", f"Mean size of {group} nuclei; large ones mean activity or grade.", "types+mpp", _area),
    )
    return tuple(
        _typed(unit, meaning, name=f"{group}_{name}", needs=needs, source=_SOURCE)(partial(function, group=group))
        for name, unit, meaning, needs, function in facts
    )


neoplastic_count, neoplastic_density_mm2, neoplastic_share, neoplastic_area_um2 = _measures("neoplastic")
inflammatory_count, inflammatory_density_mm2, inflammatory_share, inflammatory_area_um2 = _measures("inflammatory")
connective_count, connective_density_mm2, connective_share, connective_area_um2 = _measures("connective")
dead_count, dead_density_mm2, dead_share, dead_area_um2 = _measures("dead")
epithelial_count, epithelial_density_mm2, epithelial_share, epithelial_area_um2 = _measures("epithelial")


_near = partial(_typed, needs="types+mpp", source=_SOURCE + "; distance of centres within the patch")


@_near(
    "nuclei",
    "Inflammatory nuclei within 30 µm of a neoplastic one, on average: how far immune cells infiltrate the tumor.",
)
def infiltration_30um(batch: Batch) -> Values:
    """Return the mean number of inflammatory nuclei near each neoplastic one, (n,); NaN without neoplastic nuclei."""

    def near(tree: cKDTree, points: NDArray[np.float64]) -> float:
        return float(np.mean([len(found) for found in tree.query_ball_point(points, NEAR_UM)]))

    return _per_neoplastic(batch, near, 0.0)


@_near(
    "µm",
    "Mean distance from a neoplastic nucleus to the nearest inflammatory one: far ones mean immune cells stay out.",
)
def inflammatory_distance_um(batch: Batch) -> Values:
    """Return the mean distance of neoplastic nuclei to inflammatory ones, (n,) µm; NaN where either is missing."""
    return _per_neoplastic(batch, lambda tree, points: float(tree.query(points)[0].mean()), np.nan)


def _per_neoplastic(batch: Batch, value: Callable[[cKDTree, NDArray[np.float64]], float], without: float) -> Values:
    """Return a value of inflammatory centres and neoplastic ones in µm for each patch, (n,); NaN without the latter."""
    nuclei = batch.nuclei
    points = np.column_stack([nuclei.y, nuclei.x]) * batch.scale[nuclei.patch][:, None]
    out = np.full(nuclei.n, np.nan)
    neoplastic, inflammatory = _of(batch, "neoplastic"), _of(batch, "inflammatory")
    for patch in np.unique(nuclei.patch[neoplastic]):
        here = nuclei.patch == patch
        others = points[inflammatory & here]
        known = np.isfinite(batch.scale[patch])
        if known:
            out[patch] = value(cKDTree(others), points[neoplastic & here]) if len(others) else without
    return out
