"""Tables, feature files and arrays that are easily misread: each with its right value, or refused."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import conceptkit as ck
from conceptkit.commands.given_arrays import check_same_order, given_column, given_features, given_labels
from conceptkit.errors import InputError
from conceptkit.features.own_files import read_features
from conceptkit.features.slide_files import with_features
from conceptkit.pathology.adapters.image_folder import image_folder
from conceptkit.probe.usable import usable_target
from conceptkit.tables.patches import load_table

N = 60


@pytest.fixture
def load(tmp_path):
    def load(text, **options):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return load_table(tmp_path / "t.csv", **options)

    return load


def test_a_saved_index_is_skipped_and_said(load, tmp_path):
    frame = pd.DataFrame({"patch_id": ["b", "a", "c"], "count": [3, 1, 2]})
    frame.to_csv(tmp_path / "saved.csv")
    frame.rename_axis("__index_level_0__").reset_index().to_parquet(tmp_path / "saved.parquet")
    for name in ("saved.csv", "saved.parquet"):
        table = load_table(tmp_path / name)
        assert table.concept_names == ["count"]
        assert "without a name" in table.notes[0]
    frame.set_index("patch_id").to_parquet(tmp_path / "named.parquet")
    assert load_table(tmp_path / "named.parquet").patch_ids == ["a", "b", "c"]


@pytest.mark.parametrize("above", ["sep=,\n", "\ufeffsep=,\r\n", "# cut at 20x\n", "# a, b\n\n# it's \"new\n", "#\n"])
def test_lines_above_the_names_of_columns_are_skipped(load, above):
    table = load(above + "patch_id,count,area\na,1,2\nb,3,4\n")
    assert table.concept_names == ["count", "area"]
    assert table.frame["count"].tolist() == [1, 3]


def test_names_behind_a_hash_are_refused(load):
    with pytest.raises(InputError, match="line 1 begins with # and has as many cells as the next"):
        load("#patch_id,count\na,1\n")
    with pytest.raises(InputError, match="separated by commas, got ';'"):
        load("sep=;\npatch_id;count\na;1\n")


def test_a_name_in_capitals_is_said_with_its_option(load):
    table = load("patch_id,count,Patient,Center\na,1,p,c\nb,3,q,c\n")
    assert any("--group Patient" in note for note in table.notes)
    assert any("--center Center" in note for note in table.notes)


def test_blanks_around_names_and_cells_are_no_part_of_them(load):
    table = load("patch_id , label, count\na,tumor ,1\nb, tumor,2\nc,tumor,3\n")
    assert table.concept("label").values.tolist() == ["tumor"] * 3
    assert table.concept_names == ["count"]
    assert "Blanks around text were removed in label" in table.notes[0]
    with pytest.raises(InputError, match="column count occurs more than once"):
        load("patch_id,count,count \na,1,2\n")


def test_coordinates_ids_row_numbers_and_dates_are_probed_only_when_named(load):
    rows = "".join(
        f"p{i},{i * 7 % 5},{i},{i * 3 % 7},{i},{i + 1},2020-01-{i + 1:02d},{i * 5 % 11}\n" for i in range(12)
    )
    table = load("patch_id,x_um,Y_um,sobel_x,slide_id,number,visit,count\n" + rows)
    assert table.concept_names == ["sobel_x", "count"]
    assert table.aside["number"] == "row numbers"
    assert table.aside["x_um"] == table.aside["Y_um"] == "coordinates"
    assert "slide_id (ids)" in table.aside_note
    assert len(table.concept("number").values) == 12
    with pytest.raises(InputError, match="concept: visit holds dates"):
        table.concept("visit")


def test_ids_stay_apart(load, tmp_path):
    table = load("patch_id,donor,case\na,001,12345678901234567\nb,1,12345678901234568\nc,2,3\n")
    assert table.groups("donor").tolist() == ["001", "1", "2"]
    assert len(set(table.groups("case"))) == 3
    assert table.spelled_alike("donor") is not None
    with pytest.raises(InputError, match=r"patient holds '1' and '1\.0'"):
        load("patch_id,patient\na,1\nb,1.0\n").groups("patient")
    ids = pd.array([2**60, 2**60 + 1, None], dtype="Int64")
    pd.DataFrame({"patch_id": list("abc"), "donor": ids}).to_parquet(tmp_path / "t.parquet")
    whole = load_table(tmp_path / "t.parquet", kinds={"donor": "categorical"})
    assert whole.concept("donor").values.tolist() == [str(2**60), str(2**60 + 1), None]


def test_r_writes_missing_truth_as_na(load):
    column = load("patch_id,tumor\na,TRUE\nb,FALSE\nc,NA\nd,TRUE\n").concept("tumor")
    assert column.kind == "categorical"
    assert column.values.tolist() == ["True", "False", None, "True"]


def test_a_nan_with_a_sign_is_missing(load):
    column = load("patch_id,v\na,1.5\nb,-nan\nc,-NaN\n").concept("v")
    assert column.kind == "continuous"
    np.testing.assert_array_equal(column.values, [1.5, np.nan, np.nan])


def test_empty_rows_below_a_spreadsheet_are_skipped(load):
    table = load("patch_id,count,,\na,3,,\nb,4,,\n,,,\n,,,\n")
    assert table.patch_ids == ["a", "b"]
    assert any("without any value skipped: 2" in note for note in table.notes)


def test_characters_without_a_width_make_no_second_patient(load):
    table = load("patch_id,patient\na,p1\u200b\nb,p1\nc,\ufeffp1\n")
    assert set(table.groups("patient")) == {"p1"}


def test_the_column_of_the_groups_is_probed_only_when_named(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"patch_id": [f"s{i:02d}" for i in range(N)], "case": np.arange(N) // 6 * 1.5})
    table = table.assign(v=rng.normal(size=N))
    table.to_csv(tmp_path / "t.csv", index=False)
    features = pd.DataFrame(rng.normal(size=(N, 3)), columns=list("abc")).assign(patch_id=table.patch_id)
    features.to_parquet(tmp_path / "f.parquet")
    given = {"table": tmp_path / "t.csv", "features": tmp_path / "f.parquet", "group": "case", "permutations": 0}
    found = ck.run_probe(**given, out=tmp_path / "default")
    assert [row.concept for row in found.rows] == ["v"]
    named = ck.run_probe(**given, concepts=["case"], out=tmp_path / "named")
    assert [row.concept for row in named.rows] == ["case"]


def test_a_slide_beside_an_image_is_a_name(load):
    table = load("image,slide,count\na.png,s1,1\nb.png,s2,2\n")
    assert (table.location, table.concept_names) == ("image", ["count"])
    assert table.groups("slide").tolist() == ["s1", "s2"]


@given(st.lists(st.one_of(st.floats(allow_nan=False), st.integers(-(10**15), 10**15)), min_size=1, max_size=20))
def test_numbers_are_those_that_pandas_reads(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    pd.DataFrame({"patch_id": range(len(values)), "v": values}).to_csv(path, index=False)
    table = load_table(path).frame
    expected = pd.read_csv(path, dtype={"patch_id": "str"}).sort_values("patch_id")["v"].to_numpy(dtype=float)
    np.testing.assert_array_equal(table["v"].to_numpy(dtype=float), expected)


# Feature files


def test_what_the_table_has_is_no_feature(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"p{i:02d}" for i in range(N)]
    count = rng.normal(size=N)
    pd.DataFrame({"patch_id": ids, "count": count}).to_csv(tmp_path / "t.csv", index=False)
    X = rng.normal(size=(N, 3)).astype(np.float32)
    file = pd.DataFrame(X, columns=["0_a", "1_a", "2_a"]).assign(
        patch_id=ids, x=rng.integers(0, 9, N), MPP=0.25, Count=count, slide_id=7, tissue="t"
    )
    file.to_parquet(tmp_path / "f.parquet")
    table = with_features(load_table(tmp_path / "t.csv"), tmp_path / "f.parquet")
    found = read_features(table, np.arange(N))
    np.testing.assert_array_equal(found.X, X)
    [note] = found.notes
    for name in (
        "x (reserved)",
        "MPP (reserved)",
        "Count (a column of the table)",
        "slide_id (ids)",
        "tissue (no numbers)",
    ):
        assert name in note
    file.rename(columns={"Count": "n"}).to_parquet(tmp_path / "f.parquet")
    found = read_features(table, np.arange(N))
    np.testing.assert_array_equal(found.X, X)
    assert "n (equals count)" in found.notes[0]
    pd.DataFrame({"patch_id": ids, "e": list(X), "x": 1.0}).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(InputError, match="column e holds ndarray in a cell"):
        read_features(table, np.arange(N))


# Arrays


@pytest.mark.parametrize(
    "column",
    [
        pd.array([True, None, False], dtype="boolean"),
        pd.array(["a", None, "b"], dtype="string"),
        pd.Categorical([1, None, 2]),
        ["a", float("nan"), "b"],
    ],
)
def test_classes_of_every_library(column):
    values = given_column("c", column, 3)
    assert values.dtype == object
    assert values[1] is None
    assert len({*values}) == 3


@pytest.mark.parametrize(
    "column",
    [
        pd.array([1, None, 3], dtype="Int64"),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        pd.Series([1.0, None, 3.0], dtype="double[pyarrow]"),
        torch.tensor([1.0, float("nan"), 3.0], requires_grad=True),
        torch.tensor([1.0, float("nan"), 3.0]).bfloat16(),
    ],
)
def test_numbers_of_every_library(column):
    np.testing.assert_array_equal(given_column("c", column, 3), [1, np.nan, 3])


def test_polars_is_read_without_depending_on_it():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"y": [1, None, 3], "c": ["a", None, "b"]})
    np.testing.assert_array_equal(given_features("X", frame[["y"]])[:, 0], [1, np.nan, 3])
    for dtype in (polars.String, polars.Categorical):
        assert given_column("c", frame["c"].cast(dtype), 3).tolist() == ["a", None, "b"]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ([datetime.date(2020, 1, 1)] * 3, "dates or durations"),
        (np.array([1j, 2j, 3j]), "complex numbers"),
        ([1, "a", None], "numbers and text"),
        (["a", "a ", "b"], "differ only in spaces"),
    ],
)
def test_columns_without_one_meaning_are_refused(column, told):
    with pytest.raises(InputError, match=told):
        given_column("c", column, 3)


def test_groups_of_several_types_and_rows_in_another_order_are_refused():
    with pytest.raises(InputError, match="numbers and text"):
        given_labels("groups", np.array([1, 1.0, "1"], dtype=object), 3)
    with pytest.raises(InputError, match="every row needs a group, 1 of 3"):
        given_labels("groups", pd.array([1, None, 2], dtype="Int64"), 3)
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
    with pytest.raises(InputError, match="matched by position"):
        check_same_order(X=frame, groups=frame["a"][::-1])


# What the table alone shows


def test_a_class_of_one_group_is_skipped_and_the_others_go_on():
    groups = np.repeat([f"g{i}" for i in range(6)], 4)
    values = np.array([*(["a", "b"] * 10), *(["only"] * 4)], dtype=object)
    target, note = usable_target("c", "categorical", values, groups, 3)
    assert target.classes == ("a", "b")
    assert len(target.y) == 20
    assert "4 rows skipped" in note
    with pytest.raises(InputError, match="7 folds need at least 7 groups"):
        usable_target("c", "categorical", values, groups, 7)


def test_a_concept_is_not_adjusted_for_itself():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4))
    y = X[:, 0] + rng.normal(size=N)
    options = {"permutations": 0, "n_resamples": 50}
    row = ck.probe_arrays(X, {"y": y}, np.arange(N) // 5, adjust={"y": y, "z": X[:, 1]}, **options).rows[0]
    assert row.adjusted_for == ("z",)
    alone = ck.probe_arrays(X, {"y": y}, np.arange(N) // 5, adjust={"y": y}, **options).rows[0]
    assert alone.score_adjusted is None
    assert "only confounder itself" in alone.notes[-1]


def test_patients_are_taken_from_file_names(tmp_path):
    for name in ("tumor/P1_a.png", "tumor/P2_a.png", "normal/P1_b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = image_folder(tmp_path, out=tmp_path / "t.csv", patient="^([^_]+)_")
    assert found.table["patient"].tolist() == ["P1", "P1", "P2"]
    assert "normal 1, tumor 2" in found.notes[0]
    with pytest.raises(InputError, match=r"patient: 'Q' does not match P1_b\.png"):
        image_folder(tmp_path, out=tmp_path / "t.csv", patient="Q")


def test_series_in_a_mapping_are_matched_by_position_too():
    X = pd.DataFrame(np.zeros((4, 2)))
    turned = pd.Series(np.arange(4.0), index=[3, 2, 1, 0])
    with pytest.raises(InputError, match=r"concepts\['y'\]: rows are matched by position"):
        check_same_order(X=X, concepts={"y": turned})
    with pytest.raises(InputError, match="centers: rows are matched by position"):
        ck.probe_arrays(X, {"y": np.arange(4.0)}, centers=turned)
    check_same_order(X=X, concepts={"y": turned.reset_index(drop=True)})


def test_an_array_with_fields_is_refused():
    fields = np.array([(1.0, 2.0)] * 3, dtype=[("a", float), ("b", float)])
    with pytest.raises(InputError, match="has the fields a, b"):
        given_column("y", fields, 3)


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.v.fillna(1.0), "equals v"),
        (lambda t: 255 - 2 * t.v.fillna(1.0), "is a linear function of v"),
        (lambda t: t.v.fillna(1.0).round(3), "is a linear function of v"),
        (lambda t: np.exp(t.v.fillna(1.0)), "increases or decreases with v"),
        (lambda t: (t.label == "tumor") * 1.0, "is a function of label"),
        (lambda t: t.center.map({"A": 7, "B": 2, "C": 5}), "is a function of center"),
        (lambda t: (t.center == "B") * 1.0, "is a function of center"),
        (lambda t: t.few * 10.0, "is a linear function of few"),
    ],
)
def test_a_feature_that_is_a_column_of_the_table_is_left_out(change, said, suffix, tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"patch_id": [f"s{i:02d}" for i in range(N)], "v": rng.normal(size=N)})
    table["label"] = np.where(rng.random(N) < 0.5, "tumor", "normal")
    table["center"] = rng.choice(list("ABC"), N)
    table["few"] = rng.integers(0, 4, N)
    table.loc[3, "v"] = np.nan
    table.assign(row=range(N)).to_csv(tmp_path / "t.csv", index=False)
    features = pd.DataFrame(rng.normal(size=(N, 2)), columns=list("ab"))
    features["close"] = table.v.fillna(0) + rng.normal(size=N) * 0.01  # the control: r = 0.9999
    features["rare"] = np.eye(N)[7]  # not zero in a single row
    given = features.assign(other=change(table))
    path = tmp_path / f"f.{suffix}"
    if suffix == "npy":
        np.save(path, given.to_numpy())
    else:
        given.assign(patch_id=table.patch_id).to_parquet(path)
    found = read_features(with_features(load_table(tmp_path / "t.csv"), path), np.arange(N))
    np.testing.assert_array_equal(found.X, features.to_numpy(np.float32))
    [note] = found.notes
    assert said in note
    assert ("other (" if suffix == "parquet" else "number 4, counted from 0 (") in note


def test_names_of_metadata_are_no_features(tmp_path):
    rng = np.random.default_rng(0)
    names = ["barcode", "level", "width", "height", "magnification", "target", "y_pred", "y_true", "tile_width"]
    names += ["targetMPP", "patchLevel", "prob_1", "label_code", "objective-power", "sample_weight", "fold"]
    ids = [f"p{i:02d}" for i in range(N)]
    pd.DataFrame({"patch_id": ids, "v": rng.normal(size=N)}).to_csv(tmp_path / "t.csv", index=False)
    kept = ["area_mean", "texture", "level_set_area", "0", "f1", "PC1"]
    file = pd.DataFrame(rng.normal(size=(N, len(names) + len(kept))), columns=[*names, *kept])
    file.assign(patch_id=ids).to_parquet(tmp_path / "f.parquet")
    found = read_features(with_features(load_table(tmp_path / "t.csv"), tmp_path / "f.parquet"), np.arange(N))
    np.testing.assert_array_equal(found.X, file[kept].to_numpy(np.float32))
    assert all(f"{name} (metadata)" in found.notes[0] for name in names[:-1])
    assert "fold (reserved)" in found.notes[0]


def test_beside_numbered_features_others_are_none(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"p{i:02d}" for i in range(N)]
    pd.DataFrame({"patch_id": ids, "v": rng.normal(size=N)}).to_csv(tmp_path / "t.csv", index=False)
    file = pd.DataFrame(rng.normal(size=(N, 41)), columns=[*(f"x_{i}" for i in range(40)), "nuclei"])
    file.assign(patch_id=ids).to_parquet(tmp_path / "f.parquet")
    found = read_features(with_features(load_table(tmp_path / "t.csv"), tmp_path / "f.parquet"), np.arange(N))
    np.testing.assert_array_equal(found.X, file.iloc[:, :40].to_numpy(np.float32))
    assert "nuclei (not numbered as the features are)" in found.notes[0]


def test_features_of_several_files_are_matched_by_name(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"p{i:02d}" for i in range(N)]
    files = ["a.parquet" if i % 2 else "b.parquet" for i in range(N)]
    pd.DataFrame({"patch_id": ids, "v": rng.normal(size=N), "features": files}).to_csv(tmp_path / "t.csv", index=False)
    X = pd.DataFrame(rng.normal(size=(N, 3)), columns=["one", "two", "three"]).assign(patch_id=ids)
    X.to_parquet(tmp_path / "a.parquet")
    X[["three", "patch_id", "one", "two"]].to_parquet(tmp_path / "b.parquet")
    found = read_features(load_table(tmp_path / "t.csv"), np.arange(N)).X
    np.testing.assert_array_equal(found, X[["one", "two", "three"]].to_numpy(np.float32))
    X.rename(columns={"two": "four"}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet and the files before it differ in column four"):
        read_features(load_table(tmp_path / "t.csv"), np.arange(N))
