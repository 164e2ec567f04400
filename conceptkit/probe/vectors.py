"""Concept vectors as a probe keeps them: one file, applied to other rows, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from conceptkit.errors import InputError, check_choice, reason_of
from conceptkit.evaluate.conformal import LEAST_GROUPS
from conceptkit.evaluate.scores import Floats, balanced_accuracy, r2
from conceptkit.files.atomic import replacing
from conceptkit.probe.classification import class_shares
from conceptkit.probe.space import Fit, Space
from conceptkit.records.base import to_json
from conceptkit.records.probe import ProbeRow
from conceptkit.records.reading import read

VECTORS_FILE = "vectors.safetensors"
"""Name of the file in the run folder of a probe"""

SCHEMA = "conceptkit/vectors/1"

_ROWS_AT_ONCE = 1024
"""Rows of a product: they stay in the processor's cache"""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The features that vectors were fitted on: they apply to no others."""

    source: str
    """``network``, ``store`` or ``files``"""
    model: str
    """The network as it is opened, or the name of the features"""
    weights: str
    """Weights as they are opened, or the file's name"""
    fingerprint: str | None = None
    """Digest of the network; ``None`` of feature files"""
    preprocessing: Mapping[str, Any] | None = None
    """``mean``, ``std`` and ``size`` of the network's input; ``None`` of feature files"""
    stated: Mapping[str, str] = field(default_factory=dict)
    """What feature files state of their encoder: its name, magnification, size of a patch"""
    layer: str = ""
    """Name of the layer, without that of an encoder"""
    pool: str = "gap"
    finest: float | None = None
    """Smallest microns per pixel of the patches; ``None`` where it is unknown"""
    coarsest: float | None = None
    side: int | None = None
    """Side of a patch in pixels; ``None`` where it is unknown"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a vector besides its numbers."""

    layer: str
    concept: str
    kind: str
    """``continuous`` or ``categorical``"""
    classes: tuple[str, ...]
    """Of a categorical concept, in the order of their numbers"""
    unit: str
    metric: str
    score: float
    """Held-out score, with the ends of its 95 % interval"""
    score_low: float
    score_high: float
    chance: float
    n: int
    """Rows of the fit"""
    n_groups: int
    """Patients of the fit"""
    alpha: float
    """Penalty"""
    reach: float
    """Half width of the 90 % prediction interval, in the unit; of classes: 1 − the least share of one in the set"""
    coverage: float
    """Coverage of that interval in patients of the probe, each left out in turn; NaN if unknown"""
    limit: float
    """Leverage above which a row is out of range"""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptVector:
    """The vector of one concept at one layer, fitted on all rows of a probe.

    A continuous concept and one of two classes have one direction (m = 1), others one for each of k classes (m = k).
    """

    facts: Facts
    origin: Origin
    direction: Floats
    """(m, d) of length 1: the unit concept vector"""
    slope: Floats
    """(m,) change of the concept per unit of the projection on the direction"""
    intercept: Floats
    """(m,) the concept at zero activations"""
    pattern: Floats
    """(m, d) change of each activation per unit of the concept, or between the classes"""
    space: Space

    @property
    def coef(self) -> Floats:
        """Return the coefficients (m, d): change of the concept per unit of each activation."""
        return self.slope[:, None] * self.direction

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the concept in its unit (n,) for rows X (n, d), or its most probable class.

        Raises :class:`InputError` when X has another width, or holds NaN or infinity.
        """
        return self.named(self._raw(self._checked(X)))

    def named(self, raw: Floats) -> NDArray[Any]:
        """Return the concept (n,) from numbers (n, m) of its vector: the values, or the most probable class."""
        if self.facts.kind == "continuous":
            return raw[:, 0]
        at = class_shares(raw[:, 0] if raw.shape[1] == 1 else raw).argmax(1)
        return np.asarray(np.asarray(self.facts.classes)[at])

    def shares(self, X: ArrayLike) -> Floats:
        """Return the shares of the classes (n, k) of a categorical concept for rows X (n, d)."""
        if self.facts.kind == "continuous":
            raise InputError(f"concept: {self.facts.concept} is continuous, it has no classes.")
        raw = self._raw(self._checked(X))
        return class_shares(raw[:, 0] if raw.shape[1] == 1 else raw)

    def project(self, X: ArrayLike) -> Floats:
        """Return the projections of rows X (n, d) on the direction, in units of the activations: (n,), or (n, k)."""
        projected = self._checked(X).astype(np.float64, copy=False) @ self.direction.T
        return projected[:, 0] if projected.shape[1] == 1 else projected

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return R² of the predictions for rows X (n, d), or the balanced accuracy of classes.

        Rows without a value of y are skipped. Raises :class:`InputError` when lengths differ, or y is constant or
        holds an unknown class.
        """
        A, name = self._checked(X), self.facts.concept
        values = np.asarray(y, dtype=np.float64 if self.facts.kind == "continuous" else object)
        if values.shape != (len(A),):
            raise InputError(f"y: must hold one value for each of the {len(A)} rows, got shape {values.shape}.")
        known = np.array([v is not None and v == v for v in values])
        A, values = A[known], values[known]
        if len(np.unique(values.astype(str))) < 2:
            raise InputError(f"y: {name} must have two different values, the {len(values)} rows that have it have not.")
        if self.facts.kind == "continuous":
            return r2(values, self.predict(A))
        codes = {label: i for i, label in enumerate(self.facts.classes)}
        if unknown := sorted({str(v) for v in values} - set(codes)):
            raise InputError(f"y: {name} has no class {unknown[0]!r}; known: {', '.join(codes)}.")
        found = [np.array([codes[str(v)] for v in part], dtype=np.intp) for part in (values, self.predict(A))]
        return balanced_accuracy(found[0], found[1], len(codes))

    def interval(self, X: ArrayLike) -> tuple[Floats, Floats]:
        """Return the lower and upper ends (n,) of the 90 % prediction interval for rows X (n, d) of a new patient.

        Raises :class:`InputError` for a categorical concept, or below 9 patients.
        """
        if self.facts.kind != "continuous":
            raise InputError(f"concept: {self.facts.concept} has classes; class_sets returns those that are possible.")
        self.check_intervals()
        at = self.predict(X)
        return at - self.facts.reach, at + self.facts.reach

    def class_sets(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return which classes (n, k) are in the 90 % prediction set of rows X (n, d) of a new patient."""
        self.check_intervals()
        if self.facts.kind == "continuous":
            raise InputError(f"concept: {self.facts.concept} is continuous; interval returns the ends of its values.")
        return self.possible(self._raw(self._checked(X)))

    def possible(self, raw: Floats) -> NDArray[np.bool_]:
        """Return the prediction sets (n, k) from scores (n, m) of the classes."""
        return np.asarray(1 - class_shares(raw[:, 0] if raw.shape[1] == 1 else raw) <= self.facts.reach)

    def leverage(self, X: ArrayLike) -> Floats:
        """Return the leverage (n,) of rows X (n, d) in the leading components; 1 is the mean of the rows of the fit."""
        return self.space.leverage(self._checked(X))

    def out_of_range(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return which rows X (n, d) have a leverage above that of 99 % of the held-out rows."""
        return self.leverage(X) > self.space.limit

    def check_intervals(self) -> None:
        """Raise :class:`InputError` when the probe had too few patients for an interval."""
        if self.facts.n_groups < LEAST_GROUPS:
            raise InputError(
                f"probe: {self.facts.concept} was probed on {self.facts.n_groups} patients, an interval of 90 % for a "
                f"new one needs at least {LEAST_GROUPS}; predict of ck.load_vectors needs no interval."
            )

    def _raw(self, X: NDArray[Any]) -> Floats:
        return X.astype(np.float64, copy=False) @ self.coef.T + self.intercept

    def _checked(self, X: ArrayLike) -> NDArray[Any]:
        return check_rows(X, self.direction.shape[1], f"the vector of {self.facts.concept} at {self.facts.layer}")


@dataclass(frozen=True, eq=False)
class Applied:
    """Vectors applied to n rows."""

    raw: list[Floats]
    """Of each vector (n, m): the concept in its unit, or scores of classes"""
    out_of_range: NDArray[np.bool_]
    """(n,) whether the leverage is above the limit of one of the vectors"""

    def predicted(self, vector: ConceptVector, at: int) -> NDArray[Any]:
        """Return the concept (n,) of one of the vectors: numbers, or classes."""
        return vector.named(self.raw[at])


def apply_vectors(vectors: Sequence[ConceptVector], X: Any) -> Applied:
    """Apply vectors of one layer to rows X (n, d) in one pass, in float32 about the means of the fit.

    Parameters
    ----------
    X : array or :class:`conceptkit.files.matrix.FileMatrix`

    Raises
    ------
    InputError
        when X has another width, or holds NaN or infinity
    """
    first, width = vectors[0], vectors[0].direction.shape[1]
    mean = first.space.mean
    if X.ndim != 2 or X.shape[1] != width:
        raise refused_width(f"the vector of {first.facts.concept} at {first.facts.layer}", width, X.shape)
    spaces = list({id(vector.space): vector.space for vector in vectors}.values())
    parts = [*(vector.coef.T for vector in vectors), *(space.whitening for space in spaces)]
    offsets = [
        *(vector.coef @ mean + vector.intercept for vector in vectors),
        *((mean - space.mean) @ space.whitening for space in spaces),
    ]
    W, b = np.concatenate(parts, axis=1).astype(np.float32), np.concatenate(offsets)
    ends = np.cumsum([part.shape[1] for part in parts])
    n, shift = len(X), mean.astype(np.float32)
    b += (shift - mean) @ np.concatenate(parts, axis=1)  # what rounding the means leaves
    raw = [np.empty((n, part.shape[1])) for part in parts[: len(vectors)]]
    flagged = np.zeros(n, dtype=bool)
    bad = 0
    centred = np.empty((_ROWS_AT_ONCE, width), np.float32)
    for start in range(0, n, _ROWS_AT_ONCE):
        at = slice(start, min(start + _ROWS_AT_ONCE, n))
        rows = X[at]
        with np.errstate(over="ignore", invalid="ignore"):
            C = np.subtract(rows, shift, out=centred[: len(rows)], casting="unsafe")
            found = np.split((C @ W).astype(np.float64) + b, ends[:-1], axis=1)
        whole = np.isfinite(np.concatenate(found, axis=1)).all(axis=1)
        bad += 0 if whole.all() else int((~np.isfinite(rows[~whole]).all(axis=1)).sum())
        for out, values in zip(raw, found, strict=False):
            out[at] = values
        for space, values in zip(spaces, found[len(vectors) :], strict=True):
            flagged[at] |= (values * values).mean(1) > space.limit
    if bad:
        raise refused_gaps(bad, n)
    return Applied(raw, flagged)


def refused_width(vector: str, width: int, shape: tuple[int, ...]) -> InputError:
    """Return the error of rows of another width."""
    return InputError(f"X: {vector} needs {width} columns, got shape {shape}: these are other features.")


def refused_gaps(bad: int, n: int) -> InputError:
    """Return the error of rows with gaps."""
    return InputError(f"X: must be finite, {bad} of {n} rows hold NaN or infinity.")


def check_rows(X: ArrayLike, width: int, vector: str) -> NDArray[Any]:
    """Return rows X (n, d) as an array of floats; refuse another width, and NaN or infinity."""
    A = np.asarray(X)
    A = A if A.dtype.kind == "f" else A.astype(np.float64)
    if A.ndim != 2 or A.shape[1] != width:
        raise refused_width(vector, width, A.shape)
    # A row with NaN or infinity has such a sum: one pass, and no mask of all values.
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(np.add.reduce(A, axis=1, dtype=np.float64)))
    bad = bad[~np.isfinite(A[bad]).all(axis=1)]
    if len(bad):
        raise refused_gaps(len(bad), len(A))
    return A


class ConceptVectors(Mapping[tuple[str, str], ConceptVector]):
    """The vectors of a probe: ``vectors["mixed10", "count"]``."""

    def __init__(self, found: Mapping[tuple[str, str], ConceptVector]) -> None:
        self._found = dict(found)

    def __getitem__(self, key: tuple[str, str]) -> ConceptVector:
        """Return the vector of a layer and a concept; an unknown name raises :class:`InputError` with near names."""
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(
                f"vectors: name a layer and a concept, as {next(iter(self), ('layer', 'concept'))}; got {key!r}."
            )
        layer, concept = map(str, key)
        check_choice("layer", layer, self.layers)
        check_choice("concept", concept, [c for at, c in self._found if at == layer])
        return self._found[layer, concept]

    def __contains__(self, key: object) -> bool:
        return key in self._found

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return f"ConceptVectors({', '.join(f'{layer}/{concept}' for layer, concept in self)})"

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layers."""
        return tuple(dict.fromkeys(layer for layer, _ in self._found))


def make_vector(
    row: ProbeRow, fit: Fit, origin: Origin, place: str, *, classes: Sequence[str] = (), unit: str = ""
) -> ConceptVector:
    """Return the vector of a row from its fit; ``place`` is its layer, with the encoder if that has a name."""
    slope = np.linalg.norm(fit.weights, axis=0)
    direction = np.divide(fit.weights, slope, out=np.zeros_like(fit.weights), where=slope > 0).T
    facts = Facts(
        layer=place,
        concept=row.concept,
        kind=row.kind,
        metric=row.metric,
        n=row.n,
        n_groups=row.n_groups,
        score=_known(row.score),
        score_low=_known(row.score_low),
        score_high=_known(row.score_high),
        chance=row.chance,
        alpha=row.alpha,
        classes=tuple(classes),
        unit=unit,
        reach=fit.reach,
        coverage=fit.coverage,
        limit=fit.space.limit,
    )
    return ConceptVector(
        facts=facts,
        origin=origin,
        direction=direction,
        slope=slope,
        intercept=fit.intercepts,
        pattern=fit.patterns.T,
        space=fit.space,
    )


def _known(value: float | None) -> float:
    return np.nan if value is None else value


def save_vectors(vectors: Sequence[ConceptVector], folder: Path) -> Path:
    """Write the vectors of a run into its folder, and return the file.

    Tensors are named ``LAYER/CONCEPT/direction`` and so on; the key ``conceptkit`` of the metadata holds the rest.
    """
    tensors: dict[str, NDArray[Any]] = {}
    spaces: dict[int, str] = {}
    origins: list[Origin] = []
    listed = []
    for vector in vectors:
        name = "/".join(part.replace("/", "∕") for part in (vector.facts.layer, vector.facts.concept))
        for part in ("direction", "slope", "intercept", "pattern"):
            tensors[f"{name}/{part}"] = np.ascontiguousarray(getattr(vector, part))
        space = spaces.setdefault(id(vector.space), name)  # concepts with the same rows share it
        if space == name:
            for part in ("mean", "scale", "whitening"):
                tensors[f"{name}/{part}"] = np.ascontiguousarray(getattr(vector.space, part))
        if vector.origin not in origins:
            origins.append(vector.origin)
        origin = origins.index(vector.origin)
        listed.append({"tensors": name, "space": space, "origin": origin, "facts": dataclasses.asdict(vector.facts)})
    about = {"schema": SCHEMA, "origins": list(map(dataclasses.asdict, origins)), "vectors": listed}
    path = folder / VECTORS_FILE
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"conceptkit": to_json(about)})
    return path


def load_vectors(run: str | Path) -> ConceptVectors:
    """Load the concept vectors of a probe.

    Parameters
    ----------
    run : the run folder, or its ``vectors.safetensors``

    Raises
    ------
    InputError
        when the folder has no vectors, or the file cannot be read
    """
    path = Path(run)
    path = path / VECTORS_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"probe: {run} holds no {VECTORS_FILE}; name a run folder of conceptkit probe.")
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["conceptkit"])
            if about["schema"] != SCHEMA:
                raise InputError(f"probe: {path} has schema {about['schema']!r}, this version reads {SCHEMA!r}.")
            return ConceptVectors({(v.facts.layer, v.facts.concept): v for v in _vectors(file, about)})
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"probe: {path} is not a file of concept vectors ({reason_of(error)}).") from None


def _vectors(file: Any, about: Mapping[str, Any]) -> Iterator[ConceptVector]:
    spaces: dict[str, Space] = {}
    origins = [read(origin, Origin, "origin") for origin in about["origins"]]
    for stated in about["vectors"]:
        facts = read(stated["facts"], Facts, "facts", null_is_nan=True)
        name, of_space = stated["tensors"], stated["space"]
        if of_space not in spaces:
            parts = {part: file.get_tensor(f"{of_space}/{part}") for part in ("mean", "scale", "whitening")}
            spaces[of_space] = Space(**parts, limit=facts.limit)
        parts = {part: file.get_tensor(f"{name}/{part}") for part in ("direction", "slope", "intercept", "pattern")}
        yield ConceptVector(facts=facts, origin=origins[stated["origin"]], space=spaces[of_space], **parts)
