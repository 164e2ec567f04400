"""How far concept values alone tell the main label: the paper's Table 3, and its sentences."""

from __future__ import annotations

from conceptkit.records import PredictivityRecord
from conceptkit.report.table import Table, tidy
from conceptkit.report.verdicts import Verdict
from conceptkit.report.wording import groups_word, interval, is_finite


def predictivity_table(record: PredictivityRecord) -> Table:
    """Return the AUC of each set of columns (Table 3)."""
    rows: list[dict[str, object]] = [
        {
            "inputs": " + ".join(row.inputs),
            "role": row.role,
            "split": row.split,
            "AUC": row.auc,
            "AUC low": row.low,
            "AUC high": row.high,
            "SD over seeds": row.sd,
            groups_word(record.group): row.n_groups,
        }
        for row in record.rows
    ]
    columns = ["inputs", "role", "split", "AUC", "AUC low", "AUC high", "SD over seeds", groups_word(record.group)]
    if not any(is_finite(row["SD over seeds"]) for row in rows):  # of one seed
        columns.remove("SD over seeds")
    return Table(
        name="table3",
        title="The main label from concept values alone",
        caption="A small network on the concept values, without any image; 95 % interval over "
        f"{groups_word(record.group)}. Random: a column of chance. Confounder: a discouraged column alone, which ought "
        "to tell nothing. The paper's Table 3.",
        frame=tidy(rows, columns),
        digits=3,
    )


def predictivity_verdicts(record: PredictivityRecord) -> list[Verdict]:
    """Return, for each split, what the best set of concepts and each confounder alone reach."""
    said = []
    for split in dict.fromkeys(row.split for row in record.rows):
        rows = [row for row in record.rows if row.split == split]
        sets = [row for row in rows if row.role in ("concept", "growing")]
        if sets:
            best = max(sets, key=lambda row: row.auc)
            tell = "tells" if len(best.inputs) == 1 else "tell"
            text = (
                f"On {split}, {' + '.join(best.inputs)} alone {tell} the label with an AUC of "
                f"{interval(best.auc, best.low, best.high, digits=3)}, the best of {len(sets)} sets of concepts."
            )
            said.append(Verdict(text=text, tone="clear" if best.low > 0.5 else "open"))
        for row in rows:
            if row.role == "confounder":
                told = row.low > 0.5
                found = interval(row.auc, row.low, row.high, digits=3)
                text = f"On {split}, {' + '.join(row.inputs)} alone "
                text += (
                    f"tells the label with an AUC of {found}: a network may score by it."
                    if told
                    else f"is not shown to tell the label: AUC {found}."
                )
                said.append(Verdict(text=text, tone="clear" if told else "open"))
    return said
