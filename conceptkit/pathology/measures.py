"""What can be measured on a patch: one function and one entry of ``MEASURES`` each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_choice, check_distinct
from conceptkit.pathology.texture import haralick, luma

Needs = Literal["pixels", "mask", "mask+mpp"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A concept that is computed from a patch, and what a reader has to know of it."""

    name: str
    unit: str
    kind: Literal["continuous", "categorical"]
    meaning: str
    """One sentence: what a high or low value says to a pathologist."""
    source: str
    """Where the definition comes from, in words."""
    needs: Needs
    """What ``function`` is given: images, label masks, or label masks and the microns per pixel of each."""
    function: Callable[..., NDArray[np.float64]]
    """Batch to (n,) values; NaN where a patch has none."""


def count(masks: NDArray[Any]) -> NDArray[np.float64]:
    """Return how many nuclei have at least one pixel in each patch, from (n, h, w) label masks (0 is background)."""
    labels = np.sort(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)
    steps = (labels[:, 1:] != labels[:, :-1]).sum(axis=1)  # each step upward enters one more label
    return np.asarray(steps + (labels[:, 0] != 0), dtype=np.float64)


def area_px(masks: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean number of pixels that a nucleus has inside each patch, (n,); NaN where there is no nucleus."""
    nuclei = count(masks)
    pixels = np.count_nonzero(masks, axis=(1, 2))
    mean = np.full(len(masks), np.nan)
    np.divide(pixels, nuclei, out=mean, where=nuclei > 0)
    return mean


def area_um2(masks: NDArray[Any], mpp: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return :func:`area_px` in µm², (n,); NaN where ``mpp``, the (n,) microns per pixel, is NaN."""
    return area_px(masks) * mpp**2


def contrast(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the Haralick contrast of the luma of (n, h, w, 3) patches, mean of four directions, (n,)."""
    return haralick(luma(images)).contrast


def correlation(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the Haralick correlation of the luma of (n, h, w, 3) patches, (n,); NaN where a patch is flat."""
    return haralick(luma(images)).correlation


_HARALICK = "Haralick, Shanmugam and Dinstein 1973: grey-level co-occurrence, 256 levels, distance 1, four directions"
_NUCLEI = "nuclear morphometry after Graziani et al. (multi-task adversarial training); nuclei as labelled in the mask"

MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        Measure(
            name="count",
            unit="nuclei per patch",
            kind="continuous",
            meaning="Many nuclei mean dense cellularity, as in proliferating tumor or in inflammation.",
            source=_NUCLEI,
            needs="mask",
            function=count,
        ),
        Measure(
            name="area_px",
            unit="px",
            kind="continuous",
            meaning="Large nuclei are a sign of nuclear grade; in pixels it compares only within one magnification.",
            source=_NUCLEI,
            needs="mask",
            function=area_px,
        ),
        Measure(
            name="area_um2",
            unit="µm²",
            kind="continuous",
            meaning="Large nuclei are a sign of nuclear grade; in µm² it compares across scanners and magnifications.",
            source=_NUCLEI,
            needs="mask+mpp",
            function=area_um2,
        ),
        Measure(
            name="contrast",
            unit="grey levels²",
            kind="continuous",
            meaning="High contrast means neighbouring pixels differ: coarse chromatin, sharp borders, crisp staining.",
            source=_HARALICK,
            needs="pixels",
            function=contrast,
        ),
        Measure(
            name="correlation",
            unit="1",
            kind="continuous",
            meaning="High correlation means grey levels change smoothly: homogeneous chromatin and stroma, or blur.",
            source=_HARALICK,
            needs="pixels",
            function=correlation,
        ),
    )
}
"""Every measure by its name."""


def names_for(*, mask: bool, mpp: bool) -> tuple[str, ...]:
    """Return the names of the measures that pixels give, with or without a mask and microns per pixel."""
    known = {"pixels": True, "mask": mask, "mask+mpp": mask and mpp}
    return tuple(name for name, m in MEASURES.items() if known[m.needs])


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return ``names`` as a tuple; raise :class:`InputError` where one is no measure or is given twice."""
    if isinstance(names, str):
        names = (names,)
    chosen = tuple(check_choice("names", name, MEASURES) for name in names)
    check_distinct("names", chosen)
    return chosen


def measure(
    images: NDArray[np.uint8],
    masks: NDArray[Any] | None = None,
    mpp: float | Sequence[float] | NDArray[np.float64] | None = None,
    *,
    names: Iterable[str] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Measure a batch of patches.

    Parameters
    ----------
    images
        (n, h, w, 3) RGB.
    masks
        (n, h, w) nucleus labels: 0 is background, each nucleus its own integer.
    mpp
        Microns per pixel, one for all or one for each patch; NaN where unknown.
    names
        Measures to compute; ``None``: all that the given inputs allow.

    Returns
    -------
    Name to (n,) values, in the order of ``names``; NaN where a patch has no value.

    Raises
    ------
    InputError
        when an array has another type or shape, a label is negative, ``mpp`` is not positive, a name is unknown, or a
        named measure lacks the mask or the ``mpp`` that it needs.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise InputError(f"images: must be uint8 of shape (n, h, w, 3), got {images.dtype} of shape {images.shape}.")
    labels = None if masks is None else _check_masks(masks, images.shape[:3])
    scale = None if mpp is None else _check_mpp(mpp, len(images))
    if names is None:
        names = names_for(mask=masks is not None, mpp=mpp is not None)
    values = {}
    for name in check_names(names):
        one = MEASURES[name]
        given = {"pixels": (images,), "mask": (labels,), "mask+mpp": (labels, scale)}[one.needs]
        if any(g is None for g in given):
            raise InputError(f"names: {name} needs {one.needs.replace('+', ' and ')}, got none.")
        values[name] = one.function(*given)
    return values


def _check_masks(masks: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    masks = np.asarray(masks)
    if masks.dtype.kind not in "iu" or masks.shape != shape:
        raise InputError(f"masks: must be integers of shape {shape}, got {masks.dtype} of shape {masks.shape}.")
    if masks.dtype.kind == "i" and masks.size and masks.min() < 0:
        raise InputError(f"masks: a label must be at least 0, got {masks.min()}.")
    return masks


def _check_mpp(mpp: float | Sequence[float] | NDArray[np.float64], n: int) -> NDArray[np.float64]:
    values = np.asarray(mpp, dtype=np.float64)
    if values.shape not in {(), (n,)}:
        raise InputError(f"mpp: must be one number or one for each of {n} patches, got shape {values.shape}.")
    wrong = values[~np.isnan(values) & ~((values > 0) & np.isfinite(values))]
    if wrong.size:
        raise InputError(f"mpp: must be a positive number of microns per pixel, got {wrong[0]}.")
    return np.broadcast_to(values, (n,))
