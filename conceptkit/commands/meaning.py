"""Testing whether vectors mean their concepts: other concepts, refits, disturbed images and nucleus masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.attribution.localisation import Localised, covered, localise
from conceptkit.attribution.maps import concept_maps
from conceptkit.commands.attribute_maps import ImageReader
from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import jackknife_units
from conceptkit.evaluate.scores import Floats
from conceptkit.families import DISTURBANCES, MEASURES
from conceptkit.features.activations import read_pixels
from conceptkit.features.sources import Features, NetworkFeatures
from conceptkit.models.inference import Reader, choose_device, ieee_float32
from conceptkit.pathology.masks import read_mask
from conceptkit.probe.meaning import entanglement, judged, pattern_cosine
from conceptkit.probe.space import Fit
from conceptkit.probe.targets import Target
from conceptkit.records.meaning import Meaning
from conceptkit.records.probe import ProbeRow
from conceptkit.tables.patches import PatchTable

AMOUNTS: Mapping[str, float] = {"rotation": 90.0, "hematoxylin": 0.3, "eosin": 0.3, "blur": 1.0, "jpeg": 70.0}
"""Disturbance → its amount: degrees, doublings of a stain, pixels, JPEG quality"""

DISTURBED = 96
"""Maximum number of patches that are disturbed"""

MASKED = 192
"""Maximum number of patches whose maps are compared with masks"""

RANDOM_VECTORS = 10
"""Random vectors whose maps are the control"""

Fits = Mapping[tuple[str, str], Fit]
"""Layer and concept → fit"""


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What is tested."""

    table: PatchTable
    features: Features
    targets: Sequence[Target]
    """With row numbers of the table"""
    fits: Fits
    rows: Sequence[ProbeRow]
    """With the held-out scores"""
    batch_size: int
    device: str
    seed: int


def measure_meaning(given: Tested, progress: Callable[[int, int], None] | None = None) -> tuple[Meaning, ...]:
    """Return one row for each layer and continuous concept."""
    continuous = [target for target in given.targets if target.kind == "continuous"]
    found: list[Meaning] = []
    layers = list(dict.fromkeys(layer for layer, _ in given.fits))
    decoded = {(row.layer, row.concept): row.score_low > row.chance for row in given.rows}
    changes = _changes(given, continuous) if isinstance(given.features, NetworkFeatures) else {}
    for k, layer in enumerate(layers):
        if progress is not None:
            progress(k, len(layers))
        maps = _localised(given, layer, continuous)
        for target in continuous:
            fit = given.fits[layer, target.name]
            fields: dict[str, Any] = entanglement(
                fit.predicted,
                target.y.astype(np.float64),
                _others(target, continuous),
                jackknife_units(target.clusters),
            )
            if fields:
                other = given.fits[layer, fields["against"]].patterns[:, 0]
                fields["cosine"] = pattern_cosine(fit.patterns[:, 0], other, fit.space.scale)
            known: dict[str, Any] = {
                k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in fields.items()
            }
            known |= _map_fields(maps.get(target.name))
            meaning = Meaning(
                layer=layer,
                concept=target.name,
                verdict="undecided",
                decoded=decoded[layer, target.name],
                agreement=fit.agreement if math.isfinite(fit.agreement) else None,
                changes=changes.get((layer, target.name), {}),
                **known,
            )
            found.append(judged(meaning, at_nuclei=of_nuclei(target.name)))
    if progress is not None:
        progress(len(layers), len(layers))
    return tuple(found)


def of_nuclei(concept: str) -> bool:
    """Return whether a concept is a measure of nucleus masks."""
    return concept in MEASURES and "mask" in MEASURES[concept].needs


def _others(target: Target, targets: Sequence[Target]) -> dict[str, Floats]:
    """Return the values of the other concepts on the rows of one, NaN where missing."""
    out = {}
    for other in targets:
        if other.name != target.name:
            at = np.searchsorted(other.rows, target.rows)
            there = other.rows[np.minimum(at, len(other.rows) - 1)] == target.rows
            out[other.name] = np.where(there, other.y[np.minimum(at, len(other.rows) - 1)], np.nan).astype(np.float64)
    return out


def spread_rows(target: Target, rows: NDArray[np.intp], most: int, seed: int) -> NDArray[np.intp]:
    """Return places of at most ``most`` of the target's rows among ``rows``, of all patients alike."""
    at = np.flatnonzero(np.isin(target.rows, rows))
    order = np.random.default_rng(seed).permutation(at)
    number = np.zeros(len(order), dtype=np.intp)  # of each row within its patient
    groups = target.clusters[order]
    for group in np.unique(groups):
        own = groups == group
        number[own] = np.arange(own.sum())
    return np.sort(order[np.argsort(number, kind="stable")][:most])


def _changes(given: Tested, targets: Sequence[Target]) -> dict[tuple[str, str], dict[str, float]]:
    """Return layer and concept → disturbance → change of the prediction, in standard deviations of the concept."""
    if not targets or given.table.location is None:
        return {}
    layers = list(given.features.layers)
    first = targets[0]
    rows = first.rows[spread_rows(first, first.rows, DISTURBED, given.seed)]
    pixels = read_pixels(given.table, rows)
    backbone = given.features.network()
    size, pool = (pixels.shape[1], pixels.shape[2]), given.features.pool
    reader = Reader(backbone, layers, size, pool=pool, batch_size=given.batch_size, device=given.device)

    def read(images: NDArray[np.uint8]) -> dict[str, Floats]:
        parts = [reader(images[i : i + given.batch_size]) for i in range(0, len(images), given.batch_size)]
        return {layer: np.concatenate([part[backbone.layer(layer)] for part in parts]) for layer in layers}

    before = read(pixels)
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, amount in AMOUNTS.items():
        after = read(np.stack([DISTURBANCES[name].apply(one, amount) for one in pixels]))
        for layer in layers:
            for target in targets:
                moved = (after[layer] - before[layer]) @ given.fits[layer, target.name].weights[:, 0]
                change = float(np.sqrt(np.mean(moved**2)) / target.y.std())
                found.setdefault((layer, target.name), {})[name] = change
    return found


def _localised(given: Tested, layer: str, targets: Sequence[Target]) -> dict[str, Localised]:
    """Return concept → scores of its maps; empty without masks, or for a layer without positions."""
    table, features = given.table, given.features
    masked = "mask" in table.frame.columns and table.location is not None
    if not masked or not targets or not isinstance(features, NetworkFeatures) or features.pool != "gap":
        return {}
    named = np.flatnonzero(table.frame["mask"].notna().to_numpy())
    first = targets[0]
    places = spread_rows(first, named, MASKED, given.seed)
    rows = first.rows[places]
    backbone = features.network()
    device = choose_device(given.device)
    rng = np.random.default_rng(given.seed)
    scale = given.fits[layer, first.name].space.scale
    noise = rng.normal(size=(len(scale), RANDOM_VECTORS)) / scale[:, None]
    own = np.concatenate([given.fits[layer, target.name].weights for target in targets], axis=1)
    W = np.concatenate([own, noise], axis=1)
    try:
        with ieee_float32():
            module = backbone.module.to(device)
            images = ImageReader(table, backbone, device, given.batch_size)
            maps = np.concatenate(
                concept_maps(module, backbone.layer(layer), images.batches(rows), W, np.zeros(W.shape[1]))
            )
    except InputError:  # a layer without positions has no map
        return {}
    finally:
        backbone.module.cpu()
    shares = [covered(_mask_of(table, int(row)), *maps.shape[2:]) for row in rows]
    found = {}
    for at, target in enumerate(targets):
        scored = localise(list(maps[:, at]), list(maps[:, len(targets) :]), shares, first.clusters[places], given.seed)
        if scored is not None:
            found[target.name] = scored
    return found


def _mask_of(table: PatchTable, row: int) -> NDArray[Any]:
    """Return the nuclei (h, w) of a patch: a window of the mask of its image, where the table has x, y and size."""
    cells = table.frame.iloc[row]
    labels = np.asarray(read_mask(table.folder / Path(str(cells["mask"]))))
    if {"x", "y", "size"} <= set(table.frame.columns) and cells[["x", "y", "size"]].notna().all():
        x, y, size = (int(cells[name]) for name in ("x", "y", "size"))
        labels = labels[y : y + size, x : x + size]
    return labels


def _map_fields(found: Localised | None) -> dict[str, Any]:
    if found is None:
        return {}
    gain = found.gain
    return {
        "auprc": found.auprc,
        "auprc_shifted": found.shifted,
        "auprc_random": found.random,
        "gain_low": gain.low if math.isfinite(gain.low) else None,
        "gain_high": gain.high if math.isfinite(gain.high) else None,
        "pointing": found.pointing,
        "pointing_shifted": found.pointing_shifted,
        "patches": found.patches,
    }
