"""Options of the commands around a study: ``init``, ``splits``, ``status``, ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.options.base import Command, StudyCommand, declare, option, table_given


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
    """Print how many patches, patients and slides each split, center and label has."""

    name = "splits"
    example = "splits --table patches.csv"
    runner = "conceptkit.commands.splits:splits"

    table: Any = option(None, parse=table_given)
    """Patch table (CSV or Parquet), instead of the study's."""


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
