"""What ``bags`` found, in words and tables: the label of bags, and where a network looks in them."""

from __future__ import annotations

from conceptkit.records.bags import AttentionScore, BagScore, BagsRecord
from conceptkit.report.judging import Mark, Verdict, are_few, few_words, mark_of, side_of
from conceptkit.report.table import Table, tidy
from conceptkit.report.tables import tables
from conceptkit.report.verdicts import guide_verdicts
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
            "verdict": auc_mark(one, record.group),
        }
        for one in record.scores
    ]
    least, median, most = record.patches_per_bag
    return Table(
        name="bags",
        title=f"Main task of bags by {record.by}",
        caption=f"Label: {record.label_rule}. AUC with a 95 % interval by {groups_word(record.group)} (jackknife on "
        f"its logit), of one network each. Verdict: whether the interval excludes 0.5. A bag has {least} to {most} "
        f"patches, {median:g} in the median.",
        frame=tidy(rows, ["split", "run", "seed", "AUC", "AUC low", "AUC high", "bags", "groups", "verdict"]),
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
            "verdict": judge_attention(one, record.group, _positive(record)).mark,
        }
        for one in record.attention
    ]
    return Table(
        name="attention",
        title="Where attention lies",
        caption=f"In bags with {_positive(record)} and other patches: the share of pairs in which the "
        f"{_positive(record)} patch gets more attention. Training does not use the labels of patches; 0.5 is chance. "
        "95 % interval over "
        f"{groups_word(record.group)}.",
        frame=tidy(
            rows,
            ["split", "run", "seed", "attention AUC", "attention AUC low", "attention AUC high", "bags", "verdict"],
        ),
    )


def bag_verdicts(record: BagsRecord) -> list[Verdict]:
    """Return the verdicts of guided training, and one on the attention of each network."""
    here = [one for one in record.attention if one.split == record.evaluated_on] or list(record.attention)
    attention = [judge_attention(one, record.group, _positive(record)) for one in here if is_finite(one.auc)]
    return [*guide_verdicts(record), *attention]


def _positive(record: BagsRecord) -> str:
    """Return the class of the patches that make a bag positive."""
    return str(record.settings.get("positive") or "positive")


def auc_mark(one: BagScore | AttentionScore, group: str | None) -> Mark:
    """Return what an AUC shows by its interval."""
    return mark_of(side_of(one.auc, one.low, one.high, 0.5), None, few=are_few(one.n_groups, group))


def judge_attention(one: AttentionScore, group: str | None, positive: str = "positive") -> Verdict:
    """Return whether a network attends to the patches that make a bag positive, of the class ``positive``."""
    few, side = are_few(one.n_groups, group), side_of(one.auc, one.low, one.high, 0.5)
    mark = auc_mark(one, group)
    who = f"{one.run} (seed {one.seed})"
    answer = f"{who} attends" if mark == "established" else f"Open whether {who} attends"
    size = interval(one.auc, one.low, one.high) + {"below": ", below chance"}.get(side, "")
    text = f"{answer} to the {positive} patches on {one.split}: AUC {size} ({one.n} bags)."
    return Verdict(text=f"{text} {few_words(one.n_groups, group)}." if few else text, mark=mark)
