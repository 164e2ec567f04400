"""A package of a user's own that adds one member to each family; tests/test_families.py installs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage.measure import label
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from conceptkit.guide.arms import as_arm
from conceptkit.guide.discouraging import as_method
from conceptkit.guide.weighting import Fixed
from conceptkit.models.presets import Preset
from conceptkit.pathology.adapters import Adapted
from conceptkit.pathology.batch import as_measure
from conceptkit.pathology.disturbances import Disturbance
from conceptkit.probe.remedies import as_remedy


def listing(images: Path, *, out: Path, mpp: float, skip: Sequence[str] = (), center: str = "here") -> Adapted:
    """Take the images that a text file lists.

    Parameters
    ----------
    images : text file with one path per line
    mpp : microns per pixel
    skip : line to skip
    center : center of all
        images
    """
    lines = [line for line in images.read_text().splitlines() if line not in skip]
    return Adapted(pd.DataFrame({"patch_id": lines, "image": lines, "mpp": mpp, "center": center}), ("A note.",))


def doubled(forward, layer, images):
    """Return the gradient of twice the logit, halved."""
    kept = []

    def keep(module, inputs, output):
        kept.append(output.requires_grad_())

    hook = layer.register_forward_hook(keep)
    try:
        (gradient,) = torch.autograd.grad(2 * forward(images).sum(), kept)
    finally:
        hook.remove()
    return gradient / 2


@as_arm("the main task only, for twice as many epochs")
def twice(given):
    """Return a single-task network that is trained for longer."""
    options = given.options.replace(epochs=2 * given.options.epochs)
    return given.arm("twice", given.tasks[: given.kept], options=options)


@as_method(needs_whole=True)
def spread(task, read, held, target, factors):
    """Press on the variance of the output of the discouraged head."""
    return held.var()


darker = Disturbance(
    lambda pixels, share: np.round(pixels * (1 - share)).astype(np.uint8),
    lambda chance: float(chance.uniform(0, 0.5)),
    "1",
    "how much darker the patch is",
)


@as_measure(unit="grey levels", meaning="Red patches.", source="this package", needs="pixels")
def redness(images):
    """Return the mean of the red channel of (n, h, w, 3) images, (n,)."""
    return images[..., 0].mean(axis=(1, 2))


def dark(weights, device):
    """Nuclei are connected dark pixels."""
    return lambda image, mpp: label(image.mean(axis=2) < 100).astype(np.int32)


def rmsprop(groups, options, *, fused):
    """Root mean square propagation."""
    return torch.optim.RMSprop(groups, lr=options.lr)


def deviation(x, view):
    """Return the standard deviation over positions."""
    return view.patches(x).flatten(2).std(2)


def nearest(X, y, groups, classes):
    """Fit the mean of the five nearest rows."""
    return (KNeighborsClassifier if classes else KNeighborsRegressor)(5).fit(X, y)


def short(discouraged):
    """Train for two epochs, with the other members of this package."""
    own = {"weighting": "halved", "method": "spread", "reversal": "late", "optimizer": "rmsprop"}
    return {"epochs": 2, "warmup": 1, "trunk": (8,), **own}


def late(progress):
    """Rise slowly at first."""
    return progress**4


class Brighten:
    """A stain method that adds the reference's mean brightness minus the slide's."""

    def __init__(self, target):
        self.target = target

    @classmethod
    def fit(cls, reference):
        return cls(reference.mean())

    @staticmethod
    def measure(images):
        return images.mean()

    def transform(self, images, *, source=None):
        shift = self.target - (images.mean() if source is None else source)
        return np.clip(images + shift, 0, 255).astype(np.uint8)


def halved(task, value):
    """Weigh every task by one half."""
    return Fixed(0.5)


ours = Preset(repository="lab/ours", width=64, licence="MIT", source="unpublished")


@as_remedy("features halved")
def halving(X, label, center):
    """Halve the features."""
    return lambda A, of: A / 2
