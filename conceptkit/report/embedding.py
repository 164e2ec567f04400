"""UMAP of saved features: read them, embed each run in two dimensions, and measure how faithful the picture is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from threadpoolctl import threadpool_limits

from conceptkit.errors import InputError
from conceptkit.records import EMBEDDINGS_FILE
from conceptkit.report.run_context import reading

SCHEMA = "conceptkit/embeddings/1"
"""Schema of the files that :func:`read_embeddings` reads."""

NEIGHBOURS = 15
"""Neighbours of a UMAP, and of the two numbers printed below it."""

EPOCHS = 700
"""Of the layout: with umap-learn's 500 the picture is a little less trustworthy; the time is won at the neighbours"""

ROWS_MOST = 4000
"""Maximum number of rows drawn; more would overlap and make the page large."""

Floats = NDArray[np.float64]
Texts = NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Saved features of held-out patches, and what is known of each patch."""

    patch_ids: Texts
    """(n,)"""
    labels: Texts
    """(n,) main label, as text."""
    splits: Texts
    """(n,)"""
    groups: Texts
    """(n,)"""
    concepts: Mapping[str, Floats | Texts]
    """Concept → (n,) numbers, NaN where missing, or texts for categorical concepts."""
    features: Mapping[str, NDArray[np.float32]]
    """Run (``name-seedN``) → (n, d), the trunk's end."""
    layers: Mapping[str, Mapping[str, NDArray[np.float32]]]
    """Layer → run → (n, d), of the runs that are to be drawn; empty for files of earlier versions."""
    thumbnails: NDArray[np.uint8] | None
    """(n, h, w, 3), or ``None`` when none were saved."""
    n_saved: int
    """Rows in the file, of which n were read."""
    positions: NDArray[np.intp] | None
    """(n,) where each row is among the saved predictions; ``None`` where the file does not say."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One run's space, laid out in the plane."""

    run: str
    method: str
    """``UMAP``, or ``PCA`` when there were too few rows for a UMAP."""
    xy: Floats
    """(n, 2), without unit."""
    trustworthiness: float
    """Trustworthiness: 1 if all neighbours in the picture are neighbours in the space; NaN: too few rows."""
    preservation: float
    """Share of each row's nearest neighbours in the space that are among its nearest in the picture, mean over rows."""
    note: str = ""


def read_embeddings(
    folder: Path, *, runs: Sequence[str] | None = None, rows_most: int = ROWS_MOST, seed: int = 0
) -> Embeddings | None:
    """Read the saved features of a guide run; ``None`` when its folder has no such file.

    Parameters
    ----------
    runs : names of the runs to read (``name-seedN``), as far as the file has them; ``None`` for all
    rows_most : rows read at most, drawn without replacement
    seed : of that draw

    Raises
    ------
    InputError
        when the file cannot be read, is of another schema, or holds parts of different lengths
    """
    path = folder / EMBEDDINGS_FILE
    if not path.is_file():
        return None
    with reading(path, "saved features", schema=SCHEMA) as file:
        return _read(file, runs, rows_most, seed)


def _read(file: h5py.File, runs: Sequence[str] | None, rows_most: int, seed: int) -> Embeddings:
    n = file["patch_id"].shape[0]
    rows = np.arange(n)
    if n > rows_most:
        rows = np.sort(np.random.default_rng(seed).choice(n, size=rows_most, replace=False))

    def part(dataset: h5py.Dataset) -> NDArray[Any]:
        if dataset.shape[0] != n:
            raise ValueError(f"holds {dataset.shape[0]} rows of {dataset.name}, and {n} of /patch_id")
        text = h5py.check_string_dtype(dataset.dtype) is not None
        # reading whole and then choosing is far faster than HDF5's own selection of scattered rows
        values = dataset.asstr()[...] if text else dataset[...]
        return np.asarray(values, dtype=str)[rows] if text else np.asarray(values)[rows]

    def concept(dataset: h5py.Dataset) -> Floats | Texts:
        values = part(dataset)
        return values if values.dtype.kind == "U" else values.astype(np.float64)

    saved = file["features"]
    wanted = list(saved) if runs is None else [run for run in runs if run in saved]
    layers = file.get("layers", {})
    return Embeddings(
        patch_ids=part(file["patch_id"]).astype(str),
        labels=part(file["label"]).astype(str),
        splits=part(file["split"]).astype(str),
        groups=part(file["group"]).astype(str),
        concepts={name.replace("∕", "/"): concept(values) for name, values in file["concepts"].items()},
        features={run: part(saved[run]).astype(np.float32) for run in wanted},
        layers={
            layer: {run: part(layers[layer][run]).astype(np.float32) for run in wanted if run in layers[layer]}
            for layer in layers
        },
        thumbnails=part(file["thumbnails"]).astype(np.uint8) if "thumbnails" in file else None,
        n_saved=n,
        positions=_positions(file, n, rows),
    )


def _positions(file: h5py.File, n: int, rows: NDArray[np.intp]) -> NDArray[np.intp] | None:
    if "position" in file:
        return np.asarray(file["position"][...], dtype=np.intp)[rows]
    whole = "predictions" in file and file["predictions/label"].shape[0] == n  # files of earlier versions
    return rows if whole else None


def project(features: Mapping[str, NDArray[np.float32]], *, seed: int = 0) -> tuple[Projection, ...]:
    """Lay out each run's features in the plane by UMAP, later runs so that they can be compared with the first.

    Runs have spaces of their own, so each is fitted by itself. The first starts from its graph's eigenvectors, the
    others from the first one's picture (same rows), and are then turned and mirrored onto it by orthogonal Procrustes:
    neither changes a distance within a picture.

    With too few rows for a UMAP it uses the principal components and adds a note. Nearest neighbours are exact, from
    one matrix product, instead of the approximate search of umap-learn.

    Parameters
    ----------
    features : run → (n, d); the rows are the same patches in each, d may differ

    Raises
    ------
    InputError
        when features are not finite

    Source
    ------
    UMAP: McInnes, Healy & Melville 2018. Trustworthiness: Venna & Kaski 2001.
    """
    projections: list[Projection] = []
    for run, X in features.items():
        if not np.isfinite(X).all():
            raise InputError(f"features: must be finite numbers, got others in {run}.")
        first = next((p.xy for p in projections if p.method == "UMAP"), None)
        projections.append(_project_one(run, X, first, seed))
    return tuple(projections)


def _project_one(run: str, X: NDArray[np.float32], first: Floats | None, seed: int) -> Projection:
    n = len(X)
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    # one more than the neighbours: every row is its own nearest
    if n <= NEIGHBOURS + 1:
        note = f"{n} rows are too few for a UMAP with {NEIGHBOURS} neighbours: these are the two principal components."
        return _components(run, centred, note)
    squared = squared_distances(centred)
    if not squared.any():
        return _components(run, centred, "all rows have the same features, so they cannot be laid out.")
    indices, distances = nearest(squared, NEIGHBOURS + 1)
    xy = lay_out(X, indices, distances, first, seed)
    if first is not None:
        xy = _turned_onto(xy, first)
    return Projection(
        run=run,
        method="UMAP",
        xy=xy,
        trustworthiness=_trustworthiness(squared, xy),
        preservation=_preservation(indices, xy),
    )


def _components(run: str, centred: Floats, note: str) -> Projection:
    """Return the first two principal components in place of a UMAP, and why; missing ones are 0."""
    xy, most = np.zeros((len(centred), 2)), min(2, *centred.shape)
    if most and centred.any():
        xy[:, :most] = PCA(n_components=most, svd_solver="full").fit_transform(centred)
    return Projection(run=run, method="PCA", xy=xy, trustworthiness=math.nan, preservation=math.nan, note=note)


def squared_distances(X: Floats) -> Floats:
    """Return the (n, n) squared Euclidean distances between rows of ``X`` (n, d), 0 on the diagonal.

    ``X`` should be centred: ‖a‖² + ‖b‖² − 2a·b loses digits if norms are much larger than distances.
    """
    norms = np.einsum("ij,ij->i", X, X)
    squared = X @ X.T
    squared *= -2.0
    squared += norms[:, None]
    squared += norms[None, :]
    np.maximum(squared, 0.0, out=squared)
    np.fill_diagonal(squared, 0.0)
    return squared


def nearest(squared: Floats, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return (n, k) indices of the nearest rows and their distances, each row itself first, then by distance."""
    ranked = squared.copy()
    np.fill_diagonal(ranked, -1.0)  # a duplicate of a row must not come before the row itself
    indices = np.argpartition(ranked, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(ranked, indices, axis=1), axis=1, kind="stable")
    indices = np.take_along_axis(indices, order, axis=1)
    distances = np.sqrt(np.take_along_axis(squared, indices, axis=1))
    return indices.astype(np.int32), distances.astype(np.float32)


def lay_out(
    X: NDArray[np.float32], indices: NDArray[np.int32], distances: NDArray[np.float32], start: Floats | None, seed: int
) -> Floats:
    """Return the layout, initialised with ``start`` or, by default, with eigenvectors of the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # umap-learn misses TensorFlow, which we never use
        from umap import UMAP

        # We never transform new rows, which is all that umap-learn warns of here.
        warnings.filterwarnings("ignore", message="precomputed_knn", category=UserWarning)
        warnings.filterwarnings("ignore", message="(?s).*[Ss]pectral", category=UserWarning)  # it then starts at random
        model = UMAP(
            n_neighbors=NEIGHBOURS,
            min_dist=0.1,
            init="spectral" if start is None else start.astype(np.float32),
            n_epochs=EPOCHS,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(indices[:, :NEIGHBOURS].copy(), distances[:, :NEIGHBOURS].copy()),
            # Below 4,096 rows umap-learn would otherwise put its own neighbours in place of ours.
            force_approximation_algorithm=True,
        )
        # numba, which umap-learn runs on, sets the OpenMP threads of the whole process when it starts: networks
        # read afterwards would differ in their last bits from those read before. What was set before is set again.
        with threadpool_limits():
            return np.asarray(model.fit_transform(X), dtype=np.float64)


def _turned_onto(xy: Floats, target: Floats) -> Floats:
    """Return ``xy`` turned, mirrored and moved onto ``target``, its distances untouched (orthogonal Procrustes)."""
    moved, place = xy - xy.mean(axis=0), target.mean(axis=0)
    turned: Floats = moved @ orthogonal_procrustes(moved, target - place)[0] + place
    return turned


def _trustworthiness(squared: Floats, xy: Floats) -> float:
    n = len(xy)
    if n <= 2 * NEIGHBOURS:  # scikit-learn's bound, beyond which the number is not defined
        return math.nan
    return float(trustworthiness(squared, xy, n_neighbors=NEIGHBOURS, metric="precomputed"))


def _preservation(indices: NDArray[np.int32], xy: Floats) -> float:
    shown, _ = nearest(squared_distances(xy - xy.mean(axis=0)), NEIGHBOURS + 1)
    kept = (indices[:, 1:, None] == shown[:, None, 1:]).any(axis=2)
    return float(kept.mean())
