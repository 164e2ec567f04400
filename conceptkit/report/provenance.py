"""Provenance: settings, seeds, digests and versions that reproduce the numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conceptkit.records import GuideRecord, Record
from conceptkit.report.run_context import Context


def provenance(record: Record, folder: Path, context: Context | None) -> list[tuple[str, str]]:
    """Return name and value of every setting, seed, digest and version of a run."""
    lines = [("run", folder.resolve().name), ("schema", record.schema), ("study", record.study)]
    if context is not None:
        lines += [(name, value) for name, value in context.made_with.items() if value]
    lines.append(("patches", "synthetic" if record.synthetic else "as the study's table names them"))
    lines.append(("never split across folds", record.group or "no column: rows were treated as independent"))
    if isinstance(record, GuideRecord):
        lines += [(f"run {run.name}, seed {run.seed}", run.checkpoint or "–") for run in record.runs]
        lines += [
            ("encouraged", ", ".join(record.encourage) or "–"),
            ("discouraged", ", ".join(record.discourage) or "–"),
        ]
        lines.append(("concepts and leakage read on", record.evaluated_on))
    lines += [(f"setting {key}", value) for key, value in flat(record.settings)]
    lines += [(f"version of {key}", value) for key, value in flat(record.versions)]
    return lines if context is None else lines + _fold_map(context)


def _fold_map(context: Context) -> list[tuple[str, str]]:
    """Return which groups were held out together, concepts with the same folds in one line."""
    by_map: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for concept, members in context.fold_members().items():
        by_map.setdefault(members, []).append(concept)
    return [
        (f"fold {i + 1} of {', '.join(concepts)}", ", ".join(part))
        for members, concepts in by_map.items()
        for i, part in enumerate(members)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return name and text of every value, names of nested ones joined by points."""
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out += flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            out.append((f"{prefix}{key}", "–" if value is None else text))
    return out
