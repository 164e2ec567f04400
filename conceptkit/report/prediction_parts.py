"""The main task's predictions on the page: AUC with its interval, and calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conceptkit.records import GridRecord, GuideRecord
from conceptkit.report.drawing import COLOURS, FAINT, Drawing, new_figure, styled
from conceptkit.report.part import Part, table_part
from conceptkit.report.predictions import Predictions, calibration, score
from conceptkit.report.short_names import apart, short
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.wording import groups_word, number

RUNS_MOST = 8
"""Networks whose calibration is drawn, one for each colour; the table has all"""

_DASHES = ("solid", (0, (4, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))


def prediction_parts(record: GuideRecord | GridRecord, predictions: Predictions | None) -> list[Part]:
    """Return AUC and calibration by split; nothing for a run that saved no predictions."""
    if predictions is None:
        return []
    runs = [(run.name, run.seed) for run in record.runs if f"{run.name}-seed{run.seed}" in predictions.probabilities]
    if not runs:
        return []
    text = (
        "Predicted against observed share of "
        + (f"{predictions.classes[1]}, " if len(predictions.classes) == 2 else "the predicted class, ")
        + "in ten bins of equally many patches, one line per seed; on the diagonal the probabilities are calibrated."
    )
    splits = list(dict.fromkeys(predictions.splits.tolist()))
    names = record.run_names[:RUNS_MOST]
    drawn = [(name, seed) for name, seed in runs if name in names]
    drawings = [_calibration_figure(predictions, drawn, names, split, i) for i, split in enumerate(splits)]
    part = Part(title="Calibration", text=text, drawings=[d for d in drawings if d is not None])
    return [table_part(prediction_table(record, predictions, runs, splits)), *([part] if part.drawings else [])]


def prediction_table(
    record: GuideRecord | GridRecord, predictions: Predictions, runs: list[tuple[str, int]], splits: list[str]
) -> Table:
    """Return AUC with its interval, Brier score and calibration error of each network (Tables 4 and 5)."""
    groups = groups_word(record.group)
    rows: list[dict[str, object]] = []
    for split in splits:
        for name, seed in runs:
            scored = score(predictions, f"{name}-seed{seed}", split)
            row: dict[str, object] = {"split": split, "run": name, "seed": seed}
            row |= ends("AUC", *((scored.auc, scored.low, scored.high) if scored else (None, None, None)))
            row["Brier score"] = scored.brier if scored else math.nan
            row["calibration error"] = scored.calibration_error if scored else math.nan
            rows.append(row | {"patches": scored.n if scored else 0, groups: scored.n_groups if scored else 0})
    without = {"seed"} if len({seed for _, seed in runs}) == 1 else set()
    return make_table(
        "predictions",
        "Main task, network by network",
        f"AUC of each network with a 95 % interval by {groups} (jackknife on its logit): the uncertainty over "
        f"{groups}, not over seeds. Brier score and calibration error: 0 is best.",
        rows,
        without=without if record.group else {*without, groups},
        digits=3,
    )


def _calibration_figure(
    predictions: Predictions, runs: list[tuple[str, int]], names: list[str], split: str, i: int
) -> Drawing | None:
    here = (predictions.splits == split) & (predictions.codes >= 0)
    y = predictions.codes[here]
    if not len(y):
        return None
    said, texts = [], apart(names, 20)
    with styled():
        figure = new_figure(3.9, 4.2)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=FAINT, lw=1)
        drawn = set()
        for name, seed in runs:
            k = names.index(name)
            predicted, observed, _ = calibration(y, predictions.probabilities[f"{name}-seed{seed}"][here])
            look: dict[str, Any] = {
                "color": COLOURS[k % len(COLOURS)],
                "linestyle": _DASHES[k % len(_DASHES)],
            }
            label = None if name in drawn else texts[k]
            axes.plot(predicted, observed, marker="o", ms=3.5, lw=1.5, label=label, **look)
            drawn.add(name)
            gap = float(np.abs(predicted - observed).max())
            said.append(f"{name} seed {seed} at most {number(gap)} off")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="predicted", ylabel="observed")
        axes.set_title(short(split, 28), loc="left")
        figure.legend(loc="outside lower left", ncols=2)
    alt = f"Calibration on {split} ({len(y)} patches): {'; '.join(said)}."
    return Drawing(name=f"calibration-{i + 1}", alt=alt, caption="", figure=figure)
