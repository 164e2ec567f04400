"""predict --probe: concepts of new patches with intervals, from tables, feature files and slides."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from slide_files import tissue, write_slide
from small_vectors import features_of, probed, write_features
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.commands import maps
from conceptkit.errors import InputError
from conceptkit.probe.vectors import apply_vectors
from conceptkit.report.slide_maps import slide_map


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return probed(tmp_path_factory.mktemp("vectors"), *features_of())


@pytest.fixture(scope="module")
def vectors(run):
    return ck.load_vectors(run)


@pytest.fixture
def new(tmp_path):
    """Two new patients: their table, features, and the two files."""
    table, X = features_of(2, seed=5)
    return table, X, *map(str, write_features(tmp_path, table, X))


def test_a_table_and_features_give_each_concept_with_its_interval(run, vectors, new):
    table, X, csv, npy = new
    found = ck.predict(probe=run, table=csv, features=npy).set_index("patch_id").loc[table["patch_id"]]
    count = vectors["features", "count"]
    assert np.allclose(found["count_predicted"], count.predict(X), atol=1e-4)
    assert np.allclose(found[["count_low", "count_high"]].to_numpy().T, count.interval(X), atol=1e-4)
    grade = vectors["features", "grade"]
    assert (found["grade_predicted"].to_numpy() == grade.predict(X)).mean() > 0.95
    sets = [
        {name for name, there in zip(grade.facts.classes, row, strict=True) if there} for row in grade.class_sets(X)
    ]
    assert np.mean([set(cell.split("|")) == own for cell, own in zip(found["grade_set"], sets, strict=True)]) > 0.95
    assert (found["out_of_range"].to_numpy() == count.out_of_range(X)).all()
    assert list(found["patient"]) == list(table["patient"])


def test_json_has_the_unit_score_and_coverage_of_each_concept(run, vectors, new, tmp_path):
    _, _, csv, npy = new
    out, told = tmp_path / "predicted.csv", tmp_path / "result.json"
    line = ["predict", "--probe", str(run), "--table", csv, "--features", npy, "--out", str(out), "--json", str(told)]
    result = CliRunner().invoke(app, [*line, "--concept", "count,flag"])
    assert result.exit_code == 0, result.output
    body = json.loads(told.read_text())
    assert (body["schema"], body["rows_written"], body["path"]) == ("conceptkit/predict/1", 24, str(out))
    assert list(body["concepts"]) == ["count", "flag"]
    facts = vectors["features", "count"].facts
    assert body["concepts"]["count"] == {"unit": "", "score": facts.score, "coverage": facts.coverage}
    assert body["columns"][:3] == ["count_predicted", "count_low", "count_high"]
    assert len(pd.read_csv(out)) == 24


def test_features_without_a_table_have_a_row_each(run, vectors, new, tmp_path):
    table, X, _, npy = new
    np.save(tmp_path / "bare.npy", X)
    for path, name in ((npy, "p5"), (tmp_path / "bare.npy", "bare")):  # with and without a table of names beside it
        found = ck.predict(probe=run, features=path, concepts="count")
        assert set(found["patch_id"].str.rpartition("_")[0]) == {name}
        order = [int(name.rpartition("_")[2]) for name in found["patch_id"]]
        assert np.allclose(found["count_predicted"], vectors["features", "count"].predict(X)[order], atol=1e-4)
    parquet = tmp_path / "features.parquet"
    pd.DataFrame(X, columns=[f"f{i}" for i in range(24)]).assign(patch_id=table["patch_id"]).to_parquet(parquet)
    found = ck.predict(probe=run, features=parquet, concepts="count").set_index("patch_id")
    assert np.allclose(
        found.loc[table["patch_id"], "count_predicted"], vectors["features", "count"].predict(X), atol=1e-4
    )


def trident(folder, X, *, encoder="uni_v1", magnification="20x_256px_0px_overlap"):
    """Two slides' files as TRIDENT lays them out."""
    place = folder / magnification / f"features_{encoder}"
    place.mkdir(parents=True)
    for name, part in (("A", X[:12]), ("B", X[12:])):
        with h5py.File(place / f"{name}.h5", "w") as file:
            file["features"] = part
            file["coords"] = np.stack([512 * np.arange(len(part)), np.zeros(len(part), int)], axis=1)
            file["coords"].attrs["patch_size_level0"] = 512
    return place


def test_a_folder_of_slides_is_mapped_with_the_held_out_score(run, new, tmp_path, monkeypatch):
    _, X, _, _ = new
    drawn = {}

    def watched(place, layers):
        drawn[place.name] = layers
        return slide_map(place, layers)

    monkeypatch.setattr(maps, "slide_map", watched)
    found = ck.predict(probe=run, features=trident(tmp_path, X), maps=tmp_path / "maps", concepts="count")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["A.png", "B.png"]
    assert list(found["slide"].unique()) == ["A", "B"]
    (layer,) = drawn["A"]
    score = ck.load_vectors(run)["features", "count"].facts.score
    assert layer.score.startswith(f"held-out R² = {score:.2f} [")
    assert layer.established


def test_the_fast_product_agrees_with_the_vectors_in_float64(vectors):
    _, X = features_of(30, seed=8)
    far = X * 100 + 1e4  # far from the means of the fit
    for rows in (X, far, X.astype(np.float64), X.astype(np.float16)):
        chosen = [vectors["features", name] for name in ("count", "grade")]
        applied = apply_vectors(chosen, rows)
        for at, vector in enumerate(chosen):
            expected = rows.astype(np.float64) @ vector.coef.T + vector.intercept
            assert np.abs(applied.raw[at] - expected).max() < 1e-5 * max(1, np.abs(expected).max())
        assert (applied.out_of_range == chosen[0].out_of_range(rows)).mean() > 0.99


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(**options):
    with pytest.raises(InputError) as error:
        ck.predict(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_features_of_another_width_or_with_gaps_are_refused(run, new, tmp_path):
    _, X, csv, _ = new
    np.save(tmp_path / "narrow.npy", X[:, :20])
    assert refused(probe=run, table=csv, features=tmp_path / "narrow.npy") == (
        "X: the vector of count at features needs 24 columns, got shape (24, 20): these are other features."
    )
    X[4, 3] = X[5, 1] = np.nan
    np.save(tmp_path / "gaps.npy", X)
    assert refused(probe=run, table=csv, features=tmp_path / "gaps.npy") == (
        f"features: {tmp_path / 'gaps.npy'} has NaN or infinity in row 4 of 24 (counted from 0); remove this row, "
        "or the slide from the table."
    )


def test_another_encoder_or_magnification_is_refused_by_name(new, tmp_path):
    table, X = features_of()
    slides = trident(tmp_path, X[:24])
    table = table[:24].assign(
        slide="A", x=512 * (np.arange(24) % 12), y=0, size=512, patient=[f"P{i % 12}" for i in range(24)]
    )
    table["features"] = [str(slides / f"{'AB'[i // 12]}.h5") for i in range(24)]
    table = table.drop(columns=["row", "slide", "x", "y", "size"]).assign(row=np.arange(24) % 12)
    table.to_csv(tmp_path / "slides.csv", index=False)
    chosen = {"concepts": ["count"], "group": "patient", "permutations": 0}
    run = ck.run_probe(str(tmp_path / "slides.csv"), out=tmp_path / "run", **chosen).folder
    assert dict(ck.load_vectors(run)["features", "count"].origin.stated) == {"encoder": "uni_v1"}
    (tmp_path / "other").mkdir()
    other = trident(tmp_path / "other", X[24:48], encoder="conch_v1")
    assert "its encoder is conch_v1, that of the probe uni_v1" in refused(probe=run, features=other)
    _, _, csv, npy = new
    changed = pd.read_csv(csv).assign(mpp=0.25)
    changed.to_csv(csv, index=False)
    sentence = refused(probe=run, table=csv, features=npy)
    assert sentence == (
        "table: 24 of 24 patches have 0.25 to 0.25 µm per pixel, those of the probe 0.5; cut them at 0.5 µm per pixel."
    )


def test_names_and_folders_are_answered_by_what_is_there(run, new, tmp_path):
    _, _, csv, npy = new
    assert refused(probe=run, table=csv, features=npy, layer="feature") == (
        "layer: 'feature' is not known; near names: features."
    )
    assert refused(probe=run, table=csv, features=npy, concepts=["cont"]).startswith(
        "concept: 'cont' is not known; near"
    )
    assert refused(probe=tmp_path, table=csv).endswith("name a run folder of conceptkit probe.")
    assert refused() == "checkpoint: name the folder of a checkpoint, or --probe RUN, got none."
    assert refused(probe=run, checkpoint="a").endswith("got both.")
    assert refused(checkpoint="a", layer="b") == "layer: only vectors of --probe take it, a checkpoint does not."
    assert refused(probe=run, table=csv).startswith(
        "features: the vectors were fitted on features (probed.npy); name --f"
    )
    assert refused(probe=run, slides="a.svs").startswith(
        "slides: the vectors were fitted on features without its network"
    )
    assert refused(probe=run, features=tmp_path / "none.h5").endswith("none.h5 not found.")


def test_fewer_than_nine_patients_are_refused(new, tmp_path):
    few = probed(tmp_path, *features_of(8), concepts=["count"])
    _, _, csv, npy = new
    assert refused(probe=few, table=csv, features=npy) == (
        "probe: count was probed on 8 patients, an interval of 90 % for a new one needs at least 9; predict of "
        "ck.load_vectors needs no interval."
    )


def test_patches_unlike_those_of_the_probe_are_flagged_and_noted(run, new, tmp_path):
    _, X, csv, _ = new
    np.save(tmp_path / "far.npy", X * 3)
    found = ck.predict(probe=run, table=csv, features=tmp_path / "far.npy")
    assert found["out_of_range"].all()
    assert any(note.startswith("OUT OF RANGE: 100% of the patches") for note in found.attrs["notes"])


# --- with a network --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_network(study, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conceptkit.commands.probe.RANDOM_NETWORKS", 0)
        out = tmp_path_factory.mktemp("network") / "run"
        return ck.run_probe(study, concepts=["count"], out=out, permutations=0).folder


def test_the_network_is_read_at_the_layer_of_the_vectors(of_network, study):
    table = ck.load_study(study).load_table()
    found = ck.predict(probe=of_network, study=study)
    vector = ck.load_vectors(of_network)["mixed2", "count"]
    expected = ck.score_images([table.pixels(i) for i in range(20)], vector)
    assert list(found["patch_id"]) == table.patch_ids
    assert np.allclose(found["count_predicted"][:20], expected, atol=1e-3)


def test_slides_of_a_probe_without_resolution_are_refused(of_network, monkeypatch):
    stored = ck.load_vectors(of_network)["mixed2", "count"]
    assert stored.origin.fingerprint
    if stored.origin.finest is None:
        assert refused(probe=of_network, slides="a.svs").startswith(
            "slides: the patches of the probe have no mpp, so none"
        )
    else:
        assert "a.svs" in refused(probe=of_network, slides="a.svs")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """A slide, its table of tiles with a concept, and a probe of them."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "A.tif", [tissue(1024, 768)])
    table = ck.run_tile([folder / "A.tif"], out=folder / "tiles.csv", size=96, tile_mpp=0.5, tissue=0.3).table
    rng = np.random.default_rng(0)
    table = table.assign(patient=[f"P{k % 10}" for k in range(len(table))], count=rng.normal(size=len(table)))
    table.to_csv(folder / "tiles.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conceptkit.commands.probe.RANDOM_NETWORKS", 0)
        options = {"model": "mini_inception", "layers": ["mixed2"], "concepts": ["count"], "group": "patient"}
        run = ck.run_probe(str(folder / "tiles.csv"), permutations=0, out=folder / "run", **options).folder
    return folder, run


def test_slides_are_cut_as_the_patches_of_the_probe(tiled):
    folder, run = tiled
    from_table = ck.predict(probe=run, table=folder / "tiles.csv").set_index("patch_id")["count_predicted"]
    found = ck.predict(probe=run, slides=str(folder / "A.tif")).set_index("patch_id")
    shared = from_table.index.intersection(found.index)
    assert len(shared) > 10
    assert np.allclose(found.loc[shared, "count_predicted"], from_table[shared], atol=1e-4)
    assert found["mpp"].round(3).eq(0.5).all()


def test_patches_of_another_size_or_magnification_are_refused(tiled):
    folder, run = tiled
    ck.run_tile([folder / "A.tif"], out=folder / "coarse.csv", size=96, tile_mpp=1.0, tissue=0.3)
    assert "patches have 1 to 1 µm per pixel, those of the probe 0.5; cut them at 0.5 µm per pixel with 96" in refused(
        probe=run, table=folder / "coarse.csv"
    )
    ck.run_tile([folder / "A.tif"], out=folder / "wide.csv", size=128, tile_mpp=0.5, tissue=0.3)
    assert refused(probe=run, table=folder / "wide.csv").startswith(
        "table: patches have 128 pixels a side, those of the probe 96; cut"
    )
