"""Accuracy of nuclei on the twenty MoNuSeg images that nothing was fitted or chosen on.

python benchmarks/nucleus_accuracy.py DATA [--weights FILE] [--flips] [--figure FILE.png] [--methods NAME,…]
    [--robust] [--ten] [--some]

DATA holds monuseg/. --weights are those of `nuclei train` on the ten other images; --robust adds 20x copies and three
other stains; --ten scores the ten images that may be chosen on instead. Endpoints, fixed before the first run on the
twenty: mean AJI, Dice and PQ over images, F1 at IoU 0.5, correlation and bias of the number of nuclei over tiles of 224
pixels, all by organ, and the squared correlation of `count` and `area` of these tiles with those of the manual masks.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from conceptkit.pathology.agreement import agreement
from conceptkit.pathology.annotated import Tile, draw_tiles
from conceptkit.pathology.colour import RUIFROK, optical_density
from conceptkit.pathology.hematoxylin import segment
from conceptkit.pathology.measures import measure

CHOSEN_ON = slice(1, None, 3)
"""Images that scores were fitted on and settings chosen on."""

TILE, MPP = 224, 0.25

STAINS = {
    "pale": (np.array([[0.62, 0.71, 0.33], [0.10, 0.96, 0.25], [0.27, 0.57, 0.78]]), (0.6, 0.6, 1.0)),
    "strong": (np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), (1.4, 1.4, 1.0)),
    "violet": (np.array([[0.55, 0.78, 0.30], [0.22, 0.80, 0.56], [0.27, 0.57, 0.78]]), (1.1, 0.8, 1.0)),
}
"""Name → vectors of the stains, and how much of each there is."""


def plain(image, mpp=MPP):
    """The usual scikit-image chain: blurred hematoxylin, Otsu, opening, watershed on the distance."""
    from scipy import ndimage
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import disk, opening
    from skimage.segmentation import watershed

    factor = MPP / mpp
    amount = gaussian(rgb2hed(image)[..., 0], 2 * factor)
    mask = opening((amount > threshold_otsu(amount)).astype(np.uint8), disk(max(1, round(4 * factor)))) > 0
    distance = ndimage.distance_transform_edt(mask)
    smooth = gaussian(distance, 2 * factor)
    least = max(1, round(7 * factor))
    peaks = peak_local_max(smooth, min_distance=least, labels=mask.astype(int), exclude_border=False)
    markers = np.zeros(mask.shape, int)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-smooth, markers, mask=mask)


def listed(data, ten=False):
    with (data / "monuseg" / "images.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    chosen = [row["image_id"] for row in rows[CHOSEN_ON]]
    return [row for row in rows if (row["image_id"] in chosen) == ten]


def opened(data, row):
    with Image.open(data / "monuseg" / row["image"]) as image, Image.open(data / "monuseg" / row["mask"]) as mask:
        return np.asarray(image.convert("RGB")), np.asarray(mask).astype(np.int64)


def stained(image, name):
    vectors, amounts = STAINS[name]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    density = optical_density(image) @ np.linalg.inv(RUIFROK) * np.array(amounts) @ vectors
    return np.clip(np.round(255 * 10.0**-density), 0, 255).astype(np.uint8)


def halved(image, labels):
    """A copy at 20x."""
    return np.asarray(Image.fromarray(image).reduce(2)), labels[::2, ::2]


def tiles(array):
    places = range(0, array.shape[0] - TILE + 1, TILE)
    return np.stack([array[y : y + TILE, x : x + TILE] for y in places for x in places])


def methods_of(options):
    from conceptkit.pathology.compact import BUNDLED, load_compact

    known = {"plain": plain, "hematoxylin": segment}
    if BUNDLED.is_file():
        known["compact"] = BUNDLED
    if options.weights:
        known["fine-tuned"] = options.weights
    for name, method in known.items():
        if isinstance(method, Path):
            model = load_compact(method, device="cpu")
            model.flips = options.flips
            known[name] = model.segment
    chosen = options.methods.split(",") if options.methods else known
    return {name: known[name] for name in chosen}


def scored(found, drawn, image):
    """Scores of an image, and count and area of its tiles, found and drawn."""
    scores = agreement(found, drawn)
    concepts = [measure(tiles(image), tiles(labels), None, names=["count", "area_px"]) for labels in (found, drawn)]
    return (scores.aji, scores.dice, scores.pq, scores.dq), concepts


def table(rows, title):
    """Print the mean scores of each method and organ."""
    print(f"\n{title}")
    print(f"  {'method':12s} {'organ':9s} images  AJI    Dice   PQ     F1     count r  bias   R² count  R² area")
    for name, own in rows.items():
        for organ in [*sorted({o for o, _, _ in own}), "all"]:
            some = [r for r in own if organ in (r[0], "all")]
            mean = np.mean([s for _, s, _ in some], axis=0)
            found, drawn = (
                {k: np.concatenate([c[j][k] for _, _, c in some]) for k in ("count", "area_px")} for j in (0, 1)
            )
            r = np.corrcoef(found["count"], drawn["count"])[0, 1]
            both = np.isfinite(found["area_px"]) & np.isfinite(drawn["area_px"])
            area = np.corrcoef(found["area_px"][both], drawn["area_px"][both])[0, 1] ** 2
            bias = found["count"].sum() / drawn["count"].sum() - 1
            numbers = "  ".join(f"{v:.3f}" for v in mean)
            print(
                f"  {name:12s} {organ:9s} {len(some):4d}    {numbers}  {r:.3f}  {bias:+.0%}   {r**2:.2f}     {area:.2f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--methods")
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--robust", action="store_true")
    parser.add_argument("--ten", action="store_true")
    parser.add_argument("--some", action="store_true", help="six images only")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    report(options)


def report(options):
    """Print the tables; return seconds of processor by method."""
    images = listed(options.data, options.ten)
    images = images[::3][:6] if options.some else images
    methods = methods_of(options)
    rows = {name: [] for name in methods}
    others = {kind: {name: [] for name in methods} for kind in (["20x", *STAINS] if options.robust else [])}
    seconds, drawn_tiles, worst = dict.fromkeys(methods, 0.0), [], []
    for row in images:
        image, drawn = opened(options.data, row)
        for name, method in methods.items():
            start = time.process_time()  # of this process only: the machine may be shared
            found = method(image, MPP)
            seconds[name] += time.process_time() - start
            rows[name].append((row["organ"], *scored(found, drawn, image)))
            worst.append((name, row["image_id"], row["organ"], rows[name][-1][1][0]))
            for kind in others:
                other, labels, mpp = (
                    (*halved(image, drawn), 2 * MPP) if kind == "20x" else (stained(image, kind), drawn, MPP)
                )
                others[kind][name].append(agreement(method(other, mpp), labels).aji)
            if name == list(methods)[-1] and options.figure:
                parts = zip(tiles(image), tiles(found), tiles(drawn), strict=True)
                drawn_tiles += [Tile(row["image_id"], agreement(f, d).aji, i, f, d) for i, f, d in parts]
    table(rows, f"{len(images)} images, {'chosen on' if options.ten else 'nothing was fitted or chosen on them'}")
    print("  seconds of processor for an image:", {n: round(s / len(images), 2) for n, s in seconds.items()})
    for kind, own in others.items():
        base = {n: np.mean([s[0] for _, s, _ in rows[n]]) for n in methods}
        change = {n: f"{np.mean(own[n]) - base[n]:+.3f}" for n in methods}
        print(f"  change of AJI, {kind}: {change}")
    last = list(methods)[-1]
    lowest = sorted((w for w in worst if w[0] == last), key=lambda w: w[3])[:5]
    print(f"  lowest AJI of {last}: " + ", ".join(f"{i} ({o}) {a:.3f}" for _, i, o, a in lowest))
    if options.figure:
        draw_tiles(drawn_tiles, options.figure, 6)
    return seconds


if __name__ == "__main__":
    main()
