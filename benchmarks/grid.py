"""The paper's whole grid on the embedded study, with its controls, from one cache: minutes, and what a SIGKILL costs.

    python benchmarks/grid.py                            # 8 models × 2 weightings × 3 seeds with controls
    python benchmarks/grid.py --kill                     # twice: undisturbed, and killed half way and resumed
    python benchmarks/grid.py --kill --models 'count; count,-center' --seeds 1 --epochs 2      # 5 networks, to try

Each grid is ``conceptkit guide --ablate`` as a process of its own. With ``--kill`` its second process, and all it has
started, is killed as soon as half of the runs are finished, by which time others are half trained; the same command
then goes on, and the two records are compared number by number. A cache counts as built whenever the file that
describes it appears; every other run finds it.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import conceptkit as ck
from conceptkit.records import GridRecord

WANTED_MINUTES = 40
"""On two cores"""

LOOK = 0.05
"""Seconds between two looks at the folder"""


@dataclass
class Watched:
    """What is seen of a grid while its processes work."""

    minutes: float = 0.0
    builds: set[tuple[str, int]] = field(default_factory=set)
    """Caches seen: path and time of writing"""
    killed_at: int | None = None
    """Finished runs at the kill"""


def finished(folder: Path) -> int:
    """Return how many runs lie in the folder."""
    return len(list(folder.glob("runs/*/run.json")))


def work(command: list[str], folder: Path, watched: Watched, *, kill_at: int | None = None) -> None:
    """Run the command to its end, or kill it and what it has started once so many runs are finished."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (folder.parent / f"{folder.name}.txt").open("a") as printed:
        process = subprocess.Popen(
            [*command, "--out", str(folder)],
            cwd=folder.parent,  # where no study file lies, so that the study is the embedded one
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                for path in folder.glob("cache/*/inputs.json"):
                    watched.builds.add((str(path), path.stat().st_mtime_ns))
                if kill_at is not None and finished(folder) >= kill_at:
                    break
                time.sleep(LOOK)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    watched.minutes += (time.perf_counter() - start) / 60
    if kill_at is not None and code == -signal.SIGKILL:
        watched.killed_at = finished(folder)
    elif kill_at is not None:
        sys.exit(f"the grid ended with {code} before it could be killed, see {folder.parent / folder.name}.txt")
    elif code:
        sys.exit(f"the grid ended with {code}, see {folder.parent / folder.name}.txt")


def compare(one: GridRecord, other: GridRecord) -> list[str]:
    """Return in what two records differ: empty when their tables are the same to the last bit."""
    keys = [column for column in one.to_frame().columns if column != "value"]
    frames = [record.to_frame().set_index(keys)["value"] for record in (one, other)]
    said = []
    if not frames[0].index.equals(frames[1].index):
        said.append(f"rows: {len(frames[0].index.symmetric_difference(frames[1].index))} are in one table alone")
    else:
        first, second = (frame.to_numpy(dtype=float) for frame in frames)
        apart = ~((first == second) | (np.isnan(first) & np.isnan(second)))
        if apart.any():
            most = np.nanmax(np.abs(first - second)[apart])
            said.append(f"values: {apart.sum()} of {len(first)} differ, by at most {most:.2g}")
    if len(one.differences) != len(other.differences):
        said.append(f"differences: {len(one.differences)} and {len(other.differences)}")
    else:
        apart_too = [a for a, b in zip(one.differences, other.differences, strict=True) if not same(a, b)]
        if apart_too:
            said.append(f"differences: {len(apart_too)} of {len(one.differences)}, as of {apart_too[0].run}")
    if one.failed or other.failed:
        said.append(f"failed runs: {dict(one.failed)} and {dict(other.failed)}")
    return said


def same(one: object, other: object) -> bool:
    """Return whether two differences have the same fields, bit by bit; no interval equals no interval."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)) for a, b in pairs)


def show(title: str, record: GridRecord, watched: Watched) -> None:
    """Print what one grid took."""
    trained = sum(bool(record.cell(run.name).weighting) for run in record.runs)
    mark = "✓" if watched.minutes <= WANTED_MINUTES else "✗"
    print(f"{title}: {watched.minutes:.1f} minutes {mark} (wanted at most {WANTED_MINUTES} for the whole grid)")
    print(f"  {len(record.runs)} runs of {len(record.cells)} cells, {trained} of them trained networks")
    built = len(watched.builds)
    print(f"  cache built {built} ×: {trained - built} of {trained} trainings found it ({1 - built / trained:.1%})")
    if watched.killed_at is not None:
        print(f"  killed with {watched.killed_at} networks finished, and resumed")


def controls(record: GridRecord) -> None:
    """Print the rows that the claims of the table stand on."""
    table = record.table4()
    for row in table[table["control"] != ""].to_dict("records"):
        told = []
        for split in record.evaluation:
            low, high = row[f"{split} difference low"], row[f"{split} difference high"]
            known = low is not None and low == low
            told.append(f"{split} {row[split]:.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if known else ""))
        print(f"  {row['cell']:38s} {', '.join(told)}")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="paper", help="as of guide --ablate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="fewer than the default, to try")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--out", type=Path, help="kept folder; one that holds a beginning goes on, and takes less time")
    given = parser.parse_args()
    command = [sys.executable, "-m", "conceptkit", "guide", "--ablate", given.models]
    command += ["--seeds", str(given.seeds), "--workers", str(given.workers)]
    if given.epochs is not None:
        command += ["--epochs", str(given.epochs), "--warmup", str(given.epochs // 2)]
    cells = (
        ck.Grid(ablate=given.models, dry_run=True).run(ck.embedded_study("null")).cells
    )  # draws the study too, which is not timed
    networks = sum(bool(cell.weighting) for cell in cells) * given.seeds
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.out or Path(scratch)).absolute()
        print(f"{networks} networks, {given.workers} at once, in {folder if given.out else 'a scratch folder'}")
        watched = Watched()
        work(command, folder / "undisturbed", watched)
        record = ck.load_record(folder / "undisturbed")
        show("undisturbed", record, watched)
        controls(record)
        if given.kill:
            watched = Watched()
            work(command, folder / "killed", watched, kill_at=max(1, networks // 2))
            work(command, folder / "killed", watched)
            resumed = ck.load_record(folder / "killed")
            show("killed and resumed", resumed, watched)
            said = compare(record, resumed)
            print("  tables: " + ("; ".join(said) if said else "the same to the last bit ✓"))


if __name__ == "__main__":
    main()
