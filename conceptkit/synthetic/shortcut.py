"""``embedded:shortcut``: the label is caused by number and size of nuclei, and tied to the stain in training only.

Nuclei are drawn first; their true ``count`` and ``area`` give the log-odds of the label. A center then receives the
patches that its share of tumor asks for: tilted in ``train`` and ``val``, one half in ``internal`` and in the four
unseen centers of ``external``. Within a class, nuclei and stain are therefore independent. Stain amounts, blur, noise,
stroma and hematoxylin outside nuclei vary from patch to patch, so that the mean darkness says little of the nuclei.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from conceptkit.images.decoding import Pixels
from conceptkit.synthetic.patch import MPP, SIZE, Center, Patch, visible_nuclei

VERSION = 2
"""Version of the parameters below; docs/embedded-study.md gives the reasons for each."""

CONFOUNDING = 0.8
"""By default the tumor share of the training centers is 0.9, 0.7, 0.3 and 0.1."""

CENTERS = {
    "A": Center((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), 1.15, 0.70, (243, 241, 244), 0.8, 1.0),
    "B": Center((0.55, 0.76, 0.35), (0.15, 0.93, 0.25), 1.00, 0.85, (246, 242, 240), 0.8, 0.5),
    "C": Center((0.70, 0.62, 0.35), (0.05, 0.90, 0.35), 0.90, 0.60, (238, 240, 246), 0.8, -0.5),
    "D": Center((0.60, 0.68, 0.42), (0.20, 0.95, 0.08), 0.78, 0.95, (247, 244, 238), 0.8, -1.0),
}
"""The training centers; they have the stains of ``embedded:null``."""

UNSEEN = {
    "E": Center((0.68, 0.72, 0.20), (0.10, 0.85, 0.45), 1.05, 0.80, (240, 244, 240), 0.8, 0.0),
    "F": Center((0.58, 0.66, 0.48), (0.12, 0.97, 0.18), 0.85, 0.65, (244, 238, 244), 0.8, 0.0),
    "G": Center((0.74, 0.60, 0.28), (0.18, 0.88, 0.30), 1.20, 0.95, (245, 246, 236), 0.8, 0.0),
    "H": Center((0.62, 0.74, 0.24), (0.18, 0.90, 0.18), 0.80, 0.75, (236, 238, 240), 0.8, 0.0),
}
"""The centers of the external split."""

PLAN = {
    "train": {"A": 84, "B": 36, "C": 72, "D": 48},
    "val": {"A": 21, "B": 9, "C": 18, "D": 12},
    "internal": dict.fromkeys("ABCD", 18),
    "external": dict.fromkeys("EFGH", 24),
}
"""Split → center → patients: 468 in all; the training centers are of unequal size."""

PATCHES = 4
"""Patches per patient"""

NUMBER, AREA = (10.5, 0.42), (42.0, 0.30)
"""Median over patches, and standard deviation of its logarithm, of the number of nuclei and their mean area in µm²"""

PATIENT_SHARE = 0.3
"""Part of these variances that lies between patients."""

CAUSES = {"count": (10.6, 4.7), "area": (37.6, 10.5)}
"""Concept → mean and standard deviation by which the log-odds of the label are scaled; both have the same weight."""

SLOPE = 2.0
"""Log-odds of the label per standard deviation of its cause"""

DIFFUSE = (0.05, 0.45)
"""Range over patches of the mean hematoxylin outside nuclei, which have 1"""

PATCH_STAIN = 0.2
"""Standard deviation between patches of the logarithms of the stain amounts"""

SPECKS, STRANDS = 150, 8
"""Most dark dots and most dark threads outside nuclei in a patch"""


def generate(
    *, confounding: float = CONFOUNDING, sufficiency: float = 1.0, seed: int = 0
) -> Iterator[tuple[dict[str, Any], Patch]]:
    """Draw the whole study; yields each row's columns (``patch_id``, ``patient``, ``center``, ``label``, ``split``) and
    its patch.

    Parameters
    ----------
    confounding : 0 (label and center independent in training) to 1 (extreme centers all tumor or all normal)
    sufficiency : share of the variance of the label's cause that ``count`` and ``area`` have; the width of the fibres
        in the stroma has the rest
    seed : a patch depends on it and on its own place in the plan only
    """
    patient_number = 0
    for split, patients in PLAN.items():
        for name, number in patients.items():
            center = {**CENTERS, **UNSEEN}[name]
            share = 0.5 + 0.5 * confounding * center.tilt if split in ("train", "val") else 0.5
            for place in range(number):
                patient_number += 1
                own = np.random.default_rng([seed, patient_number])
                nuclei, stain = own.standard_normal(2), 0.12 * own.standard_normal(2)
                first, last = (round((place + k) * PATCHES * share) for k in (0, 1))
                for i in range(PATCHES):
                    tumor = i < last - first
                    rng = np.random.default_rng([seed, patient_number, i])
                    labels, fibres = _draw_cause(rng, nuclei, sufficiency, tumor=tumor)
                    patient = f"P{patient_number:03d}"
                    row = {"patch_id": f"{patient}-{i:02d}", "patient": patient, "center": name}
                    row |= {"label": "tumor" if tumor else "normal", "split": split}
                    yield row, Patch(stained(rng, labels, center, stain, fibres), labels)


def log_odds(count: float, area: float, fibres: float, sufficiency: float = 1.0) -> float:
    """Return the log-odds of tumor from the true concepts and the width of fibres, uniform on 0 to 1."""
    scaled = [(value - mean) / sd for value, (mean, sd) in zip((count, area), CAUSES.values(), strict=True)]
    other = (fibres - 0.5) * np.sqrt(12)
    return float(SLOPE * (np.sqrt(sufficiency / 2) * sum(scaled) + np.sqrt(1 - sufficiency) * other))


def draw_nuclei(rng: np.random.Generator, patient: NDArray[np.float64]) -> tuple[NDArray[np.uint8], float]:
    """Return nuclei as a label image (96, 96) and the width of fibres, whatever the label.

    ``patient`` (2,) says how far the patient's number and area are from their medians, in standard deviations.
    """
    own = np.sqrt(PATIENT_SHARE) * patient + np.sqrt(1 - PATIENT_SHARE) * rng.standard_normal(2)
    number = np.clip(NUMBER[0] * np.exp(NUMBER[1] * own[0]), 3, 24)
    area = np.clip(AREA[0] * np.exp(AREA[1] * own[1]), 20, 85)
    return placed(rng, nuclear_areas(rng, int(number), area)), rng.uniform()


def _draw_cause(
    rng: np.random.Generator, patient: NDArray[np.float64], sufficiency: float, *, tumor: bool
) -> tuple[NDArray[np.uint8], float]:
    """Draw nuclei and the width of fibres until the label that they cause is the one wanted."""
    while True:
        labels, fibres = draw_nuclei(rng, patient)
        sizes = visible_nuclei(labels) * MPP**2
        if (rng.uniform() < 1 / (1 + np.exp(-log_odds(len(sizes), sizes.mean(), fibres, sufficiency)))) == tumor:
            return labels, fibres


def nuclear_areas(rng: np.random.Generator, number: int, mean: float, spread: float = 0.22) -> NDArray[np.float64]:
    """Return the areas (number,) of nuclei, in pixels, around a ``mean`` in µm²."""
    areas: NDArray[np.float64] = mean / MPP**2 * np.exp(spread * rng.standard_normal(number) - spread**2 / 2)
    return areas


def placed(rng: np.random.Generator, areas: NDArray[np.float64], irregularity: float = 0.07) -> NDArray[np.uint8]:
    """Return a label image of nuclei of these areas, apart from each other where 30 tries find room."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    taken = np.empty((0, 3))
    for label, area in enumerate(areas, start=1):
        radius = np.sqrt(area / np.pi)
        tries = rng.uniform(-radius / 3, SIZE + radius / 3, (30, 2))
        near = ((tries[:, None] - taken[:, :2]) ** 2).sum(-1) <= (radius + taken[:, 2] + 1) ** 2
        x, y = tries[int(np.argmin(near.any(1)))]
        taken = np.vstack([taken, (x, y, radius)])
        aspect, turn = np.exp(0.15 * rng.standard_normal()), rng.uniform(0, np.pi)
        waves, phases = irregularity * rng.normal(0, 1, 3) / np.arange(1, 4) ** 0.5, rng.uniform(0, 2 * np.pi, 3)
        reach = int(np.ceil(radius * 2)) + 1
        left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
        across, down = (
            np.arange(left, min(int(x) + reach + 1, SIZE)) - x,
            np.arange(top, min(int(y) + reach + 1, SIZE)) - y,
        )
        dx, dy = np.meshgrid(across, down)
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / np.sqrt(aspect)
        v = (dy * np.cos(turn) - dx * np.sin(turn)) * np.sqrt(aspect)
        angle = np.arctan2(v, u)[..., None]
        outline = radius * (1 + (waves * np.cos(np.arange(2, 5) * angle + phases)).sum(-1))
        window = labels[top : top + len(down), left : left + len(across)]
        window[(np.hypot(u, v) <= outline) & (window == 0)] = label
    return labels


def stained(
    rng: np.random.Generator, labels: NDArray[np.uint8], center: Center, stain: NDArray[np.float64], fibres: float
) -> Pixels:
    """Return the patch (96, 96, 3) of a label image as a center shows it.

    Parameters
    ----------
    stain : logarithms of the patient's amounts of hematoxylin and eosin
    fibres : width of the fibres, 0 to 1
    """
    width = 1.0 + 2.0 * fibres
    along = bool(rng.random() < 0.5)
    fibre = _field(rng, 3 * width if along else width, width if along else 3 * width)
    cloud, grain = _field(rng, 12, 12), _field(rng, 1.2, 1.2)
    tone = rng.normal(1.0, 0.15, 256).clip(0.6, 1.5)
    diffuse = rng.uniform(*DIFFUSE) * (1 + rng.uniform(0, 0.4) * fibre + rng.uniform(0, 0.4) * cloud).clip(0)
    inside = labels > 0
    hematoxylin = np.where(inside, np.maximum(diffuse, tone[labels] * (1 + 0.18 * grain).clip(0.4)), diffuse)
    hematoxylin = np.maximum(hematoxylin, np.maximum(_specks(rng), _strands(rng)))
    stroma = np.clip(0.42 * (1 + rng.uniform(0.1, 0.5) * fibre + rng.uniform(0.1, 0.5) * cloud), 0.03, None)
    amounts = np.exp(stain + PATCH_STAIN * rng.standard_normal(2)) * (center.amount_hematoxylin, center.amount_eosin)
    eosin = np.where(inside, 0.15, stroma)[..., None] * np.array(center.eosin)
    density = amounts[0] * hematoxylin[..., None] * np.array(center.hematoxylin) + amounts[1] * eosin
    blur = center.blur * np.exp(rng.uniform(-0.7, 0.7))
    light = gaussian_filter(np.array(center.background) * np.exp(-density), (blur, blur, 0))
    light += rng.uniform(1.0, 6.0) * rng.standard_normal((SIZE, SIZE, 3))
    pixels: Pixels = np.clip(np.round(light), 0, 255).astype(np.uint8)
    return pixels


def _specks(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return hematoxylin (96, 96) of dark dots about a micrometre wide; their number is log-uniform."""
    dots = np.zeros((SIZE, SIZE))
    number = int(np.exp(rng.uniform(0, np.log(SPECKS)))) - 1
    rows, columns = rng.integers(0, SIZE, (2, number))
    np.add.at(dots, (rows, columns), rng.uniform(0.5, 1.3, number))
    width = rng.uniform(0.7, 1.3)
    found: NDArray[np.float64] = np.minimum(gaussian_filter(dots, width) * 2 * np.pi * width**2, 1.2)
    return found


def _strands(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return hematoxylin (96, 96) of thin dark threads, a little bent."""
    threads = np.zeros((SIZE, SIZE))
    for _ in range(rng.integers(0, STRANDS + 1)):
        angle, length, bend = rng.uniform(0, np.pi), rng.uniform(8, 30), rng.uniform(-0.02, 0.02)
        at = np.linspace(-length / 2, length / 2, int(3 * length))
        x, y = rng.uniform(0, SIZE, 2)
        columns = (x + at * np.cos(angle) - bend * at**2 * np.sin(angle)).astype(int)
        rows = (y + at * np.sin(angle) + bend * at**2 * np.cos(angle)).astype(int)
        within = (rows >= 0) & (rows < SIZE) & (columns >= 0) & (columns < SIZE)
        threads[rows[within], columns[within]] = rng.uniform(0.5, 1.2)
    found: NDArray[np.float64] = gaussian_filter(threads, 0.8) * 1.8
    return found


@cache
def _basis(width: float, shift: int) -> NDArray[np.float64]:
    """Return Gaussian bumps (96, k) of this width, ``shift`` eighths of it from the edge."""
    knots = width * (np.arange(-3, SIZE / width + 4) + shift / 8)
    bumps: NDArray[np.float64] = np.exp(-0.5 * ((np.arange(SIZE)[:, None] - knots) / width) ** 2)
    return bumps


def _field(rng: np.random.Generator, down: float, across: float) -> NDArray[np.float64]:
    """Return a smooth random field (96, 96) of mean 0 and standard deviation 1, with a width in each direction."""
    left, right = (_basis(round(width, 1), int(rng.integers(8))) for width in (down, across))
    field = left @ rng.standard_normal((left.shape[1], right.shape[1])) @ right.T
    out: NDArray[np.float64] = (field - field.mean()) / field.std()
    return out
