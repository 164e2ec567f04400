"""Microns per pixel: which numbers can be those of a microscope's image."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from conceptkit.errors import InputError

SCALES = (0.01, 10)
"""Smallest and largest microns per pixel of a microscope's image. A larger number is a print resolution, such as the
84.67 of 300 dots per inch."""

ASSUMED_MPP = 0.25
"""What an image without microns per pixel is taken for when nuclei are looked for: 40x."""


def read_scale(given: Any, name: str) -> float:
    """Return the microns per pixel in a cell of a table; NaN where it is empty or too large for a microscope.

    Raises :class:`InputError` when the cell of the image or patch ``name`` holds anything else.
    """
    if given == "" or pd.isna(given):
        return math.nan
    try:
        mpp = float(given)
    except (TypeError, ValueError):
        mpp = math.nan
    if not SCALES[0] <= mpp < math.inf:
        raise InputError(f"mpp: must be at least {SCALES[0]} microns per pixel, or empty, got {given} for {name}.")
    return mpp if mpp <= SCALES[1] else math.nan


def known_scales(
    mpp: pd.Series[Any], names: pd.Series[Any], missing: object = math.nan
) -> tuple[pd.Series[Any], list[str]]:
    """Return a column of microns per pixel, missing where too large for a microscope, and a note where it was.

    What is not a resolution at all stays as it is, and is refused where it is needed.
    """
    numbers = pd.to_numeric(mpp, errors="coerce")
    coarse = (numbers > SCALES[1]) & (numbers < math.inf)
    if not coarse.any():
        return mpp, []
    first = int(coarse.to_numpy().argmax())
    note = (
        f"mpp is above {SCALES[1]} µm per pixel in {int(coarse.sum())} of {len(mpp)} rows ({mpp.iloc[first]} for "
        f"{names.iloc[first]}), as a print resolution such as 300 dpi gives; it counts as unknown there."
    )
    return mpp.mask(coarse, missing), [note]
