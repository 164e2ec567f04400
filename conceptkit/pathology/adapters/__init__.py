"""Adapters: functions from a published layout of data to a patch table, one file per layout.

An adapter takes positional parameters, ``out`` (the path of the table, from whose folder its paths are read) and other
keyword parameters, and returns :class:`Adapted`. ``conceptkit adapt NAME`` derives from it: the first line of the
docstring and its Parameters section are the help, positional parameters are arguments, the other ones options, and a
sequence is an option that may be repeated, ``lists`` as ``--list``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Adapted:
    """A patch table of a data set, and notes for its reader."""

    table: pd.DataFrame
    notes: tuple[str, ...] = ()
