"""What ``bags`` found, in words and tables: the label of bags, and where a network looks in them."""

from __future__ import annotations

import math

from conceptkit.records.bags import BagsRecord
from conceptkit.report.table import Table, tidy
from conceptkit.report.tables import tables
from conceptkit.report.verdicts import Verdict, guide_verdicts
from conceptkit.report.wording import groups_word, interval, is_finite


def bag_tables(record: BagsRecord) -> list[Table]:
    """Return the tables of a record: AUC of bags, attention, and those that guided training has."""
    own = [score_table(record), *([attention_table(record)] if record.attention else [])]
    return [*own, *tables(record)]


def score_table(record: BagsRecord) -> Table:
    """Return the AUC of every network on every split, with its interval."""
    rows = [
        {
            "split": one.split,
            "run": one.run,
            "seed": one.seed,
            "AUC": one.auc,
            "AUC low": one.low,
            "AUC high": one.high,
            "bags": one.n,
            "groups": one.n_groups,
        }
        for one in record.scores
    ]
    least, median, most = record.patches_per_bag
    return Table(
        name="bags",
        title=f"Main task of bags by {record.by}",
        caption=f"Label: {record.label_rule}. AUC with a 95 % interval by {groups_word(record.group)} (jackknife on "
        f"its logit), of one network each. A bag has {least} to {most} patches, {median:g} in the median.",
        frame=tidy(rows, ["split", "run", "seed", "AUC", "AUC low", "AUC high", "bags", "groups"]),
    )


def attention_table(record: BagsRecord) -> Table:
    """Return how well attention finds the patches that make a bag positive."""
    rows = [
        {
            "split": one.split,
            "run": one.run,
            "seed": one.seed,
            "attention AUC": one.auc,
            "attention AUC low": one.low,
            "attention AUC high": one.high,
            "bags": one.n,
        }
        for one in record.attention
    ]
    return Table(
        name="attention",
        title="Where attention lies",
        caption="In bags that hold positive and other patches: the share of pairs of them in which the positive patch "
        "has more attention, which no network was told; 0.5 is chance. 95 % interval over "
        f"{groups_word(record.group)}.",
        frame=tidy(rows, ["split", "run", "seed", "attention AUC", "attention AUC low", "attention AUC high", "bags"]),
    )


def bag_verdicts(record: BagsRecord) -> list[Verdict]:
    """Return what guided training's verdicts say, and one sentence on attention."""
    found = guide_verdicts(record)
    here = [one for one in record.attention if one.split == record.evaluated_on] or list(record.attention)
    for one in here:
        if not is_finite(one.auc):
            continue
        size = f"AUC {interval(one.auc, one.low, one.high)} on {one.split}, {one.n} bags"
        lies = (
            "lies on the positive patches" if math.isfinite(one.low) and one.low > 0.5 else "is not shown to lie there"
        )
        found.append(Verdict(text=f"Attention of {one.run}, seed {one.seed}, {lies}: {size}.", tone="clear"))
    return found
