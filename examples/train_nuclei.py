"""Train the bundled weights of `--nuclei compact`.

python examples/train_nuclei.py DSB2018_COLOR OUT.safetensors [--steps 6000] [--seed 0] [--work FOLDER]
    [--unlabelled IMAGE … --start WEIGHTS]

DSB2018_COLOR holds images.csv, images/ and masks/: CC0 colour images of the 2018 Data Science Bowl. Every eighth image
is left out. Training resumes from the last checkpoint in --work. With --unlabelled, the network of --start labels these
images first (pixels that it is unsure of do not count), and a third of each batch is taken from them.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from nuclei_tissue import SIZE, Composer, Painter, read_source
from PIL import Image

from conceptkit.pathology.compact import load_compact, save_compact
from conceptkit.pathology.compact_network import CompactNetwork, depth_of, loss_of

CROP, BATCH, POOL = 192, 8, 150
MOST = 2.5
"""Amount of stain that 255 stands for."""


def read_sources(folder):
    """Return the sources that are trained on."""
    with (folder / "images.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    sources = []
    for number, row in enumerate(rows):
        if number % 8 == 7:
            continue
        with Image.open(folder / row["image"]) as image, Image.open(folder / row["mask"]) as mask:
            sources.append(read_source(np.asarray(image.convert("RGB")), np.asarray(mask).astype(np.int32)))
    return sources


class Pool:
    """Composed tiles; each step replaces one."""

    def __init__(self, composer, seed, step):
        self.composer, self.seed = composer, seed
        self.amounts = np.zeros((POOL, SIZE, SIZE, 3), np.uint8)
        self.depths = np.zeros((POOL, SIZE, SIZE), np.uint8)
        for number in range(step, step + POOL):
            self.renew(number)

    def renew(self, number):
        amounts, labels = self.composer.tile(np.random.default_rng([self.seed, 1, number]))
        self.amounts[number % POOL] = np.clip(np.round(amounts * (255 / MOST)), 0, 255)
        self.depths[number % POOL] = np.where(labels > 0, np.maximum(1, np.round(255 * depth_of(labels))), 0)

    def draw(self, rng, painter):
        """Return a painted window and its depth."""
        number = rng.integers(POOL)
        y, x = rng.integers(0, SIZE - CROP + 1, 2)
        amounts = self.amounts[number, y : y + CROP, x : x + CROP].astype(np.float32) * np.float32(MOST / 255)
        image, depth = painter.paint(rng, amounts), self.depths[number, y : y + CROP, x : x + CROP]
        return turned(rng, image, depth, np.ones_like(depth))


def turned(rng, *arrays):
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    return [np.ascontiguousarray(np.rot90(a[:, ::-1] if mirror else a, turns)) for a in arrays]


class Unlabelled:
    """Real tissue with the labels of an earlier network, on what it is sure of."""

    def __init__(self, paths, start):
        model = load_compact(start)
        model.flips = True
        self.images = []
        for path in paths:
            with Image.open(path) as file:
                image = np.asarray(file.convert("RGB"))
            image = np.asarray(Image.fromarray(image).resize((2 * image.shape[1], 2 * image.shape[0])))  # 20x
            labels, maps = model.segment_with_maps(image, 0.25)
            sure = (np.abs(maps[0] - 0.5) > 0.35).astype(np.uint8)
            depth = np.where(labels > 0, np.maximum(1, np.round(255 * depth_of(labels))), 0).astype(np.uint8)
            self.images.append((image, depth, sure))
        areas = np.array([image.shape[0] * image.shape[1] for image, _, _ in self.images], dtype=float)
        self.share = np.sqrt(areas) / np.sqrt(areas).sum()

    def draw(self, rng, painter):
        image, depth, sure = self.images[rng.choice(len(self.images), p=self.share)]
        for _ in range(4):  # a window that is not mostly glass, where one is found
            y, x = (int(rng.integers(0, max(1, n - CROP + 1))) for n in depth.shape)
            parts = [a[y : y + CROP, x : x + CROP] for a in (image, depth, sure)]
            if parts[0].mean() < 215:
                break
        matrix = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        density = -np.log10(np.maximum(parts[0].astype(np.float32), 1) / 255)
        amounts = density @ np.linalg.inv(matrix) * np.exp(rng.normal(0, 0.35, 3)) + 0
        vectors = matrix + rng.normal(0, 0.06, (3, 3))
        light = 255 * np.power(10, -np.clip(amounts @ vectors, 0, 3))
        return turned(rng, painter.photograph(rng, light.astype(np.float32)), *parts[1:])


def batch_of(seed, step, pool, unlabelled, painter):
    rng = np.random.default_rng([seed, 2, step])
    drawn = []
    for index in range(BATCH):
        source = unlabelled if unlabelled is not None and index % 3 == 2 else pool
        drawn.append(source.draw(rng, painter))
    images, depths, known = (np.stack(a) for a in zip(*drawn, strict=True))
    images = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    depths = torch.from_numpy(depths).float().div(255)
    return images, (depths > 0).float(), depths, torch.from_numpy(known).float()


def train(options):
    torch.manual_seed(options.seed)
    sources = read_sources(options.data)
    network = CompactNetwork().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, first = options.work / "state.pt", 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    elif options.start:
        network.load_state_dict(load_compact(options.start).state)
    composer, painter = Composer(sources, options.seed), Painter()
    unlabelled = Unlabelled(options.unlabelled, options.start) if options.unlabelled else None
    pool = Pool(composer, options.seed, first)
    network.train()
    start, total = time.process_time(), 0.0
    for step in range(first, options.steps):
        rate = options.rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pool.renew(step + POOL)
        images, inside, depths, known = batch_of(options.seed, step, pool, unlabelled, painter)
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(maps, inside, depths, known)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            spent = time.process_time() - start
            print(f"step {step + 1} loss {total / 100:.4f} {spent:.0f} s of processor", flush=True)
            total = 0.0
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    return network


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("nuclei-work"))
    parser.add_argument("--start", type=Path)
    parser.add_argument("--thresholds", type=float, nargs=2, default=(0.6, 2.0), help="probability, µm between nuclei")
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    network = train(options)
    state = {k: v.detach() for k, v in network.state_dict().items()}
    threshold, apart = options.thresholds
    about = {"threshold": threshold, "apart": apart, "coarsest": 0.5, "steps": options.steps, "seed": options.seed}
    save_compact(state, about, options.out)


if __name__ == "__main__":
    main()
