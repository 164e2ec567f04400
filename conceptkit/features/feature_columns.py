"""Which columns of a features file are features, and which are columns of the table or metadata."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types
from scipy.stats import rankdata

from conceptkit.tables.patches import CATEGORICAL, RESERVED
from conceptkit.tables.table_reading import set_aside

_COMPARED = 2**22
"""Largest number of feature values that are compared with columns of the table"""

_ROUNDED = 1e-6
"""A feature whose correlation with a column is this close to 1 is the column, rounded or on another scale."""

_ROWS_APART = 10
"""Rows that must differ from a column's most frequent value; a column with fewer may equal a feature by chance."""

_RANKED = 300
"""Rows whose order is compared"""

_ROWS_OF_A_CLASS = 5
"""Rows of a class in which a feature must be constant to be a function of the classes"""

_METADATA = frozenset(
    (
        *("barcode", "case", "file", "idx", "image", "img", "index", "name", "patch", "path", "patient", "sample"),
        *("slide", "subject", "tile", "wsi", "date", "time", "timestamp", "epoch", "seed", "fold", "split"),
        *("number", "origin", "pos", "position"),
        *("bottom", "col", "column", "coord", "coords", "left", "right", "row", "top", "x", "y"),
        *("downsample", "factor", "height", "level", "mag", "magnification", "mpp", "objective", "pixel", "pixels"),
        *("power", "px", "resolution", "scale", "side", "size", "step", "stride", "um", "width"),
        *("center", "centre", "cluster", "group", "hospital", "scanner", "site", "test", "train", "val"),
        *("class", "classes", "diagnosis", "ground", "gt", "label", "labels", "loss", "outcome", "pred", "predicted"),
        *("code", "grade", "hat", "logit", "response", "score", "stage", "survival", "ypred", "ytrue"),
        *("prediction", "prob", "proba", "probability", "target", "targets", "true", "truth", "tumor", "weight"),
    )
)
"""Words of which the names of columns consist that describe a patch, its place or its label"""

_NUMBERED = (32, 0.9)
"""Number and share of numbered columns (f0, f1, …) from which other columns are not read as features."""


@dataclass
class Columns:
    """The columns of features files."""

    names: list[str] = field(default_factory=list)
    """Names of the features, where the files name them"""
    skipped: dict[str, str] = field(default_factory=dict)
    """Column → why it is not used as a feature"""

    def shown(self, at: int) -> str:
        """Return the name of a feature, or its number."""
        return self.names[at] if self.names else f"number {at}, counted from 0"


def copies_of(X: Any, part: pd.DataFrame) -> dict[int, str]:
    """Return the number of each feature that is a column of the table under another name → which one."""
    at = np.unique(np.linspace(0, len(X) - 1, min(len(X), max(_COMPARED // max(X.shape[1], 1), 20))).astype(np.intp))
    sample = np.asarray(X[at], dtype=np.float32)
    found: dict[int, str] = {}
    for name, column in part.iloc[at].items():
        if name in _NAMES or not _varies(column.dropna()):
            continue
        if not types.is_numeric_dtype(column) or types.is_bool_dtype(column) or name in CATEGORICAL:
            found |= dict.fromkeys(_constant_within(sample, column), f"is a function of {name}")
            continue
        with np.errstate(over="ignore"):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
        here = np.flatnonzero(np.isfinite(values))
        X_here, y = sample[here], values[here]
        if _varies(column.iloc[here[:_RANKED]]):
            ranks = (rankdata(v[:_RANKED], axis=0).astype(np.float32) for v in (X_here, y))
            found |= dict.fromkeys(_linear_in(*ranks), f"increases or decreases with {name} in every row")
        found |= dict.fromkeys(_linear_in(X_here, y), f"is a linear function of {name}")
        found |= dict.fromkeys(np.flatnonzero((X_here == y[:, None]).all(axis=0)).tolist(), f"equals {name}")
    return found


_NAMES = ("patch_id", "image", "slide", "h5", "features", "key", "mask", "split", "group", "patient")
"""Columns of the table that name a row rather than describe it"""


def _varies(column: pd.Series[Any]) -> bool:
    return len(column) > 0 and int(len(column) - column.value_counts().iloc[0]) >= _ROWS_APART


def _linear_in(X: NDArray[np.float32], y: NDArray[np.float32]) -> list[int]:
    """Return the numbers of the features that are ``y`` on another scale or rounded."""
    centered = X - X.mean(axis=0, dtype=np.float64)
    values = y - y.mean(dtype=np.float64)
    scale = np.sqrt((centered**2).sum(axis=0) * (values @ values))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.abs(values @ centered) / scale
    same: list[int] = np.flatnonzero(correlation > 1 - _ROUNDED).tolist()
    return same


def _constant_within(X: NDArray[np.float32], classes: pd.Series[Any]) -> list[int]:
    """Return the numbers of the features that differ between classes and not within them: codes and indicators."""
    numbers = classes.reset_index(drop=True)
    rows = [at for at in numbers.groupby(numbers).indices.values() if len(at) >= _ROWS_OF_A_CLASS]
    if len(rows) < 2:
        return []
    constant = np.all([(X[at] == X[at[0]]).all(axis=0) for at in rows], axis=0)
    varies = np.ptp(np.stack([X[at[0]] for at in rows]), axis=0) > 0
    found: list[int] = np.flatnonzero(constant & varies).tolist()
    return found


def other_columns(frame: pd.DataFrame, of_table: Iterable[Any]) -> dict[str, str]:
    """Return column → why it is not used as a feature."""
    table = {str(name).lower() for name in of_table}
    series = Counter(re.sub(r"\d+", "#", str(name)) for name in frame.columns)
    numbered = {str(name) for name in frame.columns if series[re.sub(r"\d+", "#", str(name))] > 2}
    numeric = [name for name, column in frame.items() if types.is_numeric_dtype(column)]
    mostly = len(numbered) >= _NUMBERED[0] and len(numbered) >= _NUMBERED[1] * len(numeric)
    found = set_aside(frame)
    for name, column in frame.items():
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", str(name))
        if str(name).lower() in (*RESERVED, *CATEGORICAL):
            found[str(name)] = "reserved"
        elif str(name).lower() in table:
            found[str(name)] = "a column of the table"
        elif not types.is_numeric_dtype(column) or types.is_bool_dtype(column):
            found.setdefault(str(name), "no numbers")
        elif str(name) in numbered:
            continue
        elif words and _METADATA.issuperset(word.lower() for word in words):
            found.setdefault(str(name), "metadata")
        elif mostly:
            found.setdefault(str(name), "not numbered as the features are")
    return found
