"""What a command found, frozen: probe and guide records, saved as JSON and loaded back."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from conceptkit._checks import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RECORD_FILE = "record.json"
"""Name of the record in a run folder."""

EMBEDDINGS_FILE = "embeddings.h5"
"""Name of the file in a guide run's folder with the trunk's output of every run on the evaluation rows."""


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_json(value: object) -> str:
    """Return ``value`` as JSON text; a number that is not finite becomes ``null``, as JSON has no word for it."""

    def plain(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [plain(x) for x in v]
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if hasattr(v, "item") and not isinstance(v, str | bytes):  # NumPy scalars
            return plain(v.item())
        if isinstance(v, Path):
            return str(v)
        return v

    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """How well one concept is read from one layer of one network."""

    model: str
    weights: str
    layer: str
    concept: str
    kind: str
    """``continuous`` or ``categorical``."""
    n: int
    """Rows that have a value of the concept."""
    n_groups: int
    """Groups (patients) among them; equal to ``n`` where no group was named."""
    folds: int
    metric: str
    """``r2`` for continuous concepts, ``balanced_accuracy`` for categorical ones."""
    score: float
    """Held-out score of the pooled out-of-fold predictions, no group on both sides of a fold."""
    score_low: float
    """Lower end of the 95 % interval from resampling groups."""
    score_high: float
    """Upper end of the 95 % interval from resampling groups."""
    score_in_sample: float
    """Score on the very rows that the vector was fitted on: what a reader must not take for knowledge."""
    score_patchwise: float
    """Held-out score when groups are ignored and rows of one patient lie on both sides."""
    score_random_network: float | None
    """Held-out score of the same architecture with random weights, mean of 3 seeds; ``None`` without a network."""
    chance: float
    """Score of knowing nothing: 0 for R², one over the number of classes for balanced accuracy."""
    alpha: float
    """Penalty of the vector fitted on all rows, chosen by leave-one-group-out error."""
    alpha_folds: tuple[float, ...] = ()
    """Penalty chosen inside each training part."""
    cosine: float | None = None
    """Mean cosine between the directions that the folds found, in the original activation space."""
    protocol: str = "cross-validated"
    """``cross-validated``, or ``paper (in-sample)``: least squares fitted and scored on the same rows."""
    interval_note: str | None = None
    """What has to be said of the interval; ``None``: nothing."""
    auc: float | None = None
    """Of categorical concepts: held-out AUC, for several classes the mean over one against the rest."""
    auc_low: float | None = None
    auc_high: float | None = None
    score_pixels: float | None = None
    """Held-out score of raw pixel and colour statistics; ``None`` without pixels."""
    score_shuffled: float | None = None
    """Held-out score of the concept's values in another order, mean of 5."""
    score_random_concept: float | None = None
    """Held-out score of random concepts with the same intra-class correlation, mean of 20."""
    selectivity: float | None = None
    """``score`` − ``score_random_concept``."""
    r2_above_baseline: float | None = None
    """``score`` − the best of chance, ``score_random_network`` and ``score_pixels``."""
    icc: float | None = None
    """Intra-class correlation of the concept; ``None`` without groups."""
    permuted: str | None = None
    """At which level values were permuted for ``p``: ``rows``, ``within`` groups, or whole ``groups``."""
    permutations: int = 0
    p: float | None = None
    """Permutation p at that level; on group means for ``groups``."""
    p_within: float | None = None
    """Permutation p within groups, of a concept that varies at both levels."""
    p_min: float | None = None
    """The smallest value that ``p`` could have taken."""
    q: float | None = None
    """``p`` adjusted by Benjamini and Hochberg over everything probed in the call."""
    adjusted_for: tuple[str, ...] = ()
    """Confounders taken out of concept and activations in ``score_adjusted``."""
    score_adjusted: float | None = None
    """Held-out partial R² given the confounders; ``None`` when not asked for, or not estimable (``notes`` says why)."""
    score_adjusted_low: float | None = None
    score_adjusted_high: float | None = None
    leave_out: str | None = None
    """Column each of whose levels was held out in turn for ``score_leave_out``."""
    score_leave_out: float | None = None
    """Score of the pooled predictions of held-out levels."""
    repeated_as: str | None = None
    """The repeated measurement of this concept."""
    ceiling: float | None = None
    """Pearson r of the two measurements: the highest R² that can be reached if their errors are equal and
    independent."""
    notes: tuple[str, ...] = ()
    """Sentences a reader of this row has to know."""

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def keys(self) -> list[str]:
        """Return the names of the values: a row can be read like a dict of the JSON, and made one by ``dict(row)``."""
        return [f.name for f in dataclasses.fields(self)]


@dataclass(frozen=True, kw_only=True)
class GuideRun:
    """One trained network: what it predicts, and what can be read from it."""

    name: str
    """``baseline``, ``guided``, or the name of a grid's cell."""
    seed: int
    checkpoint: str
    """Folder of the checkpoint, as seen from where the command ran."""
    metrics: Mapping[str, Mapping[str, float]]
    """Split → ``auc``, ``f1``, ``balanced_accuracy`` of the main task."""
    concepts: Mapping[str, Mapping[str, float | None]]
    """Encouraged concept → ``probe`` (fresh probe, held-out) and ``head`` (the run's own head); ``None``: not there."""
    leakage: Mapping[str, Mapping[str, float | None]]
    """Discouraged concept → ``linear`` and ``mlp`` (fresh probes, held-out) and ``chance``."""
    history: tuple[Mapping[str, float], ...] = ()
    """One entry per epoch: ``epoch`` and, for each task, its raw losses (``train/count``, ``val/count``) and its weight
    (``weight/count``)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference between two runs, averaged over seeds, with a 95 % interval from resampling groups."""

    run: str
    against: str
    split: str
    metric: str
    """``auc`` of the main task; ``probe:count``, the score of a fresh probe of the encouraged concept ``count``;
    ``linear:center`` and ``mlp:center``, those of a fresh linear and non-linear probe of the discouraged one."""
    mean: float
    low: float
    high: float
    n_groups: int


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What every record holds beside its results."""

    schema: ClassVar[str]

    study: str
    """Name of the study."""
    synthetic: bool = False
    """True when the patches are generated tissue, not real: said wherever the numbers are shown."""
    group: str | None = None
    """Column whose values are never split across folds; ``None``: rows were taken as independent."""
    notes: tuple[str, ...] = ()
    """Sentences a reader of the numbers has to know."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The options the numbers were made with, seeds and hashes among them."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages in use."""
    folder: Path | None = field(default=None, compare=False)
    """The run folder the record lies in; no part of the JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts and lists, ``schema`` and ``study`` first."""
        body = dataclasses.asdict(self)
        del body["folder"]
        return {"schema": self.schema, "study": body.pop("study"), **body}

    def save(self, folder: Path) -> Path:
        """Write the record into a run folder, in one step, and return its path."""
        path = folder / RECORD_FILE
        write_atomically(path, to_json(self.to_dict()))
        return path


@dataclass(frozen=True, kw_only=True)
class ProbeRecord(_Record):
    """The result of ``probe``: one row per layer and concept."""

    schema: ClassVar[str] = "conceptkit/probe/1"
    rows: tuple[ProbeRow, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a tidy table, one row per layer and concept."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(r) for r in self.rows])

    def plot(self) -> list[Figure]:
        """Draw the score by layer with its interval and its controls: one matplotlib figure per network and concept."""
        # The report room lies above this one: a record is drawn by it, and knows nothing of how.
        figures = importlib.import_module("conceptkit.report.figures")
        return [drawing.figure for drawing in figures.probe_figures(self)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` gave (through JSON: ``null`` is read as not a number)."""
        rows = tuple(_read(ProbeRow, row) for row in values["rows"])
        fields: dict[str, Any] = {**_common(values), "rows": rows}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class GuideRecord(_Record):
    """The result of ``guide``: trained runs and their paired differences."""

    schema: ClassVar[str] = "conceptkit/guide/1"
    encourage: tuple[str, ...]
    discourage: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    """Concept → unit, where it is known."""
    evaluated_on: str = "internal"
    """The rows on which ``concepts`` and ``leakage`` are read."""
    runs: tuple[GuideRun, ...]
    differences: tuple[Difference, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return every number as a tidy table with columns run, seed, what, name, metric, value."""
        import pandas as pd

        rows = [
            {"run": run.name, "seed": run.seed, "what": what, "name": name, "metric": metric, "value": value}
            for run in self.runs
            for what, values in (("split", run.metrics), ("concept", run.concepts), ("leakage", run.leakage))
            for name, metrics in values.items()
            for metric, value in metrics.items()
        ]
        return pd.DataFrame(rows, columns=["run", "seed", "what", "name", "metric", "value"])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from what :meth:`to_dict` gave (through JSON: ``null`` is read as not a number)."""
        common = _common(values)
        runs = tuple(_read(GuideRun, {**run, "history": tuple(run["history"])}) for run in values["runs"])
        differences = tuple(_read(Difference, d) for d in values["differences"])
        lists = {key: tuple(common[key]) for key in ("encourage", "discourage")}
        fields: dict[str, Any] = {**common, **lists, "runs": runs, "differences": differences}
        return cls(**fields)


def load_record(folder: Path) -> ProbeRecord | GuideRecord:
    """Load the record of a run folder (or of a record file).

    Raises
    ------
    InputError
        when there is no record, it is not JSON, or its schema is of another version.
    """
    path = folder / RECORD_FILE if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"run: {folder} holds no {RECORD_FILE}; name a folder that probe or guide wrote.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema = values["schema"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"run: {path} is not a record of conceptkit (no JSON object with a schema).") from None
    kinds: dict[str, type[ProbeRecord] | type[GuideRecord]] = {c.schema: c for c in (ProbeRecord, GuideRecord)}
    if schema not in kinds:
        raise InputError(f"run: {path} has schema {schema!r}; this version reads {', '.join(kinds)}.")
    try:
        return dataclasses.replace(kinds[schema].from_dict(values), folder=path.parent)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"run: {path} lacks a part of a {schema} record.") from None


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in values.items() if k != "schema"}
    return {**known, "notes": tuple(known.get("notes", ()))}


def _read(kind: Any, values: Mapping[str, Any]) -> Any:
    """Build ``kind``, reading ``null`` as not a number except where ``None`` has a meaning of its own."""
    optional = {f.name for f in dataclasses.fields(kind) if "None" in str(f.type)}
    read = {k: math.nan if v is None and k not in optional else v for k, v in values.items()}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in read.items()})
