"""What viewers draw: tiles and nuclei with class and measurements, in pixels of the image as the viewer shows it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from conceptkit.errors import InputError
from conceptkit.images.image_files import image_shape
from conceptkit.pathology.slides import bounds, open_slide

Colour = tuple[int, int, int]

STANDARD: Mapping[str, Colour] = {
    **{"Tumor": (200, 0, 0), "Stroma": (150, 200, 150), "Immune cells": (160, 90, 160), "Necrosis": (50, 50, 50)},
    **{"Other": (255, 200, 0), "Ignore*": (180, 180, 180), "Region*": (0, 0, 180)},
    **{"Positive": (200, 50, 50), "Negative": (90, 90, 180)},
}
"""QuPath's own classes and their colours (``PathClass.StandardPathClasses``)."""

_OTHERS: tuple[Colour, ...] = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)),
    *((86, 180, 233), (213, 94, 0), (140, 122, 0), (110, 110, 110)),
)
"""Colours of other classes (Okabe and Ito), in the order of their names."""

_NAMESPACE = uuid.UUID("6c0f5f1e-8f0b-5d0c-9a57-3f3f1b6f2a10")

_UNIT = re.compile(r"(.*\S) \[[^\[\]]*\]", re.DOTALL)


@dataclass(frozen=True)
class Canvas:
    """An image as a viewer shows it."""

    path: Path
    width: int
    height: int
    left: int = 0
    """Corner of what the viewer shows, in pixels of level 0."""
    top: int = 0
    mpp: float | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """One object of a viewer."""

    kind: str
    """``tile``, ``cell``, or ``point``: a nucleus without a contour, or a row without a size."""
    id: str
    ring: list[list[float]]
    """Outline, first point repeated at the end; of a point its one place."""
    name: str | None
    classification: str
    """Class as the viewer spells it, "" where there is none."""
    measures: dict[str, float]
    """Without missing values."""
    metadata: dict[str, str]


def canvas_of(path: Path, *, slide: bool, crop: bool) -> Canvas:
    """Return an image as a viewer shows it.

    With ``crop`` it begins at the corner of the scanned area: QuPath's reader of slides counts from
    ``openslide.bounds-x`` and ``-y`` unless the image is opened with ``--no-crop`` (``OpenSlideImageServer``).
    """
    if not slide:
        height, width = image_shape(path)
        return Canvas(path, width, height)
    with open_slide(path) as opened:
        left, top, width, height = bounds(opened) if crop else (0, 0, opened.width, opened.height)
        return Canvas(path, width, height, left, top, opened.mpp)


def object_id(image: str, name: str) -> str:
    """Return the id of an object of an image: the same in every export, and another one for another image."""
    return str(uuid.uuid5(_NAMESPACE, f"{image}\n{name}"))


def is_own_id(text: str) -> bool:
    """Return whether an id may be one of :func:`object_id`: those that viewers draw have another version."""
    return len(text) == 36 and text[14] == "5"


def spellings(names: Iterable[str]) -> dict[str, str]:
    """Return class → its spelling in a viewer: that of QuPath's own class, where just one of the names is like it."""
    names = list(dict.fromkeys(names))
    lower = [name.lower() for name in names]
    standard = {known.lower(): known for known in STANDARD}
    return {n: standard[n.lower()] if n.lower() in standard and lower.count(n.lower()) == 1 else n for n in names}


def class_colours(names: Iterable[str]) -> dict[str, Colour]:
    """Return class → colour: QuPath's own, else one of eight by the order of names."""
    others = sorted(name for name in set(names) if name not in STANDARD)
    return {**STANDARD, **{name: _OTHERS[k % len(_OTHERS)] for k, name in enumerate(others)}}


def with_unit(name: str, unit: str) -> str:
    """Return the name of a measurement: that of the column and its unit in brackets."""
    return f"{name} [{unit}]" if unit or _UNIT.fullmatch(name) else name


def without_unit(name: str) -> str:
    """Return the name of the column of a measurement."""
    found = _UNIT.fullmatch(name)
    return found[1] if found else name


def find_image(value: str, folder: Path, slides: Path | None) -> Path:
    """Return the file of an image of a table; ``slides`` is a folder that holds them, at any depth.

    Raises
    ------
    InputError
        when there is no such file, or several
    """
    if slides is None:
        if not (folder / value).is_file():
            raise InputError(
                f"slides: {value} is not at {folder / value}; name the folder that holds it now with --slides."
            )
        return folder / value
    name = Path(value).name
    found = [path for path in sorted(slides.rglob("*")) if path.name == name and path.is_file()]
    same = [path for path in found if path.as_posix().endswith(f"/{value.lstrip('./')}")] if len(found) > 1 else found
    if len(same) != 1:
        what = "holds no" if not found else f"holds {len(found)} files named"
        raise InputError(f"slides: {slides} {what} {name}; name the folder that holds it once.")
    return same[0]
