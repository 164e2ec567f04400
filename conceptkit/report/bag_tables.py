"""The tables and verdicts of ``bags``: the label of bags, and where a network looks in them."""

from __future__ import annotations

from conceptkit.records.bags import AttentionScore, BagScore, BagsRecord
from conceptkit.report.guide_tables import guide_tables
from conceptkit.report.judging import Mark, Verdict, are_few, few_words, mark_of, side_of, verdict
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.verdicts import guide_verdicts
from conceptkit.report.wording import groups_word, interval, is_finite


def bag_tables(record: BagsRecord) -> list[Table]:
    """Return the tables of a record: AUC of bags, attention, and those of guided training."""
    own = [score_table(record), *([attention_table(record)] if record.attention else [])]
    return [*own, *guide_tables(record)]


def score_table(record: BagsRecord) -> Table:
    """Return the AUC of every network on every split, with its interval."""
    rows = [
        {
            "split": one.split,
            "run": one.run,
            "seed": one.seed,
            **ends("AUC", one.auc, one.low, one.high),
            "bags": one.n,
            "groups": one.n_groups,
            "verdict": auc_mark(one, record.group),
        }
        for one in record.scores
    ]
    least, median, most = record.patches_per_bag
    return make_table(
        "bags",
        f"Main task of bags by {record.by}",
        f"Label: {record.label_rule}. AUC with a 95 % interval by {groups_word(record.group)} (jackknife on its "
        "logit), of one network each. Verdict: whether the interval excludes 0.5. A bag has "
        f"{least} to {most} patches, {median:g} in the median.",
        rows,
    )


def attention_table(record: BagsRecord) -> Table:
    """Return how well attention finds the patches that make a bag positive."""
    rows = [
        {
            "split": one.split,
            "run": one.run,
            "seed": one.seed,
            **ends("attention AUC", one.auc, one.low, one.high),
            "bags": one.n,
            "verdict": auc_mark(one, record.group),
        }
        for one in record.attention
    ]
    return make_table(
        "attention",
        "Where attention lies",
        f"In bags with {_positive(record)} and other patches: the share of pairs in which the {_positive(record)} "
        "patch gets more attention. Training does not use the labels of patches; 0.5 is chance. 95 % interval over "
        f"{groups_word(record.group)}.",
        rows,
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
    side, mark = side_of(one.auc, one.low, one.high, 0.5), auc_mark(one, group)
    who = f"{one.run} (seed {one.seed})"
    answer = f"{who} attends" if mark == "established" else f"Open whether {who} attends"
    size = interval(one.auc, one.low, one.high) + {"below": ", below chance"}.get(side, "")
    text = f"{answer} to the {positive} patches on {one.split}: AUC {size} ({one.n} bags)"
    return verdict(mark, text, few_words(one.n_groups, group))
