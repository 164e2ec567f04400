"""Quality of a patch's tissue: background, focus and folds as shares, and patches left out by their measures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from conceptkit.errors import InputError, check_choice
from conceptkit.families import MEASURES
from conceptkit.pathology.batch import Batch, Values, as_measure
from conceptkit.pathology.colour import optical_density
from conceptkit.pathology.scales import ASSUMED_MPP

GLASS = 0.08
"""Mean optical density of the channels below which a pixel is background."""

_BLOCK, _SHARP = 32, 0.18
"""Side of the blocks of which the focus is judged; least share of fine detail, which blurring by 2 pixels falls below:
measured on blocks of ten images at 40x and one at 20x."""

_FOLD_UM, _FOLD_RATIO, _FOLD_OF, _FOLD_DENSITY = 8.0, 1.6, 0.3, 0.3
"""Size of the window; how many times as dark its lighter part is as the patch's tissue at this quantile, and how dark
at least. Chosen on tissue with bands of doubled density (58 patches at 40x, 8 at 20x; AUC 0.95 or more)."""

_quality = partial(as_measure, needs="pixels", takes="batch", level="acquisition", role="discourage")


@_quality(
    "1",
    "Share of glass: a patch that is mostly glass says little about the tissue.",
    source="share of pixels with a mean optical density below 0.08",
)
def background(batch: Batch) -> Values:
    """Return the share of background, (n,)."""
    return np.array([(_density(image) < GLASS).mean() for image in batch.pixels])


@_quality(
    "1",
    "Share of the tissue that is out of focus; nuclei there look smooth and pale without being so.",
    source="blocks of 32 pixels; detail below 1 px against that of 1 to 4 px, under 0.18",
)
def blur_share(batch: Batch) -> Values:
    """Return the share of the tissue's blocks that are blurred, (n,); NaN where there is no tissue."""
    return np.array([_blurred(image, luma) for image, luma in zip(batch.pixels, batch.luma, strict=True)])


@_quality(
    "1",
    "Share of folded tissue, which is twice as dark without being hyperchromatic or dense.",
    source="lighter quarter of windows of 8 µm at 1.6 times the optical density of the patch's paler tissue",
)
def folds(batch: Batch) -> Values:
    """Return the share of pixels in folds, (n,); NaN where there is no tissue."""
    scales = np.full(len(batch.pixels), np.nan) if batch.mpp is None else batch.mpp
    return np.array([_folded(image, mpp) for image, mpp in zip(batch.pixels, scales, strict=True)])


def _density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(optical_density(image).mean(axis=-1))


def _blurred(image: NDArray[np.uint8], luma: NDArray[np.uint8]) -> float:
    grey = luma.astype(np.float32)
    middle = ndimage.gaussian_filter(grey, 1.0)
    parts = np.abs(grey - middle), np.abs(middle - ndimage.gaussian_filter(middle, 4.0)), _density(image) > GLASS
    fine, coarse, tissue = (_blocks(part) for part in parts)
    inside = tissue > 0.5
    return float((fine[inside] < _SHARP * (coarse[inside] + 1)).mean()) if inside.any() else math.nan


def _blocks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the mean of each whole block; of a patch smaller than a block, its own."""
    height, width = (max(n // _BLOCK, 1) for n in values.shape)
    size = min(_BLOCK, *values.shape)
    part = values[: height * size, : width * size].astype(np.float64)
    return np.asarray(part.reshape(height, size, width, size).mean(axis=(1, 3)))


def _folded(image: NDArray[np.uint8], mpp: float) -> float:
    density = _density(image)
    tissue = density > GLASS
    if not tissue.any():
        return math.nan
    # A quarter of the pixels gives the same window at a sixteenth of the time.
    side = max(3, round(_FOLD_UM / (mpp if np.isfinite(mpp) else ASSUMED_MPP) / 4))
    lighter = ndimage.percentile_filter(ndimage.uniform_filter(density, 3)[::4, ::4], 25, size=side)
    return float((lighter > max(_FOLD_DENSITY, _FOLD_RATIO * float(np.quantile(density[tissue], _FOLD_OF)))).mean())


USUAL = {"background": 0.8, "blur_share": 0.5, "folds": 0.1, "ink": 0.05}
"""Share above which a patch is left out where none is given."""


@dataclass(frozen=True)
class Condition:
    """A patch is left out when its measure is beyond a limit."""

    measure: str
    above: bool
    limit: float

    def __str__(self) -> str:
        return f"{self.measure} {'>' if self.above else '<'} {self.limit:g}"

    def holds(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return for which of (n,) values it holds; for none that is missing."""
        with np.errstate(invalid="ignore"):
            return np.asarray(values > self.limit if self.above else values < self.limit)


def read_conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """Return the conditions in texts such as ``folds``, ``blur_share>0.3`` and ``count<5``.

    Raises :class:`InputError` when a measure is unknown, or a limit is missing or not a number.
    """
    found = []
    for text in texts:
        parts = re.fullmatch(r"\s*(\w+)\s*(?:([<>])\s*(\S+)\s*)?", text)
        if parts is None:
            raise InputError(f"exclude: must be MEASURE, MEASURE>NUMBER or MEASURE<NUMBER, got {text!r}.")
        name, sign, number = parts.groups()
        check_choice("exclude", name, MEASURES)
        if sign is None and name not in USUAL:
            raise InputError(f"exclude: {name} has no usual limit; give one, as in '{name}>0.5'.")
        try:
            limit = USUAL[name] if sign is None else float(number)
        except ValueError:
            limit = math.nan
        if math.isnan(limit):
            raise InputError(f"exclude: the limit of {name} must be a number, got {number!r}.")
        found.append(Condition(name, sign != "<", limit))
    return tuple(found)


def exclude(table: pd.DataFrame, conditions: Sequence[Condition]) -> tuple[pd.DataFrame, list[str]]:
    """Return the patches for which no condition holds, and notes on the others.

    Raises :class:`InputError` when no patch is left.
    """
    if not conditions:
        return table, []
    holding = [condition.holds(table[condition.measure].to_numpy(dtype=np.float64)) for condition in conditions]
    left_out = np.any(holding, axis=0)
    each = ", ".join(f"{c} in {int(h.sum())}" for c, h in zip(conditions, holding, strict=True))
    if left_out.all():
        raise InputError(f"exclude: all {len(table)} patches would be left out ({each}).")
    notes = [f"{int(left_out.sum())} of {len(table)} patches were left out by --exclude ({each})."]
    missing = [c.measure for c in conditions if table[c.measure].isna().any()]
    if missing:
        notes.append(f"Patches without a value of {', '.join(missing)} were not left out by it.")
    return table[~left_out].reset_index(drop=True), notes
