"""Speed and accuracy of measuring concepts: texture, nuclei, stain, tiles and the whole chain, as ratios in one run.

python benchmarks/concepts.py DATA [--all] [--weights FILE] [--figure FILE.png] [--only NAME,…]

DATA holds monuseg/, wsi/ and authors/. Without --all nuclei are scored on six of the twenty images that nothing was
fitted on; --weights are those of `nuclei train` on the ten others.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nucleus_accuracy
import numpy as np
from nucleus_accuracy import opened


def best_of(function, repeats=3):
    """Shortest of some runs: the others were disturbed."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def listed(data):
    with (data / "monuseg" / "images.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tiles_of(image, size=224):
    places = range(0, image.shape[0] - size + 1, size)
    return np.stack([image[y : y + size, x : x + size] for y in places for x in places])


def texture(data, options):
    """Exact 256-level contrast and correlation against graycomatrix and graycoprops."""
    from skimage.feature import graycomatrix, graycoprops

    from conceptkit.pathology.texture import haralick, luma

    grey = luma(tiles_of(opened(data, listed(data)[0])[0]))
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]

    def theirs():
        out = []
        for patch in grey[:4]:
            matrix = graycomatrix(patch, [1], angles, levels=256, symmetric=True, normed=True)
            out.append([graycoprops(matrix, p).mean() for p in ("contrast", "correlation")])
        return np.array(out)

    ours = haralick(grey[:4])
    difference = np.abs(theirs() - np.stack([ours.contrast, ours.correlation], axis=1)).max()
    ratio = (best_of(theirs) / 4) / (best_of(lambda: haralick(grey), 7) / len(grey))
    print(f"texture: {ratio:.0f} x scikit-image (at least 80); largest difference {difference:.1e}")


def nuclei(data, options):
    """Accuracy of each method by organ on images that nothing was fitted or chosen on, and time."""
    seconds = nucleus_accuracy.report(
        argparse.Namespace(
            data=data,
            weights=options.weights,
            methods=None,
            flips=False,
            robust=False,
            ten=False,
            some=not options.all,
            figure=options.figure,
        )
    )
    print(f"  hematoxylin: {seconds['plain'] / seconds['hematoxylin']:.1f} x the plain chain (at least 5)")


def stain(data, options):
    """Reinhard against scikit-image's CIELAB, per patch and within a grey level."""
    from skimage.color import lab2rgb, rgb2lab

    from conceptkit.pathology.colour import tissue_weight
    from conceptkit.pathology.stain import Reinhard

    method = Reinhard.fit(np.load(data / "authors" / "normalizing_patch.npy"))
    patches = np.concatenate([tiles_of(opened(data, row)[0])[:8] for row in listed(data)[:2]])

    def theirs(patch):
        values, inside = rgb2lab(patch), tissue_weight(patch) == 1
        mean, sd = values[inside].mean(axis=0), values[inside].std(axis=0)
        return np.rint(lab2rgb((values - mean) / sd * method.target.sd + method.target.mean) * 255)

    ours = method.transform(patches)
    inside = tissue_weight(patches) == 1
    difference = np.abs(np.stack([theirs(p) for p in patches]) - ours)[inside].max()
    ratio = best_of(lambda: [theirs(p) for p in patches]) / best_of(lambda: method.transform(patches), 7)
    print(f"stain: Reinhard {ratio:.1f} x scikit-image (at least 6); largest difference {difference:.0f} grey level(s)")


def chain(data, options):
    """Decode, segment, measure: tiles a second on two processes, and by processor time in one.

    The images are listed ten times over, each time under other names: two processes need seconds to import what they
    use, as long as they then need for 480 tiles.
    """
    from conceptkit.commands.measure import run_measure

    with tempfile.TemporaryDirectory() as folder:

        def write(times):
            path = Path(folder) / f"images{times}.csv"
            rows = [{**row, "image_id": f"{row['image_id']}-{i}"} for i in range(times) for row in listed(data)]
            for row in rows:
                row.update({column: data.resolve() / "monuseg" / row[column] for column in ("image", "mask")})
            with path.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            return path

        def run(names, workers, times):
            out = Path(folder) / "t.csv"
            return len(run_measure(write(times), out=out, nuclei="hematoxylin", workers=workers, names=names).table)

        for names in (None, ["all"]):
            rates = []
            for times in (1, 10):
                start = time.perf_counter()
                rates.append(run(names, 2, times) / (time.perf_counter() - start))
            start = time.process_time()  # the machine may be shared: what two cores of their own would give
            alone = 2 * run(names, 1, 1) / (time.process_time() - start)
            print(
                f"chain: {rates[1]:.0f} tiles/s on two processes, {names or 'core'} measures (at least 300), "
                f"{rates[0]:.0f} where the images are listed once; twice the rate by one process' own time: {alone:.0f}"
            )


def compact(data, options):
    """Tiles a second from JPEG to measures, by `compact`, by `hematoxylin` and by compact's forward pass alone.

    Processor time of one thread, the shortest of three rounds, times two: what two cores of their own would give. The
    tiles of 0.5 µm/px are those of the images at half their size.
    """
    import io

    import torch
    from PIL import Image

    from conceptkit.pathology.compact import BUNDLED, load_compact
    from conceptkit.pathology.hematoxylin import segment
    from conceptkit.pathology.measures import measure

    torch.set_num_threads(1)
    network = load_compact(BUNDLED, device="cpu")
    images = [opened(data, row)[0] for row in listed(data)[1::3]]

    def encoded(tile):
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, "JPEG", quality=90)
        return stream.getvalue()

    def decoded(file):
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    def rate(function, items):
        times = []
        for _ in range(3):
            start = time.process_time()
            for item in items:
                function(item)
            times.append(time.process_time() - start)
        return 2 * len(items) / min(times)

    for mpp, wanted in ((0.25, 40), (0.5, 100)):
        step = round(mpp / 0.25)
        halved = [Image.fromarray(image).reduce(step) for image in images]
        files = [encoded(tile) for image in halved for tile in tiles_of(np.asarray(image))][:80]
        tiles = [decoded(file) for file in files]

        def end_to_end(find, file, mpp=mpp):
            tile = decoded(file)
            measure(tile[None], find(tile, mpp)[None], mpp)

        ours, theirs = (rate(partial(end_to_end, find), files) for find in (network.segment, segment))
        print(
            f"compact: {ours:.0f} tiles/s of 224 px at {mpp} µm/px (at least {wanted}), {theirs:.0f} by hematoxylin, "
            f"{rate(partial(network.segment, mpp=mpp), tiles):.0f} segmented only, {rate(network._maps, tiles):.0f} "
            f"forward passes; {len(tiles)} tiles"
        )


def tiling(data, options):
    """Tiles with their pixels kept, against a loop that reads the same windows and keeps nothing."""
    import openslide

    from conceptkit.commands.tile import run_tile

    for path in sorted((data / "wsi").glob("*.svs")):
        for overlap in (0, 112):
            with tempfile.TemporaryDirectory() as folder:
                table = run_tile([path], out=Path(folder) / "t.csv", overlap=overlap).table
                places = list(zip(table["x"].tolist(), table["y"].tolist(), strict=True))

                def bare(path=path, places=places):
                    with openslide.OpenSlide(path) as slide:
                        for place in places:
                            np.asarray(slide.read_region(place, 0, (224, 224)))

                numbers = iter(range(100))

                def ours(path=path, folder=folder, numbers=numbers, overlap=overlap):
                    run_tile([path], out=Path(folder) / f"{next(numbers)}.csv", export="h5", overlap=overlap)

                ratio = best_of(bare, 5) / best_of(ours, 5)
            print(f"tiling: {ratio:.2f} of a bare read_region loop (at least 0.9), {len(places)} tiles of {path.name}")


PARTS = {"texture": texture, "nuclei": nuclei, "stain": stain, "chain": chain, "compact": compact, "tiling": tiling}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--all", action="store_true", help="all twenty images")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--figure", type=Path, help="where to draw the best, median and worst tiles")
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    for name in options.only.split(","):
        PARTS[name](options.data, options)


if __name__ == "__main__":
    main()
