"""The search for training options: it takes the least loss, never a worse one than the start's."""

from __future__ import annotations

import dataclasses
import math

import pytest

from conceptkit.errors import InputError
from conceptkit.guide.search import search
from conceptkit.options.training import TrainingOptions

START = TrainingOptions(lr=1e-3)


def bowl(options):
    return (math.log10(options.lr) + 2.3) ** 2 + options.dropout


def test_the_least_loss_is_taken_and_all_are_told():
    best, tried = search(bowl, START, trials=40)
    assert len(tried) == 40
    assert tried[0].lr == START.lr
    least = min(tried, key=lambda t: t.loss)
    assert (best.trunk, best.dropout, best.l2, best.lr) == (least.trunk, least.dropout, least.l2, least.lr)
    assert least.loss < bowl(START) / 3
    assert dataclasses.replace(best) == best  # in the allowed ranges


def test_it_repeats_from_its_seed():
    assert search(bowl, START, trials=8) == search(bowl, START, trials=8)
    assert search(bowl, START, trials=8) != search(bowl, START, trials=8, seed=1)


def test_what_fails_is_not_taken():
    best, tried = search(lambda o: 1.0 if o == START else float("nan"), START, trials=5)
    assert best == START
    assert [t.loss for t in tried] == [1.0, *[math.inf] * 4]


def test_only_what_is_searched_changes():
    best, _ = search(bowl, TrainingOptions(lr=1e-3, epochs=7, method="reversal", unfreeze=("a",)), trials=20)
    assert (best.epochs, best.method, best.unfreeze) == (7, "reversal", ("a",))


def test_no_trial_is_a_mistake():
    with pytest.raises(InputError, match="search"):
        search(bowl, START, trials=0)
