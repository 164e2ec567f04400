"""Options of ``predictivity``."""

from __future__ import annotations

from conceptkit.options.base import Names, RecordCommand, declare, option, seed_list
from conceptkit.options.shared import TableOptions


@declare
class Predictivity(TableOptions, RecordCommand):
    """Measure how well concept values predict the main label without any image."""

    name = "predictivity"
    example = "predictivity --table patches.csv --concept area_um2,count"
    runner = "conceptkit.commands.predictivity:predictivity"

    concepts: Names | None = option(None, flag="--concept")
    """Concepts, in the order in which sets of them grow, comma-separated; default: the study's."""
    alone: Names | None = None
    """Confounders, each of which is the only input; default: the concepts that the study discourages, and center."""
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), parse=seed_list)
    """Number of seeds (5), or a list (1001,822)."""
