"""Reading trained networks: scores by split, fresh probes, paired differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from conceptkit.errors import InputError, check_at_least
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.evaluate.paired import (
    Scored,
    auc_within,
    estimable,
    paired_interval,
    scored_auc,
    scored_auc_within,
    scored_balanced_accuracy,
    scored_r2,
)
from conceptkit.evaluate.scores import Floats, balanced_accuracy, best_threshold, main_task_scores
from conceptkit.evaluate.weighted import WEIGHTED
from conceptkit.guide.contrast import GUIDED, Contrast, declared
from conceptkit.guide.endpoints import CENTER, Endpoints, has_centers
from conceptkit.guide.plan import Plan
from conceptkit.models.guided import MAIN, Task
from conceptkit.probe.folds import make_folds
from conceptkit.probe.kernel import held_out_kernel
from conceptkit.probe.perceptron import held_out_mlp
from conceptkit.probe.targets import Target
from conceptkit.probe.usable import usable_target
from conceptkit.probe.validation import held_out
from conceptkit.records import Difference, GuideRun, Metric, Note
from conceptkit.records.guide import BASELINE, reference_of
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

REMNANTS = ("linear", "mlp", "kernel")
"""Fresh probes of a discouraged concept"""

BOTTLENECKS = ("through-balanced", "through")
"""Bottlenecks of the wanted concepts; the first that is trained is compared with the controls"""

CONTROLS = ("components", "through-random", "through-shuffled")
"""Bottlenecks of other columns"""

LEAST_ACTIVE = 0.02
"""Minimum share of rows on which a unit must not be 0 for a probe to read it"""


def read_rows(study: Study, plan: Plan) -> tuple[str, NDArray[np.intp]]:
    """Return the name and the numbers of the rows on which concepts are read."""
    if study.splits.read in plan.rows:
        return study.splits.read, plan.rows[study.splits.read]
    return " + ".join(plan.evaluation), np.sort(np.concatenate([plan.rows[name] for name in plan.evaluation]))


def check_read_folds(table: PatchTable, study: Study, plan: Plan, folds: int) -> None:
    """Refuse more folds than the read rows have groups, unless they have a single one, which cannot be read at all."""
    where, rows = read_rows(study, plan)
    groups = table.select(rows).groups(study.group)
    if groups is not None and len(set(groups)) > 1:
        make_folds(len(rows), np.unique(groups.astype(str), return_inverse=True)[1], folds, what=f"the {where} rows")


@dataclass(frozen=True)
class Reading:
    """What fresh probes read from trained networks, and on which rows."""

    where: str
    """Name of the rows"""
    split_rows: NDArray[np.intp]
    """Row numbers of the table"""
    concepts: dict[str, Target]
    """Encouraged concepts, on positions in ``split_rows``"""
    leaks: dict[str, Target]
    """Discouraged ones"""
    encourage: tuple[str, ...]
    discourage: tuple[str, ...]
    folds: int
    notes: tuple[str, ...]
    strata: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)
    """Column → level (n used rows,) within which AUCs are computed, −1 where unknown"""
    endpoints: Endpoints = field(default_factory=Endpoints)
    """Of the main task: rows by center"""

    @classmethod
    def of(
        cls,
        table: PatchTable,
        study: Study,
        plan: Plan,
        encourage: Sequence[str],
        discourage: Sequence[str],
        folds: int,
        within: Sequence[str] = (),
    ) -> Reading:
        """Choose the rows and make the targets; a concept that cannot be read there gets a note instead.

        Parameters
        ----------
        within : columns within whose levels AUCs are computed, besides the discouraged categories and the center

        Raises
        ------
        InputError
            when such a column is missing or continuous, or the rows have fewer groups than folds
        """
        check_at_least("folds", folds, 2)
        where, rows = read_rows(study, plan)
        part = table.select(rows)
        placing = {"centers": part.concept(CENTER).values if has_centers(part) else None}
        groups = part.groups(study.group)
        if encourage or discourage:
            check_read_folds(table, study, plan, folds)
        notes: list[str] = []

        def targets(names: Sequence[str]) -> dict[str, Target]:
            found = {}
            for name in names:
                try:
                    concept = part.concept(name)
                    target, note = usable_target(name, concept.kind, concept.values, groups, folds, placing)
                except InputError as error:
                    notes.append(f"{name} cannot be read on the {where} rows: {error}")
                else:
                    found[name] = target
                    notes.extend([f"Read on the {where} rows, {note}"] if note else [])
            return found

        concepts, leaks = targets(encourage), targets(discourage)
        strata = _strata(table, study, plan, discourage, within)
        endpoints, both = Endpoints.of(table, plan), (tuple(encourage), tuple(discourage))
        notes += endpoints.notes
        return cls(where, rows, concepts, leaks, *both, folds, tuple(notes), strata, endpoints)


def _strata(
    table: PatchTable, study: Study, plan: Plan, discourage: Sequence[str], within: Sequence[str]
) -> dict[str, NDArray[np.intp]]:
    for name in within:
        if table.concept(name).kind != "categorical":
            raise InputError(f"within: {name} must be categorical; use --categorical {name}.")
    known = [CENTER] if CENTER in table.frame.columns else []
    found = {}
    for name in dict.fromkeys([*within, *discourage, *known]):
        concept = table.concept(name)
        if concept.kind == "categorical" and name != study.label:
            values = concept.values[plan.used]
            present = np.array([v is not None for v in values], dtype=bool)
            found[name] = np.full(len(values), -1)
            found[name][present] = np.unique(values[present].astype(str), return_inverse=True)[1]
    return found


@dataclass(frozen=True)
class TrainedRun:
    """One trained network with the predictions for paired differences."""

    record: GuideRun
    probability: Floats
    """(n used rows,) of class 1, or (n, k)"""
    trunk: NDArray[np.float32]
    """(n used rows, width)"""
    fresh: dict[str, NDArray[Any]]
    """``probe:count`` and ``linear:center`` → out-of-fold predictions on the read rows"""

    @property
    def label(self) -> str:
        """Return name and seed, as files name the run."""
        return f"{self.record.name}-seed{self.record.seed}"


def read_run(
    name: str,
    seed: int,
    checkpoint: Path | None,
    history: Sequence[Any],
    tasks: Sequence[Task],
    raw: dict[str, Floats],
    trunk: NDArray[np.float32],
    plan: Plan,
    reading: Reading,
) -> TrainedRun:
    """Score the main task on every split, and read concepts and leakage with fresh probes."""
    probability = _probability(raw[MAIN])
    metrics = split_scores(probability, plan, reading)
    place = np.searchsorted(plan.used, reading.split_rows)
    features = _active(trunk[place].astype(np.float64))
    heads = {task.name: task for task in tasks}
    fresh: dict[str, NDArray[Any]] = {}
    concepts: dict[str, dict[str, float | None]] = {}
    for concept in reading.encourage:
        target = reading.concepts.get(concept)
        concepts[concept] = {"probe": None, "head": None}
        if target is None:
            continue
        fresh[f"probe:{concept}"] = held_out(features[target.rows], [target], folds=reading.folds)[0]
        concepts[concept]["probe"] = target.score(fresh[f"probe:{concept}"])
        if concept in heads:
            concepts[concept]["head"] = _head_score(heads[concept], raw[concept][place][target.rows], target)
    leakage: dict[str, dict[str, float | None]] = {}
    for concept in reading.discourage:
        target = reading.leaks.get(concept)
        leakage[concept] = dict.fromkeys((*REMNANTS, "chance"))
        if target is None:
            continue
        X = features[target.rows]
        fresh[f"linear:{concept}"] = held_out(X, [target], folds=reading.folds)[0]
        fresh[f"mlp:{concept}"] = held_out_mlp(X, target, folds=reading.folds, seed=seed)
        fresh[f"kernel:{concept}"] = held_out_kernel(X, target, folds=reading.folds, seed=seed)
        scores = {reader: target.score(fresh[f"{reader}:{concept}"]) for reader in REMNANTS}
        leakage[concept] = {**scores, "chance": target.chance}
    run = GuideRun(
        name=name,
        seed=seed,
        checkpoint="" if checkpoint is None else str(checkpoint),
        metrics=metrics,
        concepts=concepts,
        leakage=leakage,
        history=tuple(history),
    )
    return TrainedRun(run, probability, trunk, fresh)


def _active(features: Floats) -> Floats:
    """Return the units (n, ≤ width) that are not 0 on nearly all rows; all of them if every unit is.

    Standardised, a unit that is active on one row in a hundred is an outlier of ten standard deviations there, which
    spoils the probe's predictions for other patients.
    """
    kept = (features != 0).mean(0) >= LEAST_ACTIVE
    return features[:, kept] if kept.any() else features


def _probability(logits: Floats) -> Floats:
    """Return the probability of class 1 (n,) from one logit, or of every class (n, k) from k logits."""
    out: Floats = expit(logits[:, 0]) if logits.shape[1] == 1 else softmax(logits, axis=1)
    return out


def _head_score(task: Task, output: Floats, target: Target) -> float:
    """Return the score of the head of a network on the read rows."""
    if task.kind == "continuous":
        return target.score(output[:, 0] * task.deviation + task.mean)
    number = {name: code for code, name in enumerate(target.classes)}
    # A predicted class that the read rows do not have is wrong, whatever the truth.
    foreign = target.n_classes
    predicted = np.array([number.get(task.classes[k], foreign) for k in output.argmax(1)])
    return balanced_accuracy(target.y.astype(np.intp), predicted, foreign + 1)


def split_scores(probability: Floats, plan: Plan, reading: Reading) -> dict[str, dict[str, float]]:
    """Return split → scores of the main task; the threshold of class 1 is chosen on the validation rows.

    Parameters
    ----------
    probability : (n used rows,) of class 1, or (n, k)
    """
    val = plan.rows["val"][plan.codes[plan.rows["val"]] >= 0]
    threshold = 0.5
    if probability.ndim == 1:
        threshold = best_threshold(plan.codes[val], probability[np.searchsorted(plan.used, val)])
    metrics: dict[str, dict[str, float]] = {}
    weighted = reading.endpoints.score(probability, plan, threshold)
    for split, rows in {**plan.rows, **reading.endpoints.splits(plan)}.items():
        labelled = rows[plan.codes[rows] >= 0]
        if not len(labelled):
            continue
        place = np.searchsorted(plan.used, labelled)
        y = plan.codes[labelled]
        metrics[split] = dict(main_task_scores(y, probability[place], threshold=threshold))
        for column, levels in reading.strata.items():
            inside = auc_within(y, probability[place], levels[place])
            if np.isfinite(inside):
                metrics[split][f"auc_within_{column}"] = inside
        if split in weighted:
            metrics[split] |= {f"{name}_weighted": score.value for name, score in weighted[split].items()}
    return metrics


def compared_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (run, against) of all runs.

    Each against the reference; a bottleneck, with the balanced loss if there is one, against its controls; and the
    reference against the baseline.
    """
    reference = reference_of(names)
    pairs = [(name, reference) for name in names if name not in (reference, BASELINE)]
    bottleneck = next((name for name in BOTTLENECKS if name in names), None)
    pairs += [(bottleneck, name) for name in CONTROLS if bottleneck not in (None, reference) and name in names]
    return pairs + ([(reference, BASELINE)] if reference != BASELINE and BASELINE in names else [])


def declare(
    text: str | None, runs: Sequence[str], plan: Plan, reading: Reading, *, default: str | None = GUIDED
) -> tuple[Contrast | None, list[Note]]:
    """Return the primary contrast of some compared runs, and a note on it; see :func:`contrast.declared`."""
    scores: dict[str, list[str]] = {}
    for split, rows in reading.endpoints.splits(plan).items():
        y, place = plan.codes[rows], np.searchsorted(plan.used, rows)
        inside = {c: auc_within(y, np.eye(len(plan.classes))[y], of[place]) for c, of in reading.strata.items()}
        scores[split] = ["auc", *(f"auc_within_{c}" for c, value in inside.items() if np.isfinite(value))]
        if split in reading.endpoints.rows and split not in reading.endpoints.refused:
            scores[split] += [f"{name}_weighted" for name in WEIGHTED]
    read = [f"probe:{c}" for c in reading.concepts] + [f"{r}:{c}" for c in reading.leaks for r in REMNANTS]
    scores[reading.where] = [*scores.get(reading.where, []), *read]
    return declared(text, runs, scores, reading.endpoints, reading.where, default=default)


def paired_differences(
    trained: Sequence[TrainedRun],
    plan: Plan,
    reading: Reading,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    primary: Contrast | None = None,
) -> list[Difference]:
    """Return paired differences of runs, averaged over seeds, with intervals over groups.

    Parameters
    ----------
    pairs : names (run, against); ``None`` for those of :func:`compared_pairs`. A run of one seed is paired with each
        seed of the other
    primary : the contrast that was declared before the run, which comes first. The others have q values
    """
    by_name: dict[str, dict[int, TrainedRun]] = {}
    for run in trained:
        by_name.setdefault(run.record.name, {})[run.record.seed] = run
    pairs = compared_pairs(list(by_name)) if pairs is None else pairs
    known: dict[int, dict[tuple[str, str], Scored]] = {}

    def scored(run: TrainedRun) -> dict[tuple[str, str], Scored]:
        if id(run) not in known:
            known[id(run)] = _scored(run, plan, reading)
        return known[id(run)]

    found: list[Difference] = []
    for name, against in pairs:
        both = [(scored(a), scored(b)) for a, b in _by_seed(by_name.get(name, {}), by_name.get(against, {}))]
        if not both:
            continue
        for split, metric in both[0][0]:
            if not all((split, metric) in one for pair in both for one in pair):
                continue
            first, second = ([pair[k][split, metric] for pair in both] for k in (0, 1))
            interval = paired_interval(first, second)
            interval = estimable(interval) if _is_r2(metric, reading) else interval
            found.append(
                Difference(
                    run=name,
                    against=against,
                    split=split,
                    metric=Metric.of(metric),
                    mean=interval.mean,
                    low=interval.low,
                    high=interval.high,
                    n_groups=interval.n_groups,
                    n_effective=_finite(interval.effective),
                    p=_finite(interval.p),
                )
            )
    return _ranked(found, primary)


def _ranked(found: list[Difference], primary: Contrast | None) -> list[Difference]:
    """Return the primary difference first, and the others with p adjusted over all of them."""
    first = next((d for d in found if primary is not None and primary.is_of(d)), None)
    others = [d for d in found if d is not first]
    q = adjust_for_many([d.p for d in others])
    ranked = [dataclasses.replace(d, q=_finite(value)) for d, value in zip(others, q, strict=True)]
    return ranked if first is None else [dataclasses.replace(first, primary=True), *ranked]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _is_r2(metric: str, reading: Reading) -> bool:
    concept = Metric.of(metric).concept
    target = reading.concepts.get(concept) or reading.leaks.get(concept)
    return target is not None and target.kind == "continuous"


def _by_seed(runs: dict[int, TrainedRun], others: dict[int, TrainedRun]) -> list[tuple[TrainedRun, TrainedRun]]:
    """Return pairs of the same seed; a computed run of one seed is paired with every seed of the other."""
    if len(runs) == 1 and len(others) > 1 and not next(iter(runs.values())).record.history:
        return [(run, other) for run in runs.values() for other in others.values()]
    return [(run, others[seed]) for seed, run in runs.items() if seed in others]


def _scored(run: TrainedRun, plan: Plan, reading: Reading) -> dict[tuple[str, str], Scored]:
    """Return (split, metric) → score with that without each group."""
    found: dict[tuple[str, str], Scored] = {}
    threshold = run.record.metrics["val"].get("threshold", 0.5)
    weighted = reading.endpoints.score(run.probability, plan, threshold)
    for split, rows in reading.endpoints.splits(plan).items():
        y, place = plan.codes[rows], np.searchsorted(plan.used, rows)
        groups = np.unique(plan.groups[rows], return_inverse=True)[1]
        found[split, "auc"] = scored_auc(y, run.probability[place], groups)
        for column, levels in reading.strata.items():
            inside = scored_auc_within(y, run.probability[place], groups, levels[place])
            if np.isfinite(inside.value):
                found[split, Metric("auc", within=column)] = inside
        if split in weighted and split not in reading.endpoints.refused:
            found |= {(split, f"{name}_weighted"): score for name, score in weighted[split].items()}
    for metric, predicted in run.fresh.items():
        concept = Metric.of(metric).concept
        target = reading.concepts.get(concept) or reading.leaks[concept]
        if target.kind == "continuous":
            found[reading.where, metric] = scored_r2(target.y.astype(np.float64), predicted, target.clusters)
        else:
            y = target.y.astype(np.intp)
            found[reading.where, metric] = scored_balanced_accuracy(y, predicted, target.clusters, target.n_classes)
    return found
