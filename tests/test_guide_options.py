"""What a run of guide can be asked for beside its concepts: logs, search, made nuisances, odd rows, going on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_study import write_study
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.guide import bench as guide_bench
from conceptkit.guide import loop
from conceptkit.models.checkpoints import open_model
from conceptkit.records import load_record

OPTIONS = {"epochs": 3, "warmup": 1, "trunk": (8,), "unfreeze": ()}


def run(study, out, *, options=None, **how):
    return ck.run_guide(study, encourage=["count"], **{**OPTIONS, **(options or {})}, **how, out=out)


def weights(record, name="guided-seed0"):
    return load_file(record.folder / "checkpoints" / name / "weights.safetensors")


def marks(record, name="guided-seed0"):
    return json.loads((record.folder / "checkpoints" / name / "checkpoint.json").read_text(encoding="utf-8"))["marks"]


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def plain(study, tmp_path_factory):
    return run(study, tmp_path_factory.mktemp("options") / "run")


def test_a_killed_run_goes_on_and_ends_alike(study, plain, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    monkeypatch.setattr(loop, "EVERY", 0.0)
    trained = []

    def kill(stage, done, todo):
        if stage.startswith("training"):
            trained.append((stage, done))
        if stage == "training guided, seed 0" and done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(study, tmp_path / "run", progress=kill)
    assert sorted((tmp_path / "run" / "unfinished").glob("*.ckpt"))
    trained.clear()
    resumed = run(study, tmp_path / "run", progress=lambda stage, done, todo: trained.append((stage, done)))
    stages = [stage for stage, _ in trained if stage.startswith("training")]
    assert "training baseline, seed 0" not in stages  # it was finished
    assert stages.count("training guided, seed 0") == 2  # its first epoch was kept
    assert same(weights(resumed), weights(plain))
    assert resumed.to_dict()["differences"] == plain.to_dict()["differences"]
    assert not (tmp_path / "run" / "unfinished").exists()


def test_another_runs_state_is_not_gone_on_with(study, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 0.0)

    class KilledError(Exception):
        pass

    def kill(stage, done, todo):
        if stage == "reading guided, seed 0":
            raise KilledError

    with pytest.raises(KilledError):
        run(study, tmp_path / "run", options={"lr": 0.05}, progress=kill)
    other = run(study, tmp_path / "run")
    assert same(weights(other), weights(plain))


def test_logs_lie_in_the_run_folder(study, tmp_path):
    record = run(study, tmp_path / "run", log=["csv"])
    for name in ("baseline-seed0", "guided-seed0"):
        lines = (record.folder / "logs" / name / "csv" / "metrics.csv").read_text().splitlines()
        assert len(lines) == 4


def test_the_search_serves_all_networks_and_is_said(study, tmp_path):
    record = run(study, tmp_path / "run", search=3)
    tried = record.settings["search"]
    assert len(tried) == 3
    best = min(tried, key=lambda trial: trial["loss"])
    assert tuple(record.settings["trunk"]) == tuple(best["trunk"])
    assert record.settings["lr"] == best["lr"]
    assert any("are the best of 3 sets by the baseline's validation loss" in note for note in record.notes)
    checkpoint = record.folder / "checkpoints" / "guided-seed0"
    with pytest.raises(InputError, match=r"search: .* a checkpoint, which fixes the trunk"):
        ck.run_guide(study, model=str(checkpoint), discourage=["center"], search=2, out=tmp_path / "again")


def test_made_nuisances_are_concepts(study, plain, tmp_path):
    record = ck.run_guide(study, discourage=["made_blur"], disturb=["blur"], **OPTIONS, out=tmp_path / "run")
    assert record.discourage == ("made_blur",)
    assert record.runs[0].leakage["made_blur"]["linear"] is not None
    assert any("disturbed once" in note for note in record.notes)
    assert not same(weights(record, "baseline-seed0"), weights(plain, "baseline-seed0"))
    with pytest.raises(InputError, match="rotation"):
        ck.run_guide(study, disturb=["rotate"], **OPTIONS, out=tmp_path / "no")


def test_rows_without_a_label_train_the_concepts(study, table, plain, tmp_path):
    loose = table.copy()
    rows = loose.index[loose.split == "internal"][:10]
    loose.loc[rows, ["split", "label"]] = None
    loose.loc[rows, "patient"] = [f"new-{i}" for i in range(10)]
    record = run(write_study(tmp_path / "loose", loose), tmp_path / "run")
    assert any("10 rows without a split and a label train the concepts" in note for note in record.notes)
    without = loose.drop(index=rows)
    control = run(write_study(tmp_path / "without", without), tmp_path / "control")
    assert not same(weights(record), weights(control))


def test_transductive_training_is_said_and_sees_no_label(study, table, plain, tmp_path):
    record = run(study, tmp_path / "run", transductive=True)
    assert any(note.startswith("TRANSDUCTIVE") for note in record.notes)
    assert marks(record) == ["transductive"]
    assert record.settings["transductive"] is True
    assert not same(weights(record), weights(plain))
    turned = table.copy()
    outside = turned.split.isin(["internal", "external"])
    turned.loc[outside, "label"] = turned.loc[outside, "label"].map({"normal": "tumor", "tumor": "normal"})
    other = run(write_study(tmp_path / "turned", turned), tmp_path / "other", transductive=True)
    assert same(weights(record), weights(other))


def test_leakage_is_said(study, table, tmp_path):
    leaking = table.copy()
    leaking.loc[leaking.split == "external", "patient"] = leaking.patient[leaking.split == "train"].iloc[0]
    path = write_study(tmp_path / "leaking", leaking)
    with pytest.raises(InputError, match="--allow-leakage"):
        run(path, tmp_path / "no")
    record = run(path, tmp_path / "run", allow_leakage=True)
    assert any(note.startswith("LEAKAGE") for note in record.notes)
    assert marks(record) == ["allow_leakage"]


@pytest.fixture(scope="module")
def marked(study, tmp_path_factory):
    """A run whose concepts evaluation rows trained."""
    return run(study, tmp_path_factory.mktemp("marked") / "run", transductive=True)


def said_of(record):
    return [note.split(":")[0] for note in record.notes if note.startswith(("TRANSDUCTIVE", "LEAKAGE"))]


@pytest.mark.parametrize(("which", "said"), [("marked", ["TRANSDUCTIVE"]), ("plain", [])])
def test_what_a_checkpoint_is_marked_with_is_said_of_all_that_is_read_of_it(which, said, request, study, tmp_path):
    checkpoint = str(request.getfixturevalue(which).folder / "checkpoints" / "guided-seed0")
    probed = ck.run_probe(study, model=checkpoint, layers=["trunk"], permutations=0, out=tmp_path / "probe")
    assert said_of(probed) == said
    attributed = ck.Attribute(model=checkpoint, layers=["trunk"], refits=10, permutations=0, maps=0).run(
        study, out=tmp_path / "attribute"
    )
    assert said_of(attributed) == said
    command = ["audit", checkpoint, "--concept", "center", "--study", str(study), "--layer", "trunk"]
    result = CliRunner().invoke(app, [*command, "--permutations", "0", "--out", str(tmp_path / "audit")])
    assert result.exit_code == 0, result.output
    assert ("TRANSDUCTIVE" in result.output) == bool(said)
    assert said_of(load_record(tmp_path / "audit")) == said
    command = ["predict", checkpoint, "--table", str(study.parent / "patches.csv"), "--out", str(tmp_path / "p.csv")]
    result = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "p.json")])
    assert result.exit_code == 0, result.output
    assert ("TRANSDUCTIVE" in result.output) == bool(said)
    notes = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["notes"]
    assert [note.split(":")[0] for note in notes] == said
    # Training that goes on from a network keeps what it has seen; random weights have seen nothing.
    more = ck.run_guide(study, model=checkpoint, encourage=["area"], epochs=1, unfreeze=(), out=tmp_path / "more")
    assert said_of(more) == said
    assert bool(marks(more)) == bool(said)
    assert open_model(checkpoint, "random").marks == ()


def test_erasure_is_part_of_the_checkpoint(study, tmp_path):
    record = ck.run_guide(study, discourage=["center"], **{**OPTIONS, "method": "leace"}, out=tmp_path / "run")
    kept = weights(record)
    width = kept["erasure.matrix"].shape[0]
    assert np.linalg.matrix_rank(kept["erasure.matrix"], tol=1e-4) < width
    probed = ck.run_probe(
        study,
        model=str(record.folder / "checkpoints" / "guided-seed0"),
        layers=["trunk"],
        concepts=["center"],
        permutations=0,
        out=tmp_path / "probe",
    )
    assert probed.rows[0].layer == "trunk"
    again = ck.predict(record.folder / "checkpoints" / "guided-seed0", table=study.parent / "patches.csv")
    assert len(again)


def test_a_run_that_diverges_keeps_a_checkpoint_and_names_it(study, tmp_path, monkeypatch):
    known = guide_bench.train

    def spoiled(model, inputs, targets, rows, options, *, progress, **how):
        def poison(done, todo):
            if done == 2 and "count" in targets:
                targets["count"].fill_(1e30)

        return known(model, inputs, targets, rows, options, progress=poison, **how)

    monkeypatch.setattr(guide_bench, "train", spoiled)
    folder = tmp_path / "run" / "checkpoints" / "guided-seed0"
    with pytest.raises(
        InputError, match=r"the loss of count is not finite in epoch 3; .*, of epoch 2, is saved in "
    ) as e:
        run(study, tmp_path / "run")
    assert str(e.value).endswith(f"{folder}.")
    frame = ck.predict(folder, table=study.parent / "patches.csv")
    assert np.isfinite(frame["count_predicted"]).all()


def test_infinite_values_are_refused_where_they_train_or_validate(study, table, tmp_path):
    odd = table.copy()
    odd["count"] = odd["count"].astype(float)
    odd.loc[odd.index[odd.split == "val"][0], "count"] = np.inf
    with pytest.raises(InputError, match="count is infinite in 1 of the rows that train or validate"):
        run(write_study(tmp_path / "odd", odd), tmp_path / "run")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"precision": "64"}, "precision"),
        ({"precision": "16"}, "needs a GPU"),
        ({"devices": 0}, "devices"),
        ({"nodes": 2, "out": None}, "one run folder that all of them see"),
        ({"log": ["xml"]}, "log"),
        ({"search": -1}, "search"),
    ],
    ids=lambda v: str(v),
)
def test_mistakes_are_sentences(study, tmp_path, how, words):
    with pytest.raises(InputError, match=words):
        run(study, **{"out": tmp_path / "run", "device": "cpu", **how})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rank", "words"), [(None, "set NODE_RANK in the environment of each of the 2"), ("2", "from 0 to 1, got '2'")]
)
def test_a_machine_that_does_not_know_which_it_is_does_not_wait(study, tmp_path, monkeypatch, rank, words):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("NODE_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("NODE_RANK", rank)
    with pytest.raises(InputError, match=words):
        run(study, tmp_path / "run", nodes=2, device="cpu")


@pytest.mark.long
def test_of_two_machines_the_first_writes(study, tmp_path, cache):
    """Two commands as on two machines; each has a folder of its own, so that who has written what can be told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "conceptkit", "guide", "--study", str(study), "--discourage", "center"]
    command += ["--encourage", "count", "--unfreeze", "none", "--trunk", "8", "--epochs", "2", "--warmup", "1"]
    command += ["--device", "cpu", "--dropout", "0", "--nodes", "2", "--method", "confusion"]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / f"machine-{rank}")],
            env={**common, "NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [machine.communicate(timeout=600)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], said
    first, second = tmp_path / "machine-0", tmp_path / "machine-1"
    assert not [path for path in second.rglob("*") if path.is_file()]
    together = load_record(first)
    assert (first / "embeddings.h5").is_file()
    options = {**OPTIONS, "epochs": 2, "dropout": 0.0, "method": "confusion"}
    alone = ck.run_guide(study, **options, device="cpu", out=tmp_path / "alone")
    for one, two in zip(alone.runs, together.runs, strict=True):
        for ours, theirs in zip(one.history, two.history, strict=True):
            assert theirs == pytest.approx(ours, rel=1e-3)  # sums over two machines are rounded otherwise
    for name in ("baseline-seed0", "guided-seed0"):
        for key, value in weights(alone, name).items():
            np.testing.assert_allclose(weights(together, name)[key], value, rtol=1e-3, atol=1e-4)


def test_training_does_not_go_on_from_a_checkpoint_of_another_architecture(study, plain, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(plain.folder / "checkpoints" / "guided-seed0", folder)
    path = folder / "checkpoint.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**described, "architecture": "resnet10t"}), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"^checkpoint: .* cannot be opened \(.* is not in .* as it is described\)\.$"
    ) as e:
        ck.run_guide(study, model=str(folder), encourage=["area"], **OPTIONS, out=tmp_path / "run")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("unfreeze", "kept", "said"), [(("stem",), "exact", True), (("stem",), "off", False), ((), "exact", False)]
)
def test_that_nothing_could_be_cached_is_said(study, tmp_path, unfreeze, kept, said):
    options = {**OPTIONS, "epochs": 1, "unfreeze": unfreeze, "cache": kept}
    record = ck.run_guide(study, encourage=[], **options, out=tmp_path / "run")
    assert (guide_bench.NOTHING_CACHED in record.notes) == said


def test_a_head_that_a_checkpoint_has_is_not_moved(study, plain, tmp_path):
    checkpoint = str(plain.folder / "checkpoints" / "guided-seed0")
    with pytest.raises(InputError, match="the head of count in the checkpoint reads the end of the trunk, got mixed9"):
        ck.run_guide(study, model=checkpoint, encourage=["count@mixed9"], **OPTIONS, out=tmp_path / "run")
