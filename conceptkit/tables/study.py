"""The study file: table, model, layer, concepts, group, main task and splits, named once."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from conceptkit.errors import InputError, near_names
from conceptkit.images.image_files import SUFFIXES
from conceptkit.options.base import declare, is_frame, names_of, network_given, text_of
from conceptkit.tables.patches import MemoryTable, PatchTable, as_table, load_table, table_digest
from conceptkit.tables.table_reading import PARQUET

STUDY_FILE = "conceptkit.toml"
"""Name under which commands look for a study in the current folder."""


@declare
class SplitNames:
    """Which values of the split column mean what; every other value is an evaluation split."""

    column: str = "split"
    train: str = "train"
    val: str = "val"
    read: str = "internal"
    """The evaluation split on which concepts and leakage of trained networks are read; all evaluation rows without
    it."""


@declare
class Study:
    """A study: what commands use where their options say nothing else."""

    name: str
    table: Path | MemoryTable
    """Path of the table, or a table in memory: pandas, polars"""
    model: Any = None
    """Name, checkpoint folder, ``package.module:factory``, or a torch module"""
    weights: str | None = None
    layers: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    """Concepts to probe"""
    encourage: tuple[str, ...] = ()
    discourage: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    """Models of ``guide --ablate study``, such as ``count, -center``"""
    group: str | None = None
    label: str = "label"
    """Column of the main task"""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Concept → ``continuous`` or ``categorical``, overriding the column's type"""
    units: Mapping[str, str] = field(default_factory=dict)
    """Concept → unit, for people to read"""
    splits: SplitNames = field(default_factory=SplitNames)
    synthetic: bool = False
    """True for generated tissue"""
    stated_in: Path | None = field(default=None, compare=False)
    """The study file it was read from, which may come from a stranger: code that it names as its model is not run"""

    def __post_init__(self) -> None:
        """Bring every field into its type; :class:`InputError` for what has another."""
        values: dict[str, Any] = {"table": as_table(self.table)}
        values |= {name: text_of(name, getattr(self, name)) for name in ("name", "weights", "group", "label")}
        for name in ("layers", "concepts", "encourage", "discourage", "grid"):
            values[name] = names_of(name, getattr(self, name))
        if self.model is not None:
            values["model"] = network_given(self.model)
        if not isinstance(self.splits, SplitNames):
            raise InputError(f"splits: must be SplitNames, got a {type(self.splits).__name__}.")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def load_table(self) -> PatchTable:
        """Load the study's patch table."""
        return load_table(self.table, kinds=self.kinds)

    @property
    def model_name(self) -> str | None:
        """Return the model as it is named, or the class of a torch module."""
        return self.model if self.model is None or isinstance(self.model, str) else type(self.model).__qualname__

    def table_digest(self) -> str:
        """Return a digest of the table's content."""
        return table_digest(self.table)

    def replace(self, **changes: Any) -> Study:
        """Return the study with some fields changed; ``None`` leaves a field as it is."""
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})


_TOP = ("name", "table", "model", "weights", "layers", "group", "label", "concepts", "splits", "grid")
_CONCEPTS = ("probe", "encourage", "discourage", "kind", "unit")
_GRID = ("models",)
_SPLITS = tuple(f.name for f in dataclasses.fields(SplitNames))


def load_study(given: Any) -> Study:
    """Return a study in whatever form it is given.

    Parameters
    ----------
    given : a study file (TOML), or a folder that holds a ``conceptkit.toml``; paths in it are relative to its folder.
        Or a table: its path (CSV or Parquet) or a DataFrame (pandas or polars), see :func:`table_study`. A
        :class:`Study` is returned as it is

    Raises
    ------
    InputError
        when the file is missing, is not TOML, has an unknown key, has no ``table``, or a value has the wrong type; or
        the table cannot be read
    """
    if isinstance(given, Study):
        return given
    if is_frame(given):
        return table_study(as_table(given))
    if not isinstance(given, str | Path):
        raise InputError(
            "study: must be a study, the path of its file, folder or table, or a DataFrame (pandas or polars), got a "
            f"{type(given).__name__}."
        )
    path = Path(given)
    if path.suffix.lower() in (".csv", *PARQUET) and not path.is_dir():
        return table_study(path)
    if path.is_dir():
        _refuse_images(path)
        path = path / STUDY_FILE
    return _read_study(path)


def _refuse_images(folder: Path) -> None:
    """Raise :class:`InputError` for a folder of images, from which a table must be made first."""
    if (folder / STUDY_FILE).exists():
        return
    within = (file for place in (folder, *filter(Path.is_dir, folder.iterdir())) for file in place.iterdir())
    if any(file.suffix.lower() in SUFFIXES for file in within):
        raise InputError(
            f"study: {folder} holds images and no {STUDY_FILE}; conceptkit adapt classes {folder} --out patches.csv "
            "makes a table of images in a folder per class."
        )


def _read_study(path: Path) -> Study:
    if not path.is_file():
        raise InputError(f"study: file {path} not found.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:  # numbers and nesting without end among them
        raise InputError(f"study: {path} is not a TOML file ({error}).") from None
    _check_keys(path, "", values, _TOP)
    if "table" not in values:
        raise InputError(f'study: {path} has no table; write a line such as table = "patches.csv".')
    concepts = _section(path, values, "concepts", _CONCEPTS)
    splits = _section(path, values, "splits", _SPLITS)
    grid = _section(path, values, "grid", _GRID)
    folder = path.parent
    text = {
        k: _text(path, k, values[k]) for k in ("name", "table", "model", "weights", "group", "label") if k in values
    }
    return Study(
        name=text.get("name", folder.resolve().name),
        table=folder / text["table"],
        model=_local(folder, text.get("model")),
        weights=_local(folder, text.get("weights")),
        layers=_names(path, "layers", values.get("layers", [])),
        concepts=_names(path, "concepts.probe", concepts.get("probe", [])),
        encourage=_names(path, "concepts.encourage", concepts.get("encourage", [])),
        discourage=_names(path, "concepts.discourage", concepts.get("discourage", [])),
        grid=_names(path, "grid.models", grid.get("models", [])),
        group=text.get("group"),
        label=text.get("label", "label"),
        kinds=_pairs(path, "concepts.kind", concepts.get("kind", {})),
        units=_pairs(path, "concepts.unit", concepts.get("unit", {})),
        splits=SplitNames(**_pairs(path, "splits", splits)),
        stated_in=path,
    )


def table_study(table: Path | MemoryTable) -> Study:
    """Return the study that a bare patch table makes: its name, and ``group`` or ``patient`` as groups if there."""
    columns = load_table(table).frame.columns
    group = next((c for c in ("group", "patient") if c in columns), None)
    return Study(name=table.stem, table=table, group=group)


def _local(folder: Path, name: str | None) -> str | None:
    """Resolve a checkpoint or weights file next to the study; names such as ``imagenet`` stay as they are."""
    if name is None or not (folder / name).exists():
        return name
    return str(folder / name)


def _check_keys(path: Path, section: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            raise InputError(f"study: {path} has an unknown key {section + key!r}; {near_names(key, known)}.")


def _section(path: Path, values: Mapping[str, Any], name: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    section = values.get(name, {})
    if not isinstance(section, dict):
        raise InputError(f"study: {name} in {path} must be a section [{name}], got {section!r}.")
    _check_keys(path, f"{name}.", section, known)
    return section


def _text(path: Path, key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"study: {key} in {path} must be text, got {value!r}.")
    return value


def _names(path: Path, key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [v.strip() for v in value.split(",") if v.strip()]
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise InputError(f"study: {key} in {path} must be a list of names, got {value!r}.")
    return tuple(value)


def _pairs(path: Path, key: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise InputError(f'study: {key} in {path} must be name = "text" pairs, got {value!r}.')
    return value
