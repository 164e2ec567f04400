"""The folder of a grid: what its runs have in common, and which are finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conceptkit.errors import InputError
from conceptkit.grid.plan import folder_name
from conceptkit.records import RECORD_FILE, GridCell, to_json, write_atomically

GRID_FILE = "grid.json"
"""What all runs of the folder have in common"""

NETWORKS = "networks"
"""Key of that file: network → digest of its weights"""

RUN_FILE, CHECKPOINT = "run.json", "checkpoint"

PLAN_FILE = "plan.json"
"""Number of runs of the last command; written when it begins, so that its age tells the speed"""

SCHEMA = "conceptkit/grid-folder/1"


def claim(folder: Path, common: Mapping[str, Any], networks: Mapping[str, str] | None = None) -> None:
    """Record what all runs of the folder have in common, or check that it is what was recorded.

    Parameters
    ----------
    networks : network → digest of its weights; one may be added later

    Raises
    ------
    InputError
        when the folder holds something else, which is left unchanged
    """
    path = folder / GRID_FILE
    networks = dict(networks or {})
    common = json.loads(to_json({"schema": SCHEMA, **common}))
    if not path.is_file():
        if (folder / RECORD_FILE).exists():
            raise InputError(f"out: {folder} holds an earlier run that is not a grid; name another folder.")
        write_atomically(path, to_json({**common, NETWORKS: networks}))
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        schema = kept["schema"]
        before = dict(kept.pop(NETWORKS, {}))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"out: {path} cannot be read; name another folder.") from None
    if schema != SCHEMA:
        raise InputError(f"out: {folder} holds a grid of another version ({schema}); name another folder.")
    for key in dict.fromkeys([*kept, *common]):
        _check_same(folder, key, kept.get(key), common.get(key))
    for name in before.keys() & networks.keys():
        _check_same(folder, f"weights_sha256 of {name}", before[name], networks[name])
    if networks.keys() - before.keys():
        write_atomically(path, to_json({**kept, NETWORKS: {**before, **networks}}))


def _check_same(folder: Path, key: str, before: Any, now: Any) -> None:
    if before != now:
        raise InputError(
            f"out: {folder} holds runs of another grid ({key} was {_shown(before)}, is {_shown(now)}); name another "
            "folder."
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}…"


def note_plan(folder: Path, runs: int) -> None:
    """Record how many runs the folder will hold, for ``conceptkit status``."""
    write_atomically(folder / PLAN_FILE, to_json({"runs": runs}))


def run_path(folder: Path, cell: GridCell, seed: int) -> Path:
    """Return the folder of one run."""
    return folder / "runs" / folder_name(cell, seed)


def is_kept(folder: Path, cell: GridCell, seed: int) -> bool:
    """Return whether a run is finished."""
    return (run_path(folder, cell, seed) / RUN_FILE).is_file()


def remove_partial(folder: Path) -> None:
    """Remove what runs of a killed process left behind."""
    for path in (folder / "runs").glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
