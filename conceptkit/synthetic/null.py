"""``embedded:null``: tissue whose label follows more than number and size of nuclei, so that guiding changes little.

Generated, not real: it shows how the tools work and tests them; it does not describe pathology. Each patch is drawn
from two stains by Beer and Lambert's law. Tumor patches hold more, larger and more irregular nuclei, with wide overlap
between the classes. Centers differ in stain vectors, stain amounts, background and blur, and patients within a center
vary as well. The label is confounded with the center in ``train`` and ``val``, balanced within center in ``internal``,
and ``external`` is one center that training never saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from conceptkit.synthetic.patch import MPP, SIZE, Center, Patch, filtered_noise

VERSION = 1
"""Version of the parameters below; docs/embedded-study.md gives the reasons for each."""

CONFOUNDING = 0.8
"""By default the tumor share of the training centers is 0.9, 0.7, 0.3 and 0.1."""

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
class Shift:
    """How one patient differs from the average of center and class, in logarithms."""

    nuclei: float
    area: float
    hematoxylin: float
    eosin: float


def draw_patch(rng: np.random.Generator, tissue: Tissue, center: Center, shift: Shift) -> Patch:
    """Draw one patch of ``tissue`` as ``center`` would show it."""
    nuclei, chromatin = _draw_nuclei(rng, tissue, shift)
    fibres = filtered_noise(rng, (1.5, 5.0) if rng.random() < 0.5 else (5.0, 1.5))
    cloud = filtered_noise(rng, (9.0, 9.0))
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
    grain = filtered_noise(rng, (1.2, 1.2))
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
