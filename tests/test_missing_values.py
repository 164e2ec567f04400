"""What counts as missing in a patch table: the empty cell, and in a column of numbers what stands for no number."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from conceptkit.errors import InputError
from conceptkit.runs.opening import notes_on
from conceptkit.tables.patches import PatchTable, load_table
from conceptkit.tables.study import Study

WORDS = ["NA", "None", "null", "nan", "n/a"]


@pytest.fixture
def load(tmp_path):
    def load(columns, kinds=None):
        n = len(next(iter(columns.values())))
        table = pd.DataFrame({"patch_id": [f"p{i:03d}" for i in range(n)], **columns})
        table.to_csv(tmp_path / "t.csv", index=False)
        return load_table(tmp_path / "t.csv", kinds=kinds or {})

    return load


def test_in_a_column_of_text_only_the_empty_cell_is_missing(load):
    table = load({"necrosis": [*WORDS, "", "some"]})
    assert table.kind("necrosis") == "categorical"
    assert table.concept("necrosis").values.tolist() == [*WORDS, None, "some"]


@pytest.mark.parametrize("column", ["center", "label", "split", "patient"])
def test_so_it_is_in_the_columns_that_are_always_text(load, column):
    table = load({column: ["NA", "7", "null", ""]})
    assert [None if v != v else v for v in table.frame[column]] == ["NA", "7", "null", None]


@pytest.mark.parametrize("word", [*WORDS, "NaN", "na", " ", " NA "])
def test_in_a_column_of_numbers_such_words_are_missing(load, word):
    table = load({"area": ["1", word, "2.5", "", "-3e2", "inf"]})
    assert table.kind("area") == "continuous"
    np.testing.assert_array_equal(table.concept("area").values, [1, np.nan, 2.5, np.nan, -300, np.inf])


def test_whole_numbers_stay_whole_beside_a_missing_one(load):
    table = load({"grade": ["1", "NA", "2", "3"]}, kinds={"grade": "categorical"})
    assert table.concept("grade").values.tolist() == ["1", None, "2", "3"]


def test_words_alone_do_not_make_a_column_of_numbers(load):
    table = load({"area": ["NA", "nan", ""]})
    assert table.concept("area").values.tolist() == ["NA", "nan", None]


def test_truth_values_stay_truth_values(load):
    assert load({"benign": ["True", "", "False"]}).concept("benign").values.tolist() == ["True", None, "False"]


def test_a_window_or_a_row_may_not_be_a_word(load):
    with pytest.raises(InputError, match="row must be a whole number from 0 on, got nan"):
        load({"h5": ["t.csv", "t.csv"], "key": ["k", "k"], "row": ["NA", "1"]}).pixels(0)


# --- notes and refusals ------------------------------------------------------------------------------------------


def notes(table, *concepts, group=None):
    return notes_on(Study(name="s", table=table.folder / "t.csv", group=group), table, concepts)


def test_a_class_that_looks_missing_is_pointed_out(load):
    table = load({"grade": ["NA", "high", "NA", ""], "necrosis": ["none", "some", "None", ""], "patient": list("abcN")})
    assert "grade holds 'NA' in 2 rows" in notes(table, "grade", group="patient")[-1]
    found = notes(table, "necrosis", group="patient")
    assert not [n for n in found if "like any other" in n]  # none is a common class
    assert "necrosis holds 'None' and 'none', treated as two different values." in found
    named = load({"count": ["1", "2"], "patient": ["NA", "b"]})
    assert "patient holds 'NA' in 1 rows" in notes(named, "count", group="patient")[-1]


@pytest.mark.parametrize(
    ("odd", "named"), [(["n.d."] * 3, "n.d."), (["<5", "NA", "NA"], "<5"), (["3,5", "4,5", "5,5"], "3,5")]
)
def test_numbers_that_are_text_by_a_few_cells_are_refused(load, odd, named):
    table = load({"area": [*odd, *[str(i / 2) for i in range(20)]]})
    with pytest.raises(InputError, match=f"area holds .* numbers but is text because of '{named}'"):
        notes(table, "area")
    as_classes = load({"area": [*odd, *[str(i / 2) for i in range(20)]]}, kinds={"area": "categorical"})
    assert notes(as_classes, "area")


def test_words_with_a_few_numbers_are_classes(load):
    stages = ["1", "2", "2a", "2b", "3", "4"] * 5
    names = [f"C{i}" for i in range(30)]
    table = load({"stage": stages, "scanner": names})
    assert table.kind("stage") == "categorical"
    assert notes(table, "stage", "scanner")


def test_numbers_that_a_parquet_file_holds_as_text_are_classes(tmp_path):
    table = PatchTable(pd.DataFrame({"patch_id": list("abcdefghijkl"), "site": [str(i) for i in range(12)]}), tmp_path)
    assert notes(table, "site")


def test_unknown_concepts_are_told_with_near_names(load):
    with pytest.raises(InputError, match="concept: the table has no column 'cuont'; near names: count"):
        notes(load({"count": ["1", "2"]}), "cuont")
