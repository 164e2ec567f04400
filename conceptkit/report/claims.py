"""The claims of a page as JSON, each with its numbers and their path in the record, and whether each still holds."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import auc, balanced_accuracy, r2
from conceptkit.records import (
    CONTEXT_FILE,
    EMBEDDINGS_FILE,
    RECORD_FILE,
    ProbeRecord,
    Record,
    RunsRecord,
    load_record,
    to_json,
    write_atomically,
)
from conceptkit.records.base import RowsRecord, as_body
from conceptkit.report.predictions import Predictions, read_predictions
from conceptkit.report.run_context import Context, read_context
from conceptkit.report.verdicts import difference_verdict, judge_probe
from conceptkit.report.wording import interval, is_finite

SCHEMA = "conceptkit/claims/1"

NUMBERS = (
    ("score", "score_low", "score_high"),
    ("mean", "low", "high"),
    ("score", "low", "high"),
    ("auc", "low", "high"),
)
"""Fields of a result and of the ends of its interval, the first ones that it has"""

TOLERANCE = 1e-6
"""Difference up to which a number that was computed again agrees; saved rows have half the digits of a float64"""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a run, and the numbers behind it."""

    text: str
    mark: str | None
    run: int
    """Number of the run on the page"""
    path: str
    """Place of the result in the run's record, as ``rows/3``"""
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A claim, and whether it holds."""

    text: str
    path: str
    holds: bool
    how: str
    """From what it was computed, or why it does not hold"""


def claims_of(record: Record, run: int = 0) -> list[Claim]:
    """Return every result of a record as a claim."""
    found: list[Claim] = []

    def add(path: str, one: Any, text: str, mark: str | None) -> None:
        names = next((n for n in NUMBERS if all(hasattr(one, name) for name in n)), None)
        if names is not None:
            value, low, high = (float(v) if is_finite(v := getattr(one, name)) else None for name in names)
            found.append(Claim(text=text, mark=mark, run=run, path=path, value=value, low=low, high=high))

    if isinstance(record, RunsRecord):
        for k, d in enumerate(record.differences):
            said = difference_verdict(d, record)
            add(f"differences/{k}", d, said.text, said.mark)
    if isinstance(record, RowsRecord):
        for k, row in enumerate(record.rows):
            if isinstance(record, ProbeRecord):
                verdict = judge_probe(row, record.group)
                add(f"rows/{k}", row, verdict.text, verdict.mark)
            else:
                add(f"rows/{k}", row, _in_words(row), None)
    return found


def _in_words(row: Any) -> str:
    """Return the names in a row, and its number with its interval."""
    names = next((n for n in NUMBERS if all(hasattr(row, name) for name in n)), NUMBERS[0])
    words = [str(v) for v in vars(row).values() if isinstance(v, str) and len(v) < 60]
    return f"{', '.join(words)}: {interval(*(getattr(row, name, None) for name in names))}"


def write_claims(records: Sequence[Record], folders: Sequence[Path], path: Path) -> Path:
    """Write the claims of runs next to their page; run folders are named as seen from there."""
    body = {
        "schema": SCHEMA,
        "runs": [
            {"folder": os.path.relpath(folder, path.parent), "schema": record.schema, "files": _digests(folder)}
            for record, folder in zip(records, folders, strict=True)
        ],
        "claims": [as_body(claim) for k, record in enumerate(records) for claim in claims_of(record, k)],
    }
    write_atomically(path, to_json(body).encode("utf-8", "replace").decode("utf-8"))
    return path


def _digests(folder: Path) -> dict[str, str]:
    names = [name for name in (RECORD_FILE, CONTEXT_FILE, EMBEDDINGS_FILE) if (folder / name).is_file()]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def verify_claims(path: Path) -> list[Checked]:
    """Check every claim of a file against its run folder.

    A claim holds when the record has the same sentence and numbers at its path, and when its number, computed again
    from the predictions that the run saved, agrees; without saved predictions only the record is compared.

    Raises
    ------
    InputError
        when the file is not one of claims, or a run folder cannot be read
    """
    body = _read(path)
    checks = []
    for k, run in enumerate(body["runs"]):
        folder = path.parent / run["folder"]
        record = load_record(folder)
        now = {claim.path: claim for claim in claims_of(record, k)}
        again = _Again(record, folder)
        changed = [name for name, digest in _digests(folder).items() if run["files"].get(name) != digest]
        changed += [name for name in run["files"] if not (folder / name).is_file()]
        for claim in (one for one in body["claims"] if one["run"] == k):
            holds, how = _check(claim, now.get(claim["path"]), again)
            if holds and changed:
                holds, how = False, f"{', '.join(changed)} changed after the report was written"
            checks.append(Checked(text=claim["text"], path=claim["path"], holds=holds, how=how))
    return checks


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["schema"] != SCHEMA:
            raise InputError(f"report: {path} has schema {body['schema']!r}; this version reads {SCHEMA}.")
        for claim in body["claims"]:
            (claim["text"], claim["path"], claim["value"], claim["low"], claim["high"])
            if not 0 <= claim["run"] < len(body["runs"]):
                raise LookupError(f"no run {claim['run']}")
        for run in body["runs"]:
            Path(run["folder"]), dict(run["files"])
    except OSError as error:
        raise InputError(f"report: {path} cannot be read ({error.strerror}).") from None
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"report: {path} holds no claims of a report ({error}); name the .json next to a page."
        ) from None
    return dict(body)


def _check(claim: Mapping[str, Any], now: Claim | None, again: _Again) -> tuple[bool, str]:
    if now is None:
        return False, "the record has no such result"
    for name in ("value", "low", "high"):
        if not _agree(claim[name], getattr(now, name)):
            return False, f"{name}: the report has {claim[name]}, the record {getattr(now, name)}"
    if claim["text"] != now.text:
        return False, f"the record says: {now.text}"
    value = again.of(now.path)
    if value is None:
        return True, "as in the record"
    if not _agree(value, now.value):
        return False, f"computed again from the saved predictions: {value:.6g}, the record has {now.value}"
    return True, "computed again from the saved predictions"


def _agree(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is None and other is None
    return is_finite(one) and math.isclose(one, other, abs_tol=TOLERANCE)


class _Again:
    """Numbers of a record, computed again from what its run saved row by row."""

    def __init__(self, record: Record, folder: Path) -> None:
        self.record = record
        self.context: Context | None = read_context(folder) if isinstance(record, ProbeRecord) else None
        self.predictions: Predictions | None = read_predictions(folder) if isinstance(record, RunsRecord) else None

    def of(self, path: str) -> float | None:
        """Return the number at a path; ``None`` where the run saved nothing to compute it from."""
        part, k = path.split("/")
        if part == "rows" and isinstance(self.record, ProbeRecord):
            return self._score(self.record.rows[int(k)])
        if part == "differences" and isinstance(self.record, RunsRecord):
            return self._difference(self.record, self.record.differences[int(k)])
        return None

    def _score(self, row: Any) -> float | None:
        kept = None if self.context is None else self.context.patches
        layer, read = kept.predicted.get(row.concept, ("", None)) if kept is not None else ("", None)
        if (
            self.context is None
            or read is None
            or layer != (f"{row.layer} of {row.encoder}" if row.encoder else row.layer)
        ):
            return None
        values = self.context.concepts[row.concept]
        if values.dtype.kind == "f":
            known = np.isfinite(values) & np.isfinite(read)
            return r2(values[known], read[known])
        known = (values != "") & (read != "")
        names, codes = np.unique(np.concatenate([values[known], read[known]]), return_inverse=True)
        return balanced_accuracy(codes[: known.sum()], codes[known.sum() :], len(names))

    def _difference(self, record: RunsRecord, d: Any) -> float | None:
        if self.predictions is None or d.metric != "auc":
            return None
        here = (
            (self.predictions.splits == d.split) if d.split != "overall" else np.ones(len(self.predictions.codes), bool)
        )
        here &= self.predictions.codes >= 0
        if not here.any():
            return None
        means = [list(self._aucs(record, name, here)) for name in (d.run, d.against)]
        return float(np.mean(means[0]) - np.mean(means[1])) if all(means) and len(means[0]) == len(means[1]) else None

    def _aucs(self, record: RunsRecord, name: str, here: Any) -> Iterator[float]:
        assert self.predictions is not None
        for run in record.runs:
            p = self.predictions.probabilities.get(f"{run.name}-seed{run.seed}")
            if run.name == name and p is not None:
                yield auc(self.predictions.codes[here], p[here])
