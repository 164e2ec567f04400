"""Options of ``nuclei train`` and ``nuclei score``."""

from __future__ import annotations

from pathlib import Path

from conceptkit.families import NUCLEI
from conceptkit.options.base import Command, Options, declare, option


@declare
class AnnotatedOptions(Options):
    """Which annotated images."""

    panel = "Options"

    images: str | Path = option(argument=True, metavar="IMAGES.csv")
    """One row per image: image, mask (each nucleus its own integer), mpp, patient, …, as for `measure`."""


@declare
class NucleiTrain(AnnotatedOptions, Command):
    """Train the segmentation of nuclei on your own masks."""

    name = "nuclei train"
    example = "nuclei train images.csv --from compact --out nuclei.safetensors"
    runner = "conceptkit.commands.nuclei:train"
    caches = False

    start: str | Path = option("compact", flag="--from")
    """Where the training starts: compact (the bundled weights), weights of an earlier training, or maskrcnn (that of
    the paper, from ImageNet)."""
    out: str | Path = option(flag="--out -o")
    """Weights to write, .safetensors; the training's state is kept in OUT.parts until it ends."""
    steps: int = option(900, minimum=1)
    """Maximum number of steps of compact, a batch of 8 windows each; of maskrcnn the epochs, at most 50."""
    patience: int = option(4, minimum=1)
    """Validations (one every 100 steps) without a better AJI after which the training stops."""
    type_names: str | None = None
    """Also learn the types of nuclei that masks hold, compact only: a layout (pannuke, consep, lizard) or pairs such as
    1=neoplastic,2=inflammatory; not needed where a column `types` names files with types in words."""
    validation: float = option(0.2, minimum=0.0, maximum=0.9)
    """Share of the patients that are held out; at least one is."""
    seed: int = option(0, minimum=0)
    """Seed of everything that is drawn at random."""
    device: str = "auto"
    """auto, cpu, cuda, …"""


@declare
class NucleiScore(AnnotatedOptions, Command):
    """Compare found nuclei with annotated ones, per image."""

    name = "nuclei score"
    example = "nuclei score images.csv --by organ --figure worst.png"
    runner = "conceptkit.commands.nuclei:score"
    caches = False

    nuclei: str = option("compact", choices=NUCLEI)
    """Method that finds nuclei."""
    nuclei_weights: str | Path | None = None
    """Weights of `nuclei train`; default: the bundled ones."""
    by: str | None = None
    """Column whose groups are also summarised, such as organ."""
    patch_size: int = option(224, minimum=8)
    """Side of the tiles in which nuclei are counted, in pixels."""
    out: str | Path | None = option(None, flag="--out -o")
    """Table of the scores per image to write, .csv or .parquet."""
    figure: str | Path | None = None
    """PNG of the best, median and worst tiles to write: annotated nuclei green, found ones yellow."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
