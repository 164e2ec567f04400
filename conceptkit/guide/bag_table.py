"""From a table of patches to one of bags: a row per slide or patient, with its label, split and concepts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, near_names
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


@dataclass(frozen=True)
class BagTable:
    """Bags as the rows of a table, so that everything that works on rows works on bags."""

    table: PatchTable
    """One row per bag; ``patch_id`` is its name, and there are no pixels"""
    members: tuple[NDArray[np.intp], ...]
    """Row numbers of the patches of each bag"""
    label_rule: str
    """How the label of a bag is defined, in words"""
    positive: NDArray[np.bool_] | None
    """(n patches,) whether a patch has the class that makes a bag positive; ``None`` without such a class"""


@dataclass(frozen=True)
class _Gathered:
    """The patches of each bag."""

    data: PatchTable
    by: str
    names: list[str]
    members: tuple[NDArray[np.intp], ...]

    def constant(self, column: str, what: str, hint: Callable[[list[str]], str] | None = None) -> NDArray[Any]:
        """Return the value (n bags,) of a column in each bag; refuse one that varies within a bag."""
        values = _texts(self.data, self.data.column(what, column))
        out = np.full(len(self.members), None, dtype=object)
        for i, rows in enumerate(self.members):
            own = sorted({v for v in values[rows] if v is not None})
            if len(own) > 1:
                raise InputError(
                    hint(own)
                    if hint
                    else f"{what}: {column} must be the same in all patches of a bag; {self.by} {self.names[i]} has "
                    f"{own[0]!r} and {own[1]!r}."
                )
            out[i] = own[0] if own else None
        return out

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of the known values in each bag (n bags,); NaN where none is known."""
        out = np.full(len(self.members), np.nan)
        for i, rows in enumerate(self.members):
            own = values[rows][~np.isnan(values[rows])]
            if len(own):
                out[i] = own.mean()
        return out


def bag_members(table: PatchTable, by: str) -> tuple[list[str], tuple[NDArray[np.intp], ...]]:
    """Return the names of the bags, sorted, and the row numbers of the patches of each."""
    names = _texts(table, table.column("by", by))
    distinct = sorted({name for name in names if name is not None})
    if not distinct:
        raise InputError(f"by: column {by} has no value.")
    number = {name: i for i, name in enumerate(distinct)}
    codes = np.array([number.get(name, -1) for name in names])
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct) + 1))
    return distinct, tuple(order[starts[i] : starts[i + 1]] for i in range(len(distinct)))


def make_bags(
    table: PatchTable,
    study: Study,
    by: str,
    concepts: Sequence[str],
    *,
    positive: str | None = None,
    share: float = 0.0,
) -> BagTable:
    """Gather patches into bags.

    A continuous concept of a bag is the mean over its patches; a categorical one must be constant in the bag, as split
    and group must. Patches without a bag are skipped.

    Parameters
    ----------
    by : column that names the bag of each patch
    concepts : columns that become concepts of bags
    positive : class of the label; a bag is positive if more than ``share`` of its labelled patches have it

    Raises
    ------
    InputError
        when a column is missing, varies within a bag though it must not, or gives no label
    """
    check_at_least("share", share, 0)
    if not share < 1:
        raise InputError(f"share: must be below 1, got {share}.")
    gathered = _Gathered(table, by, *bag_members(table, by))
    split = study.splits.column
    columns: dict[str, Any] = {"patch_id": gathered.names, split: gathered.constant(split, "split")}
    if study.group is not None:
        columns[study.group] = gathered.names if study.group == by else gathered.constant(study.group, "group")
    kinds: dict[str, str] = {}
    for name in concepts:
        concept = table.concept(name)
        kinds[name] = concept.kind
        continuous = concept.kind == "continuous"
        columns[name] = gathered.mean(concept.values) if continuous else gathered.constant(name, "concept")
    if "center" in table.frame.columns and "center" not in columns:
        with contextlib.suppress(InputError):  # no option asks for it
            columns["center"] = gathered.constant("center", "center")
    if study.label in columns:
        raise InputError(f"label: {study.label} cannot be a concept, the group or the split too.")
    training = columns[split] == study.splits.train
    columns[study.label], rule, is_positive = _labels(gathered, study.label, training, positive, share)
    kinds[study.label] = "categorical"
    return BagTable(PatchTable(pd.DataFrame(columns), table.folder, kinds), gathered.members, rule, is_positive)


def _labels(
    gathered: _Gathered, name: str, training: NDArray[np.bool_], positive: str | None, share: float
) -> tuple[NDArray[Any], str, NDArray[np.bool_] | None]:
    """Return the labels of bags (n bags,), how they are defined, and which patches are positive."""
    table, by = gathered.data, gathered.by
    if name not in table.frame.columns:
        raise InputError(f"label: the table has no column {name!r}; {near_names(name, table.frame.columns)}.")
    label = table.concept(name)
    if label.kind == "continuous":
        if positive is not None:
            raise InputError(f"positive: {name} is continuous; bags are split at the training bags' median of it.")
        means = gathered.mean(label.values)
        if not np.isfinite(means[training]).any():
            raise InputError(f"label: {name} has no value in any training bag.")
        cut = float(np.nanmedian(means[training]))
        texts = [None if np.isnan(m) else f"{name} {'over' if m > cut else 'at most'} {cut:.4g}" for m in means]
        rule = f"the bag's mean {name} is over {cut:.4g}, the median of the training bags"
        return np.array(texts, dtype=object), rule, None
    if positive is None:

        def hint(own: list[str]) -> str:
            return (
                f"label: {name} varies within {by} ({own[0]!r} and {own[1]!r}); with --positive {own[-1]} a bag is "
                "positive if any of its patches has that class, with --share S if more than that share has it."
            )

        return gathered.constant(name, "label", hint), f"{name}, which is the same in all patches of a bag", None
    return _positive_labels(gathered, name, training, positive, share)


def _positive_labels(
    gathered: _Gathered, name: str, training: NDArray[np.bool_], positive: str, share: float
) -> tuple[NDArray[Any], str, NDArray[np.bool_]]:
    values = gathered.data.concept(name).values
    classes = sorted({str(v) for v in values if v is not None})
    if positive not in classes:
        raise InputError(f"positive: {name} has no class {positive!r}; {near_names(positive, classes)}.")
    is_positive = np.array([v == positive for v in values], dtype=bool)
    known = np.array([v is not None for v in values], dtype=bool)
    part = gathered.mean(np.where(known, is_positive.astype(float), np.nan))
    # In alphabetical order too, so that a probability is that of the positive class.
    texts = [None if np.isnan(p) else f"{positive} {'over' if p > share else 'at most'} {share:g}" for p in part]
    own = part[training & np.isfinite(part)]
    if len(own) and len({bool(one > share) for one in own}) == 1 and own.min() < own.max():
        low, middle, high = (f"{value:.3g}" for value in (own.min(), np.median(own), own.max()))
        raise InputError(
            f"share: {share:g} separates no training bags: {positive} are {low} to {high} of their patches, {middle} "
            "in the median bag; set a share in between."
        )
    rule = f"more than {share:g} of a bag's labelled patches are {positive}" if share else f"any patch is {positive}"
    return np.array(texts, dtype=object), rule, is_positive


def _texts(table: PatchTable, column: Any) -> NDArray[Any]:
    """Return a column as text (n,), ``None`` where missing; 3.0 is 3, as elsewhere."""
    kind = {str(column.name): "categorical"}
    if column.name in (*table.concept_names, *table.aside):
        return table.with_kinds(kind).concept(str(column.name)).values
    missing = column.isna().to_numpy()
    return np.array([None if m else str(v) for v, m in zip(column, missing, strict=True)], dtype=object)
