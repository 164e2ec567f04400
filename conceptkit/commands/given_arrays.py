"""Arrays and columns of any library, as numbers or classes: each with its obvious meaning, or refused."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from numpy.typing import NDArray
from pandas.api import types

from conceptkit.errors import InputError
from conceptkit.tables.table_reading import check_spelling, is_number, label_of

_DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)

_COMPARED = 100
"""Rows in which every feature is compared with a concept"""

Values = NDArray[Any]
"""(n,) float64 with NaN where missing (continuous), or objects, text with ``None`` where missing (categorical)"""


def given_features(argument: str, given: Any) -> NDArray[Any]:
    """Return features (n, d), floating."""
    given = _frame(given)
    if _is_pandas(given, "DataFrame"):
        for name, column in given.items():
            if _kind_of(f"{argument}[{name!r}]", column) != "continuous":
                raise InputError(f"{argument}: must be numbers, column {name!r} holds {column.dtype}.")
        narrow = all(column.dtype == np.float32 for _, column in given.items())
        given = given.to_numpy(dtype=np.float32 if narrow else np.float64, na_value=np.nan)
    array = _array(argument, given)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise InputError(f"{argument}: must be numbers of shape (n, d), got {array.dtype} of shape {array.shape}.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def given_columns(argument: str, given: Any) -> dict[str, Any]:
    """Return name → column of a mapping or a dataframe of any library."""
    given = _frame(given)
    if not isinstance(given, Mapping) and not _is_pandas(given, "DataFrame"):
        raise InputError(
            f"{argument}: must be a mapping of names to columns or a dataframe, got {type(given).__name__}."
        )
    named = {str(name): column for name, column in given.items()}
    if len(named) < len(given.keys()):
        raise InputError(f"{argument}: names must be unique, got {', '.join(map(str, given.keys()))}.")
    return named


def given_column(argument: str, given: Any, n: int, *, categorical: bool = False) -> Values:
    """Return a column of n values: numbers are continuous; text, booleans and categories are classes.

    Parameters
    ----------
    categorical : whether to treat it as classes, whatever its type

    Raises
    ------
    InputError
        when it has another length, or its values are neither numbers nor classes, or both
    """
    column = _column(argument, given, n)
    kind = "categorical" if categorical else _kind_of(argument, column)
    if kind == "continuous":
        return _numbers(column)
    _check_exact(argument, column)
    labels = _labels(column)
    _check_blanks(argument, labels)
    check_spelling(argument, "it", labels)
    return labels


def given_labels(argument: str, given: Any, n: int) -> Values:
    """Return one label for each of n rows, of text or whole numbers; none may be missing."""
    column = _column(argument, given, n)
    families = _families(column)
    if len(families) > 1:
        raise InputError(
            f"{argument}: holds {' and '.join(sorted(families))}, so that 1 and '1' may be the same; give all as text."
        )
    if "complex numbers" in families:
        raise InputError(f"{argument}: must be text or numbers, got complex numbers.")
    _check_exact(argument, column)
    labels = _labels(column)
    missing = sum(label is None for label in labels)
    if missing:
        raise InputError(f"{argument}: every row needs a {argument.rstrip('s')}, {missing} of {n} have none.")
    _check_blanks(argument, labels)
    check_spelling(argument, "it", labels)
    return labels


def check_features(argument: str, given: Any, X: NDArray[Any], concepts: Mapping[str, Values]) -> list[str]:
    """Return a note on each feature that equals a concept; of a dataframe, refuse such a column.

    Parameters
    ----------
    given : the features as they were given
    X : (n, d) these features
    concepts : name → (n,) values, rows in the order of X

    Raises
    ------
    InputError
        when a dataframe has a column that has the name or the values of a concept
    """
    frame = _frame(given)
    names = [str(name) for name in frame.columns] if _is_pandas(frame, "DataFrame") else []
    notes = []
    for concept, values in concepts.items():
        at = names.index(concept) if concept in names else _equal_column(X, values)
        if at is None:
            continue
        if names:
            raise InputError(
                f"{argument}: column {names[at]!r} is the concept {concept!r}, which would be predicted from itself; "
                "drop it from the features."
            )
        notes.append(
            f"Feature {at} (counted from 0) of {argument} equals the concept {concept} in every row: a score of "
            f"{concept} says nothing about the other features."
        )
    return notes


def _equal_column(X: NDArray[Any], values: Values) -> int | None:
    """Return the number of a column (n,) that equals a concept wherever this is known, and varies there."""
    if values.dtype == object:
        if not all(v is None or is_number(v) for v in values):
            return None
        values = np.array([np.nan if v is None else float(v) for v in values])
    known = np.flatnonzero(np.isfinite(values))
    with np.errstate(over="ignore"):
        values = values[known].astype(X.dtype)
    if not len(known) or not np.ptp(values) > 0:
        return None
    few = slice(0, _COMPARED)  # which rules out nearly all columns without a copy of X
    for at in np.flatnonzero((X[known[few]] == values[few, None]).all(axis=0)):
        if (X[known, at] == values).all():
            return int(at)
    return None


def check_same_order(**given: Any) -> None:
    """Refuse pandas objects whose indexes hold the same labels in another order: rows are matched by position."""
    first: tuple[str, Any] | None = None
    flat = [
        (f"{argument}[{key!r}]" if isinstance(value, Mapping) else argument, one)
        for argument, value in given.items()
        for key, one in (value.items() if isinstance(value, Mapping) else [("", value)])
    ]
    for argument, value in flat:
        if not _is_pandas(value, "DataFrame") and not _is_pandas(value, "Series"):
            continue
        if first is None:
            first = argument, value.index
        elif len(first[1]) == len(value) and not first[1].equals(value.index) and set(first[1]) == set(value.index):
            raise InputError(
                f"{argument}: rows are matched by position, and the index of {argument} has the labels of that of "
                f"{first[0]} in another order; sort both alike, or drop an index with reset_index(drop=True)."
            )


def _is_pandas(given: Any, name: str) -> bool:
    return any(cls.__module__.startswith("pandas") and cls.__name__ == name for cls in type(given).__mro__)


def _frame(given: Any) -> Any:
    """Return a dataframe of another library as pandas' own, its types kept."""
    if isinstance(given, Mapping | np.ndarray | list | tuple) or _is_pandas(given, "DataFrame"):
        return given
    if hasattr(type(given), "columns") or hasattr(type(given), "column_names"):
        if hasattr(given, "__arrow_c_stream__"):
            table = pyarrow.table(given)
            return pd.DataFrame({name: _of_arrow(table[name]) for name in table.column_names})
        if hasattr(given, "to_pandas"):
            return given.to_pandas()
    return given


def _of_arrow(column: Any) -> pd.Series[Any]:
    if pyarrow.types.is_dictionary(column.type):  # categories
        codes = [None if index is None else names[index] for names, index in _indices(column)]
        return pd.Series(codes, dtype="category")
    if pyarrow.types.is_string_view(column.type):
        column = column.cast(pyarrow.large_string())  # pandas takes no views
    return pd.Series(pd.arrays.ArrowExtensionArray(column))


def _indices(column: Any) -> Iterator[tuple[list[Any], int | None]]:
    """Yield the categories and the number of a category of each row of an Arrow dictionary."""
    for chunk in getattr(column, "chunks", [column]):
        names = chunk.dictionary.to_pylist()
        yield from ((names, index) for index in chunk.indices.to_pylist())


def _array(argument: str, given: Any) -> NDArray[Any]:
    """Return a NumPy array; a tensor leaves its graph and device, what is masked is missing."""
    if hasattr(given, "detach"):  # torch
        given = given.detach().cpu()
        given = given.float() if given.dtype.is_floating_point and given.dtype.itemsize < 4 else given
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(object if given.dtype.kind not in "iuf" else np.float64), np.nan)
    try:
        array = np.asarray(given)
    except Exception as error:  # every library raises its own
        raise InputError(f"{argument}: cannot be read as an array ({str(error).splitlines()[0]}).") from None
    if array.dtype.names is not None:
        raise InputError(f"{argument}: has the fields {', '.join(array.dtype.names)}; give one of them.")
    if array.ndim == 0:
        raise InputError(f"{argument}: must be a dense array, got {type(given).__name__}; convert it to NumPy.")
    return array


def _column(argument: str, given: Any, n: int) -> pd.Series[Any]:
    """Return a column as a pandas series of n values."""
    if not _is_pandas(given, "Series"):
        if isinstance(given, list | tuple) and not any(np.ndim(v) for v in given):
            listed = np.empty(len(given), dtype=object)  # NumPy would turn numbers into text in a mixed list
            listed[:] = [v.detach().item() if hasattr(v, "detach") else v for v in given]
            given = listed
        elif hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
            given = _of_arrow(
                pyarrow.chunked_array(given) if hasattr(given, "__arrow_c_stream__") else pyarrow.array(given)
            )
        elif not any(cls.__module__.startswith("pandas") for cls in type(given).__mro__):
            given = _array(argument, given)
        shape = (len(given),) if getattr(given, "ndim", 1) == 1 else np.shape(given)
        if shape != (n,):
            raise InputError(f"{argument}: must have one value for each of the {n} rows, got shape {shape}.")
        given = pd.Series(given)
    series: pd.Series[Any] = given
    if len(series) != n:
        raise InputError(f"{argument}: must have one value for each of the {n} rows, got shape ({len(series)},).")
    return series.astype("float64") if str(series.dtype).startswith("decimal") else series.reset_index(drop=True)


def _kind_of(argument: str, column: pd.Series[Any]) -> str:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "categorical"
    families = _families(column)
    if len(families) > 1:
        raise InputError(
            f"{argument}: holds {' and '.join(sorted(families))}; give numbers only, or name it in categorical."
        )
    [family] = families or {"numbers"}
    if family in ("text", "booleans"):
        return "categorical"
    if family != "numbers":
        raise InputError(f"{argument}: holds {family}, neither numbers nor classes; convert it to numbers or text.")
    return "continuous"


def _families(column: pd.Series[Any]) -> set[str]:
    """Return what kinds of values a column holds, missing ones aside."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        column = pd.Series(dtype.categories)
        dtype = column.dtype
    if types.is_bool_dtype(dtype):
        return {"booleans"}
    if types.is_complex_dtype(dtype):
        return {"complex numbers"}
    if types.is_numeric_dtype(dtype):
        return {"numbers"}
    if isinstance(dtype, pd.StringDtype):
        return {"text"}
    return {_family(value) for value in column if not _is_missing(value)}


def _family(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "booleans"
    if isinstance(value, str | bytes):
        return "text"
    if isinstance(value, _DATES):
        return "dates or durations"
    if isinstance(value, numbers.Real | Decimal | np.number) and not isinstance(value, complex | np.complexfloating):
        return "numbers"
    return "complex numbers" if isinstance(value, numbers.Complex) else f"values of type {type(value).__name__}"


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (not isinstance(value, str | bytes) and value != value)


def _numbers(column: pd.Series[Any]) -> NDArray[np.float64]:
    if column.dtype == object:
        return np.array([np.nan if _is_missing(v) else float(v) for v in column], dtype=np.float64)
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _labels(column: pd.Series[Any]) -> NDArray[Any]:
    """Return text, ``None`` where missing; 3.0, which a column with gaps makes of 3, is 3."""

    def name(value: Any) -> str | None:
        if _is_missing(value):
            return None
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else label_of(value)

    return np.array([name(v) for v in column], dtype=object)


def _check_exact(argument: str, column: pd.Series[Any]) -> None:
    """Refuse whole numbers that are too large for their floats, which make one of several ids."""
    digits = {"float16": 11, "float32": 24, "float64": 53}.get(str(column.dtype).lower())
    if digits is not None and (inexact := column[column.abs() >= 2.0**digits].dropna()).size:
        raise InputError(
            f"{argument}: {inexact.iloc[0]:.0f} is too large to be exact as {column.dtype}, so that several values may "
            "have become one; give integers or text."
        )


def _check_blanks(argument: str, labels: NDArray[Any]) -> None:
    met: dict[str, str] = {}
    for label in sorted({v for v in labels if v is not None}):
        if (other := met.setdefault(label.strip(), label)) != label:
            raise InputError(f"{argument}: {other!r} and {label!r} differ only in spaces; write them the same way.")
