"""From a table of patches to one of bags: a row per slide or patient, with its label, split and concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, near_names
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


@dataclass(frozen=True)
class Bags:
    """Bags as rows of a table of their own, so that all that works on rows works on bags."""

    table: PatchTable
    """A row per bag; ``patch_id`` is its name, and there are no pixels"""
    members: tuple[NDArray[np.intp], ...]
    """Row numbers of each bag's patches in the table of patches"""
    label_rule: str
    """How a bag's label came about, in words"""
    positive: NDArray[np.bool_] | None
    """(n patches,) which are of the class that makes a bag's label, where there is one"""


def make_bags(
    data: PatchTable,
    meant: Study,
    by: str,
    concepts: Sequence[str],
    *,
    positive: str | None = None,
    share: float = 0.0,
) -> Bags:
    """Gather patches into bags.

    A continuous concept of a bag is the mean of its patches' values; a categorical one has to be constant in it, as
    split and group have. Patches without a bag are left out.

    Parameters
    ----------
    by : column that names the bag of each patch
    concepts : columns that become concepts of bags
    positive : class of the label of which a bag needs more than ``share`` of its labelled patches, where the label
        varies within bags

    Raises
    ------
    InputError
        when a column is not there, varies within a bag though it may not, or gives no label
    """
    check_at_least("share", share, 0)
    if not share < 1:
        raise InputError(f"share: must be below 1, got {share}.")
    names = _texts(data, data.column("by", by))
    known = np.array([name is not None for name in names], dtype=bool)
    if not known.any():
        raise InputError(f"by: column {by} has no value.")
    distinct = sorted({str(name) for name in names[known]})
    number = {name: i for i, name in enumerate(distinct)}
    codes = np.array([number.get(name, -1) if name is not None else -1 for name in names])
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct) + 1))
    members = tuple(order[starts[i] : starts[i + 1]] for i in range(len(distinct)))

    def constant(column: str, what: str) -> NDArray[Any]:
        values = _texts(data, data.column(what, column))
        found = np.full(len(members), None, dtype=object)
        for i, rows in enumerate(members):
            own = sorted({v for v in values[rows] if v is not None})
            if len(own) > 1:
                raise InputError(
                    f"{what}: {column} must be the same in all patches of a bag, {by} {distinct[i]} has "
                    f"{own[0]!r} and {own[1]!r}."
                )
            found[i] = own[0] if own else None
        return found

    columns: dict[str, Any] = {"patch_id": distinct, meant.splits.column: constant(meant.splits.column, "split")}
    if meant.group is not None:
        columns[meant.group] = distinct if meant.group == by else constant(meant.group, "group")
    kinds: dict[str, str] = {}
    for name in concepts:
        concept = data.concept(name)
        kinds[name] = concept.kind
        columns[name] = _means(concept.values, members) if concept.kind == "continuous" else constant(name, "concept")
    for name in ("center",):
        if name in data.frame.columns and name not in columns:
            try:
                columns[name] = constant(name, "center")
            except InputError:  # nobody asked for it
                continue
    if meant.label in columns:
        raise InputError(f"label: {meant.label} cannot be a concept, the group or the split too.")
    training = columns[meant.splits.column] == meant.splits.train
    columns[meant.label], rule, is_positive = _labels(data, meant.label, by, members, training, positive, share)
    kinds[meant.label] = "categorical"
    table = PatchTable(pd.DataFrame(columns), data.folder, kinds)
    return Bags(table, members, rule, is_positive)


def _labels(
    data: PatchTable,
    name: str,
    by: str,
    members: Sequence[NDArray[np.intp]],
    training: NDArray[np.bool_],
    positive: str | None,
    share: float,
) -> tuple[NDArray[Any], str, NDArray[np.bool_] | None]:
    """Return the labels of bags (n bags,), how they came about, and which patches are positive, if any class is."""
    label = data.concept(name) if name in data.frame.columns else None
    if label is None:
        raise InputError(f"label: the table has no column {name!r}; {near_names(name, data.frame.columns)}.")
    found = np.full(len(members), None, dtype=object)
    if label.kind == "continuous":
        if positive is not None:
            raise InputError(f"positive: {name} is continuous; bags are cut at the training bags' median of it.")
        means = _means(label.values, members)
        if not np.isfinite(means[training]).any():
            raise InputError(f"label: {name} has no value in any training bag.")
        cut = float(np.nanmedian(means[training]))
        for i, mean in enumerate(means):
            found[i] = None if np.isnan(mean) else f"{name} {'over' if mean > cut else 'at most'} {cut:.4g}"
        return found, f"the bag's mean {name} is over {cut:.4g}, the median of the training bags", None
    values = label.values
    if positive is None:
        for i, rows in enumerate(members):
            own = sorted({str(v) for v in values[rows] if v is not None})
            if len(own) > 1:
                raise InputError(
                    f"label: {name} varies within {by} ({own[0]!r} and {own[1]!r}); --positive {own[-1]} takes a bag "
                    "as positive when it has any such patch, --share S when more than that share are."
                )
            found[i] = own[0] if own else None
        return found, f"{name}, which is the same in all patches of a bag", None
    classes = sorted({str(v) for v in values if v is not None})
    if positive not in classes:
        raise InputError(f"positive: {name} has no class {positive!r}; {near_names(positive, classes)}.")
    is_positive = np.array([v == positive for v in values], dtype=bool)
    labelled = np.array([v is not None for v in values], dtype=bool)
    part = np.full(len(members), np.nan)
    for i, rows in enumerate(members):
        n = int(labelled[rows].sum())
        if n:
            part[i] = is_positive[rows].sum() / n
            # In this order by the alphabet too, so that a probability is that of the positive class.
            found[i] = f"{positive} {'over' if part[i] > share else 'at most'} {share:g}"
    known = part[training & np.isfinite(part)]
    if len(known) and len({bool(one > share) for one in known}) == 1 and known.min() < known.max():
        low, middle, high = (f"{value:.3g}" for value in (known.min(), np.median(known), known.max()))
        raise InputError(
            f"share: {share:g} parts no training bags, of which {positive} are {low} to {high} of the patches, "
            f"{middle} in the middle one; name a share in between."
        )
    rule = f"more than {share:g} of a bag's labelled patches are {positive}" if share else f"any patch is {positive}"
    return found, rule, is_positive


def _means(values: NDArray[np.float64], members: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
    """Return the mean of what is known in each bag (n bags,); not a number where nothing is."""
    found = np.full(len(members), np.nan)
    for i, rows in enumerate(members):
        own = values[rows][~np.isnan(values[rows])]
        if len(own):
            found[i] = own.mean()
    return found


def _texts(data: PatchTable, column: Any) -> NDArray[Any]:
    """Return a column as text (n,), ``None`` where missing; 3.0 is 3, as elsewhere."""
    kind = {str(column.name): "categorical"}
    if column.name in (*data.concept_names, *data.aside):
        return data.with_kinds(kind).concept(str(column.name)).values
    missing = column.isna().to_numpy()
    return np.array([None if m else str(v) for v, m in zip(column, missing, strict=True)], dtype=object)
