"""The report: what its figures show, what its page escapes, and that it needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from report_records import (
    NASTY,
    Read,
    guide_record,
    guide_run,
    probe_record,
    probe_row,
    saved,
    write_context,
    write_embeddings,
)

from conceptkit.errors import InputError
from conceptkit.records import GuideRun, ProbeRecord
from conceptkit.report import drawing as drawing_of
from conceptkit.report import (
    figures,
    umap_figures,
)
from conceptkit.report.embedding import _turned_onto, nearest, project, read_embeddings, squared_distances
from conceptkit.report.page import write_page


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory, real_layout: None) -> Path:
    """The page of a probe and a guide run of three seeds, every name of which tries to be a script."""
    folder = tmp_path_factory.mktemp("report")
    nasty = {"study": NASTY, "group": NASTY, "synthetic": True, "notes": (NASTY,), "settings": {NASTY: [NASTY]}}
    probe = saved(probe_record(**nasty), folder / "probe")
    guide = saved(guide_record(seeds=(0, 1, 2), count=NASTY, **nasty), folder / "guide")
    write_embeddings(guide)
    write_context(guide)
    return write_page([probe, guide], folder / "report.html")


# --- layouts -----------------------------------------------------------------------------------------------------


def test_neighbours_by_matrix_product_are_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 7)) + 1.0
    X[5] = X[9]  # a duplicate must not push a row off its own first place
    brute = np.sqrt(((X[:, None] - X[None]) ** 2).sum(axis=2))
    squared = squared_distances(X)
    np.testing.assert_allclose(np.sqrt(squared), brute, atol=1e-6)
    indices, distances = nearest(squared, 8)
    assert (indices[:, 0] == np.arange(60)).all()
    np.testing.assert_allclose(distances, np.sort(brute, axis=1)[:, :8], atol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_turning_one_picture_onto_another_keeps_its_distances() -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=(40, 2))
    turn = np.array([[0.0, 1.0], [1.0, 0.0]])  # a mirror as well as a turn
    xy = target @ turn + 5
    turned = _turned_onto(xy, target)
    np.testing.assert_allclose(turned, target, atol=1e-9)
    noisy = xy + rng.normal(size=xy.shape)
    np.testing.assert_allclose(squared_distances(_turned_onto(noisy, target)), squared_distances(noisy), atol=1e-6)


def test_too_few_rows_fall_back_to_principal_components_with_a_note() -> None:
    X = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    (projection,) = project({"baseline": X})
    assert projection.method == "PCA"
    assert "too few" in projection.note
    centred = X - X.mean(axis=0)
    left, values, _ = np.linalg.svd(centred)
    np.testing.assert_allclose(np.abs(projection.xy), np.abs(left[:, :2] * values[:2]), atol=1e-4)
    with pytest.raises(InputError, match="finite"):
        project({"baseline": np.full((20, 3), np.nan, np.float32)})


def test_rows_are_drawn_by_seed(tmp_path: Path) -> None:
    write_embeddings(tmp_path, n=50)
    whole, some = read_embeddings(tmp_path), read_embeddings(tmp_path, rows_most=20, seed=1)
    again, other = (read_embeddings(tmp_path, rows_most=20, seed=s) for s in (1, 2))
    assert whole is not None
    assert some is not None
    assert again is not None
    assert other is not None
    assert len(some.patch_ids) == 20
    assert some.n_saved == 50
    assert (some.patch_ids == again.patch_ids).all()
    assert (some.patch_ids != other.patch_ids).any()
    at = [whole.patch_ids.tolist().index(i) for i in some.patch_ids]
    np.testing.assert_array_equal(some.features["guided-seed0"], whole.features["guided-seed0"][at])
    np.testing.assert_array_equal(some.concepts["count"], whole.concepts["count"][at])
    assert read_embeddings(tmp_path / "nowhere") is None


def _other_schema(file: h5py.File) -> None:
    file.attrs["schema"] = "conceptkit/embeddings/9"


def _no_labels(file: h5py.File) -> None:
    del file["label"]


def _short_labels(file: h5py.File) -> None:
    del file["label"]
    file.create_dataset("label", data=["a"], dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("harm", "said"), [(_other_schema, "has schema"), (_no_labels, "label"), (_short_labels, "holds 1 rows of /label")]
)
def test_a_broken_features_file_is_told_in_one_sentence(tmp_path: Path, harm: Any, said: str) -> None:
    path = write_embeddings(tmp_path)
    with h5py.File(path, "a") as file:
        harm(file)
    with pytest.raises(InputError, match=said) as caught:
        read_embeddings(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_features_file_is_told(tmp_path: Path) -> None:
    path = write_embeddings(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read as saved features"):
        read_embeddings(tmp_path)


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["$\\frac{$ and _x", "核の数", "a" * 300, "_hidden", ""])
def test_any_name_can_be_drawn(name: str) -> None:
    rows = tuple(probe_row(f"{name}{i}", name, score=0.3) for i in range(30))
    drawings = figures.probe_figures(ProbeRecord(study="s", rows=rows))
    drawings += figures.training_figures(guide_record(count=name))
    for drawing in drawings:
        assert drawing_of.to_data_uri(drawing.figure).startswith("data:image/svg+xml;base64,")


def test_a_figure_is_the_same_twice_and_says_its_numbers() -> None:
    first, again = (figures.probe_figures(probe_record())[0] for _ in range(2))
    assert drawing_of.to_bytes(first.figure) == drawing_of.to_bytes(again.figure)
    assert re.search(r"mixed10 0\.\d\d \[0\.\d\d, 0\.\d\d\] established, random network 0\.\d\d", first.alt)
    assert drawing_of.to_bytes(first.figure, kind="pdf").startswith(b"%PDF")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["mixed0", "mixed10"], ("", ["mixed0", "mixed10"], "")),
        (["a.1.x", "a.2.x"], ("a.", ["1", "2"], ".x")),
        (["a.1", "a.1.x"], ("a.", ["1", "1.x"], "")),
        (["a", "a.b"], ("", ["a", "a.b"], "")),
        (["a.b", "a.b"], ("a.", ["b", "b"], "")),
        (["a.b"], ("", ["a.b"], "")),
    ],
)
def test_long_layer_names_keep_what_tells_them_apart(layers: list[str], expected: tuple[str, list[str], str]) -> None:
    assert figures._split_names(layers) == expected


def test_rare_classes_are_drawn_together() -> None:
    values = [f"C{i:02d}" for i in range(20) for _ in range(30 - i)] + [""]
    classes = umap_figures.categories(values)
    assert len(classes) == umap_figures.CATEGORIES_MOST
    assert classes[-1][0] == "7 others"
    assert sum(len(rows) for _, rows in classes) == len(values)
    looks = {(drawing_of.COLOURS[k % 8], umap_figures.marker(k)) for k in range(umap_figures.CATEGORIES_MOST)}
    assert len(looks) == umap_figures.CATEGORIES_MOST
    assert [name for name, _ in umap_figures.categories(["C10", "C9", "2", "C", "10"])] == ["2", "10", "C", "C9", "C10"]


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_holds_all_and_asks_for_nothing(whole_page: Path) -> None:
    read = Read(whole_page.read_text(encoding="utf-8"))
    assert all(a.startswith(("data:", "#")) for a in read.addresses)
    assert not {"iframe", "object", "embed", "form"} & set(read.tags)
    assert read.alts
    assert all(read.alts)
    for said in (
        "Synthetic tissue, generated: not real histology.",
        "mixed10 encodes count: held-out R² = ",
        "center is still decodable from the guided network",
        "Encouraged concepts, before and after",
        "Discouraged concepts: what is left",
        "Paired differences",
        "Training",
        "Trustworthiness 0.",
        "Provenance",
    ):
        assert said in read.text, said
    assert not re.search(r"\b(nan|None)\b", read.text)


def test_names_never_become_markup(whole_page: Path) -> None:
    text = whole_page.read_text(encoding="utf-8")
    read = Read(text)
    assert NASTY not in text
    assert NASTY in read.text  # and yet they are shown as they are
    plain = saved(probe_record(("count",)), whole_page.parent / "plain")
    without = Read(write_page([plain], whole_page.parent / "plain.html").read_text(encoding="utf-8"))
    # the one script of the head; all others hold data
    for one in (read, without):
        assert one.tags.count("script") == 1 + len(one.data)
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "unsafe" not in policy[1]  # neither eval nor a style or script that is not ours
    for part in ("default-src &#39;none&#39;", "require-trusted-types-for &#39;script&#39;"):
        assert part in policy[1]


def test_a_layout_leaves_torchs_threads_as_they_were() -> None:
    code = """
import numpy as np, torch
from conceptkit.report.embedding import lay_out, nearest, squared_distances
X = np.random.default_rng(0).normal(size=(200, 5))
before = torch.get_num_threads()
lay_out(X.astype(np.float32), *nearest(squared_distances(X), 16), None, 0)
print(before, torch.get_num_threads())
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["1", "1"]  # with two processors numba makes it 2


def test_the_umap_says_how_far_it_can_be_trusted(whole_page: Path) -> None:
    embeddings = read_embeddings(whole_page.parent / "guide", runs=["baseline-seed0", "guided-seed0"])
    assert embeddings is not None
    first = project(embeddings.features, seed=0)
    again = project(embeddings.features, seed=0)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.xy, two.xy)
        assert one.trustworthiness > 0.8
        assert one.preservation > 0.3
    # spaces without room to spread, as dead or one-dimensional trunks leave them, are still laid out
    flat = {"dead": np.zeros((60, 3), np.float32), "line": np.arange(60, dtype=np.float32)[:, None]}
    dead, line = project(flat, seed=0)
    assert "same features" in dead.note
    assert np.isfinite(line.xy).all()
    # the control: a picture of the same rows shuffled keeps nothing
    from sklearn.manifold import trustworthiness

    X = embeddings.features["baseline-seed0"]
    assert first[0].trustworthiness == pytest.approx(trustworthiness(X, first[0].xy, n_neighbors=15), abs=1e-6)
    assert trustworthiness(X, np.random.default_rng(0).permutation(first[0].xy), n_neighbors=15) < 0.6
    # laid onto the first, the second picture lies nearer to it than its mirror image does
    mirrored = first[1].xy * [-1, 1]
    assert ((first[1].xy - first[0].xy) ** 2).sum() < ((mirrored - first[0].xy) ** 2).sum()


def test_missing_pieces_are_said_not_hidden(tmp_path: Path) -> None:
    runs = tuple(GuideRun(**{**vars(guide_run(n, 0)), "history": (), "leakage": {}}) for n in ("baseline", "guided"))
    folder = saved(guide_record(runs=runs, differences=()), tmp_path / "run")
    text = Read(write_page([folder], tmp_path / "out.html").read_text(encoding="utf-8")).text
    assert "No training history was saved." in text
    assert "saved no embeddings.h5" in text
    assert "What is left of center in the guided network was not measured." in text
    assert "No paired difference between runs was recorded." in text
    assert "Synthetic" not in text
    write_embeddings(folder, ("other-seed0",))
    assert "holds no features of these runs" in write_page([folder], tmp_path / "out.html").read_text(encoding="utf-8")
    nothing = saved(guide_record(runs=(), differences=()), tmp_path / "nothing")
    assert "Not recorded." in write_page([nothing], tmp_path / "out.html").read_text(encoding="utf-8")
    no_rows = saved(ProbeRecord(study="s", rows=()), tmp_path / "no_rows")
    assert "This record holds no result." in write_page([no_rows], tmp_path / "out.html").read_text(encoding="utf-8")


def test_runs_of_one_kind_are_split_names_by_folder(tmp_path: Path) -> None:
    folders = [saved(probe_record(("count",), synthetic=i == 1), tmp_path / f"layer{i}") for i in range(2)]
    text = Read(write_page(folders, tmp_path / "out.html").read_text(encoding="utf-8")).text
    assert "Probe: layer0" in text
    assert "Probe: layer1" in text
    assert "not real histology. This holds for: Probe: layer1." in text


def test_a_mistake_leaves_the_older_page_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    out.write_text("older")
    with pytest.raises(InputError, match="runs: at least one"):
        write_page([], out)
    with pytest.raises(InputError, match=r"record\.json"):
        write_page([tmp_path / "nowhere"], out)
    with pytest.raises(InputError, match="out: must be a file"):
        write_page([saved(probe_record(), tmp_path / "run")], tmp_path)
    assert out.read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "run"]


@pytest.mark.long
def test_four_thousand_patches_fit_and_are_stored_once(tmp_path: Path) -> None:
    folder = saved(guide_record(), tmp_path / "run")
    write_embeddings(folder, n=4100, centers=12)
    out = write_page([folder], tmp_path / "out.html")
    text = out.read_text(encoding="utf-8")
    assert out.stat().st_size < 15e6
    [patches] = [one for one in Read(text).data if "images" in one]
    assert len(patches["images"]) == len(patches["ids"]) == 4000
    assert all(len(space["xy"]) == 8000 for space in patches["spaces"])
    assert text.count("backbone, pooled, colour: label") == 1
    assert "4000 of the 4100 held-out patches" in text


def test_torch_is_never_loaded(tmp_path: Path) -> None:
    folder = saved(guide_record(), tmp_path / "run")
    write_embeddings(folder, n=12)
    code = (
        "import sys; from pathlib import Path; from conceptkit.report.page import write_page;"
        "write_page([Path(sys.argv[1])], Path(sys.argv[2]));"
        "assert not {'torch', 'timm', 'openslide'} & set(sys.modules)"
    )
    root = Path(__file__).parents[1]
    run = [sys.executable, "-c", code, str(folder), str(tmp_path / "out.html")]
    subprocess.run(run, check=True, cwd=root, timeout=60)
