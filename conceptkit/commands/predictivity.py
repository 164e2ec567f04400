"""Predictivity: how far concept values alone tell the main label, without any image (the paper's Table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conceptkit.errors import InputError, check_distinct, check_seeds
from conceptkit.options.base import Progress
from conceptkit.records.predictivity import PredictivityRecord, PredictivityRow
from conceptkit.runs.opening import in_own_folder, notes_on, open_study, run_folder, versions
from conceptkit.tables.study import Study

RANDOM = "random"
CENTER = "center"


@in_own_folder("predictivity")
def run_predictivity(
    study: Study | str | Path | None = None,
    *,
    concepts: Sequence[str] | None = None,
    alone: Sequence[str] | None = None,
    table: str | Path | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> PredictivityRecord:
    """Train a small network (20 units) from columns of the table to the main label, and score it on evaluation splits.

    It is trained from a column of chance, from each concept, from growing sets of them, and from each confounder alone.

    Parameters
    ----------
    study, table, group, categorical : as for :func:`run_probe`
    concepts : in the order in which sets grow; ``None`` for the study's encouraged and probed ones
    alone : confounders; ``None`` for the study's discouraged concepts and the center
    seeds : of the network's first weights and its batches' order
    out : run folder; ``None`` for the next free ``runs/predictivity-NNN``
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    from conceptkit.evaluate.paired import mean_interval, scored_auc
    from conceptkit.guide.concept_network import Column, design, fit_concept_network
    from conceptkit.guide.plan import make_plan
    from conceptkit.guide.reading import evaluated
    from conceptkit.probe.targets import make_target
    from conceptkit.probe.usable import usable

    check_seeds(seeds)
    folder = run_folder(out, "predictivity")
    meant, data = open_study(study, table, None, None, group, categorical, opens_model=False)
    if alone is None:
        center = [CENTER] if CENTER in data.frame.columns and meant.label != CENTER else []
        alone = list(dict.fromkeys([*(c.partition("@")[0] for c in meant.discourage), *center]))
    if concepts is None:
        named = [c.partition("@")[0] for c in meant.encourage] + list(meant.concepts)
        concepts = [c for c in dict.fromkeys(named) if c not in (*alone, meant.label)]
    check_distinct("concept", list(concepts))
    for name in (*concepts, *alone):
        data.column("concept", name)
        if name == meant.label:
            raise InputError(f"concept: {name} is the main label itself.")
    plan = make_plan(meant, data)
    part, training = data.select(plan.used), data.select(plan.rows["train"])

    def varies(name: str) -> str:
        data.check_words(name)
        own = training.concept(name)
        return make_target(name, own.kind, own.values, None).name

    learned, skipped = usable([*concepts, *alone], varies)
    concepts = [name for name in concepts if name in learned]
    alone = [name for name in alone if name in learned]
    at = {name: np.searchsorted(plan.used, rows) for name, rows in plan.rows.items()}
    columns = {name: Column((own := part.concept(name)).kind, own.values) for name in (*concepts, *alone)}
    sets: list[tuple[str, tuple[str, ...]]] = [("random", (RANDOM,)), *(("concept", (name,)) for name in concepts)]
    sets += [("growing", tuple(concepts[:k])) for k in range(2, len(concepts) + 1)]
    sets += [("confounder", (name,)) for name in alone]
    rows: list[PredictivityRow] = []
    for done, (role, names) in enumerate(sets):
        if progress is not None:
            progress("sets of columns", done, len(sets))
        found = []
        for seed in seeds:
            chance = Column("continuous", np.random.default_rng([seed, 5]).normal(size=len(plan.used)))
            X = design([chance if role == "random" else columns[name] for name in names], at["train"])
            codes = plan.codes[plan.used]
            found.append(fit_concept_network(X, codes, at["train"], at["val"], n_classes=len(plan.classes), seed=seed))
        for split, members in evaluated(plan).items():
            y, place = plan.codes[members], np.searchsorted(plan.used, members)
            groups = np.unique(plan.groups[members], return_inverse=True)[1]
            scored = [scored_auc(y, probability[place], groups) for probability in found]
            interval = mean_interval(scored)
            each = [one.value for one in scored]
            rows.append(
                PredictivityRow(
                    inputs=names,
                    role=role,
                    split=split,
                    auc=interval.mean,
                    sd=float(np.std(each, ddof=1)) if len(each) > 1 else float("nan"),
                    low=interval.low,
                    high=interval.high,
                    n_groups=interval.n_groups,
                    seeds=tuple(each),
                )
            )
    if progress is not None:
        progress("sets of columns", len(sets), len(sets))
    record = PredictivityRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=(*notes_on(meant, data, [*concepts, *alone, meant.label]), *skipped),
        settings={
            "command": "predictivity",
            "table": meant.table.name,
            "group": meant.group,
            "categorical": list(categorical),
            "label": meant.label,
            "concepts": list(concepts),
            "alone": list(alone),
            "seeds": list(seeds),
            "rows": {name: len(members) for name, members in plan.rows.items()},
        },
        versions=versions(),
        folder=folder,
        rows=tuple(rows),
    )
    record.save(folder)
    return record
