"""One wording for mistakes: names that are near, and places that cannot be written."""

from __future__ import annotations

import pytest

from conceptkit.errors import InputError, check_choice, check_place, near_names

FEW = ["gap", "max", "flatten"]
MANY = [f"mixed{i}" for i in range(11)] + [f"block{i}" for i in range(11)]


def test_few_names_are_all_listed_the_near_ones_first():
    assert near_names("flaten", FEW) == "near names: flatten; also gap, max"
    assert near_names("GAP", FEW) == "near names: gap; also max, flatten"
    assert near_names("zzzzzz", FEW) == "known: gap, max, flatten"
    assert near_names("area", ["area, mean"]) == 'near names: "area, mean"'  # as it is to be written in a list
    assert near_names("gpa", ["gap"]) == "near names: gap"


def test_of_many_names_only_the_near_ones():
    told = near_names("mixd10", MANY)
    assert told.startswith("near names: mixed10")
    assert "block" not in told
    assert near_names("qqqq", MANY) == f"known: {', '.join(MANY[:8])} … (22 in all)"


def test_there_may_be_no_name_at_all():
    assert near_names("a", []) == "there is none to choose from"


def test_a_choice_is_returned_or_refused():
    assert check_choice("pool", "gap", FEW) == "gap"
    with pytest.raises(InputError, match="pool: 'gab' is not known; near names: gap; also max, flatten"):
        check_choice("pool", "gab", FEW)


def test_a_place_that_can_be_made_is_left_unmade(tmp_path):
    check_place("out", tmp_path)
    check_place("out", tmp_path / "a" / "b" / "c.json")
    assert list(tmp_path.iterdir()) == []


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out: .*run cannot be created: .*file is not a folder"):
        check_place("out", tmp_path / "file" / "deep" / "run")


def test_a_place_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission to write into"):
        check_place("json", tmp_path / "result.json")


def test_a_name_that_shares_a_word_is_near():
    columns = [f"column{i}" for i in range(15)] + ["area_px", "area_um2"]
    assert near_names("nuclear_area", columns) == "near names: area_px, area_um2"
    assert near_names("um", columns).startswith("known: ")  # two letters are no word
