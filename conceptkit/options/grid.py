"""Options of ``grid``."""

from __future__ import annotations

from conceptkit.options.base import declare, option, seed_list
from conceptkit.options.guide import Guided
from conceptkit.options.shared import JobOptions


def _by_semicolon(value: object) -> object:
    """Return the weightings in a text, which may hold commas themselves."""
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value


@declare
class Grid(Guided, JobOptions):
    """Train a grid of guided networks with their controls, and compare them in one table."""

    name = "grid"
    example = "grid --ablate 'count; count,-center' --seeds 3 --out runs/grid"
    runner = "conceptkit.commands.grid:grid"
    panel = "Grid"

    ablate: str | None = None
    """Models: paper, pairs, study (the list in the study file), a FILE with one model per line, or 'count;
    count,-center'; default: paper, or none with curves or affinities."""
    weightings: tuple[str, ...] | None = option(None, parse=_by_semicolon)
    """Loss weightings of every model, separated by semicolons: vanilla;uncertainty; default: both for paper, else
    --weighting."""
    controls: bool = option(True, flag="--controls/--no-controls")
    """Train controls too: random target, shuffled concept, single task with uncertainty, confounder only."""
    protocol: str = option("groups", choices=("groups", "paper"))
    """Comparison by groups, or paper for its resamples of patches too."""
    noise: tuple[float, ...] = option((), flag="--concept-noise")
    """Shares of concept values that are exchanged among rows, for a curve with a multimodal control: 0,0.25,0.5."""
    fraction: tuple[float, ...] = option((), flag="--concept-fraction")
    """Shares of training and validation rows that keep their concept values, for a curve: 0.01,0.1,1."""
    affinity: bool = False
    """Measure the effect of a step of each task on the losses of the others."""
    seeds: tuple[int, ...] = option((0, 1, 2), parse=seed_list)
    """Number of seeds (5), or a list (1001,822), of each network."""
    workers: int | None = option(1, minimum=1)
    """Number of processes."""
