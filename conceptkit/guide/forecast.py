"""The forecast of a guided training: its headroom, the power of the study, and the arm that it recommends."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from conceptkit.errors import InputError
from conceptkit.evaluate.clustering import effective_size
from conceptkit.evaluate.detectable import POWER, detectable_difference, power
from conceptkit.evaluate.scores import Floats
from conceptkit.guide.arms import Conditions
from conceptkit.guide.bench import PatchBench
from conceptkit.guide.endpoints import CENTER, has_centers
from conceptkit.guide.frozen import frozen_features
from conceptkit.guide.headroom import CENTERS_LEFT_OUT, Evidence, aucs, label_from, penalty, spread
from conceptkit.guide.plan import Plan
from conceptkit.models.guided import MAIN
from conceptkit.records.guide import BALANCED, BASELINE, Headroom

SOUGHT = 0.02
"""Difference in AUC for which the power is stated"""

LEAST_POWER = 0.5
"""Power for :data:`SOUGHT` below which the verdict says that the study is small"""

MOST_ROWS = 6000
"""Rows of each split that are read; of more, these are drawn at random"""

PLACES = {"val": "on validation rows", CENTERS_LEFT_OUT: "with each training center left out in turn"}
"""Name of a place → words"""


def forecast(bench: PatchBench, plan: Plan, given: Conditions, *, with_test: bool = False) -> Headroom:
    """Return what is known before the training; the recommendation never uses evaluation rows.

    Parameters
    ----------
    bench : of all rows of the plan, or of those that train and validate
    plan : with the evaluation rows, of which only patients and centers are used unless ``with_test``
    given : conditions of the first seed
    with_test : whether the AUCs are computed on evaluation splits too
    """
    evidence, chosen = _evidence(bench, plan, given, with_test=with_test)
    sizes = _evaluation_sizes(bench, plan)
    rows = evidence.labelled
    effective = {
        "train": _effective(evidence.groups[rows], evidence.weights(rows)),
        "val": _effective(evidence.groups[evidence.rows["val"]]),
        "evaluation": effective_size(sizes),
    }
    decoded = {
        task.name: label_from(evidence, _columns(task.classes, bench.values(task.name)[chosen]))
        for task in given.tasks
        if task.adversarial
    }
    found: dict[str, dict[str, float]] = {}
    detectable: float | None = None
    chance: float | None = None
    # The many small regressions are three times as slow with two threads of BLAS.
    with contextlib.suppress(InputError), threadpool_limits(1, user_api="blas"):  # too few patients of a class
        inverse = penalty(evidence)
        found = aucs(evidence, inverse=inverse)
        of_difference = spread(evidence, inverse=inverse)
        if of_difference is not None:
            error = of_difference.error(sizes)
            detectable = detectable_difference(error, effective["evaluation"])
            chance = power(SOUGHT, error, effective["evaluation"])
    verdict, recommended = judged(found, detectable, chance, balanced=bool(given.balanced_by))
    return Headroom(
        headroom=found,
        label_from_discouraged=decoded,
        effective_patients=effective,
        detectable_difference=detectable,
        power=chance,
        verdict=verdict,
        recommended=recommended,
        with_test=with_test,
    )


def judged(
    found: Mapping[str, Mapping[str, float]], detectable: float | None, chance: float | None, *, balanced: bool
) -> tuple[str, str]:
    """Return the verdict, one sentence that leads with the arm, and the arm.

    Parameters
    ----------
    found : place → AUCs; training centers left out decide, else validation rows
    detectable, chance : smallest detectable difference, and power for :data:`SOUGHT`; ``None`` if unknown
    balanced : whether arms with the balanced main loss can be trained
    """
    plain, through = (BALANCED, "through-balanced") if balanced else (BASELINE, "through")
    place = CENTERS_LEFT_OUT if CENTERS_LEFT_OUT in found else "val"
    scores = {name: value for name, value in found.get(place, {}).items() if np.isfinite(value)}
    reasons, arm = ["there are too few labelled patients to compare concepts with features"], plain
    if "frozen_features" in scores:
        reasons = ["no concept is encouraged"]
    if scores.keys() >= {"predicted_concepts", "frozen_features"}:
        mine, theirs = scores["predicted_concepts"], scores["frozen_features"]
        arm = through if mine > theirs else plain
        beat = "beat" if mine > theirs else "cannot beat"
        reasons = [f"predicted concepts {beat} frozen features (AUC {mine:.3f} against {theirs:.3f} {PLACES[place]})"]
    if chance is not None and chance < LEAST_POWER:
        small = f"the study is too small for a difference of {SOUGHT:g}"
        reasons.append(f"{small} (power {chance:.2f}; it can detect {detectable:.3f})")
    return f"Train {arm}: {', and '.join(reasons)}.", arm


def lines(found: Headroom, group: str | None) -> list[str]:
    """Return what stands below the verdict: a table of AUCs, the discouraged concepts, patients, and the power."""
    names = list(dict.fromkeys(name for scores in found.headroom.values() for name in scores))
    table = [["AUC of the main label", *(name.replace("_", " ") for name in names)]]
    for place, scores in found.headroom.items():
        row = ["–" if np.isnan(scores[name]) else f"{scores[name]:.3f}" for name in names]
        table.append([PLACES.get(place, f"on {place}"), *row])
    widths = [max(map(len, column)) + 3 for column in zip(*table, strict=True)]
    said = ["".join(map(str.ljust, row, widths)).rstrip() for row in table] if names else []
    decoded = [f"{name} {value:.3f}" for name, value in found.label_from_discouraged.items() if np.isfinite(value)]
    if decoded:
        said.append(f"AUC of the main label by what is discouraged, on training rows: {', '.join(decoded)}.")
    units = "rows" if group is None else f"{group}s"
    counts = [f"{name} {value:.1f}" for name, value in found.effective_patients.items()]
    said.append(f"Effective number of {units}: {', '.join(counts)}.")
    if found.detectable_difference is not None and found.power is not None:
        said.append(
            f"Smallest difference in AUC that the evaluation rows can detect, with a power of {POWER:g}: "
            f"{found.detectable_difference:.3f}. Power for {SOUGHT:g}: {found.power:.2f}."
        )
    return said


def _evidence(
    bench: PatchBench, plan: Plan, given: Conditions, *, with_test: bool
) -> tuple[Evidence, NDArray[np.intp]]:
    """Return the rows that may be looked at, and their positions among the used rows of the bench."""
    seen = {"train": plan.scaled_on, "val": plan.rows["val"]}
    seen |= {name: plan.rows[name] for name in plan.evaluation if with_test}
    table_rows = {name: _drawn(rows) for name, rows in seen.items()}
    every = np.unique(np.concatenate(list(table_rows.values())))
    chosen = np.searchsorted(bench.used, every)
    wanted = given.through or [t for t in given.tasks if not t.adversarial and t.name != MAIN]
    options = given.options if given.continued else dataclasses.replace(given.options, trunk=())
    arm = given.arm("headroom", [given.tasks[0], *wanted], options=options)
    features, *layers = frozen_features(bench, arm, chosen)
    found: dict[str | None, str | None] = {None: None}
    found.update({task.layer: bench.setup.backbone.layer(task.layer) for task in wanted if task.layer})
    of_layer = dict(zip(dict.fromkeys(found.values()), (features, *layers), strict=True))
    concepts = [
        (of_layer[found[task.layer]], _columns(task.classes, bench.values(task.name)[chosen])) for task in wanted
    ]
    centers = np.full(len(every), -1)
    if has_centers(bench.data):
        names = bench.data.select(every).concept(CENTER).values
        known = np.array([v is not None for v in names], dtype=bool)
        centers[known] = np.unique(names[known].astype(str), return_inverse=True)[1]
    evidence = Evidence(
        codes=plan.codes[every],
        groups=plan.groups[every],
        centers=centers,
        rows={name: np.searchsorted(every, rows) for name, rows in table_rows.items()},
        features=features,
        concepts=concepts,
        shortcut=bench.shortcut(arm).numpy()[chosen] if given.balanced_by else None,
        balance=given.options.balance_main if given.balanced_by else 0.0,
    )
    return evidence, chosen


def _drawn(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    kept = rows if len(rows) <= MOST_ROWS else np.random.default_rng(0).choice(rows, MOST_ROWS, replace=False)
    return np.sort(kept)


def _columns(classes: Sequence[str], values: NDArray[Any]) -> Floats:
    """Return a concept as columns (n, t): its values, or indicators of its classes; NaN where missing."""
    if not classes:
        return np.asarray(values, dtype=np.float64)[:, None]
    known = np.array([v is not None for v in values], dtype=bool)
    text = np.array([str(v) for v in values])
    out = (text[:, None] == np.asarray(classes[1:] if len(classes) == 2 else classes)).astype(np.float64)
    out[~known] = np.nan
    return np.asarray(out)


def _evaluation_sizes(bench: PatchBench, plan: Plan) -> Floats:
    """Return the rows (g,) of each patient of unseen centers, or of all evaluation rows; their labels are not read."""
    rows = np.concatenate([plan.rows[name] for name in plan.evaluation])
    if has_centers(bench.data):
        names = np.array([str(v) for v in bench.data.concept(CENTER).values])
        seen = names[np.concatenate([plan.rows["train"], plan.rows["val"]])]
        unseen = rows[~np.isin(names[rows], seen)]
        rows = unseen if len(unseen) else rows
    return np.bincount(np.unique(plan.groups[rows], return_inverse=True)[1]).astype(np.float64)


def _effective(groups: NDArray[np.intp], weights: Floats | None = None) -> float:
    return effective_size(np.bincount(np.unique(groups, return_inverse=True)[1], weights=weights).astype(np.float64))
