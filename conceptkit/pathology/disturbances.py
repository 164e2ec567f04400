"""Nuisances made on purpose: each patch is disturbed by a known amount, which becomes a concept to discourage."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter

from conceptkit.errors import InputError, check_distinct
from conceptkit.families import DISTURBANCES
from conceptkit.images.decoding import Pixels
from conceptkit.pathology.colour import RUIFROK, optical_density
from conceptkit.tables.patches import PatchTable

PREFIX = "made_"
"""Of the columns that hold the amounts"""


@dataclass(frozen=True)
class Disturbance:
    """One way to disturb a patch."""

    apply: Callable[[Pixels, float], Pixels]
    """From pixels (h, w, 3) uint8 and the amount to pixels of the same shape"""
    draw: Callable[[np.random.Generator], float]
    unit: str
    meaning: str


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """Return the patch turned counter-clockwise about its middle; what comes in from outside is its mirror image."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = (np.array(pixels.shape[:2]) - 1) / 2
    offset = middle - turn @ middle
    return _by_channel(pixels, lambda c: affine_transform(c, turn, offset, order=1, mode="mirror"))


def rescale(pixels: Pixels, power: float) -> Pixels:
    """Return the patch seen at 2^power times its magnification, about its middle; beyond its edge it is mirrored."""
    factor = 2.0**-power
    middle = (np.array(pixels.shape[:2]) - 1) / 2
    return _by_channel(
        pixels, lambda c: affine_transform(c, np.full(2, factor), middle * (1 - factor), order=1, mode="mirror")
    )


def compress(pixels: Pixels, quality: float) -> Pixels:
    """Return the patch after JPEG of that quality, with colour at half the resolution."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=round(quality), subsampling=2)
    return np.asarray(Image.open(stream).convert("RGB"))


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Return the patch after a Gaussian filter of ``sigma`` pixels."""
    return _by_channel(pixels, lambda c: gaussian_filter(c, sigma, mode="mirror"))


def restain(pixels: Pixels, power: float, *, stain: int) -> Pixels:
    """Return the patch with 2^power times as much of one stain (0 hematoxylin, 1 eosin) in every pixel.

    Sources: Ruifrok and Johnston, 2001, for the stain vectors; Tellez et al., 2019, for scaling them.
    """
    amounts = optical_density(pixels) @ np.linalg.inv(RUIFROK)
    # A pixel of glass has none of a stain, and noise below none is not more of it.
    amounts[..., stain] *= np.where(amounts[..., stain] > 0, 2.0**power, 1.0)
    light = 255.0 * 10.0 ** -(amounts @ RUIFROK)
    return np.clip(np.round(light), 0, 255).astype(np.uint8)


def _uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    return lambda chance: float(chance.uniform(low, high))


rotation = Disturbance(rotate, _uniform(-45.0, 45.0), "degrees", "how far the patch was turned")
scale = Disturbance(rescale, _uniform(-0.5, 0.5), "doublings", "at how many doublings of its size it is seen")
jpeg = Disturbance(
    compress, lambda chance: float(chance.integers(30, 96)), "quality", "how well JPEG kept it, 1 to 100"
)
defocus = Disturbance(blur, _uniform(0.0, 2.0), "px", "how far it was out of focus")
hematoxylin, eosin = (
    Disturbance(
        partial(restain, stain=stain), _uniform(-0.6, 0.6), "doublings", f"how many doublings more {name} it has"
    )
    for stain, name in enumerate(("hematoxylin", "eosin"))
)


@dataclass(frozen=True)
class Disturbances:
    """The disturbances of a table, applied whenever a patch is read."""

    names: tuple[str, ...]
    """In the order of :data:`conceptkit.families.DISTURBANCES`"""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that hold the amounts."""
        return tuple(PREFIX + name for name in self.names)

    def __call__(self, pixels: Pixels, record: Mapping[Any, Any]) -> Pixels:
        """Return the disturbed patch."""
        for name in self.names:
            pixels = DISTURBANCES[name].apply(pixels, float(record[PREFIX + name]))
        return pixels


def disturbed(table: PatchTable, names: Sequence[str], *, seed: int = 0) -> PatchTable:
    """Return the table with every patch disturbed once, and the amounts as concepts ``made_rotation`` and so on.

    An amount depends on seed, disturbance and ``patch_id`` only: the same patch is disturbed alike in every order and
    subset of the table. Raises :class:`InputError` for an unknown or repeated name, or a table that has such a column.
    """
    check_distinct("disturb", names)
    for name in names:
        DISTURBANCES.check("disturb", name)
    if table.treatment is not None:
        raise InputError("disturb: the table's patches are disturbed already.")
    ordered = tuple(name for name in DISTURBANCES if name in names)
    columns = {}
    for name in ordered:
        if PREFIX + name in table.frame.columns:
            raise InputError(f"disturb: the table has a column {PREFIX + name} already.")
        columns[PREFIX + name] = [_amount(name, patch, seed) for patch in table.patch_ids]
    kinds = {**table.kinds, **dict.fromkeys(columns, "continuous")}
    return replace(table, frame=table.frame.assign(**columns), kinds=kinds, treatment=Disturbances(ordered))


def _amount(name: str, patch: str, seed: int) -> float:
    entropy = hashlib.sha256(f"{seed}|{name}|{patch}".encode()).digest()
    amount: float = DISTURBANCES[name].draw(np.random.default_rng(list(entropy)))
    return amount


def _by_channel(pixels: Pixels, filtered: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Pixels:
    planes = [filtered(pixels[..., c].astype(np.float64)) for c in range(3)]
    return np.clip(np.round(np.stack(planes, axis=-1)), 0, 255).astype(np.uint8)
