"""Options of the commands around a study: ``init``, ``splits``, ``status``, ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.options.base import Command, Names, StudyCommand, declare, option, table_given


@declare
class Init(Command):
    """Write a commented conceptkit.toml from the files in a folder."""

    name = "init"
    example = "init mystudy"
    runner = "conceptkit.commands.init:init"
    caches = False

    folder: str | Path = option(".", argument=True, metavar="FOLDER")
    """Folder of the study; it is created if needed."""
    table: str | Path | None = None
    """Patch table; default: the one in the folder."""


@declare
class Splits(StudyCommand):
    """Count patches, patients and slides by split, center and label; or make splits that keep patients intact."""

    name = "splits"
    example = "splits --table patches.csv --make train=0.7,val=0.1,internal=0.2 --out split.csv"
    runner = "conceptkit.commands.splits:splits"

    table: Any = option(None, parse=table_given)
    """Patch table (CSV or Parquet), instead of the study's."""
    make: str | None = option(None, metavar="PARTS")
    """Splits to make: shares of the patients, such as train=0.7,val=0.1,internal=0.2, or a number of folds."""
    out: str | Path | None = None
    """New table (CSV or Parquet): the old columns, and the one of the splits."""
    preserve_centers: bool = False
    """Keep each center in one part."""
    balance: Names = ()
    """Concepts to balance besides the label, comma-separated: classes, or quarters of continuous values."""
    tolerance: float = option(0.1, minimum=0)
    """Largest deviation of a part's number of patients, as a share of that number."""
    group: str | None = None
    """Column of patients, never split across parts."""
    center: str | None = None
    """Column of centers; default: center; none for none."""
    label: str | None = None
    """Column whose classes are balanced and occur in every part; default: the study's label; none for none."""
    column: str | None = None
    """Name of the new column; default: that of the study's splits, or fold."""
    overwrite: bool = False
    """Replace a file, or a column, that exists."""
    seconds: float = option(30, minimum=1)
    """Time limit of the solver; the best splits by then are written, with their gap."""
    seed: int = option(0, minimum=0)
    """Seed of the order of patients, which decides between equally good splits."""


@declare
class Status(Command):
    """Print how far a run is; the process that works on it is not disturbed."""

    name = "status"
    example = "status runs/guide-001"
    runner = "conceptkit.commands.status:status"
    caches = False

    path: str | Path = option(argument=True, metavar="RUN")
    """Run folder, activation store, or table being written."""


@declare
class Doctor(Command):
    """Check the installation and report what each missing package disables; exit code 1 if it is unusable."""

    name = "doctor"
    example = "doctor"
    runner = "conceptkit.commands.doctor:doctor"

    offline: bool = False
    """Do not check whether the hub answers."""
