"""Records and run folders like those of probe and guide, made up for the tests of the report."""

from __future__ import annotations

import dataclasses
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from conceptkit.records import Difference, GridRecord, GuideRecord, GuideRun, Note, ProbeRecord, ProbeRow
from conceptkit.records.grid import Affinity, GridCell, PatchLevel
from conceptkit.report.embedding import Projection

NASTY = "<script>alert(1)</script>"
LAYERS = ("mixed0", "mixed3", "mixed5", "mixed7", "mixed8", "mixed9", "mixed10")


# --- records like those of probe and guide -----------------------------------------------------------------------


def probe_row(layer: str = "mixed10", concept: str = "count", score: float = 0.71, **changes: object) -> ProbeRow:
    values = {
        "model": "inception_v3",
        "weights": "imagenet",
        "layer": layer,
        "concept": concept,
        "kind": "continuous",
        "n": 704,
        "n_groups": 44,
        "folds": 5,
        "metric": "r2",
        "score": score,
        "score_low": score - 0.08,
        "score_high": score + 0.07,
        "score_in_sample": 0.85,
        "score_patchwise": 0.80,
        "score_random_network": 0.41,
        "chance": 0.0,
        "alpha": 1234.5,
    }
    return ProbeRow(**{**values, **changes})  # type: ignore[arg-type]


def noted_rows() -> tuple[ProbeRow, ...]:
    """Return rows of two layers with notes, one of them markup; nothing was adjusted for."""
    few, gone = "the interval rests on 7 groups only", Note("adjusted", "adjusted for center: not estimable <b>.")
    ceiling = Note("ceiling", "ceiling: if errors are equal and independent.")
    rows = [probe_row(layer, concept, interval_note=few) for layer in ("a", "b") for concept in ("count", "area")]
    rows[2] = dataclasses.replace(rows[2], notes=(gone,))
    rows[1], rows[3] = (dataclasses.replace(rows[k], notes=(ceiling,)) for k in (1, 3))
    return tuple(rows)


def probe_record(concepts: tuple[str, ...] = ("count", "area", NASTY), **changes: object) -> ProbeRecord:
    rng = np.random.default_rng(0)
    rows = []
    for k, concept in enumerate(concepts):
        for i, layer in enumerate(LAYERS):
            score = (0.25, 0.15, -0.05)[k % 3] + 0.07 * i * (k % 3 != 2) + rng.normal(0, 0.02)
            rows.append(
                probe_row(
                    layer,
                    concept,
                    score,
                    score_in_sample=min(score + 0.3, 0.98),
                    score_patchwise=score + 0.15,
                    score_random_network=None if k == 1 else 0.2 + 0.02 * i,
                )
            )
    center = {"kind": "categorical", "metric": "balanced_accuracy", "chance": 0.25, "score_random_network": 0.4}
    rows += [probe_row(layer, "center", 0.5 + 0.04 * i, **center) for i, layer in enumerate(LAYERS)]
    values = {"study": "breast", "group": "patient", "rows": tuple(rows), "versions": {"conceptkit": "0.1.0"}}
    return ProbeRecord(**{**values, **changes})  # type: ignore[arg-type]


def guide_run(name: str, seed: int, *, epochs: int = 12, count: str = "count") -> GuideRun:
    guided = name != "baseline"
    rng = np.random.default_rng([seed, guided])
    history = []
    for epoch in range(epochs):
        entry: dict[str, float] = {"epoch": epoch}
        for task, level in (("main", 0.7), (count, 1.0), ("center", 1.4)):
            if task == "main" or guided:
                entry[f"train/{task}"] = level * math.exp(-epoch / 8) + rng.normal(0, 0.02)
                entry[f"val/{task}"] = level * math.exp(-epoch / 10) + rng.normal(0, 0.03)
                entry[f"weight/{task}"] = 1 + epoch / 20
                entry[f"score/{task}"] = 1 - math.exp(-epoch / 6) - 0.1 * guided
        history.append(entry)
    probe, head = (0.71, 0.72) if guided else (0.66, None)
    return GuideRun(
        name=name,
        seed=seed,
        checkpoint=f"{name}-seed{seed}",
        metrics={
            split: {
                "auc": level + gain * guided + rng.normal(0, 0.002),
                "f1": level - 0.1,
                "balanced_accuracy": level - 0.05,
            }
            for split, level, gain in (("internal", 0.88, 0.02), ("external", 0.85, -0.03))
        },
        concepts={count: {"probe": probe, "head": head}, "area": {"probe": 0.5, "head": 0.48 if guided else None}},
        leakage={"center": {"linear": 0.61, "mlp": 0.66, "chance": 0.25}}
        if guided
        else {"center": {"linear": 0.78, "mlp": 0.80, "chance": 0.25}},
        history=tuple(history),
    )


def difference(metric: str, mean: float, half: float = 0.03, split: str = "internal", n_groups: int = 23) -> Difference:
    ends = {"low": mean - half, "high": mean + half}
    return Difference(
        run="guided", against="baseline", split=split, metric=metric, mean=mean, n_groups=n_groups, **ends
    )


def guide_record(seeds: tuple[int, ...] = (0,), count: str = "count", **changes: object) -> GuideRecord:
    values = {
        "study": "breast",
        "group": "patient",
        "encourage": (count, "area"),
        "discourage": ("center",),
        "units": {"area": "µm²"},
        "runs": tuple(guide_run(name, s, count=count) for s in seeds for name in ("baseline", "guided")),
        "differences": (
            difference(f"probe:{count}", 0.05),
            difference("probe:area", 0.01),
            difference("auc", 0.02, 0.04),
            difference("auc", -0.03, 0.02, split="external", n_groups=3),
        ),
        "settings": {"seeds": list(seeds), "optimiser": {"lr": 1e-4, "momentum": 0.9}, "hash": "9f3c" * 16},
        "versions": {"conceptkit": "0.1.0", "torch": "2.15.0"},
    }
    return GuideRecord(**{**values, **changes})  # type: ignore[arg-type]


def grid_record(**changes: object) -> GridRecord:
    cells = (
        GridCell(name="1 vanilla", number="1", weighting="vanilla", model="m"),
        GridCell(name="3 vanilla", number="3", encourage=("count",), weighting="vanilla", model="m"),
        GridCell(name="5 vanilla", number="5", discourage=("center",), weighting="vanilla", model="m"),
        GridCell(name="random", encourage=("chance",), weighting="vanilla", model="m", control="random target"),
    )
    runs = tuple(
        dataclasses.replace(guide_run("guided" if i else "baseline", seed), name=cell.name)
        for seed in (0, 1)
        for i, cell in enumerate(cells)
    )
    values = {
        "study": "breast",
        "group": "patient",
        "grid": "list",
        "cells": cells,
        "runs": runs,
        "differences": tuple(
            dataclasses.replace(difference("auc", mean), run=cell.name, against="1 vanilla")
            for cell, mean in zip(cells[1:], (0.05, -0.01, 0.02), strict=True)
        ),
        "patch_level": (
            PatchLevel(
                run="3 vanilla",
                against="1 vanilla",
                split="internal",
                mean=0.9,
                sd=0.01,
                difference=0.02,
                p=1e-9,
                resamples=50,
            ),
        ),
        "affinity": (Affinity(step="main", on="count", value=0.01, sd=0.002),),
        "failed": {"8 vanilla-seed0": "its loss was not finite"},
    }
    return GridRecord(**{**values, **changes})  # type: ignore[arg-type]


def write_embeddings(
    folder: Path,
    runs: tuple[str, ...] = ("baseline-seed0", "guided-seed0"),
    *,
    n: int = 120,
    d: int = 12,
    centers: int = 3,
    thumbnails: bool = True,
    layers: tuple[str, ...] = ("backbone, pooled", "first dense layer"),
    evil: str = NASTY,
    center_name: str = "C{}",
) -> Path:
    """Write features in which label and center are clouds of their own, and nothing but the names is odd."""
    rng = np.random.default_rng(3)
    label = rng.integers(2, size=n)
    center = rng.integers(centers, size=n)
    count = rng.normal(20 + 10 * label, 4)
    path = folder / "embeddings.h5"
    text = h5py.string_dtype("utf-8")
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "conceptkit/embeddings/1"
        ids = [f"{evil}-{i}" if i % 10 == 0 else f"slide{i % 7}/{i:05d}" for i in range(n)]
        file.create_dataset("patch_id", data=ids, dtype=text)
        file.create_dataset("label", data=[("normal", "tumor")[v] for v in label], dtype=text)
        file.create_dataset("split", data=["internal"] * n, dtype=text)
        file.create_dataset("group", data=[f"patient{i % 23}" for i in range(n)], dtype=text)
        file.create_dataset("concepts/count", data=np.where(np.arange(n) % 9 == 0, np.nan, count))
        file.create_dataset(
            "concepts/center", data=[evil if v == 0 else center_name.format(v) for v in center], dtype=text
        )
        file.create_dataset(f"concepts/{evil.replace('/', '∕')}", data=rng.normal(size=n))
        for k, run in enumerate(runs):
            X = rng.normal(size=(n, d)) * 0.9
            X[:, 0] += 3 * label
            X[:, 1] += (3 - 2 * (k % 2)) * center
            X[:, 2] += count / 10
            file.create_dataset(f"features/{run}", data=X.astype(np.float32))
            for layer in layers:
                file.create_dataset(f"layers/{layer}/{run}", data=X.astype(np.float16))
            probability = 1 / (1 + np.exp(-(2 * label - 1) * (1 + k) - rng.normal(size=n)))
            file.create_dataset(f"predictions/probability/{run}", data=probability)
        for name in ("label", "split", "group"):
            file[f"predictions/{name}"] = file[name]
        file["predictions"].attrs["classes"] = ["normal", "tumor"]
        if thumbnails:
            yy, xx = np.mgrid[:48, :48]
            images = np.empty((n, 48, 48, 3), np.uint8)
            for i in range(n):
                image = np.full((48, 48, 3), (235, 200 - 8 * center[i], 225), float)
                for _ in range(int(count[i] / 3)):
                    cy, cx, r = rng.uniform((2, 2, 2), (46, 46, 4))
                    image[(yy - cy) ** 2 + (xx - cx) ** 2 < r * r] = (95, 60, 140)
                images[i] = np.clip(image + rng.normal(0, 8, image.shape), 0, 255)
            file.create_dataset("thumbnails", data=images)
    return path


def saved(record: ProbeRecord | GuideRecord, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record.save(folder)
    return folder


def flat_projections(features: dict[str, np.ndarray], *, seed: int) -> tuple[Projection, ...]:
    """Return the first two columns of each space in place of a layout."""
    numbers = {"trustworthiness": 0.9, "preservation": 0.3, "method": "UMAP"}
    return tuple(Projection(run=run, xy=X[:, :2].astype(float), **numbers) for run, X in features.items())


def write_context(
    folder: Path, *, centers: tuple[str, ...] = ("C1", "C2", "C10"), patients: int = 12, n: int = 240, evil: str = NASTY
) -> Path:
    """Write what a run saves of its patches: classes and centers differ in ``count``, and one name is odd."""
    rng = np.random.default_rng(5)
    patient = np.arange(n) % patients
    center = np.arange(n) // patients % len(centers)
    label = rng.integers(2, size=n)
    count = rng.normal(20 + 10 * label + 2 * center, 4)
    count[::11] = np.nan
    group = np.array([f"patient{i}" for i in patient], dtype=object)
    text = h5py.string_dtype()
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "context.h5", "w") as file:
        file.attrs["schema"] = "conceptkit/context/1"
        file.create_group("made_with").attrs.update({"command": f"conceptkit guide {evil}", "table": evil})
        file.create_group("units").attrs.update({"count": "nuclei"})
        columns = {
            "split": np.where(patient % 2, "train", "internal").astype(object),
            "group": group,
            "label": np.array(["normal", "tumor"], dtype=object)[label],
            "center": np.array(centers, dtype=object)[center],
        }
        for name, values in columns.items():
            file.create_dataset(f"rows/{name}", data=values, dtype=text)
        file.create_dataset("concepts/count", data=count)
        file.create_dataset(f"concepts/{evil.replace('/', '∕')}", data=rng.normal(size=n))
        file.create_dataset("concepts/center", data=columns["center"], dtype=text)
        folds = patient // 2 % 5
        file.create_dataset("folds/count", data=np.where(columns["split"] == "internal", folds, -1))
        k = len(centers)
        tint = rng.integers(120, 235, size=(k, 1, 1, 1, 3))
        images = np.clip(tint + rng.normal(0, 25, size=(k, 4, 96, 96, 3)), 0, 255).astype(np.uint8)
        file.create_dataset("samples/center", data=np.array(centers, dtype=object), dtype=text)
        file.create_dataset("samples/images", data=images)
        file.create_dataset("samples/counts", data=np.full(k, 4))
        binned = [[np.bincount(images[i, ..., c].ravel() // 4, minlength=64) for c in range(3)] for i in range(k)]
        file.create_dataset("samples/histograms", data=np.array(binned) / (4 * 96 * 96))
        file.create_dataset("samples/n_patches", data=np.full(k, 48))
    return folder


class Read(HTMLParser):
    """What a browser would read from a page: its tags, addresses, words outside scripts, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.alts: list[str] = []
        self.data: list[Any] = []
        self.kind: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.kind, self.text_of_data = values.get("type"), ""
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        if tag == "img":
            self.alts.append(values.get("alt") or "")

    def handle_data(self, data: str) -> None:
        if self.kind == "application/json":
            self.text_of_data += data
        if not self.tags or self.tags[-1] not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self.kind == "application/json":
            self.data.append(json.loads(self.text_of_data))
        self.kind = None

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
