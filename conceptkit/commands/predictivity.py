"""Predictivity: how well concept values predict the main label without any image (the paper's Table 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conceptkit.errors import InputError, check_distinct, check_seeds
from conceptkit.evaluate.paired import mean_interval, scored_auc
from conceptkit.evaluate.scores import Floats
from conceptkit.guide.concept_network import Column, design, fit_concept_network
from conceptkit.guide.endpoints import evaluated
from conceptkit.guide.goals import Goal
from conceptkit.guide.plan import Plan, make_plan
from conceptkit.options.base import Notify, Progress
from conceptkit.options.predictivity import Predictivity
from conceptkit.probe.targets import make_target
from conceptkit.probe.usable import usable
from conceptkit.records.predictivity import PredictivityRecord, PredictivityRow
from conceptkit.runs.opening import header, in_own_folder, notes_on, open_source, run_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

RANDOM = "random"
CENTER = "center"


@in_own_folder("predictivity")
def predictivity(
    options: Predictivity,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> PredictivityRecord:
    """Train a small network (20 units) from columns of the table to the main label, and score it on evaluation splits.

    The inputs are a random column, each concept, growing sets of concepts and each confounder, one after another.
    """
    check_seeds(options.seeds)
    folder = run_folder(out, options.name)
    study, table = open_source(options, study, opens_model=False)
    concepts, alone = _columns(study, table, options)
    plan = make_plan(study, table)
    training = table.select(plan.rows["train"])

    def varies(name: str) -> str:
        table.check_words(name)
        column = training.concept(name)
        return make_target(name, column.kind, column.values, None).name

    learned, skipped = usable([*concepts, *alone], varies)
    concepts, alone = ([name for name in names if name in learned] for names in (concepts, alone))
    sets: list[tuple[str, tuple[str, ...]]] = [("random", (RANDOM,)), *(("concept", (name,)) for name in concepts)]
    sets += [("growing", tuple(concepts[:k])) for k in range(2, len(concepts) + 1)]
    sets += [("confounder", (name,)) for name in alone]
    rows: list[PredictivityRow] = []
    for done, (role, names) in enumerate(sets):
        if progress is not None:
            progress("sets of columns", done, len(sets))
        predicted = [_predicted(table, plan, role, names, seed) for seed in options.seeds]
        rows += _rows(plan, role, names, predicted)
    if progress is not None:
        progress("sets of columns", len(sets), len(sets))
    record = PredictivityRecord(
        **header(
            options,
            study,
            folder,
            (*notes_on(study, table, [*concepts, *alone, study.label]), *skipped),
            label=study.label,
            concepts=concepts,
            alone=alone,
            rows={name: len(members) for name, members in plan.rows.items()},
        ),
        rows=tuple(rows),
    )
    record.save(folder)
    return record


def _columns(study: Study, table: PatchTable, options: Predictivity) -> tuple[list[str], list[str]]:
    """Return the concepts and the confounders, those of the study where none are given."""

    def stated(names: tuple[str, ...]) -> list[str]:
        return [Goal.of(name, discouraged=False).concept for name in names]

    if options.alone is None:
        center = [CENTER] if CENTER in table.frame.columns and study.label != CENTER else []
        alone = list(dict.fromkeys([*stated(study.discourage), *center]))
    else:
        alone = list(options.alone)
    if options.concepts is None:
        named = dict.fromkeys([*stated(study.encourage), *study.concepts])
        concepts = [name for name in named if name not in (*alone, study.label)]
    else:
        concepts = list(options.concepts)
    check_distinct("concept", concepts)
    for name in (*concepts, *alone):
        table.column("concept", name)
        if name == study.label:
            raise InputError(f"concept: {name} is the main label itself.")
    return concepts, alone


def _predicted(table: PatchTable, plan: Plan, role: str, names: tuple[str, ...], seed: int) -> Floats:
    """Return the predictions for the used rows of a network that is trained on a set of columns."""
    used, at = table.select(plan.used), {name: np.searchsorted(plan.used, rows) for name, rows in plan.rows.items()}
    if role == "random":
        columns = [Column("continuous", np.random.default_rng([seed, 5]).normal(size=len(plan.used)))]
    else:
        columns = [Column((concept := used.concept(name)).kind, concept.values) for name in names]
    X, codes = design(columns, at["train"]), plan.codes[plan.used]
    return fit_concept_network(X, codes, at["train"], at["val"], n_classes=len(plan.classes), seed=seed)


def _rows(plan: Plan, role: str, names: tuple[str, ...], predicted: list[Floats]) -> Iterator[PredictivityRow]:
    """Yield the score of each evaluation split, over seeds."""
    for split, members in evaluated(plan).items():
        y, place = plan.codes[members], np.searchsorted(plan.used, members)
        groups = np.unique(plan.groups[members], return_inverse=True)[1]
        scored = [scored_auc(y, probability[place], groups) for probability in predicted]
        interval = mean_interval(scored)
        by_seed = [score.value for score in scored]
        yield PredictivityRow(
            inputs=names,
            role=role,
            split=split,
            auc=interval.mean,
            sd=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else float("nan"),
            low=interval.low,
            high=interval.high,
            n_groups=interval.n_groups,
            seeds=tuple(by_seed),
        )
