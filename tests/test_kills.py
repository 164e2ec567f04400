"""Processes killed before each file appears: what they leave is never read as whole, and the next run is the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small_study import write_study

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.models.checkpoints import is_checkpoint, load_checkpoint

pytestmark = pytest.mark.long

CHILD = """
import json, os, signal, sys
import conceptkit as ck
settings, study, out, at = json.loads(sys.argv[1])
seen, replace = [], os.replace
def counted(*where, **how):
    seen.append(where)
    if len(seen) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(*where, **how)
os.replace = counted
command = ck.from_settings(settings)
command.run(study, **({} if out is None else {"out": out}))
print(len(seen))
"""

GUIDE = {
    "command": "guide",
    "features": "f.parquet",
    "select": "leave-one-center-out",
    "arms": ["balanced", "guided"],
    "epochs": 2,
    "warmup": 1,
    "trunk": [8],
}
ROBUSTNESS = {"command": "robustness", "features": "f.parquet", "label": "label", "group": "patient", "repeats": 0}
SPLITS = {"command": "splits", "make": "train=0.5,val=0.5", "overwrite": True, "column": "part"}


@pytest.fixture(scope="module")
def place(table, tmp_path_factory):
    """A study of four centers, with features that hold the label, the count and the center."""
    folder = tmp_path_factory.mktemp("kills")
    rng = np.random.default_rng(0)
    center = pd.get_dummies(table.center).to_numpy(float)
    X = np.column_stack([table.label == "tumor", table["count"] / 10, center, rng.normal(size=(len(table), 8))])
    X += 0.3 * rng.normal(size=X.shape)
    names = [f"f{k}" for k in range(X.shape[1])]
    pd.DataFrame(X, columns=names).assign(patch_id=table.patch_id).to_parquet(folder / "f.parquet")
    write_study(folder, table.drop(columns=["h5", "key", "row"]))
    text = (folder / "conceptkit.toml").read_text().replace('model = "mini_inception"\nweights = "bundled"\n', "")
    (folder / "conceptkit.toml").write_text(text)
    return folder


def run(settings, place, out, at=0):
    """Run a command in a process that is killed before its file number ``at`` appears; return how it ended."""
    given = json.dumps([settings, str(place), None if out is None else str(out), at])
    return subprocess.run([sys.executable, "-c", CHILD, given], capture_output=True, text=True, cwd=place, check=False)


def numbers(record):
    """What a record measured."""
    if isinstance(record, ck.RobustnessRecord):
        return [(row.index, row.value, row.low, row.high) for row in record.rows], record.probes
    return record.selection, [(one.name, one.metrics, one.concepts) for one in record.runs]


@pytest.mark.parametrize("settings", [ROBUSTNESS, GUIDE], ids=["robustness", "guide --select"])
def test_a_killed_run_is_no_record_and_the_next_one_is_the_same(settings, place, tmp_path):
    settings = {**settings, "features": str(place / "f.parquet")}
    plain = run(settings, place, tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    wanted, files = numbers(ck.load_record(tmp_path / "plain")), int(plain.stdout.split()[-1])
    assert files >= 1
    for at in sorted({1, (files + 1) // 2, files}):
        out = tmp_path / str(at)
        assert run(settings, place, out, at).returncode == -signal.SIGKILL
        with pytest.raises(InputError):
            ck.load_record(out)
        for left in filter(is_checkpoint, out.glob("checkpoints/*")):
            load_checkpoint(left)
        again = run(settings, place, out)
        assert again.returncode == 0, again.stderr
        assert repr(numbers(ck.load_record(out))) == repr(wanted)
        assert not list(out.rglob("*.new"))


def test_a_killed_split_leaves_the_old_table_or_none(place, tmp_path):
    out = tmp_path / "new.csv"
    settings = {**SPLITS, "out": str(out)}
    assert run(settings, place, None, 1).returncode == -signal.SIGKILL
    assert not out.exists()
    assert run(settings, place, None).returncode == 0
    whole = out.read_bytes()
    assert run({**settings, "make": "train=0.9,val=0.1"}, place, None, 1).returncode == -signal.SIGKILL
    assert out.read_bytes() == whole
    assert run(settings, place, None).returncode == 0
    assert out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]
