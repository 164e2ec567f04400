"""The built-in measures of a patch, one function each, and what computes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice, check_distinct
from conceptkit.families import MEASURES
from conceptkit.pathology import nuisances
from conceptkit.pathology.batch import Batch, PatchMeasure, Values, as_measure
from conceptkit.pathology.colour import check_images

_HARALICK = "Haralick, Shanmugam and Dinstein 1973: grey-level co-occurrence, 256 levels, distance 1, four directions"
_NUCLEI = "nuclear morphometry after Graziani et al. (multi-task adversarial training); nuclei as labelled in the mask"
_MOMENTS = "ellipse of equal second moments; nuclei that touch the border are excluded"
_RUIFROK = "colour deconvolution with Ruifrok and Johnston's vectors (2001), in optical density"
_MACENKO = "Macenko et al. 2009, a patch's own tissue; a component of a vector of length 1 in optical density"
_CIELAB = "CIELAB (D65) of sRGB over the whole patch"

_patch = partial(as_measure, needs="pixels", takes="batch", source=_HARALICK)
_nuclear = partial(as_measure, needs="mask", takes="batch", source=_NUCLEI, level="nucleus")
_inside = partial(
    as_measure,
    needs="pixels+mask",
    takes="batch",
    source=_HARALICK + "; pairs inside one nucleus",
    level="nucleus",
)
_nuisance = partial(as_measure, needs="pixels", takes="batch", level="acquisition", role="discourage", source=_CIELAB)


@_nuclear(
    "nuclei per patch",
    "Many nuclei mean dense cellularity, as in proliferating tumor or in inflammation.",
    level="patch",
)
def count(batch: Batch) -> Values:
    """Return how many nuclei have at least one pixel in each patch, (n,)."""
    return np.bincount(batch.nuclei.patch, minlength=batch.nuclei.n).astype(np.float64)


@_nuclear("px", "Large nuclei are a sign of nuclear grade; in pixels it compares only within one magnification.")
def area_px(batch: Batch) -> Values:
    """Return the mean number of pixels that a nucleus has inside each patch, (n,); NaN where there is no nucleus."""
    return batch.nuclei.mean(batch.nuclei.area)


@_nuclear(
    "µm²",
    "Large nuclei are a sign of nuclear grade; in µm² it compares across scanners and magnifications.",
    needs="mask+mpp",
)
def area_um2(batch: Batch) -> Values:
    """Return :func:`area_px` in µm², (n,); NaN where the microns per pixel are unknown."""
    return area_px(batch) * np.square(batch.scale)


@_patch(
    "grey levels²", "High contrast means neighbouring pixels differ: coarse chromatin, sharp borders, crisp staining."
)
def contrast(batch: Batch) -> Values:
    """Return the contrast of the grey levels of each patch, (n,)."""
    return batch.texture.contrast


@_patch("1", "High correlation means grey levels change smoothly: homogeneous chromatin and stroma, or blur.")
def correlation(batch: Batch) -> Values:
    """Return the correlation of neighbouring grey levels of each patch, (n,)."""
    return batch.texture.correlation


@_patch("1", "High homogeneity means equal neighbours: glass, mucus, fat, or an even stroma.")
def homogeneity(batch: Batch) -> Values:
    """Return the homogeneity of the grey levels of each patch, (n,)."""
    return batch.matrix.homogeneity


@_patch("1", "A high angular second moment means few grey levels rule the patch: empty or very even tissue.")
def asm(batch: Batch) -> Values:
    """Return the angular second moment of the grey levels of each patch, (n,)."""
    return batch.matrix.asm


@_nuclear(
    "nuclei/mm²", "Cellularity that compares across patch sizes and magnifications.", needs="mask+mpp", level="patch"
)
def density_mm2(batch: Batch) -> Values:
    """Return nuclei per mm² of patch, (n,); a nucleus counts in every patch that holds a pixel of it."""
    height, width = batch.pixels.shape[1:3]
    scale = batch.scale
    return np.asarray(count(batch) / (height * width * scale**2) * 1e6)


@_nuclear("1", "A high share of nuclei means crowded or enlarged nuclei, or little cytoplasm.", level="patch")
def nuclear_share(batch: Batch) -> Values:
    """Return the share of pixels inside nuclei, (n,)."""
    height, width = batch.pixels.shape[1:3]
    pixels = np.bincount(batch.nuclei.patch, batch.nuclei.area, batch.nuclei.n)
    return np.asarray(pixels / (height * width))


@_nuclear("px", "Nuclei of very different size (anisokaryosis) are a sign of nuclear grade.")
def area_sd_px(batch: Batch) -> Values:
    """Return the standard deviation between the nuclei's pixels inside each patch, (n,); NaN below two nuclei."""
    return batch.nuclei.sd(batch.nuclei.area)


@_nuclear("µm²", "Anisokaryosis that compares across scanners and magnifications.", needs="mask+mpp")
def area_sd_um2(batch: Batch) -> Values:
    """Return :func:`area_sd_px` in µm², (n,)."""
    return area_sd_px(batch) * np.square(batch.scale)


@_nuclear(
    "1", "Round nuclei (low) are lymphocytes or epithelium, long ones (high) fibroblasts and vessels.", source=_MOMENTS
)
def eccentricity(batch: Batch) -> Values:
    """Return the mean eccentricity of the nuclei that do not touch the border, (n,); NaN where there is none."""
    return batch.nuclei.mean(batch.nuclei.eccentricity(), batch.nuclei.whole)


@_nuclear(
    "1",
    "Low solidity means dented, irregular nuclear contours, a sign of grade, or nuclei that were not separated.",
    source="area over that of the convex hull; nuclei that touch the border are excluded",
)
def solidity(batch: Batch) -> Values:
    """Return the mean solidity of the nuclei that do not touch the border, (n,); NaN where there is none."""
    return batch.nuclei.mean(batch.nuclei.solidity(), batch.nuclei.whole)


@_inside(
    "optical density",
    "Dark nuclei (hyperchromasia) are a sign of malignancy; it follows the stain's strength too.",
    source=_RUIFROK,
)
def hematoxylin(batch: Batch) -> Values:
    """Return the mean hematoxylin of the nuclei of each patch, (n,)."""
    return batch.nuclei.mean(batch.hematoxylin[0])


@_inside(
    "optical density",
    "Uneven hematoxylin inside a nucleus means clumped or vesicular chromatin.",
    source=_RUIFROK + "; standard deviation inside a nucleus, mean of a patch's nuclei",
)
def hematoxylin_sd(batch: Batch) -> Values:
    """Return the mean standard deviation of hematoxylin inside the nuclei of each patch, (n,)."""
    return batch.nuclei.mean(batch.hematoxylin[1])


@_inside("grey levels²", "High contrast inside nuclei means coarse chromatin and nucleoli.")
def nuclei_contrast(batch: Batch) -> Values:
    """Return the contrast of the grey levels inside nuclei, (n,)."""
    return batch.chromatin.contrast


@_inside("1", "High correlation inside nuclei means chromatin that changes smoothly, or nuclei that differ in tone.")
def nuclei_correlation(batch: Batch) -> Values:
    """Return the correlation of neighbouring grey levels inside nuclei, (n,)."""
    return batch.chromatin.correlation


@_inside("1", "High homogeneity inside nuclei means even, smudged chromatin.")
def nuclei_homogeneity(batch: Batch) -> Values:
    """Return the homogeneity of the grey levels inside nuclei, (n,)."""
    return batch.chromatin.homogeneity


@_inside("1", "A high angular second moment inside nuclei means chromatin of few tones.")
def nuclei_asm(batch: Batch) -> Values:
    """Return the angular second moment of the grey levels inside nuclei, (n,)."""
    return batch.chromatin.asm


@_nuclear(
    "px",
    "Near neighbours mean crowding, as in solid tumor; in pixels it compares within one magnification.",
    source="nearest centre within the patch",
    level="patch",
)
def neighbour_px(batch: Batch) -> Values:
    """Return the mean distance from a nucleus' centre to the nearest other one, (n,) px; NaN below two nuclei."""
    distances = batch.nuclei.neighbour_distance()
    return batch.nuclei.mean(distances, np.isfinite(distances))


@_nuclear(
    "µm",
    "Near neighbours mean crowding, as in solid tumor or lymphoid tissue.",
    source="nearest centre within the patch",
    needs="mask+mpp",
    level="patch",
)
def neighbour_um(batch: Batch) -> Values:
    """Return :func:`neighbour_px` in µm, (n,)."""
    return neighbour_px(batch) * batch.scale


@_nuclear(
    "px",
    "Unequal distances mean nuclei in nests or rows, equal ones an even sheet.",
    source="nearest centre within the patch",
    level="patch",
)
def neighbour_sd_px(batch: Batch) -> Values:
    """Return the standard deviation between these distances, (n,) px; NaN below two nuclei."""
    distances = batch.nuclei.neighbour_distance()
    return batch.nuclei.sd(np.nan_to_num(distances), np.isfinite(distances))


def _stain(stain: int, full: str) -> tuple[PatchMeasure, ...]:
    """Return the components of a stain's vector in red, green and blue."""
    return tuple(
        _nuisance(
            "1",
            f"How much {colour} the {full} of this laboratory absorbs: its recipe and the scanner.",
            name=f"stain_{full[0]}_{colour[0]}",
            source=_MACENKO,
        )(partial(_component, stain=stain, channel=channel))
        for channel, colour in enumerate(("red", "green", "blue"))
    )


def _component(batch: Batch, *, stain: int, channel: int) -> Values:
    return batch.stains[:, stain, channel]


stain_h_r, stain_h_g, stain_h_b = _stain(0, "hematoxylin")
stain_e_r, stain_e_g, stain_e_b = _stain(1, "eosin")


def _lab(statistic: int, word: str, ending: str = "") -> tuple[PatchMeasure, ...]:
    """Return the mean (0) or the standard deviation (1) of the three axes of CIELAB."""
    return tuple(
        _nuisance(
            "1",
            f"{word} of {range_}: staining strength, thickness and scanner.",
            name=f"lab_{axis}{ending}",
        )(partial(_axis, statistic=statistic, axis=k))
        for k, (axis, range_) in enumerate((("l", "lightness"), ("a", "green to red"), ("b", "blue to yellow")))
    )


def _axis(batch: Batch, *, statistic: int, axis: int) -> Values:
    return batch.lab[statistic][:, axis]


lab_l, lab_a, lab_b = _lab(0, "Mean")
lab_l_sd, lab_a_sd, lab_b_sd = _lab(1, "Spread", "_sd")


@_nuisance(
    "1",
    "Marker ink on the glass: someone saw something here, which a network must not learn.",
    source="share of black, green and blue pixels that no hematoxylin or eosin gives",
)
def ink(batch: Batch) -> Values:
    """Return the share of pixels with marker ink, (n,)."""
    return nuisances.ink_share(batch.pixels)


@_nuisance(
    "1",
    "Out of focus (high): nuclei look smooth and pale without being so.",
    source="Crété et al. 2007, the blur effect, of the luma",
)
def blur(batch: Batch) -> Values:
    """Return the blur effect of each patch, (n,)."""
    return nuisances.blur(batch.luma)


@_nuisance(
    "1",
    "Steps on a grid of 8 pixels: strong compression, which differs between scanners.",
    source="grey steps on the grid over those off it, at the strongest offset",
)
def jpeg_blocks(batch: Batch) -> Values:
    """Return the strength of the steps on a grid of 8 pixels, (n,)."""
    return nuisances.blockiness(batch.luma)


@_nuisance(
    "1 to 100",
    "Quality of the JPEG that the patch comes from, a file or a TIFF slide; low quality smooths chromatin.",
    source="inverse of libjpeg's scaling of the quantization table",
    needs="file",
)
def jpeg_quality(batch: Batch) -> Values:
    """Return the JPEG quality of the file of each patch, (n,)."""
    return np.asarray(batch.file)


def names_for(*, mask: bool, mpp: bool, file: bool = False, types: bool = False) -> tuple[str, ...]:
    """Return the names of the measures that are possible, with or without mask, microns per pixel, JPEG and types."""
    known = {"pixels": True, "pixels+mask": mask, "mask": mask, "mask+mpp": mask and mpp, "file": file}
    known |= {"types": mask and types, "types+mpp": mask and types and mpp}
    return tuple(name for name, m in MEASURES.items() if known[m.needs])


CORE = ("count", "area_px", "area_um2", "contrast", "correlation")
"""The paper's measures, which are computed when none is named."""

GROUPS = ("core", "all", "nuisances", "typed")
"""Names that stand for several measures."""


def spell_out(name: str) -> tuple[str, ...]:
    """Return the measures of a group in :data:`GROUPS`, or ``(name,)`` for any other name."""
    if name == "core":
        return CORE
    if name in GROUPS:  # measures of types only where they are named: few masks have types
        of_types = {n for n, m in MEASURES.items() if m.needs.startswith("types")}
        chosen = of_types if name == "typed" else set(MEASURES) - of_types
        return tuple(n for n, m in MEASURES.items() if n in chosen and (name != "nuisances" or m.role == "discourage"))
    return (name,)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return ``names`` as a tuple with :data:`GROUPS` expanded; raise if one is unknown or repeated."""
    if isinstance(names, str):
        names = (names,)
    known = (*MEASURES, *GROUPS)
    chosen = tuple(part for name in names for part in spell_out(check_choice("measure", name, known)))
    check_distinct("measure", chosen)
    return chosen


def measure(
    images: NDArray[np.uint8],
    masks: NDArray[Any] | None = None,
    mpp: float | Sequence[float] | NDArray[np.float64] | None = None,
    *,
    names: Iterable[str] | None = None,
    jpeg_quality: float | None = None,
    types: Mapping[int, str] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Measure a batch of patches; returns name to (n,) values, in the order of ``names``, NaN where there is none.

    Raises :class:`InputError` when an array has another type or shape, a label is negative, ``mpp`` is not positive, a
    name is unknown, or a measure needs a mask or ``mpp`` that is not given.

    Parameters
    ----------
    images : (n, h, w, 3) RGB
    masks : (n, h, w) nucleus labels: 0 is background, each nucleus its own integer
    mpp : microns per pixel, one for all or one for each patch; NaN where unknown
    names : measures, or :data:`GROUPS`; ``None``: all of :data:`CORE` that the given inputs allow
    jpeg_quality : quality of the file of all patches, 1 to 100; ``None`` where it is not a JPEG
    types : label → type of its nucleus, in all patches
    """
    images = check_images(images)
    labels = None if masks is None else _check_masks(masks, images.shape[:3])
    scale = None if mpp is None else _check_mpp(mpp, len(images))
    file = None if jpeg_quality is None else np.full(len(images), float(jpeg_quality))
    if names is None:
        possible = names_for(mask=labels is not None, mpp=scale is not None)
        names = [name for name in CORE if name in possible]
    batch = Batch(images, labels, scale, file, types)
    values = {}
    for name in check_names(names):
        one = MEASURES[name]
        parts = {"pixels": images, "mask": labels, "mpp": scale, "file": file, "types": types}
        if any(parts[part] is None for part in one.needs.split("+")):
            raise InputError(f"names: {name} needs {one.needs.replace('+', ' and ')}, got none.")
        values[name] = one(batch)
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
