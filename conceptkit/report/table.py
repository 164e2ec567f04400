"""One table of the report: tidy numbers, and how people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conceptkit.report.wording import MISSING, interval, is_finite, number

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: tidy numbers, and what a reader has to know of them."""

    name: str
    """Short name, fit for a file."""
    title: str
    caption: str
    frame: pd.DataFrame
    """Numbers as numbers. Columns ``x low`` and ``x high`` are the 95 % interval of ``x``, ``x sd`` its spread."""
    digits: int = 2
    """Decimals shown."""
    most_digits: int = 3
    """Decimals of an interval where fewer would move an end onto 0."""
    unshown: frozenset[str] = frozenset()
    """Columns for files alone: the same in every row, so that the caption says them once."""


def shown(table: Table) -> pd.DataFrame:
    """Return the table as people read it: every cell a text, intervals and spreads beside their number."""
    import pandas as pd

    frame, digits = table.frame, table.digits
    parts = {f"{column} {end}" for column in frame.columns for end in ("low", "high", "sd")}

    def cells(column: str) -> list[str]:
        values = frame[column].tolist()
        if f"{column} low" in frame:
            ends = zip(values, frame[f"{column} low"].tolist(), frame[f"{column} high"].tolist(), strict=True)
            signed = column.startswith("difference")
            return [interval(*end, digits=digits, most=table.most_digits, signed=signed) for end in ends]
        if f"{column} sd" in frame:
            spreads = [number(sd, digits=digits) for sd in frame[f"{column} sd"].tolist()]
            texts = [number(v, digits=digits) for v in values]
            return [t if sd == MISSING else f"{t} ± {sd}" for t, sd in zip(texts, spreads, strict=True)]
        return [_cell(v, column, digits) for v in values]

    names = [str(column) for column in frame.columns if column not in parts | table.unshown]
    return pd.DataFrame({name: cells(name) for name in names}, columns=names, dtype=object)


def _cell(value: object, column: str, digits: int) -> str:
    if isinstance(value, str):
        return value or MISSING
    if not is_finite(value):
        return MISSING
    if column in ("p", "p within", "least p", "erased p", "q") and isinstance(value, float):
        return number(value, digits=4)
    if column in ("alpha", "noise", "fraction") and isinstance(value, float):  # they may span decades
        return f"{float(f'{value:.3g}'):g}".replace("-", "−")
    return str(value) if isinstance(value, int) else number(value, digits=digits)


def numeric_columns(table: Table) -> set[str]:
    """Return the columns of :func:`shown` that hold numbers, to be set flush right."""
    from pandas.api.types import is_numeric_dtype

    return {str(c) for c in table.frame.columns if is_numeric_dtype(table.frame[c])}


def tidy(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table that has its columns even without a row."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(columns))
