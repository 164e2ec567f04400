"""What is measured on a bottleneck: true values in place of predictions, odds ratios, leakage, and a residual path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor

from conceptkit.errors import InputError, check_choice
from conceptkit.evaluate.paired import Scored, paired_interval, scored_auc
from conceptkit.evaluate.scores import Floats
from conceptkit.guide.bench import Arm, Bench, Outcome
from conceptkit.guide.bottleneck import columns_of, fit_head
from conceptkit.guide.endpoints import Endpoints
from conceptkit.guide.plan import Plan
from conceptkit.guide.training import predict
from conceptkit.models.guided import CONTINUOUS, MAIN, Task
from conceptkit.records import Note
from conceptkit.records.bottleneck import Bottleneck, Odds, TrueValues
from conceptkit.tables.patches import PatchTable

NONE = "none"
"""Text of ``--intervene`` for no intervention"""


@dataclass(frozen=True)
class Read:
    """One trained bottleneck of true concepts."""

    run: str
    predicted: Floats
    """(n used rows,) probability of class 1, or (n, k)"""
    changed: Mapping[tuple[str, ...], Floats]
    """Concepts with true values → the same, NaN in rows without one of them"""
    true: Floats
    """By the regression on true values, NaN in rows without one of them"""
    logs: tuple[Floats, Floats] | None
    """(c,) log odds ratios per column, predicted and true; ``None`` for more classes than two, or a residual path"""
    share: Mapping[str, float]
    """Split → share of the residual path in the decision"""


def interventions(
    named: Sequence[str] | None, through: Sequence[Task], data: PatchTable, plan: Plan
) -> tuple[list[tuple[str, ...]], list[Note]]:
    """Return the sets of concepts that get their true values, and notes on those that no evaluation row has.

    Parameters
    ----------
    named : concepts; ``None`` for each of the bottleneck and all of them together; ``none`` for nothing

    Raises
    ------
    InputError
        when a named concept is not of the bottleneck, or no evaluation row has a value
    """
    concepts = [task.name for task in through]
    if named is not None and list(named) == [NONE]:
        return [], []
    rows = np.unique(np.concatenate([plan.rows[name] for name in plan.evaluation]))
    found, notes = [], []
    for name in concepts if named is None else named:
        check_choice("intervene", name, concepts)
        values = data.concept(name).values[rows]
        if any(v is not None and v == v for v in values):
            found.append((name,))
        elif named is not None:
            raise InputError(f"intervene: no evaluation row has a value of {name}; drop it from --intervene.")
        else:
            notes.append(Note("note", f"No evaluation row has a value of {name}, so that it could not be set to it."))
    return [*found, *([tuple(name for (name,) in found)] if len(found) > 1 else [])], notes


def read_bottleneck(bench: Bench, arm: Arm, outcome: Outcome, wanted: Sequence[tuple[str, ...]]) -> Read | None:
    """Return what is read from a bottleneck; ``None`` of another network, and of one of no concepts of the table."""
    model = outcome.model
    if not model.through or not all(task.name in bench.reading.encourage for task in model.through):
        return None
    outputs, _ = predict(model, outcome.inputs, device=bench.engine.device)
    raw = {name: values.double().numpy() for name, values in outputs.items()}
    read = np.concatenate([columns_of(task, raw[task.name]) for task in model.through], axis=1)
    targets = bench.targets(arm.tasks, arm.columns)
    true = np.concatenate([_true_columns(task, targets[task.name]) for task in model.through], axis=1)
    head: Any = model.heads[MAIN]
    weights, bias = (p.detach().double().numpy() for p in (head.weight, head.bias))
    own = read @ weights.T + bias
    beside = raw[MAIN] - own
    of_task = np.repeat([task.name for task in model.through], [task.columns for task in model.through])
    changed = {
        names: _probability(np.where(np.isin(of_task, names), true, read) @ weights.T + bias + beside)
        for names in wanted
    }
    labels = targets[MAIN].clone()
    labels[np.searchsorted(bench.used, bench.plan.concept_rows)] = -1
    train = np.searchsorted(bench.used, bench.plan.training)
    rows = train[(labels.numpy()[train] >= 0) & np.isfinite(true[train]).all(1)]
    beta, shift = fit_head(bench, arm, true[rows], rows, labels)
    return Read(
        run=arm.name,
        predicted=_probability(raw[MAIN]),
        changed=changed,
        true=_probability(true @ beta + shift),
        logs=(weights[0], beta[:, 0]) if len(weights) == 1 and model.residual is None else None,
        share=_shares(bench.at, own + beside, beside) if model.residual is not None else {},
    )


def _true_columns(task: Task, target: Tensor) -> Floats:
    """Return what a main head would read (n, c) if a concept were predicted without error, NaN where it is missing."""
    values = target.double().numpy()
    if task.kind == CONTINUOUS:
        return np.asarray(values[:, None])
    out: Floats = (values[:, None] == np.arange(1, len(task.classes))).astype(np.float64)
    out[values < 0] = np.nan
    return out


def _probability(logits: Floats) -> Floats:
    out: Floats = expit(logits[:, 0]) if logits.shape[1] == 1 else softmax(logits, axis=1)
    return out


def _shares(at: Mapping[str, NDArray[np.intp]], logits: Floats, part: Floats) -> dict[str, float]:
    """Return split → cov(part, logit) / var(logit), summed over the classes; the other part has the rest."""
    found = {}
    for split, rows in at.items():
        whole, own = (values[rows] - values[rows].mean(0) for values in (logits, part))
        found[split] = float((whole * own).sum() / max((whole**2).sum(), 1e-300))
    return found


def bottleneck_of(bench: Bench, through: Sequence[Task], reads: Sequence[Read]) -> Bottleneck:
    """Return the record of all bottlenecks, averaged over seeds, with intervals over groups."""
    odds, changed, leaks = [], [], []
    residual: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(read.run for read in reads):
        own = [read for read in reads if read.run == name]
        odds += _odds(name, through, own)
        for concepts in own[0].changed:
            true = [read.changed[concepts] for read in own]
            changed += _compared(bench, name, concepts, [read.predicted for read in own], true, sign=1)
        every = tuple(task.name for task in through)
        leaks += _compared(bench, name, every, [r.predicted for r in own], [r.true for r in own], sign=-1)
        if own[0].share:
            residual[name] = {split: float(np.mean([r.share[split] for r in own])) for split in own[0].share}
    return Bottleneck(
        through=tuple(task.name for task in through),
        rows=_counts(bench, through),
        odds=tuple(odds),
        interventions=tuple(changed),
        leakage=tuple(leaks),
        residual=residual,
    )


def _odds(run: str, through: Sequence[Task], own: Sequence[Read]) -> list[Odds]:
    if any(read.logs is None for read in own):
        return []
    predicted, true = (np.mean([read.logs[k] for read in own if read.logs is not None], axis=0) for k in (0, 1))
    named = []
    for task in through:
        classes = [f"{task.name}: {c}" for c in task.classes[1:]]
        named += [(task.name, task.deviation)] if task.kind == CONTINUOUS else [(name, 1.0) for name in classes]
    return [
        Odds(run=run, concept=name, predicted=float(np.exp(a / scale)), true=float(np.exp(b / scale)), deviation=scale)
        for (name, scale), a, b in zip(named, predicted, true, strict=True)
    ]


def _compared(
    bench: Bench, run: str, concepts: tuple[str, ...], predicted: Sequence[Floats], true: Sequence[Floats], *, sign: int
) -> list[TrueValues]:
    """Return the AUC with true values next to that with predictions, on the rows that have the values, by split."""
    known = np.isfinite(true[0].reshape(len(true[0]), -1)).all(1)
    codes = bench.plan.codes.copy()
    codes[bench.used[~known]] = -1
    plan = dataclasses.replace(bench.plan, codes=codes)
    endpoints = Endpoints.of(bench.data, plan)
    a, b = ([_aucs(values, plan, endpoints) for values in side] for side in (predicted, true))
    found = []
    for split, metric in a[0]:
        first, second = ([scores[split, metric] for scores in side] for side in (a, b))
        interval = paired_interval(second, first) if sign > 0 else paired_interval(first, second)
        values = {
            name: float(np.mean([s.value for s in side])) for name, side in (("predicted", first), ("true", second))
        }
        found.append(
            TrueValues(
                run=run, concepts=concepts, split=split, metric=metric, mean=interval.mean, low=interval.low,
                high=interval.high, n_groups=interval.n_groups, **values,
            )
        )  # fmt: skip
    return found


def _aucs(probability: Floats, plan: Plan, endpoints: Endpoints) -> dict[tuple[str, str], Scored]:
    """Return (split, metric) → AUC of labelled rows, which need two classes."""
    filled = np.nan_to_num(probability)  # rows without a value are of no split
    weighted = endpoints.score(filled, plan, 0.5)
    found = {}
    for split, rows in endpoints.splits(plan).items():
        if len(np.unique(plan.codes[rows])) < 2:
            continue
        groups = np.unique(plan.groups[rows], return_inverse=True)[1]
        found[split, "auc"] = scored_auc(plan.codes[rows], filled[np.searchsorted(plan.used, rows)], groups)
        if split in weighted and split not in endpoints.refused:
            found[split, "auc_weighted"] = weighted[split]["auc"]
    return found


def _counts(bench: Bench, through: Sequence[Task]) -> dict[str, int]:
    plan, train = bench.plan, bench.plan.training
    labelled = plan.rows["train"][plan.codes[plan.rows["train"]] >= 0]
    found = {"labelled": len(labelled), "labelled patients": len(np.unique(plan.groups[labelled]))}
    for task in through:
        values = bench.data.concept(task.name).values[train]
        rows = train[[v is not None and v == v for v in values]]
        found |= {task.name: len(rows), f"{task.name} patients": len(np.unique(plan.groups[rows]))}
    return found
