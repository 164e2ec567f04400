"""A batch of patches to measure, and what a measure says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.pathology import colour
from conceptkit.pathology.morphology import Nuclei, find_nuclei
from conceptkit.pathology.stain import stain_statistics
from conceptkit.pathology.texture import Cooccurrence, Haralick, cooccurrence, haralick, luma

Values = NDArray[np.float64]
Needs = Literal["pixels", "mask", "mask+mpp", "pixels+mask", "types", "types+mpp", "file"]
Level = Literal["nucleus", "patch", "acquisition"]


@dataclass(frozen=True)
class Batch:
    """Patches to measure, and what several measures share, computed on first use."""

    pixels: NDArray[np.uint8]
    """(n, h, w, 3) RGB."""
    mask: NDArray[Any] | None = None
    """(n, h, w) nucleus labels."""
    mpp: Values | None = None
    """(n,) microns per pixel, NaN where unknown."""
    file: Values | None = None
    """(n,) JPEG quality of the file of each patch, NaN for other formats."""

    types: Mapping[int, str] | None = None
    """Label → type of its nucleus, in all patches; labels without a type are left out."""

    @property
    def scale(self) -> Values:
        """(n,) microns per pixel; raises where they are not given."""
        if self.mpp is None:
            raise InputError("mpp: microns per pixel are needed, got none.")
        return self.mpp

    @cached_property
    def types_of_nuclei(self) -> NDArray[np.str_]:
        """(m,) the type of each nucleus, empty where it has none."""
        if self.mask is None or self.types is None:
            raise InputError("types: types of nuclei need a mask and types, got none.")
        label = np.zeros(len(self.nuclei.area), dtype=np.int64)
        label[self.nuclei.owner] = np.ravel(self.mask)[self.nuclei.pixels]
        return np.array([self.types.get(int(one), "") for one in label], dtype=np.str_)

    @cached_property
    def luma(self) -> NDArray[np.uint8]:
        """(n, h, w)."""
        return luma(self.pixels)

    @cached_property
    def nuclei(self) -> Nuclei:
        """Every nucleus of the batch."""
        if self.mask is None:
            raise InputError("masks: nuclei need a mask, got none.")
        return find_nuclei(self.mask)

    @cached_property
    def texture(self) -> Haralick:
        """Contrast and correlation of the patches."""
        return haralick(self.luma)

    @cached_property
    def matrix(self) -> Cooccurrence:
        """All four properties of the patches."""
        return cooccurrence(self.luma)

    @cached_property
    def chromatin(self) -> Cooccurrence:
        """All four properties inside the nuclei."""
        return cooccurrence(self.luma, self.mask)

    @cached_property
    def hematoxylin(self) -> tuple[Values, Values]:
        """Mean and standard deviation of the hematoxylin of each nucleus, (m,) each, in optical density."""
        return self.nuclei.inside(colour.hematoxylin(self.pixels))

    @cached_property
    def lab(self) -> tuple[Values, Values]:
        """Mean and standard deviation of CIELAB, (n, 3) each."""
        planes = [colour.lab(p).reshape(-1, 3) for p in self.pixels]
        mean, sd = ([f(p, axis=0, dtype=np.float64) for p in planes] for f in (np.mean, np.std))
        return np.reshape(mean, (-1, 3)), np.reshape(sd, (-1, 3))

    @cached_property
    def stains(self) -> Values:
        """(n, 2, 3) stain vectors; NaN where a patch has too little tissue."""
        found = [stain_statistics(p[None]) for p in self.pixels]
        return np.reshape([np.full((2, 3), np.nan) if s is None else s.vectors for s in found], (-1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class PatchMeasure:
    """A concept that is computed from a patch, and its description."""

    name: str
    unit: str
    kind: Literal["continuous", "categorical"] = "continuous"
    meaning: str
    """One sentence: what a high or low value says to a pathologist."""
    source: str
    """Where the definition comes from, in words."""
    needs: Needs
    """What has to be there: pixels (always), a label mask, microns per pixel, the image's own file."""
    function: Callable[..., Values]
    """Batch to (n,) values; NaN where a patch has none."""
    level: Level = "patch"
    """What is described: the nucleus, the patch as a whole, or how the image was acquired."""
    role: Literal["encourage", "discourage"] = "encourage"
    """How guiding would use it by default, as in the paper's Figure 4 (desired and undesired targets)."""
    takes: Literal["arrays", "batch"] = "arrays"
    """``arrays``: ``function`` gets the arrays that ``needs`` names, in that order; ``batch``: the :class:`Batch`."""

    def __call__(self, batch: Batch) -> Values:
        """Return the (n,) values of a batch."""
        if self.takes == "batch":
            return self.function(batch)
        return self.function(*(getattr(batch, part) for part in self.needs.split("+")))


def as_measure(
    unit: str, meaning: str, *, name: str = "", **facts: Any
) -> Callable[[Callable[..., Values]], PatchMeasure]:
    """Return a decorator that makes a measure of a function.

    Parameters
    ----------
    name : default: that of the function
    unit, meaning, facts : the other fields of :class:`PatchMeasure`
    """
    facts |= {"unit": unit, "meaning": meaning}
    return lambda function: PatchMeasure(name=name or function.__name__, function=function, **facts)
