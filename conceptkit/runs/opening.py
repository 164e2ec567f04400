"""What every command begins with: the study, its table, the run folder, and what a reader has to know."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_place
from conceptkit.files.atomic import LOCK_FILE, held
from conceptkit.models.names import is_factory
from conceptkit.options.base import Command, Progress
from conceptkit.records import RECORD_FILE
from conceptkit.synthetic import embedded_study
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.resolution import mixture_notes
from conceptkit.tables.study import STUDY_FILE, Study, load_study, table_study

Given = ParamSpec("Given")
Result = TypeVar("Result")

UNFINISHED = "unfinished"
"""Folder, in a run folder, of the states that a killed training goes on from"""

N_RESAMPLES = 2000
"""Bootstrap resamples of groups behind each interval."""


def find_study(study: Study | str | Path | None = None, table: str | Path | None = None) -> Study:
    """Return the study that is meant: the one given, a bare table's, the current folder's, or the embedded one."""
    if isinstance(study, Study):
        found = study
    elif study is not None:
        found = load_study(study)
    elif table is not None:
        return table_study(Path(table))
    else:
        found = load_study(STUDY_FILE) if Path(STUDY_FILE).is_file() else embedded_study()
    return found if table is None else found.replace(table=Path(table), synthetic=False)


def open_study(
    study: Study | str | Path | None,
    table: str | Path | None,
    model: str | None,
    weights: str | None,
    group: str | None,
    categorical: Sequence[str],
    *,
    opens_model: bool = True,
) -> tuple[Study, PatchTable]:
    """Return the study with what was named instead of its own, and its table.

    Raises
    ------
    InputError
        when the table has not what is named, or a study file names code as its model, which its reader did not
    """
    meant = find_study(study, table)
    named = (meant.model or "").partition("@")[0]
    if opens_model and model is None and meant.stated_in is not None and is_factory(named):
        raise InputError(
            f"model: {meant.stated_in} names {meant.model}, code that opening it would run; name it yourself to "
            f"allow that, as --model {meant.model}."
        )
    if model not in (None, meant.model) and weights is None:
        meant = dataclasses.replace(meant, weights=None)  # the study's weights are another model's
    meant = meant.replace(model=model, weights=weights, group=group)
    data = meant.load_table()
    for name in categorical:
        data.column("categorical", name)
    data = data.with_kinds(dict.fromkeys(categorical, "categorical"))
    data.groups(meant.group)
    return meant, data


def open_source(options: Any, study: Any, *, opens_model: bool = True) -> tuple[Study, PatchTable]:
    """Return the study with what a command's options name instead of its own, and its table; see :func:`open_study`."""
    model, weights = getattr(options, "model", None), getattr(options, "weights", None)
    return open_study(study, options.table, model, weights, options.group, options.categorical, opens_model=opens_model)


def header(options: Command, study: Study, folder: Path, notes: Iterable[str], **settings: Any) -> dict[str, Any]:
    """Return what every record begins with.

    Parameters
    ----------
    options : the command; its options are the record's settings
    settings : options that were read from the study or the network, and what else made the numbers
    """
    return {
        "study": study.name,
        "synthetic": study.synthetic,
        "group": study.group,
        "notes": tuple(notes),
        "settings": {
            "command": options.name,
            **options.settings(),
            "table": study.table.name,
            "group": study.group,
            **settings,
        },
        "versions": versions(),
        "folder": folder,
    }


def run_folder(out: str | Path | None, command: str, busy: Collection[Path] = ()) -> Path:
    """Return the folder to write into, which holds no record yet; of numbered ones the first that nobody has used."""
    if out is None:
        numbered = (Path("runs") / f"{command}-{number:03d}" for number in itertools.count(1))
        out = next(place for place in numbered if place not in busy and _is_unused(place))
    folder = Path(out)
    if (folder / RECORD_FILE).exists():
        raise InputError(f"out: {folder} holds an earlier run; name another folder, or remove it first.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; name a folder.")
    check_place("out", folder)
    return folder


def _is_unused(place: Path) -> bool:
    """Tell whether a folder is not there, or holds nothing, as one does whose run was killed at once."""
    return not place.exists() or (place.is_dir() and all(entry.name == LOCK_FILE for entry in place.iterdir()))


def in_own_folder(command: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Make a function that is told a run folder as ``out`` hold it while it works: a second process is refused.

    Processes of several machines that work on one run are let in together.
    """

    def decorate(run: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(run)
        def alone(*given: Given.args, **options: Given.kwargs) -> Result:
            first = given[0] if given else None
            if getattr(first, "nodes", options.get("nodes", 1)) != 1:
                return run(*given, **options)
            out = cast("str | Path | None", options.get("out"))
            if out is not None and (Path(out) / RECORD_FILE).exists():
                _tidy(Path(out))
            busy: list[Path] = []
            while True:
                folder = run_folder(out, command, busy)
                with contextlib.ExitStack() as stack:
                    try:
                        stack.enter_context(held(folder))
                    except InputError:
                        if out is None and folder.exists():  # another process has the number: the next is free
                            busy.append(folder)
                            continue
                        raise
                    options["out"] = folder
                    return run(*given, **options)

        return alone

    return decorate


def _tidy(folder: Path) -> None:
    """Remove what a run left that was killed after it had finished."""
    with contextlib.suppress(InputError, OSError), held(folder):
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def split_rows(data: PatchTable, meant: Study, split: str | None) -> NDArray[np.bool_]:
    """Return which rows belong to the split; all of them when none is named."""
    if split is None:
        return np.ones(len(data), dtype=bool)
    column = data.column("split", meant.splits.column).astype("str")
    chosen = (column == split).to_numpy(dtype=bool)
    if not chosen.any():
        known = ", ".join(sorted(column.unique()))
        raise InputError(f"split: no row has {meant.splits.column} {split!r}; known: {known}.")
    return chosen


def notes_on(meant: Study, data: PatchTable, concepts: Iterable[str]) -> tuple[str, ...]:
    """Return what a reader of the numbers has to know, and refuse concepts that are text by mistake."""
    concepts = list(concepts)
    for name in concepts:
        data.check_words(name)
    notes = []
    if meant.synthetic:
        notes.append("Synthetic tissue, generated by conceptkit: these numbers say nothing of real histology.")
    code = (meant.model or "").partition("@")[0]
    if is_factory(code):
        notes.append(f"The network was made by code of your own, {code}, which was run.")
    if meant.group is None:
        notes.append("No group column: rows were taken as independent, which patches of one patient are not.")
    elif (n := data.frame[meant.group].nunique()) < 10:
        notes.append(f"Only {n} groups: the intervals, which resample them, are not to be trusted.")
    notes += [*mixture_notes(data), *data.notes]
    notes += [note for name in concepts if (note := data.looks_categorical(name))]
    classes = dict.fromkeys([*concepts, *([meant.group] if meant.group else [])])
    notes += [note for name in classes for note in (data.looks_missing(name), data.spelled_alike(name)) if note]
    return tuple(notes)


def versions() -> dict[str, str]:
    """Return what a result depends on, each with its version."""
    names = ("conceptkit", "torch", "timm", "numpy", "scikit-learn", "lightning", "umap-learn")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def at_stage(progress: Progress, stage: str) -> Callable[[int, int], None]:
    """Return a progress that knows its stage."""
    return lambda done, todo: progress(stage, done, todo)
