"""Bags: attention over the patches of a slide or patient, guided by concepts of the whole bag."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_at_least, check_choice, check_seeds
from conceptkit.evaluate.intervals import auc_interval
from conceptkit.evaluate.paired import mean_interval, scored_auc_within
from conceptkit.evaluate.scores import auc
from conceptkit.guide.latent import refuse_latent
from conceptkit.guide.setup import Wish, balance_notes, concept_tasks, read_wishes
from conceptkit.options.base import Progress
from conceptkit.records import AttentionScore, BagScore, BagsRecord, write_atomically
from conceptkit.runs.opening import at_stage, in_own_folder, notes_on, open_study, run_folder, versions
from conceptkit.synthetic import SLIDE, cache_folder, with_slides
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.guide.bag_table import Bags
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.plan import Plan
    from conceptkit.models.guided import Task

ATTENTION_FILE = "attention.csv"
"""Name of the file in a run folder with each patch's attention, a column per network"""

OWN_OPTIONS: Mapping[str, Any] = {"trunk": (32,), "dropout": 0.2, "lr": 1e-3, "epochs": 60, "batch_size": 16}
"""What is other than for patches: bags are few, and their vector has the heads on it at once"""

MADE_SLIDES = (
    f"Bags are slides that were made of each patient's patches ({SLIDE}): a patient of the evaluation splits has tumor "
    "in exactly half of its patches, so that patients have no label of their own."
)


@in_own_folder("bags")
def run_bags(
    study: Study | str | Path | None = None,
    *,
    by: str | None = None,
    encourage: Sequence[str] | None = None,
    discourage: Sequence[str] | None = None,
    label: str | None = None,
    positive: str | None = None,
    share: float = 0.0,
    layer: str | None = None,
    features: str | Path | None = None,
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    attention: str = "gated",
    embedding: int = 64,
    hidden: int = 32,
    options: Mapping[str, Any] | None = None,
    folds: int = 5,
    within: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    batch_size: int = 16,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> BagsRecord:
    """Train a baseline and a guided network on bags of patches alike, and measure what guiding changed.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    by : column that names the bag of each patch; ``None`` for the group, and for slides made of the embedded study's
        patients, whose patients have no label
    encourage, discourage : concepts the guided network is to know, and not to know, of a bag: the mean of a continuous
        one over its patches, a categorical one that is constant in it; ``None`` for the study's
    label : column of the main task; ``None`` for the study's. A continuous one is cut at the training bags' median
    positive, share : class of the label, and the share of a bag's labelled patches that has to be exceeded, where the
        label varies within bags
    layer : of the network, pooled over positions, frozen; ``None`` for the study's first
    features : file of features of one's own instead of a network's
    table, model, weights, group, categorical : as for :func:`run_probe`
    attention : ``gated``, ``plain``, or ``mean`` for none
    embedding, hidden : widths of the embedded patch, and inside the attention
    options : fields of :class:`conceptkit.guide.options.TrainingOptions` by name; ``batch_size`` is in bags
    folds, within, seeds, device : as for :func:`run_guide`
    batch_size : images per forward pass of the frozen network
    out, progress : as for :func:`run_guide`

    Raises
    ------
    InputError
        when something that was given cannot be used
    """
    from conceptkit.guide.bag_table import make_bags
    from conceptkit.guide.options import TrainingOptions
    from conceptkit.guide.plan import make_plan
    from conceptkit.guide.reading import Reading, paired_differences
    from conceptkit.models.bags import ATTENTIONS
    from conceptkit.models.guided import MAIN, Task

    check_choice("attention", attention, ATTENTIONS)
    check_at_least("embedding", embedding, 1)
    check_at_least("hidden", hidden, 1)
    check_seeds(seeds)
    training = TrainingOptions(**{**OWN_OPTIONS, **(options or {})})
    training.check()
    folder = run_folder(out, "bags")
    meant, data = open_study(study, table, model, weights, group, categorical)
    meant = meant.replace(label=label)
    notes: list[str] = []
    if by is None and meant.synthetic and meant.label == "label" and positive is None:
        data, by, positive = with_slides(data), SLIDE, "tumor"
        notes.append(MADE_SLIDES)
    elif by == SLIDE and meant.synthetic:
        data = with_slides(data)
    by = by or meant.group
    if by is None:
        raise InputError("by: name the column of bags, as the study has no group.")
    if encourage is None and discourage is None:
        # What the study wishes for may be what the label is made of.
        encourage = [name for name in meant.encourage if name != meant.label]
        discourage = [name for name in meant.discourage if name != meant.label]
    wishes = _checked(read_wishes(encourage, discourage), meant)
    names = [wish.concept for wish in wishes]
    columns = dict.fromkeys([*names, *within])
    bags = make_bags(data, meant, by, list(columns), positive=positive, share=share)
    plan = make_plan(meant, bags.table, concepts=names)
    learned, skipped = concept_tasks(bags.table, plan, wishes)
    notes = [*notes_on(meant, bags.table, [task.name for task in learned]), *notes, *plan.notes, *skipped]
    outside = len(data) - sum(len(rows) for rows in bags.members)
    if outside:
        notes.append(f"{outside} patches without a {by} are in no bag.")
    tasks = [Task(name=MAIN, kind="categorical", classes=plan.classes), *learned]
    if not wishes:
        notes.append("No concept was encouraged or discouraged: only the baseline was trained.")
    encouraged = [task.name for task in tasks[1:] if not task.adversarial]
    discouraged = [task.name for task in tasks[1:] if task.adversarial]
    reading = Reading.of(bags.table, meant, plan, encouraged, discouraged, folds, within)
    X, made_with, of_network = _features(data, meant, bags, plan, features, layer, batch_size, device, progress)
    notes += of_network
    arms: dict[str, list[Task]] = {"baseline": tasks[:1], **({"guided": tasks} if wishes else {})}
    bench = _Bench(data, meant, bags, plan, reading, X, {**made_with, "by": by, "label_rule": bags.label_rule})
    shape = {"embedding": embedding, "hidden": hidden, "attention": attention}
    trained = []
    for seed in seeds:
        for name, own in arms.items():
            checkpoint = folder / "checkpoints" / f"{name}-seed{seed}"
            stage = f"training {name}, seed {seed}"
            notify = None if progress is None else at_stage(progress, stage)
            trained.append(bench.train(name, own, training, shape, seed, checkpoint, device, notify))
    notes += ["Baseline and guided networks share data, order, seeds, options and the weighting of losses."]
    notes += balance_notes(training, tasks)
    sizes = np.array([len(rows) for rows in bags.members])
    record = BagsRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group or by,
        notes=(*notes, *reading.notes),
        settings={
            "command": "bags",
            "table": meant.table.name,
            "label": meant.label,
            "classes": list(plan.classes),
            "by": by,
            "group": meant.group,
            "categorical": list(categorical),
            "encourage": encouraged,
            "discourage": discouraged,
            "features": None if features is None else Path(features).name,
            "positive": positive,
            "share": share,
            **made_with,
            **shape,
            "seeds": list(seeds),
            "folds": folds,
            "within": list(within),
            "device": device,
            "images_per_pass": batch_size,
            "n_resamples": 0,
            "rows": {name: len(rows) for name, rows in plan.rows.items()},
            **{k: v for k, v in dataclasses.asdict(training).items() if k not in ("unfreeze", "cache")},
        },
        versions=versions(),
        folder=folder,
        encourage=tuple(encouraged),
        discourage=tuple(discouraged),
        units={k: v for k, v in meant.units.items() if k in names},
        evaluated_on=reading.where,
        runs=tuple(run.record for run in trained),
        differences=tuple(paired_differences(trained, plan, reading)),
        by=by,
        label_rule=bags.label_rule,
        n_bags={name: len(rows) for name, rows in plan.rows.items()},
        patches_per_bag=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
        scores=tuple(bench.scores),
        attention=tuple(bench.attended) if attention != "mean" else (),
    )
    write_atomically(folder / ATTENTION_FILE, bench.attention_csv())
    record.save(folder)
    return record


def _checked(wishes: Sequence[Wish], meant: Study) -> Sequence[Wish]:
    for wish in wishes:
        refuse_latent("discourage", wish.concept, "for bags")
        if wish.layer is not None:
            raise InputError(f"concept: heads on bags read what attention pooled, got {wish.concept}@{wish.layer}.")
        if wish.concept == meant.label:
            raise InputError(f"encourage and discourage: {wish.concept} is the main task itself.")
    return wishes


def _features(
    data: PatchTable,
    meant: Study,
    bags: Bags,
    plan: Plan,
    features: str | Path | None,
    layer: str | None,
    batch_size: int,
    device: str,
    progress: Progress | None,
) -> tuple[NDArray[np.float32], dict[str, Any], tuple[str, ...]]:
    """Return the patches' features (n patches, d), 0 outside used bags, where they are from, and notes on that."""
    from conceptkit.features.activations import read_activations
    from conceptkit.features.own_files import LAYER, has_own_features, read_features, with_features
    from conceptkit.models.checkpoints import checkpoint_notes, open_model
    from conceptkit.probe.targets import check_activations

    rows = np.sort(np.concatenate([bags.members[i] for i in plan.used]))
    notes: tuple[str, ...] = ()
    if features is not None or has_own_features(data, meant.model):
        data = with_features(data, features) if features is not None else data
        given = read_features(data, rows)
        values, name, notes = given.X, LAYER, given.notes
        made_with: dict[str, Any] = {"model": LAYER, "layer": LAYER, "weights": given.name}
        made_with["weights_sha256"] = given.digest()
    else:
        if meant.model is None:
            raise InputError("model: none is named, neither by --model nor in the study; --features takes your own.")
        if layer is None and not meant.layers:
            raise InputError("layer: name one, as the study has none.")
        backbone, name = open_model(meant.model, meant.weights), layer or meant.layers[0]
        notify = None if progress is None else at_stage(progress, "reading activations")
        read = read_activations(
            data,
            backbone,
            [name],
            cache=cache_folder(),
            rows=rows,
            batch_size=batch_size,
            device=device,
            progress=notify,
        )
        values, notes = read[name], checkpoint_notes(backbone, data.select(rows))
        made_with = {"model": meant.model, "layer": name, "weights": backbone.weights}
        made_with["weights_sha256"] = backbone.fingerprint()
    check_activations(values, name)
    everywhere = np.zeros((len(data), values.shape[1]), np.float32)
    everywhere[rows] = values
    return everywhere, made_with, notes


class _Bench:
    """What the networks on bags of one run share, and what is gathered of each."""

    def __init__(
        self,
        data: PatchTable,
        meant: Study,
        bags: Bags,
        plan: Plan,
        reading: Any,
        features: NDArray[np.float32],
        made_with: Mapping[str, Any],
    ) -> None:
        self.data, self.meant, self.bags, self.plan, self.reading = data, meant, bags, plan, reading
        self.features, self.made_with = features, made_with
        self.members = [bags.members[i] for i in plan.used]
        self.scores: list[BagScore] = []
        self.attended: list[AttentionScore] = []
        self.columns: dict[str, NDArray[np.float64]] = {}

    def train(
        self,
        name: str,
        tasks: Sequence[Task],
        options: TrainingOptions,
        shape: Mapping[str, Any],
        seed: int,
        checkpoint: Path,
        device: str,
        notify: Any,
    ) -> Any:
        """Train one network, keep it, and read it."""
        from conceptkit.guide.bags import bag_inputs, build_bag_model, read_attention
        from conceptkit.guide.engine import TrainingEngine
        from conceptkit.guide.objective import encode
        from conceptkit.guide.reading import read_run
        from conceptkit.guide.training import DivergedError, predict, train
        from conceptkit.models.bags import BagModel, save_bag_model
        from conceptkit.models.guided import MAIN

        plan, used = self.plan, self.plan.used
        at = {split: np.searchsorted(used, rows) for split, rows in plan.rows.items()}
        training = np.concatenate([self.bags.members[i] for i in plan.rows["train"]])
        network = build_bag_model(self.features[training], tasks, options, seed=seed, **shape)
        inputs = bag_inputs(network, self.features, self.members)
        part = self.bags.table.select(used)
        column = {t.name: self.meant.label if t.name == MAIN else t.name for t in tasks}
        targets = {t.name: encode(t, list(part.concept(column[t.name]).values)) for t in tasks}
        rows = {**at, "train": np.searchsorted(used, plan.training)}
        engine = TrainingEngine(device=device)
        try:
            result = train(network, inputs, targets, rows, options, seed=seed, engine=engine, progress=notify)
        except DivergedError as error:
            if error.kept is not None and isinstance(error.kept.model, BagModel):
                save_bag_model(error.kept.model, checkpoint, self.made_with)
            raise error.kept_in(checkpoint) from None
        model = result.model
        assert isinstance(model, BagModel)
        save_bag_model(model, checkpoint, self.made_with)
        outputs, trunk = predict(model, inputs, device=device)
        raw = {k: v.numpy().astype(np.float64) for k, v in outputs.items()}
        run = read_run(name, seed, checkpoint, result.history, tasks, raw, trunk.numpy(), plan, self.reading)
        self._score(name, seed, run.probability)
        weights = np.full(len(self.data), np.nan)
        weights[np.concatenate(self.members)] = np.concatenate(read_attention(model, inputs, device=device))
        self.columns[f"{name}-seed{seed}"] = weights
        self._attend(name, seed, weights)
        return run

    def _score(self, name: str, seed: int, probability: NDArray[np.float64]) -> None:
        """Add the AUC of each evaluation split, with its interval over groups."""
        from conceptkit.guide.reading import evaluated

        plan = self.plan
        for split, rows in evaluated(plan).items():
            y, score = plan.codes[rows], probability[np.searchsorted(plan.used, rows)]
            groups = np.unique(plan.groups[rows], return_inverse=True)[1]
            found = auc_interval(y, score, groups, groups)
            self.scores.append(
                BagScore(
                    run=name,
                    seed=seed,
                    split=split,
                    auc=auc(y, score),
                    low=found.low,
                    high=found.high,
                    n=len(rows),
                    n_groups=int(groups.max()) + 1,
                    interval_note=found.note,
                )
            )

    def _attend(self, name: str, seed: int, weights: NDArray[np.float64]) -> None:
        """Add how well attention finds the positive patches, within bags of each evaluation split that hold others."""
        from conceptkit.guide.reading import evaluated

        positive = self.bags.positive
        if positive is None:
            return
        labelled = self.data.frame[self.meant.label].notna().to_numpy()
        for split, bags in evaluated(self.plan).items():
            members = [(bag, rows[labelled[rows]]) for bag in bags for rows in (self.bags.members[bag],)]
            members = [(bag, rows) for bag, rows in members if len(rows) and 0 < positive[rows].sum() < len(rows)]
            if not members:
                continue
            rows = np.concatenate([rows for _, rows in members])
            strata = np.repeat(np.arange(len(members)), [len(rows) for _, rows in members])
            home = np.unique([self.plan.groups[bag] for bag, _ in members], return_inverse=True)[1]
            groups = home[strata]
            scored = scored_auc_within(positive[rows].astype(np.intp), weights[rows], groups, strata)
            found = mean_interval([scored])
            self.attended.append(
                AttentionScore(
                    run=name,
                    seed=seed,
                    split=split,
                    auc=scored.value,
                    low=found.low,
                    high=found.high,
                    n=len(members),
                    n_groups=found.n_groups,
                )
            )

    def attention_csv(self) -> str:
        """Return each used patch with its bag, split, label and attention, as CSV."""
        import pandas as pd

        rows = np.concatenate(self.members)
        table = self.bags.table.frame
        bag_of = np.repeat(self.plan.used, [len(m) for m in self.members])
        frame = self.data.frame.iloc[rows]
        kept = {c: frame[c].to_numpy() for c in ("slide", "x", "y", self.meant.label) if c in frame}
        columns = {
            "patch_id": frame["patch_id"].to_numpy(),
            "bag": table["patch_id"].to_numpy()[bag_of],
            "split": table[self.meant.splits.column].to_numpy()[bag_of],
            **kept,
            **{f"attention_{run}": values[rows] for run, values in self.columns.items()},
        }
        return str(pd.DataFrame(columns).to_csv(index=False))
