"""Claims of a page: all hold for the runs that they were written from, and none whose record, rows or text changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from report_records import difference, guide_record, probe_row, saved, write_context, write_embeddings
from sklearn.metrics import r2_score, roc_auc_score

from conceptkit.errors import InputError
from conceptkit.records import ProbeRecord
from conceptkit.report.claims import verify_claims, write_claims
from conceptkit.report.comparing import comparison_parts
from conceptkit.report.projector import write_projector


def probe_run(folder: Path, *, noise: float = 2.0, seed: int = 0, layer: str = "mixed10") -> Path:
    """Write a probe whose score is that of the held-out predictions that it saved; the patches are always the same."""
    write_context(folder)
    with h5py.File(folder / "context.h5", "a") as file:
        count = file["concepts/count"][...]
        read = count + np.random.default_rng(seed).normal(0, noise, len(count))
        group = file.create_group("patches")
        group.create_dataset("patch_id", data=[f"p{i}" for i in range(len(count))], dtype=h5py.string_dtype())
        group.create_dataset("row", data=np.arange(0, len(count), 2))
        group.create_dataset("predicted/count", data=read).attrs["layer"] = layer
    known = np.isfinite(count)
    score = r2_score(count[known], read[known])
    rows = (probe_row(layer, score=score), probe_row("mixed0", score=0.3))
    return saved(ProbeRecord(study="breast", group="patient", rows=rows, settings={"seed": seed}), folder)


def guide_run_folder(folder: Path) -> Path:
    """Write a guide run whose difference of AUC is that of the predictions that it saved."""
    folder.mkdir(parents=True)
    write_embeddings(folder)
    with h5py.File(folder / "embeddings.h5") as file:
        y = np.array([v == b"tumor" for v in file["label"][...]])
        aucs = [roc_auc_score(y, file[f"predictions/probability/{run}-seed0"][...]) for run in ("baseline", "guided")]
    return saved(guide_record(differences=(difference("auc", aucs[1] - aucs[0]),)), folder)


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    folders = [probe_run(tmp_path / "probe"), guide_run_folder(tmp_path / "guide")]
    from conceptkit.records import load_record

    return write_claims([load_record(folder) for folder in folders], folders, tmp_path / "report.json")


def test_untouched_claims_hold_and_numbers_come_from_the_saved_predictions(claims: Path) -> None:
    checks = verify_claims(claims)
    assert [check.holds for check in checks] == [True, True, True]
    assert [check.how.split()[0] for check in checks] == ["computed", "as", "computed"]


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def _new_digests(claims: Path) -> None:
    """Hide a change of the run's files from the digests, as someone would who tampers with care."""
    from conceptkit.report.claims import _digests

    def renew(body: Any) -> None:
        for run in body["runs"]:
            run["files"] = _digests(claims.parent / run["folder"])

    _edit(claims, renew)


def _claim_number(claims: Path) -> None:
    _edit(claims, lambda body: body["claims"][0].update(value=0.99))


def _claim_text(claims: Path) -> None:
    _edit(claims, lambda body: body["claims"][0].update(text="mixed10 encodes everything."))


def _record_number(claims: Path) -> None:
    _edit(claims.parent / "probe" / "record.json", lambda body: body["rows"][0].update(score=0.99))
    _new_digests(claims)


def _record_and_claim(claims: Path) -> None:
    """Change the number in both: only the saved predictions tell."""
    _record_number(claims)
    from conceptkit.records import load_record
    from conceptkit.report.claims import claims_of

    now = claims_of(load_record(claims.parent / "probe"))[0]
    _edit(claims, lambda body: body["claims"][0].update(dataclasses.asdict(now)))


def _saved_rows(claims: Path) -> None:
    with h5py.File(claims.parent / "probe" / "context.h5", "a") as file:
        file["patches/predicted/count"][::7] += 1.0
    _new_digests(claims)


def _only_digest(claims: Path) -> None:
    with h5py.File(claims.parent / "probe" / "context.h5", "a") as file:
        file["concepts"].attrs["touched"] = 1


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_claim_number, "the report has 0.99"),
        (_claim_text, "the record says"),
        (_record_number, "the record 0.99"),
        (_record_and_claim, "computed again from the saved predictions"),
        (_saved_rows, "computed again from the saved predictions"),
        (_only_digest, "context.h5 changed after the report was written"),
    ],
)
def test_a_changed_claim_record_or_row_does_not_hold(claims: Path, tamper: Callable[[Path], None], said: str) -> None:
    tamper(claims)
    checks = verify_claims(claims)
    assert not checks[0].holds
    assert said in checks[0].how
    assert checks[2].holds  # the other run is untouched


def test_what_is_no_file_of_claims_is_said(tmp_path: Path) -> None:
    for text in ("{}", '{"schema": "conceptkit/claims/1", "runs": [], "claims": [{}]}', "not json"):
        path = tmp_path / "report.json"
        path.write_text(text)
        with pytest.raises(InputError, match="holds no claims"):
            verify_claims(path)
    with pytest.raises(InputError, match="cannot be read"):
        verify_claims(tmp_path / "nowhere.json")


def test_two_probes_are_compared_setting_by_setting_and_patch_by_patch(tmp_path: Path) -> None:
    from conceptkit.records import load_record

    folders = [probe_run(tmp_path / "a", noise=3.0), probe_run(tmp_path / "b", noise=1.0, seed=1)]
    records = [load_record(folder) for folder in folders]
    settings, matrix, paired = (part.table for part in comparison_parts(records, folders, ["a", "b"]))
    assert settings is not None
    assert settings.frame.to_numpy().tolist() == [["seed", "0", "1"]]
    assert matrix is not None
    scores = [record.rows[0].score for record in records]
    assert matrix.frame[["a", "b"]].iloc[0].tolist() == pytest.approx(scores)
    assert paired is not None
    [row] = paired.frame.to_dict("records")
    assert row["difference"] == pytest.approx(scores[1] - scores[0])
    assert (row["run"], row["against"], row["verdict"]) == ("b", "a", "established")
    # the interval is a plain jackknife over patients
    with h5py.File(folders[0] / "context.h5") as one, h5py.File(folders[1] / "context.h5") as other:
        y, group = one["concepts/count"][...], one["rows/group"].asstr()[...]
        reads = [file["patches/predicted/count"][...] for file in (one, other)]
    kept = [np.isfinite(y) & (group != name) for name in np.unique(group)]
    deleted = np.array([r2_score(y[k], reads[1][k]) - r2_score(y[k], reads[0][k]) for k in kept])
    error = np.sqrt((len(deleted) - 1) * deleted.var())
    from scipy.stats import t

    assert row["difference high"] - row["difference"] == pytest.approx(
        t.ppf(0.975, len(deleted) - 1) * error, rel=0.02
    )  # the effective number of patients is a little below 12
    assert not comparison_parts([records[0]], folders[:1], ["a"])


def test_two_trainings_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    from conceptkit.records import load_record

    folders = [guide_run_folder(tmp_path / name) for name in ("a", "b")]
    with h5py.File(folders[1] / "embeddings.h5", "a") as file:
        file["predictions/probability/guided-seed0"][...] = file["predictions/probability/baseline-seed0"][...]
    records = [load_record(folder) for folder in folders]
    tables = {part.title: part.table for part in comparison_parts(records, folders, ["a", "b"])}
    paired = tables["Paired differences between runs"]
    assert paired is not None
    rows = {row["network"]: row["difference"] for row in paired.frame.to_dict("records")}
    assert rows["baseline"] == 0
    assert rows["guided"] == pytest.approx(-records[0].differences[0].mean)
    assert tables["What differs in the settings"].frame["a"].tolist() == ["the same"]


def test_the_projector_gets_a_row_and_a_picture_for_each_patch(tmp_path: Path) -> None:
    from PIL import Image

    folder = guide_run_folder(tmp_path / "run")
    write_projector({"Guide": folder}, tmp_path / "projector")
    written = {path.name: path for path in (tmp_path / "projector").iterdir()}
    config = written["projector_config.pbtxt"].read_text()
    assert config.count("embeddings {") == 4
    for name in (line.split('"')[1] for line in config.splitlines() if "path" in line):
        assert name in written
    metadata = written["Guide-metadata.tsv"].read_text().splitlines()
    tensor = np.loadtxt(next(path for name, path in written.items() if "guided-seed0" in name))
    assert (len(metadata), len(tensor)) == (121, 120)
    with h5py.File(folder / "embeddings.h5") as file:
        image = file["thumbnails"][11]
    sprite = np.asarray(Image.open(written["Guide-sprite.png"]))
    assert sprite.shape == (11 * 48, 11 * 48, 3)
    np.testing.assert_array_equal(sprite[48:96, :48], image)
    with pytest.raises(InputError, match="saved features"):
        write_projector({"Probe": probe_run(tmp_path / "probe")}, tmp_path / "none")
