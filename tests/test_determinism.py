"""The same seed gives the same bytes; another number of threads gives the same numbers up to rounding.

No record holds a time or a duration, and its paths are those that were given: nothing is left out of the comparison.
That a guided training is repeated byte by byte is tested beside the training whose record is at hand anyway.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import conceptkit as ck
from conceptkit.records import to_json

pytestmark = pytest.mark.long


def arrays():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    X = rng.normal(size=(20, 60))[groups] + rng.normal(size=(200, 60))
    concepts = {
        "count": X[:, :20].sum(1) + 3 * rng.normal(size=200),
        "kind": np.where(X[:, 0] > 0, "a", "b"),
    }
    return X, concepts, groups


def test_arrays_of_the_same_seed_give_the_same_bytes():
    X, concepts, groups = arrays()

    def text(seed):
        record = ck.probe_arrays(X, concepts, groups, permutations=19, n_resamples=100, random_state=seed)
        return to_json(record.to_dict())

    assert text(0) == text(0)
    assert text(0) != text(1).replace('"seed": 1', '"seed": 0')  # the control: the seed has a say


def test_a_study_that_is_probed_again_gives_the_same_bytes(study, tmp_path, monkeypatch):
    found = []
    for name in ("first", "second"):
        monkeypatch.setenv("CONCEPTKIT_CACHE", str(tmp_path / name / "cache"))  # nothing is taken over from the other
        asked = {"layers": ["mixed2"], "concepts": ["count", "center"], "split": "train", "folds": 2, "permutations": 9}
        ck.run_probe(study, **asked, out=tmp_path / name / "run")
        found.append((tmp_path / name / "run" / "record.json").read_bytes())
    assert found[0] == found[1]


THREADS = """
import json, sys
import numpy as np, torch
import conceptkit as ck
from conceptkit.commands import probe as probing
probing.RANDOM_NETWORKS = 1
rng = np.random.default_rng(0)
groups = np.repeat(np.arange(20), 10)
X = rng.normal(size=(20, 300))[groups] + rng.normal(size=(200, 300))
concepts = {"count": X[:, :20].sum(1) + 3 * rng.normal(size=200), "kind": np.where(X[:, 0] > 0, "a", "b")}
given = {"tall": X[:, :60], "wide": X}
arrays = ck.probe_arrays(given, concepts, groups, permutations=19, n_resamples=100)
pixels = ck.run_probe(sys.argv[1], layers=["mixed2"], concepts=["count"], permutations=0, out=sys.argv[2], device="cpu")
options = {"epochs": 2, "warmup": 1, "trunk": (8,)}
guided = ck.run_guide(sys.argv[1], **options, folds=2, device="cpu", out=sys.argv[3])
rows = [[dict(row) for row in record.rows] for record in (arrays, pixels)]
print(json.dumps([torch.get_num_threads(), *rows, guided.to_dict()["runs"]]))
"""


@pytest.fixture(scope="module")
def by_threads(study, tmp_path_factory):
    """What a process of one thread and one of two found: threads, rows of arrays, rows of a study, guided runs."""
    folder, told = tmp_path_factory.mktemp("threads"), []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "CONCEPTKIT_CACHE": str(folder / f"cache{threads}")}
        for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.pop(name, None)
        places = [str(folder / f"{what}{threads}") for what in ("probe", "guide")]
        command = [sys.executable, "-c", THREADS, str(study), *places]
        root = Path(__file__).parents[1]
        found = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
        told.append(json.loads(found.stdout))
    assert [threads for threads, *_ in told] == [1, 2]
    return told


def test_scores_of_a_probe_do_not_depend_on_threads(by_threads):
    scores = ("score", "score_low", "score_high", "score_in_sample", "score_patchwise", "alpha", "cosine", "auc", "icc")
    for part, within in ((1, 1e-10), (2, 1e-5)):
        for one, two in zip(by_threads[0][part], by_threads[1][part], strict=True):
            for name in scores:
                assert one[name] == (None if two[name] is None else pytest.approx(two[name], abs=within, rel=within)), (
                    name
                )
            assert one["p"] == (None if two["p"] is None else pytest.approx(two["p"], abs=0.05))
    assert len(by_threads[0][1]) == 4


def test_a_guided_training_does_not_depend_on_threads(by_threads):
    for one, two in zip(by_threads[0][3], by_threads[1][3], strict=True):
        assert (one["name"], one["seed"]) == (two["name"], two["seed"])
        for split, metrics in one["metrics"].items():
            assert metrics["auc"] == pytest.approx(two["metrics"][split]["auc"], abs=1e-3), split
            assert metrics["brier"] == pytest.approx(two["metrics"][split]["brier"], abs=1e-5), split
        for concept, scores in one["concepts"].items():
            assert scores == pytest.approx(two["concepts"][concept], abs=1e-5), concept
        for epoch, other in zip(one["history"], two["history"], strict=True):
            assert epoch == pytest.approx(other, abs=1e-5, rel=1e-5)
    assert len(by_threads[0][3]) == 3
