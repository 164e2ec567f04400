"""The table of remedies: every score after every remedy, and its change against doing nothing."""

from __future__ import annotations

from collections.abc import Sequence

from conceptkit.records.remedies import RemedyRow
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.wording import as_float


def remedy_table(rows: Sequence[RemedyRow]) -> Table:
    """Return a row per score and remedy; remedies that need the center of new rows come last."""
    ordered = sorted(rows, key=lambda one: one.transductive)
    cells = [
        {
            "encoder": one.encoder or "",
            "layer": one.layer,
            "remedy": f"{one.remedy} (transductive)" if one.transductive else one.remedy,
            "score": one.measure,
            "after": as_float(one.value),
            **ends("difference", one.difference, one.low, one.high),
            "q": as_float(one.q),
        }
        for one in ordered
    ]
    return make_table(
        "robustness remedies",
        "Remedies and their price",
        "Remedies of features are fitted in training parts only; a stain's target is one for all rows. The "
        "difference is against nothing, with a 95 % interval over patients; predictions are not refitted for it. "
        "q is adjusted for all differences of the run. Center: balanced accuracy of fresh probes. Label: AUC over "
        "pairs of rows of one center, held out by patient, or of centers that neither probe nor remedy has seen. "
        "Transductive remedies need the center of each new row, so compare them with each other only.",
        cells,
        unshown=[name for name in ("encoder", "layer") if len({row[name] for row in cells}) == 1],
        most_digits=3,
    )
