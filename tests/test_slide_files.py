"""A file of features per slide and a table of slides or patients: a study without patches and without slides."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler
from slide_features import WIDTH, slide_study, write_stamp
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.features.own_files import read_features
from conceptkit.features.slide_files import join_slides, with_features
from conceptkit.features.sources import open_features
from conceptkit.probe.ridge import ALPHAS
from conceptkit.runs.context import table_targets
from conceptkit.synthetic import write_trident
from conceptkit.tables.patches import load_table

QUICK = {"permutations": 0, "folds": 4}


@pytest.fixture
def made(tmp_path):
    """Folder, table of slides, and the features of each slide."""
    frame, found = slide_study(tmp_path)
    return tmp_path, frame, found


def joined(folder, per=None, features="features", table="slides.csv"):
    return join_slides(load_table(folder / table), folder / features, per)


def means(found, slides):
    return np.stack([found[slide].astype(np.float64).mean(0) for slide in slides])


def in_form(form, folder, frame, found):
    """Write the same features in another form; return what --features takes."""
    place = folder / form
    place.mkdir()
    for i, (slide, X) in enumerate(found.items()):
        coords = np.stack([np.arange(len(X)) * 128.5, np.arange(len(X)) % 3], axis=1)
        if form in ("clam", "three axes"):
            with h5py.File(place / f"{slide}.h5", "w") as file:
                file["features"] = X[None] if form == "three axes" else X
                file.create_dataset("coords", data=coords.astype(int), chunks=(2, 2))
        if form in ("clam", "pt", "dict of tensors", "old pt"):
            (place / "pt_files").mkdir(exist_ok=True)
            held = {"features": torch.from_numpy(X)} if form == "dict of tensors" else torch.from_numpy(X)
            torch.save(held, place / "pt_files" / f"{slide}.pt", _use_new_zipfile_serialization=form != "old pt")
        elif form == "stamp":
            write_stamp(place / f"{slide}.h5", X, coords)
        elif form == "manifest":
            np.save(place / f"{i}.npy", X)
    rows = pd.DataFrame(np.concatenate(list(found.values())), columns=[f"f{i}" for i in range(WIDTH)])
    rows.insert(0, "slide", np.repeat(list(found), [len(X) for X in found.values()]))
    if form == "manifest":
        named = pd.DataFrame({"slide": list(found), "file": [f"{i}.npy" for i in range(len(found))]})
        named.to_csv(place / "manifest.csv", index=False)
    elif form == "parquet":
        rows.sample(frac=1, random_state=0).to_parquet(place / "all.parquet")
        return "parquet/all.parquet"
    elif form == "npy with ids":
        np.save(place / "all.npy", rows.drop(columns="slide").to_numpy())
        rows[["slide"]].to_csv(place / "all.csv", index=False)
        return f"{form}/all.npy"
    return form


FORMS = ("clam", "three axes", "pt", "dict of tensors", "old pt", "stamp", "manifest", "parquet", "npy with ids")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_means(made, form):
    folder, frame, found = made
    table = joined(folder, features=in_form(form, folder, frame, found))
    X = read_features(table, np.arange(len(table))).X
    np.testing.assert_allclose(X, means(found, sorted(found)), rtol=0, atol=1e-12)
    assert X.dtype == np.float64
    assert table.patch_ids == sorted(found)


@pytest.mark.parametrize("form", [*FORMS, "trident"])
def test_every_form_gives_the_same_patches(made, form):
    folder, frame, found = made
    place = "features" if form == "trident" else in_form(form, folder, frame, found)
    table = joined(folder, "patch", features=place)
    X = read_features(table, np.arange(len(table))).X
    for slide, rows in table.frame.groupby("slide").indices.items():
        values, wanted = X[rows], found[slide]
        if form == "parquet":  # in another order
            values, wanted = (np.array(sorted(map(tuple, v))) for v in (values, wanted))
        np.testing.assert_array_equal(values, wanted)
    assert len(set(table.patch_ids)) == len(table) == sum(map(len, found.values()))
    assert (table.frame["age"].to_numpy() == table.frame["slide"].map(frame.set_index("slide")["age"])).all()
    places = {"trident": "x", "three axes": "x", "clam": "x", "stamp": "x_um"}
    assert places.get(form, "row") in table.frame.columns
    assert table.concept_names == ["center", "age", "noise"]


def plain_scores(X, y, groups, splits):
    """Held-out R² by scikit-learn: ridge on standardised columns, the penalty by leave-one-patient-out."""
    predicted = np.empty(len(y))
    for train, test in splits:
        scaled = StandardScaler().fit(X[train])
        Z, held = scaled.transform(X[train]), scaled.transform(X[test])
        errors = []
        for alpha in ALPHAS:
            parts = LeaveOneGroupOut().split(Z, groups=groups[train])
            errors.append(
                sum(((Ridge(alpha).fit(Z[a], y[train][a]).predict(Z[b]) - y[train][b]) ** 2).sum() for a, b in parts)
            )
        alpha = ALPHAS[len(errors) - 1 - int(np.argmin(errors[::-1]))]
        predicted[test] = Ridge(alpha).fit(Z, y[train]).predict(held)
    return 1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum()


@pytest.mark.parametrize("per", ["slide", "patch"])
def test_scores_are_those_of_scikit_learn(tmp_path, per):
    folder = tmp_path
    _, found = slide_study(folder, 16, 8)
    record = ck.Probe(features=folder / "features", per=per, concepts=["age", "noise"], **QUICK).run(
        folder / "slides.csv", out=folder / "run"
    )
    table = joined(folder, per)
    groups = table.groups("patient")
    placing = {"centers": np.array(table.frame["center"], dtype=object), "seed": 0}
    targets, _ = table_targets(table, ["age", "noise"], np.ones(len(table), bool), groups, 4, placing)
    slides = sorted(found)
    X = means(found, slides) if per == "slide" else np.concatenate([found[s] for s in slides]).astype(np.float64)
    for row, target in zip(record.rows, targets, strict=True):
        expected = plain_scores(X, target.y, np.asarray(groups), target.folds(4))
        assert row.score == pytest.approx(expected, abs=1e-9)
        assert row.n_groups == 8
    other = plain_scores(X[::-1], target.y, np.asarray(groups), target.folds(4))  # the control: features of other rows
    assert abs(row.score - other) > 1e-3
    assert record.group == "patient"


def test_a_table_of_patients_with_a_manifest(made):
    folder, frame, found = made
    frame.drop_duplicates("patient").drop(columns="slide").to_csv(folder / "patients.csv", index=False)
    named = frame[["slide", "patient"]].assign(file=frame["slide"] + ".h5")
    named.to_csv(folder / "features" / "manifest.csv", index=False)
    table = joined(folder, table="patients.csv")
    assert len(table) == len(found)
    ages = frame.drop_duplicates("patient").set_index("patient")["age"]
    assert (table.frame["age"].to_numpy() == table.frame["patient"].map(ages)).all()
    record = ck.Probe(features=folder / "features", concepts="noise", **QUICK).run(
        folder / "patients.csv", out=folder / "run"
    )
    assert (record.rows[0].n, record.rows[0].n_groups) == (24, 12)
    (folder / "features" / "manifest.csv").unlink()
    with pytest.raises(
        InputError, match=r"no patient of the table has a file .* P00, .* give the table a column slide"
    ):
        joined(folder, table="patients.csv")


def test_rows_without_file_files_without_row_and_empty_slides_are_counted_and_named(made):
    folder, frame, found = made
    (folder / "features" / "S03.h5").unlink()
    write_trident(folder / "features" / "S04.h5", np.zeros((0, WIDTH)), np.zeros((0, 2)))
    write_trident(folder / "features" / "S05.h5", np.zeros(0), np.zeros((0, 2)))  # as TRIDENT without the width
    frame[frame["slide"] != "S06"].assign(slide="wsi/" + frame["slide"] + ".svs").to_csv(
        folder / "slides.csv", index=False
    )
    table = joined(folder)
    assert table.patch_ids == [s for s in sorted(found) if s not in ("S03", "S04", "S05", "S06")]
    for sentence in (
        "1 slide of the table left out without a features file: wsi/S03.svs.",
        "1 features file without a row in the table not used: S06.",
        "2 slides without patches left out: S04, S05.",
        "Features are means over the patches of each slide (20 slides, 5 to 14 patches each).",
    ):
        assert sentence in table.notes


def test_duplicates_are_counted_and_named(made):
    folder, frame, found = made
    X = found["S01"]
    coords = np.stack([np.arange(len(X)), np.arange(len(X))], axis=1)
    write_trident(folder / "features" / "S02.h5", X, coords)
    (folder / "features" / "again").mkdir()
    write_trident(folder / "features" / "again" / "S01.h5", X, coords)
    pd.concat([frame, frame.iloc[[5]]]).to_csv(folder / "slides.csv", index=False)
    notes = joined(folder).notes
    assert "1 slide in two files with the same first and last row, of which one was read: S01." in notes
    assert (
        "Identical features under several names (equal number, first and last row): S01 = S02 (different patients)."
        in notes
    )
    assert "Repeated rows of slide S05 read once (1)." in notes
    pd.concat([frame, frame.iloc[[5]].assign(age=3)]).to_csv(folder / "slides.csv", index=False)
    with pytest.raises(InputError, match="slide S05 has 2 rows that differ in age"):
        joined(folder)
    frame.to_csv(folder / "slides.csv", index=False)
    write_trident(folder / "features" / "again" / "S01.h5", X + 1, coords)
    with pytest.raises(InputError, match="slide S01 has two files with different features"):
        joined(folder)


def spoiled(folder, frame, found, kind):
    path, X = folder / "features" / "S07.h5", found["S07"].copy()
    coords = np.stack([np.arange(len(X))] * 2, axis=1)
    if kind == "ids":
        frame = frame.assign(slide="T" + frame["slide"])
    elif kind == "width":
        write_trident(path, X[:, :-1], coords)
    elif kind == "nan":
        X[2, 1] = np.nan
        write_trident(path, X, coords)
    elif kind == "encoder":
        write_trident(path, X, coords, "conch_v15")
    elif kind == "twice":
        frame = pd.concat([frame, frame.iloc[[7]].assign(slide="S07.svs")])
    elif kind == "code":
        path.unlink()
        torch.save(torch.nn.Linear(2, 2), path.with_suffix(".pt"))
    elif kind == "empty":
        for slide in found:
            write_trident(folder / "features" / f"{slide}.h5", np.zeros((0, WIDTH)), np.zeros((0, 2)))
    frame.to_csv(folder / "slides.csv", index=False)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("ids", r"features: no slide of the table has a file in .*features: the table has TS00, .* the files S00, S01"),
        ("width", r"features: .*S07\.h5 has 7 features per patch, .*S00\.h5 has 8"),
        ("nan", r"features: .*S07\.h5 has NaN or infinity in row 2 of \d+ \(counted from 0\); remove this row, or the"),
        ("encoder", r"features: .*S07\.h5 has features of encoder conch_v15, .*S00\.h5 has features of encoder uni_v1"),
        ("twice", r"table: slide S07 has more than one row; keep one"),
        ("code", r"features: .*S07\.pt cannot be read \(Weights only load failed"),
        ("empty", r"features: no slide of the table has patches in"),
    ],
)
@pytest.mark.parametrize("per", ["slide", "patch"])
def test_what_cannot_be_read_is_one_sentence(made, kind, sentence, per):
    folder, frame, found = made
    spoiled(folder, frame, found, kind)
    arguments = ["probe", "--table", folder / "slides.csv", "--features", folder / "features", "--per", per]
    result = CliRunner().invoke(app, [*map(str, arguments), "--permutations", "0", "--out", str(folder / "run")])
    assert result.exit_code == 2
    assert not (folder / "run").exists()
    with pytest.raises(InputError, match=sentence) as error:
        ck.Probe(features=folder / "features", per=per, **QUICK).run(folder / "slides.csv", out=folder / "run")
    assert "\n" not in str(error.value)


def test_a_concept_without_values_in_a_split(made):
    folder, frame, _found = made
    split = np.where(np.arange(len(frame)) % 12 < 6, "train", "test")
    frame.assign(split=split, grade=np.where(split == "test", np.nan, frame["age"])).to_csv(
        folder / "slides.csv", index=False
    )
    command = ck.Probe(features=folder / "features", split="test", concepts=["age", "grade"], folds=3, permutations=0)
    record = command.run(folder / "slides.csv", out=folder / "run")
    assert [row.concept for row in record.rows] == ["age"]
    assert any(note.startswith("Skipped: concept: grade has no value in any of") for note in record.notes)
    with pytest.raises(InputError, match="concept: grade has no value in any of the"):
        command.replace(concepts="grade").run(folder / "slides.csv", out=folder / "other")


def test_files_cut_at_another_magnification_are_noted(made):
    folder, _, found = made
    X = found["S07"]
    write_trident(folder / "features" / "S07.h5", X, np.zeros((len(X), 2)), magnification=40)
    notes = joined(folder).notes
    assert any(
        note.startswith("Features files differ in target_magnification: 20 (23 slides: S00, S01")
        and note.endswith("; 40 (1 slide: S07).")
        for note in notes
    )


def test_a_table_of_patches_finds_its_slides_files(made):
    folder, _frame, found = made
    patches = joined(folder, "patch").frame.drop(columns="features")
    patches.assign(slide=patches["slide"] + ".svs").sample(frac=1, random_state=0).to_csv(folder / "p.csv", index=False)
    (folder / "features" / "S00.h5").unlink()
    table = joined(folder, table="p.csv")
    assert "1 slide of the table left out without a features file: S00.svs." in table.notes
    X = open_features(table, ck.load_study(folder / "p.csv"), features=folder / "features").read(np.arange(len(table)))
    place = {(s, x): i for s in found for i, x in enumerate(512 * np.arange(len(found[s])))}
    slides = table.frame["slide"].str.removesuffix(".svs")
    wanted = [found[s][place[s, x]] for s, x in zip(slides, table.frame["x"], strict=True)]
    np.testing.assert_array_equal(X["features"], np.stack(wanted))
    bare = table.frame.drop(columns=["patch_id"]).assign(size=256)  # as tile writes it, on a machine without the slides
    bare.to_csv(folder / "tiles.csv", index=False)
    tiles = joined(folder, table="tiles.csv")
    assert tiles.location is None
    assert tiles.notes[-1] == "There are no pixel statistics to compare with, as no slide of the table was found."
    (folder / "S01.svs").touch()
    assert joined(folder, table="tiles.csv").location == "slide"  # the control
    with pytest.raises(InputError, match="per: slide needs a table of one row per slide or patient"):
        joined(folder, "slide", table="p.csv")
    whole = load_table(folder / "p.csv")
    with pytest.raises(InputError, match=r"has no file for 1 slide: S00\.svs"):
        with_features(whole, folder / "features")


def test_places_in_micrometres_are_not_taken_for_pixels(made):
    folder, frame, found = made
    in_form("stamp", folder, frame, found)
    patches = joined(folder, "patch", features="stamp").frame
    patches.rename(columns={"x_um": "x", "y_um": "y"}).drop(columns="features").to_csv(folder / "p.csv", index=False)
    table = with_features(load_table(folder / "p.csv"), folder / "stamp")
    with pytest.raises(InputError, match=r"are in µm, and x and y of the table in pixels; give the table the columns"):
        read_features(table, np.arange(len(table)))


def test_one_vector_per_slide(made):
    folder, _frame, found = made
    for slide, X in found.items():
        with h5py.File(folder / "features" / f"{slide}.h5", "w") as file:
            file["features"] = X[0]
    table = joined(folder)
    np.testing.assert_array_equal(read_features(table, np.arange(3)).X, [found[f"S0{i}"][0] for i in range(3)])
    with pytest.raises(InputError, match="holds one vector of the whole slide"):
        joined(folder, "patch")


def test_files_that_the_table_names(made):
    folder, frame, _found = made
    frame.assign(features="features/" + frame["slide"] + ".h5").to_csv(folder / "slides.csv", index=False)
    record = ck.Probe(concepts="age", **QUICK).run(folder / "slides.csv", out=folder / "run")
    (folder / "other").mkdir()
    frame.to_csv(folder / "slides.csv", index=False)
    other = ck.Probe(features=folder / "features", concepts="age", **QUICK).run(folder / "slides.csv", out=folder / "b")
    assert record.rows[0].score == other.rows[0].score


def test_bags_and_their_predictions_read_the_patches(tmp_path):
    folder = tmp_path
    frame, _ = slide_study(folder, 72, 36)
    split = np.array(["train", "val", "internal"])[np.arange(len(frame)) % 12 // 2 % 3]
    frame.assign(split=split, msi=np.where(frame["age"] > 60, "high", "low")).to_csv(folder / "slides.csv", index=False)
    record = ck.Bags(
        features=folder / "features",
        by="slide",
        label="msi",
        discourage=["center"],
        encourage=["age"],
        folds=3,
        epochs=1,
    ).run(folder / "slides.csv", out=folder / "run")
    assert record.patches_per_bag[0] >= 5
    predicted = ck.predict(
        folder / "run" / "checkpoints" / "baseline-seed0", table=folder / "slides.csv", features=folder / "features"
    )
    assert len(predicted) == len(frame)


def test_a_table_of_slides_serves_commands_without_features(made):
    folder, frame, _found = made
    split = np.array(["train", "val", "internal"])[np.arange(len(frame)) % 12 // 2 % 3]
    frame.assign(split=split, label=np.where(frame["age"] > 60, "high", "low")).to_csv(
        folder / "slides.csv", index=False
    )
    record = ck.Predictivity(concepts=["age"], alone=["center"], seeds=1).run(folder / "slides.csv", out=folder / "run")
    assert {row.inputs for row in record.rows} == {("random",), ("age",), ("center",)}
    with pytest.raises(InputError, match="column slide needs x, y, size; x is missing"):
        ck.Probe(model="mini_inception", layers="mixed2", **QUICK).run(folder / "slides.csv", out=folder / "other")
