"""Nuclei by a small network that comes with the package, or by weights trained on one's own masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed
from torch import Tensor

from conceptkit.errors import InputError
from conceptkit.files.atomic import replacing
from conceptkit.images.pixel_values import check_enlarged, nearest
from conceptkit.pathology.compact_network import STRIDE, CompactNetwork, folded
from conceptkit.pathology.maskrcnn import device_of
from conceptkit.pathology.nuclei import Found
from conceptkit.pathology.scales import ASSUMED_MPP

SCHEMA = "conceptkit/compact/1"

BUNDLED = Path(__file__).with_name("compact.safetensors")
"""Weights that come with the package; their data, licence and scores are in docs/nuclei.md."""

FINEST, COARSEST = 0.2, 0.36
"""Microns per pixel that the network sees: an image outside is brought to the nearer of them. Weights that were trained
on coarser images say so."""

REACH = 96
"""Pixels from which a pixel's maps depend on others, at most (a multiple of :data:`STRIDE`)."""

WINDOW = 1536
"""Side of the largest part that goes through the network at once."""

SMALLEST = 2.0
"""Area in µm² below which nothing counts as a nucleus."""

_SMOOTH, _HOLE, _RADIUS, _BY_RIM = 0.25, 12.0, 3.0, 0.6
"""µm by which maps are smoothed; µm² up to which holes are filled; µm from the rim at which a nucleus is deepest;
weight of the distance to the rim. Chosen on ten MoNuSeg images, with an early state of the bundled weights."""

Maps = NDArray[np.float32]


@dataclass
class Compact:
    """A network and how its maps become nuclei."""

    network: torch.nn.Module
    """With its normalisations folded into its convolutions."""
    state: dict[str, Tensor]
    """Its weights as trained."""
    device: torch.device
    types: tuple[str, ...] = ()
    """Names of the types of nuclei that it distinguishes."""
    threshold: float = 0.5
    """Least probability of a nuclear pixel."""
    apart: float = 1.25
    """Least distance of the middles of two nuclei, in µm."""
    flips: bool = False
    """Whether maps are means over an image and its mirror images: four times the time."""
    window: int = WINDOW
    coarsest: float = COARSEST
    """Most microns per pixel that the network sees"""

    def segment(self, image: NDArray[np.uint8], mpp: float | None = None) -> NDArray[np.int32]:
        """Return the nuclei of an image (h, w, 3) as labels, (h, w), 0 where there is none."""
        return self.segment_with_maps(image, mpp)[0]

    def __call__(self, image: NDArray[np.uint8], mpp: float | None = None) -> NDArray[np.int32]:
        """Return :meth:`segment`."""
        return self.segment(image, mpp)

    def detailed(self, image: NDArray[np.uint8], mpp: float | None = None) -> Found:
        """Return nuclei with their mean probability, and with the type that most of their pixels' probability has."""
        labels, maps = self.segment_with_maps(image, mpp)
        number = int(labels.max())
        areas = np.maximum(np.bincount(labels.ravel(), minlength=number + 1), 1)
        means = [np.bincount(labels.ravel(), m.ravel(), number + 1) / areas for m in (maps[0], *maps[2:])]
        numbers = range(1, number + 1)
        types = {k: self.types[int(np.argmax([m[k] for m in means[1:]]))] for k in numbers} if self.types else {}
        return Found(labels, {k: float(means[0][k]) for k in numbers}, types)

    def segment_with_maps(self, image: NDArray[np.uint8], mpp: float | None) -> tuple[NDArray[np.int32], Maps]:
        """Return labels (h, w), and the maps (2 + types, h, w) of nucleus, depth and types, from 0 to 1."""
        height, width = image.shape[:2]
        own = ASSUMED_MPP if mpp is None or not np.isfinite(mpp) else mpp
        working = min(max(own, FINEST), self.coarsest)
        factor = own / working
        pixels = image
        if factor != 1:
            size = (max(8, round(width * factor)), max(8, round(height * factor)))
            check_enlarged(size)
            how = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX
            pixels = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, how))
        maps = self.maps(pixels)
        labels = nuclei_of(maps, self.threshold, self.apart, working)
        if factor == 1:
            return labels, maps
        return nearest(labels, height, width), np.stack([nearest(m, height, width) for m in maps])

    def maps(self, image: NDArray[np.uint8]) -> Maps:
        """Return the maps (2 + types, h, w) of an image at the network's resolution, which do not depend on windows."""
        if not self.flips:
            return self._maps(image)
        turns: list[tuple[slice, ...]] = [np.s_[y, x] for y in (np.s_[:], np.s_[::-1]) for x in (np.s_[:], np.s_[::-1])]
        found = [self._maps(np.ascontiguousarray(image[t]))[(slice(None), *t)] for t in turns]
        return np.asarray(np.mean(found, axis=0), dtype=np.float32)

    def _maps(self, image: NDArray[np.uint8]) -> Maps:
        height, width = image.shape[:2]
        below, right = -height % STRIDE, -width % STRIDE
        padded = np.pad(
            image, ((0, below), (0, right), (0, 0)), mode="symmetric" if min(height, width) > 16 else "edge"
        )
        out = np.empty((2 + len(self.types), *padded.shape[:2]), dtype=np.float32)
        for rows, whole_rows in _windows(padded.shape[0], self.window):
            for columns, whole_columns in _windows(padded.shape[1], self.window):
                part = self._forward(padded[whole_rows, whole_columns])
                inner = tuple(
                    slice(keep.start - whole.start, keep.stop - whole.start)
                    for keep, whole in ((rows, whole_rows), (columns, whole_columns))
                )
                out[:, rows, columns] = part[(slice(None), *inner)]
        return out[:, :height, :width]

    def _forward(self, part: NDArray[np.uint8]) -> Maps:
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(part)).to(self.device)[None].permute(0, 3, 1, 2)
            maps = self.network(x.float().div(255).contiguous(memory_format=torch.channels_last))[0]
            maps[:2] = maps[:2].sigmoid()
            if self.types:
                maps[2:] = maps[2:].softmax(dim=0)
            found: Maps = maps.cpu().numpy()
        return found


def nuclei_of(maps: Maps, threshold: float, apart: float, mpp: float) -> NDArray[np.int32]:
    """Return labels (h, w) of maps (2, h, w) or more: each nucleus grows from a peak down to its rim.

    Peaks are those of the predicted depth together with the distance to the rim of all that is nuclear: the prediction
    parts nuclei that touch, and the distance keeps its noise from parting one.

    Parameters
    ----------
    threshold : least probability of a nuclear pixel
    apart : least distance between two peaks, in µm
    mpp : microns per pixel of the maps
    """
    inside = _filled(ndimage.gaussian_filter(maps[0], _SMOOTH / mpp) > threshold, _HOLE / mpp**2)
    depth = ndimage.gaussian_filter(maps[1], 2 * _SMOOTH / mpp)
    rim = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside).astype(np.float32), _SMOOTH / mpp) * mpp
    height = (1 - _BY_RIM) * depth + _BY_RIM * np.minimum(rim / _RADIUS, 1)
    peaks = peak_local_max(  # type: ignore[no-untyped-call]
        height, min_distance=max(1, round(apart / mpp)), labels=inside.astype(np.int32), exclude_border=False
    )
    markers = np.zeros(inside.shape, dtype=np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-height, markers, mask=inside)  # type: ignore[no-untyped-call]
    areas = np.bincount(labels.ravel())
    keep = areas >= SMALLEST / mpp**2
    keep[0] = False
    numbers = np.zeros(len(areas), dtype=np.int32)
    numbers[keep] = np.arange(1, int(keep.sum()) + 1)
    return np.asarray(numbers[labels])


def _filled(inside: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    """Return pixels with holes up to a size filled: the pale inside of a nucleus."""
    outside, _ = ndimage.label(~inside)
    small = np.bincount(outside.ravel()) <= largest
    small[0] = False
    return np.asarray(inside | small[outside])


def _windows(length: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Yield which part of a side is kept of each window, and the window with what its maps depend on."""
    if length <= window:
        yield slice(0, length), slice(0, length)
        return
    step = (window - 2 * REACH) // STRIDE * STRIDE
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), slice(max(0, start - REACH), min(length, stop + REACH))


def open_compact(weights: Path | None, device: str) -> Callable[[NDArray[np.uint8], float | None], NDArray[np.int32]]:
    """Return the method, with the bundled weights or those of ``nuclei train``."""
    return load_compact(weights or BUNDLED, device=device)


def load_compact(path: Path, *, device: str = "auto") -> Compact:
    """Open weights of :func:`save_compact`; raises :class:`InputError` when the file is not one."""
    if not path.is_file():
        raise InputError(f"nuclei-weights: file {path} not found.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["conceptkit"])
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  # safe_open has only keys()
        if about["schema"] != SCHEMA:
            raise KeyError(about["schema"])
        return compact_of(state, about, device_of(device))
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError, TypeError):
        raise InputError(f"nuclei-weights: {path} is not a checkpoint of conceptkit's compact.") from None


def compact_of(state: dict[str, Tensor], about: dict[str, Any], device: torch.device) -> Compact:
    """Return the method of weights and of what their file says about them."""
    types = tuple(str(name) for name in about.get("types", ()))
    network = CompactNetwork(len(types))
    network.load_state_dict(state)
    return Compact(
        folded(network.eval()).to(device).to(memory_format=torch.channels_last),
        state,
        device,
        types,
        threshold=float(about["threshold"]),
        apart=float(about["apart"]),
        coarsest=float(about.get("coarsest", COARSEST)),
    )


def save_compact(state: dict[str, Tensor], about: dict[str, Any], path: Path) -> None:
    """Write weights as one fp16 safetensors file."""
    half = {key: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous() for key, v in state.items()}
    with replacing(path) as temporary:
        save_file(half, temporary, metadata={"conceptkit": json.dumps({"schema": SCHEMA, **about})})
