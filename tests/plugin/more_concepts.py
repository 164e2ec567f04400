"""A package of a user's own that adds one member to each family; tests/test_registry.py installs it."""

from __future__ import annotations

import numpy as np
from skimage.measure import label

from conceptkit.guide.discouraging import METHODS
from conceptkit.guide.weighting import Fixed
from conceptkit.pathology.measures import MEASURES


@MEASURES.register(
    "redness", unit="grey levels", kind="continuous", meaning="Red patches.", source="this package", needs="pixels"
)
def redness(images):
    return images[..., 0].mean(axis=(1, 2))


def dark(weights, device):
    """Nuclei are connected dark pixels."""
    return lambda image, mpp: label(image.mean(axis=2) < 100).astype(np.int32)


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
    return Fixed(0.5)


@METHODS.register("spread", needs_whole=True)
def spread(task, read, held, target, factors):
    """Press on the variance of the output of the discouraged head."""
    return held.var()


def short(discouraged):
    return {"epochs": 2, "warmup": 1, "trunk": (8,), "weighting": "halved", "method": "spread", "reversal": "late"}


def late(progress):
    return progress**4
