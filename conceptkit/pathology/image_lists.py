"""Lists of images: a row per image, read as text."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from conceptkit.errors import InputError, near_names

OF_THE_LIST = ("image_id", "image", "mask", "mpp")
"""Columns of the list that have a meaning here."""

_OF_THE_TABLE = ("patch_id", "x", "y", "size", "h5", "key", "row")


def read_list(path: Path) -> pd.DataFrame:
    """Return the list as text, "" where empty, with an ``image_id`` column.

    Not by ``read_csv``, which renames repeated columns, takes a surplus cell for an index and 007 for 7.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError:
        raise InputError(f"images: {path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"images: {path} is a folder; name a CSV file with a column image.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"images: {path} cannot be read as CSV ({error}).") from None
    for number, cells in lines:
        if len(cells) != len(header):
            raise InputError(f"{path}: line {number} has {len(cells)} cells under {len(header)} columns.")
    repeated = sorted({c for c in header if c and header.count(c) > 1})
    if repeated:
        raise InputError(f"{path}: column {repeated[0]} occurs more than once.")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise InputError(f"{path}: cells must be separated by commas, the first line is {header[0]!r}.")
    if "image" not in header:
        raise InputError(f"{path}: a column image is needed; {near_names('image', header)}.")
    for column in header:
        if column in _OF_THE_TABLE:
            raise InputError(f"{path}: column {column} belongs to a patch table, here each row is a whole image.")
    if not lines:
        raise InputError(f"{path}: at least one row is needed, got none.")
    columns = {c: [cells[k].strip() for _, cells in lines] for k, c in enumerate(header) if c}
    given = columns.get("image_id", [""] * len(lines))
    columns["image_id"] = [
        i or Path(image).stem or f"line {number}"
        for i, image, (number, _) in zip(given, columns["image"], lines, strict=True)
    ]
    table = pd.DataFrame(columns, dtype="str")
    twice = table["image_id"][table["image_id"].duplicated()]
    if len(twice):
        raise InputError(f"{path}: image_id {twice.iloc[0]} occurs more than once; give each image its own.")
    for column in ("mask", "mpp"):
        if column not in table:
            table[column] = ""
    return table


def check_case(ids: pd.Series[str], path: Path) -> None:
    """Refuse ids that some file systems take for one name, as a mask would overwrite the other."""
    twice = ids[ids.str.lower().duplicated()]
    if len(twice):
        raise InputError(
            f"{path}: image_id {twice.iloc[0]} differs from another only in capitals; masks need distinct names."
        )


def is_numeric(text: pd.Series[str]) -> bool:
    """Return whether every filled cell is a number; true for an empty column."""
    return bool(pd.to_numeric(text[text != ""], errors="coerce").notna().all())
