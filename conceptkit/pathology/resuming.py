"""Long runs in parts: each finished part is kept, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pandas as pd

from conceptkit.errors import InputError
from conceptkit.files.atomic import replacing
from conceptkit.jobs import Engine, run_jobs


class PartJob(Protocol):
    """A job whose result is a part."""

    @property
    def key(self) -> str:
        """Name of the part: a digest of everything that its rows depend on."""

    @property
    def items(self) -> Sequence[str]:
        """Names of what the job works on."""


JobType = TypeVar("JobType", bound=PartJob)


@dataclass(frozen=True)
class Part:
    """The result of a job."""

    rows: pd.DataFrame | None
    """``None`` where no item of the job has rows."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Item → why it failed."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Item → why it has no rows although nothing failed."""


@dataclass(frozen=True)
class Finished:
    """The parts of all jobs."""

    rows: Mapping[int, pd.DataFrame]
    """Number of the job → its rows, in the order of the jobs."""
    skipped: Mapping[str, str]
    """Item → reason, of items without rows."""
    resumed: int
    """Items that an earlier run had finished."""


def run_in_parts(
    function: Callable[[JobType], Part],
    jobs: Sequence[JobType],
    *,
    folder: Path | None,
    engine: Engine | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
    is_complete: Callable[[JobType], bool] = lambda job: True,
) -> Finished:
    """Run the jobs whose parts are not in ``folder`` yet; a part without faults is kept there.

    Raises :class:`InputError` at the first fault, unless ``on_error`` is ``skip``.

    Parameters
    ----------
    folder : of the parts; ``None`` keeps none
    progress : receives the number of items that are finished, and of all
    is_complete : whether everything that a job writes besides its part exists
    """
    files = [None if folder is None else folder / f"{job.key}.parquet" for job in jobs]
    rows = {
        k: pd.read_parquet(file)
        for k, (file, job) in enumerate(zip(files, jobs, strict=True))
        if file is not None and file.is_file() and is_complete(job)
    }
    total = sum(len(job.items) for job in jobs)
    resumed = done = sum(len(jobs[k].items) for k in rows)
    if progress is not None and resumed:
        progress(resumed, total)
    todo = [k for k in range(len(jobs)) if k not in rows]
    skipped: dict[str, str] = {}
    for outcome in run_jobs(function, [jobs[k] for k in todo], engine or Engine()):
        k = todo[outcome.index]
        part = outcome.result or Part(None, dict.fromkeys(jobs[k].items, str(outcome.error)))
        if part.faults and on_error == "raise":
            raise InputError(next(iter(part.faults.values())))
        skipped |= {**part.faults, **part.skipped}
        if part.rows is not None:
            rows[k] = part.rows
            if (file := files[k]) is not None and not part.faults:  # what is repaired later is measured again
                with replacing(file) as temporary:
                    part.rows.to_parquet(temporary, index=False)
        done += len(jobs[k].items)
        if progress is not None:
            progress(done, total)
    # Processes finish in any order; the result does not depend on it.
    in_order = {item: skipped[item] for job in jobs for item in job.items if item in skipped}
    return Finished(dict(sorted(rows.items())), in_order, resumed)


def parts_folder(out: Path) -> Path:
    """Return the folder of a table's parts; absolute, as workers of a cluster may run in another folder."""
    return out.absolute().with_name(out.name + ".parts")


def file_state(path: Path | None) -> list[Any]:
    """Return the path, size and time of change of a file."""
    if path is None or not path.is_file():
        return [str(path)]
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]


def part_key(values: Sequence[Any]) -> str:
    """Return a digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
