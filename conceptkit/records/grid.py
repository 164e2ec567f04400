"""What a grid of guided trainings found: its cells, their runs over seeds, and the differences between them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from conceptkit.records.base import Record, common_fields, read_fields
from conceptkit.records.guide import Difference, GuideRun

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
    """What it is a control for: ``random target``, ``single task``, ``shuffled concept``, ``confounder only``,
    ``multimodal``; empty for a model of the grid"""
    curve: str = ""
    """``noise`` or ``fraction`` for a point of such a curve"""
    level: float | None = None
    """Share of concept values that were exchanged (noise), or kept (fraction)"""
    base: str = ""
    """Of ``multimodal``: the single-task cell whose features it takes, and with which it is compared"""


@dataclass(frozen=True, kw_only=True)
class PatchLevel:
    """A paired comparison by the paper's protocol, which takes patches as independent."""

    run: str
    against: str
    split: str
    mean: float
    """Of the AUC of ``run`` over resamples of patches, averaged over seeds"""
    sd: float
    difference: float
    p: float | None
    """Two-sided Wilcoxon over paired resamples; it says nothing of new patients. ``None``: no difference in any"""
    resamples: int


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """What one task's step does to another's loss."""

    step: str
    """Task whose step is taken"""
    on: str
    """Task whose validation loss is looked at"""
    value: float
    """1 − loss after / loss before, mean over steps and seeds: above 0, the step helps"""
    sd: float
    """Over seeds"""


@dataclass(frozen=True, kw_only=True)
class GridRecord(Record):
    """The result of ``guide --ablate``: cells, runs, controls and differences."""

    schema: ClassVar[str] = "conceptkit/grid/1"
    grid: str
    """``paper``, ``pairs``, ``list``, or ``none`` for curves and affinities alone"""
    cells: tuple[GridCell, ...]
    runs: tuple[GuideRun, ...]
    differences: tuple[Difference, ...] = ()
    """Each cell against the single task of its own weighting, and against that of vanilla weighting"""
    units: Mapping[str, str] = field(default_factory=dict)
    evaluated_on: str = "internal"
    """The rows on which concepts and leakage are read"""
    splits: tuple[Mapping[str, Any], ...] = ()
    """Patches by split, center and label, as ``conceptkit splits`` counts them"""
    patch_level: tuple[PatchLevel, ...] = ()
    """Of ``--protocol paper`` alone"""
    affinity: tuple[Affinity, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """Run → why it gave no result"""

    def cell(self, name: str) -> GridCell:
        """Return the cell of a run's name."""
        return next(cell for cell in self.cells if cell.name == name)

    def to_frame(self) -> pd.DataFrame:
        """Return every number as a tidy table: the cell's columns, then seed, what, name, metric, value."""
        import pandas as pd

        rows = [
            {
                **_cell_columns(self.cell(run.name)),
                "seed": run.seed,
                "what": what,
                "name": name,
                "metric": m,
                "value": v,
            }
            for run in self.runs
            for what, values in (("split", run.metrics), ("concept", run.concepts), ("leakage", run.leakage))
            for name, metrics in values.items()
            for m, v in metrics.items()
        ]
        return pd.DataFrame(rows, columns=[*_CELL_COLUMNS, "seed", "what", "name", "metric", "value"])

    def table4(self, metric: str = "auc") -> pd.DataFrame:
        """Return the main task as in the paper's Table 4: a row per cell, mean and SD over seeds of each split.

        Columns: those of the cell, then for each evaluation split ``SPLIT``, ``SPLIT sd``, and the difference to the
        single task of the same weighting as ``SPLIT difference``, ``… low``, ``… high`` with ``SPLIT groups``. The AUC
        within the levels of a column, where it was taken, stands beside the pooled one: ``SPLIT within COLUMN`` and
        ``SPLIT within COLUMN sd``.
        """
        import pandas as pd

        strata = self.strata if metric == "auc" else []
        rows = []
        for cell in self.cells:
            runs = self._runs(cell.name)
            row = {**_cell_columns(cell), "seeds": len(runs)}
            for split in self.evaluation:
                row[split], row[f"{split} sd"] = _mean_sd([run.metrics.get(split, {}).get(metric) for run in runs])
                for column in strata:
                    inside = [run.metrics.get(split, {}).get(f"auc_within_{column}") for run in runs]
                    row[f"{split} within {column}"], row[f"{split} within {column} sd"] = _mean_sd(inside)
                found = self.difference(cell, split, metric)
                row |= {
                    f"{split} difference": None if found is None else found.mean,
                    f"{split} difference low": None if found is None else found.low,
                    f"{split} difference high": None if found is None else found.high,
                    f"{split} groups": None if found is None else found.n_groups,
                }
            rows.append(row)
        return pd.DataFrame(rows)

    def table5(self) -> pd.DataFrame:
        """Return every metric of the main task per cell and evaluation split: ``metric`` and ``metric sd`` columns.

        The paper's Table 5 is its rows of the split ``PanExt``.
        """
        import pandas as pd

        metrics = list(dict.fromkeys(m for run in self.runs for values in run.metrics.values() for m in values))
        rows = []
        for cell in self.cells:
            runs = self._runs(cell.name)
            for split in self.evaluation:
                row: dict[str, Any] = {**_cell_columns(cell), "split": split, "seeds": len(runs)}
                for metric in metrics:
                    values = [run.metrics.get(split, {}).get(metric) for run in runs]
                    row[metric], row[f"{metric} sd"] = _mean_sd(values)
                rows.append(row)
        return pd.DataFrame(rows)

    def table6(self) -> pd.DataFrame:
        """Return how well each concept is read: a row per concept and cell, by fresh probe and by the own head.

        Columns beside the cell's: ``concept``, ``role`` (``encouraged`` or ``discouraged`` somewhere in the grid),
        ``reader`` (``probe``, ``head``, ``linear``, ``mlp``), ``score``, ``score sd``, ``chance``, and the paired
        difference to the single task of the same weighting.
        """
        import pandas as pd

        rows = []
        for cell in self.cells:
            runs = self._runs(cell.name)
            for role, readers in (("encouraged", ("probe", "head")), ("discouraged", ("linear", "mlp"))):
                held = [run.concepts if role == "encouraged" else run.leakage for run in runs]
                for concept in dict.fromkeys(name for values in held for name in values):
                    for reader in readers:
                        mean, sd = _mean_sd([values.get(concept, {}).get(reader) for values in held])
                        if mean is None:
                            continue
                        found = self.difference(cell, self.evaluated_on, f"{reader}:{concept}")
                        rows.append(
                            {
                                **_cell_columns(cell),
                                "concept": concept,
                                "role": role,
                                "reader": reader,
                                "score": mean,
                                "score sd": sd,
                                "chance": _mean_sd([values.get(concept, {}).get("chance") for values in held])[0],
                                "difference": None if found is None else found.mean,
                                "difference low": None if found is None else found.low,
                                "difference high": None if found is None else found.high,
                            }
                        )
        return pd.DataFrame(rows)

    def curve(self, kind: str, metric: str = "auc") -> pd.DataFrame:
        """Return the points of ``noise`` or ``fraction``: level, whether multimodal, split, mean and SD over seeds."""
        import pandas as pd

        rows = []
        for cell in self.cells:
            if cell.curve != kind:
                continue
            for split in self.evaluation:
                runs = self._runs(cell.name)
                mean, sd = _mean_sd([run.metrics.get(split, {}).get(metric) for run in runs])
                multimodal = cell.control == "multimodal"
                rows.append({"level": cell.level, "multimodal": multimodal, "split": split, metric: mean, "sd": sd})
        return pd.DataFrame(rows, columns=["level", "multimodal", "split", metric, "sd"])

    def affinity_matrix(self) -> pd.DataFrame:
        """Return the affinities with the task that steps as row and the task that it acts on as column."""
        import pandas as pd

        names = list(dict.fromkeys(a.step for a in self.affinity))
        values = {(a.step, a.on): a.value for a in self.affinity}
        return pd.DataFrame([[values.get((s, o)) for o in names] for s in names], index=names, columns=names)

    def plot(self) -> list[Figure]:
        """Draw affinities and curves: one matplotlib figure each."""
        # The report room lies above this one: a record is drawn by it, and knows nothing of how.
        figures = importlib.import_module("conceptkit.report.grid_figures")
        return [drawing.figure for drawing in figures.grid_figures(self)]

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
        return [m.removeprefix("auc_within_") for m in metrics if m.startswith("auc_within_")]

    def reference(self, cell: GridCell) -> str | None:
        """Return the name of the single-task cell of the same model and weighting; ``None`` for that one itself."""
        if cell.base:
            return cell.base
        models = (cell.model, "") if cell.model else {c.model for c in self.cells}
        single = [c for c in self.cells if not (c.encourage or c.discourage) and c.weighting and c.model in models]
        same = [c for c in single if c.weighting == cell.weighting and not c.curve]
        name = next((c.name for c in (*same, *single)), None)
        return None if name == cell.name else name

    def difference(self, cell: GridCell, split: str, metric: str) -> Difference | None:
        """Return a cell's paired difference to its reference; ``None`` where there is none."""
        against = self.reference(cell)
        key = (cell.name, against, split, metric)
        return next((d for d in self.differences if (d.run, d.against, d.split, d.metric) == key), None)

    def _runs(self, name: str) -> list[GuideRun]:
        return [run for run in self.runs if run.name == name]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` gave (through JSON: ``null`` is read as not a number)."""
        common = common_fields(values)
        read: dict[str, Any] = {
            "cells": tuple(read_fields(GridCell, cell) for cell in values["cells"]),
            "runs": tuple(read_fields(GuideRun, {**run, "history": tuple(run["history"])}) for run in values["runs"]),
            "differences": tuple(read_fields(Difference, d) for d in values["differences"]),
            "patch_level": tuple(read_fields(PatchLevel, p) for p in values["patch_level"]),
            "affinity": tuple(read_fields(Affinity, a) for a in values["affinity"]),
            "splits": tuple(values["splits"]),
        }
        return cls(**{**common, **read})


_CELL_COLUMNS = ("cell", "number", "encouraged", "discouraged", "weighting", "model", "control", "curve", "level")


def _cell_columns(cell: GridCell) -> dict[str, Any]:
    return {
        "cell": cell.name,
        "number": cell.number,
        "encouraged": " + ".join(cell.encourage),
        "discouraged": " + ".join(cell.discourage),
        "weighting": cell.weighting,
        "model": cell.model,
        "control": cell.control,
        "curve": cell.curve,
        "level": cell.level,
    }


def _mean_sd(values: list[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample SD of the values that are there; the SD of fewer than two is ``None``."""
    known = [v for v in values if v is not None and v == v]
    if not known:
        return None, None
    mean = sum(known) / len(known)
    if len(known) < 2:
        return mean, None
    spread: float = (sum((v - mean) ** 2 for v in known) / (len(known) - 1)) ** 0.5
    return mean, spread
