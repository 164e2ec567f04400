"""What the report says of differences: words for every form of metric, and never its key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptkit.records import Difference, GuideRecord, GuideRun
from conceptkit.report import figures
from conceptkit.report.contents import difference_kind, difference_parts
from conceptkit.report.guide_tables import main_task_table
from conceptkit.report.short_names import apart, short
from conceptkit.report.verdicts import guide_verdicts


def run(name, seed, auc, probe, linear, mlp):
    return GuideRun(
        name=name,
        seed=seed,
        checkpoint="c",
        metrics={"internal": {"auc": auc, "f1": auc, "balanced_accuracy": auc}},
        concepts={"count": {"probe": probe, "head": None}},
        leakage={"center": {"linear": linear, "mlp": mlp, "chance": 0.25}},
    )


def difference(metric, mean, *, half=0.05):
    values = {"mean": mean, "low": mean - half, "high": mean + half, "n_groups": 36}
    return Difference(run="guided", against="baseline", split="internal", metric=metric, **values)


@pytest.fixture
def record():
    return GuideRecord(
        study="s",
        group="patient",
        encourage=("count",),
        discourage=("center",),
        runs=(run("baseline", 0, 0.70, 0.60, 0.62, 0.46), run("guided", 0, 0.72, 0.70, 0.54, 0.48)),
        differences=(
            difference("auc", 0.02),
            difference("mlp:center", 0.02),
            difference("linear:center", -0.08),
            difference("probe:count", 0.10),
        ),
    )


def test_every_form_has_words(record):
    texts = [v.text for v in guide_verdicts(record)]
    assert texts[0] == (
        "Guiding raised the probe score of count on internal by 0.10 [0.05, 0.15], from 0.60 to 0.70 (36 patients)."
    )
    assert texts[1].startswith("center is still decodable from the guided network: balanced accuracy = 0.54 (linear")
    assert texts[2] == (
        "Guiding lowered the linear probe score of center on internal by 0.08 [0.03, 0.13], from 0.62 to 0.54 "
        "(36 patients)."
    )
    assert texts[3] == (
        "No clear change in 2 results (36 patients): MLP probe score of center on internal +0.02 [−0.03, 0.07]; AUC on "
        "internal +0.02 [−0.03, 0.07]."
    )


def test_labels_and_colours_follow_the_kind(record):
    assert [what for what, _, _ in difference_parts(record)] == [
        "AUC",
        "center (MLP probe)",
        "center (linear probe)",
        "count (probe)",
    ]
    kinds = [difference_kind(d) for d in record.differences]
    assert kinds == ["main task", "discouraged", "discouraged", "encouraged"]
    assert len({figures.DIFFERENCE_COLOURS[kind][0] for kind in kinds}) == 3


def test_a_concept_may_bear_the_name_of_a_probe():
    assert difference_kind(difference("probe:mlp:x", 0.1)) == "encouraged"
    assert difference_kind(difference("f1", 0.1)) == "main task"
    assert difference_kind(difference("odd:thing", 0.1)) == "main task"


def test_the_spread_over_refits_is_named_only_where_there_is_one(record):
    assert "SD" not in main_task_table(record).caption
    two = GuideRecord(
        study="s", encourage=(), discourage=(), runs=(run("a", 0, 0.7, 0, 0, 0), run("a", 1, 0.8, 0, 0, 0))
    )
    assert "SD is the spread over refits" in main_task_table(two).caption


def test_one_bad_epoch_does_not_flatten_the_others():
    history = tuple({"epoch": e, "train/count": v, "val/count": v} for e, v in enumerate((0.9, 0.8, 80.0, 0.7)))
    smooth = tuple({**epoch, "train/count": 1.0, "val/count": 1.0 + epoch["epoch"] / 10} for epoch in history)

    def scale(epochs):
        one = GuideRun(name="a", seed=0, checkpoint="", metrics={}, concepts={}, leakage={}, history=epochs)
        (drawing,) = figures.training_figures(GuideRecord(study="s", encourage=("count",), discourage=(), runs=(one,)))
        return drawing.figure.axes[0].get_yscale()

    assert scale(history) == "log"
    assert scale(smooth) == "linear"


def test_the_heads_own_curve_is_drawn_where_there_is_one():
    losses = {"train/count": 1.0, "val/count": 1.0, "weight/count": 2.0}
    scores = (-30.0, 0.25, 0.5)

    def drawn(*, scored):
        history = tuple(
            {"epoch": float(e), **losses, **({"score/count": scores[e]} if scored else {})} for e in range(3)
        )
        one = GuideRun(name="guided", seed=0, checkpoint="", metrics={}, concepts={}, leakage={}, history=history)
        (drawing,) = figures.training_figures(GuideRecord(study="s", encourage=("count",), discourage=(), runs=(one,)))
        return drawing

    with_curve, without = drawn(scored=True), drawn(scored=False)
    parts = {axes.get_ylabel(): axes for axes in with_curve.figure.axes}
    assert list(parts) == ["raw loss", "head's score", "weight"]
    assert parts["head's score"].lines[0].get_ydata().tolist() == list(scores)
    assert parts["head's score"].get_ylim()[0] == -1  # an early R² of −30 flattens nothing
    assert parts["head's score"].get_ylim()[1] > 0.5
    assert "Held-out score of its head: guided seed 0 from −30.000 to 0.500" in with_curve.alt
    assert [axes.get_ylabel() for axes in without.figure.axes] == ["raw loss", "weight"]
    assert "score" not in without.alt


def test_long_names_that_differ_only_within_stay_apart():
    names = [f"Medical Centre of Somewhere-on-the-River, scanner {i:02d} <b>Hamamatsu & Söhne</b>" for i in range(3)]
    assert len({short(name, 14) for name in names}) == 1  # what the middle's dots would make of them
    assert apart(names, 14) == ["…scanner 00…", "…scanner 01…", "…scanner 02…"]
    ends = ["Hospital in the north of the country", "Hospital in the south of the country"]
    assert apart(ends, 18) == ["…in the north…", "…in the south…"]
    assert apart(["x" * 30 + "1" + "x" * 30, "x" * 30 + "2" + "x" * 30], 14) == ["xxxxx…xxxx (1)", "xxxxx…xxxx (2)"]
    areas = [
        f"nuclear area by automatic segmentation, {what} over the patch" for what in ("mean", "standard deviation")
    ]
    assert apart(["main", *areas], 22) == ["main", "…mean…", "…standard deviation…"]  # those that are alike alone
    assert apart(["C1", "", " "], 14) == ["C1", "(empty)", "(empty)"]


@given(st.lists(st.text("ab ", max_size=40), max_size=9), st.integers(12, 24))
def test_short_names_are_alike_where_the_names_are(names: list[str], most: int):
    found, lines = apart(names, most), [" ".join(name.split()) for name in names]
    assert all(len(text) <= most for text in found)
    for text, line in zip(found, lines, strict=True):
        assert [other == text for other in found] == [other == line for other in lines]
