"""How far a run is: read from its folder, without disturbing the process that works on it."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet as pq

from conceptkit.errors import InputError
from conceptkit.files.atomic import LOCK_FILE
from conceptkit.grid.folder import GRID_FILE, PLAN_FILE, RUN_FILE
from conceptkit.options.base import Notify, Progress
from conceptkit.options.study import Status as Options
from conceptkit.records import RECORD_FILE, load_record
from conceptkit.runs.opening import UNFINISHED

METRICS_FILE = "metrics.csv"
"""What ``--log csv`` writes, one line per epoch"""

QUIET_MINUTES = 10.0
"""Time without a new file after which a run without a lock counts as stopped"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One network with a log."""

    name: str
    epoch: int
    losses: Mapping[str, float]
    """Last value of each column of the log"""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run is."""

    path: str
    state: str
    """``finished``, ``running``, ``stopped`` (nothing has been written for ten minutes) or ``empty``"""
    kind: str
    """``probe``, ``guide``, ``grid``, …; ``store`` for activations, ``tiles`` for tiling, ``measures`` for
    measuring; empty where unknown"""
    done: int | None
    """Networks, rows, slides or patches that are finished"""
    total: int | None
    """Total number, if known"""
    unit: str
    minutes_quiet: float | None
    """Time since the last write"""
    minutes_left: float | None = None
    """Time left of a running grid, by the speed of its finished runs; ``None`` before the first"""
    trainings: tuple[Training, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {"schema": "conceptkit/status/1", **asdict(self)}


def status(options: Options, *, progress: Progress | None = None, notify: Notify | None = None) -> RunStatus:
    """Return how far a run is, see :func:`read_status`."""
    return read_status(options.path)


def read_status(run: str | Path) -> RunStatus:
    """Return how far a run is.

    Raises :class:`InputError` when there is nothing of that name, or a record cannot be read.

    Parameters
    ----------
    run : a run folder, an activation store (``.h5``), or the table that ``tile`` or ``measure`` is writing
    """
    path = Path(run)
    parts = path.with_name(path.name + ".parts")
    if parts.is_dir():
        return _parts(path, parts)
    if path.is_file() and path.suffix == ".h5":
        return _store(path)
    if not path.is_dir():
        raise InputError(f"run: there is no folder {path}; name a run folder, a store, or a table being written.")
    if (path / RECORD_FILE).is_file():
        return _finished(path)
    return _unfinished(path)


def _finished(path: Path) -> RunStatus:
    record = load_record(path)
    kind = record.schema.split("/")[1]
    runs = getattr(record, "runs", None)
    rows = getattr(record, "rows", ())
    done = len(rows) if runs is None else len(runs)
    failed = dict(getattr(record, "failed", {}))
    return RunStatus(
        path=str(path),
        state="finished",
        kind=kind,
        done=done,
        total=done + len(failed),
        unit="rows" if runs is None else "networks",
        minutes_quiet=_quiet(path),
        failed=failed,
        notes=tuple(record.notes),
    )


def _unfinished(path: Path) -> RunStatus:
    grid = (path / GRID_FILE).is_file()
    if grid:
        finished = sorted(path.glob(f"runs/*/{RUN_FILE}"))
        begun = [p for p in (path / "runs").glob(".*") if p.is_dir()] if (path / "runs").is_dir() else []
    else:
        finished = sorted(path.glob("checkpoints/*/checkpoint.json"))
        begun = _states(path, {p.parent.name for p in finished})
    trainings = tuple(_trainings(path))
    quiet = _quiet(path)
    held = _is_locked(path / LOCK_FILE)
    busy = quiet is not None and quiet < QUIET_MINUTES if held is None else held
    total = _planned(path / PLAN_FILE) if grid else None
    left = _minutes_left(path / PLAN_FILE, finished, total) if busy and total is not None else None
    notes = [f"{len(begun)} in training" if busy else f"{len(begun)} begun"] if begun else []
    written = bool(finished or begun or trainings or grid)
    if written and not busy:
        notes.append(f"run the same command with --out {path} to continue")
    # A process that holds the folder works, though a probe writes nothing there before its end.
    state = "running" if busy and (written or held) else "stopped" if written else "empty"
    return RunStatus(
        path=str(path),
        state=state,
        kind="grid" if grid else "guide" if written else "",
        done=len(finished),
        total=total,
        unit="runs" if grid else "networks",
        minutes_quiet=quiet,
        minutes_left=left,
        trainings=trainings,
        notes=tuple(notes),
    )


def _states(path: Path, finished: Collection[str]) -> list[Path]:
    """Return the states of trainings that have begun and not ended; their names end in a digest of the options."""
    states = sorted((path / UNFINISHED).glob("*.ckpt"))
    return [p for p in states if p.stem.rpartition("-")[0] not in finished]


def _planned(path: Path) -> int | None:
    """Return how many runs a grid's last command wants; ``None`` where that was not noted."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(path.read_text(encoding="utf-8"))["runs"])
    return None


def _minutes_left(plan: Path, finished: Sequence[Path], total: int) -> float | None:
    """Return the time for the runs that are missing, at the speed of those made since the last command began."""
    times = []
    with contextlib.suppress(OSError):
        begun = plan.stat().st_mtime
        times = [t for p in finished if (t := p.stat().st_mtime) > begun]
    if not times or total <= len(finished):
        return None
    return (max(times) - begun) / 60 / len(times) * (total - len(finished))


def _trainings(path: Path) -> Iterator[Training]:
    for log in sorted(path.rglob(METRICS_FILE)):
        last: dict[str, float] = {}
        # A line may be half written: what cannot be read yet is read next time.
        with contextlib.suppress(OSError, ValueError, csv.Error), log.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                last |= {k: float(v) for k, v in row.items() if k and v}
        if last:
            epoch = int(last.pop("epoch", last.pop("step", 0)))
            last.pop("step", None)
            place = log.parent.relative_to(path).parts
            name = "/".join(p for p in place if p not in ("logs", "csv", "runs", "version_0"))
            yield Training(name=name or path.name, epoch=epoch, losses=last)


def _store(path: Path) -> RunStatus:
    try:
        with h5py.File(path, "r", locking=False) as file:
            total, done = len(file["state"]), int(np.count_nonzero(file["state"][...]))
    except (OSError, RuntimeError, KeyError, ValueError):
        raise InputError(f"run: {path} is not an activation store, or is being written at the moment.") from None
    quiet = (time.time() - path.stat().st_mtime) / 60
    state = "finished" if done == total else "running" if quiet < QUIET_MINUTES else "stopped"
    return RunStatus(
        path=str(path), state=state, kind="store", done=done, total=total, unit="rows", minutes_quiet=quiet
    )


def _parts(path: Path, parts: Path) -> RunStatus:
    """Return how far ``tile`` is, which keeps a part per slide, or ``measure``, whose parts hold some patches each."""
    slides = patches = 0
    measuring = False
    for part in parts.glob("*.parquet"):
        slides += 1
        with contextlib.suppress(OSError, pyarrow.ArrowException):  # it may go while we look
            head = pq.ParquetFile(part)
            patches += head.metadata.num_rows
            measuring |= "side" not in head.schema_arrow.names  # each tile of tile's has one
    done, kind, unit = (patches, "measures", "patches") if measuring else (slides, "tiles", "slides")
    quiet = _quiet(parts)
    state = "running" if quiet is not None and quiet < QUIET_MINUTES else "stopped"
    return RunStatus(path=str(path), state=state, kind=kind, done=done, total=None, unit=unit, minutes_quiet=quiet)


def _quiet(folder: Path) -> float | None:
    """Return the minutes since a file below ``folder`` was written; ``None`` without any."""
    times = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a temporary file may go while we look
            if path.is_file() and path.name != LOCK_FILE:
                times.append(path.stat().st_mtime)
    return max(0.0, (time.time() - max(times)) / 60) if times else None


def _is_locked(path: Path) -> bool | None:
    """Return whether a process of this machine holds the lock; ``None`` where that cannot be known."""
    if not path.is_file():
        return None
    try:
        import fcntl

        with path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            fcntl.flock(handle, fcntl.LOCK_UN)
    except (ImportError, OSError):
        return None
    return False
