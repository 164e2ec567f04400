"""The resolution and field of view of patches: what a checkpoint was trained on, and how other patches are read."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.tables.patches import PatchTable

ALIKE = 0.1
"""Relative difference up to which two resolutions count as one: scanners of one magnification differ by less"""

EXACT = 0.01
"""Relative difference up to which nothing is resampled: sizes are whole pixels"""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The patches that a network was trained on."""

    finest: float | None = None
    """Smallest microns per pixel of the pixels as they are read; ``None`` where it is unknown"""
    coarsest: float | None = None
    """Largest microns per pixel; equal to :attr:`finest` unless patches of several resolutions were mixed"""
    side: int | None = None
    """Side of a patch in pixels; ``None`` where it is unknown"""

    def __post_init__(self) -> None:
        ends = (self.finest, self.coarsest)
        if (self.finest is None) != (self.coarsest is None) or any(v is not None and not 0 < v < 100 for v in ends):
            raise ValueError(f"the microns per pixel must lie between 0 and 100, got {self.finest} and {self.coarsest}")
        if self.side is not None and self.side < 1:
            raise ValueError(f"the side of a patch must be at least 1 pixel, got {self.side}")

    @property
    def mixed(self) -> bool:
        """Return whether patches of several resolutions were mixed."""
        return self.finest is not None and self.coarsest is not None and self.coarsest > self.finest * (1 + ALIKE)

    @property
    def mpp(self) -> float | None:
        """Return the one resolution, ``None`` where it is unknown or several are mixed."""
        known = self.finest is not None and self.coarsest is not None and not self.mixed
        return math.sqrt(self.finest * self.coarsest) if known else None  # type: ignore[operator]

    def __str__(self) -> str:
        if self.finest is None:
            return "an unknown number of µm per pixel"
        return (
            f"{self.finest:.4g} to {self.coarsest:.4g} µm per pixel" if self.mixed else f"{self.mpp:.4g} µm per pixel"
        )


def microns_per_pixel(table: PatchTable) -> NDArray[np.float64]:
    """Return the microns per pixel (n,) of the pixels as they are read, not a number where the table has none."""
    if "mpp" not in table.frame.columns:
        return np.full(len(table), np.nan)
    values = pd.to_numeric(table.frame["mpp"], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.where((values > 0) & (values < 100), values, np.nan)


def resolution_of(table: PatchTable) -> Resolution:
    """Return the resolution of a table's patches; all of them have the size of the first, if there are pixels."""
    mpp = microns_per_pixel(table)
    known = mpp[np.isfinite(mpp)]
    height, width = (0, 1) if table.location is None else table.pixels(0).shape[:2]
    ends = (float(known.min()), float(known.max())) if 0 < len(known) == len(mpp) else (None, None)
    return Resolution(finest=ends[0], coarsest=ends[1], side=int(height) if height == width else None)


def mixture_notes(table: PatchTable) -> tuple[str, ...]:
    """Return notes on a table whose patches have several resolutions, or some of them none."""
    mpp = microns_per_pixel(table)
    known = mpp[np.isfinite(mpp)]
    notes = []
    if len(known) and known.max() > known.min() * (1 + ALIKE):
        notes.append(
            f"Patches have several resolutions, {known.min():.4g} to {known.max():.4g} µm per pixel: a number "
            "per patch and what a network sees depend on it; cut all patches at one resolution, as with "
            "conceptkit tile --tile-mpp."
        )
    if 0 < len(known) < len(mpp):
        notes.append(f"{len(mpp) - len(known)} of {len(mpp)} patches have no mpp: their resolution is unknown.")
    return tuple(notes)


def resolution_notes(trained: Resolution | None, table: PatchTable) -> tuple[str, ...]:
    """Return notes on patches that a checkpoint reads as they are; ``None`` stands for an old checkpoint."""
    mpp = microns_per_pixel(table)
    if trained is None or trained.finest is None or trained.coarsest is None:
        return ("RESOLUTION: the checkpoint does not state its µm per pixel, so it was not compared with the table.",)
    if np.isnan(mpp).any():
        return (
            f"RESOLUTION: {int(np.isnan(mpp).sum())} of {len(mpp)} patches have no mpp, so their resolution was not "
            f"compared with the {trained} of the checkpoint.",
        )
    far = _far(trained, mpp)
    return (f"RESOLUTION: {far}: what it encodes here may differ from what it learned.",) if far else ()


def encoder_resolution_notes(name: str, stated: float, table: PatchTable) -> tuple[str, ...]:
    """Return a note where patches have another number of µm per pixel than the authors of an encoder state."""
    mpp = microns_per_pixel(table)
    far = _far(Resolution(finest=stated, coarsest=stated), mpp[~np.isnan(mpp)], f"{name} is used")
    return (f"RESOLUTION: {far}.",) if far else ()


def _far(trained: Resolution, mpp: NDArray[np.float64], what: str = "the checkpoint was trained") -> str:
    """Return how many patches have another resolution than a network, and which; empty without any."""
    finest, coarsest = trained.finest or 0.0, trained.coarsest or math.inf
    far = (mpp < finest / (1 + ALIKE)) | (mpp > coarsest * (1 + ALIKE))
    if not far.any():
        return ""
    return (
        f"{int(far.sum())} of {len(mpp)} patches have {mpp[far].min():.4g} to {mpp[far].max():.4g} µm per pixel, "
        f"{what} at {trained}"
    )


def at_resolution(table: PatchTable, trained: Resolution | None) -> tuple[PatchTable, tuple[str, ...]]:
    """Return a table whose patches have the resolution and field of view of a checkpoint, and notes.

    Patches of slides are read again: around the same middle, at the checkpoint's microns per pixel and with its field
    of view, as a number per patch is one per field of view. Pixels of image files are never resampled: they cannot be
    read with another field of view. Raises :class:`InputError` when patches cannot be read this way.
    """
    notes = resolution_notes(trained, table)
    if trained is None or trained.finest is None or np.isnan(microns_per_pixel(table)).any():
        # Sides in pixels do not determine the field of view where the resolution is unknown.
        return table, notes
    if trained.mixed or trained.mpp is None or trained.side is None:
        if far := _far(trained, microns_per_pixel(table)):
            raise InputError(
                f"table: {far}; a checkpoint of several resolutions "
                "has none that patches could be read at, so cut them at one of these."
            )
        return table, notes
    if table.location == "slide":
        return _read_again(table, trained.mpp, trained.side)
    return table, _check_images(table, trained.mpp, trained.side)


def _read_again(table: PatchTable, mpp: float, side: int) -> tuple[PatchTable, tuple[str, ...]]:
    """Return the table with windows of slides that show what the checkpoint was trained on."""
    frame = table.frame
    has = microns_per_pixel(table)
    size = frame["size"].to_numpy(dtype=float)
    own = frame["side"].fillna(frame["size"]).to_numpy(dtype=float) if "side" in frame.columns else size
    base = has * own / size  # of level 0
    wide = mpp * side / base  # the checkpoint's field of view, in pixels of level 0
    if (np.abs(has / mpp - 1) <= EXACT).all() and (np.abs(wide / size - 1) <= EXACT).all() and (own == side).all():
        return table, ()
    coarse = base > mpp * (1 + ALIKE)
    if coarse.any():
        first = int(np.flatnonzero(coarse)[0])
        raise InputError(
            f"table: {frame['slide'].iloc[first]} has {base[first]:.4g} µm per pixel at its highest magnification, the "
            f"checkpoint was trained at {mpp:.4g}; predict with a network trained at a resolution that the slide has."
        )
    new = np.maximum(1, np.round(wide)).astype(np.int64)
    moved = {c: np.round(frame[c].to_numpy(dtype=float) + (size - new) / 2).astype(np.int64) for c in ("x", "y")}
    read = frame.assign(**moved, size=new, side=side, mpp=base * new / side)
    note = (
        f"Patches of {has.min():.4g} to {has.max():.4g} µm per pixel were read again as the checkpoint was trained: "
        f"{side} pixels of {mpp:.4g} µm, {side * mpp:.4g} µm a side, around the middle of each patch."
    )
    if (wide < size * (1 - ALIKE)).any():
        note += (
            f" They do not cover all of it; conceptkit tile --tile-mpp {mpp:.4g} --size {side} cuts patches that do."
        )
    return replace(table, frame=read), (note,)


def _first_side(table: PatchTable) -> int:
    """Return the height of the first patch that can be read."""
    for row in range(len(table) - 1):
        with contextlib.suppress(InputError):
            return int(table.pixels(row).shape[0])
    return int(table.pixels(len(table) - 1).shape[0])


def _check_images(table: PatchTable, mpp: float, side: int) -> tuple[str, ...]:
    """Return notes on patches of image files; refuse another resolution or field of view."""
    has = microns_per_pixel(table)
    own = _first_side(table)
    far = np.abs(np.log(has / mpp))
    worst = float(has[int(far.argmax())])
    most = math.log(1 + ALIKE)
    if far.max() > most or abs(math.log(own * worst / (side * mpp))) > most:
        raise InputError(
            f"table: patches have {own} pixels of {worst:.4g} µm a side, the checkpoint was trained on {side} pixels "
            f"of {mpp:.4g} µm; cut the images to patches of that resolution and size."
        )
    if far.max() > EXACT:
        return (f"Patches have up to {worst:.4g} µm per pixel, the checkpoint was trained at {mpp:.4g}.",)
    return ()
