"""Stain augmentation: copies of a patch with other amounts and other vectors of hematoxylin and eosin."""

from __future__ import annotations

import hashlib

import numpy as np

from conceptkit.images.decoding import Pixels
from conceptkit.pathology.colour import RUIFROK, optical_density

DOUBLINGS = 0.6
"""A stain's amount is multiplied by 2^u with u uniform between minus and plus this"""

TURN = 0.07
"""Standard deviation of each coordinate of the change of a unit stain vector: about 6 degrees"""


def restained_at_random(pixels: Pixels, name: str) -> Pixels:
    """Return the patch (h, w, 3) with other stains, which depend on ``name`` only.

    Amounts of hematoxylin and eosin, by Ruifrok and Johnston's vectors, are multiplied, and shown by vectors that are
    turned; the remainder, and what is less than none, stay.

    Sources: Ruifrok and Johnston, 2001; Tellez et al., 2018, for amounts; Tellez et al., 2019, for the comparison
    """
    chance = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    vectors = RUIFROK.copy()
    turned = np.clip(vectors[:2] + chance.normal(0.0, TURN, (2, 3)), 0.01, None)
    vectors[:2] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    amounts = optical_density(pixels) @ np.linalg.inv(RUIFROK)
    power = chance.uniform(-DOUBLINGS, DOUBLINGS, 2)
    # A pixel of glass has none of a stain, and noise below none is not more of it.
    amounts[..., :2] *= np.where(amounts[..., :2] > 0, 2.0**power, 1.0)
    light = 255.0 * 10.0 ** -(amounts @ vectors)
    return np.clip(np.round(light), 0, 255).astype(np.uint8)
