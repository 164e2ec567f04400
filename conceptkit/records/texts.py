"""Notes and metrics: plain text in JSON and in print, with typed parts for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

NoteKind = Literal[
    "adjusted",
    "baseline_only",
    "ceiling",
    "centers",
    "confounded",
    "failed",
    "leakage",
    "leave_out",
    "note",
    "protocol",
    "transductive",
    "with_test",
]
"""What a note is about; ``note`` for everything else. The page of the JSON files explains each."""

DOUBTS: frozenset[NoteKind] = frozenset({"confounded", "leakage", "transductive", "with_test"})
"""Kinds of notes that put the comparison itself in doubt."""


class Note(str):
    """One sentence on the results, and its topic.

    It is a string, and is printed, searched and saved like one.
    """

    kind: NoteKind

    def __new__(cls, kind: NoteKind, text: str) -> Self:
        """Make a note of a kind."""
        if kind not in get_args(NoteKind):
            raise ValueError(f"kind of a note: must be one of {', '.join(get_args(NoteKind))}, got {kind!r}")
        note = super().__new__(cls, text)
        note.kind = kind
        return note

    def __getnewargs__(self) -> tuple[NoteKind, str]:  # type: ignore[override]
        """Let a note be copied and pickled."""
        return self.kind, str(self)

    @classmethod
    def of(cls, text: str) -> Note:
        """Return a note as it is, and any other sentence as a note of the kind ``note``."""
        return text if isinstance(text, Note) else cls("note", text)


class Metric(str):
    """What a difference is a difference of: ``auc``, ``auc_within_center``, or ``probe:count``.

    It is a string, so that it is compared and saved like one.
    """

    READERS: ClassVar[tuple[str, ...]] = ("probe", "head", "linear", "mlp", "kernel")

    name: str
    """``auc``, ``f1`` and so on; ``score`` of a concept."""
    reader: str
    """Who reads a concept, one of ``READERS``; empty for the main task."""
    concept: str
    """The concept that is read; empty for the main task."""
    within: str
    """Column within whose levels the metric was taken; empty: over all rows."""

    def __new__(cls, name: str = "score", *, reader: str = "", concept: str = "", within: str = "") -> Self:
        """Make a metric from its parts."""
        metric = super().__new__(
            cls, f"{reader}:{concept}" if reader else f"{name}_within_{within}" if within else name
        )
        metric.name, metric.reader, metric.concept, metric.within = name, reader, concept, within
        return metric

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, str]]:
        """Let a metric be copied and pickled."""
        return (self.name,), {"reader": self.reader, "concept": self.concept, "within": self.within}

    @property
    def parts(self) -> dict[str, str]:
        """Return the parts by name."""
        return {"name": self.name, "reader": self.reader, "concept": self.concept, "within": self.within}

    @classmethod
    def of(cls, text: str) -> Metric:
        """Return the metric that a text of a record stands for."""
        if isinstance(text, Metric):
            return text
        reader, _, concept = text.partition(":")
        if concept and reader in cls.READERS:
            return cls(reader=reader, concept=concept)
        name, _, within = text.partition("_within_")
        return cls(name, within=within)


def with_typed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the typed forms of its notes and its metric in addition."""
    out: dict[str, Any] = {}
    for key, value in body.items():
        out[key] = value
        if key == "notes":
            out["note_kinds"] = [Note.of(note).kind for note in value]
        elif isinstance(value, Metric):
            out["metric_parts"] = value.parts
    return out


def from_typed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object whose notes and metric are typed, without the keys that :func:`with_typed` added."""
    out = dict(body)
    kinds, parts = out.pop("note_kinds", None), out.pop("metric_parts", None)
    if kinds is not None:
        if len(kinds) != len(out["notes"]):
            raise ValueError(f"notes are {len(out['notes'])}, their kinds {len(kinds)}")
        pairs = zip(kinds, out["notes"], strict=True)
        out["notes"] = [Note(kind, text) if isinstance(text, str) else text for kind, text in pairs]
    if parts is not None:
        name, others = parts["name"], {key: value for key, value in parts.items() if key != "name"}
        out["metric"] = Metric(name, **others)
    return out


def concept_of(name: str) -> str:
    """Return the concept of ``CONCEPT`` or ``CONCEPT@LAYER``."""
    return name.partition("@")[0]
