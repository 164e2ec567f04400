"""Networks that a grid trains: the paper's, pairs of the study's concepts, or a list of the user's own."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conceptkit.errors import InputError, check_distinct
from conceptkit.guide.goals import Goal
from conceptkit.options.grid import Grid
from conceptkit.records import GridCell, concept_of
from conceptkit.tables.study import Study

PAPER = "paper"
PAIRS = "pairs"
STUDY = "study"

Model = tuple[tuple[str, ...], tuple[str, ...]]
"""Encouraged and discouraged concepts"""

PAPER_MODELS: dict[str, Model] = {
    "1": ((), ()),
    "2": (("area",), ()),
    "3": (("count",), ()),
    "4": (("contrast",), ()),
    "5": ((), ("center",)),
    "6": (("count",), ("center",)),
    "7": (("area", "count"), ("center",)),
    "8": (("area", "count", "contrast"), ("center",)),
}
"""Number in the paper's Table 4 → model"""

PAPER_WEIGHTINGS = ("vanilla", "uncertainty")

SECOND_NETWORK = {"resnet50": ("1", "8")}
"""The paper's other network → numbers of its models, trained with uncertainty weighting; the paper calls them R1, R8"""

RANDOM_TARGET = "random target"
RANDOM, SHUFFLED, SINGLE, BALANCED = "random", "shuffled", "baseline", "balanced"
"""Kinds of controls, named as arms of ``guide``"""
CONFOUNDER = "confounder only"
MULTIMODAL = "multimodal"
NOISE, FRACTION = "noise", "fraction"


def read_models(text: str, study: Study) -> tuple[str, list[Model]]:
    """Return the name of a grid and its models; :class:`InputError` when there is none, or one occurs twice.

    Parameters
    ----------
    text : ``paper``, ``pairs``, ``study`` (the list in the study file), a file with one model per line, or models
        separated by ``;``. A model is a comma-separated list of concepts, a discouraged one with ``-`` before it
    """
    if text == PAPER:
        return PAPER, list(PAPER_MODELS.values())
    if text == PAIRS:
        signed = [(name, False) for name in study.encourage] + [(name, True) for name in study.discourage]
        if len(signed) < 2:
            raise InputError(f"ablate: pairs need two concepts to encourage or discourage, there is {len(signed)}.")
        chosen = [*((one,) for one in signed), *itertools.combinations(signed, 2)]
        return PAIRS, [_split(list(concepts)) for concepts in chosen]
    if text == STUDY:
        if not study.grid:
            raise InputError(
                'ablate: the study file has no models; write models = ["count", "count, -center"] in [grid].'
            )
        lines = list(study.grid)
    elif Path(text).is_file():
        lines = [line.partition("#")[0].strip() for line in Path(text).read_text(encoding="utf-8-sig").splitlines()]
        lines = [line for line in lines if line]
    else:
        lines = text.split(";")
    models = [_split(_signed(line)) for line in lines]
    models = [model for model in models if model != ((), ())]
    if not models:
        raise InputError(f"ablate: {text!r} lists no model.")
    check_distinct("ablate", [model_name(*model) for model in models])
    return "list", models


def _signed(line: str) -> list[tuple[str, bool]]:
    words = [word.strip() for word in line.split(",") if word.strip() and word.strip() != "main"]
    return [(word.removeprefix("-").strip(), word.startswith("-")) for word in words]


def _split(signed: Sequence[tuple[str, bool]]) -> Model:
    encourage = tuple(name for name, discouraged in signed if not discouraged)
    discourage = tuple(name for name, discouraged in signed if discouraged)
    if signed:
        check_distinct("ablate", [concept_of(name) for name in (*encourage, *discourage)])
    return encourage, discourage


def model_name(encourage: Sequence[str], discourage: Sequence[str]) -> str:
    """Return the name of a model: its concepts, discouraged ones with a minus."""
    return (" + ".join(encourage) + "".join(f" − {name}" for name in discourage)).strip() or "main"


class _Cells:
    """The cells of a grid as they are planned, each name once."""

    def __init__(self, model: str, *, numbered: bool) -> None:
        self.model = model
        self.numbers = {value: number for number, value in PAPER_MODELS.items()} if numbered else {}
        self.by_name: dict[str, GridCell] = {}

    def add(
        self, encourage: Sequence[str], discourage: Sequence[str], weighting: str, *, called: str = "", **more: Any
    ) -> None:
        """Add a trained cell."""
        encourage, discourage = tuple(encourage), tuple(discourage)
        fields: dict[str, Any] = {
            "name": f"{called or model_name(encourage, discourage)}, {weighting}",
            "number": "" if more else self.numbers.get((encourage, discourage), ""),
            "encourage": encourage,
            "discourage": discourage,
            "weighting": weighting,
            "model": self.model,
        }
        self.put(GridCell(**{**fields, **more}))

    def put(self, cell: GridCell) -> None:
        self.by_name.setdefault(cell.name, cell)


def models_of(options: Grid) -> str | None:
    """Return the text that names the models; the paper's by default, none with curves or affinities."""
    curves = options.noise or options.fraction or options.affinity
    return PAPER if options.ablate is None and not curves else options.ablate


def plan_cells(
    study: Study, options: Grid, *, weightings: Sequence[str], second: Sequence[str] = ()
) -> tuple[str, list[GridCell]]:
    """Return the name of a grid and its cells: its models, their controls, and the points of curves.

    Parameters
    ----------
    study : its network is trained, and its encouraged and discouraged concepts are those of pairs and curves
    weightings : of the losses; every model is trained with each
    second : the paper's networks that are trained in addition to the study's
    """
    name, models = ("none", []) if (text := models_of(options)) is None else read_models(text, study)
    cells = _Cells(str(study.model), numbered=name == PAPER)
    for weighting in weightings:
        cells.add((), (), weighting)
        for encourage, discourage in models:
            cells.add(encourage, discourage, weighting)
    for network in second:
        for number in SECOND_NETWORK[network]:
            encourage, discourage = PAPER_MODELS[number]
            called = f"{model_name(encourage, discourage)}, {network}"
            last = PAPER_WEIGHTINGS[-1]
            cells.add(encourage, discourage, last, called=called, number=f"R{number}", model=network)
    if options.controls and models:
        _add_controls(cells, models, weightings)
    for level in options.noise:
        # The multimodal control discourages nothing and reweights no rows, and nothing else may differ.
        _add_point(cells, NOISE, level, study.encourage, (), weightings[-1])
        _add_multimodal(cells, level, study.encourage, weightings[-1])
    for level in options.fraction:
        _add_point(cells, FRACTION, level, study.encourage, study.discourage, weightings[-1])
    return name, list(cells.by_name.values())


def _add_controls(cells: _Cells, models: Sequence[Model], weightings: Sequence[str]) -> None:
    if not any(weighting.startswith("uncertainty") for weighting in weightings):
        cells.add((), (), "uncertainty", control=SINGLE)
    first = next((concept for encourage, _ in models for concept in encourage), None)
    for weighting in weightings:
        cells.add((RANDOM_TARGET,), (), weighting, control=RANDOM)
        if first is not None:
            cells.add((first,), (), weighting, called=f"{first} shuffled", control=SHUFFLED)
    for concept in dict.fromkeys(Goal.of(c, discouraged=True).concept for _, unwanted in models for c in unwanted):
        cells.put(GridCell(name=f"{CONFOUNDER}: {concept}", discourage=(concept,), control=CONFOUNDER))


def _add_point(
    cells: _Cells, curve: str, level: float, encourage: Sequence[str], discourage: Sequence[str], weighting: str
) -> None:
    called = f"{model_name(encourage, discourage)}, {curve} {level:g}"
    cells.add(encourage, discourage, weighting, called=called, curve=curve, level=level)


def _add_multimodal(cells: _Cells, level: float, encourage: Sequence[str], weighting: str) -> None:
    cells.put(
        GridCell(
            name=f"{MULTIMODAL}: main with {' + '.join(encourage)} as input, {NOISE} {level:g}, {weighting}",
            encourage=tuple(encourage),
            model=cells.model,
            control=MULTIMODAL,
            curve=NOISE,
            level=level,
            base=f"{model_name((), ())}, {weighting}",
        )
    )


def with_balanced(cells: Sequence[GridCell], categorical: Callable[[str], bool]) -> list[GridCell]:
    """Return cells with a single task of the balanced main loss for each that discourages a category, its reference."""
    found: dict[str, GridCell] = {}
    for cell in cells:
        names = tuple(sorted(filter(categorical, map(concept_of, cell.discourage))))
        if names and is_trained(cell):
            called = f"{model_name((), ())} balanced by {' + '.join(names)}, {cell.weighting}"
            called = called if cell.model == cells[0].model else f"{called}, {cell.model}"
            plain = GridCell(
                name=called, weighting=cell.weighting, model=cell.model, control=BALANCED, balanced_by=names
            )
            found.setdefault(called, plain)
            cell = dataclasses.replace(cell, base=called)
        found[cell.name] = cell
    return list(found.values())


def is_trained(cell: GridCell) -> bool:
    """Return whether a network is trained for a cell; the other cells are computed from trained ones."""
    return bool(cell.weighting)


def folder_name(cell: GridCell, seed: int) -> str:
    """Return the name of a run's folder: words of the cell's name, with a digest where they are ambiguous."""
    text = cell.name.replace(" − ", "-not-")
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
    if re.search(r"[^A-Za-z0-9_. +,−-]", cell.name) or re.search(r"\w-|-\w", cell.name) or len(words) > 100:
        words = f"{words[:100]}-{hashlib.sha256(cell.name.encode()).hexdigest()[:8]}"
    return f"{words}-seed{seed}"
