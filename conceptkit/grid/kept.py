"""Finished runs of a grid, kept in its folder and loaded again, and inputs that its processes share."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from conceptkit.errors import InputError
from conceptkit.grid.folder import CHECKPOINT, RUN_FILE, run_path
from conceptkit.guide.bench import Spaces
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.reading import TrainedRun
from conceptkit.models.backbones import Preprocessing
from conceptkit.records import GridCell, GuideRun, to_json, write_atomically
from conceptkit.records.reading import read

ARRAYS_FILE, COPIES_FILE = "arrays.safetensors", "copies.npy"


@dataclass(frozen=True)
class KeptRun:
    """A finished run."""

    trained: TrainedRun
    """Loaded from a folder it has no trunk"""
    trunk: NDArray[np.float32] | None
    """(rows drawn, width) of the rows that figures show; only of one seed"""
    spaces: Spaces


def keep_run(folder: Path, cell: GridCell, seed: int, make: Callable[[Path], KeptRun]) -> None:
    """Make a run in a temporary folder, which is then renamed in one step.

    Parameters
    ----------
    make : receives the folder to write into and returns the run
    """
    final = run_path(folder, cell, seed)
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        run = make(partial)
        arrays: dict[str, NDArray[Any]] = {"probability": run.trained.probability}
        arrays |= {f"fresh/{name}": values for name, values in run.trained.fresh.items()}
        arrays |= {f"space/{name}": values for name, values in run.spaces.items()}
        arrays |= {} if run.trunk is None else {"trunk": run.trunk}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, partial / ARRAYS_FILE)
        body = {"cell": dataclasses.asdict(cell), "run": dataclasses.asdict(run.trained.record)}
        write_atomically(partial / RUN_FILE, to_json(body))
        if final.exists():  # another process did the same work
            shutil.rmtree(final)
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_run(folder: Path, cell: GridCell, seed: int) -> KeptRun:
    """Open a finished run; :class:`InputError` when it cannot be read or is another cell's."""
    path = run_path(folder, cell, seed)
    try:
        body = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
        same = body["cell"] == json.loads(to_json(dataclasses.asdict(cell)))
        run: GuideRun = read(body["run"], GuideRun, "run", null_is_nan=True)
        arrays = load_file(path / ARRAYS_FILE)
        probability = arrays["probability"]
    except Exception as error:  # safetensors and malformed files raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"out: {path} cannot be read ({reason}); remove it to train the run again.") from None
    if not same:
        raise InputError(f"out: {path} is a run of another cell; name another folder.")
    run = dataclasses.replace(run, checkpoint=str(path / CHECKPOINT))  # the folder of the grid may have been moved

    def below(prefix: str) -> dict[str, Any]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    trained = TrainedRun(run, probability, np.empty((0, 0), np.float32), below("fresh/"))
    return KeptRun(trained, arrays.get("trunk"), below("space/"))


def kept_inputs(folder: Path, compute: Callable[[], Inputs]) -> Inputs:
    """Return the inputs in a folder, memory-mapped so that processes share them; compute them if they are missing."""
    description = folder / "inputs.json"
    if not description.is_file():
        made = compute()
        folder.mkdir(parents=True, exist_ok=True)
        for prefix, tensors in (("", made.tensors), ("scale-", made.scales or ())):
            for k, tensor in enumerate(tensors):
                np.save(folder / f"{prefix}{k}.npy", tensor.numpy())
        if made.copies is not None:
            np.save(folder / COPIES_FILE, made.copies.numpy())
        raw = None if made.preprocessing is None else dataclasses.asdict(made.preprocessing)
        body = {"tensors": len(made.tensors), "pixels": raw, "scaled": made.scales is not None}
        body |= {"pass_size": made.pass_size, "channels_last": made.channels_last}
        write_atomically(description, to_json(body))
    body = json.loads(description.read_text(encoding="utf-8"))

    def mapped(prefix: str) -> tuple[torch.Tensor, ...]:
        # Copy-on-write, as torch does not accept read-only memory; nothing is ever written.
        files = [folder / f"{prefix}{k}.npy" for k in range(body["tensors"])]
        return tuple(torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False)) for file in files)

    stated, preprocessing = body["pixels"], None
    if stated is not None:
        preprocessing = Preprocessing(**{**stated, "mean": tuple(stated["mean"]), "std": tuple(stated["std"])})
    return Inputs(
        mapped(""),
        torch.nn.Identity(),
        preprocessing,
        mapped("scale-") if body["scaled"] else None,
        pass_size=body["pass_size"],
        channels_last=body["channels_last"],
        copies=torch.from_numpy(np.load(folder / COPIES_FILE)) if (folder / COPIES_FILE).is_file() else None,
    )
