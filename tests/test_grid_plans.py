"""Plans of grids: their networks, the values of controls and curves, and what is refused before training."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_study import write_study
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.grid import run as grid_run
from conceptkit.grid.columns import altered
from conceptkit.grid.plan import PAPER_MODELS, folder_name, read_models
from conceptkit.guide.arms import random_values
from conceptkit.guide.concept_network import Column, design, fit_concept_network
from conceptkit.records import GridCell

OPTIONS = {"epochs": 2, "warmup": 1, "trunk": (8,)}
SEEDS = (0, 3)
WANTED = {"ablate": "count, -center", **OPTIONS, "weightings": ["vanilla"], "seeds": SEEDS, "folds": 2}


@pytest.mark.long
def test_the_papers_grid_is_the_papers(embedded):
    cells = ck.Grid(ablate="paper", dry_run=True).run(embedded).cells
    models = [c for c in cells if c.number]
    assert len(models) == 16
    for weighting in ("vanilla", "uncertainty"):
        own = {c.number: (c.encourage, c.discourage) for c in models if c.weighting == weighting}
        assert own == PAPER_MODELS
    assert {c.name for c in models if c.discourage} == {
        f"{name}, {weighting}"
        for weighting in ("vanilla", "uncertainty")
        for name in (
            *("− center", "count − center", "area + count − center"),
            "area + count + contrast − center",
        )
    }
    assert [c.control for c in cells if c.control] == [
        *("balanced",) * 2,  # one per weighting
        *("random", "shuffled") * 2,
        "confounder only",
    ]
    assert len({c.name for c in cells}) == len({folder_name(c, 0) for c in cells}) == len(cells)


def test_inception_has_the_papers_second_network_beside_it(embedded):
    cells = ck.Grid(ablate="paper", model="inception_v3", dry_run=True).run(embedded).cells
    second = {c.number: c for c in cells if c.model == "resnet50"}
    assert set(second) == {"R1", "R8", ""}
    assert (second[""].control, second["R8"].base) == ("balanced", second[""].name)
    assert {c.weighting for c in second.values()} == {"uncertainty"}
    assert second["R8"].encourage == ("area", "count", "contrast")
    assert not [c for c in ck.Grid(ablate="paper", dry_run=True).run(embedded).cells if c.model == "resnet50"]


def test_pairs_are_all_of_one_and_two(embedded):
    study = dataclasses.replace(embedded, encourage=("area", "count"), discourage=("center",))
    assert read_models("pairs", study)[1] == [
        *((("area",), ()), (("count",), ()), ((), ("center",))),
        *((("area", "count"), ()), (("area",), ("center",)), (("count",), ("center",))),
    ]


def test_a_list_is_read_from_text_a_file_and_the_study(embedded, tmp_path):
    wanted = [(("count",), ("center",)), (("area", "count@mixed10"), ())]
    lines = ["main", "count,-center", "area, count@mixed10"]
    (tmp_path / "models.txt").write_text("# ours\n" + "\n".join(lines) + "\n\n", encoding="utf-8")
    study = dataclasses.replace(embedded, grid=tuple(lines))
    for text in (";".join(lines), str(tmp_path / "models.txt"), "study"):
        assert read_models(text, study) == ("list", wanted)


def test_the_study_file_names_a_grid(study, table, tmp_path):
    path = write_study(tmp_path, table)
    path.write_text(
        path.read_text(encoding="utf-8") + '\n[grid]\nmodels = ["count", "count, -center"]\n', encoding="utf-8"
    )
    assert [c.name for c in ck.Grid(ablate="study", controls=False, dry_run=True).run(path).cells] == [
        *("main, uncertainty-bounded", "count, uncertainty-bounded"),
        *("main balanced by center, uncertainty-bounded", "count − center, uncertainty-bounded"),
    ]


def test_names_of_cells_make_folders_of_their_own():
    cells = [
        GridCell(name="a-b, vanilla"),
        GridCell(name="a + b, vanilla"),
        GridCell(name="a − b, vanilla"),
        GridCell(name="a/b, vanilla"),
        GridCell(name="ä, vanilla"),
        GridCell(name="x" * 300),
    ]
    folders = {folder_name(cell, 0) for cell in cells}
    assert len(folders) == len(cells)
    assert all(len(name) < 130 and "/" not in name for name in folders)


def test_the_noise_curve_and_its_multimodal_control_differ_in_nothing_else(embedded):
    """Two weightings: both points belong to the last, and neither discourages or weighs rows."""
    study = dataclasses.replace(embedded, encourage=("count",), discourage=("center",))
    cells = ck.Grid(ablate="paper", noise=[0.5], fraction=[0.5], dry_run=True).run(study).cells
    learned, multimodal, scarce = [c for c in cells if c.curve]
    assert learned.name == "count, noise 0.5, uncertainty"
    assert learned.discourage == multimodal.discourage == ()
    assert scarce.discourage == ("center",)  # the control: the other curve is of the study's guided network
    assert multimodal.name.endswith("uncertainty")
    assert multimodal.base == "main, uncertainty"
    assert next(c.name for c in cells if not c.encourage) == "main, vanilla"  # the first single task is another


# --- values of the controls --------------------------------------------------------------------------------------

AT = {"train": np.arange(60), "val": np.arange(60, 80), "internal": np.arange(80, 120)}


def values_with_gaps():
    values = np.random.default_rng(0).normal(size=120)
    values[::7] = np.nan
    return values


def test_a_shuffled_concept_keeps_its_values_in_each_split():
    values = values_with_gaps()
    found = altered(GridCell(name="s", control="shuffled"), values, AT, 0)
    for rows in AT.values():
        assert np.sort(found[rows]) == pytest.approx(np.sort(values[rows]), nan_ok=True)
        assert np.isnan(found[rows]).tolist() == np.isnan(values[rows]).tolist()
    known = np.isfinite(values)
    assert abs(np.corrcoef(values[known], found[known])[0, 1]) < 0.25
    assert not np.array_equal(altered(GridCell(name="s", control="shuffled"), values, AT, 1), found, equal_nan=True)


def test_noise_exchanges_its_share_of_the_values():
    values = values_with_gaps()
    for level in (0.0, 0.3, 1.0):
        found = altered(GridCell(name="n", curve="noise", level=level), values, AT, 0)
        assert np.sort(found[AT["train"]]) == pytest.approx(np.sort(values[AT["train"]]), nan_ok=True)
        known = np.isfinite(values)
        assert np.mean(found[known] != values[known]) == pytest.approx(level, abs=0.05)


def test_a_fraction_keeps_whole_rows_and_the_smaller_lies_in_the_larger():
    values = np.random.default_rng(0).normal(size=120)
    words = np.array([*"ab"] * 60, dtype=object)
    kept = {}
    for level in (0.1, 0.5, 1.0):
        cell = GridCell(name="f", curve="fraction", level=level)
        found = altered(cell, values, AT, 0)
        kept[level] = set(np.flatnonzero(np.isfinite(found)).tolist())
        for name in ("train", "val"):
            assert np.isfinite(found[AT[name]]).sum() == round(level * len(AT[name]))
        assert np.isfinite(found[AT["internal"]]).all()
        other = altered(cell, words, AT, 0)
        assert {i for i, v in enumerate(other) if v is not None} == kept[level]
    assert kept[0.1] < kept[0.5] < kept[1.0]


def test_a_fraction_that_leaves_nothing_is_told():
    values = np.full(120, np.nan)
    values[:2] = 1.0
    with pytest.raises(InputError, match=r"concept-fraction: 0\.01 leaves no training row with a value"):
        altered(GridCell(name="f", curve="fraction", level=0.01), values, AT, 0)


def test_random_values_are_another_seeds_others():
    assert np.array_equal(random_values(50, 1), random_values(50, 1))
    assert abs(np.corrcoef(random_values(500, 1), random_values(500, 2))[0, 1]) < 0.15


# --- the record --------------------------------------------------------------------------------------------------


PAPER_TABLE_1 = {"train": [(31108, 8036), (25137, 5998), (38962, 2982), (25698, 1496)]}
PAPER_TABLE_1["internal"] = [(0, 500), (274, 999), (483, 0), (458, 0)]
"""Split → (normal, tumor) patches of Camelyon17's centers 0 to 3; the paper's Table 1"""


def test_on_the_papers_own_split_the_center_alone_scores_0925(monkeypatch):
    rows = [
        (split, str(center), label)
        for split, counts in PAPER_TABLE_1.items()
        for center, own in enumerate(counts)
        for label, n in enumerate(own)
        for _ in range(n)
    ]
    split, center, label = map(np.array, zip(*rows, strict=True))
    at = {name: np.flatnonzero(split == name) for name in PAPER_TABLE_1}
    plan = SimpleNamespace(used=np.arange(len(rows)), codes=label, rows=at, classes=("normal", "tumor"))
    monkeypatch.setattr("conceptkit.grid.run.split_scores", lambda probability, plan, reading: {})
    found = grid_run.confounder_run(GridCell(name="c"), center.astype(object), plan, None, 0).probability
    inside = at["internal"]
    assert roc_auc_score(label[inside], found[inside]) == pytest.approx(0.925, abs=5e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "2"], "workers: needs a grid; use --ablate"),
        (["--weightings", "vanilla"], "weightings: needs a grid"),
        (["--protocol", "paper"], "protocol: needs a grid"),
        (["--concept-noise", "a"], "noise: must be a number, got 'a'"),
        (["--ablate", "count", "--engine", "dask"], "scheduler: must be given with --engine dask"),
        (["--ablate", "count", "--seeds", "1,1"], "seeds: need at least one and no repeats"),
        (["--affinity", "--encourage", ""], "encourage: curves and affinities need a concept"),
    ],
)
def test_options_that_make_no_grid_are_told(study, tmp_path, arguments, words):
    result = CliRunner().invoke(app, ["guide", "--study", str(study), "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--transductive"],
        ["--allow-leakage"],
        ["--search", "1"],
        ["--devices", "2"],
        ["--nodes", "2"],
        ["--precision", "bf16"],
        ["--log", "csv"],
        ["--disturb", "blur"],
        ["--seed", "1"],
    ],
    ids=lambda words: words[0],
)
def test_options_of_a_pair_of_networks_are_not_dropped_in_a_grid(study, arguments):
    wanted = ["guide", "--study", str(study), "--ablate", "count", "--dry-run"]
    result = CliRunner().invoke(app, [*wanted, *arguments])
    assert result.exit_code == 2
    name = arguments[0].removeprefix("--")
    assert f"{name}: is for a single pair of networks, not for a grid" in " ".join(result.stderr.split())


def test_the_same_grid_without_them_is_planned(study):
    assert CliRunner().invoke(app, ["guide", "--study", str(study), "--ablate", "count", "--dry-run"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concept-noise", "3"], "concept-noise: must be at most 1"),
        (["--concept-fraction", "0.5,0.5"], "concept-fraction: no level may be given twice"),
        (["--seeds", "1,1"], "seeds: need at least one and no repeats"),
        (["--recipe", "nonsense"], "recipe: 'nonsense' is not known"),
        (["--protocol", "nonsense"], "protocol: 'nonsense' is not known"),
        (["--lr", "0"], "lr: must be above 0"),
        (["--weightings", "nonsense"], "weighting: 'nonsense' is not known"),
        (["--affinity", "--encourage", ""], "encourage: curves and affinities need a concept"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "run"])
def test_a_dry_run_refuses_what_the_run_refuses(study, tmp_path, arguments, words, dry):
    wanted = ["guide", "--study", str(study), "--ablate", "count", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*wanted, *arguments, *dry])
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())


# --- bad input ---------------------------------------------------------------------------------------------------


def refused(study, words, out, **changes):
    with pytest.raises(InputError, match=words):
        ck.Grid(**{**WANTED, **changes}).run(study, out=out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ablate": "count; counts"}, "ablate: the table has no column 'counts'; near names: count"),
        ({"ablate": "count; count"}, "ablate: count given more than once"),
        ({"ablate": "count, -count"}, "ablate: count given more than once"),
        ({"ablate": "label"}, "encourage, discourage and through: label is the main task itself"),
        ({"ablate": " ; main"}, "ablate: ' ; main' lists no model"),
        ({"ablate": "study"}, "ablate: the study file has no models"),
        ({"seeds": [1, 1]}, r"seeds: need at least one and no repeats, got \[1, 1\]"),
        ({"seeds": []}, "seeds: need at least one and no repeats"),
        ({"weightings": ["vanila"]}, "weighting: 'vanila' is not known; near names: vanilla"),
        ({"weightings": ["vanilla,counts=fixed:1"]}, "weightings: there is no task 'counts'; near names: count"),
        ({"weightings": []}, "weightings: at least one is needed"),
        ({"noise": [1.5]}, "concept-noise: must be at most 1, got 1.5"),
        ({"fraction": [0.0]}, "concept-fraction: must be above 0, got 0"),
        ({"ablate": "count, -latent:3"}, "ablate: latent:3 is available for a single pair of networks, not in a grid"),
        (
            {"discourage": ["latent:3"], "encourage": ["count"], "noise": [0.5]},
            "latent:3 is available for a single pair",
        ),
        ({"fraction": [0.1, 0.1]}, "concept-fraction: no level may be given twice, got 0.1, 0.1"),
        ({"protocol": "patches"}, "protocol: 'patches' is not known"),
        ({"within": ["count"]}, "within: count must be categorical"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(study, tmp_path, changes, words):
    refused(study, words, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_split_without_positives_is_told(table, tmp_path):
    one = table.copy()
    one.loc[one.split == "external", "label"] = "normal"
    path = write_study(tmp_path / "study", one)
    refused(path, "label: label needs two classes in split 'external', there is only 'normal'", tmp_path / "out")


def test_columns_become_inputs_by_the_training_rows_measure():
    values = np.array([1.0, 3.0, np.nan, 100.0])
    words = np.array(["a", "b", None, "z"], dtype=object)
    train = np.array([0, 1, 2])
    X = design([Column("continuous", values), Column("categorical", words)], train)
    assert X[:, 0] == pytest.approx([-1, 1, 0, 98])
    assert X[:, 1].tolist() == [0, 0, 1, 0]
    assert X[:, 2:].tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_the_small_network_learns_what_is_no_line():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    found = fit_concept_network(x, y, np.arange(300), np.arange(300, 400), n_classes=2, seed=0)
    assert roc_auc_score(y[400:], found[400:]) > 0.95
    again = fit_concept_network(x, y, np.arange(300), np.arange(300, 400), n_classes=2, seed=0)
    assert np.array_equal(found, again)
    spoiled = y.copy()
    spoiled[400:] = -1  # rows beyond training and validation have no say
    assert np.array_equal(
        found, fit_concept_network(x, spoiled, np.arange(300), np.arange(300, 400), n_classes=2, seed=0)
    )
