"""Not histology: a checkerboard artefact of generated images as a discouraged concept (the paper's outlook).

    python examples/checkerboard.py --out runs/checkerboard

Generators that upsample by transposed convolutions leave a faint checkerboard. Where one class of a data set was
generated more often than the other, a classifier may learn the artefact in place of the class. Here images of round and
of angular shapes are drawn, and a checkerboard of known strength is added: in training mostly to angular shapes, in the
evaluation rows to both alike. The strength is a column of the patch table like any concept. ``probe`` asks which layers
know it, ``guide`` discourages it, and the report shows what is left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

import conceptkit as ck

SIZE = 96

STUDY = """name = "checkerboard"
table = "patches.csv"
model = "mini_inception"
weights = "bundled"
layers = ["mixed2", "mixed7", "mixed10"]
group = "source"

[concepts]
probe = ["checkerboard", "radius"]
discourage = ["checkerboard"]
"""


def draw(shape: str, radius: float, strength: float, random: np.random.Generator) -> np.ndarray:
    """Return one image (SIZE, SIZE, 3), uint8: shapes on a soft ground, and a checkerboard of a strength in levels."""
    yy, xx = np.mgrid[:SIZE, :SIZE]
    ground, ink = random.uniform(120, 200, 3), random.uniform(30, 110, 3)
    image = np.broadcast_to(ground, (SIZE, SIZE, 3)).copy()
    for _ in range(6):
        cy, cx, angle = *random.uniform(radius, SIZE - radius, 2), random.uniform(0, np.pi)
        dy, dx = yy - cy, xx - cx
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        inside = np.hypot(u, v) < radius if shape == "round" else np.maximum(abs(u), abs(v)) < 0.886 * radius
        image[inside] = ink  # a square of the disc's area
    image += random.normal(0, 6, image.shape) + strength * (1 - 2 * ((yy + xx) % 2))[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def make_study(folder: Path, *, sources: int = 24, images: int = 16, seed: int = 0) -> Path:
    """Write images, table and study file; a source is a model checkpoint, none of which is in two splits."""
    random = np.random.default_rng(seed)
    rows, pixels = [], []
    for source in range(sources):
        split = ("train", "train", "val", "internal")[source % 4]
        for i in range(images):
            shape = ("round", "angular")[i % 2]
            confounded = split in ("train", "val") and random.random() < 0.85
            generated = shape == "angular" if confounded else random.random() < 0.5
            strength = float(random.uniform(6, 14) if generated else random.uniform(0, 2))
            radius = float(random.uniform(8, 14))
            pixels.append(draw(shape, radius, strength, random))
            rows.append(
                {
                    "h5": "images.h5",
                    "key": "images",
                    "row": len(rows),
                    "label": shape,
                    "split": split,
                    "source": f"generator-{source:02d}",
                    "checkerboard": strength,
                    "radius": radius,
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "images.h5", "w") as file:
        file["images"] = np.stack(pixels)
    pd.DataFrame(rows).to_csv(folder / "patches.csv", index=False)
    (folder / "conceptkit.toml").write_text(STUDY, encoding="utf-8")
    return folder / "conceptkit.toml"


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/checkerboard"))
    parser.add_argument("--sources", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args(arguments)

    study = make_study(options.out, sources=options.sources)
    probed = ck.run_probe(study, permutations=0, out=options.out / "probe")
    print(probed.to_frame()[["layer", "concept", "score", "score_random_network"]].round(2).to_string(index=False))
    warmup = min(10, options.epochs // 2)
    guided = ck.run_guide(study, epochs=options.epochs, warmup=warmup, seeds=options.seeds, out=options.out / "guide")
    for d in guided.differences:
        print(f"{d.run} - {d.against}, {d.metric}: {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})")
    page = ck.write_report([probed, guided], options.out / "report.html")
    print("report:", page)
    return page


if __name__ == "__main__":
    main()
