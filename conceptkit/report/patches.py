"""What the patch browser of the page shows: patches with their values, predictions, errors and maps of the spaces."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptkit.report.embedding import Embeddings, Projection
from conceptkit.report.predictions import Predictions
from conceptkit.report.run_context import Context
from conceptkit.report.wording import natural

PATCHES_MOST = 10_000
"""Maximum number of patches in one browser: with thumbnails about 20 MB of the page"""

SIDE = 1000
"""Steps of a coordinate in a map of a space; a screen shows fewer"""

HINT = (
    "Drag over a map to select its patches, or click it for the patches near that place; drag over a histogram for a "
    "range of values. Every view shows the same selection. “patches” in a table row shows the patches of that row."
)


def guide_patches(
    embeddings: Embeddings,
    predictions: Predictions | None,
    runs: Mapping[str, str],
    spaces: Mapping[str, Sequence[Projection]],
    trust: Sequence[str],
) -> dict[str, Any]:
    """Return the held-out patches of guided training.

    Parameters
    ----------
    runs : saved name (``name-seedN``) → title, the reference first
    spaces : layer → projection of each run
    trust : a sentence on each projection, layer by layer
    """
    numbers = {name: (values, f"Measured {name}.") for name, values in _numeric(embeddings.concepts).items()}
    pairs, shortcuts = [], []
    read = _probabilities(embeddings, predictions, runs)
    if predictions is not None and read:
        what = f"P({predictions.classes[1]})" if len(predictions.classes) == 2 else "P(true class)"
        for title, p in read.items():
            numbers[f"{what}, {title}"] = p, f"Probability that {title} predicts."
        true = _true(embeddings.labels, predictions.classes)
        for title, p in read.items():
            name = f"error of {what}, {title}"
            numbers[name] = p - true, "Prediction − label (1 or 0); above 0: too high."
            shortcuts.append({"name": name, "order": "ends", "words": f"Where {title} is wrong"})
        first, *others = read
        for title in others:
            name = f"change of {what}, {title}"
            numbers[name] = read[title] - read[first], f"{title} − {first}."
            pairs.append({"change": name, "before": f"{what}, {first}", "after": f"{what}, {title}"})
            shortcuts.insert(0, {"name": name, "order": "ends", "words": f"What {title} changed most"})
    classes = {"label": embeddings.labels, "split": embeddings.splits, **_textual(embeddings.concepts)}
    sentences = iter(trust)
    drawn = [
        {"title": f"{one.run}: {layer}", "caption": next(sentences), "xy": _steps(one.xy)}
        for layer, projections in spaces.items()
        for one in projections
    ]
    return _payload(
        embeddings.patch_ids, embeddings.groups, classes, numbers, embeddings.thumbnails, drawn, pairs, shortcuts
    )


def probe_patches(context: Context) -> dict[str, Any] | None:
    """Return the probed patches with held-out predictions and errors; ``None`` where the run kept none."""
    if context.patches is None:
        return None
    rows = context.patches.rows[:PATCHES_MOST]
    numbers: dict[str, tuple[NDArray[np.float64], str]] = {}
    shortcuts = []
    classes: dict[str, NDArray[Any]] = {"label": context.labels, "center": context.centers, "split": context.splits}
    classes |= _textual(context.concepts)
    for name, values in _numeric(context.concepts).items():
        numbers[name] = values[rows], f"Measured {name}."
    for name, (layer, read) in context.patches.predicted.items():
        if name not in context.concepts:
            continue
        measured = context.concepts[name]
        if read.dtype.kind == "U":
            verdict = np.where(read == "", "", np.where(read == measured, "right", "wrong"))
            classes |= {f"predicted {name}": read, f"prediction of {name}": verdict}
            continue
        numbers[f"prediction of {name}"] = read[rows], f"Held-out prediction at {layer}."
        numbers[f"residual of {name}"] = (read - measured)[rows], f"Held-out prediction at {layer} − measured value."
        words = f"Where the vector of {name} fails"
        shortcuts.append({"name": f"residual of {name}", "order": "ends", "words": words})
    kept = {name: texts[rows] for name, texts in classes.items()}
    images = context.patches.thumbnails
    images = None if images is None else images[: len(rows)]
    return _payload(context.patches.ids[: len(rows)], context.groups[rows], kept, numbers, images, [], [], shortcuts)


def _payload(
    ids: NDArray[Any],
    groups: NDArray[Any],
    classes: Mapping[str, NDArray[Any]],
    numbers: Mapping[str, tuple[NDArray[np.float64], str]],
    thumbnails: NDArray[np.uint8] | None,
    spaces: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, str]],
    shortcuts: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    return {
        "ids": ids.tolist(),
        "groups": groups.tolist(),
        "images": None if thumbnails is None else [_webp(image) for image in thumbnails],
        "classes": [{"name": name, **_coded(texts)} for name, texts in classes.items() if (texts != "").any()],
        "numbers": [
            {"name": name, "meaning": meaning, "values": [_short(v) for v in values.tolist()]}
            for name, (values, meaning) in numbers.items()
            if np.isfinite(values).any()
        ],
        "spaces": list(spaces),
        "pairs": list(pairs),
        "shortcuts": list(shortcuts),
    }


def _numeric(concepts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.asarray(values) for name, values in concepts.items() if values.dtype.kind == "f"}


def _textual(concepts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: values for name, values in concepts.items() if values.dtype.kind == "U"}


def _coded(texts: NDArray[Any]) -> dict[str, Any]:
    names = sorted({text for text in texts.tolist() if text}, key=natural)
    number = {name: k for k, name in enumerate(names)}
    return {"names": names, "codes": [number.get(text, -1) for text in texts.tolist()]}


def _short(value: float) -> float | None:
    """Return ``value`` with five digits, as many as a screen can show; ``None`` where it is not finite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _steps(xy: NDArray[np.float64]) -> list[int]:
    """Return x and y of every patch in turn, in steps of the longer side."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    steps = (xy - (low + high) / 2) / (float((high - low).max()) or 1.0) + 0.5
    return [int(v) for v in np.round(steps * SIDE).ravel()]


def _webp(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", quality=60, method=2)
    return base64.b64encode(buffer.getvalue()).decode()


def _probabilities(
    embeddings: Embeddings, predictions: Predictions | None, runs: Mapping[str, str]
) -> dict[str, NDArray[np.float64]]:
    """Return title → (n,) probability of class 1, or of the true class of several, for the saved patches."""
    if predictions is None or embeddings.positions is None:
        return {}
    codes = predictions.codes[embeddings.positions]
    found = {}
    for run, title in runs.items():
        if run in predictions.probabilities:
            p = predictions.probabilities[run][embeddings.positions]
            if p.ndim == 2:
                p = np.where(codes >= 0, np.take_along_axis(p, np.maximum(codes, 0)[:, None], 1)[:, 0], np.nan)
            found[title] = p
    return found


def _true(labels: NDArray[Any], classes: Sequence[str]) -> NDArray[np.float64]:
    """Return what an ideal network predicts: 1 for class 1, or for the true class of several; NaN where unlabelled."""
    known = np.isin(labels, classes)
    ideal = labels == classes[1] if len(classes) == 2 else np.ones(len(labels), bool)
    return np.where(known, ideal.astype(float), np.nan)
