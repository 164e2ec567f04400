"""The result of a grid of guided trainings: its cells, their runs over seeds, and the differences between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from conceptkit.records.base import frame_of
from conceptkit.records.guide import Difference, RunsRecord, What
from conceptkit.records.texts import Metric

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One kind of network of a grid; it is trained once per seed."""

    name: str
    """Unique; the ``name`` of its runs"""
    number: str = ""
    """``1`` to ``8``, ``R1`` and ``R8`` in the paper's grid"""
    encourage: tuple[str, ...] = ()
    discourage: tuple[str, ...] = ()
    weighting: str = ""
    """Of the losses; empty where nothing is trained"""
    model: str = ""
    control: str = ""
    """Kind of control: ``random``, ``shuffled``, ``baseline``, ``balanced``, ``confounder only``, ``multimodal``;
    empty for a model of the grid. Earlier versions wrote ``random target``, ``shuffled concept``, ``single task``"""
    curve: str = ""
    """``noise`` or ``fraction`` for a point of such a curve"""
    level: float | None = None
    """Share of concept values that were exchanged (noise), or kept (fraction)"""
    base: str = ""
    """The single-task cell with which it is compared, if that has another main loss or features than its weighting's
    single task: ``balanced``, or of ``multimodal`` the cell whose features it takes"""
    balanced_by: tuple[str, ...] = ()
    """Of ``balanced``: the discouraged categories by which its main loss is balanced"""


def reference_cell(cell: GridCell, cells: Sequence[GridCell]) -> str | None:
    """Return the name of the single-task cell that a cell is compared with; see :meth:`GridRecord.reference`."""
    if cell.base:
        return cell.base
    models = (cell.model, "") if cell.model else {c.model for c in cells}
    plain = [c for c in cells if not (c.encourage or c.discourage or c.balanced_by)]
    single = [c for c in plain if c.weighting and c.model in models]
    same = [c for c in single if c.weighting == cell.weighting and not c.curve]
    name = next((c.name for c in (*same, *single)), None)
    return None if name == cell.name else name


@dataclass(frozen=True, kw_only=True)
class PatchLevel:
    """A paired comparison by the paper's protocol, which treats patches as independent."""

    run: str
    against: str
    split: str
    mean: float
    """Of the AUC of ``run`` over resamples of patches, averaged over seeds"""
    sd: float
    difference: float
    p: float | None
    """Two-sided Wilcoxon over paired resamples; it does not describe new patients. ``None``: no difference in any"""
    resamples: int


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """The effect of one task's step on another's loss."""

    step: str
    """Task whose step is taken"""
    on: str
    """Task whose validation loss is measured"""
    value: float
    """1 − loss after / loss before, mean over steps and seeds: above 0, the step helps"""
    sd: float
    """Over seeds"""


@dataclass(frozen=True, kw_only=True, repr=False)
class GridRecord(RunsRecord):
    """The result of ``guide --ablate``: cells, runs, controls and differences."""

    schema: ClassVar[str] = "conceptkit/grid/1"
    grid: str
    """``paper``, ``pairs``, ``list``, or ``none`` for curves and affinities only"""
    cells: tuple[GridCell, ...]
    splits: tuple[Mapping[str, Any], ...] = ()
    """Patches by split, center and label, as ``conceptkit splits`` counts them"""
    patch_level: tuple[PatchLevel, ...] = ()
    """With ``--protocol paper`` only"""
    affinity: tuple[Affinity, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """Run → why it gave no result"""

    def cell(self, name: str) -> GridCell:
        """Return the cell of a run's name."""
        return next(cell for cell in self.cells if cell.name == name)

    def to_frame(self) -> pd.DataFrame:
        """Return every number as a tidy table: the cell's columns, then seed, what, name, metric, value."""
        rows = [{**_cell_columns(self.cell(run.name)), **row} for run, row in self.run_rows()]
        return frame_of(rows, [*_CELL_COLUMNS, "seed", "what", "name", "metric", "value"])

    def table4(self, metric: str = "auc") -> pd.DataFrame:
        """Return the main task as in the paper's Table 4: a row per cell, mean and SD over seeds of each split.

        Columns: those of the cell, then for each evaluation split ``SPLIT``, ``SPLIT sd``, and the difference to the
        single task of the same weighting as ``SPLIT difference``, ``… low``, ``… high`` with ``SPLIT groups``. The AUC
        within the levels of a column, where it was taken, is in ``SPLIT within COLUMN`` and ``SPLIT within COLUMN sd``,
        that of weighted rows in ``SPLIT weighted`` and ``SPLIT weighted sd``.
        """
        strata = self.strata if metric == "auc" else []
        rows = []
        for cell in self.cells:
            row = {**_cell_columns(cell), "seeds": self._seeds(cell)}
            for split in self.evaluation:
                row |= self._mean_sd(cell, split, metric, split)
                if metric == "auc" and any("auc_weighted" in run.metrics.get(split, {}) for run in self.runs):
                    row |= self._mean_sd(cell, split, "auc_weighted", f"{split} weighted")
                for column in strata:
                    row |= self._mean_sd(cell, split, Metric(metric, within=column), f"{split} within {column}")
                difference = self.difference(cell, split, metric)
                row |= _ends(difference, f"{split} difference")
                row[f"{split} groups"] = None if difference is None else difference.n_groups
            rows.append(row)
        return frame_of(rows)

    def table5(self) -> pd.DataFrame:
        """Return every metric of the main task per cell and evaluation split: ``metric`` and ``metric sd`` columns.

        The paper's Table 5 is its rows of the split ``PanExt``.
        """
        metrics = list(dict.fromkeys(m for run in self.runs for values in run.metrics.values() for m in values))
        rows = []
        for cell in self.cells:
            for split in self.evaluation:
                row = {**_cell_columns(cell), "split": split, "seeds": self._seeds(cell)}
                for metric in metrics:
                    row |= self._mean_sd(cell, split, metric, metric)
                rows.append(row)
        return frame_of(rows)

    def table6(self) -> pd.DataFrame:
        """Return how well each concept is read: a row per concept and cell, by fresh probe and by the own head.

        Columns besides the cell's: ``concept``, ``role`` (``encouraged`` or ``discouraged`` somewhere in the grid),
        ``reader`` (``probe``, ``head``, ``linear``, ``mlp``, ``kernel``), ``score``, ``score sd``, ``chance``, and the
        paired difference to the single task of the same weighting.
        """
        kinds: tuple[tuple[str, What, tuple[str, ...]], ...] = (
            ("encouraged", "concepts", ("probe", "head")),
            ("discouraged", "leakage", ("linear", "mlp", "kernel")),
        )
        rows = []
        for cell, (role, what, readers) in itertools.product(self.cells, kinds):
            concepts = dict.fromkeys(name for run in self.runs if run.name == cell.name for name in getattr(run, what))
            for concept, reader in itertools.product(concepts, readers):
                mean, sd = self.over_seeds(cell.name, what, concept, reader)
                if math.isnan(mean):
                    continue
                row = {**_cell_columns(cell), "concept": concept, "role": role, "reader": reader}
                row |= {"score": mean, "score sd": sd}
                row["chance"] = self.over_seeds(cell.name, what, concept, "chance")[0]
                metric = Metric(reader=reader, concept=concept)
                rows.append(row | _ends(self.difference(cell, self.evaluated_on, metric), "difference"))
        return frame_of(rows)

    def curve(self, kind: str, metric: str = "auc") -> pd.DataFrame:
        """Return the points of ``noise`` or ``fraction``: level, whether multimodal, split, mean and SD over seeds."""
        rows = []
        for cell, split in itertools.product((c for c in self.cells if c.curve == kind), self.evaluation):
            mean, sd = self.over_seeds(cell.name, "metrics", split, metric)
            multimodal = cell.control == "multimodal"
            rows.append({"level": cell.level, "multimodal": multimodal, "split": split, metric: mean, "sd": sd})
        return frame_of(rows, ["level", "multimodal", "split", metric, "sd"])

    def affinity_matrix(self) -> pd.DataFrame:
        """Return the affinities with the task that steps as row and the task that it acts on as column."""
        names = list(dict.fromkeys(a.step for a in self.affinity))
        values = {(a.step, a.on): a.value for a in self.affinity}
        matrix = frame_of([{on: values.get((step, on)) for on in names} for step in names], names)
        return matrix.set_axis(names, axis=0)

    @property
    def evaluation(self) -> list[str]:
        """Return the evaluation splits and ``overall``, in their order."""
        known = dict.fromkeys(split for run in self.runs for split in run.metrics)
        held = {self.settings.get("train", "train"), self.settings.get("val", "val")}
        return [split for split in known if split not in held]

    @property
    def strata(self) -> list[str]:
        """Return the columns within whose levels AUCs were taken."""
        metrics = dict.fromkeys(m for split in self.evaluation for run in self.runs for m in run.metrics.get(split, {}))
        return [metric.within for metric in map(Metric.of, metrics) if metric.name == "auc" and metric.within]

    def reference(self, cell: GridCell) -> str | None:
        """Return the name of the single-task cell of the same model and weighting; ``None`` for that one itself."""
        return reference_cell(cell, self.cells)

    def difference(self, cell: GridCell, split: str, metric: str) -> Difference | None:
        """Return a cell's paired difference to its reference; ``None`` where there is none."""
        against = self.reference(cell)
        key = (cell.name, against, split, metric)
        return next((d for d in self.differences if (d.run, d.against, d.split, d.metric) == key), None)

    def _seeds(self, cell: GridCell) -> int:
        return sum(run.name == cell.name for run in self.runs)

    def _mean_sd(self, cell: GridCell, split: str, metric: str, column: str) -> dict[str, float]:
        mean, sd = self.over_seeds(cell.name, "metrics", split, metric)
        return {column: mean, f"{column} sd": sd}


_CELL_COLUMNS = ("cell", "number", "encouraged", "discouraged", "weighting", "model", "control", "curve", "level")


def _cell_columns(cell: GridCell) -> dict[str, Any]:
    names = {"cell": cell.name, "encouraged": " + ".join(cell.encourage), "discouraged": " + ".join(cell.discourage)}
    return {column: names[column] if column in names else getattr(cell, column) for column in _CELL_COLUMNS}


def _ends(d: Difference | None, column: str) -> dict[str, Any]:
    mean, low, high = (None, None, None) if d is None else (d.mean, d.low, d.high)
    return {column: mean, f"{column} low": low, f"{column} high": high}
