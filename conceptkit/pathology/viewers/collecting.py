"""Objects that were read from a viewer, collected column by column: a million fit into memory."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from numpy.typing import NDArray

from conceptkit.pathology.viewers.shapes import without_unit

_NAN = float("nan")


@dataclass
class Columns:
    """Measurements and texts of objects, of which each may have others."""

    count: int = 0
    classes: list[str] = field(default_factory=list)
    numbers: dict[str, array[float]] = field(default_factory=dict)
    texts: dict[str, list[str | None]] = field(default_factory=dict)

    def add(self, classification: str, measures: Mapping[str, float], metadata: Mapping[str, str]) -> None:
        """Add an object."""
        for name, value in measures.items():
            column = self.numbers.get(name)
            if column is None:
                column = self.numbers[name] = array("d")
            if len(column) < self.count:
                column.extend([_NAN] * (self.count - len(column)))
            column.append(value)
        for name, text in metadata.items():
            words = self.texts.setdefault(name, [])
            if len(words) < self.count:
                words.extend([None] * (self.count - len(words)))
            words.append(str(text))
        self.classes.append(classification)
        self.count += 1

    def frame(self, described: Mapping[str, Any] | None) -> pd.DataFrame:
        """Return the columns; ``described`` are their names, types and classes as they were exported.

        A measurement is named as its column, without its unit, unless two would have one name.
        """
        short = [without_unit(name) for name in self.numbers]
        names = short if len(set(short)) == len(short) else list(self.numbers)
        kinds: Mapping[str, str] = described["kinds"] if described else {}
        columns: dict[str, Any] = {}
        for name, values in zip(names, self.numbers.values(), strict=True):
            filled = np.full(self.count, np.nan)
            filled[: len(values)] = values
            columns[name] = restored(pd.Series(filled), kinds.get(name, "number"))
        for name, words in self.texts.items():
            text = pd.Series(words + [None] * (self.count - len(words)), dtype="str")
            columns[name] = restored(text, kinds.get(name, "text"))
        return pd.DataFrame(columns, index=range(self.count))

    def labels(self, described: Mapping[str, Any] | None, known: Sequence[str] = ()) -> pd.Series[Any]:
        """Return the classes as the table spells them, missing where an object has none."""
        exported = described["classes"] if described else {}
        spelling = {name.lower(): name for name in known} | {shown.lower(): name for name, shown in exported.items()}
        words = [spelling.get(name.lower(), name) if name else None for name in self.classes]
        kind = described["kinds"].get(described["label"], "text") if described and described["label"] else "text"
        return restored(pd.Series(words, dtype="str"), kind if kind != "text" else "text")


def restored(column: pd.Series[Any], kind: str) -> pd.Series[Any]:
    """Return a column in the type that it was exported with, where its values still allow it."""
    if kind == "text":
        return column
    if kind == "bool":
        flags = column.map({"True": True, "False": False, 1.0: True, 0.0: False})
        return (
            column
            if (flags.isna() != column.isna()).any()
            else flags.astype("bool" if flags.notna().all() else "object")
        )
    numbers = pd.to_numeric(column, errors="coerce")
    if (numbers.isna() != column.isna()).any():
        return column
    whole = kind == "integer" and numbers.notna().all() and (numbers == numbers.round()).all()
    return numbers.astype("int64") if whole else numbers.astype("float64")


@dataclass
class Rows(Columns):
    """Tiles."""

    ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    places: array[float] = field(default_factory=lambda: array("d"))

    def boxes(self) -> NDArray[np.float64]:
        """Return left, top, right and bottom, (n, 4), in pixels of the image as the viewer shows it."""
        return np.array(self.places).reshape(-1, 4)


@dataclass
class Nuclei(Columns):
    """Nuclei, with their contours one after the other."""

    points: array[float] = field(default_factory=lambda: array("d"))
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    centres: array[float] = field(default_factory=lambda: array("d"))

    def place(self, ring: NDArray[np.float64]) -> None:
        """Add the outline (k, 2) of the next nucleus; one point is its place, without an outline."""
        if len(ring) > 1:
            ring = ring[:-1] if (ring[0] == ring[-1]).all() else ring
            self.points.extend(ring.ravel())
            self.centres.extend(_centroid(ring))
        else:
            self.centres.extend(ring[0])
        self.ends.append(len(self.points) // 2)

    def contours(self, corner: tuple[int, int]) -> Any:
        """Return the contours as Arrow's lists of x and y, in pixels of level 0; null without one."""
        flat = np.array(self.points).reshape(-1, 2) + corner
        ends = np.array(self.ends, dtype=np.int32)
        values = pyarrow.array(flat.ravel())
        pairs = pyarrow.ListArray.from_arrays(np.arange(0, 2 * len(flat) + 1, 2, dtype=np.int32), values)
        empty = np.append(np.diff(ends) == 0, False)
        return pyarrow.ListArray.from_arrays(pyarrow.array(ends, mask=empty), pairs)


def _centroid(ring: NDArray[np.float64]) -> tuple[float, float]:
    """Return the centre of the area within a ring (k, 2), first point not repeated."""
    (x, y), (u, v) = ring.T, np.roll(ring, -1, axis=0).T
    cross = x * v - u * y
    area = cross.sum()
    if abs(area) < 1e-9:
        return float(x.mean()), float(y.mean())
    return float(((x + u) * cross).sum() / (3 * area)), float(((y + v) * cross).sum() / (3 * area))
