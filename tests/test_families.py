"""Every member of every family, built in and of tests/plugin: what it must do, and its way through the command line."""

from __future__ import annotations

import configparser
import dataclasses
import inspect
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from conceptkit import families, registry
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.families import FAMILIES
from conceptkit.guide.aggregation import AGGREGATORS
from conceptkit.guide.arms import Conditions
from conceptkit.models.backbones import open_backbone
from conceptkit.models.guided import MAIN, Task
from conceptkit.models.pooling import View
from conceptkit.options.training import TrainingOptions
from conceptkit.pathology.measures import measure

PLUGIN = Path(__file__).parent / "plugin"
DOCS = Path(__file__).parents[1] / "docs"


def entry_points():
    """Family → names of the members that the package of tests/plugin adds."""
    parser = configparser.ConfigParser()
    parser.read(PLUGIN / "more_concepts-1.0.dist-info" / "entry_points.txt")
    return {group.removeprefix("conceptkit."): list(parser[group]) for group in parser.sections()}


ADDED = entry_points()

BUILT_IN = {name: list(family._built_in) for name, family in FAMILIES.items()}


def members(family):
    """Mark a test to run over every member of a family."""
    return pytest.mark.parametrize("name", [*BUILT_IN[family], *ADDED[family]])


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    """Install the package of tests/plugin for this test."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()
    for name, added in ADDED.items():
        for member in added:
            FAMILIES[name]._loaded.pop(member, None)


def test_the_package_adds_one_member_to_each_family():
    assert sorted(ADDED) == sorted(FAMILIES)
    for name, family in FAMILIES.items():
        assert list(family) == [*BUILT_IN[name], *ADDED[name]]


def test_names_are_listed_without_heavy_imports():
    heavy = ("numpy", "pandas", "torch", "timm", "lightning", "PIL", "h5py", "skimage")
    code = (
        "import sys; from conceptkit.families import FAMILIES; names = [list(f) for f in FAMILIES.values()]; "
        f"print(len(names), [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(FAMILIES)} []"


@pytest.mark.parametrize(("family", "name"), [(f, n) for f in FAMILIES for n in (*BUILT_IN[f], *ADDED[f])])
def test_every_member_loads(family, name):
    assert callable(FAMILIES[family].choose(family, name)) or FAMILIES[family]._member
    with pytest.raises(InputError, match=rf"{name}x' is not known"):
        FAMILIES[family].choose(family, f"{name}x")


def test_the_page_of_families_lists_every_member(capsys):
    page = (DOCS / "families.md").read_text(encoding="utf-8")
    code = re.search(r"^```{run} python\n:lines: 100\n(.*?)^```$", page, re.M | re.S)
    exec(code[1], {})
    listed = re.split(r"\n(?=\S)", capsys.readouterr().out.strip())
    names = {line.split()[0]: re.split(r",\s+", line.split(None, 1)[1]) for line in listed}
    assert names == {name: list(family) for name, family in FAMILIES.items()}
    assert set(re.findall(r"^\| (\w+) \|", page, re.M)) - {"family"} == set(FAMILIES)


# One suite per family


KINDS = {1: "neoplastic", 2: "lymphocyte"}


def patches(n=4, side=48):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    masks = np.zeros((n, side, side), dtype=np.int32)
    for k in range(n):
        masks[k, 4 : 9 + k, 4:10], masks[k, 20:28, 20 : 26 + 2 * k] = 1, 2
    return images, masks


@members("measures")
def test_a_measure_gives_one_number_per_patch_whatever_the_others_are(name):
    member = families.MEASURES[name]
    assert member.name == name
    assert all((member.unit, member.source, member.meaning.endswith(".")))
    images, masks = patches()
    values = measure(images, masks, 0.5, names=name, jpeg_quality=80, types=KINDS)[name]
    assert values.shape == (4,)
    assert values.dtype == np.float64
    turned = measure(images[::-1], masks[::-1], 0.5, names=name, jpeg_quality=80, types=KINDS)[name]
    np.testing.assert_allclose(turned[::-1], values, rtol=1e-6)


@members("nuclei")
def test_a_nucleus_method_labels_every_pixel_or_asks_for_weights(name):
    try:
        segment = families.NUCLEI[name](None, "cpu")
    except InputError as error:
        assert "nuclei-weights" in str(error)  # noqa: PT017  # a method that is trained has a message of its own
        return
    image = np.full((64, 64, 3), 235, dtype=np.uint8)
    assert segment(image, 0.5).max() == 0
    rows, columns = np.mgrid[:64, :64]
    disk = (rows - 32) ** 2 + (columns - 32) ** 2 < 100
    image[disk] = (70, 40, 110)
    labels = segment(image, 0.5)
    assert labels.shape == (64, 64)
    assert np.issubdtype(labels.dtype, np.integer)
    assert labels[32, 32] > 0
    assert labels[2, 2] == 0


@members("stain")
def test_a_stain_method_moves_a_slide_to_its_reference(name):
    rng = np.random.default_rng(1)
    amounts = rng.uniform(0.2, 0.6, (2, 64, 64, 2))
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # hematoxylin, eosin
    light, dark = (np.round(255 * 10 ** -(s * amounts @ vectors)).astype(np.uint8) for s in (0.7, 1.2))
    method = families.STAIN[name].fit(dark)
    moved = method.transform(light, source=method.measure(light))
    assert moved.shape == light.shape
    assert moved.dtype == np.uint8
    assert abs(moved.mean() - dark.mean()) < 0.3 * abs(light.mean() - dark.mean())


@members("disturbances")
def test_a_disturbance_keeps_the_shape_and_changes_the_patch(name):
    member = families.DISTURBANCES[name]
    image = patches(1)[0][0]
    amounts = [member.draw(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert amounts[0] == amounts[1] != amounts[2]
    changed = member.apply(image, amounts[2])
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    assert (changed != image).any()
    assert member.unit
    assert member.meaning


@members("adapters")
def test_an_adapter_explains_each_of_its_options(name):
    adapter = families.ADAPTERS[name]
    names = [option for option in inspect.signature(adapter).parameters if option != "out"]
    assert len(names) < len(inspect.signature(adapter).parameters)
    result = CliRunner().invoke(app, ["adapt", name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    first = inspect.getdoc(adapter).partition("\n")[0]
    assert first in " ".join(result.output.replace("│", " ").split())
    from conceptkit.cli.adapt import parameter_texts

    assert set(parameter_texts(inspect.getdoc(adapter))) == set(names)


@members("poolings")
def test_a_pooling_gives_one_row_per_image_in_new_memory(name):
    pool = families.POOLINGS[name]
    generator = torch.Generator().manual_seed(0)
    done = 0
    for x, view in (
        (torch.randn(3, 5, 4, 4, generator=generator), View(channels=1)),
        (torch.randn(3, 7, 5, generator=generator), View(channels=2, prefix=2, has_class=True)),
    ):
        try:
            rows = pool(x, view)
        except InputError:
            continue
        done += 1
        assert rows.ndim == 2
        assert len(rows) == 3
        assert rows.data_ptr() != x.data_ptr()
        torch.testing.assert_close(pool(x[1:2], view), rows[1:2])
    assert done


@members("encoders")
def test_an_encoder_states_how_its_authors_use_it(name):
    one = families.ENCODERS[name]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", one.repository)
    assert one.licence
    assert one.source
    assert 0.1 <= one.mpp <= 2
    assert one.width > 0 < one.size
    assert all(0 < value < 1 for value in (*one.mean, *one.std))
    if one.package:  # timm cannot open it, and the sentence says what can
        with pytest.raises(InputError, match=rf"not a timm network, it needs the package {one.package}; .* --features"):
            open_backbone(name)
    else:
        assert one.pool in families.POOLINGS
        json.dumps(dict(one.arguments))  # checkpoints state them


@members("attributions")
def test_an_attribution_of_a_linear_head_is_its_weights(name):
    torch.manual_seed(0)
    layer, head = nn.Conv2d(3, 2, 3), nn.Linear(2 * 36, 1)
    images = torch.randn(4, 3, 8, 8)
    found = families.ATTRIBUTIONS[name](lambda x: head(layer(x).flatten(1))[:, 0], layer, images)
    torch.testing.assert_close(found.detach(), head.weight.view(1, 2, 6, 6).expand(4, 2, 6, 6).detach())


COUNT = Task(name="count", kind="continuous", mean=0.0, deviation=1.0)
CENTER = Task(name="center", kind="categorical", classes=("A", "B", "C"), adversarial=True)


@members("weightings")
@pytest.mark.parametrize("task", [COUNT, CENTER], ids=["continuous", "categorical"])
def test_a_weighting_starts_with_a_finite_weight(name, task):
    make = families.WEIGHTINGS[name]
    term = make(task, 0.5 if name == "fixed" else None)
    loss = torch.tensor(2.0, requires_grad=True)
    total = term(loss)
    assert total.shape == ()
    total.backward()
    assert loss.grad is not None
    assert loss.grad > 0
    assert math.isfinite(term.weight())


def test_every_aggregation_of_gradients_is_a_weighting():
    assert {n for n in BUILT_IN["weightings"] if n.startswith("jd-")} == set(AGGREGATORS)


@members("discouraging")
@pytest.mark.parametrize("task", [COUNT, CENTER], ids=["continuous", "categorical"])
def test_a_method_of_discouraging_presses_on_what_is_read(name, task):
    method = families.DISCOURAGING[name]
    assert (method.pressure is not None) + method.reverses + method.erases == 1
    if method.pressure is None:
        return
    torch.manual_seed(0)
    head = nn.Linear(5, 3 if task is CENTER else 1)
    read = torch.randn(24, 5, requires_grad=True)
    target = torch.arange(24) % 3 if task is CENTER else torch.randn(24)
    earlier = [[]] if method.memory else []
    scalar = method.pressure(task, read, head(read), target, None, *earlier)
    assert scalar.shape == ()
    scalar.backward()
    assert read.grad is not None
    assert read.grad.isfinite().all()
    assert read.grad.abs().sum() > 0


@members("arms")
def test_an_arm_is_a_network_of_the_conditions_or_lacks_something(name):
    kind = families.ARMS[name]
    rows = {"train": np.arange(8), "val": np.arange(8, 12)}
    values = {"count": np.arange(12.0), "center": np.array(list("ABC") * 4)}
    main = Task(name=MAIN, kind="categorical", classes=("normal", "tumor"))
    more = {"through": (dataclasses.replace(COUNT, through=True),), "residual": 1.0}
    given = Conditions((main, COUNT, CENTER), 1, TrainingOptions(), 3, values.__getitem__, rows, 12, **more)
    assert not kind.missing(given)
    arm = kind.make(given)
    assert (arm.name, arm.seed, dataclasses.replace(arm.tasks[0], residual=False)) == (name, 3, main)
    assert {column.shape for column in arm.columns.values()} <= {(12,)}
    assert set(arm.columns) <= {task.name for task in arm.tasks}


@members("schedules")
def test_a_schedule_rises_to_one(name):
    schedule = families.SCHEDULES[name]
    strengths = [schedule(p) for p in np.linspace(0, 1, 21)]
    assert strengths[-1] == 1
    assert all(0 <= a <= b <= 1 for a, b in itertools.pairwise(strengths))


@members("optimizers")
def test_an_optimizer_lowers_a_loss_and_decays_its_first_group_only(name):
    decayed, free, goal = (nn.Parameter(torch.ones(3)) for _ in range(3))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [free, goal], "weight_decay": 0.0}]
    optimizer = families.OPTIMIZERS[name](groups, TrainingOptions(lr=1e-2), fused=False)
    for _ in range(5):
        optimizer.zero_grad()
        (((goal - 3) ** 2).sum() + 0.0 * (decayed + free).sum()).backward()
        optimizer.step()
    assert (goal > 1).all()
    assert (decayed < 1).all()
    assert (free == 1).all()


@members("recipes")
def test_a_recipe_gives_options_of_training(name):
    options = families.RECIPES[name](["center"])
    chosen = TrainingOptions(**options)  # in the allowed ranges
    assert {name: getattr(chosen, name) for name in options} == options


@members("probes")
@pytest.mark.parametrize("classes", [False, True])
def test_a_probe_reads_what_is_there(name, classes):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 3))
    y = (X[:, 0] > 0).astype(np.intp) if classes else X[:, 0] + 0.1 * rng.normal(size=240)
    groups = np.arange(240) // 8
    predicted = families.PROBES[name](X[:160], y[:160], groups[:160], classes).predict(X[160:])
    assert predicted.shape == (80,)
    if classes:
        assert (predicted == y[160:]).mean() > 0.8
    else:
        assert 1 - np.var(predicted - y[160:]) / np.var(y[160:]) > 0.5


# The package of tests/plugin through the command line


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run a command line in an empty folder, and return its result."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    return run


def test_an_adapter_of_another_package_is_a_subcommand_of_the_program(tmp_path):
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH", "")]))
    arguments = ("adapt", "listing", "list.txt", "--out", "t.csv", "--skip", "a.png", "--mpp", "1")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    subprocess.run(
        [sys.executable, "-m", "conceptkit", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    assert pd.read_csv(tmp_path / "t.csv")["image"].tolist() == ["b.png"]


def test_a_measure_and_a_nucleus_method_of_another_package(tmp_path, command):
    pixels = np.full((64, 64, 3), 200, dtype=np.uint8)
    pixels[4:10, 4:10] = pixels[20:26, 40:46] = 20
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "images.csv").write_text("image,patient\na.png,p\n")
    command(
        *("measure", "images.csv", "--out", "t.csv", "--patch-size", 64, "--nuclei", "dark"),
        *("--measure", "redness,count"),
    )
    (row,) = pd.read_csv(tmp_path / "t.csv").to_dict("records")
    assert row["count"] == 2
    assert row["redness"] == pytest.approx(pixels[..., 0].mean())


def test_a_stain_method_of_another_package(tmp_path, shared_data, command):
    slide = shared_data / "wsi" / "cmu-1-small-region.svs"
    Image.fromarray(np.full((8, 8, 3), 120, dtype=np.uint8)).save(tmp_path / "reference.png")
    command(
        *("tile", slide, "--out", "t.csv", "--export", "png", "--stain", "brighten"),
        *("--stain-reference", "reference.png"),
    )
    table = pd.read_csv(tmp_path / "t.csv")
    tiles = [np.asarray(Image.open(tmp_path / path)) for path in table["image"]]
    assert abs(np.mean(tiles) - 120) < 5


def test_an_adapter_of_another_package_is_a_subcommand(tmp_path, command):
    (tmp_path / "list.txt").write_text("a.png\nb.png\nc.png\n")
    arguments = ("adapt", "listing", "list.txt", "--out", "t.csv", "--skip", "a.png", "--skip", "c.png")
    done = command(*arguments, "--mpp", 0.5)
    assert "A note." in done.stdout
    assert pd.read_csv(tmp_path / "t.csv").to_dict("records") == [
        {"patch_id": "b.png", "image": "b.png", "mpp": 0.5, "center": "here"}
    ]
    assert "--mpp" in command(*arguments, code=2).stderr
    assert "did you mean 'listing'" in command("adapt", "listin", code=2).stderr
    assert "Center of all images." in " ".join(command("adapt", "listing", "-h").stdout.split())


def test_a_pooling_of_another_package(study, tmp_path, command):
    done = ("--study", study, "--concept", "count", "--layer", "mixed2", "--permutations", 0)
    command("probe", *done, "--pool", "deviation", "--out", "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["settings"]["pool"] == "deviation"


def test_members_of_another_package_in_a_training(study, tmp_path, command):
    command(
        *("guide", "--study", study, "--encourage", "count", "--discourage", "center", "--recipe", "short"),
        *("--disturb", "darker", "--unfreeze", "none", "--out", "run"),
    )
    settings = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))["settings"]
    assert settings["recipe"] == "short"
    options = settings.get("options", settings)
    used = {name: options[name] for name in ("weighting", "method", "reversal", "optimizer")}
    assert used == {"weighting": "halved", "method": "spread", "reversal": "late", "optimizer": "rmsprop"}
    checkpoint = next(path.parent for path in sorted((tmp_path / "run" / "checkpoints").rglob("checkpoint.json")))
    command(
        *("audit", checkpoint, "--study", study, "--concept", "center", "--permutations", 0, "--layer", "mixed2"),
        *("--out", "audit"),
    )
    rows = json.loads((tmp_path / "audit" / "record.json").read_text(encoding="utf-8"))["rows"]
    assert {row["probe"] for row in rows} == {"linear", "mlp", "kernel", "nearest"}
    attribute = ("attribute", "--study", study, "--model", checkpoint, "--concept", "count", "--layer", "mixed2")
    fast = ("--permutations", 0, "--refits", 20, "--maps", 0)
    command(*attribute, "--method", "doubled", *fast, "--out", "attribute")
    refused = command(*attribute, "--pool", "deviation", *fast, code=2)
    assert "gradients can be pooled by gap" in refused.stderr
    record = json.loads((tmp_path / "attribute" / "record.json").read_text(encoding="utf-8"))
    assert record["settings"]["method"] == "doubled"
