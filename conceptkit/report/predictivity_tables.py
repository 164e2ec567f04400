"""How well concept values predict the main label by themselves: the paper's Table 3, and its verdicts."""

from __future__ import annotations

from conceptkit.records import PredictivityRecord
from conceptkit.records.predictivity import PredictivityRow
from conceptkit.report.judging import Verdict, are_few, few_words, mark_of, side_of, verdict
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.wording import counted, groups_word, interval, is_finite


def predictivity_table(record: PredictivityRecord) -> Table:
    """Return the AUC of each set of columns (Table 3)."""
    rows = [
        {
            "inputs": " + ".join(row.inputs),
            "role": row.role,
            "split": row.split,
            **ends("AUC", row.auc, row.low, row.high),
            "SD over seeds": row.sd,
            groups_word(record.group): row.n_groups,
            "verdict": judge_auc(row, record.group, "").mark,
        }
        for row in record.rows
    ]
    return make_table(
        "table3",
        "The main label from concept values only",
        "A small network on the concept values, without any image; 95 % interval over "
        f"{groups_word(record.group)}. Random: a column of random numbers. Confounder: a discouraged column by itself, "
        "which should not predict the label. The paper's Table 3.",
        rows,
        digits=3,
    )


def predictivity_verdicts(record: PredictivityRecord) -> list[Verdict]:
    """Return, for each split, what the best set of concepts and each confounder reach by themselves."""
    verdicts = []
    for split in dict.fromkeys(row.split for row in record.rows):
        rows = [row for row in record.rows if row.split == split]
        sets = [row for row in rows if row.role in ("concept", "growing") and is_finite(row.auc)]
        if sets:
            best = max(sets, key=lambda row: row.auc)
            chosen = f"It is the best of {len(sets)} sets of concepts" if len(sets) > 1 else ""
            verdicts.append(judge_auc(best, record.group, chosen))
        confounders = [row for row in rows if row.role == "confounder"]
        verdicts += [judge_auc(row, record.group, "A network may rely on it") for row in confounders]
    return verdicts


def judge_auc(row: PredictivityRow, group: str | None, caveat: str) -> Verdict:
    """Return whether a set of columns predicts the main label by itself; ``caveat`` follows where it does."""
    side = side_of(row.auc, row.low, row.high, 0.5)
    mark = mark_of(side, None, few=are_few(row.n_groups, group))
    answer = f"{' + '.join(row.inputs)} {'predicts' if len(row.inputs) == 1 else 'predict'} the label on {row.split}"
    answer = answer if mark == "established" else f"Open whether {answer}"
    size = interval(row.auc, row.low, row.high, digits=3) + {"below": ", below chance"}.get(side, "")
    text = f"{answer}: AUC {size} ({counted(group, row.n_groups)})"
    return verdict(mark, text, few_words(row.n_groups, group), caveat if mark == "established" else "")
