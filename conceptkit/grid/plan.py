"""Which networks a grid trains: the paper's, pairs of the study's concepts, or a list of the user's own."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from conceptkit.errors import InputError, check_distinct
from conceptkit.records import GridCell, concept_of
from conceptkit.tables.study import Study

PAPER = "paper"
PAIRS = "pairs"
STUDY = "study"

PAPER_MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "1": ((), ()),
    "2": (("area",), ()),
    "3": (("count",), ()),
    "4": (("contrast",), ()),
    "5": ((), ("center",)),
    "6": (("count",), ("center",)),
    "7": (("area", "count"), ("center",)),
    "8": (("area", "count", "contrast"), ("center",)),
}
"""Number in the paper's Table 4 → encouraged and discouraged concepts"""

PAPER_WEIGHTINGS = ("vanilla", "uncertainty")

SECOND_NETWORK = {"resnet50": ("1", "8")}
"""The paper's other network → which models it was trained as, with uncertainty weighting, there called R1 and R8"""

RANDOM_TARGET = "random target"
SHUFFLED = "shuffled concept"
SINGLE = "single task"
CONFOUNDER = "confounder only"
MULTIMODAL = "multimodal"
NOISE, FRACTION = "noise", "fraction"


def read_models(text: str, study: Study) -> tuple[str, list[tuple[tuple[str, ...], tuple[str, ...]]]]:
    """Return the name of a grid and its models as (encouraged, discouraged).

    Parameters
    ----------
    text : ``paper``, ``pairs``, ``study`` (the list in the study file), a file with a model per line, or models
        separated by ``;``. A model is a list of concepts separated by commas, a discouraged one with ``-`` before it

    Raises
    ------
    InputError
        when there is nothing to make a grid of, or one model stands twice
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
            raise InputError('ablate: the study names no models; write models = ["count", "count, -center"] in [grid].')
        lines = list(study.grid)
    elif Path(text).is_file():
        lines = [line.partition("#")[0].strip() for line in Path(text).read_text(encoding="utf-8-sig").splitlines()]
        lines = [line for line in lines if line]
    else:
        lines = text.split(";")
    models = [_split(_signed(line)) for line in lines]
    models = [model for model in models if model != ((), ())]
    if not models:
        raise InputError(f"ablate: no model is named in {text!r}.")
    check_distinct("ablate", [model_name(*model) for model in models])
    return "list", models


def _signed(line: str) -> list[tuple[str, bool]]:
    words = [word.strip() for word in line.split(",") if word.strip() and word.strip() != "main"]
    return [(word.removeprefix("-").strip(), word.startswith("-")) for word in words]


def _split(signed: Sequence[tuple[str, bool]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    encourage = tuple(name for name, discouraged in signed if not discouraged)
    discourage = tuple(name for name, discouraged in signed if discouraged)
    if signed:
        check_distinct("ablate", [concept_of(name) for name in (*encourage, *discourage)])
    return encourage, discourage


def model_name(encourage: Sequence[str], discourage: Sequence[str]) -> str:
    """Return how a model is called: its concepts, discouraged ones marked with a minus."""
    wanted, unwanted = " + ".join(encourage), "".join(f" − {name}" for name in discourage)
    return (wanted + unwanted).strip() or "main"


def plan_cells(
    text: str | None,
    study: Study,
    *,
    model: str,
    second: Sequence[str] = (),
    weightings: Sequence[str],
    controls: bool,
    noise: Sequence[float] = (),
    fraction: Sequence[float] = (),
    encourage: Sequence[str] = (),
    discourage: Sequence[str] = (),
) -> tuple[str, list[GridCell]]:
    """Return the name of a grid and its cells: its models, their controls, and the points of curves.

    Parameters
    ----------
    text : see :func:`read_models`; ``None`` for curves alone
    model : the network; ``second`` are those of the paper that are trained beside it
    weightings : of the losses; every model is trained with each
    encourage, discourage : of the curves
    """
    name, models = read_models(text, study) if text is not None else ("none", [])
    cells: list[GridCell] = []
    numbers = {value: number for number, value in PAPER_MODELS.items()} if name == PAPER else {}

    def add(
        wanted: Sequence[str], unwanted: Sequence[str], weighting: str, *, called: str = "", **more: object
    ) -> None:
        title = f"{called or model_name(wanted, unwanted)}, {weighting}"
        fields: dict[str, object] = {
            "name": title,
            "number": numbers.get((tuple(wanted), tuple(unwanted)), "") if not more else "",
            "encourage": tuple(wanted),
            "discourage": tuple(unwanted),
            "weighting": weighting,
            "model": model,
            **more,
        }
        cell = GridCell(**fields)  # type: ignore[arg-type]
        if cell.name not in {c.name for c in cells}:
            cells.append(cell)

    for weighting in weightings:
        add((), (), weighting)
        for wanted, unwanted in models:
            add(wanted, unwanted, weighting)
    for network in second:
        for number in SECOND_NETWORK[network]:
            wanted, unwanted = PAPER_MODELS[number]
            called = f"{model_name(wanted, unwanted)}, {network}"
            add(wanted, unwanted, PAPER_WEIGHTINGS[-1], called=called, number=f"R{number}", model=network)
    if controls and models:
        if not any(weighting.startswith("uncertainty") for weighting in weightings):
            add((), (), "uncertainty", control=SINGLE)
        first = next((concept for wanted, _ in models for concept in wanted), None)
        for weighting in weightings:
            add((RANDOM_TARGET,), (), weighting, control=RANDOM_TARGET)
            if first is not None:
                add((first,), (), weighting, called=f"{first} shuffled", control=SHUFFLED)
        for concept in dict.fromkeys(concept_of(c) for _, unwanted in models for c in unwanted):
            title = f"{CONFOUNDER}: {concept}"
            cells.append(GridCell(name=title, discourage=(concept,), control=CONFOUNDER))
    for kind, levels in ((NOISE, noise), (FRACTION, fraction)):
        for level in levels:
            # Beside the multimodal control, which discourages nothing and weighs no rows, nothing else may differ.
            against = () if kind == NOISE else tuple(discourage)
            called = f"{model_name(encourage, against)}, {kind} {level:g}"
            add(encourage, against, weightings[-1], called=called, curve=kind, level=level)
            if kind == NOISE:
                title = f"{MULTIMODAL}: main with {' + '.join(encourage)} as input, {kind} {level:g}, {weightings[-1]}"
                cells.append(
                    GridCell(
                        name=title,
                        encourage=tuple(encourage),
                        model=model,
                        control=MULTIMODAL,
                        curve=kind,
                        level=level,
                        base=f"{model_name((), ())}, {weightings[-1]}",
                    )
                )
    return name, cells


def is_trained(cell: GridCell) -> bool:
    """Return whether a network is trained for a cell; the others are computed from what is there."""
    return bool(cell.weighting)


def folder_name(cell: GridCell, seed: int) -> str:
    """Return the name of a run's folder: words of the cell's name, and a digest where these could be another's."""
    text = cell.name.replace(" − ", "-not-")
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
    if re.search(r"[^A-Za-z0-9_. +,−-]", cell.name) or re.search(r"\w-|-\w", cell.name) or len(words) > 100:
        words = f"{words[:100]}-{hashlib.sha256(cell.name.encode()).hexdigest()[:8]}"
    return f"{words}-seed{seed}"
