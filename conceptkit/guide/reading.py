"""What trained networks have learned: scores per split, fresh probes, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError, check_at_least
from conceptkit.evaluate.resampling import draw_groups, percentile_interval, resampled
from conceptkit.evaluate.scores import Floats, auc, main_task_scores
from conceptkit.guide.plan import Plan
from conceptkit.models.guided import MAIN, Task
from conceptkit.patches import PatchTable
from conceptkit.probe.folds import make_folds
from conceptkit.probe.validation import Target, held_out, held_out_mlp, make_target
from conceptkit.records import Difference, GuideRun
from conceptkit.study import Study


@dataclass(frozen=True)
class Reading:
    """What is read from trained networks by fresh probes, on which rows."""

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

    @classmethod
    def of(
        cls,
        data: PatchTable,
        meant: Study,
        plan: Plan,
        encourage: Sequence[str],
        discourage: Sequence[str],
        folds: int,
    ) -> Reading:
        """Choose the rows and make the targets; a concept that cannot be read there is noted, and stays without."""
        check_at_least("folds", folds, 2)
        if meant.splits.read in plan.rows:
            where, rows = meant.splits.read, plan.rows[meant.splits.read]
        else:
            where = " + ".join(plan.evaluation)
            rows = np.sort(np.concatenate([plan.rows[name] for name in plan.evaluation]))
        part = data.select(rows)
        notes: list[str] = []

        def targets(names: Sequence[str]) -> dict[str, Target]:
            found = {}
            for name in names:
                try:
                    concept = part.concept(name)
                    target = make_target(name, concept.kind, concept.values, part.groups(meant.group))
                    make_folds(len(target.y), target.groups, folds, what=f"the {where} rows with {name}")
                except InputError as error:
                    notes.append(f"{name} cannot be read on the {where} rows: {error}")
                else:
                    found[name] = target
            return found

        concepts, leaks = targets(encourage), targets(discourage)
        return cls(where, rows, concepts, leaks, tuple(encourage), tuple(discourage), folds, tuple(notes))


@dataclass(frozen=True)
class TrainedRun:
    """One trained network with the predictions that paired differences are made of."""

    record: GuideRun
    probability: Floats
    """(n used rows,) of class 1, or (n, k)"""
    trunk: NDArray[np.float32]
    """(n used rows, width)"""
    fresh: dict[str, NDArray[Any]]
    """``probe:count`` and ``linear:center`` → out-of-fold predictions on the read rows"""


def read_run(
    name: str,
    seed: int,
    checkpoint: Path,
    history: Sequence[Any],
    tasks: Sequence[Task],
    raw: dict[str, Floats],
    trunk: NDArray[np.float32],
    plan: Plan,
    at: dict[str, NDArray[np.intp]],
    reading: Reading,
) -> TrainedRun:
    """Score the main task on every split, and read concepts and leakage with fresh probes."""
    probability = _probability(raw[MAIN])
    metrics = {}
    for split, rows in plan.rows.items():
        labelled = plan.codes[rows] >= 0
        if labelled.any():
            metrics[split] = main_task_scores(plan.codes[rows][labelled], probability[at[split][labelled]])
    place = np.searchsorted(plan.used, reading.split_rows)
    features = trunk[place].astype(np.float64)
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
        leakage[concept] = {"linear": None, "mlp": None, "chance": None}
        if target is None:
            continue
        X = features[target.rows]
        fresh[f"linear:{concept}"] = held_out(X, [target], folds=reading.folds)[0]
        fresh[f"mlp:{concept}"] = held_out_mlp(X, target, folds=reading.folds, seed=seed)
        leakage[concept] = {
            "linear": target.score(fresh[f"linear:{concept}"]),
            "mlp": target.score(fresh[f"mlp:{concept}"]),
            "chance": target.chance,
        }
    run = GuideRun(
        name=name,
        seed=seed,
        checkpoint=str(checkpoint),
        metrics=metrics,
        concepts=concepts,
        leakage=leakage,
        history=tuple(history),
    )
    return TrainedRun(run, probability, trunk, fresh)


def _probability(logits: Floats) -> Floats:
    """Return the probability of class 1 (n,) from one logit, or of every class (n, k) from k logits."""
    from scipy.special import expit, softmax

    out: Floats = expit(logits[:, 0]) if logits.shape[1] == 1 else softmax(logits, axis=1)
    return out


def _head_score(task: Task, output: Floats, target: Target) -> float:
    """Return the score of a network's own head on the read rows."""
    if task.kind == "continuous":
        return target.score(output[:, 0] * task.deviation + task.mean)
    number = {name: code for code, name in enumerate(target.classes)}
    # A class that the read rows lack gets a number of its own: such a prediction is wrong, whatever the truth.
    predicted = np.array([number.get(task.classes[k], -1) for k in output.argmax(1)])
    recalls = [np.mean(predicted[target.y == code] == code) for code in range(target.n_classes)]
    return float(np.mean(recalls))


def paired_differences(
    trained: Sequence[TrainedRun], plan: Plan, reading: Reading, *, n_resamples: int = 2000
) -> list[Difference]:
    """Return paired differences of every other run to the baseline, averaged over seeds."""
    used = plan.used
    base = {run.record.seed: run for run in trained if run.record.name == "baseline"}
    found: list[Difference] = []
    for name in dict.fromkeys(run.record.name for run in trained if run.record.name != "baseline"):
        pairs = [(run, base[run.record.seed]) for run in trained if run.record.name == name]
        for split in plan.evaluation:
            rows = plan.rows[split][plan.codes[plan.rows[split]] >= 0]
            if not len(rows):
                continue
            y, place = plan.codes[rows], np.searchsorted(used, rows)
            groups = np.unique(plan.groups[rows], return_inverse=True)[1]
            draws = draw_groups(int(groups.max()) + 1, n_resamples=n_resamples)

            def gain(
                chosen: NDArray[np.intp], y: NDArray[np.intp] = y, place: NDArray[np.intp] = place, pairs: Any = pairs
            ) -> float:
                at = place[chosen]
                each = [auc(y[chosen], a.probability[at]) - auc(y[chosen], b.probability[at]) for a, b in pairs]
                return float(np.mean(each))

            low, high = percentile_interval(resampled(gain, groups, draws))
            mean = gain(np.arange(len(rows)))
            found.append(_difference(name, split, "auc", mean, low, high, draws.shape[1]))
        for metric in pairs[0][0].fresh:
            concept = metric.split(":", 1)[1]
            target = reading.concepts.get(concept) or reading.leaks[concept]
            draws = draw_groups(target.n_groups, n_resamples=n_resamples)
            spread = [
                target.resampled(a.fresh[metric], draws) - target.resampled(b.fresh[metric], draws) for a, b in pairs
            ]
            low, high = percentile_interval(np.mean(spread, axis=0))
            mean = float(np.mean([target.score(a.fresh[metric]) - target.score(b.fresh[metric]) for a, b in pairs]))
            found.append(_difference(name, reading.where, metric, mean, low, high, target.n_groups))
    return found


def _difference(run: str, split: str, metric: str, mean: float, low: float, high: float, n_groups: int) -> Difference:
    return Difference(
        run=run, against="baseline", split=split, metric=metric, mean=mean, low=low, high=high, n_groups=n_groups
    )
