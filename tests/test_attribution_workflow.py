"""run_attribute and its command: a guided and a plain network on the small study, record, pictures, mistakes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_study import write_study
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.attribution.maps import concept_maps, extremes
from conceptkit.cli import app
from conceptkit.commands import attribute as attributing
from conceptkit.commands.attribute import round_step
from conceptkit.errors import InputError
from conceptkit.features.activations import read_pixels
from conceptkit.models.backbones import open_backbone
from conceptkit.models.checkpoints import save_checkpoint
from conceptkit.models.guided import MAIN, GuidedModel, Task
from conceptkit.records import AttributeRecord, load_record
from conceptkit.report.attribution_tables import attribution_tables, attribution_verdicts
from conceptkit.report.table import shown
from conceptkit.runs.opening import find_study

OPTIONS = {"refits": 10, "permutations": 199, "folds": 3}
FEWER = {**OPTIONS, "permutations": 49}
"""Where what is tested is no p"""


@pytest.fixture(scope="module", autouse=True)
def few_images_moved():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributing, "MOVED_IMAGES", 8)
        yield


TIMM = "resnet10t"
"""The smallest of timm's with an ordinary head"""


@pytest.fixture(scope="module")
def checkpoint(study, tmp_path_factory):
    """A guided network as a run would leave it, whose main logit is wired to what its count head reads."""
    backbone = open_backbone("mini_inception")
    tasks = [
        Task(name=MAIN, kind="categorical", classes=("normal", "tumor")),
        Task(name="count", kind="continuous", mean=12.0, deviation=5.0),
        Task(name="center", kind="categorical", classes=("A", "B", "C", "D"), adversarial=True),
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GuidedModel(backbone.module, 256, tasks, trunk=()).eval()
    # Least squares on the patches themselves: the head then reads count, and the main logit is 0.4 per nucleus of it.
    data = find_study(study).load_table()
    with torch.no_grad():
        features = torch.cat(
            [
                model.features(backbone.preprocessing(read_pixels(data, np.arange(i, min(i + 50, len(data))))))[0]
                for i in range(0, len(data), 50)
            ]
        )
        y = torch.from_numpy((data.frame["count"].to_numpy() - 12.0) / 5.0).float()
        fitted = ck.RegressionConceptVector().fit(features.numpy(), y.numpy(), data.groups("patient"))
        model.heads["count"].weight.copy_(torch.from_numpy(fitted.coef_)[None].float())
        model.heads["count"].bias.fill_(fitted.intercept_)
        model.heads[MAIN].weight.copy_(2.0 * model.heads["count"].weight)
        model.heads[MAIN].bias.zero_()
    folder = tmp_path_factory.mktemp("guided") / "checkpoint"
    save_checkpoint(model, backbone, folder)
    return folder


@pytest.fixture(scope="module")
def record(study, checkpoint, tmp_path_factory):
    return ck.Attribute(model=str(checkpoint), layers=["mixed10"], concepts=["count", "center"], maps=2, **OPTIONS).run(
        study, out=tmp_path_factory.mktemp("runs") / "run"
    )


def row_of(record, concept, layer="mixed10", among="all", concept_class=None):
    key = (concept, layer, among, concept_class)
    (row,) = (r for r in record.rows if (r.concept, r.layer, r.among, r.concept_class) == key)
    return row


# --- a guided network --------------------------------------------------------------------------------------------


def test_there_is_a_row_for_each_concept_class_and_set_of_images(record):
    sets = ("all", "normal", "tumor")
    concepts = [("count", None), *(("center", c) for c in "ABCD")]
    assert [(r.layer, r.concept, r.concept_class, r.among) for r in record.rows] == [
        ("mixed10", *concept, among) for concept in concepts for among in sets
    ]
    assert {r.target for r in record.rows} == {"tumor"}
    row = row_of(record, "count")
    assert row.n == row.n_fit == sum(row_of(record, "count", among=a).n for a in ("normal", "tumor"))
    assert (row.metric, row.kind, row_of(record, "center", concept_class="A").metric) == (
        "r2",
        "continuous",
        "balanced_accuracy",
    )


def test_what_the_network_was_wired_to_is_found(record):
    """The logit is twice the z-score of count that a ridge vector reads: 0.4 for each nucleus it reads."""
    row = row_of(record, "count")
    # Ridge shrinks what it reads: of one more nucleus it reads somewhat less than one.
    assert 0.25 < row.per_unit < 0.42
    assert row.per_unit_low < row.per_unit < row.per_unit_high
    assert row.per_unit_low > 0
    assert row.per_unit_p == pytest.approx(1 / 200)
    assert row.per_sd == pytest.approx(row.per_unit * row.sd)
    assert row.scores["sign_count"].value == 1.0
    # Last layer before the average: every image has the same derivative, TCAV is 0 or 1, and Br has no value.
    assert row.same_derivative
    assert np.isnan(row.scores["relevance"].value)


def test_moving_the_activations_does_what_the_derivative_says(record):
    (moved,) = (m for m in record.moved if (m.layer, m.concept) == ("mixed10", "count"))
    row = row_of(record, "count")
    at = dict(zip(moved.steps, moved.outputs["tumor"], strict=True))
    assert at[1.0] - at[0.0] == pytest.approx(row.per_sd, rel=1e-3)  # linear from there on
    assert at[-2.0] - at[0.0] == pytest.approx(-2 * row.per_sd, rel=1e-3)
    count = dict(zip(moved.steps, moved.outputs["count"], strict=True))
    assert count[1.0] - count[0.0] == pytest.approx((at[1.0] - at[0.0]) / 0.4, rel=1e-3)  # in nuclei
    shares = [moved.outputs[f"center:{c} (probability)"] for c in "ABCD"]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1.0, rtol=1e-5)


def test_a_checkpoint_is_read_on_rows_that_it_was_not_trained_on(record, study, table):
    assert record.settings["split"] == "internal"
    assert row_of(record, "count").n == (table.split == "internal").sum()
    assert any("--split all" in note for note in record.notes)


def test_the_saved_record_is_the_same(record):
    loaded = load_record(record.folder)
    assert isinstance(loaded, AttributeRecord)
    assert json.dumps(loaded.to_dict()["rows"]).replace("NaN", "null") == json.dumps(record.to_dict()["rows"]).replace(
        "NaN", "null"
    )
    assert loaded.moved == record.moved
    assert loaded.figures == record.figures
    frame = loaded.to_frame()
    assert len(frame) == len(record.rows)
    assert set(frame.columns) >= {"per_unit", "per_sd_low", "sign_count", "sign_count_p", "relevance_q"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.rows = ()


def test_the_tables_and_sentences_hold_the_numbers(record):
    change, moved = attribution_tables(record)  # no TCAV: mixed10 has a linear head
    row = row_of(record, "count")
    first = shown(change).iloc[0]
    assert first["step"] == f"+{row.round_step:g}"
    assert first["difference"].startswith(f"+{row.per_unit * row.round_step:.2f} [")
    assert "−2" in shown(moved).columns
    texts = [verdict.text for verdict in attribution_verdicts(record)]
    # count and four centers, those without a clear change in one line, and that mixed10 has one derivative
    [unchanged] = [text for text in texts if text.startswith("No clear change in ")]
    assert len(texts) - 2 + int(unchanged.split()[4]) == 5
    assert unchanged.count("tumor with ") == int(unchanged.split()[4])
    assert "choose an earlier layer" in texts[-1]
    assert texts[0].startswith("tumor is associated with count at mixed10 (q = ")  # 8 patients: no size is established
    assert all(text.endswith(".") for text in texts)


def test_pictures_lie_in_the_run_folder(record):
    assert len(record.figures) == 5
    for name in record.figures:
        with Image.open(record.folder / name) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("RGB")).std() > 20  # not blank


def test_the_mean_of_a_map_is_the_reading_of_its_patch(study, checkpoint):
    backbone = ck.models.checkpoints.load_checkpoint(checkpoint)
    data = find_study(study).load_table()
    images = backbone.preprocessing(read_pixels(data, np.arange(5)))
    head = backbone.module.heads["count"]
    weight, bias = head.weight.detach().double().numpy().T, head.bias.detach().double().numpy()
    (maps,) = concept_maps(backbone.module, "backbone.mixed10", [images], weight, bias)
    assert maps.shape == (5, 1, 6, 6)
    with torch.no_grad():
        expected = backbone.module(images)["count"][:, 0].numpy()
    np.testing.assert_allclose(maps.mean((2, 3))[:, 0], expected, rtol=1e-4)


def test_the_ends_of_a_contact_sheet_are_of_different_patients():
    reading = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    most, least = extremes(reading, np.array(["a", "a", "b", "c", "c"]), 2)
    assert (list(most), list(least)) == ([0, 2], [4, 2])
    most, least = extremes(reading, None, 2)
    assert (list(most), list(least)) == ([0, 1], [4, 3])
    assert list(extremes(reading, np.array(["a"] * 5), 3)[0]) == [0]


# --- options -----------------------------------------------------------------------------------------------------


def run(study, checkpoint, tmp_path, **options):
    given = {"layers": ["mixed10"], "concepts": ["count"], "maps": 0, "model": str(checkpoint), **FEWER, **options}
    return ck.Attribute(**given).run(study, out=tmp_path / "run")


def test_targets_sets_confounders_and_splits_are_those_asked_for(study, checkpoint, tmp_path):
    record = run(
        study,
        checkpoint,
        tmp_path,
        targets=["normal", "count"],
        among=["tumor"],
        adjust=["area", "contrast"],
        split="external",
        method="integrated",
        permutations=0,
    )
    assert [(r.target, r.among, r.adjusted_for) for r in record.rows] == [
        ("normal", "tumor", ("area", "contrast")),
        ("count", "tumor", ("area", "contrast")),
    ]
    negative, own = record.rows
    assert own.per_unit == pytest.approx(negative.per_unit / -0.4, rel=1e-4)
    assert 0.5 < own.per_unit < 1.05  # nuclei that the head reads, for each one there is
    assert np.isnan(own.per_unit_p)
    assert record.figures == ()
    assert record.settings["split"] == "external"


def test_nested_slides_go_through_the_study(table, checkpoint, tmp_path):
    slides = table.patient.astype(str) + "-" + (np.arange(len(table)) % 2).astype(str)
    path = write_study(tmp_path / "s", table.assign(block=slides))
    nested, free = (
        run(path, checkpoint, tmp_path / name, nested=column, permutations=49, split="external")
        for name, column in (("nested", "block"), ("free", None))
    )
    assert (nested.settings["nested"], free.settings["nested"]) == ("block", None)
    assert nested.rows[0].per_unit == free.rows[0].per_unit
    drawn = [(row.scores["mean"].null_low, row.scores["mean"].null_high) for row in (nested.rows[0], free.rows[0])]
    assert drawn[0] != drawn[1]  # rows are shuffled with their slides
    with pytest.raises(InputError, match="nested: every unit must lie in one group"):
        run(path, checkpoint, tmp_path / "refused", nested="center")


def test_any_classifier_of_timm_has_numbered_classes(study, tmp_path):
    record = run(
        study, TIMM, tmp_path, weights="random", layers=["layer4", "global_pool"], targets=["0", "7"], split="external"
    )
    assert {(r.layer, r.target) for r in record.rows} == {(la, t) for la in ("layer4", "global_pool") for t in "07"}
    # The average over positions lies between both: what one says of its mean the other says of itself.
    by = {(r.layer, r.target, r.among): r for r in record.rows}
    for target in "07":
        pooled, maps = by["global_pool", target, "all"], by["layer4", target, "all"]
        assert pooled.per_unit == pytest.approx(maps.per_unit, rel=1e-3)
        assert pooled.scores["mean"].value == pytest.approx(maps.scores["mean"].value, rel=1e-2)


def test_the_same_seed_gives_the_same_record(study, checkpoint, tmp_path):
    first, second = (run(study, checkpoint, tmp_path / name, layers=["mixed9"], split="external") for name in "ab")
    assert len(first.rows) == 3
    assert np.isfinite(first.rows[0].scores["relevance"].value)  # before the last layer derivatives differ
    assert not first.rows[0].same_derivative
    share = first.rows[0].scores["sign_count"]
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert [note for note in first.notes if "not trained" in note]
    assert json.dumps(first.to_dict()["rows"]) == json.dumps(second.to_dict()["rows"])


def test_round_steps():
    assert [round_step(v) for v in (8.3, 5.0, 76.0, 0.031, 1.3, 0.19)] == [10.0, 5.0, 100.0, 0.02, 1.0, 0.2]


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_json(study, checkpoint, tmp_path):
    options = ["--layer", "mixed10", "--concept", "count", "--refits", "10", "--permutations", "99", "--maps", "2"]
    call = ["attribute", "--study", str(study), "--model", str(checkpoint), "--folds", "3", *options]
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "run"), "--json", "-"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema"] == "conceptkit/attribute/1"
    assert result["rows"][0]["scores"]["relevance"]["value"] is None
    assert len(result["figures"]) == 1
    assert "How the logit of tumor changes with each concept at mixed10" in done.stderr
    assert "associated with count at mixed10" in done.stderr
    assert "choose an earlier layer" in done.stderr


# --- mistakes ----------------------------------------------------------------------------------------------------

MISTAKES = [
    ({"targets": ["tumour"]}, r"target: the network has no class 'tumour'; near names: tumor"),
    ({"layers": ["heads.center"]}, r"layer: heads\.center takes no part in the network's forward pass to tumor"),
    ({"layers": ["heads.main"]}, r"layer: heads\.main is the target tumor itself"),
    ({"layers": ["mixed99"]}, r"layer: the network has no layer 'mixed99'"),
    ({"concepts": ["constant"]}, r"concept: constant is constant \(1\.5 in all"),
    ({"concepts": ["void"]}, r"concept: void has no value"),
    ({"among": ["benign"]}, r"among: no image of these rows has label 'benign'; known: all, normal, tumor"),
    ({"adjust": ["count"]}, r"adjust: count is attributed itself"),
    ({"adjust": ["nothing"]}, r"adjust: the table has no column 'nothing'"),
    ({"method": "saliency"}, r"method: 'saliency' is not known"),
    ({"pool": "median"}, r"pool: 'median' is not known"),
    ({"refits": 3}, r"refits: must be at least 10, got 3"),
    ({"maps": -1}, r"maps: must be at least 0, got -1"),
    ({"split": "nowhere"}, r"split: no row has split 'nowhere'"),
    ({"model": "mini_inception"}, r"model: this network returns features, not classes"),
    ({"model": TIMM, "weights": "random", "layers": ["layer4"]}, r"target: the network has 1000 classes"),
    ({"model": TIMM, "weights": "random", "layers": ["fc"], "targets": ["3"]}, r"layer: fc is the target 3 itself"),
]


@pytest.mark.parametrize(("options", "sentence"), MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(study, checkpoint, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        run(study, checkpoint, tmp_path, **options)
    assert not (tmp_path / "run").exists()


def test_a_class_without_any_image_is_told(study, checkpoint, table, tmp_path):
    from small_study import write_study

    lacking = table.assign(partial=table["count"].where(table.label == "normal"))
    other = write_study(tmp_path / "lacking", lacking)
    with pytest.raises(InputError, match="among: no image of tumor has a value of partial"):
        run(other, checkpoint, tmp_path, concepts=["count", "partial"])
