"""The embedded studies: written into the cache folder when they are first used."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import platformdirs

from conceptkit.errors import InputError
from conceptkit.synthetic import null, shortcut
from conceptkit.synthetic.patch import MPP, Patch
from conceptkit.tables.study import Study


def cache_folder() -> Path:
    """Return the folder for files that can be recomputed: ``CONCEPTKIT_CACHE``, or the user's cache folder."""
    named = os.environ.get("CONCEPTKIT_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("conceptkit"))


@dataclass(frozen=True)
class Embedded:
    """One of the embedded studies."""

    generate: Callable[..., Iterator[tuple[dict[str, Any], Patch]]]
    version: int
    confounding: float
    weights: str
    """Of the bundled network"""
    knobs: tuple[str, ...] = ()
    """Further parameters of ``generate``"""


STUDIES = {
    "null": Embedded(null.generate, null.VERSION, null.CONFOUNDING, "bundled"),
    "shortcut": Embedded(shortcut.generate, shortcut.VERSION, shortcut.CONFOUNDING, "tissue", ("sufficiency",)),
}
"""Name → embedded study"""

DEFAULT = "shortcut"
"""The embedded study that commands use when none is named"""


def embedded_study(
    name: str = DEFAULT,
    *,
    confounding: float | None = None,
    sufficiency: float = 1.0,
    seed: int = 0,
    cache: Path | None = None,
) -> Study:
    """Return an embedded study, generated into the cache folder if it is missing.

    Parameters
    ----------
    name : ``shortcut`` or ``null``
    confounding : 0 (label and center independent in training) to 1 (extreme centers all tumor or all normal); default
        0.8
    sufficiency : share of the label's cause that ``count`` and ``area`` have, 0 to 1; ``shortcut`` only
    seed : of the tissue
    cache : folder to keep it in; ``None`` for :func:`cache_folder`

    Raises
    ------
    InputError
        when there is no such study, ``confounding`` or ``sufficiency`` lies outside 0 to 1, or the folder cannot be
        written
    """
    if name not in STUDIES:
        raise InputError(f"study: there is no embedded study {name!r}; choose from {', '.join(STUDIES)}.")
    study = STUDIES[name]
    tilt = study.confounding if confounding is None else confounding
    knobs = {"confounding": tilt, "sufficiency": sufficiency}
    for knob, value in knobs.items():
        if not 0 <= value <= 1:
            raise InputError(f"{knob}: must lie between 0 and 1, got {value}.")
    if "sufficiency" not in study.knobs and knobs.pop("sufficiency") != 1:
        raise InputError(f"sufficiency: embedded:{name} has no such parameter; embedded:shortcut has.")
    text = "-".join(f"{knob}{value:g}" for knob, value in knobs.items())
    folder = (cache or cache_folder()) / f"embedded-{name}-v{study.version}-{text}-seed{seed}"
    if not (folder / "patches.csv").is_file():
        try:
            _write(folder, study.generate(**knobs, seed=seed))
        except OSError as error:
            raise InputError(
                f"cache: {folder} cannot be written ({error}); name another folder in CONCEPTKIT_CACHE."
            ) from None
    defaults = {"confounding": study.confounding, "sufficiency": 1.0}
    other = ", ".join(f"{knob} {value:g}" for knob, value in knobs.items() if value != defaults[knob])
    return Study(
        name=f"embedded:{name} ({other})" if other else f"embedded:{name}",
        table=folder / "patches.csv",
        model="mini_inception",
        weights=study.weights,
        layers=("mixed10",),
        concepts=("count", "area", "contrast", "correlation"),
        encourage=("area", "count"),
        discourage=("center",),
        group="patient",
        units={"count": "nuclei per patch", "area": "µm²", "contrast": "grey levels²", "correlation": "1"},
        synthetic=True,
    )


def _write(folder: Path, drawn: Iterable[tuple[dict[str, Any], Patch]]) -> None:
    """Write table and pixels next to the final place and move them there whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        rows, pixels = [], []
        for number, (row, patch) in enumerate(drawn):
            rows.append({**row, "h5": "patches.h5", "key": "patches", "row": number, "mpp": MPP, **patch.concepts()})
            pixels.append(patch.pixels)
        with h5py.File(temporary / "patches.h5", "w") as file:
            file.create_dataset("patches", data=np.stack(pixels))
        pd.DataFrame(rows).to_csv(temporary / "patches.csv", index=False)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "patches.csv").is_file():  # otherwise another process made the same study first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
