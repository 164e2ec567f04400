"""Common start of every command: study, table, run folder and notes."""

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
from conceptkit.features.slide_files import join_slides
from conceptkit.files.atomic import LOCK_FILE, held
from conceptkit.models.names import is_factory
from conceptkit.options.base import Command, Progress
from conceptkit.records import RECORD_FILE
from conceptkit.synthetic import embedded_study
from conceptkit.tables.patches import PatchTable, as_table
from conceptkit.tables.resolution import mixture_notes
from conceptkit.tables.study import STUDY_FILE, Study, load_study, table_study

Given = ParamSpec("Given")
Result = TypeVar("Result")

UNFINISHED = "unfinished"
"""Folder, in a run folder, of the states from which a killed training continues"""

EMBEDDED = "embedded:"
"""What the name of an embedded study begins with"""

N_RESAMPLES = 2000
"""Bootstrap resamples of groups behind each interval."""


def find_study(study: Any = None, table: Any = None) -> Study:
    """Return the given study, or that of a bare table, of the current folder, or the embedded one.

    Parameters
    ----------
    study : see :func:`conceptkit.tables.study.load_study`; or ``embedded:NAME``, see :func:`.embedded_study`
    table : path, or a table in memory, that replaces the study's. The bare name of the study's own table, as records
        state it, is that table
    """
    if isinstance(study, str) and study.startswith(EMBEDDED):
        found = embedded_study(study.removeprefix(EMBEDDED))
    elif study is not None:
        found = load_study(study)
    elif table is not None:
        return table_study(as_table(table))
    else:
        found = load_study(STUDY_FILE) if Path(STUDY_FILE).is_file() else embedded_study()
    if table is None or (isinstance(table, str | Path) and _is_own(found, str(table))):
        return found
    return found.replace(table=as_table(table), synthetic=False)


def _is_own(study: Study, table: str) -> bool:
    """Return whether a path is the name of the study's table; refuse one that names another file too."""
    own = study.table
    if table != own.name:
        return False
    if isinstance(own, Path) and Path(table).is_file() and own.is_file() and not own.samefile(table):
        raise InputError(
            f"table: {table} names the study's table, {own}, and another file in the current folder; write its whole "
            "path."
        )
    return True


def open_study(
    study: Any,
    table: Any,
    model: Any,
    weights: str | None,
    group: str | None,
    categorical: Sequence[str],
    *,
    opens_model: bool = True,
) -> tuple[Study, PatchTable]:
    """Return the study, with its fields replaced by options, and its table.

    Raises
    ------
    InputError
        when the table has no such column, or a study file names user code as its model and the options do not
    """
    opened = find_study(study, table)
    if opens_model and model is None and opened.stated_in is not None and code_of(opened):
        raise InputError(
            f"model: {opened.stated_in} names {opened.model}, code that opening it would run; name it yourself to "
            f"allow that, as --model {opened.model}."
        )
    if model not in (None, opened.model) and weights is None:
        opened = dataclasses.replace(opened, weights=None)  # the study's weights belong to another model
    opened = opened.replace(model=model, weights=weights, group=group)
    patches = opened.load_table()
    for name in categorical:
        patches.column("categorical", name)
    patches = patches.with_kinds(dict.fromkeys(categorical, "categorical"))
    patches.groups(opened.group)
    return opened, patches


def open_source(
    options: Any, study: Any, *, opens_model: bool = True, per: str | None = None
) -> tuple[Study, PatchTable]:
    """Return the study, with its fields replaced by a command's options, and the rows of its table with features.

    ``per`` is the unit of a table of slides, for commands without that option. See :func:`open_study` and
    :func:`conceptkit.features.slide_files.join_slides`.
    """
    model, weights = getattr(options, "model", None), getattr(options, "weights", None)
    opened, table = open_study(
        study, options.table, model, weights, options.group, options.categorical, opens_model=opens_model
    )
    return opened, join_slides(table, getattr(options, "features", None), getattr(options, "per", per))


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
    """Return the folder to write into, without a record; if none is given, the first unused numbered one."""
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
    """Return whether a folder is missing or empty; that of a run killed at its start is empty."""
    return not place.exists() or (place.is_dir() and all(entry.name == LOCK_FILE for entry in place.iterdir()))


def in_own_folder(command: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator that locks the run folder ``out`` while a function runs, so that a second process is refused.

    Processes of several machines that work on the same run share the lock.
    """

    def decorate(run: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(run)
        def locked(*given: Given.args, **options: Given.kwargs) -> Result:
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
                        if out is None and folder.exists():  # another process uses this number: try the next
                            busy.append(folder)
                            continue
                        raise
                    options["out"] = folder
                    return run(*given, **options)

        return locked

    return decorate


def _tidy(folder: Path) -> None:
    """Remove temporary files of a run that was killed after it had finished."""
    with contextlib.suppress(InputError, OSError), held(folder):
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def split_rows(table: PatchTable, study: Study, split: str | None) -> NDArray[np.bool_]:
    """Return which rows belong to the split; all rows by default."""
    if split is None:
        return np.ones(len(table), dtype=bool)
    column = table.column("split", study.splits.column).astype("str")
    chosen = (column == split).to_numpy(dtype=bool)
    if not chosen.any():
        known = ", ".join(sorted(column.unique()))
        raise InputError(f"split: no row has {study.splits.column} {split!r}; known: {known}.")
    return chosen


def notes_on(study: Study, table: PatchTable, concepts: Iterable[str]) -> tuple[str, ...]:
    """Return notes on study and table, and refuse concepts that are text by mistake."""
    concepts = list(concepts)
    for name in concepts:
        table.check_words(name)
    notes = []
    if study.synthetic:
        notes.append("Synthetic tissue, generated by conceptkit: these numbers do not describe real histology.")
    notes += code_note(study)
    if study.group is None:
        notes.append("No group column: rows were treated as independent, which patches of one patient are not.")
    elif (n := table.frame[study.group].nunique()) < 10:
        notes.append(f"Only {n} groups: the intervals resample groups and are unreliable below 10.")
    notes += [*mixture_notes(table), *table.notes]
    notes += [note for name in concepts if (note := table.looks_categorical(name))]
    classes = dict.fromkeys([*concepts, *([study.group] if study.group else [])])
    notes += [note for name in classes for note in (table.looks_missing(name), table.spelled_alike(name)) if note]
    return tuple(notes)


def code_note(study: Study) -> tuple[str, ...]:
    """Return a sentence when the study names the user's function as its model."""
    code = code_of(study)
    return (f"The network was built by user code, {code}, which was run.",) if code else ()


def code_of(study: Study) -> str | None:
    """Return the user's function that the study names as its model, if it does."""
    if not isinstance(study.model, str) or ":" not in study.model:
        return None
    code = study.model.partition("@")[0]
    return code if is_factory(code) else None


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
