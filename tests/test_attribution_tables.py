"""Attribution in words and tables: what is said at a layer whose derivative is the same for every image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conceptkit.attribution.tcav import is_same_for_all, share_interval
from conceptkit.records.attribute import AttributeRecord, AttributeRow, Score
from conceptkit.report.attribution_tables import attribution_tables, attribution_verdicts, score_table
from conceptkit.report.table import shown


def score(value: float, **changes: float) -> Score:
    values = {"refits_mean": value, "refits_sd": 0.37, "null_low": 0.0, "null_high": 1.0, "outside": 0.0}
    return Score(**{"value": value, **values, "p": 1.0, "q": 1.0, **changes})


def attribute_row(layer: str = "mixed9", *, mean: float = 0.5, **changes: object) -> AttributeRow:
    scores = {
        "sign_count": score(1.0, low=0.6, high=1.0),
        "magnitude": score(0.9, low=0.5, high=0.99),
        "mean": score(mean),
        "relevance": score(math.nan),
    }
    values = {
        **{"model": "m", "weights": "w", "layer": layer, "concept": "count", "concept_class": None},
        **{"kind": "continuous", "target": "tumor", "among": "all", "n": 300, "n_groups": 30, "n_fit": 300},
        **{"metric": "r2", "score": 0.6, "score_low": 0.5, "score_high": 0.7, "chance": 0.0},
        **{"per_unit": 0.3, "per_unit_low": 0.2, "per_unit_high": 0.4, "per_sd": 1.5, "per_sd_low": 1.0},
        **{"per_sd_high": 2.0, "sd": 5.0, "unit": "", "round_step": 5.0, "per_unit_p": 0.002, "per_unit_q": 0.002},
        **{"interval_note": None, "scores": scores, "alpha": 1.0, "cosine": 0.9, "agreement": 1.0},
        **{"zero_gradients": 0, "permuted": "groups", "permutations": 500, "refits": 100},
    }
    return AttributeRow(**{**values, **changes})  # type: ignore[arg-type]


def test_a_derivative_that_is_the_same_everywhere_is_found():
    rng = np.random.default_rng(0)
    row = rng.normal(size=(1, 8))
    assert is_same_for_all(np.repeat(row, 50, axis=0))
    assert is_same_for_all(np.repeat(row, 50, axis=0).astype(np.float32) * (1 + 1e-7 * rng.normal(size=(50, 1))))
    assert not is_same_for_all(row + 0.01 * rng.normal(size=(50, 8)))  # the control: nearly the same is not the same
    assert not is_same_for_all(row)  # one image says nothing of others


def test_at_such_a_layer_one_sentence_replaces_the_scores():
    rows = tuple(attribute_row("mixed10", among=a, same_derivative=True) for a in ("all", "normal", "tumor"))
    record = AttributeRecord(study="s", group="patient", rows=rows)
    assert [table.name for table in attribution_tables(record)] == ["attribution"]
    [said] = [v for v in attribution_verdicts(record) if "TCAV" in v.text]
    assert said.mark == "open"
    assert "same for every image at mixed10" in said.text
    assert "choose an earlier layer" in said.text
    both = AttributeRecord(study="s", group="patient", rows=(*rows, attribute_row("mixed9")))
    table = score_table(both)
    assert table is not None
    assert len(shown(table)) == 1  # the control: the earlier layer keeps its scores
    assert not [
        v for v in attribution_verdicts(AttributeRecord(study="s", rows=(attribute_row(),))) if "TCAV" in v.text
    ]


def test_shares_are_shown_with_an_interval_inside_0_and_1():
    table = score_table(AttributeRecord(study="s", group="patient", rows=(attribute_row(),)))
    assert table is not None
    assert shown(table)["TCAV"].tolist() == ["1.00 [0.60, 1.00]"]
    assert shown(table)["magnitude"].tolist() == ["0.90 [0.50, 0.99]"]


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("error", [0.0, 1e-9, 0.02, 0.37, math.nan])
@pytest.mark.parametrize("n_groups", [2, 8, 36])
def test_an_interval_of_a_share_lies_inside_0_and_1_and_holds_it(share, error, n_groups):
    low, high = share_interval(share, error, n_groups=n_groups, n=200)
    assert 0 <= low <= share <= high <= 1
    assert low < high
    turned = share_interval(1 - share, error, n_groups=n_groups, n=200)
    assert turned == pytest.approx((1 - high, 1 - low), abs=1.1e-3)


def test_a_share_of_independent_rows_has_the_interval_of_clopper_and_pearson():
    from scipy.stats import binomtest

    exact = binomtest(30, 40).proportion_ci()
    error = math.sqrt(0.75 * 0.25 / 40) * 0.97  # beyond what 40 rows have: they are the most that count
    assert share_interval(0.75, error, n_groups=40, n=40) == pytest.approx((exact.low, exact.high), abs=1e-3)
    assert all(math.isnan(end) for end in share_interval(0.5, 0.1, n_groups=1, n=40))


def test_the_interval_of_a_share_covers_it_where_the_usual_one_does_not():
    """Shares near 1 that differ between patients: in most sets the share is 1 and has no spread at all."""
    rng, truth, groups = np.random.default_rng(1), 0.99, 20
    ours, usual = [], []
    for _ in range(300):
        of_patient = rng.beta(truth * 0.4, (1 - truth) * 0.4, groups)
        shares = (rng.random((groups, 8)) < of_patient[:, None]).mean(1)
        error = (rng.multinomial(groups, np.full(groups, 1 / groups), 60) @ shares / groups).std(ddof=1)
        low, high = share_interval(float(shares.mean()), float(error), n_groups=groups, n=groups * 8)
        ours.append(low <= truth <= high)
        usual.append(abs(shares.mean() - truth) <= 2.09 * error)
    assert np.mean(ours) > 0.93
    assert np.mean(usual) < 0.5  # the control
