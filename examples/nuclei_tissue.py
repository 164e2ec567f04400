"""Make H&E tissue for training: annotated nuclei of stained images on synthetic stroma, cytoplasm, lumen and blood.

A tile is made in two steps. ``Composer.tile`` places nuclei and background as amounts of three stains;
``Painter.paint`` gives them colour, focus, noise and compression. Nuclei are those of CC0 images: where they lay, or
pasted one by one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE = 256
"""Pixels of a tile's side, at about 0.25 µm."""


@dataclass
class Source:
    """One annotated image: how dark it is, from 0 (its background) to about 1 (its nuclei), and its nuclei."""

    dark: np.ndarray
    eosin: np.ndarray
    labels: np.ndarray
    area: float
    colourful: bool


def read_source(image, labels):
    """Return a source of an RGB image (h, w, 3) and its labels (h, w)."""
    density = -np.log10(np.maximum(image.astype(np.float32), 1) / 255)
    areas = np.bincount(labels.ravel())[1:]
    area = float(np.median(areas[areas > 0])) if (areas > 0).any() else 500.0
    inside = labels > 0
    red = density[..., 0]
    pink = bool(np.median(density[..., 1]) > 0.28 and np.median(density[..., 0]) < 0.12)
    low = float(np.median(red[~inside])) if (~inside).any() else 0.0
    high = float(np.quantile(red[inside], 0.9)) if inside.sum() > 50 else low + 0.5
    dark = (red - low) / max(high - low, 0.1)
    eosin = np.clip(density[..., 1] - 1.05 * red, 0, None) if pink else np.zeros_like(red)
    return Source(dark.astype(np.float32), eosin.astype(np.float32), labels.astype(np.int32), area, pink)


def relabelled(labels):
    """Return connected pieces of equal label, numbered 1 to n."""
    pieces, number = np.zeros_like(labels), 0
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    joined, number = ndimage.label((labels > 0) & ~edges)
    near = ndimage.distance_transform_edt(joined == 0, return_distances=False, return_indices=True)
    pieces = np.where(labels > 0, joined[near[0], near[1]], 0)
    return pieces.astype(np.int32), number


def noise(rng, sigma, size=SIZE):
    """Return a smooth random field of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)).astype(np.float32), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


def fibres(rng, size=768):
    """Return wavy fibres, 0 to about 1: noise stretched along one direction, bent by a smooth field."""
    width, length = rng.uniform(1.0, 3.5), rng.uniform(18, 60)
    field = noise(rng, (width, length), size) + 0.6 * noise(rng, (3 * width, 1.5 * length), size)
    bend = noise(rng, rng.uniform(30, 70), size) * rng.uniform(5, 25)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    field = ndimage.map_coordinates(field, (rows + bend, columns), order=1, mode="wrap")
    return np.clip(0.5 + 0.28 * field, 0, 1.4).astype(np.float32)


def _rough(rng, power, size=768):
    """Return a field of mean 0 and standard deviation 1 that is rough at every scale from 1 to 12 pixels."""
    field = sum(s**power * noise(rng, s, size) for s in (0.7, 1.4, 2.8, 5.6))
    return field / field.std()


class Composer:
    """Places nuclei on tissue."""

    def __init__(self, sources, seed):
        rng = np.random.default_rng(seed)
        self.sources = sources
        self.bank = [nucleus for source in sources for nucleus in _nuclei(source)]
        self.round = [n for n in self.bank if n[2] < 1.5 and n[3] > 0.9]
        self.long = [n for n in self.bank if n[2] > 1.9]
        self.fibres = [fibres(rng) for _ in range(16)]
        self.clouds = [noise(rng, s, 768) for s in (6, 10, 16, 25, 40)]
        self.grains = [noise(rng, s, 768) for s in (0.8, 1.2, 2.0, 3.0)]
        self.rough = [_rough(rng, power) for power in (0.2, 0.4, 0.6, 0.8)]

    def _crop(self, rng, fields):
        field = fields[rng.integers(len(fields))]
        y, x = rng.integers(0, field.shape[0] - SIZE, 2)
        part = field[y : y + SIZE, x : x + SIZE]
        part = np.rot90(part, rng.integers(4))
        return part[::-1] if rng.random() < 0.5 else part

    def tile(self, rng):
        """Return the amounts of hematoxylin, eosin and a third dye (h, w, 3), and labels (h, w)."""
        kind = rng.random()
        if kind < 0.14:
            return self._as_it_is(rng)
        if kind < 0.55:
            hematoxylin, floor, other, labels, soft = self._laid_out(rng)
        else:
            hematoxylin, floor, other, labels, soft = self._pasted(rng)
        eosin, cytoplasm, third = self._background(rng, labels)
        cytoplasm = cytoplasm + other * rng.choice([0.0, 0.3, 0.6])
        if rng.random() < 0.35:  # shrinkage leaves a pale rim
            rim = ndimage.gaussian_filter((ndimage.binary_dilation(labels > 0, iterations=3)).astype(np.float32), 1.0)
            fade = 1 - rng.uniform(0.3, 0.95) * rim
            eosin, cytoplasm = eosin * fade, cytoplasm * fade
        eosin = eosin * (1 - soft * rng.uniform(0.1, 0.95))
        # A nucleus is seen because it, or at least its rim, is darker than what is around it.
        least = ndimage.gaussian_filter(cytoplasm, 3) * rng.uniform(1.0, 1.4) * floor
        hematoxylin = np.maximum(hematoxylin, least) * soft + cytoplasm * (1 - soft)
        return np.stack([hematoxylin, eosin, third * (1 - soft)], axis=-1).astype(np.float32), labels

    def _window(self, rng, source, area):
        """Return a window of a source at the scale where its median nucleus has ``area`` pixels."""
        factor = float(np.clip(np.sqrt(area / source.area), 0.35, 2.5))
        take = max(8, round(SIZE / factor))
        fields = [source.dark, source.eosin, source.labels]
        height, width = source.labels.shape
        pad = ((0, max(0, take - height)), (0, max(0, take - width)))
        fields = [np.pad(f, pad, mode="symmetric") for f in fields]
        y = rng.integers(0, fields[0].shape[0] - take + 1)
        x = rng.integers(0, fields[0].shape[1] - take + 1)
        out = []
        for field in fields:
            whole = field.dtype == np.int32
            part = Image.fromarray(np.ascontiguousarray(field[y : y + take, x : x + take]))
            how = Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC
            out.append(np.asarray(part.resize((SIZE, SIZE), how)))
        labels, number = relabelled(out[2])
        sizes = np.bincount(labels.ravel(), minlength=number + 1)
        labels[(sizes < 12)[labels]] = 0
        return out[0], out[1], labels

    def _as_it_is(self, rng):
        pink = [s for s in self.sources if s.colourful]
        chosen = pink if pink and rng.random() < 0.6 else self.sources
        source = chosen[rng.integers(len(chosen))]
        dark, eosin, labels = self._window(rng, source, _area(rng))
        even = 0.0 if source.colourful else rng.uniform(0, 0.6)
        amount = np.clip(dark + 0.12, 0, None)
        return np.stack([amount, eosin * 2.0 + even, 0 * dark], axis=-1).astype(np.float32), labels

    def _laid_out(self, rng):
        source = self.sources[rng.integers(len(self.sources))]
        dark, _, labels = self._window(rng, source, _area(rng))
        soft = ndimage.gaussian_filter((labels > 0).astype(np.float32), rng.uniform(0.5, 1.1))
        return *self._chromatin(rng, np.clip(dark, 0.15, 1.6), labels), np.clip(dark, 0, 1), labels, soft

    def _chromatin(self, rng, dark, labels):
        """Vary how dark nuclei are, and how pale inside; return it and, below 1, where they may be paler."""
        number = int(labels.max())
        tone = np.exp(rng.normal(0, rng.uniform(0.1, 0.45), number + 1)).astype(np.float32)
        flat = 1 - rng.uniform(0, 0.7)  # contrast of the texture
        mean = np.ones(number + 1, dtype=np.float32)
        if number:
            sums = np.bincount(labels.ravel(), dark.ravel(), minlength=number + 1)
            mean = (sums / np.maximum(np.bincount(labels.ravel(), minlength=number + 1), 1)).astype(np.float32)
        dark = (mean[labels] + (dark - mean[labels]) * flat) * tone[labels]
        floor = np.ones_like(dark)
        if rng.random() < 0.55:  # vesicular: a dark rim around a pale inside, with clumps and nucleoli
            much = rng.random() < 0.5
            pale = (rng.uniform(0.6, 1.0) if much else rng.uniform(0.15, 0.6)) * (
                rng.random(number + 1) < rng.uniform(0.3, 1.0)
            )
            inner = 1 - np.exp(-np.square(depth_in(labels) / rng.uniform(1.2, 3.5)))
            floor = 1 - pale[labels] * inner
            dark = dark * floor
            clumps = np.clip(self._crop(rng, self.rough) - rng.uniform(0.2, 1.2), 0, 1) * rng.uniform(0.1, 0.7)
            spots = np.clip(self._crop(rng, self.grains[2:]) - rng.uniform(1.4, 2.2), 0, 1)
            dark = dark + spots * rng.uniform(0.2, 0.9) + clumps * (1 - floor)
        texture = rng.uniform(0, 0.3) * self._crop(rng, self.grains) + rng.uniform(0, 0.3) * self._crop(rng, self.rough)
        return np.clip(dark * (1 + texture), 0.03, 2.0), floor

    def _pasted(self, rng):
        dark = np.zeros((SIZE, SIZE), np.float32)
        labels = np.zeros((SIZE, SIZE), np.int32)
        angle = rng.uniform(0, 180)
        base = _area(rng)
        zone = self._crop(rng, self.clouds[2:]) > rng.uniform(-0.5, 1.0)
        for kind in rng.permutation(["round", "long", "any"])[: rng.integers(1, 4)]:
            kind = str(kind)
            packed = rng.random() < 0.4
            area = base * {"round": 0.55, "long": 0.7, "any": 1.2}[kind]
            most = SIZE * SIZE / (area * (1.7 if packed else 4))
            number = int(rng.uniform(0.1, 1.0) * most) + 2
            self._paste_some(rng, kind, number, area, angle, packed, zone if rng.random() < 0.7 else None, dark, labels)
        labels, _ = relabelled(labels)
        sizes = np.bincount(labels.ravel())
        labels[(sizes < 20)[labels]] = 0
        soft = ndimage.gaussian_filter((labels > 0).astype(np.float32), rng.uniform(0.5, 1.1))
        return *self._chromatin(rng, np.clip(dark, 0.15, 1.6), labels), np.zeros_like(dark), labels, soft

    def _paste_some(self, rng, kind, number, area, angle, packed, zone, dark, labels):
        bank = {"round": self.round, "long": self.long, "any": self.bank}[kind]
        tone = {"round": 1.15, "long": 0.95, "any": 0.9}[kind]
        label = int(labels.max())
        for _ in range(number):
            nucleus = bank[rng.integers(len(bank))]
            own = area * np.exp(rng.normal(0, {"round": 0.2, "long": 0.45, "any": 0.45}[kind]))
            turn = angle - nucleus[4] + rng.normal(0, 15) if kind == "long" else rng.uniform(0, 360)
            squeeze = rng.uniform(1.0, 2.0) if kind == "long" else 1.0
            shape, texture = _turned(nucleus, own, turn, squeeze)
            height, width = shape.shape
            y, x = rng.integers(-height // 2, SIZE - height // 2), rng.integers(-width // 2, SIZE - width // 2)
            middle = min(max(y + height // 2, 0), SIZE - 1), min(max(x + width // 2, 0), SIZE - 1)
            if zone is not None and zone[middle] == (kind == "long"):
                continue
            top, left, bottom, right = max(y, 0), max(x, 0), min(y + height, SIZE), min(x + width, SIZE)
            if top >= bottom or left >= right:
                continue
            cut = (slice(top - y, bottom - y), slice(left - x, right - x))
            place = (slice(top, bottom), slice(left, right))
            inside = shape[cut]
            taken = (labels[place] > 0) & inside
            share = taken.sum() / max(inside.sum(), 1)
            if share > (0.22 if packed else 0.02):
                continue
            label += 1
            free = inside & ~taken
            labels[place][free] = label
            dark[place][free] = texture[cut][free] * tone * np.exp(rng.normal(0, 0.12))
            dark[place][taken] *= rng.uniform(1.0, 1.5)  # where nuclei overlap both are seen

    def _background(self, rng, labels):
        """Return eosin, hematoxylin and a third dye of what is not nucleus."""
        inside = labels > 0
        distance, near = ndimage.distance_transform_edt(~inside, return_indices=True)
        owner = labels[near[0], near[1]]
        border = np.zeros(labels.shape, dtype=bool)
        border[:, 1:] |= owner[:, 1:] != owner[:, :-1]
        border[1:] |= owner[1:] != owner[:-1]
        membrane = ndimage.gaussian_filter(border.astype(np.float32), rng.uniform(0.7, 1.6)) * 3
        mix = self._crop(rng, self.clouds) * 3 + rng.uniform(-3, 3)
        mix = 1 / (1 + np.exp(-mix * rng.uniform(0.5, 4)))
        first, second = (self._tissue(rng, membrane, distance) for _ in range(2))
        eosin, bluish = (a * mix + b * (1 - mix) for a, b in zip(first, second, strict=True))
        third = np.zeros_like(eosin)
        if rng.random() < 0.5:  # what is dark and thin or small, and no nucleus
            wisps = np.clip(self._crop(rng, self.fibres) - rng.uniform(0.7, 1.0), 0, 1) * rng.uniform(0, 1.5)
            specks = np.clip(self._crop(rng, self.rough) - rng.uniform(1.0, 2.0), 0, 1) * rng.uniform(0, 0.7)
            bluish = bluish + (wisps + specks + membrane * rng.uniform(0, 0.5)) * rng.uniform(0.1, 0.8)
        if rng.random() < 0.3:  # cracks
            crack = (self._crop(rng, self.fibres) - rng.uniform(0.9, 1.2)) * rng.uniform(3, 12)
            open_tissue = 1 - np.clip(crack, 0, 1) * (distance > rng.uniform(0, 4))
            eosin, bluish = eosin * open_tissue, bluish * open_tissue
        if rng.random() < 0.4:  # gaps and lumina
            gap = self._crop(rng, self.clouds) + 0.1 * self._crop(rng, self.grains) - rng.uniform(0.6, 1.8)
            white = np.clip(gap * rng.uniform(4, 15), 0, 1) * (distance > rng.uniform(1, 6))
            eosin, bluish = eosin * (1 - white), bluish * (1 - white)
        if rng.random() < 0.2:
            cells = self._blood(rng)
            eosin = np.maximum(eosin * (cells == 0), cells)
            third = 0.3 * cells
        if rng.random() < 0.1:  # pigment, debris
            third = third + np.clip(self._crop(rng, self.grains[1:]) - 2.4, 0, 1) * rng.uniform(0.5, 2)
        if rng.random() < 0.25:  # nuclei of another plane, too far out of focus to be annotated
            bluish = bluish + np.clip(self._crop(rng, self.clouds[:2]) - 1.3, 0, 1) * rng.uniform(0.1, 0.45)
        return eosin, bluish, third

    def _tissue(self, rng, membrane, distance):
        kind = rng.choice(
            ["stroma", "muscle", "cytoplasm", "dark", "clear", "mucus", "glass"],
            p=[0.26, 0.09, 0.38, 0.08, 0.09, 0.05, 0.05],
        )
        cloud, grain, rough = (self._crop(rng, fields) for fields in (self.clouds, self.grains, self.rough))
        if kind in ("stroma", "muscle"):
            fibre = self._crop(rng, self.fibres)
            power = rng.uniform(0.4, 1.0) if kind == "stroma" else rng.uniform(0.1, 0.4)
            eosin = rng.uniform(0.4, 1.1) * ((1 - power) + power * fibre * 1.4) * (1 + 0.15 * cloud)
            eosin = eosin * (1 + rng.uniform(0, 0.3) * rough)
            return np.clip(eosin, 0, None), np.clip(rng.uniform(0, 0.3) * eosin + 0.03 * grain, 0, None)
        if kind in ("cytoplasm", "dark"):
            eosin = rng.uniform(0.25, 0.9) * (1 + 0.2 * cloud + rng.uniform(0.03, 0.25) * grain)
            eosin = eosin * (1 + rng.uniform(0, 0.4) * rough) + membrane * rng.uniform(0, 0.5)
            bluish = rng.uniform(0.02, 0.5) if kind == "cytoplasm" else rng.uniform(0.35, 0.75)
            own = self._crop(rng, self.rough)
            bluish = bluish * (1 + 0.25 * cloud + rng.uniform(0.05, 0.3) * grain + rng.uniform(0, 0.35) * own)
            if rng.random() < 0.4:  # vacuoles
                white = np.clip((self._crop(rng, self.rough) - rng.uniform(0.2, 1.3)) * rng.uniform(1, 5), 0, 1)
                white = 1 - white * rng.uniform(0.3, 1.0)
                eosin, bluish = eosin * white, bluish * white
            return np.clip(eosin, 0, None), np.clip(bluish, 0, None)
        if kind == "clear":
            eosin = 0.08 + membrane * rng.uniform(0.3, 1.2) + 0.04 * grain
            eosin = eosin + np.clip(self._crop(rng, self.fibres) - 0.75, 0, 1) * rng.uniform(0, 1)
            return np.clip(eosin, 0, None), np.clip(rng.uniform(0, 0.15) * eosin, 0, None)
        if kind == "mucus":
            wisps = np.clip(self._crop(rng, self.fibres) - 0.4, 0, 1)
            return 0.1 * wisps, rng.uniform(0.1, 0.5) * wisps + 0.02 * np.abs(grain)
        return np.full_like(cloud, 0.02), np.zeros_like(cloud)

    def _blood(self, rng):
        out = np.zeros((SIZE, SIZE), np.float32)
        rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
        cy, cx = rng.uniform(0, SIZE, 2)
        for _ in range(int(rng.uniform(3, 40))):
            y, x = np.array([cy, cx]) + rng.normal(0, rng.uniform(15, 60), 2)
            radius, stretch = rng.uniform(8, 15), rng.uniform(0.7, 1.4)
            d = np.hypot((rows - y) * stretch, (columns - x) / stretch)
            out = np.maximum(out, (0.7 + 0.3 * d / radius) * np.clip(radius - d, 0, 1))
        return out * rng.uniform(0.7, 1.5)


def depth_in(labels):
    """Return the distance of each pixel to the rim of its own nucleus."""
    cut = np.zeros(labels.shape, dtype=bool)
    cut[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    cut[1:] |= labels[1:] != labels[:-1]
    return ndimage.distance_transform_edt((labels > 0) & ~cut).astype(np.float32)


def _area(rng):
    """Return the median area of a tile's nuclei in pixels: 20x to 40x, lymphocytes to tumour."""
    return float(np.exp(rng.uniform(np.log(90), np.log(900))))


def _nuclei(source):
    """Yield each whole nucleus of a source as (darkness, mask, elongation, solidity, angle)."""
    height, width = source.labels.shape
    for label, box in enumerate(ndimage.find_objects(source.labels), start=1):
        if box is None:
            continue
        rows, columns = box
        if rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width:
            continue
        mask = source.labels[box] == label
        if mask.sum() < 80:
            continue
        ys, xs = np.nonzero(mask)
        cov = np.cov(np.stack([xs, ys])) + np.eye(2) / 12
        values, vectors = np.linalg.eigh(cov)
        ellipse = 4 * np.pi * np.sqrt(values.prod())
        angle = float(np.degrees(np.arctan2(-vectors[1, 1], vectors[0, 1])))
        dark = np.where(mask, source.dark[box], source.dark[box][mask].mean()).astype(np.float32)
        yield np.clip(dark, 0.1, 1.6), mask, float(np.sqrt(values[1] / values[0])), float(mask.sum() / ellipse), angle


def _turned(nucleus, area, degrees, squeeze):
    """Return mask and darkness of a nucleus turned counter-clockwise and resized to an area in pixels."""
    dark, mask = nucleus[0], nucleus[1]
    factor = float(np.sqrt(area / mask.sum()))
    size = max(3, round(mask.shape[1] * factor)), max(3, round(mask.shape[0] * factor))
    shape = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    texture = Image.fromarray(dark).resize(size, Image.Resampling.BILINEAR)
    shape = shape.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    texture = texture.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=float(dark.mean()))
    return np.asarray(shape) > 0.5, np.asarray(texture)


class Painter:
    """Gives amounts of stain a colour, and the picture a focus, a grain and a compression."""

    def paint(self, rng, amounts):
        """Return RGB (h, w, 3) of amounts (h, w, 3)."""
        strength = np.exp(rng.uniform(np.log((0.45, 0.18)), np.log((1.4, 0.95))))
        h = np.array([0.62, 0.70, 0.34]) + rng.normal(0, 1, 3) * (0.09, 0.05, 0.10)
        mix = rng.random()
        e = (1 - mix) * np.array([0.07, 0.95, 0.25]) + mix * np.array([0.24, 0.80, 0.56])
        e = e + rng.normal(0, 1, 3) * (0.05, 0.04, 0.08)
        third = np.array([0.1, 0.6, 0.75]) if rng.random() < 0.7 else np.array([0.4, 0.55, 0.7])
        vectors = np.stack([np.clip(v, 0.01, None) / np.linalg.norm(v) for v in (h, e, third)]).astype(np.float32)
        vectors[:2] *= strength[:, None].astype(np.float32)
        glass = rng.uniform(0.86, 1.0) * (1 - np.abs(rng.normal(0, 0.02, 3)))
        light = 255 * glass.astype(np.float32) * np.power(np.float32(10), -(amounts @ vectors))
        return self.photograph(rng, light.astype(np.float32))

    def photograph(self, rng, light):
        """Return light (h, w, 3) as a scanner with some blur, noise, contrast and compression gives it."""
        size = light.shape[1], light.shape[0]
        if rng.random() < 0.3:  # a scan at a lower magnification, enlarged
            factor = rng.uniform(1.2, 2.2)
            small = (max(8, round(size[0] / factor)), max(8, round(size[1] / factor)))
            picture = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
            light = np.asarray(picture.resize(small, Image.Resampling.BOX).resize(size, Image.Resampling.BILINEAR))
            light = light.astype(np.float32)
        elif rng.random() < 0.6:
            sigma = rng.uniform(0.3, 1.6)
            light = ndimage.gaussian_filter(light, (sigma, sigma, 0))
        elif rng.random() < 0.3:  # sharpened by the scanner
            blurred = ndimage.gaussian_filter(light, (1.2, 1.2, 0))
            light = light + rng.uniform(0.2, 1.0) * (light - blurred)
        if rng.random() < 0.3:
            light = 255 * np.power(np.clip(light, 0, 255) / 255, rng.uniform(0.8, 1.25))
        light = light + rng.normal(0, 1, light.shape).astype(np.float32) * np.float32(rng.uniform(0.5, 5))
        image = np.clip(light, 0, 255).astype(np.uint8)
        if rng.random() < 0.5:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG", quality=int(rng.integers(35, 96)))
            image = np.asarray(Image.open(stream).convert("RGB"))
        return image
