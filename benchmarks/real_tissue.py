"""Real tissue with simulated centers: MoNuSeg tiles with a stain per center, confounded with the label in training.

Every draw splits the 30 patients into training (18), validation (4) and test (8), and draws the stain of centers
(hematoxylin and eosin, each times 2^u, u uniform in ±0.8). Training and validation patients belong to centers A, B, C,
so that the label follows from the center as far as the confounding says; test patients are seen once in each of A, B, C
(``internal``: no relation) and once in each center that nobody trained on (``external``). The label is the organ
(urogenital or not: of the patient), the size of nuclei (mean area of the tile's nuclei above the median of all), or
``size+number``: the sum of the ranks of mean area and number above its median.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from conceptkit.pathology.disturbances import restain
from conceptkit.tables.study import Study

TILE = 250
UROGENITAL = {"kidney", "prostate", "bladder"}


def tiles(data: Path) -> pd.DataFrame:
    """Return one row per tile with its place, count and mean nuclear area (px²)."""
    rows = []
    for image in pd.read_csv(data / "monuseg" / "images.csv").to_dict("records"):
        mask = np.asarray(Image.open(data / "monuseg" / image["mask"]))
        for y in range(0, 1000, TILE):
            for x in range(0, 1000, TILE):
                sizes = np.bincount(mask[y : y + TILE, x : x + TILE].ravel())[1:]
                sizes = sizes[sizes > 0]
                rows.append(
                    {
                        **{k: image[k] for k in ("image", "organ", "patient")},
                        **{"x": x, "y": y, "count": len(sizes), "area": sizes.mean() if len(sizes) else np.nan},
                    }
                )
    return pd.DataFrame(rows)


def draw_study(
    data: Path, base: pd.DataFrame, label: str, confounding: float, seed: int, folder: Path, unseen: str = "D"
) -> Study:
    """Write one draw's patches and table into ``folder``; ``unseen`` are the centers that nobody trains on."""
    chance = np.random.default_rng([seed, 42])
    if label == "organ":
        base = base.assign(label=np.where(base.organ.isin(UROGENITAL), "urogenital", "other"))
    else:
        size = base.area if label == "size" else base.area.rank(pct=True) + base["count"].rank(pct=True)
        base = base.assign(label=np.where(size > size.median(), "large", "small"))
    base = base.assign(random=chance.normal(size=len(base)))
    share = (base.label == base.label.max()).groupby(base.patient).mean()
    patients = chance.permutation(share.index.to_numpy())
    # One side of the label after the other, so that both are in every part.
    by_share = patients[np.argsort(-share[patients].to_numpy(), kind="stable")]
    order = np.stack([chance.permutation(by_share[:15]), chance.permutation(by_share[15:])], 1).ravel()
    part = dict(zip(order, ["train"] * 18 + ["val"] * 4 + ["test"] * 8, strict=True))
    stains = {center: chance.uniform(-0.8, 0.8, 2) for center in "ABC" + unseen}
    high = share > share.median()
    home = {}
    for patient in order:
        preferred = "A" if high[patient] else "B"
        home[patient] = preferred if chance.random() < confounding else str(chance.choice(list("ABC")))
    rows, cached = [], {}
    for i, tile in enumerate(base.to_dict("records")):
        if tile["image"] not in cached:
            cached = {tile["image"]: np.asarray(Image.open(data / "monuseg" / tile["image"]).convert("RGB"))}
        pixels = cached[tile["image"]][tile["y"] : tile["y"] + TILE, tile["x"] : tile["x"] + TILE]
        split = part[tile["patient"]]
        for center in "ABC" + unseen if split == "test" else home[tile["patient"]]:
            name = f"{i:03d}{center}"
            stained = restain(restain(pixels, stains[center][0], stain=0), stains[center][1], stain=1)
            Image.fromarray(stained).save(folder / f"{name}.png", compress_level=1)
            where = split if split != "test" else "external" if center in unseen else "internal"
            kept = {k: tile[k] for k in ("patient", "label", "count", "area", "random")}
            rows.append({"patch_id": name, "image": f"{name}.png", "split": where, "center": center, **kept})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return Study(name="real tissue", table=folder / "table.csv", group="patient")
