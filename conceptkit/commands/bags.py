"""Bags: attention over the patches of a slide or patient, guided by concepts of the whole bag."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conceptkit.commands.qupath import check_export, export_patches
from conceptkit.errors import InputError, check_seeds
from conceptkit.evaluate.intervals import auc_interval
from conceptkit.evaluate.paired import mean_interval, scored_auc_within
from conceptkit.evaluate.scores import auc
from conceptkit.families import ARMS
from conceptkit.features.sources import open_features
from conceptkit.guide.arms import Conditions, choose_arms
from conceptkit.guide.bag_table import BagTable, make_bags
from conceptkit.guide.bags import BagBench
from conceptkit.guide.bench import ALIKE, Places
from conceptkit.guide.contrast import NONE, Contrast, announced
from conceptkit.guide.endpoints import evaluated
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.goals import Goal, concept_names, read_goals
from conceptkit.guide.latent import refuse_latent
from conceptkit.guide.plan import Plan, make_plan
from conceptkit.guide.reading import Reading, TrainedRun, compared_pairs, declare, paired_differences
from conceptkit.guide.setup import ONLY_BASELINE, balance_notes, concept_tasks, signed_names
from conceptkit.guide.weighting import parse_weighting
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.bags import Bags
from conceptkit.options.base import Notify, Progress
from conceptkit.options.training import BAG_DEFAULTS, TrainingOptions
from conceptkit.probe.targets import check_activations
from conceptkit.records import AttentionScore, BagScore, BagsRecord, write_atomically
from conceptkit.runs.opening import at_stage, header, in_own_folder, notes_on, open_source, run_folder
from conceptkit.synthetic import SLIDE, with_slides
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

ATTENTION_FILE = "attention.csv"
"""Name of the file in a run folder with the attention to each patch, a column per network"""

_PLACE = ("slide", "image", "x", "y", "size", "side", "mpp")
"""Columns that say where a patch lies"""

MADE_SLIDES = (
    f"Bags are slides made of each patient's patches ({SLIDE}): patients of the evaluation splits have tumor in "
    "exactly half of their patches, so that patients have no label of their own."
)


@dataclass(frozen=True)
class _Opened:
    """The study with its bags, and what is trained on them."""

    study: Study
    table: PatchTable
    by: str
    positive: str | None
    bags: BagTable
    plan: Plan
    tasks: list[Task]
    notes: list[str]


@in_own_folder("bags")
def bags(
    options: Bags,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> BagsRecord:
    """Train a baseline and a guided network on bags of patches, and measure what guiding changed."""
    check_seeds(options.seeds)
    training = _training(options)
    folder = run_folder(out, options.name)
    opened = _open(study, options)
    check_export(opened.table.frame.columns, options.qupath)
    table, plan = opened.table, opened.plan
    reading = Reading.of(
        opened.bags.table, opened.study, plan, *signed_names(opened.tasks), options.folds, options.within
    )
    given = [Conditions.of(opened.bags.table, plan, opened.tasks, 1, training, seed) for seed in options.seeds]
    arms, _ = choose_arms(None, given[0])
    primary, said = declare(options.primary, [run for run, _ in compared_pairs(arms)], plan, reading)
    if notify is not None and primary is not None:
        notify("\n".join([*said, *announced(primary)]))
    features, made_with, notes = _features(opened, options, progress)
    bench = BagBench(
        opened.bags.table,
        opened.study,
        plan,
        reading,
        TrainingEngine(device=options.device),
        progress,
        features=features,
        members=opened.bags.members,
        shape={"embedding": options.embedding, "hidden": options.hidden, "attention": options.attention},
        made_with={**made_with, "by": opened.by, "label_rule": opened.bags.label_rule},
    )
    trained: list[TrainedRun] = []
    attention: dict[str, NDArray[np.float64]] = {}
    for conditions, name in itertools.product(given, arms):
        arm = ARMS[name].make(conditions)
        outcome = bench.train(arm, Places(folder / "checkpoints" / arm.label))
        trained.append(outcome.run)
        attention[arm.label] = bench.attention(outcome.model)
    all_notes = [*opened.notes, *notes, ALIKE, *balance_notes(training, opened.tasks), *reading.notes, *said]
    record = _record(bench, opened, options, training, trained, folder, all_notes, primary)
    if options.attention != "mean" and opened.bags.positive is not None:
        scores = [score for run in trained for score in _attention_scores(opened, run, attention[run.label])]
        record = dataclasses.replace(record, attention=tuple(scores))
    used = _attention_table(table, bench, attention)
    write_atomically(folder / ATTENTION_FILE, str(used.to_csv(index=False)))
    if options.qupath is not None:
        export_patches(used, table.folder, options.qupath)
    record.save(folder)
    return record


def _training(options: Bags) -> TrainingOptions:
    training = TrainingOptions(**{**BAG_DEFAULTS, **options.overrides()})
    parse_weighting(training.weighting)
    return training


def _open(study: Any, options: Bags) -> _Opened:
    opened, table = open_source(options, study, per="patch")
    opened = opened.replace(label=options.label)
    by, positive, notes = options.by, options.positive, []
    if by is None and opened.synthetic and opened.label == "label" and positive is None:
        by, positive, notes = SLIDE, "tumor", [MADE_SLIDES]
    if by == SLIDE and opened.synthetic:
        table = with_slides(table)
    by = by or opened.group
    if by is None:
        raise InputError("by: name the column of bags, as the study has no group.")
    goals = _goals(opened, options)
    names = concept_names(goals)
    columns = list(dict.fromkeys([*names, *options.within]))
    bags = make_bags(table, opened, by, columns, positive=positive, share=options.share)
    plan = make_plan(opened, bags.table, concepts=names)
    learned, skipped = concept_tasks(bags.table, plan, goals)
    notes = [*notes_on(opened, bags.table, [task.name for task in learned]), *notes, *plan.notes, *skipped]
    outside = len(table) - sum(len(rows) for rows in bags.members)
    if outside:
        notes.append(f"{outside} patches without a {by} are in no bag.")
    notes += [] if goals else [ONLY_BASELINE]
    tasks = [Task(name=MAIN, kind="categorical", classes=plan.classes), *learned]
    return _Opened(opened, table, by, positive, bags, plan, tasks, notes)


def _goals(study: Study, options: Bags) -> list[Goal]:
    if options.encourage is None and options.discourage is None:  # the label may be made of the study's concepts
        stated = (study.encourage, study.discourage)
        return _checked(read_goals(*([name for name in names if name != study.label] for names in stated)), study)
    return _checked(read_goals(options.encourage, options.discourage), study)


def _checked(goals: list[Goal], study: Study) -> list[Goal]:
    for goal in goals:
        refuse_latent("discourage", goal.concept, "for bags")
        if goal.layer is not None:
            raise InputError(f"concept: heads on bags read what attention pooled, got {goal.name}.")
        if goal.concept == study.label:
            raise InputError(f"encourage and discourage: {goal.concept} is the main task itself.")
    return goals


def _features(
    opened: _Opened, options: Bags, progress: Progress | None
) -> tuple[NDArray[np.float32], dict[str, Any], tuple[str, ...]]:
    """Return the features of patches (n patches, d), 0 outside used bags, what they are from, and notes on that."""
    table = opened.table
    source = open_features(
        table,
        opened.study,
        layers=None if options.layer is None else [options.layer],
        features=options.features,
        batch_size=options.images_per_pass,
        device=options.device,
    )
    name = source.layers[0]
    rows = np.sort(np.concatenate([opened.bags.members[i] for i in opened.plan.used]))
    counted = None if progress is None else at_stage(progress, "reading activations")
    values = np.asarray(source.read(rows, [name], progress=counted)[name])
    made_with: dict[str, Any] = {**source.settings(), "layer": name}
    check_activations(values, name)
    everywhere = np.zeros((len(table), values.shape[1]), np.float32)
    everywhere[rows] = values
    return everywhere, made_with, source.notes()


def _record(
    bench: BagBench,
    opened: _Opened,
    options: Bags,
    training: TrainingOptions,
    trained: Sequence[TrainedRun],
    folder: Path,
    notes: Sequence[str],
    primary: Contrast | None,
) -> BagsRecord:
    study, plan, reading = opened.study, opened.plan, bench.reading
    sizes = np.array([len(rows) for rows in opened.bags.members])
    made_with = {k: v for k, v in bench.made_with.items() if k not in ("by", "label_rule")}
    return BagsRecord(
        **header(
            options,
            study,
            folder,
            notes,
            primary=str(primary or NONE),
            label=study.label,
            classes=list(plan.classes),
            by=opened.by,
            encourage=list(reading.encourage),
            discourage=list(reading.discourage),
            positive=opened.positive,
            **made_with,
            n_resamples=0,
            rows={name: len(rows) for name, rows in plan.rows.items()},
            **{k: v for k, v in dataclasses.asdict(training).items() if k not in ("unfreeze", "cache")},
        ),
        encourage=reading.encourage,
        discourage=reading.discourage,
        units={k: v for k, v in study.units.items() if k in (*reading.encourage, *reading.discourage)},
        evaluated_on=reading.where,
        effective_groups=reading.endpoints.effective(plan),
        runs=tuple(run.record for run in trained),
        differences=tuple(paired_differences(trained, plan, reading, primary=primary)),
        by=opened.by,
        label_rule=opened.bags.label_rule,
        n_bags={name: len(rows) for name, rows in plan.rows.items()},
        patches_per_bag=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
        scores=tuple(score for run in trained for score in _scores(plan, run)),
    )


def _scores(plan: Plan, run: TrainedRun) -> Iterator[BagScore]:
    """Yield the AUC of each evaluation split, with its interval over groups."""
    for split, rows in evaluated(plan).items():
        y, score = plan.codes[rows], run.probability[np.searchsorted(plan.used, rows)]
        groups = np.unique(plan.groups[rows], return_inverse=True)[1]
        interval = auc_interval(y, score, groups, groups)
        yield BagScore(
            run=run.record.name,
            seed=run.record.seed,
            split=split,
            auc=auc(y, score),
            low=interval.low,
            high=interval.high,
            n=len(rows),
            n_groups=int(groups.max()) + 1,
            interval_note=interval.note,
        )


def _attention_scores(opened: _Opened, run: TrainedRun, weights: NDArray[np.float64]) -> Iterator[AttentionScore]:
    """Yield how well attention finds the positive patches of each evaluation split, within bags that have others."""
    positive, plan = opened.bags.positive, opened.plan
    assert positive is not None
    labelled = opened.table.frame[opened.study.label].notna().to_numpy()
    for split, bags in evaluated(plan).items():
        members = {bag: (rows := opened.bags.members[bag])[labelled[rows]] for bag in bags}
        members = {bag: rows for bag, rows in members.items() if 0 < positive[rows].sum() < len(rows)}
        if not members:
            continue
        rows = np.concatenate(list(members.values()))
        strata = np.repeat(np.arange(len(members)), [len(own) for own in members.values()])
        groups = np.unique(plan.groups[list(members)], return_inverse=True)[1][strata]
        scored = scored_auc_within(positive[rows].astype(np.intp), weights[rows], groups, strata)
        interval = mean_interval([scored])
        yield AttentionScore(
            run=run.record.name,
            seed=run.record.seed,
            split=split,
            auc=scored.value,
            low=interval.low,
            high=interval.high,
            n=len(members),
            n_groups=interval.n_groups,
        )


def _attention_table(data: PatchTable, bench: BagBench, attention: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Return each used patch with its place, bag, split, label and attention."""
    rows = np.concatenate(bench.used_members)
    bag_of = np.repeat(bench.used, [len(members) for members in bench.used_members])
    table, frame = bench.data.frame, data.frame.iloc[rows]
    columns = {
        "patch_id": frame["patch_id"].to_numpy(),
        "bag": table["patch_id"].to_numpy()[bag_of],
        "split": table[bench.study.splits.column].to_numpy()[bag_of],
        **{c: frame[c].to_numpy() for c in (*_PLACE, bench.study.label) if c in frame},
        **{f"attention_{run}": values[rows] for run, values in attention.items()},
    }
    return pd.DataFrame(columns)
