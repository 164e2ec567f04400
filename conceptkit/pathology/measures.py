"""What can be measured on a patch: one function and one entry of ``MEASURES`` each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice, check_distinct
from conceptkit.pathology import nuisances
from conceptkit.pathology.batch import Batch, Measure, Values
from conceptkit.pathology.colour import check_images
from conceptkit.registry import Registry


def count(batch: Batch) -> Values:
    """Return how many nuclei have at least one pixel in each patch, (n,)."""
    return np.bincount(batch.nuclei.patch, minlength=batch.nuclei.n).astype(np.float64)


def area_px(batch: Batch) -> Values:
    """Return the mean number of pixels that a nucleus has inside each patch, (n,); NaN where there is no nucleus."""
    return batch.nuclei.mean(batch.nuclei.area)


def area_um2(batch: Batch) -> Values:
    """Return :func:`area_px` in µm², (n,); NaN where the microns per pixel are unknown."""
    return area_px(batch) * np.square(_mpp(batch))


def area_sd_px(batch: Batch) -> Values:
    """Return the standard deviation between the nuclei's pixels inside each patch, (n,); NaN below two nuclei."""
    return batch.nuclei.sd(batch.nuclei.area)


def area_sd_um2(batch: Batch) -> Values:
    """Return :func:`area_sd_px` in µm², (n,)."""
    return area_sd_px(batch) * np.square(_mpp(batch))


def density(batch: Batch) -> Values:
    """Return nuclei per mm² of patch, (n,); a nucleus counts in every patch that holds a pixel of it."""
    height, width = batch.pixels.shape[1:3]
    scale = _mpp(batch)
    return np.asarray(count(batch) / (height * width * scale**2) * 1e6)


def nuclear_share(batch: Batch) -> Values:
    """Return the share of pixels inside nuclei, (n,)."""
    height, width = batch.pixels.shape[1:3]
    pixels = np.bincount(batch.nuclei.patch, batch.nuclei.area, batch.nuclei.n)
    return np.asarray(pixels / (height * width))


def eccentricity(batch: Batch) -> Values:
    """Return the mean eccentricity of the nuclei that do not touch the border, (n,); NaN where there is none."""
    return batch.nuclei.mean(batch.nuclei.eccentricity(), batch.nuclei.whole)


def solidity(batch: Batch) -> Values:
    """Return the mean solidity of the nuclei that do not touch the border, (n,); NaN where there is none."""
    return batch.nuclei.mean(batch.nuclei.solidity(), batch.nuclei.whole)


def neighbour_px(batch: Batch) -> Values:
    """Return the mean distance from a nucleus' centre to the nearest other one, (n,) px; NaN below two nuclei."""
    distances = batch.nuclei.neighbour_distance()
    return batch.nuclei.mean(distances, np.isfinite(distances))


def neighbour_um(batch: Batch) -> Values:
    """Return :func:`neighbour_px` in µm, (n,)."""
    return neighbour_px(batch) * _mpp(batch)


def neighbour_sd_px(batch: Batch) -> Values:
    """Return the standard deviation between these distances, (n,) px; NaN below two nuclei."""
    distances = batch.nuclei.neighbour_distance()
    return batch.nuclei.sd(np.nan_to_num(distances), np.isfinite(distances))


def _mpp(batch: Batch) -> Values:
    if batch.mpp is None:
        raise InputError("mpp: microns per pixel are needed, got none.")
    return batch.mpp


_HARALICK = "Haralick, Shanmugam and Dinstein 1973: grey-level co-occurrence, 256 levels, distance 1, four directions"
_INSIDE = _HARALICK + "; pairs inside one nucleus"
_NUCLEI = "nuclear morphometry after Graziani et al. (multi-task adversarial training); nuclei as labelled in the mask"
_MOMENTS = "ellipse of equal second moments; nuclei that touch the border are left out"
_RUIFROK = "colour deconvolution with Ruifrok and Johnston's vectors (2001), in optical density"
_MACENKO = "Macenko et al. 2009, a patch's own tissue; a component of a vector of length 1 in optical density"
_CIELAB = "CIELAB (D65) of sRGB over the whole patch"

_patch = partial(Measure, kind="continuous", needs="pixels", takes="batch", source=_HARALICK)
_nuclear = partial(Measure, kind="continuous", needs="mask", takes="batch", source=_NUCLEI, level="nucleus")
_inside = partial(Measure, kind="continuous", needs="pixels+mask", takes="batch", source=_INSIDE, level="nucleus")
_nuisance = partial(
    Measure, kind="continuous", needs="pixels", takes="batch", level="acquisition", role="discourage", source=_CIELAB
)

_ENTRIES: tuple[Measure, ...] = (
    _nuclear(
        name="count",
        unit="nuclei per patch",
        meaning="Many nuclei mean dense cellularity, as in proliferating tumor or in inflammation.",
        level="patch",
        core=True,
        function=count,
    ),
    _nuclear(
        name="area_px",
        unit="px",
        meaning="Large nuclei are a sign of nuclear grade; in pixels it compares only within one magnification.",
        core=True,
        function=area_px,
    ),
    _nuclear(
        name="area_um2",
        unit="µm²",
        meaning="Large nuclei are a sign of nuclear grade; in µm² it compares across scanners and magnifications.",
        needs="mask+mpp",
        core=True,
        function=area_um2,
    ),
    _patch(
        name="contrast",
        unit="grey levels²",
        meaning="High contrast means neighbouring pixels differ: coarse chromatin, sharp borders, crisp staining.",
        core=True,
        function=lambda b: b.texture.contrast,
    ),
    _patch(
        name="correlation",
        unit="1",
        meaning="High correlation means grey levels change smoothly: homogeneous chromatin and stroma, or blur.",
        core=True,
        function=lambda b: b.texture.correlation,
    ),
    _patch(
        name="homogeneity",
        unit="1",
        meaning="High homogeneity means equal neighbours: glass, mucus, fat, or an even stroma.",
        function=lambda b: b.matrix.homogeneity,
    ),
    _patch(
        name="asm",
        unit="1",
        meaning="A high angular second moment means few grey levels rule the patch: empty or very even tissue.",
        function=lambda b: b.matrix.asm,
    ),
    _nuclear(
        name="density_mm2",
        unit="nuclei/mm²",
        meaning="Cellularity that compares across patch sizes and magnifications.",
        needs="mask+mpp",
        level="patch",
        function=density,
    ),
    _nuclear(
        name="nuclear_share",
        unit="1",
        meaning="A high share of nuclei means crowded or enlarged nuclei, or little cytoplasm.",
        level="patch",
        function=nuclear_share,
    ),
    _nuclear(
        name="area_sd_px",
        unit="px",
        meaning="Nuclei of very different size (anisokaryosis) are a sign of nuclear grade.",
        function=area_sd_px,
    ),
    _nuclear(
        name="area_sd_um2",
        unit="µm²",
        meaning="Anisokaryosis that compares across scanners and magnifications.",
        needs="mask+mpp",
        function=area_sd_um2,
    ),
    _nuclear(
        name="eccentricity",
        unit="1",
        meaning="Round nuclei (low) are lymphocytes or epithelium, long ones (high) fibroblasts and vessels.",
        source=_MOMENTS,
        function=eccentricity,
    ),
    _nuclear(
        name="solidity",
        unit="1",
        meaning="Low solidity means dented, irregular nuclear contours, a sign of grade, or nuclei not told apart.",
        source="area over that of the convex hull; nuclei that touch the border are left out",
        function=solidity,
    ),
    _inside(
        name="hematoxylin",
        unit="optical density",
        meaning="Dark nuclei (hyperchromasia) are a sign of malignancy; it follows the stain's strength too.",
        source=_RUIFROK,
        function=lambda b: b.nuclei.mean(b.hematoxylin[0]),
    ),
    _inside(
        name="hematoxylin_sd",
        unit="optical density",
        meaning="Uneven hematoxylin inside a nucleus means clumped or vesicular chromatin.",
        source=_RUIFROK + "; standard deviation inside a nucleus, mean of a patch's nuclei",
        function=lambda b: b.nuclei.mean(b.hematoxylin[1]),
    ),
    _inside(
        name="nuclei_contrast",
        unit="grey levels²",
        meaning="High contrast inside nuclei means coarse chromatin and nucleoli.",
        function=lambda b: b.chromatin.contrast,
    ),
    _inside(
        name="nuclei_correlation",
        unit="1",
        meaning="High correlation inside nuclei means chromatin that changes smoothly, or nuclei that differ in tone.",
        function=lambda b: b.chromatin.correlation,
    ),
    _inside(
        name="nuclei_homogeneity",
        unit="1",
        meaning="High homogeneity inside nuclei means even, smudged chromatin.",
        function=lambda b: b.chromatin.homogeneity,
    ),
    _inside(
        name="nuclei_asm",
        unit="1",
        meaning="A high angular second moment inside nuclei means chromatin of few tones.",
        function=lambda b: b.chromatin.asm,
    ),
    _nuclear(
        name="neighbour_px",
        unit="px",
        meaning="Near neighbours mean crowding, as in solid tumor; in pixels it compares within one magnification.",
        source="nearest centre within the patch",
        level="patch",
        function=neighbour_px,
    ),
    _nuclear(
        name="neighbour_um",
        unit="µm",
        meaning="Near neighbours mean crowding, as in solid tumor or lymphoid tissue.",
        source="nearest centre within the patch",
        needs="mask+mpp",
        level="patch",
        function=neighbour_um,
    ),
    _nuclear(
        name="neighbour_sd_px",
        unit="px",
        meaning="Unequal distances mean nuclei in nests or rows, equal ones an even sheet.",
        source="nearest centre within the patch",
        level="patch",
        function=neighbour_sd_px,
    ),
    *(
        _nuisance(
            name=f"stain_{stain}_{channel}",
            unit="1",
            meaning=f"How much {colour_name} the {full} of this laboratory absorbs: its recipe and the scanner.",
            source=_MACENKO,
            function=partial(lambda b, i, j: b.stains[:, i, j], i=i, j=j),
        )
        for i, (stain, full) in enumerate((("h", "hematoxylin"), ("e", "eosin")))
        for j, (channel, colour_name) in enumerate((("r", "red"), ("g", "green"), ("b", "blue")))
    ),
    *(
        _nuisance(
            name=f"lab_{axis}" + ("_sd" if spread else ""),
            unit="1",
            meaning=f"{'Spread' if spread else 'Mean'} of {what}: staining strength, thickness and scanner.",
            function=partial(lambda b, i, j: b.lab[i][:, j], i=spread, j=j),
        )
        for spread in (0, 1)
        for j, (axis, what) in enumerate((("l", "lightness"), ("a", "green to red"), ("b", "blue to yellow")))
    ),
    _nuisance(
        name="ink",
        unit="1",
        meaning="Marker ink on the glass: someone saw something here, which a network must not learn.",
        source="share of black, green and blue pixels that no hematoxylin or eosin gives",
        function=lambda b: nuisances.ink_share(b.pixels),
    ),
    _nuisance(
        name="blur",
        unit="1",
        meaning="Out of focus (high): nuclei look smooth and pale without being so.",
        source="Crété et al. 2007, the blur effect, of the luma",
        function=lambda b: nuisances.blur(b.luma),
    ),
    _nuisance(
        name="jpeg_blocks",
        unit="1",
        meaning="Steps on a grid of 8 pixels: strong compression, which differs between scanners.",
        source="grey steps on the grid over those off it, at the strongest offset",
        function=lambda b: nuisances.blockiness(b.luma),
    ),
    _nuisance(
        name="jpeg_quality",
        unit="1 to 100",
        meaning="Quality of the JPEG that the patch comes from, a file or a TIFF slide; low quality smooths chromatin.",
        source="inverse of libjpeg's scaling of the quantization table",
        needs="file",
        function=lambda b: b.file,
    ),
)

MEASURES: Registry[Measure] = Registry(
    "measures",
    {m.name: m for m in _ENTRIES},
    member=Measure,
    make=lambda name, function, **about: Measure(name=name, function=function, **about),
)
"""Name → measure."""


def names_for(*, mask: bool, mpp: bool, file: bool = False) -> tuple[str, ...]:
    """Return the names of the measures that pixels give, with or without a mask, microns per pixel and a JPEG file."""
    known = {"pixels": True, "pixels+mask": mask, "mask": mask, "mask+mpp": mask and mpp, "file": file}
    return tuple(name for name, m in MEASURES.items() if known[m.needs])


CORE = tuple(m.name for m in _ENTRIES if m.core)
"""The paper's measures, which are computed when none is named."""

GROUPS = ("core", "all", "nuisances")
"""Names that stand for several measures."""


def spell_out(name: str) -> tuple[str, ...]:
    """Return the measures that a name of :data:`GROUPS` stands for; the name alone when it is not one of these."""
    if name == "core":
        return CORE
    if name in GROUPS:
        return tuple(n for n, m in MEASURES.items() if name == "all" or m.role == "discourage")
    return (name,)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return ``names`` as a tuple, :data:`GROUPS` spelled out; one that is no measure or is given twice is refused."""
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
) -> dict[str, NDArray[np.float64]]:
    """Measure a batch of patches; returns name to (n,) values, in the order of ``names``, NaN where there is none.

    Raises :class:`InputError` when an array has another type or shape, a label is negative, ``mpp`` is not positive, a
    name is unknown, or a named measure lacks the mask or the ``mpp`` that it needs.

    Parameters
    ----------
    images : (n, h, w, 3) RGB
    masks : (n, h, w) nucleus labels: 0 is background, each nucleus its own integer
    mpp : microns per pixel, one for all or one for each patch; NaN where unknown
    names : measures, or :data:`GROUPS`; ``None``: all of :data:`CORE` that the given inputs allow
    jpeg_quality : quality of the file of all patches, 1 to 100; ``None`` where it is not a JPEG
    """
    images = check_images(images)
    labels = None if masks is None else _check_masks(masks, images.shape[:3])
    scale = None if mpp is None else _check_mpp(mpp, len(images))
    file = None if jpeg_quality is None else np.full(len(images), float(jpeg_quality))
    if names is None:
        possible = names_for(mask=labels is not None, mpp=scale is not None)
        names = [name for name in CORE if name in possible]
    batch = Batch(images, labels, scale, file)
    values = {}
    for name in check_names(names):
        one = MEASURES[name]
        parts = {"pixels": images, "mask": labels, "mpp": scale, "file": file}
        if any(parts[part] is None for part in one.needs.split("+")):
            raise InputError(f"names: {name} needs {one.needs.replace('+', ' and ')}, got none.")
        values[name] = one.of(batch)
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
