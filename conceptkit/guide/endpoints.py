"""The rows on which the main task is evaluated: splits, unseen centers, and rows weighted by center and label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.clustering import effective_size
from conceptkit.evaluate.paired import Scored
from conceptkit.evaluate.scores import Floats
from conceptkit.evaluate.weighted import empty_cells, row_weights, scored_weighted
from conceptkit.guide.plan import Plan
from conceptkit.records import Note
from conceptkit.tables.patches import PatchTable

Rows = NDArray[np.intp]

OVERALL = "overall"
"""Name of all evaluation splits together"""

UNSEEN = "unseen"
"""Name of all evaluation rows of centers that training and validation do not have"""

CENTER = "center"
"""Column of the centers, if the table has it"""


def evaluated(plan: Plan) -> dict[str, Rows]:
    """Return evaluation split → its labelled rows, and ``overall`` if there are several splits."""
    rows = {name: plan.rows[name] for name in plan.evaluation}
    if len(rows) > 1 and OVERALL not in plan.rows:
        rows[OVERALL] = np.sort(np.concatenate(list(rows.values())))
    labelled = {name: own[plan.codes[own] >= 0] for name, own in rows.items()}
    return {name: own for name, own in labelled.items() if len(own)}


def has_centers(table: PatchTable) -> bool:
    """Return whether the table names the center of its rows."""
    return CENTER in table.frame.columns and table.concept(CENTER).kind == "categorical"


@dataclass(frozen=True)
class Endpoints:
    """Evaluation rows with a label and a center, by split; empty where the table has no centers."""

    centers: Rows = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """(n rows of the table,) numbers of the centers, −1 where unknown"""
    rows: Mapping[str, Rows] = field(default_factory=dict)
    """Split → row numbers of the table"""
    unseen: str = ""
    """Name of the split that holds all rows of unseen centers, and no others; empty without such rows"""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Split without weighted scores → why"""
    notes: tuple[Note, ...] = ()

    @classmethod
    def of(cls, table: PatchTable, plan: Plan) -> Endpoints:
        """Find the rows; a center without a row of some class refuses the weighted scores of its split."""
        if not has_centers(table):
            return cls()
        values = table.concept(CENTER).values
        known = np.array([v is not None for v in values], dtype=bool)
        names, codes = np.unique(values[known].astype(str), return_inverse=True)
        centers = np.full(len(values), -1)
        centers[known] = codes
        every = {name: own for name, own in evaluated(plan).items() if name in plan.rows}
        rows = {name: own[centers[own] >= 0] for name, own in every.items()}
        rows = {name: own for name, own in rows.items() if len(own)}
        seen = np.unique(centers[np.concatenate([plan.training, plan.rows["val"]])])
        unseen = ""
        if rows:
            pooled = np.unique(np.concatenate(list(rows.values())))
            pooled = pooled[~np.isin(centers[pooled], seen)]
            unseen = next((name for name, own in rows.items() if np.array_equal(np.unique(own), pooled)), "")
            if len(pooled) and not unseen and UNSEEN not in plan.rows:
                unseen, rows[UNSEEN] = UNSEEN, pooled
        refused, notes = {}, []
        for name, own in rows.items():
            if cells := empty_cells(plan.codes[own], centers[own]):
                what = ", ".join(f"{plan.classes[k]} in {CENTER} {names[c]}" for c, k in cells[:3])
                refused[name] = f"there is no row of {what}{' and others' if len(cells) > 3 else ''}"
                notes.append(Note("confounded", f"Weighted scores are not defined on {name}: {refused[name]}."))
            without = len(every.get(name, own)) - len(own)
            if without:
                text = f"{without} rows of {name} have no {CENTER} and are not part of its weighted scores."
                notes.append(Note("centers", text))
        return cls(centers, rows, unseen, refused, tuple(notes))

    def splits(self, plan: Plan) -> dict[str, Rows]:
        """Return what :func:`evaluated` returns, and the rows of unseen centers where no split has just them."""
        return {**evaluated(plan), **({UNSEEN: self.rows[UNSEEN]} if self.unseen == UNSEEN else {})}

    def effective(self, plan: Plan) -> dict[str, float]:
        """Return split → effective number of groups under the weights; NaN where these are not defined."""
        found = {}
        for name, rows in self.rows.items():
            groups = np.unique(plan.groups[rows], return_inverse=True)[1]
            weights = row_weights(plan.codes[rows], self.centers[rows])
            found[name] = effective_size(np.bincount(groups, weights=weights).astype(np.float64))
        return found

    def score(self, probability: Floats, plan: Plan, threshold: float) -> dict[str, dict[str, Scored]]:
        """Return split → scores of weighted rows; NaN where they are refused.

        Parameters
        ----------
        probability : (n used rows,) of class 1, or (n, k)
        """
        found = {}
        for name, rows in self.rows.items():
            groups, centers = (np.unique(of[rows], return_inverse=True)[1] for of in (plan.groups, self.centers))
            score = probability[np.searchsorted(plan.used, rows)]
            found[name] = scored_weighted(plan.codes[rows], score, groups, centers, threshold=threshold)
        return found
