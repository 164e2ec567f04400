"""How a grid's tables look on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from conceptkit.records import GridRecord

DISCOURAGED = "−"
"""Before a concept that the network is not to know"""


def show_grid(console: Console, record: GridRecord) -> None:
    """Print the splits, Tables 4 to 6, curves and affinities of a grid, then its notes."""
    if record.splits:
        columns = list(dict.fromkeys(key for row in record.splits for key in row))
        _show(
            console,
            "Patches by split, center and label",
            columns,
            ([row.get(c) for c in columns] for row in record.splits),
        )
    warnings = [note for note in record.notes if note.startswith("Split ")]
    for note in warnings:
        console.print(escape(note), style="bold yellow")
    unit = "groups" if record.group else "rows"
    seeds = len(record.settings.get("seeds", ()))
    table4 = record.table4()
    for split in record.evaluation:
        title = (
            f"Table 4, {split}: AUC of the main task, mean ± SD over {seeds} seeds; difference to the single task of "
            f"the same weighting with its 95 % interval over {unit}"
        )
        _show(console, title, ["", "network", "control", "AUC", "difference", unit], _table4_rows(table4, split))
    table5 = record.table5()
    metrics = [
        c for c in ("auc", *_within(table5), "f1", "f1_at_half", "balanced_accuracy", "brier", "ece") if c in table5
    ]
    _show(
        console,
        "Table 5: the main task on every split; F1 and balanced accuracy at the threshold chosen on validation",
        ["network", "split", *(metric.replace("_", " ") for metric in metrics)],
        ([row["cell"], row["split"], *(_spread(row, m) for m in metrics)] for row in table5.to_dict("records")),
    )
    table6 = record.table6()
    if len(table6):
        _show(
            console,
            f"Table 6: concepts read on {record.evaluated_on}: R² of continuous, balanced accuracy of categorical ones",
            ["network", "concept", "reader", "score", "difference", "chance"],
            (
                [
                    row["cell"],
                    (DISCOURAGED if row["role"] == "discouraged" else "") + row["concept"],
                    row["reader"],
                    _spread(row, "score"),
                    _interval(row, "difference"),
                    row["chance"],
                ]
                for row in table6.to_dict("records")
            ),
        )
    for kind in ("noise", "fraction"):
        points = record.curve(kind)
        if len(points):
            _show(
                console,
                f"AUC by {kind} of concept values",
                [kind, "split", "network", "AUC"],
                (
                    [
                        f"{row['level']:g}",
                        row["split"],
                        "multimodal" if row["multimodal"] else "multi-task",
                        _spread({"auc": row["auc"], "auc sd": row["sd"]}, "auc"),
                    ]
                    for row in points.to_dict("records")
                ),
            )
    if record.affinity:
        matrix = record.affinity_matrix()
        _show(
            console,
            "Affinity: what a step of the row's task does to the column's validation loss (above 0: it helps)",
            ["a step of", *matrix.columns],
            ([name, *(f"{v:+.4f}" for v in row)] for name, row in zip(matrix.index, matrix.to_numpy(), strict=True)),
        )
    if record.patch_level:
        _show(
            console,
            "Protocol paper: AUC over resamples of pooled patches (patch-level), Wilcoxon on paired resamples",
            ["network", "against", "split", "AUC", "difference", "p (patches)"],
            (
                [p.run, p.against, p.split, f"{p.mean:.3f} ± {p.sd:.3f}", f"{p.difference:+.3f}", _p(p.p)]
                for p in record.patch_level
            ),
        )
    for note in record.notes:
        if note not in warnings:
            console.print(escape(note), style="dim")
    console.print(f"run saved in {escape(str(record.folder))}")


def _table4_rows(frame: pd.DataFrame, split: str) -> Iterable[list[Any]]:
    for row in frame.to_dict("records"):
        groups = row[f"{split} groups"]
        yield [
            row["number"],
            row["cell"],
            row["control"],
            _spread(row, split),
            _interval(row, f"{split} difference"),
            None if groups is None or groups != groups else int(groups),
        ]


def _within(frame: pd.DataFrame) -> list[str]:
    return [c for c in frame.columns if c.startswith("auc_within_") and not c.endswith(" sd")]


def _spread(row: Mapping[Any, Any], name: str) -> str | None:
    value, sd = row[name], row[f"{name} sd"]
    if value is None or value != value:
        return None
    return f"{value:.3f}" if sd is None or sd != sd else f"{value:.3f} ± {sd:.3f}"


def _interval(row: Mapping[Any, Any], name: str) -> str | None:
    value, low, high = row[name], row[f"{name} low"], row[f"{name} high"]
    if value is None or value != value:
        return None
    return f"{value:+.3f}" if low != low else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _p(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _show(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    grid = Table(title=escape(title), title_justify="left")
    for column in columns:
        grid.add_column(escape(str(column)))
    for row in rows:
        grid.add_row(*(escape(_text(cell)) for cell in row))
    console.print(grid)


def _text(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
