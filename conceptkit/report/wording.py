"""The report's words: numbers as text, names of metrics, groups and units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from conceptkit.records import Metric

MISSING = "–"
"""Text of a missing number."""


def number(value: object, *, digits: int = 2, signed: bool = False) -> str:
    """Return ``value`` with ``digits`` decimals and a true minus sign; :data:`MISSING` when it is not finite."""
    if not is_finite(value):
        return MISSING
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if not text.strip("+-0."):  # neither −0.00 nor +0.00
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(value: object, low: object, high: object, *, digits: int = 2, most: int = 3, signed: bool = False) -> str:
    """Return ``value [low, high]``, with more decimals, at most ``most``, where they keep an end from rounding to 0."""
    if not is_finite(value):
        return MISSING
    if not (is_finite(low) or is_finite(high)):
        return number(value, digits=digits, signed=signed)
    sizes = [abs(as_float(end)) for end in (low, high) if is_finite(end)]
    sizes = [size for size in sizes if size >= 0.5 * 10**-most]
    digits = next((d for d in range(digits, most) if all(size >= 0.5 * 10**-d for size in sizes)), max(digits, most))
    return (
        f"{number(value, digits=digits, signed=signed)} [{number(low, digits=digits)}, {number(high, digits=digits)}]"
    )


def is_finite(value: object) -> bool:
    """Return whether ``value`` is a finite number, not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_float(value: object) -> float:
    """Return ``value`` as a number; NaN for everything that is not a number."""
    return float(value) if isinstance(value, int | float) else math.nan


_METRICS = {
    "r2": "R²",
    "r2_in_sample": "R² in sample",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "f1": "F1",
    "f1_at_half": "F1 at 0.5",
    "brier": "Brier score",
    "ece": "calibration error",
}


def metric_name(metric: str) -> str:
    """Return a metric's name as people write it."""
    parts = Metric.of(metric)
    if metric.endswith("_weighted"):
        return f"weighted {metric_name(metric.removesuffix('_weighted'))}"
    return f"AUC within {parts.within}" if parts.within else _METRICS.get(metric, metric)


def f1_words(settings: Mapping[str, Any]) -> str:
    """Return a sentence that names the class of F1, after a space; empty where F1 is the mean over classes."""
    classes = settings.get("classes", ())
    return f" F1 is that of {classes[1]}." if len(classes) == 2 else ""


def groups_word(group: str | None, n: int = 2) -> str:
    """Return the word for ``n`` of the units that are never split: patients, slides, or groups of a column."""
    if group is None:
        return "row" if n == 1 else "rows"
    word = group if group in ("patient", "slide", "case", "donor", "group") else f"group ({group})"
    return word if n == 1 else word.replace(" (", "s (") if " (" in word else f"{word}s"


def with_unit(concept: str, units: Mapping[str, str]) -> str:
    """Return the concept's name with its unit, where it has one (``1`` stands for a number without a unit)."""
    return concept if units.get(concept, "") in ("", "1") else f"{concept} ({units[concept]})"


def counted(group: str | None, n: int) -> str:
    """Return ``23 patients``."""
    return f"{n} {groups_word(group, n)}"


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sorting key by which C2 comes before C10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]
