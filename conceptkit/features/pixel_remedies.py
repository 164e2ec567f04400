"""Remedies against the center in pixels: stain normalisation and stain augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.images.decoding import Pixels
from conceptkit.pathology.restaining import restained_at_random
from conceptkit.pathology.stain import Macenko, Reinhard
from conceptkit.probe.remedies import Remedy, as_remedy
from conceptkit.tables.patches import PatchTable

COLUMN = "pixels_changed"
"""Column that states what was done to the pixels, so that stores of other pixels are not taken for these"""

REFERENCES = 16
"""Patches that the target of a normalisation is fitted on"""

PixelChange = Callable[[Pixels, str], Pixels]
"""From a patch (h, w, 3) and its name to the changed patch"""


def _normalised(method: Any) -> PixelChange:
    return lambda pixels, name: method.transform(pixels[None])[0]


@as_remedy("Reinhard's stain normalisation of each patch", pixels=True)
def reinhard(reference: NDArray[np.uint8]) -> PixelChange:
    """Give tissue the mean and spread of the reference's colours."""
    return _normalised(Reinhard.fit(reference))


@as_remedy("Macenko's stain normalisation of each patch", pixels=True)
def macenko(reference: NDArray[np.uint8]) -> PixelChange:
    """Give both stains the colours and strength that they have in the reference."""
    return _normalised(Macenko.fit(reference))


@as_remedy("a re-stained copy of each training patch added", pixels=True, augments=True)
def restained(reference: NDArray[np.uint8]) -> PixelChange:
    """Show hematoxylin and eosin in other amounts and other colours, at random by the patch's name."""
    return restained_at_random


@dataclass(frozen=True)
class ChangedPixels:
    """What is done to the pixels of a table."""

    change: PixelChange
    columns: tuple[str, ...] = (COLUMN,)

    def __call__(self, pixels: Pixels, record: Mapping[Any, Any]) -> Pixels:
        """Return the changed patch."""
        return self.change(pixels, str(record["patch_id"]))


def with_changed_pixels(table: PatchTable, name: str, remedy: Remedy, *, seed: int = 0) -> PatchTable:
    """Return the table with pixels changed by a remedy when they are read.

    The target of a normalisation is fitted on patches drawn at random from all rows, without regard to label or center:
    it is one fixed target, and every patch is changed by its own colours.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(table))[:REFERENCES])
    reference = np.stack([table.pixels(int(row)) for row in chosen])
    stated = hashlib.sha256("\n".join([name, *(table.patch_ids[k] for k in chosen)]).encode()).hexdigest()[:16]
    frame = table.frame.assign(**{COLUMN: f"{name} {stated}"})
    return replace(table, frame=frame, treatment=ChangedPixels(remedy.make(reference)))
