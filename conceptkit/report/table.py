"""One table of the report: tidy numbers, and how people read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
from pandas.api.types import is_numeric_dtype

from conceptkit.report.wording import MISSING, as_float, interval, is_finite, number

ENDS = ("low", "high")

MERGED = (*ENDS, "sd", "effective")
"""What columns are called that stand next to a number in its cell: ``x low`` and so on"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: tidy numbers, and their caption."""

    name: str
    """Short name, fit for a file."""
    title: str
    caption: str
    frame: pd.DataFrame
    """Numbers as numbers. Columns ``x low`` and ``x high`` are the 95 % interval of ``x``, ``x sd`` its spread, and
    ``x effective`` the effective number of a count ``x``."""
    digits: int = 2
    """Decimals shown."""
    most_digits: int = 3
    """Decimals of an interval where fewer would move an end onto 0."""
    unshown: frozenset[str] = frozenset()
    """Columns for files only: the same in every row, so that the caption states them."""
    details: bool = False
    """True: on the page and in files; in a terminal with ``--verbose`` only."""
    apart: tuple[str, ...] = ()
    """Columns by whose values a terminal shows the table in parts, which have them in their titles"""


Row = Mapping[str, object]


def make_table(
    name: str,
    title: str,
    caption: str,
    rows: Iterable[Row],
    *,
    without: Collection[str] = (),
    digits: int = 2,
    most_digits: int = 3,
    unshown: Collection[str] = (),
    details: bool = False,
    apart: tuple[str, ...] = (),
) -> Table:
    """Return a table of rows; columns without a single value are dropped, and those of ``without``."""
    kept = list(rows)
    columns = [column for column in (kept[0] if kept else ()) if any(_has_value(row[column]) for row in kept)]
    dropped = {*without, *(f"{column} {end}" for column in without for end in MERGED)}
    return Table(
        name=name,
        title=title,
        caption=caption,
        frame=pd.DataFrame(kept, columns=[column for column in columns if column not in dropped]),
        digits=digits,
        most_digits=most_digits,
        unshown=frozenset(unshown),
        details=details,
        apart=apart,
    )


def in_parts(table: Table) -> list[Table]:
    """Return the parts in which a terminal shows the table; the table itself if it is shown as one."""
    if not table.apart or table.frame.empty:
        return [table]
    first, *others = table.apart
    parts = []
    for values, frame in table.frame.groupby(list(table.apart), sort=False):
        words = [f"{table.title}: {values[0]}", *(f"{c} {v}" for c, v in zip(others, values[1:], strict=True))]
        unshown = table.unshown | {first, *others}
        parts.append(dataclasses.replace(table, title=" ".join(words), frame=frame, unshown=unshown, apart=()))
    return parts


def _has_value(value: object) -> bool:
    return bool(value) if isinstance(value, str) else is_finite(value)


def ends(column: str, value: object, low: object, high: object) -> dict[str, float]:
    """Return the cells of a number with its interval."""
    return {column: as_float(value), f"{column} low": as_float(low), f"{column} high": as_float(high)}


def spread(column: str, value: float, sd: float) -> dict[str, float]:
    """Return the cells of a mean with its standard deviation."""
    return {column: value, f"{column} sd": sd}


def shown(table: Table) -> pd.DataFrame:
    """Return the table as shown: every cell a text, with intervals and spreads next to their number."""
    frame, digits = table.frame, table.digits
    parts = {f"{column} {end}" for column in frame.columns for end in MERGED}

    def cells(column: str) -> list[str]:
        values = frame[column].tolist()
        if f"{column} low" in frame:
            limits = zip(values, frame[f"{column} low"].tolist(), frame[f"{column} high"].tolist(), strict=True)
            signed = column.startswith("difference")
            return [interval(*limit, digits=digits, most=table.most_digits, signed=signed) for limit in limits]
        if f"{column} sd" in frame:
            sds = [number(sd, digits=digits) for sd in frame[f"{column} sd"].tolist()]
            texts = [number(v, digits=digits) for v in values]
            return [text if sd == MISSING else f"{text} ± {sd}" for text, sd in zip(texts, sds, strict=True)]
        if f"{column} effective" in frame:
            effective = [number(v, digits=1) for v in frame[f"{column} effective"].tolist()]
            return [f"{v} ({n})" if n != MISSING else f"{v}" for v, n in zip(values, effective, strict=True)]
        return [_cell(v, column, digits) for v in values]

    names = [str(column) for column in frame.columns if column not in parts | table.unshown]
    return pd.DataFrame({name: cells(name) for name in names}, columns=names, dtype=object)


def _cell(value: object, column: str, digits: int) -> str:
    if isinstance(value, str):
        return value or MISSING
    if not is_finite(value):
        return MISSING
    if column in ("p", "p within", "least p", "erased p", "q") and isinstance(value, float):
        return "< 0.0001" if value < 0.0001 else number(value, digits=4)
    if column in ("alpha", "noise", "fraction") and isinstance(value, float):  # they may span decades
        return f"{float(f'{value:.3g}'):g}".replace("-", "−")
    if isinstance(value, int):
        return str(value)
    digits = 1 if column.startswith("effective ") else digits
    return number(value, digits=digits, signed=column.startswith("difference"))


def numeric_columns(table: Table) -> set[str]:
    """Return the columns of :func:`shown` that hold numbers, to be set flush right."""
    return {str(c) for c in table.frame.columns if is_numeric_dtype(table.frame[c])}
