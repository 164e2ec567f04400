"""Segmentation of nuclei: trained on one's own masks, and compared with them."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conceptkit.errors import InputError, check_place, near_names
from conceptkit.files.atomic import held
from conceptkit.options.base import Notify, Progress
from conceptkit.options.nuclei import NucleiScore, NucleiTrain
from conceptkit.pathology.annotated import (
    Annotated,
    AnnotatedList,
    Tile,
    draw_tiles,
    open_annotated,
    score_image,
    summary,
)
from conceptkit.pathology.measuring import check_out, write_table
from conceptkit.pathology.nuclei import open_method
from conceptkit.pathology.resuming import file_state, part_key, parts_folder

_KEPT_TILES = 4
"""Tiles of each image that a figure may show, spread over its scores."""


@dataclass(frozen=True)
class NucleiTrained:
    """What a training of nuclei came to."""

    path: str
    start: str
    steps: int
    best_step: int
    """Step of the weights; 0 where the start was best"""
    aji: float
    """Of the validation images; their Dice for maskrcnn, which is validated by it"""
    before: float
    """The same before the training; NaN for maskrcnn"""
    score: str
    training: tuple[str, ...]
    """Images"""
    validation: tuple[str, ...]
    types: tuple[str, ...] = ()
    """Types of nuclei that the weights distinguish"""
    recall: float | None = None
    """Share of the validation images' nuclei whose type is right, mean over types"""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {"schema": "conceptkit/nuclei-train/1", **_plain(dataclasses.asdict(self))}


@dataclass(frozen=True)
class NucleiScored:
    """How well found nuclei agree with annotated ones."""

    method: str
    rows: pd.DataFrame
    """image_id, aji, dice, pq, f1, found, drawn of each image, and the column of the groups"""
    groups: dict[str, dict[str, float]]
    """Group → its summary; all images under the empty name"""
    by: str | None
    notes: tuple[str, ...]
    path: str | None
    figure: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        groups = [{"group": name, **values} for name, values in self.groups.items() if name]
        return {
            "schema": "conceptkit/nuclei-score/1",
            "nuclei": self.method,
            "all": _plain(self.groups[""]),
            "by": self.by,
            "groups": _plain(groups),
            "images": _plain(self.rows.to_dict("records")),
            "notes": list(self.notes),
        }


def score(options: NucleiScore, *, progress: Progress | None = None, notify: Notify | None = None) -> NucleiScored:
    """Compare the nuclei that a method finds with annotated ones."""
    listed = open_annotated(Path(options.images))
    if options.by is not None and options.by not in listed.table:
        raise InputError(f"by: {options.by!r} is not a column; {near_names(options.by, listed.table.columns)}.")
    if options.out is not None:
        check_out(Path(options.out))
        check_place("out", Path(options.out))
    weights = None if options.nuclei_weights is None else Path(options.nuclei_weights)
    method = open_method(options.nuclei, weights=weights, device=options.device)
    rows, counts, tiles = [], [], []
    for number, one in enumerate(listed):
        values, counted, cut = score_image(one, method, options.patch_size)
        group = {} if options.by is None else {options.by: one.cells[options.by]}
        rows.append({"image_id": one.name, **group, **values})
        counts.append(counted)
        if options.figure is not None:
            tiles += _spread(cut)
        if progress is not None:
            progress("segmenting", number + 1, len(listed))
    table = pd.DataFrame(rows)
    groups = {"": summary(table, np.concatenate(counts))}
    if options.by is not None:
        for name, index in table.groupby(options.by, sort=True).indices.items():
            groups[str(name)] = summary(table.iloc[index], np.concatenate([counts[k] for k in index]))
    if options.out is not None:
        write_table(table, Path(options.out))
    if options.figure is not None:
        draw_tiles(tiles, Path(options.figure))
    return NucleiScored(
        method=options.nuclei,
        rows=table,
        groups=groups,
        by=options.by,
        notes=_without(table["image_id"][table["drawn"] == 0].tolist(), "they have no scores"),
        path=None if options.out is None else str(options.out),
        figure=None if options.figure is None else str(options.figure),
    )


def train(options: NucleiTrain, *, progress: Progress | None = None, notify: Notify | None = None) -> NucleiTrained:
    """Train the segmentation of nuclei, and write its weights."""
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise InputError(f"out: must end in .safetensors, got {out}.")
    check_place("out", out)
    listed = open_annotated(Path(options.images), options.type_names)
    if options.start == "maskrcnn" and options.type_names is not None:
        raise InputError("type-names: maskrcnn learns no types of nuclei; use --from compact.")
    held_out = split(listed.patients, options.validation, options.seed)
    training = [k for k in range(len(listed)) if listed.patients[k] not in held_out]
    validation = [k for k in range(len(listed)) if listed.patients[k] in held_out]
    with held(parts_folder(out)):
        run = _train_maskrcnn if options.start == "maskrcnn" else _train_compact
        found = run(options, listed, training, validation, out, progress)
        shutil.rmtree(parts_folder(out), ignore_errors=True)
    notes = (
        [] if {"patient", "group"} & set(listed.table) else ["No column patient or group: each image counts as one."]
    )
    return dataclasses.replace(found, notes=(*notes, *found.notes))


def split(patients: list[str], share: float, seed: int) -> set[str]:
    """Return the patients that are held out for validation, at least one and not all.

    Raises :class:`InputError` when there is one patient only.
    """
    names = sorted(set(patients))
    if len(names) < 2:
        raise InputError(
            f"images: at least two patients are needed, one of them for validation, got {len(patients)} image(s) of "
            f"{len(names)}."
        )
    number = min(max(1, round(share * len(names))), len(names) - 1)
    return set(np.random.default_rng(seed).permutation(names)[:number].tolist())


def _train_compact(
    options: NucleiTrain, listed: AnnotatedList, training: list[int], validation: list[int], out: Path, progress: Any
) -> NucleiTrained:
    from conceptkit.pathology.compact import BUNDLED, load_compact, save_compact
    from conceptkit.pathology.nucleus_training import sample_of, train_compact

    weights = BUNDLED if options.start == "compact" else Path(options.start)
    start = load_compact(weights, device=options.device)
    names, samples, images = listed.table["image_id"].tolist(), [], []
    for number, one in enumerate(listed):
        images.append(one)
        if progress is not None:
            progress("reading", number + 1, len(listed))
    types = sorted({kind for k in training for kind in images[k].types.values()})
    check_types(types, images)
    samples = [sample_of(a.image, a.labels, a.mpp if np.isfinite(a.mpp) else None, a.types, types) for a in images]
    files = [file_state((listed.path.parent / p).absolute()) for c in ("image", "mask") for p in listed.table[c]]
    given = {k: v for k, v in options.settings().items() if k not in ("out", "images", "device")}
    trained, state = train_compact(
        [samples[k] for k in training],
        [samples[k] for k in validation],
        start,
        types=types,
        steps=options.steps,
        patience=options.patience,
        seed=options.seed,
        folder=parts_folder(out),
        key=part_key([file_state(weights.absolute()), given, files]),
        progress=None if progress is None else lambda done, total: progress("training", done, total),
    )
    about = {"threshold": trained.threshold, "apart": trained.apart, "types": types, "trained_on": len(training)}
    save_compact(trained.state, about, out)
    without = [names[k] for k in training if not samples[k].depth.any()]
    return NucleiTrained(
        path=str(out),
        start=str(options.start),
        steps=state.step,
        best_step=state.best_step,
        aji=state.aji,
        before=state.history[0][1],
        score="AJI",
        training=tuple(names[k] for k in training),
        validation=tuple(names[k] for k in validation),
        types=tuple(types),
        recall=state.recall,
        notes=_without(without, "all of their pixels count as background"),
    )


def check_types(types: list[str], images: list[Annotated]) -> None:
    """Raise :class:`InputError` where one type only, or a type without a training image, would be learned."""
    if len(types) == 1:
        raise InputError(f"types: at least two types of nuclei are needed, got {types[0]} only.")
    known = {kind for a in images for kind in a.types.values()}
    if known - set(types):
        raise InputError(
            f"types: {', '.join(sorted(known - set(types)))} is in images of validation only; add images, or set "
            "another --seed."
        )


def _train_maskrcnn(
    options: NucleiTrain, listed: AnnotatedList, training: list[int], validation: list[int], out: Path, progress: Any
) -> NucleiTrained:
    from conceptkit.pathology.maskrcnn import save_maskrcnn, train_maskrcnn
    from conceptkit.pathology.nucleus_training import WORKING_MPP, sample_of

    order = [*training, *validation]
    samples = [
        sample_of(a.image, a.labels, a.mpp if np.isfinite(a.mpp) else None) for a in map(listed.__getitem__, order)
    ]
    dice: list[float] = []

    def heard(epoch: int, epochs: int, value: float) -> None:
        dice.append(value)
        if progress is not None:
            progress("training", epoch, epochs)

    model = train_maskrcnn(
        [s.image for s in samples],
        [s.labels for s in samples],
        mpp=WORKING_MPP,
        epochs=min(options.steps, 50),
        held_out=len(validation),
        seed=options.seed,
        device=options.device,
        progress=heard,
    )
    save_maskrcnn(model, out)
    names = listed.table["image_id"].tolist()
    best = int(np.argmax(dice))
    return NucleiTrained(
        path=str(out),
        start="maskrcnn",
        steps=len(dice),
        best_step=best + 1,
        aji=dice[best],
        before=float("nan"),
        score="Dice",
        training=tuple(names[k] for k in training),
        validation=tuple(names[k] for k in validation),
    )


def _spread(tiles: list[Tile]) -> list[Tile]:
    """Return some of an image's tiles, from its best to its worst, so that few are kept in memory."""
    ordered = sorted((t for t in tiles if t.drawn.any()), key=lambda t: t.aji)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(_KEPT_TILES, len(ordered))).round().astype(int))
    return [ordered[k] for k in places]


def _without(names: list[str], what: str) -> tuple[str, ...]:
    if not names:
        return ()
    few = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    return (f"{len(names)} images have no annotated nuclei ({few}): {what}.",)


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: a number that is not one as null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
