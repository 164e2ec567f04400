"""Predicting: from a checkpoint and a table of patches to the main task and every concept, in its own unit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from conceptkit.commands.cohort_notes import notes_of_new_centers, run_of_checkpoint
from conceptkit.commands.maps import PREDICTED, check_maps, held_out_scores, write_maps
from conceptkit.commands.predict_bags import bag_outputs
from conceptkit.commands.predict_features import feature_outputs
from conceptkit.commands.predict_vectors import predict_vectors
from conceptkit.commands.qupath import check_export, export_patches
from conceptkit.errors import InputError
from conceptkit.features import activations
from conceptkit.images.decoding import Pixels
from conceptkit.models.adapter import is_adapter
from conceptkit.models.backbones import Backbone
from conceptkit.models.bags import is_bag_checkpoint
from conceptkit.models.checkpoints import is_checkpoint, load_checkpoint, mark_notes
from conceptkit.models.guided import CONTINUOUS, MAIN, GuidedModel, Task
from conceptkit.models.inference import choose_device, ieee_float32
from conceptkit.options.base import Notify, Progress
from conceptkit.options.predict import Predict
from conceptkit.pathology.measuring import check_out, write_table
from conceptkit.pathology.slides import open_slide
from conceptkit.runs.opening import find_study
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.resolution import Resolution, at_resolution, mixture_notes
from conceptkit.tables.study import Study

CARRIED = ("slide", "x", "y", "size", "mpp", "group", "patient", "split")
"""Columns that are copied from the table, if present: location and origin of a patch"""

IDENTITY = ("patch_id", "bag", "patches", *CARRIED)
"""Columns of the predictions that identify a row"""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predictions that the command wrote."""

    frame: pd.DataFrame
    """One row per patch or bag, as :func:`predict` returns it"""
    study: str
    options: Predict
    concepts: dict[str, dict[str, Any]] | None = None
    """With ``--probe``: concept → ``unit``, ``score`` and ``coverage``"""

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Return the slides and patches that could not be used, each with the reason."""
        return list(self.frame.attrs["skipped"])

    @property
    def columns(self) -> list[str]:
        """Return the names of the predictions."""
        return [name for name in self.frame.columns if name not in IDENTITY]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        places = self.options.settings()
        of_probe = {} if self.concepts is None else {"concepts": self.concepts}
        return {
            "schema": "conceptkit/predict/1",
            "study": self.study,
            "rows_written": len(self.frame),
            "skipped": [{"what": what, "reason": reason} for what, reason in self.skipped],
            "path": places["out"],
            "columns": self.columns,
            "maps": places["maps"],
            "notes": self.frame.attrs["notes"],
            **of_probe,
        }


def run_predict(
    options: Predict, study: Any = None, *, progress: Progress | None = None, notify: Notify | None = None
) -> Predicted:
    """Predict the patches or bags of a study, see :func:`predict`."""
    if (options.checkpoint is None) == (options.probe is None):
        got = "none" if options.probe is None else "both"
        raise InputError(f"checkpoint: name the folder of a checkpoint, or --probe RUN, got {got}.")
    if options.probe is None:
        if named := [name for name in ("layer", "concepts", "slides") if getattr(options, name)]:
            raise InputError(f"{named[0]}: only vectors of --probe take it, a checkpoint does not.")
        study = find_study(study, options.table)
        return Predicted(frame=_predict(options, study, progress), study=study.name, options=options)
    if options.out is not None:
        check_out(Path(options.out))
    found = predict_vectors(options, study, CARRIED, progress)
    if options.out is not None:
        write_table(found.frame, Path(options.out))
    return Predicted(frame=found.frame, study=found.study, options=options, concepts=found.concepts)


def predict(
    checkpoint: str | Path | None = None, study: Any = None, *, progress: Progress | None = None, **options: Any
) -> pd.DataFrame:
    """Predict with a guided network, on patches or on bags, or with the concept vectors of a probe.

    Parameters
    ----------
    checkpoint : folder that ``guide`` or ``bags`` wrote; ``None`` with the option ``probe``, the run folder of a probe
    study : a study or a table in any form (file, folder, DataFrame); ``None`` for the option ``table``, else the
        current folder's study, else the embedded one
    progress : receives the stage of the work and how far it is
    options : of :class:`conceptkit.options.predict.Predict`: ``table``, ``out``, ``maps`` and others

    Returns
    -------
    one row per patch (``patch_id`` and its place) or bag (``bag`` and its number of ``patches``), with
    ``probability_CLASS`` of the main task (of the second class of two), and ``CONCEPT_predicted`` of each encouraged
    concept: the value in its unit, or the most probable class. Discouraged concepts are not predicted. Patches of
    slides are read at the resolution and field of view that the checkpoint was trained on, so that ``x``, ``y``,
    ``size`` and ``mpp`` say how each was read. ``attrs["notes"]`` says what limits the predictions. A slide or
    patch that cannot be used is skipped, and named with the reason in ``attrs["skipped"]``.

    With ``probe``: ``CONCEPT_predicted``, and the ends ``CONCEPT_low`` and ``CONCEPT_high`` of its 90 % prediction
    interval, of classes the possible ones as ``CONCEPT_set`` (``a|b``); ``out_of_range`` where a patch is unlike those
    of the probe.

    Raises
    ------
    InputError
        when the checkpoint, or no row of the table, can be used
    """
    return run_predict(Predict(checkpoint=checkpoint, **options), study, progress=progress).frame


def _predict(options: Predict, study: Study, progress: Progress | None) -> pd.DataFrame:
    if options.out is not None:
        check_out(Path(options.out))
    folder = Path(str(options.checkpoint))
    if is_bag_checkpoint(folder):
        if options.maps is not None:
            raise InputError("map: not available for a checkpoint of bags; attention.csv of its run has the patches.")
        if options.qupath is not None:
            raise InputError("qupath: not available for a checkpoint of bags; export its run with conceptkit qupath.")
        read = bag_outputs(
            folder,
            study,
            features=options.features,
            batch_size=options.batch_size,
            device=options.device,
            progress=progress,
        )
        frame = pd.DataFrame({"bag": read.bags, "patches": read.patches, **_predictions(read.tasks, read.raw)})
        frame.attrs |= {"notes": list(read.notes), "skipped": []}
    else:
        frame = _predict_patches(options, study, progress)
    if options.out is not None:
        write_table(frame, Path(options.out))
    return frame


def _predict_patches(options: Predict, study: Study, progress: Progress | None) -> pd.DataFrame:
    folder, maps = Path(str(options.checkpoint)), options.maps
    if not is_checkpoint(folder):
        raise InputError(f"checkpoint: {folder} is not a checkpoint; name a folder that guide or bags wrote.")
    backbone = load_checkpoint(folder)
    model = backbone.module
    if not isinstance(model, GuidedModel):
        raise InputError(f"checkpoint: {folder} has no heads to predict with.")
    skipped: list[tuple[str, str]] = []
    if is_adapter(model):
        table = study.load_table()
        if maps is not None:
            check_maps(table, Path(maps))
        check_export(table.frame.columns, options.qupath)
        raw, resolution = feature_outputs(
            backbone, table, study, features=options.features, device=options.device, progress=progress
        )
    else:
        if options.features is not None:
            raise InputError(f"features: {folder} is a network on images; drop --features, or name an adapter or bags.")
        usable, skipped = _usable(study.load_table(), backbone.trained_on)
        table, resolution = at_resolution(usable, backbone.trained_on)
        if maps is not None:
            check_maps(table, Path(maps))
        check_export(table.frame.columns, options.qupath)
        read, raw, faults = _patch_outputs(model, backbone, table, options.batch_size, options.device, progress)
        skipped += faults
        if not len(read):
            raise InputError(f"table: no patch can be read; {skipped[0][0]} was skipped: {skipped[0][1]}")
        table = table.select(read)
    columns: dict[str, Any] = {"patch_id": table.patch_ids}
    columns |= {name: table.frame[name].to_numpy() for name in CARRIED if name in table.frame}
    frame = pd.DataFrame({**columns, **_predictions(model.tasks, raw)})
    frame.attrs["skipped"] = skipped
    frame.attrs["notes"] = [*mark_notes(backbone), *mixture_notes(table), *resolution]
    frame.attrs["notes"] += notes_of_new_centers(run_of_checkpoint(folder), table, frame)
    units = {name + PREDICTED: unit for name, unit in study.units.items()}
    if options.qupath is not None:
        more = {name: table.frame[name].to_numpy() for name in ("image", study.label) if name in table.frame}
        export_patches(frame.assign(**more), table.folder, options.qupath, units=units)
    if maps is not None:
        predicted = [name for name in frame.columns if name not in columns]
        scores = held_out_scores(folder, model.tasks)
        write_maps(frame, table, predicted, Path(maps), units=units, scores=scores)
    return frame


def _patch_outputs(
    model: GuidedModel,
    backbone: Backbone,
    table: PatchTable,
    batch_size: int,
    device: str,
    progress: Progress | None,
) -> tuple[NDArray[np.intp], dict[str, NDArray[np.float64]], list[tuple[str, str]]]:
    """Return the rows that can be read, task → raw output (n of these, nodes), and patch and reason of the others."""
    where = choose_device(device)
    model.to(where).eval()
    read: list[int] = []
    skipped: list[tuple[str, str]] = []
    collected: dict[str, list[NDArray[np.float64]]] = {task.name: [] for task in model.tasks}
    with torch.inference_mode(), ieee_float32():
        for start in range(0, len(table), batch_size):
            batch, pixels, faults = _read(table, np.arange(start, min(start + batch_size, len(table))))
            skipped += faults
            if pixels is None:
                continue
            read += batch.tolist()
            padded = np.concatenate([pixels, np.repeat(pixels[-1:], batch_size - len(pixels), axis=0)])
            for name, output in model(backbone.preprocessing(padded, where)).items():
                collected[name].append(output[: len(pixels)].cpu().double().numpy())
            if progress is not None:
                progress("predicting", min(start + batch_size, len(table)), len(table))
    raw = {name: np.concatenate(parts) for name, parts in collected.items() if parts}
    return np.array(read, dtype=np.intp), raw, skipped


def _predictions(tasks: Sequence[Task], outputs: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the columns of predictions from the raw outputs (n, nodes) of tasks."""
    columns: dict[str, Any] = {}
    for task in tasks:
        raw = outputs[task.name]
        if task.name == MAIN and task.nodes == 1:
            columns[f"probability_{task.classes[1]}"] = expit(raw[:, 0])
        elif task.name == MAIN:
            shares = softmax(raw, axis=1)
            columns |= {f"probability_{c}": shares[:, i] for i, c in enumerate(task.classes)}
        elif task.kind == CONTINUOUS and not task.adversarial:
            columns[task.name + PREDICTED] = raw[:, 0] * task.deviation + task.mean
        elif not task.adversarial:
            columns[task.name + PREDICTED] = [task.classes[k] for k in raw.argmax(1)]
    return columns


def _usable(table: PatchTable, trained: Resolution | None) -> tuple[PatchTable, list[tuple[str, str]]]:
    """Return the rows of slides, or images of one resolution, that suit a checkpoint, and the others with the reason.

    Raises
    ------
    InputError
        when none suits
    """
    by = "slide" if table.location == "slide" else "mpp"
    if by not in table.frame:
        return table, []
    keep = np.ones(len(table), dtype=bool)
    faults: list[tuple[str, str]] = []
    for value, places in table.frame.groupby(by).indices.items():
        rows = np.asarray(places, dtype=np.intp)
        try:
            with open_slide(table.folder / str(value)) if by == "slide" else contextlib.nullcontext():
                at_resolution(table.select(rows), trained)
        except InputError as error:
            keep[rows] = False
            what = str(value) if by == "slide" else f"{len(rows)} patches of {value:.4g} µm per pixel"
            faults.append((what, str(error)))
            first = error
    if not keep.any():
        raise first
    return table.select(keep), faults


def _read(table: PatchTable, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], Pixels | None, list[tuple[str, str]]]:
    """Return the rows that can be read, their pixels (n, h, w, 3), and patch and reason of the others."""
    try:
        return rows, activations.read_pixels(table, rows), []
    except InputError:
        faults = _faults(table, rows.tolist())
        if not faults:  # such as two sizes
            raise
    kept = np.array([row for row in rows.tolist() if row not in faults], dtype=np.intp)
    named = [(table.patch_ids[row], reason) for row, reason in faults.items()]
    return kept, activations.read_pixels(table, kept) if len(kept) else None, named


def _faults(table: PatchTable, rows: Iterable[int]) -> dict[int, str]:
    """Return row → why its pixels cannot be read."""
    faults = {}
    for row in rows:
        try:
            table.pixels(row)
        except InputError as error:
            faults[row] = str(error)
    return faults
