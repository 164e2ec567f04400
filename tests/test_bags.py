"""Bags: attention finds what makes a bag positive, where a mean fails; and concepts are of whole bags."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from recorded_options import forgotten
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.evaluate.paired import auc_within
from conceptkit.evaluate.scores import auc
from conceptkit.guide.bag_table import make_bags
from conceptkit.guide.bags import bag_inputs, build_bag_model, read_attention
from conceptkit.guide.training import predict, train
from conceptkit.models.bags import ATTENTIONS, AttentionPooling, load_bag_model
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.bags import Bags
from conceptkit.options.training import TrainingOptions
from conceptkit.records import BagsRecord, load_record, to_json
from conceptkit.report.bag_tables import bag_tables, bag_verdicts
from conceptkit.report.table import shown
from conceptkit.synthetic import SLIDE, with_slides
from conceptkit.tables.study import Study

LABEL = Task(name=MAIN, kind="categorical", classes=("no", "yes"))


def slowly(pooling, patches):
    """Ilse's equations 7 to 9 on one bag (m, d), a patch at a time."""

    def numbers(name):
        return pooling.state_dict()[name].double().numpy()

    kind, h, score = pooling.shape["attention"], [], []
    for x in patches:
        x = (x - numbers("center")) / numbers("scale")
        h.append(np.maximum(numbers("embed.0.weight") @ x + numbers("embed.0.bias"), 0))
        if kind == "mean":
            score.append(0.0)
            continue
        inner = np.tanh(numbers("attend.value.weight") @ h[-1] + numbers("attend.value.bias"))
        if kind == "gated":
            inner = inner / (1 + np.exp(-(numbers("attend.gate.weight") @ h[-1] + numbers("attend.gate.bias"))))
        score.append(float(numbers("attend.score.weight")[0] @ inner))
    a = np.exp(score) / np.exp(score).sum()
    return a, sum(w * one for w, one in zip(a, h, strict=True))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_pooling_is_the_papers_equation_and_padding_changes_nothing(attention):
    torch.manual_seed(0)
    pooling = AttentionPooling(6, embedding=5, hidden=4, attention=attention)
    rng = np.random.default_rng(0)
    pooling.standardise(torch.from_numpy(rng.normal(2, 3, (50, 6))))
    bags = [rng.normal(2, 3, (m, 6)).astype(np.float32) for m in (1, 3, 7)]
    padded, present = torch.full((3, 9, 6), 1e6), torch.zeros(3, 9, dtype=torch.bool)
    for i, bag in enumerate(bags):
        padded[i, : len(bag)], present[i, : len(bag)] = torch.from_numpy(bag), True
    with torch.no_grad():
        vectors, weights = pooling.read(padded, present)
    for i, bag in enumerate(bags):
        a, z = slowly(pooling, bag)
        np.testing.assert_allclose(weights[i, : len(bag)], a, atol=1e-6)
        np.testing.assert_allclose(vectors[i], z, atol=1e-5)
        assert (weights[i, len(bag) :] == 0).all()


def test_bags_are_gathered_whole_in_any_order():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 3)).astype(np.float32)
    members = [np.array([4, 0]), np.array([7]), np.array([1, 2, 3, 11])]
    network = build_bag_model(X, [LABEL], TrainingOptions(trunk=()), embedding=4, hidden=4, attention="gated", seed=0)
    inputs = bag_inputs(network, X, members)
    patches, present = inputs.batch(torch.tensor([2, 0]), torch.device("cpu"))
    assert present.sum(1).tolist() == [4, 2]
    np.testing.assert_array_equal(patches[0], X[[1, 2, 3, 11]])
    np.testing.assert_array_equal(patches[1, :2], X[[4, 0]])
    assert [len(a) for a in read_attention(network, inputs, batch_size=2)] == [2, 1, 4]


def key_bags(n, seed):
    """Bags of 30 to 60 patches; one, marked by its first feature, tells the label by the sign of its second."""
    rng = np.random.default_rng(seed)
    y, X, members, key = rng.integers(0, 2, n), [], [], []
    for label in y:
        m = int(rng.integers(30, 60))
        x, is_key = rng.normal(size=(m, 8)), np.arange(m) == rng.integers(m)
        x[:, 1] *= 3
        x[is_key, 0] += 5
        x[is_key, 1] = 3 * (2 * label - 1)
        members.append(np.arange(m) + sum(map(len, X)))
        X.append(x)
        key.append(is_key)
    return np.concatenate(X).astype(np.float32), members, y, np.concatenate(key)


def trained_on_keys(attention):
    X, members, y, key = key_bags(400, 0)
    options = TrainingOptions(
        trunk=(), dropout=0.0, epochs=40, warmup=0, patience=15, batch_size=16, lr=3e-3, weighting="vanilla"
    )
    fitted = X[np.concatenate(members[:200])]
    network = build_bag_model(fitted, [LABEL], options, embedding=16, hidden=16, attention=attention, seed=0)
    inputs = bag_inputs(network, X, members)
    rows = {"train": np.arange(200), "val": np.arange(200, 260)}
    model = train(network, inputs, {MAIN: torch.from_numpy(y)}, rows, options, seed=0).model
    score = predict(model, inputs)[0][MAIN][:, 0].double().numpy()
    strata = np.repeat(np.arange(400), [len(rows) for rows in members])
    weights = np.concatenate(read_attention(model, inputs))
    found = []
    for label in (0, 1):
        patches = (strata >= 260) & (y[strata] == label)
        found.append(auc_within(key[patches].astype(np.intp), weights[patches], strata[patches]))
    return auc(y[260:], score[260:]), found


def test_attention_finds_the_key_patches():
    told, found = trained_on_keys("gated")
    assert told > 0.95
    assert max(found) > 0.98  # one label is told by its key; the other by the absence of that


def test_the_control_a_mean_does_not():
    told, found = trained_on_keys("mean")
    assert told < 0.65
    assert found == [0.5, 0.5]


def rows(**columns):
    n = len(next(iter(columns.values())))
    plain = {"patch_id": [f"p{i:02d}" for i in range(n)], "split": ["train"] * n}
    from conceptkit.tables.patches import PatchTable

    return PatchTable(pd.DataFrame({**plain, **columns}), None)


MEANT = Study(name="s", table="t.csv", group=None)


def test_a_bag_has_the_mean_of_a_value_and_the_class_that_it_is_of():
    data = rows(
        slide=["b", "a", "a", "b", None],
        label=["t", "n", "n", "n", "t"],
        count=[1.0, 2.0, 4.0, np.nan, 9.0],
        scanner=["x", "y", "y", "x", "x"],
    )
    bags = make_bags(data, MEANT, "slide", ["count", "scanner"], positive="t")
    frame = bags.table.frame
    assert frame["patch_id"].tolist() == ["a", "b"]
    assert frame["count"].tolist() == [3.0, 1.0]
    assert frame["scanner"].tolist() == ["y", "x"]
    assert frame["label"].tolist() == ["t at most 0", "t over 0"]
    assert [m.tolist() for m in bags.members] == [[1, 2], [0, 3]]
    parted = make_bags(data, MEANT, "slide", [], positive="t", share=0.4).table.frame["label"]
    assert parted.tolist() == ["t at most 0.4", "t over 0.4"]
    with pytest.raises(InputError, match=r"share: 0.5 .* t are 0 to 0.5 of their patches, 0.25 in the median"):
        make_bags(data, MEANT, "slide", [], positive="t", share=0.5)  # one half is not more than one half
    cut = make_bags(data, Study(name="s", table="t.csv", label="count"), "slide", []).table.frame["count"]
    assert cut.tolist() == ["count over 2", "count at most 2"]


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({}, {}, "label varies within slide"),
        ({}, {"positive": "tt"}, "no class 'tt'"),
        ({}, {"positive": "t", "share": 1.0}, "share: must be below 1"),
        ({"split": ["train", "val"]}, {"positive": "t"}, "split: split must be the same in all patches of a bag"),
        ({"scanner": ["x", "y"]}, {"positive": "t"}, "scanner must be the same in all patches of a bag"),
        ({"slide": [None, None]}, {}, "column slide has no value"),
    ],
)
def test_what_cannot_be_a_bag_is_refused_in_one_sentence(changed, options, words):
    data = rows(**{"slide": ["a", "a"], "label": ["t", "n"], "scanner": ["x", "x"], **changed})
    with pytest.raises(InputError, match=words):
        make_bags(data, MEANT, "slide", ["scanner"], **options)


def test_made_slides_keep_every_patch_and_give_each_patient_both_labels(embedded):
    data = with_slides(embedded.load_table())
    frame = data.frame
    assert frame[SLIDE].notna().all()
    tumor = (frame.label == "tumor").groupby(frame[SLIDE]).max()
    by_patient = tumor.groupby(tumor.index.str[:4]).agg(["min", "max"])
    assert (~by_patient["min"] & by_patient["max"]).all()
    # Confounded in training, as the study's patches are, and balanced where it is evaluated.
    share = tumor.groupby(frame.groupby(SLIDE)[["split", "center"]].first().agg(" ".join, axis=1)).mean()
    assert share["train A"] > 0.6 > 0.4 > share["train D"]
    assert (share[share.index.str.startswith("internal")] == 0.5).all()


@pytest.fixture(scope="module")
def record(embedded, tmp_path_factory):
    out = tmp_path_factory.mktemp("bags") / "run"
    return ck.Bags(epochs=25, warmup=5).run(embedded, out=out)


def test_every_option_stands_in_the_settings(record):
    settings = load_record(record.folder).settings
    assert settings["images_per_pass"] == 16  # `batch_size` is that of training
    assert forgotten(Bags, settings) == set()


def test_the_embedded_studys_bags(record):
    assert record.by == SLIDE
    assert record.n_bags == {"train": 192, "val": 48, "internal": 72, "external": 72}
    first = {(s.run, s.split): s for s in record.scores}
    assert first["baseline", "internal"].auc > 0.75
    assert first["baseline", "internal"].low < first["baseline", "internal"].auc < first["baseline", "internal"].high
    looks = {(a.run, a.split): a for a in record.attention}
    assert looks["baseline", "overall"].low > 0.5
    guided = next(run for run in record.runs if run.name == "guided")
    baseline = next(run for run in record.runs if run.name == "baseline")
    assert guided.concepts["count"]["probe"] > baseline.concepts["count"]["probe"] + 0.1
    assert set(guided.leakage) == {"center"}


def test_the_record_loads_back_and_is_shown(record):
    loaded = load_record(record.folder)
    assert isinstance(loaded, BagsRecord)
    assert to_json(loaded.to_dict()) == to_json(record.to_dict())
    assert loaded.scores == record.scores
    for table in bag_tables(record):
        assert len(shown(table))
    marks = bag_tables(record)[0].frame
    sure = (marks["AUC low"] > 0.5) & (marks["groups"] >= 10)
    assert sure.any()
    assert marks["verdict"].tolist() == ["established" if one else "open" for one in sure]
    assert any("baseline (seed 0) attends" in verdict.text for verdict in bag_verdicts(record))


def test_attention_sums_to_one_in_every_bag_and_the_checkpoint_gives_it_again(record, embedded):
    frame = pd.read_csv(record.folder / "attention.csv")
    assert len(frame) == 1920
    np.testing.assert_allclose(frame.groupby("bag")["attention_guided-seed0"].sum(), 1, atol=1e-5)
    model, made_with = load_bag_model(record.folder / "checkpoints" / "guided-seed0")
    assert made_with["by"] == SLIDE
    assert made_with["layer"] == "mixed10"
    from conceptkit.features.activations import read_activations
    from conceptkit.models.backbones import open_backbone
    from conceptkit.synthetic import cache_folder

    data = embedded.load_table()
    own = frame[frame.bag == frame.bag[0]]
    at = np.array([data.patch_ids.index(p) for p in own.patch_id])
    X = read_activations(data, open_backbone("mini_inception"), ["mixed10"], cache=cache_folder(), rows=at)["mixed10"]
    with torch.no_grad():
        weights = model.attention(torch.from_numpy(X)[None], torch.ones(1, len(X), dtype=torch.bool))
    np.testing.assert_allclose(weights[0], own["attention_guided-seed0"], atol=1e-5)


def test_patients_are_bags_too_by_a_value_and_own_features(embedded, tmp_path):
    """A patient's label is its mean nuclear area, over the training patients' median or not."""
    rng = np.random.default_rng(0)
    data = embedded.load_table()
    area = data.frame["area"].fillna(45) + rng.normal(size=len(data)) / 10
    features = np.column_stack([area, rng.normal(size=(len(data), 3))]).astype(np.float32)
    pd.DataFrame(features, columns=list("abcd")).assign(patch_id=data.patch_ids).to_parquet(tmp_path / "f.parquet")
    found = ck.Bags(
        by="patient",
        label="area",
        encourage=["count"],
        discourage=["center"],
        features=tmp_path / "f.parquet",
        epochs=25,
        warmup=5,
        batch_size=8,
    ).run(embedded, out=tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "baseline-seed0"
    out = ["--study", "embedded:null", "--out", tmp_path / "p.csv"]
    refused = invoke("predict", checkpoint, *out)
    assert "set --features" in refused.output, refused.output
    result = invoke("predict", checkpoint, "--features", tmp_path / "f.parquet", *out)
    assert result.exit_code == 0, result.output
    predicted = pd.read_csv(tmp_path / "p.csv").set_index("bag")
    area = data.frame.groupby("patient")["area"].mean()
    evaluated = data.frame.loc[data.frame.split == "internal", "patient"].unique()
    label = area[evaluated] > area[data.frame.loc[data.frame.split == "train", "patient"].unique()].median()
    (name,) = (c for c in predicted if c.startswith("probability_"))
    expected = next(s.auc for s in found.scores if s.run == "baseline" and s.split == "internal")
    assert roc_auc_score(label, predicted.loc[evaluated, name]) == pytest.approx(expected)
    wider = pd.read_parquet(tmp_path / "f.parquet").assign(e=rng.normal(size=len(data)))
    wider.to_parquet(tmp_path / "wider.parquet")
    assert (
        "on 4 features per patch"
        in invoke("predict", checkpoint, "--features", tmp_path / "wider.parquet", *out).output
    )
    assert found.attention == ()
    assert {s.n for s in found.scores if s.split == "internal"} == {36}
    assert next(s for s in found.scores if s.run == "baseline" and s.split == "internal").auc > 0.8


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def call(*arguments):
    return invoke("bags", "--study", "embedded:null", *arguments)


def test_a_checkpoint_predicts_bags_as_it_was_scored(record, embedded, tmp_path):
    predicted = ck.predict(record.folder / "checkpoints" / "guided-seed0", embedded).set_index("bag")
    patches = pd.read_csv(record.folder / "attention.csv")
    assert predicted["patches"].sum() == len(patches)
    assert "count_predicted" in predicted
    assert not any(name.startswith("center") for name in predicted)  # it was discouraged
    label = (patches.label == "tumor").groupby(patches.bag).any()
    for split, bags in patches.groupby("split").bag.unique().items():
        expected = [s.auc for s in record.scores if (s.run, s.split) == ("guided", split)]
        if expected:
            score = predicted.loc[bags, "probability_tumor over 0"]
            assert roc_auc_score(label[bags], score) == pytest.approx(expected[0])


def test_what_a_checkpoint_of_bags_cannot_do_is_a_sentence(record, tmp_path):
    checkpoint = record.folder / "checkpoints" / "guided-seed0"
    assert "map: not available" in invoke("predict", checkpoint, "--out", tmp_path / "p.csv", "--map", tmp_path).output
    copied = tmp_path / "copied"
    shutil.copytree(checkpoint, copied)
    stated = json.loads((copied / "bags.json").read_text())
    for changes, words in (
        ({"weights_sha256": "0"}, "has other weights now"),
        ({"model": "os:getcwd"}, "code that opening it would run"),
        ({"weights": "gone.safetensors"}, "cannot be opened"),
    ):
        (copied / "bags.json").write_text(json.dumps({**stated, "made_with": {**stated["made_with"], **changes}}))
        result = invoke("predict", copied, "--out", tmp_path / "p.csv")
        assert (result.exit_code, words in result.output) == (2, True), result.output


def test_the_report_of_a_checkpoint_is_that_of_its_run(record, tmp_path):
    result = invoke("report", record.folder / "checkpoints" / "guided-seed0", "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert "Where attention lies" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_command_writes_what_it_says(tmp_path):
    out = tmp_path / "run"
    result = call("--epochs", 2, "--warmup", 1, "--encourage", "count", "--out", out, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "Main task of bags by made_slide" in result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == "conceptkit/bags/1"
    assert (out / "attention.csv").is_file()


MISTAKES = {
    "no such column": (["--by", "slice"], "by: the table has no column 'slice'"),
    "patients have no label": (["--by", "patient"], "label: label varies within patient"),
    "patients are alike": (["--by", "patient", "--positive", "tumor"], "tumor are 0.1 to 0.9 of their patches"),
    "the label itself": (["--label", "area"], "is the main task itself"),
    "a layer of heads": (["--encourage", "count@mixed8"], "what attention pooled"),
    "a seed below 0": (["--seeds", "1,-2"], "seeds: must be at least 0, got -2"),
    "no such attention": (["--attention", "gate"], "attention: 'gate' is not known"),
    "varies in a bag": (["--by", "patient", "--label", "area", "--discourage", "label"], "label must be the same"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(name, tmp_path):
    args, words = MISTAKES[name]
    args = [*args, "--encourage", "area"] if name == "the label itself" else args
    result = call(*args, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert not (tmp_path / "run" / "record.json").exists()


def test_no_checkpoint_and_a_broken_one(record, tmp_path):
    with pytest.raises(InputError, match="is not a bags checkpoint"):
        load_bag_model(tmp_path)
    stated = json.loads((record.folder / "checkpoints" / "guided-seed0" / "bags.json").read_text())
    (tmp_path / "bags.json").write_text(json.dumps({**stated, "schema": "conceptkit/bag-checkpoint/9"}))
    with pytest.raises(InputError, match="this version reads"):
        load_bag_model(tmp_path)
    (tmp_path / "bags.json").write_text(json.dumps({**stated, "pooling": 3}))
    with pytest.raises(InputError, match="cannot be opened"):
        load_bag_model(tmp_path)


def test_the_report_has_a_section_of_bags(record, tmp_path):
    from conceptkit.commands.report import write_report

    page = write_report([record.folder], out=tmp_path / "r.html")
    text = page.read_text(encoding="utf-8")
    assert "Where attention lies" in text
    assert "Main task of bags by made_slide" in text
