"""Verdicts: whatever the order of the numbers, mark, sentence, table and figure say what the numbers say."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import difference, guide_record, guide_run, probe_row
from test_attribution_tables import attribute_row

from conceptkit.records import ProbeRecord
from conceptkit.records.audit import AuditLayer, AuditRecord, AuditRow
from conceptkit.records.bags import AttentionScore
from conceptkit.records.predictivity import PredictivityRow
from conceptkit.report import figures, guide_tables, probe_tables
from conceptkit.report.attribution_tables import judge_change
from conceptkit.report.audit_tables import audit_verdicts, remnant_table
from conceptkit.report.bag_tables import judge_attention
from conceptkit.report.grid_tables import judge_control
from conceptkit.report.judging import MARKS, is_significant, mark_of, p_words, side_of
from conceptkit.report.predictivity_tables import judge_auc
from conceptkit.report.verdicts import difference_mark, guide_verdicts, judge_probe, probe_verdicts
from conceptkit.report.wording import number

NAN = math.nan
SCORES = st.sampled_from([-0.3, 0.02, 0.2, 0.35, 0.5, 0.71, 0.9])
SOME = st.one_of(st.none(), SCORES)
TESTED = st.sampled_from([None, 0.0004, 0.008, 0.0499, 0.05, 0.4])


def sentences(text: str) -> int:
    """Return the number of sentences; a point within a number or a name ends none."""
    return len(re.findall(r"\.(?= [A-Z0-9`]|$)", text))


def well_formed(text: str) -> None:
    assert text.endswith(".")
    assert sentences(text) <= 2
    assert not re.search(r"nan|None|\.\.|  ", text)


# --- one rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "side"),
    [
        ((0.5, 0.4, 0.6), "above"),
        ((-0.5, -0.6, -0.4), "below"),
        ((0.1, -0.1, 0.3), "covers"),
        ((0.0, 0.0, 0.3), "covers"),
        ((-0.1, 0.1, 0.3), "covers"),  # an interval that does not hold its value
        ((0.5, NAN, 0.6), "missing"),
        ((NAN, 0.4, 0.6), "missing"),
        ((0.5, None, None), "missing"),
    ],
)
def test_where_an_interval_lies(ends, side):
    assert side_of(*ends) == side


def test_the_mark_of_every_combination():
    found = {
        (side, test, few): mark_of(side, test, few=few)
        for side in ("above", "covers", "below", "missing")
        for test in (True, False, None)
        for few in (True, False)
    }
    established = {("above", True, False), ("above", None, False)}
    associated = {key for key in found if key[1]} - established
    assert {key for key, mark in found.items() if mark == "established"} == established
    assert {key for key, mark in found.items() if mark == "associated"} == associated
    assert mark_of("below", None, few=False, sought=("above", "below")) == "established"


def test_a_test_that_cannot_reach_significance_says_nothing():
    assert is_significant(0.2, 0.05) is None  # 19 permutations
    assert is_significant(0.2, 0.01) is False  # the control
    assert is_significant(NAN) is is_significant(None) is None
    assert is_significant(0.05) is False
    assert is_significant(0.0499) is True


def test_a_p_is_printed_on_its_side_of_the_bound():
    assert [p_words(p, "q") for p in (0.0004, 0.008, 0.0499, 0.05, 0.4)] == [
        "q < 0.001",
        "q = 0.008",
        "q = 0.0499",
        "q = 0.0500",
        "q = 0.40",
    ]


# --- probe -------------------------------------------------------------------------------------------------------

PROBED = st.fixed_dictionaries(
    {
        "ends": st.tuples(SCORES, SCORES, SCORES).map(sorted),
        "missing": st.booleans(),
        "score_random_network": SOME,
        "score_pixels": SOME,
        "q": TESTED,
        "p_min": st.sampled_from([None, 0.0002, 0.1]),
        "score_in_sample": SCORES,
        "score_patchwise": SCORES,
        "chance": st.sampled_from([0.0, 0.25]),
        "n_groups": st.sampled_from([3, 9, 10, 44]),
        "score_leave_out": SOME,
    }
)


def made(given_numbers: dict) -> tuple:
    values = dict(given_numbers)
    low, score, high = values.pop("ends")
    if values.pop("missing"):
        low = high = NAN
    leave_out = None if values["score_leave_out"] is None else "center"
    return probe_row(score=score, score_low=low, score_high=high, p=values["q"], leave_out=leave_out, **values)


@given(PROBED, st.sampled_from(["patient", None]))
def test_a_probe_says_what_its_numbers_say_in_any_order(numbers, group):
    row = made(numbers)
    verdict = judge_probe(row, group)
    text = verdict.text
    well_formed(text)
    few = group is not None and row.n_groups < 10
    testable = row.q is not None and (row.p_min is None or row.p_min < 0.05)
    significant, refuted = testable and row.q < 0.05, testable and row.q >= 0.05
    above = row.score_low > row.chance
    shown = above and not few and not refuted
    bound = row.score if math.isnan(row.score_low) else row.score_low
    controls = [c for c in (row.score_random_network, row.score_pixels) if c is not None]
    reached = [c for c in controls if c >= bound]
    assert (verdict.mark == "established") == (shown and not reached)
    assert (verdict.mark == "open") == (not shown and not significant)
    # The answer is the first thing said, and it agrees with the mark.
    starts = {
        "established": text.startswith("mixed10 encodes count: "),
        "associated": text.startswith(
            "count can be decoded from mixed10: " if shown else "count is associated with mixed10 (q "
        ),
        "open": text.startswith("Open whether mixed10 encodes count: "),
    }
    assert [mark for mark, said in starts.items() if said] == [verdict.mark]
    assert number(row.score) in text
    assert ("below chance" in text) == (row.score_high < row.chance)
    assert ("without an interval" in text) == math.isnan(row.score_low)
    assert ("size not established" in text) == (verdict.mark == "associated" and not shown)
    assert ("does not confirm" in text) == (above and refuted)
    if few and not (above and refuted):
        assert "too few" in text
    elif verdict.mark != "open":
        # A control above the interval does better; one inside it does as well; one below is no caveat.
        assert all(number(c) in text for c in reached)
        if len(reached) == 1:
            top = row.score if math.isnan(row.score_high) else row.score_high
            assert ("better" in text) == (reached[0] > top)
            assert ("about as well" in text) == (reached[0] <= top)
        if not reached:
            assert not re.search(r"better|as well", text)
            if row.score_leave_out is not None and row.score_leave_out <= row.chance:
                assert "With each center held out" in text
    if not few and not reached and row.score_leave_out is None and not (above and refuted) and group:
        if row.score_in_sample < row.score_patchwise:
            assert f"training fit ({number(row.score_in_sample)}) is below the random split" in text
        if (
            verdict.mark == "established"
            and not controls
            and row.score_in_sample >= max(row.score, row.score_patchwise)
            and row.score_patchwise <= row.score_high
        ):
            assert "not compared with" in text


@given(PROBED, st.sampled_from(["patient", None]))
def test_table_and_figure_have_the_mark_of_the_sentence(numbers, group):
    row = made(numbers)
    record = ProbeRecord(study="s", group=group, rows=(row,))
    (verdict,) = probe_verdicts(record)
    assert probe_tables.probe_table(record).frame["verdict"].tolist() == [verdict.mark]


@pytest.mark.parametrize("mark", MARKS)
def test_the_figure_fills_points_as_the_marks_say(mark):
    changes = {
        "established": {},
        "associated": {"score_pixels": 0.9},
        "open": {"score_low": -0.1},
    }[mark]
    record = ProbeRecord(study="s", group="patient", rows=(probe_row(**changes),))
    assert [v.mark for v in probe_verdicts(record)] == [mark]
    [drawing] = figures.probe_figures(record)
    axes = drawing.figure.axes[0]
    [point] = [
        line
        for line in axes.lines
        if line.get_marker() == "o" and list(line.get_ydata()) == [0.71] and line.get_markersize() > 0
    ]
    assert (point.get_fillstyle() == "left") == (mark == "associated")
    assert (point.get_markerfacecolor() == "white") == (mark == "open")
    assert mark in drawing.alt
    assert mark in [text.get_text() for text in drawing.figure.legends[0].get_texts()]


def test_the_four_examples_of_misleading_sentences():
    above = judge_probe(probe_row(score_low=0.63, score_high=0.78, score_random_network=0.85), "patient")
    assert above.mark == "associated"
    assert "randomly initialised network does better (0.85)" in above.text
    small = judge_probe(
        probe_row(score=0.63, score_low=0.26, score_high=0.93, chance=0.5, metric="balanced_accuracy", q=0.008),
        "patient",
    )
    assert small.mark == "associated"
    assert "(q = 0.008); size not established" in small.text
    assert "0.63 [0.26, 0.93], chance 0.50" in small.text
    fit = judge_probe(probe_row(score=0.01, score_in_sample=0.02, score_patchwise=0.71), "patient")
    assert "training fit (0.02) is below the random split (0.71)" in fit.text
    assert judge_probe(probe_row(score_random_network=None, score_low=0.63), "patient").mark == "established"


def test_an_adjusted_score_over_zero_is_the_caveat():
    adjusted = {"adjusted_for": ("center",), "score_adjusted": 0.02, "score_adjusted_high": 0.1}
    assert (
        "Adjusted for center it is open" in judge_probe(probe_row(**adjusted, score_adjusted_low=-0.05), "patient").text
    )
    assert "Adjusted" not in judge_probe(probe_row(**adjusted, score_adjusted_low=0.01), "patient").text  # the control


def test_the_summary_takes_the_layer_with_the_strongest_evidence():
    high = probe_row("shallow", score=0.78, score_low=0.23, score_random_network=0.42)
    firm = probe_row("deep", score=0.73, score_low=0.53, score_random_network=0.2)
    (verdict,) = probe_verdicts(ProbeRecord(study="s", group="patient", rows=(high, firm)))
    assert verdict.text.startswith("deep encodes count")
    assert "best supported of 2 layers" in verdict.text
    (verdict,) = probe_verdicts(ProbeRecord(study="s", group="patient", rows=(high,)))
    assert "layers" not in verdict.text


# --- guide and grid ----------------------------------------------------------------------------------------------

DIFFERENCES = st.builds(
    lambda metric, ends, missing, n: dataclasses.replace(
        difference(metric, ends[1], n_groups=n), low=NAN if missing else ends[0], high=NAN if missing else ends[2]
    ),
    st.sampled_from(["auc", "probe:count", "mlp:center", "linear:center"]),
    st.tuples(*[st.sampled_from([-0.2, -0.05, -0.01, 0.0, 0.01, 0.05, 0.2])] * 3).map(sorted),
    st.booleans(),
    st.sampled_from([1, 3, 23]),
)


@given(st.lists(DIFFERENCES, min_size=1, max_size=6))
def test_a_difference_says_what_its_interval_says(differences):
    record = guide_record(differences=tuple(differences), discourage=())
    verdicts = guide_verdicts(record)
    covers = [d for d in differences if d.low <= 0 <= d.high]
    assert len(verdicts) == len(differences) - len(covers) + bool(covers)  # all of these share one line
    if covers:
        last = verdicts[-1]
        many = f"{len(covers)} result{'s' if len(covers) > 1 else ''}"
        assert last.mark == "open"
        assert last.text.startswith(f"No clear change in {many} (")
    for verdict in verdicts:
        well_formed(verdict.text)
        claims = re.match(r"Guiding (raised|lowered)", verdict.text)
        assert (verdict.mark == "established") == bool(claims)
    marks = guide_tables.difference_table(record).frame["verdict"].tolist()
    assert marks == [difference_mark(d, "patient") for d in differences]
    for d, mark in zip(differences, marks, strict=True):
        assert (mark == "established") == ((d.low > 0 or d.high < 0) and d.n_groups == 23)


@given(DIFFERENCES)
def test_a_control_of_a_grid_says_what_its_interval_says(d):
    verdict = judge_control("random", d, "patient")
    well_formed(verdict.text)
    assert ("raises" in verdict.text) == (d.low > 0 and d.n_groups == 23)
    assert ("lowers" in verdict.text) == (d.high < 0 and d.n_groups == 23)
    assert ("no clear change" in verdict.text) == (d.low <= 0 <= d.high)


@given(SOME, SOME, st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from([3, 10, None]))
def test_leakage_without_an_interval_establishes_nothing(linear, mlp, chance, n_groups):
    leakage = {"center": {"linear": linear, "mlp": mlp, "chance": chance}}
    guided = dataclasses.replace(guide_run("guided", 0), leakage=leakage)
    told = () if n_groups is None else (difference("mlp:center", 0.2, n_groups=n_groups),)
    record = guide_record(runs=(guide_run("baseline", 0), guided), differences=told)
    [verdict] = [v for v in guide_verdicts(record) if "network" in v.text]
    well_formed(verdict.text)
    scores = [v for v in (linear, mlp) if v is not None]
    decodable = bool(scores) and max(scores) > chance + 0.05
    assert verdict.mark == ("associated" if decodable and n_groups == 10 else "open")
    assert verdict.text.startswith("center is still decodable") == (verdict.mark == "associated")
    assert ("not shown to be decodable" in verdict.text) == (bool(scores) and not decodable)


# --- audit, attribution, predictivity, bags ----------------------------------------------------------------------


def audit_row(probe="linear", *, erased=False, score=0.7, low=0.6, high=0.8, p=0.01, n_groups=30):
    values = {"layer": "trunk", "metric": "balanced_accuracy", "chance": 0.5, "permuted": "groups"}
    return AuditRow(
        **values, probe=probe, erased=erased, n=99, n_groups=n_groups, width=9, score=score, low=low, high=high, p=p
    )


@given(
    st.tuples(*[st.sampled_from([0.3, 0.45, 0.52, 0.6, 0.8])] * 3).map(sorted),
    st.booleans(),
    st.sampled_from([NAN, 0.001, 0.02, 0.4]),
    st.sampled_from([3, 30]),
    st.sampled_from([None, 0.5]),
    st.booleans(),
)
def test_an_audit_says_what_its_numbers_say(ends, missing, p, n_groups, head, discouraged):
    low, score, high = (NAN, ends[1], NAN) if missing else ends
    numbers = {"score": score, "low": low, "high": high, "p": p, "n_groups": n_groups}
    rows = (audit_row(**numbers), audit_row(erased=True, **numbers))
    layers = (AuditLayer(layer="trunk", a_distance=1.0, label_auc=0.9, label_auc_erased=0.8),)
    record = AuditRecord(
        study="s",
        group="patient",
        concept="center",
        kind="categorical",
        discouraged=discouraged,
        head=head,
        rows=rows,
        layers=layers,
        auc=0.9,
    )
    before, after = audit_verdicts(record)
    for verdict in (before, after):
        well_formed(verdict.text)
        assert number(score) in verdict.text
    said = {"established": "be decoded from", "associated": "associated with", "open": "not shown to be decodable"}
    assert [mark for mark, words in said.items() if words in before.text] == [before.mark]
    assert (before.mark == "established") == (low > 0.5 and n_groups == 30 and not p >= 0.05)
    if before.mark == "associated":
        assert p < 0.05 or (math.isnan(p) and missing and score > 0.55)
    assert ("is not shown to decode" in after.text) == (after.mark == "open")
    assert remnant_table(record).frame["verdict"].tolist() == [before.mark]


@given(
    st.tuples(*[st.sampled_from([-0.4, -0.1, 0.0, 0.1, 0.4])] * 3).map(sorted),
    st.booleans(),
    st.sampled_from([NAN, 0.001, 0.02, 0.4]),
    st.sampled_from([3, 30]),
    st.sampled_from([(0.5, 0.3, 0.6), (-0.2, -0.4, 0.1), (0.5, None, None), (-0.2, None, None)]),
    st.sampled_from([-0.5, 0.5]),
    st.booleans(),
)
def test_an_attribution_says_what_its_numbers_say(ends, missing, q, n_groups, read, along, same):
    low, change, high = (NAN, ends[1], NAN) if missing else ends
    row = attribute_row(
        per_unit=change,
        per_unit_low=low,
        per_unit_high=high,
        per_unit_q=q,
        n_groups=n_groups,
        score=read[0],
        score_low=read[1],
        score_high=read[2],
        chance=0.0,
        mean=along,
        same_derivative=same,
    )
    verdict = judge_change(row, "patient")
    well_formed(verdict.text)
    clear = (low > 0 or high < 0) and n_groups == 30 and not q >= 0.05
    decodable = read[0] > 0
    assert (verdict.mark == "established") == (clear and decodable)
    assert verdict.text.startswith("Open whether") == (verdict.mark == "open")
    assert ("tumor rises with" in verdict.text) == (clear and low > 0)
    assert ("tumor falls with" in verdict.text) == (clear and high < 0)
    if "associated" in verdict.text:
        assert q < 0.05
    if clear and not decodable:
        assert "not shown to be decodable" in verdict.text
    if same:
        assert "TCAV" not in verdict.text


@given(
    st.tuples(*[st.sampled_from([0.3, 0.45, 0.5, 0.6, 0.8])] * 3).map(sorted), st.sampled_from([3, 30]), st.booleans()
)
def test_an_auc_says_on_which_side_of_one_half_it_lies(ends, n_groups, missing):
    low, auc, high = (NAN, ends[1], NAN) if missing else ends
    common = {"split": "external", "auc": auc, "low": low, "high": high, "n_groups": n_groups}
    row = PredictivityRow(inputs=("center",), role="confounder", sd=0.0, seeds=(0.5,), **common)
    attention = AttentionScore(run="guided", seed=0, n=9, **common)
    clear = low > 0.5 and n_groups == 30
    assert " to the tumor patches on external" in judge_attention(attention, "patient", "tumor").text
    for verdict in (judge_auc(row, "patient", "A network may rely on it"), judge_attention(attention, "patient")):
        well_formed(verdict.text)
        assert verdict.mark == ("established" if clear else "open")
        assert verdict.text.startswith("Open whether") == (not clear)
        assert ("below chance" in verdict.text) == (high < 0.5)
    assert ("may rely on it" in judge_auc(row, "patient", "A network may rely on it").text) == clear


def test_no_template_uses_the_words_that_misled():
    combinations = itertools.product(
        (0.2, 0.71, 0.95), (None, 0.2, 0.7, 0.95), (None, 0.2, 0.7, 0.95), (None, 0.008, 0.4)
    )
    for score, random, pixels, q in combinations:
        text = judge_probe(
            probe_row(score=score, score_random_network=random, score_pixels=pixels, q=q), "patient"
        ).text
        assert not re.search(r"readable|exclude|no network is needed|ignoring", text)
