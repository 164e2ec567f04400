"""The folder of a grid: whose runs it holds, which are finished, and that one process at a time works on it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.grid.plan import folder_name
from conceptkit.records import RECORD_FILE, GridCell, GuideRun, to_json, write_atomically
from conceptkit.records.reading import read

if TYPE_CHECKING:
    from conceptkit.guide.inputs import Inputs
    from conceptkit.guide.reading import TrainedRun

GRID_FILE = "grid.json"
"""What all runs of the folder have in common"""

NETWORKS = "networks"
"""Key of that file: network → digest of its weights"""

RUN_FILE, ARRAYS_FILE, CHECKPOINT = "run.json", "arrays.safetensors", "checkpoint"

PLAN_FILE = "plan.json"
"""How many runs the last command wants; written when it begins, so that its age tells the speed"""

SCHEMA = "conceptkit/grid-folder/1"


@dataclass(frozen=True)
class KeptRun:
    """A finished run as it lies in its folder."""

    trained: TrainedRun
    """Without the trunk"""
    trunk: NDArray[np.float32] | None
    """(rows drawn, width) of those that pictures show; of one seed"""
    spaces: dict[str, NDArray[np.float16]]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the folder for this process; the system lets go of it even when the process is killed.

    Raises
    ------
    InputError
        when another process has it
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as handle:
        try:
            import fcntl
        except ImportError:  # no POSIX system: there the second process is not noticed
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"out: another process works on {folder}; wait for it or name another folder.") from None
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def claim(folder: Path, common: Mapping[str, Any], networks: Mapping[str, str] | None = None) -> None:
    """Note what all runs of the folder have in common, or check that it is what was noted.

    Parameters
    ----------
    networks : network → digest of its weights; one may come later, whose weights could not be had before

    Raises
    ------
    InputError
        when the folder holds something else: nothing of it is touched
    """
    path = folder / GRID_FILE
    networks = dict(networks or {})
    common = json.loads(to_json({"schema": SCHEMA, **common}))
    if not path.is_file():
        if (folder / RECORD_FILE).exists():
            raise InputError(f"out: {folder} holds an earlier run, which is no grid; name another folder.")
        write_atomically(path, to_json({**common, NETWORKS: networks}))
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        named = kept["schema"]
        before = dict(kept.pop(NETWORKS, {}))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"out: {path} cannot be read; name another folder.") from None
    if named != SCHEMA:
        raise InputError(f"out: {folder} holds a grid of another version ({named}); name another folder.")
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


def note_plan(folder: Path, runs: int) -> None:
    """Note how many runs the folder is to hold, for those who ask how far it is."""
    write_atomically(folder / PLAN_FILE, to_json({"runs": runs}))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}…"


def run_path(folder: Path, cell: GridCell, seed: int) -> Path:
    """Return the folder of one run."""
    return folder / "runs" / folder_name(cell, seed)


def is_kept(folder: Path, cell: GridCell, seed: int) -> bool:
    """Return whether a run is finished."""
    return (run_path(folder, cell, seed) / RUN_FILE).is_file()


def keep_run(
    folder: Path,
    cell: GridCell,
    seed: int,
    make: Callable[[Path], tuple[TrainedRun, dict[str, NDArray[np.float16]] | None, NDArray[np.intp]]],
) -> None:
    """Make a run in a folder beside its own, which it then becomes in one step: it is there whole or not at all.

    Parameters
    ----------
    make : told a folder to write into, returns the run, the features that pictures show, and their rows
    """
    from safetensors.numpy import save_file

    final = run_path(folder, cell, seed)
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        trained, spaces, drawn = make(partial)
        arrays: dict[str, NDArray[Any]] = {"probability": trained.probability}
        arrays |= {f"fresh/{name}": values for name, values in trained.fresh.items()}
        if spaces is not None:
            arrays["trunk"] = trained.trunk[drawn]
            arrays |= {f"space/{name}": values for name, values in spaces.items()}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, partial / ARRAYS_FILE)
        body = {"cell": dataclasses.asdict(cell), "run": dataclasses.asdict(trained.record)}
        write_atomically(partial / RUN_FILE, to_json(body))
        if final.exists():  # of a process whose worker outlived it, and did the same work
            shutil.rmtree(final)
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what runs of a killed process left behind."""
    for path in (folder / "runs").glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def load_run(folder: Path, cell: GridCell, seed: int) -> KeptRun:
    """Open a finished run.

    Raises
    ------
    InputError
        when it cannot be read, or is another cell's
    """
    from safetensors.numpy import load_file

    from conceptkit.guide.reading import TrainedRun

    path = run_path(folder, cell, seed)
    try:
        body = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
        same = body["cell"] == json.loads(to_json(dataclasses.asdict(cell)))
        run: GuideRun = read(body["run"], GuideRun, "run", null_is_nan=True)
        arrays = load_file(path / ARRAYS_FILE)
        probability = arrays["probability"]
    except Exception as error:  # safetensors and a malformed file raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"out: {path} cannot be read ({reason}); remove it to train anew.") from None
    if not same:
        raise InputError(f"out: {path} is a run of another cell; name another folder.")
    run = dataclasses.replace(run, checkpoint=str(path / CHECKPOINT))  # the whole grid's folder may have been moved
    fresh = {k.removeprefix("fresh/"): v for k, v in arrays.items() if k.startswith("fresh/")}
    spaces = {k.removeprefix("space/"): v for k, v in arrays.items() if k.startswith("space/")}
    empty = np.empty((0, 0), np.float32)
    return KeptRun(TrainedRun(run, probability, empty, fresh), arrays.get("trunk"), spaces)


def kept_inputs(folder: Path, compute: Callable[[], Inputs]) -> Inputs:
    """Return the inputs that lie in a folder, mapped and not read, so that processes share them; make them if need be.

    Parameters
    ----------
    compute : gives them
    """
    import torch

    from conceptkit.guide.inputs import Inputs
    from conceptkit.models.backbones import Preprocessing

    described = folder / "inputs.json"
    if not described.is_file():
        made = compute()
        folder.mkdir(parents=True, exist_ok=True)
        for k, tensor in enumerate(made.tensors):
            np.save(folder / f"{k}.npy", tensor.numpy())
        for k, scale in enumerate(made.scales or ()):
            np.save(folder / f"scale-{k}.npy", scale.numpy())
        raw = None if made.preprocessing is None else dataclasses.asdict(made.preprocessing)
        body = {"tensors": len(made.tensors), "pixels": raw, "scaled": made.scales is not None}
        body |= {"pass_size": made.pass_size, "channels_last": made.channels_last}
        write_atomically(described, to_json(body))
    body = json.loads(described.read_text(encoding="utf-8"))

    def mapped(name: str) -> torch.Tensor:
        # Copy-on-write, as torch takes no read-only memory; nothing is ever written.
        return torch.from_numpy(np.load(folder / name, mmap_mode="c", allow_pickle=False))

    tensors = tuple(mapped(f"{k}.npy") for k in range(body["tensors"]))
    scales = tuple(mapped(f"scale-{k}.npy") for k in range(body["tensors"])) if body.get("scaled") else None
    stated, preprocessing = body["pixels"], None
    if stated is not None:
        preprocessing = Preprocessing(**{**stated, "mean": tuple(stated["mean"]), "std": tuple(stated["std"])})
    how = {"pass_size": body.get("pass_size", 32), "channels_last": body.get("channels_last", False)}
    return Inputs(tensors, torch.nn.Identity(), preprocessing, scales, **how)
