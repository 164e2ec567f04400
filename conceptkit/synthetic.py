"""The embedded study: synthetic H&E-like tissue of several centers, with exact values of every concept.

Generated, not real: it shows how the tools work and tests them; it does not describe pathology. Each patch is drawn
from two stains by Beer and Lambert's law. Tumor patches hold more, larger and more irregular nuclei, with wide overlap
between the classes. Centers differ in stain vectors, stain amounts, background and blur, and patients within a center
vary as well. The label is confounded with the center in ``train`` and ``val``, balanced within center in ``internal``,
and ``external`` is one center that training never saw.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import platformdirs
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from conceptkit.errors import InputError
from conceptkit.images.decoding import Pixels
from conceptkit.pathology.texture import haralick, luma
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

VERSION = 1
"""Version of the parameters below; docs/embedded-study.md gives the reasons for each."""

SIZE = 96
"""Width and height of a patch, in pixels."""

MPP = 0.5
"""Micrometres per pixel."""

CONFOUNDING = 0.8
"""By default the tumor share of the training centers is 0.9, 0.7, 0.3 and 0.1."""


@dataclass(frozen=True)
class Center:
    """How one center's slides look."""

    hematoxylin: tuple[float, float, float]
    """Optical density per unit of stain in red, green, blue"""
    eosin: tuple[float, float, float]
    amount_hematoxylin: float
    amount_eosin: float
    background: tuple[float, float, float]
    """Light through empty glass, 0 to 255"""
    blur: float
    """Standard deviation of the optics' blur, in pixels"""
    tilt: float
    """Where the tumor share lies between one half (0) and its extremes (−1, 1) in train and val"""


CENTERS = {
    "A": Center((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), 1.15, 0.70, (243, 241, 244), 0.5, 1.0),
    "B": Center((0.55, 0.76, 0.35), (0.15, 0.93, 0.25), 1.00, 0.85, (246, 242, 240), 0.8, 0.5),
    "C": Center((0.70, 0.62, 0.35), (0.05, 0.90, 0.35), 0.90, 0.60, (238, 240, 246), 1.1, -0.5),
    "D": Center((0.60, 0.68, 0.42), (0.20, 0.95, 0.08), 0.78, 0.95, (247, 244, 238), 1.4, -1.0),
}
"""The training centers."""

EXTERNAL = Center((0.68, 0.72, 0.20), (0.10, 0.85, 0.45), 1.05, 0.80, (240, 244, 240), 1.0, 0.0)
"""The center of the external split, called E."""


@dataclass(frozen=True)
class Tissue:
    """What nuclei of one class look like, before patients and patches vary around it."""

    nuclei: float
    """Mean number of nuclei drawn per patch"""
    area_um2: float
    """Mean nuclear area"""
    spread: float
    """Standard deviation of the log area between the nuclei of a patch"""
    irregularity: float
    """Relative amplitude of the outline's waves"""


TISSUES = {"normal": Tissue(10.0, 42.0, 0.20, 0.05), "tumor": Tissue(13.5, 52.0, 0.32, 0.11)}

PATIENT_SPREAD = {"nuclei": 0.15, "area": 0.10, "stain": 0.12}
"""Standard deviation between patients of log number, log area and log stain amounts."""

PATCH_SPREAD = {"nuclei": 0.22, "area": 0.14, "stain": 0.04}
"""The same between patches of one patient."""

PLAN = {"train": (12, 20), "val": (6, 10), "internal": (9, 10), "external": (36, 10)}
"""Split → patients per center, patches per patient; 12·4·20 + 6·4·10 + 9·4·10 + 36·10 = 1,920 patches."""


@dataclass(frozen=True)
class Patch:
    """A drawn patch with what is known of it."""

    pixels: Pixels
    """(96, 96, 3) uint8, RGB"""
    nuclei: NDArray[np.uint8]
    """(96, 96) label image; 0 is background"""

    def concepts(self) -> dict[str, float]:
        """Return the exact values: ``count`` and ``area`` (µm²) of what is visible, ``contrast``, ``correlation``."""
        sizes = np.bincount(self.nuclei.ravel())[1:]
        visible = sizes[sizes > 0]
        texture = haralick(luma(self.pixels[None]))
        return {
            "count": float(len(visible)),
            "area": float(visible.mean() * MPP**2) if len(visible) else float("nan"),
            "contrast": float(texture.contrast[0]),
            "correlation": float(texture.correlation[0]),
        }


@dataclass(frozen=True)
class Shift:
    """How one patient differs from the average of center and class, in logarithms."""

    nuclei: float
    area: float
    hematoxylin: float
    eosin: float


def draw_patch(rng: np.random.Generator, tissue: Tissue, center: Center, shift: Shift) -> Patch:
    """Draw one patch of ``tissue`` as ``center`` would show it."""
    nuclei, chromatin = _draw_nuclei(rng, tissue, shift)
    fibres = _noise(rng, gaussian_filter, (1.5, 5.0) if rng.random() < 0.5 else (5.0, 1.5))
    cloud = _noise(rng, gaussian_filter, (9.0, 9.0))
    inside = nuclei > 0
    stroma = np.clip(0.42 + 0.10 * fibres + 0.10 * cloud, 0.05, None)
    jitter = PATCH_SPREAD["stain"]
    hematoxylin = np.where(inside, chromatin, 0.10 + 0.03 * fibres.clip(-2, 2))
    hematoxylin = hematoxylin * center.amount_hematoxylin * np.exp(shift.hematoxylin + jitter * rng.standard_normal())
    eosin = np.where(inside, 0.15, stroma)
    eosin = eosin * center.amount_eosin * np.exp(shift.eosin + jitter * rng.standard_normal())
    density = hematoxylin[..., None] * np.array(center.hematoxylin) + eosin[..., None] * np.array(center.eosin)
    light = np.array(center.background) * np.exp(-density)
    light = gaussian_filter(light, (center.blur, center.blur, 0)) + rng.normal(0, 2.0, (SIZE, SIZE, 3))
    return Patch(np.clip(np.round(light), 0, 255).astype(np.uint8), nuclei)


def _draw_nuclei(
    rng: np.random.Generator, tissue: Tissue, shift: Shift
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Draw outlines with waves on ellipses; return the label image and the chromatin (H stain) inside."""
    wanted = tissue.nuclei * np.exp(shift.nuclei + PATCH_SPREAD["nuclei"] * rng.standard_normal())
    mean_area = tissue.area_um2 * np.exp(shift.area + PATCH_SPREAD["area"] * rng.standard_normal()) / MPP**2
    number = min(int(rng.poisson(wanted)), 60)
    areas = mean_area * np.exp(tissue.spread * rng.standard_normal(number))
    labels = np.zeros((SIZE, SIZE), np.uint8)
    tone = np.zeros(61)
    tone[1:] = rng.normal(1.0, 0.12, 60).clip(0.5, 1.5)
    centers: list[tuple[float, float, float]] = []
    for label, area in enumerate(areas, start=1):
        radius = np.sqrt(area / np.pi)
        x, y = _free_place(rng, centers, radius)
        centers.append((x, y, radius))
        aspect, turn = np.exp(0.18 * rng.standard_normal()), rng.uniform(0, np.pi)
        waves = tissue.irregularity * rng.normal(0, 1, 4) / np.arange(1, 5) ** 0.5
        phases = rng.uniform(0, 2 * np.pi, 4)
        reach = int(np.ceil(radius * 2.0)) + 1
        left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
        right, bottom = min(int(x) + reach + 1, SIZE), min(int(y) + reach + 1, SIZE)
        if left >= right or top >= bottom:
            continue
        dx, dy = np.meshgrid(np.arange(left, right) - x, np.arange(top, bottom) - y)
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / np.sqrt(aspect)
        v = (-dx * np.sin(turn) + dy * np.cos(turn)) * np.sqrt(aspect)
        angle = np.arctan2(v, u)
        outline = radius * (
            1 + sum(w * np.cos((k + 2) * angle + p) for k, (w, p) in enumerate(zip(waves, phases, strict=True)))
        )
        window = labels[top:bottom, left:right]
        window[(np.hypot(u, v) <= outline) & (window == 0)] = label
    grain = _noise(rng, gaussian_filter, (1.2, 1.2))
    coarse = 0.10 + tissue.irregularity
    return labels, tone[labels] * (1.0 + coarse * grain).clip(0.3, None)


def _free_place(
    rng: np.random.Generator, centers: list[tuple[float, float, float]], radius: float
) -> tuple[float, float]:
    """Return a place that keeps a little distance from other nuclei; in a crowd the last of 12 tries is taken."""
    for _ in range(12):
        x, y = rng.uniform(-radius / 2, SIZE + radius / 2, 2)
        if all((x - a) ** 2 + (y - b) ** 2 > (0.9 * (radius + r)) ** 2 for a, b, r in centers):
            break
    return float(x), float(y)


def _noise(rng: np.random.Generator, smooth: Callable[..., Any], sigma: tuple[float, float]) -> NDArray[np.float64]:
    """Return a smooth random field (96, 96) of mean 0 and standard deviation 1."""
    field = smooth(rng.standard_normal((SIZE, SIZE)), sigma, mode="wrap")
    out: NDArray[np.float64] = (field - field.mean()) / field.std()
    return out


def tumor_share(split: str, center: Center, confounding: float) -> float:
    """Return the share of tumor patches: tilted by center in train and val, one half in every evaluation split."""
    return 0.5 + 0.5 * confounding * center.tilt if split in ("train", "val") else 0.5


def generate(*, confounding: float = CONFOUNDING, seed: int = 0) -> Iterator[tuple[dict[str, Any], Patch]]:
    """Draw the whole study; yields each row's columns (``patch_id``, ``patient``, ``center``, ``label``, ``split``) and
    its patch.

    ``confounding`` goes from 0 (label and center independent in training) to 1 (extreme centers all tumor or all
    normal). A patch depends on the seed and on its own place in the plan only.
    """
    patient_number = 0
    for split, (n_patients, n_patches) in PLAN.items():
        centers = {"E": EXTERNAL} if split == "external" else CENTERS
        for name, center in centers.items():
            for _ in range(n_patients):
                patient_number += 1
                own = np.random.default_rng([seed, patient_number])
                shift = Shift(
                    nuclei=PATIENT_SPREAD["nuclei"] * own.standard_normal(),
                    area=PATIENT_SPREAD["area"] * own.standard_normal(),
                    hematoxylin=PATIENT_SPREAD["stain"] * own.standard_normal(),
                    eosin=PATIENT_SPREAD["stain"] * own.standard_normal(),
                )
                n_tumor = round(n_patches * tumor_share(split, center, confounding))
                for i in range(n_patches):
                    label = "tumor" if i < n_tumor else "normal"
                    rng = np.random.default_rng([seed, patient_number, i])
                    patient = f"P{patient_number:03d}"
                    row = {"patch_id": f"{patient}-{i:02d}", "patient": patient, "center": name}
                    yield {**row, "label": label, "split": split}, draw_patch(rng, TISSUES[label], center, shift)


SLIDE = "made_slide"
"""Column of :func:`with_slides`"""

SLIDE_PATCHES = 5
"""Patches per slide, about"""


def with_slides(table: PatchTable) -> PatchTable:
    """Return the study's table with each patient's patches on slides, with and without tumor, ``made_slide``.

    A patient of the evaluation splits has tumor in exactly half of its patches, so that patients as bags have no label
    of their own; slides have. A patient has one slide for every five patches, of which as large a part holds tumor as
    its patches are, but at least one and not all. Tumor patches are dealt to these in turn, normal ones to all of its
    slides, those without tumor first.
    """
    frame = table.frame
    names = np.full(len(frame), None, dtype=object)
    for patient, rows in frame.groupby("patient", sort=True).indices.items():
        tumor = frame["label"].to_numpy()[rows] == "tumor"
        slides = max(2, len(rows) // SLIDE_PATCHES)
        held = min(max(round(slides * tumor.mean()), 1), slides - 1)
        names[rows[tumor]] = [f"{patient}-S{slides - held + i % held + 1}" for i in range(int(tumor.sum()))]
        names[rows[~tumor]] = [f"{patient}-S{i % slides + 1}" for i in range(int((~tumor).sum()))]
    return replace(table, frame=frame.assign(**{SLIDE: names}))


def cache_folder() -> Path:
    """Return the folder for files that can be recomputed: ``CONCEPTKIT_CACHE``, or the user's cache folder."""
    named = os.environ.get("CONCEPTKIT_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("conceptkit"))


def embedded_study(*, confounding: float = CONFOUNDING, seed: int = 0, cache: Path | None = None) -> Study:
    """Return the embedded study, generated into the cache folder if it is missing.

    Parameters
    ----------
    confounding : 0 to 1, see :func:`generate`
    seed : of the tissue
    cache : folder to keep it in; ``None`` for :func:`cache_folder`

    Raises
    ------
    InputError
        when ``confounding`` lies outside 0 to 1 or the folder cannot be written
    """
    if not 0 <= confounding <= 1:
        raise InputError(f"confounding: must lie between 0 and 1, got {confounding}.")
    folder = (cache or cache_folder()) / f"embedded-v{VERSION}-confounding{confounding:g}-seed{seed}"
    if not (folder / "patches.csv").is_file():
        try:
            _write(folder, confounding, seed)
        except OSError as error:
            raise InputError(
                f"cache: {folder} cannot be written ({error}); name another folder in CONCEPTKIT_CACHE."
            ) from None
    return Study(
        name="embedded" if confounding == CONFOUNDING else f"embedded (confounding {confounding:g})",
        table=folder / "patches.csv",
        model="mini_inception",
        weights="bundled",
        layers=("mixed10",),
        concepts=("count", "area", "contrast", "correlation"),
        encourage=("area", "count"),
        discourage=("center",),
        group="patient",
        units={"count": "nuclei per patch", "area": "µm²", "contrast": "grey levels²", "correlation": "1"},
        synthetic=True,
    )


def _write(folder: Path, confounding: float, seed: int) -> None:
    """Write table and pixels next to the final place and move them there whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        rows, pixels = [], []
        for number, (row, patch) in enumerate(generate(confounding=confounding, seed=seed)):
            rows.append({**row, "h5": "patches.h5", "key": "patches", "row": number, "mpp": MPP, **patch.concepts()})
            pixels.append(patch.pixels)
        with h5py.File(temporary / "patches.h5", "w") as file:
            file.create_dataset("patches", data=np.stack(pixels))
        pd.DataFrame(rows).to_csv(temporary / "patches.csv", index=False)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "patches.csv").is_file():  # otherwise another process made the same study first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


ENCODERS: Mapping[str, tuple[int, float]] = {"uni_v1": (64, 2.5), "conch_v15": (48, 1.0)}
"""Made-up encoder → number of features, and how far the classes of ``msi`` lie apart, in deviations of a patient"""


def write_slide_features(folder: str | Path, slides: int = 120, patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """Write made-up features per slide, as TRIDENT writes them, of two encoders, and a clinical table; return it.

    ``folder/features_uni_v1`` and ``folder/features_conch_v15`` hold an HDF5 file per slide, of the same patches, and
    ``folder/slides.csv`` its patient, center, grade, msi and age. Both encode msi and the center in part, the first one
    msi better than the second, and neither grade nor age.
    """
    rng = np.random.default_rng(seed)
    patient = np.arange(slides) % patients
    table = pd.DataFrame(
        {
            "slide": [f"S{i:03d}" for i in range(slides)],
            "patient": [f"P{i:03d}" for i in patient],
            "center": np.array(["North", "South", "West"])[patient % 3],
            "grade": rng.integers(1, 4, patients)[patient],
            "msi": np.where(rng.random(patients) < 0.3, "high", "stable")[patient],
            "age": rng.normal(64, 11, patients).round()[patient],
        }
    )
    of_center, of_patient = rng.normal(size=(3, 64)) / 10, rng.normal(size=(patients, 64)) / 3
    number = rng.integers(20, 60, slides)
    for encoder, (width, apart) in ENCODERS.items():
        place = Path(folder) / f"features_{encoder}"
        place.mkdir(parents=True)
        mixing, direction = rng.normal(size=(64, width)) / 8, rng.normal(size=width) / 4
        signal = apart * (table["msi"].to_numpy() == "high") + rng.normal(size=patients)[patient]
        for i, slide in enumerate(table["slide"]):
            hidden = of_center[patient[i] % 3] + of_patient[patient[i]] + rng.normal(size=(number[i], 64))
            X = hidden @ mixing + rng.normal(size=(number[i], width)) + signal[i] * direction
            coords = 512 * np.stack([np.arange(number[i]) % 8, np.arange(number[i]) // 8], axis=1)
            write_trident(place / f"{slide}.h5", X.astype(np.float16), coords, encoder)
    table.to_csv(Path(folder) / "slides.csv", index=False)
    return table


def write_trident(path: Path, features: Any, coords: Any, encoder: str = "uni_v1", magnification: int = 20) -> None:
    """Write the file of one slide with the datasets and attributes of TRIDENT, for patches of 256 pixels."""
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, coords
        file["features"].attrs.update({"name": path.stem, "encoder": encoder, "savetodir": str(path.parent)})
        scanned = {"level0_magnification": 40, "patch_size_level0": 256 * 40 // magnification}
        file["coords"].attrs.update({"patch_size": 256, "overlap": 0, "target_magnification": magnification, **scanned})
