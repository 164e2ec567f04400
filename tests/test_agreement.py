"""Agreement of label images against plain loops over nuclei."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from conceptkit.errors import InputError
from conceptkit.pathology.agreement import agreement


def by_loops(found, drawn):
    """AJI, PQ and Dice as the papers write them."""
    ours = [found == k for k in np.unique(found) if k]
    theirs = [drawn == k for k in np.unique(drawn) if k]
    if not ours or not theirs:
        return (1.0, 1.0, 1.0) if len(ours) == len(theirs) else (0.0, 0.0, 0.0)
    used, inter, union, matched = set(), 0, 0, []
    for nucleus in theirs:
        scores = [(nucleus & o).sum() / (nucleus | o).sum() for o in ours]
        best = int(np.argmax(scores))
        if scores[best] > 0:
            inter += (nucleus & ours[best]).sum()
            union += (nucleus | ours[best]).sum()
            used.add(best)
        else:
            union += nucleus.sum()
        matched += [s for s in scores if s > 0.5]
    union += sum(o.sum() for k, o in enumerate(ours) if k not in used)
    pq = sum(matched) / (len(matched) + (len(ours) - len(matched)) / 2 + (len(theirs) - len(matched)) / 2)
    dice = 2 * ((found > 0) & (drawn > 0)).sum() / ((found > 0).sum() + (drawn > 0).sum())
    return inter / union, pq, dice


def test_scores_are_those_of_loops():
    rng = np.random.default_rng(0)
    for _ in range(30):
        drawn = np.kron(rng.integers(0, 6, (6, 6)), np.ones((3, 3), int))
        found = np.roll(drawn, rng.integers(-1, 2, 2), axis=(0, 1)) * rng.integers(1, 9)
        ours = agreement(found, drawn)
        aji, pq, dice = by_loops(found, drawn)
        np.testing.assert_allclose([ours.pq, ours.dice], [pq, dice], rtol=1e-12)
        assert ours.aji == pytest.approx(aji, rel=0.02)  # ties between equal overlaps may be broken otherwise
        assert ours.pq == pytest.approx(ours.dq * (ours.sq if np.isfinite(ours.sq) else 0))


@given(arrays(np.uint8, (5, 6), elements=st.integers(0, 4)), arrays(np.uint8, (5, 6), elements=st.integers(0, 4)))
def test_scores_lie_between_0_and_1(found, drawn):
    ours = agreement(found, drawn)
    assert 0 <= ours.aji <= ours.dice <= 1
    assert 0 <= ours.pq <= 1
    assert ours.dice == pytest.approx(by_loops(found, drawn)[2])


def test_perfect_empty_and_merged():
    drawn = np.zeros((10, 10), int)
    drawn[1:4, 1:4], drawn[1:4, 4:7] = 3, 9
    assert agreement(drawn * 2, drawn).aji == agreement(drawn, drawn).pq == 1
    assert agreement(drawn * 0, drawn * 0).aji == 1
    assert agreement(drawn * 0, drawn).aji == agreement(drawn, drawn * 0).pq == 0
    merged = agreement((drawn > 0).astype(int), drawn)  # control: Dice does not see that two nuclei became one
    assert merged.dice == 1
    assert merged.aji == 0.5
    assert merged.pq == 0


def test_other_sizes_are_refused():
    with pytest.raises(InputError, match=r"found: must have the shape of drawn, \(4, 4\), got \(3, 3\)"):
        agreement(np.zeros((3, 3), int), np.zeros((4, 4), int))
