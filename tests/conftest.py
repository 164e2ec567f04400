"""What all tests share: a cache folder of their own, the embedded study, and the real data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, before NumPy and torch count the processors
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from qupath_files import write_place
from report_records import flat_projections
from small_study import small_table, write_study

import conceptkit as ck
from conceptkit.commands import probe as probing
from conceptkit.report import embedding, umap_parts
from conceptkit.synthetic import shortcut

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"

# Derandomised, so that a failure of today is one of tomorrow; without a deadline, as the machine may be busy.
settings.register_profile("conceptkit", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("conceptkit")


HEAVY = ("audit", "forms", "guide_options", "families", "grids", "training_processes", "report", "extracting")
"""Test files of 30 to 60 s of processor time, the longest first"""


def pytest_collection_modifyitems(items):
    """Start the longest files first: one that begins last would leave the other processors idle."""
    ranks = {f"test_{name}": rank for rank, name in enumerate(HEAVY)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keep the user's cache folder out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONCEPTKIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def embedded(cache, tmp_path_factory):
    """``embedded:null``, generated once for all processes: it takes longer than most files' tests."""
    base = tmp_path_factory.getbasetemp()
    made = ck.embedded_study("null", cache=base.parent if "PYTEST_XDIST_WORKER" in os.environ else base).table.parent
    if not (cache / made.name).exists():
        (cache / made.name).symlink_to(made)
    return ck.embedded_study("null")


@pytest.fixture
def few_patients(monkeypatch, tmp_path):
    """The default study with a patient of each center and split, so that it is generated in no time."""
    monkeypatch.setenv("CONCEPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shortcut, "PLAN", {s: dict.fromkeys(centers, 1) for s, centers in shortcut.PLAN.items()})


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data (../shared/data) is not beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def one_random_network():
    """Read one random network instead of three: each costs as much as the network itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "RANDOM_NETWORKS", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_layout():
    """Take two columns for a layout: UMAP has tests of its own, and compiling it takes as long as most files' tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(umap_parts, "project", flat_projections)
        yield


@pytest.fixture(scope="module")
def real_layout():
    """Lay out by UMAP after all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(umap_parts, "project", embedding.project)
        yield


@pytest.fixture(scope="module")
def table(embedded):
    """A small part of the embedded study's table."""
    return small_table(embedded)


@pytest.fixture(scope="module")
def study(tmp_path_factory, table):
    """Its study file, in a folder of its own."""
    return write_study(tmp_path_factory.mktemp("small"), table)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a slide, a patch table of twelve tiles, and nuclei in two of them."""
    return write_place(tmp_path_factory.mktemp("qupath"))
