"""From published data sets to the patch table: one file per layout, one function each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Adapted:
    """A patch table made of a data set, and what a reader of it has to know."""

    table: pd.DataFrame
    notes: tuple[str, ...] = ()
