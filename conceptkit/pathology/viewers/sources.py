"""Where the objects of an export come from: a patch table in memory, a table of nuclei part by part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from conceptkit.errors import InputError
from conceptkit.families import MEASURES
from conceptkit.pathology.viewers.shapes import Canvas, Shape, spellings
from conceptkit.pathology.viewers.tables import (
    OF_NUCLEI,
    Roles,
    nucleus_shapes,
    read_nuclei,
    roles,
    tile_shapes,
)

Make = Callable[[Canvas], Iterator[Shape]]
"""From an image to its objects, in its pixels"""


@dataclass(frozen=True)
class Patches:
    """The rows of a patch table."""

    kind: ClassVar[str] = "tiles"
    frame: pd.DataFrame
    roles: Roles

    @classmethod
    def of(
        cls, frame: pd.DataFrame, label: str | None, only: Sequence[str], units: Mapping[str, str] | None
    ) -> Patches:
        """Return the patches of a table; see :func:`conceptkit.pathology.viewers.tables.roles`."""
        found = roles(frame, label=label, only=only, units=units)
        if (empty := int(frame[found.whole].isna().sum())) > 0:
            raise InputError(f"table: column {found.whole} is empty in {empty} rows.")
        if found.label is None:
            return cls(frame, found)
        return cls(frame, replace(found, classes=spellings(map(str, frame[found.label].dropna().unique()))))

    @functools.cached_property
    def groups(self) -> dict[str, Any]:
        """Image → its rows."""
        names = self.frame[self.roles.whole].astype("str")
        return {str(name): rows for name, rows in self.frame.groupby(names, sort=True).indices.items()}

    def images(self) -> list[str]:
        """Return the images."""
        return list(self.groups)

    def parts(self) -> Iterator[tuple[str, Make]]:
        """Yield each image, and what makes its objects."""
        for name, rows in self.groups.items():
            yield name, functools.partial(tile_shapes, self.frame.iloc[rows], found=self.roles)

    def mpp(self, image: str) -> float | None:
        """Return the microns per pixel of level 0 that the patches of an image state, where they agree."""
        rows = self.frame.iloc[self.groups[image]]
        if not {"mpp", "size"} <= set(rows):
            return None
        side = rows["side"] if "side" in rows else rows["size"]
        stated = (rows["mpp"] * side / rows["size"]).to_numpy(dtype=np.float64, na_value=np.nan)
        return float(stated[0]) if np.allclose(stated, stated[0], rtol=1e-3) else None

    def described(self) -> dict[str, Any]:
        """Return what reading the objects back needs of the columns."""
        return {"columns": [str(name) for name in self.frame.columns], **_described(self.roles)}


@dataclass(frozen=True)
class Cells:
    """The rows of a table of nuclei, which is read in parts."""

    kind: ClassVar[str] = "nuclei"
    path: Path
    roles: Roles

    @classmethod
    def of(cls, path: Path, label: str | None, only: Sequence[str]) -> Cells:
        """Return the nuclei of a file; see :func:`conceptkit.pathology.viewers.tables.read_nuclei`."""
        first = next(read_nuclei(path), None)
        if first is None:
            raise InputError(f"nuclei: {path} has no rows.")
        frame = first[0]
        units = known_units(frame.columns)
        found = roles(frame, label=label, only=only, units=units, places=(), usual="type", as_text=OF_NUCLEI)
        cells = cls(path, found)
        return cls(path, replace(found, classes=spellings(cells.values(found.label)))) if found.label else cells

    def values(self, column: str) -> list[str]:
        """Return the values of a column, each once."""
        return list(dict.fromkeys(str(v) for part, _ in read_nuclei(self.path) for v in part[column].dropna().unique()))

    def images(self) -> list[str]:
        """Return the images."""
        return self.values(self.roles.whole)

    def parts(self) -> Iterator[tuple[str, Make]]:
        """Yield an image, and what makes some of its objects, as often as there are parts of it."""
        start = 0
        for part, contours in read_nuclei(self.path):
            for name, rows in part.groupby(part[self.roles.whole].astype("str"), sort=False).indices.items():
                make = functools.partial(nucleus_shapes, part.iloc[rows], contours, found=self.roles, start=start)
                yield str(name), make
            start += len(part)

    def mpp(self, image: str) -> float | None:
        """Return ``None``: nuclei state no resolution."""
        return None

    def described(self) -> dict[str, Any]:
        """Return what reading the objects back needs of the columns."""
        return _described(self.roles)


def _described(found: Roles) -> dict[str, Any]:
    return {"label": found.label, "kinds": dict(found.kinds), "classes": dict(found.classes)}


def known_units(names: Iterable[str], stated: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the units of measures and of their predictions; ``stated`` go first."""
    found = {}
    for name in names:
        base = name.removesuffix("_predicted")
        unit = (stated or {}).get(name) or (stated or {}).get(base) or (MEASURES[base].unit if base in MEASURES else "")
        if unit not in ("", "1"):
            found[name] = unit
    return found


def same_image(name: str, names: Sequence[str]) -> str:
    """Return the one of the images that has a name, or a file of its name, with or without suffix."""
    alike: tuple[Callable[[str], bool], ...] = (
        lambda one: one == name,
        lambda one: Path(one).name == Path(name).name,
        lambda one: Path(one).stem == name,  # as nuclei of images are named
    )
    same = next((found for is_same in alike if (found := [one for one in names if is_same(one)])), [])
    if len(same) != 1:
        raise InputError(f"nuclei: {name} is not one of the images of the table, such as {names[0]}.")
    return same[0]
