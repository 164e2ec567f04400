"""Attributing: from a network, layers and concepts to how its outputs depend on them, with maps and checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.attribution.analysis import Analysis, Found, analyse
from conceptkit.attribution.directions import Fitted
from conceptkit.attribution.maps import move_along
from conceptkit.attribution.outputs import Output, choose_outputs, watch_outputs
from conceptkit.attribution.sensitivity import Layout, check_layer, check_pool, pooled_gradients
from conceptkit.commands.attribute_maps import ImageReader, MapDrawer
from conceptkit.commands.qupath import check_export, export_patches
from conceptkit.errors import InputError, check_distinct, near_names
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.features.own_files import LAYER
from conceptkit.features.sources import Features, open_features
from conceptkit.models.backbones import Backbone
from conceptkit.models.checkpoints import is_adapter_folder, is_checkpoint
from conceptkit.models.inference import choose_device, ieee_float32
from conceptkit.options.attribute import Attribute
from conceptkit.options.base import Notify, Progress
from conceptkit.probe.adjustment import design
from conceptkit.probe.targets import Target, check_activations, check_varying
from conceptkit.records.attribute import AttributeRecord, AttributeRow, Moved, Score
from conceptkit.runs.context import center_column, default_concepts, names_kept, placed_in, table_targets, write_context
from conceptkit.runs.opening import at_stage, header, in_own_folder, notes_on, open_source, run_folder, split_rows
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

ALL = "all"
"""Stands for every row among splits, and for every image among labels."""

SIZES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Multiples of the step by which activations are moved."""

MOVED_IMAGES = 60
"""Images whose activations are moved: a mean over more would cost time and say the same."""


@dataclass(frozen=True)
class _Confounder:
    values: NDArray[Any]
    """(n,) numbers, or text with ``None`` where missing"""

    @property
    def there(self) -> NDArray[np.bool_]:
        if self.values.dtype.kind == "f":
            finite: NDArray[np.bool_] = np.isfinite(self.values)
            return finite
        return np.array([v is not None for v in self.values], dtype=bool)


@dataclass(frozen=True)
class _Plan:
    """What is attributed, read from options, study and table before any network is opened."""

    study: Study
    table: PatchTable
    split: str
    targets: list[Target]
    """With the rows of each"""
    rows: NDArray[np.intp]
    """All rows of the targets, ascending"""
    among: dict[str, NDArray[np.bool_]]
    """Name → which of the rows are scored together"""
    confounders: dict[str, _Confounder]
    layers: list[str]
    concepts: list[str]
    notes: list[str]
    center: str | None


@in_own_folder("attribute")
def attribute(
    options: Attribute,
    study: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> AttributeRecord:
    """Measure how the outputs of a network depend on concepts at its layers, and draw where they are predicted."""
    check_pool(options.pool)
    device = choose_device(options.device)
    plan = _plan(options, study)
    check_export(plan.table.frame.columns, options.qupath)
    folder = run_folder(out, options.name)
    table, rows = plan.table, plan.rows
    features = open_features(
        table,
        plan.study,
        layers=options.layers,
        pool=options.pool,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
    )
    backbone = features.network()
    images = ImageReader(table, backbone, device, options.batch_size)
    drawer = MapDrawer(folder=folder, maps=options.maps, pool=options.pool, units=plan.study.units)
    found: list[AttributeRow] = []
    patches: dict[str, NDArray[np.float64]] = {}
    moved: list[Moved] = []
    with ieee_float32():
        backbone.module.to(device)
        few = images.of(rows[:2])
        outputs = choose_outputs(backbone.module, few, options.targets or None)
        dotted = {layer: backbone.layer(layer) for layer in features.layers}
        for module in dotted.values():
            for output in outputs:
                check_layer(backbone.module, module, output, few)
        for layer, module in dotted.items():
            X, G = _read_layer(options, plan, features, layer, outputs, images, progress)
            for k, target in enumerate(plan.targets):
                if progress is not None:
                    progress(f"concepts at {layer}", k, len(plan.targets))
                at = np.searchsorted(rows, target.rows)
                analysis = _analyse(options, plan, X[at], G[:, at], target, at)
                found += _rows(options, plan, backbone, layer, analysis, outputs)
                moved += _moved(options, backbone, module, layer, analysis.fitted, outputs, images)
                if options.qupath is not None:
                    patches |= _on_patches(plan, layer, analysis, X[at], G[:, at], outputs)
                drawer.draw(backbone, module, layer, analysis, X[at], images, table.groups(plan.study.group))
            if progress is not None:
                progress(f"concepts at {layer}", len(plan.targets), len(plan.targets))
    backbone.module.cpu()
    notes = [*features.notes(), *plan.notes]
    record = AttributeRecord(
        **header(
            options,
            plan.study,
            folder,
            notes,
            **features.settings(),
            layers=list(features.layers),
            concepts=plan.concepts,
            targets=[output.name for output in outputs],
            among=list(plan.among),
            split=plan.split,
            center=plan.center,
            device=str(device),
        ),
        rows=_with_q(found),
        moved=tuple(moved),
        figures=tuple(drawer.names),
    )
    drawer.save()
    if options.qupath is not None:
        kept = plan.table.frame.iloc[rows].assign(**{name: values[rows] for name, values in patches.items()})
        export_patches(kept, plan.table.folder, options.qupath, units=plan.study.units)
    write_context(folder, table, plan.study, rows, concepts=names_kept(plan.study, table, plan.concepts))
    record.save(folder)
    return record


def _plan(options: Attribute, study: Any) -> _Plan:
    """Check what options, study and table show, before a network is opened."""
    study, table = open_source(options, study)
    layers = list(options.layers or study.layers)
    concepts = list(options.concepts or study.concepts or default_concepts(table, study))
    check_distinct("layer", layers)
    check_distinct("concept", concepts)
    if study.model is None:
        raise InputError("model: no model given; set --model, or model in the study file.")
    if study.model == LAYER or is_adapter_folder(study.model):
        raise InputError(
            f"model: attribute reads the images of a network, got {study.model}, which reads features; set --model to "
            "a network on images, or see what an adapter relies on with audit."
        )
    guided = is_checkpoint(study.model)
    split = options.split or _default_split(table, study, guided)
    keep = split_rows(table, study, None if split == ALL else split)
    confounders = {name: _confounder(table, name, concepts) for name in options.adjust}
    for values in confounders.values():
        keep = keep & values.there
    groups = table.groups(study.group)
    center = center_column(table, None)
    placing = placed_in(table, study, center=center, nested=options.nested)
    targets, skipped = table_targets(table, concepts, keep, groups, options.folds, {**placing, "seed": options.seed})
    concepts = [target.name for target in targets]
    notes = [*notes_on(study, table, concepts), *skipped]
    if guided and split not in (ALL, study.splits.train, study.splits.val):
        notes.append(f"Rows are those of {split}, on which the network was not trained; --split {ALL} takes all.")
    rows = np.unique(np.concatenate([target.rows for target in targets]))
    among = _among(_labels(table, study, rows), options.among or None, study.label)
    return _Plan(study, table, split, targets, rows, among, confounders, layers, concepts, notes, center)


def _read_layer(
    options: Attribute,
    plan: _Plan,
    features: Features,
    layer: str,
    outputs: Sequence[Output],
    images: ImageReader,
    progress: Progress | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pooled activations (n, d) at a layer, and the derivatives (o, n, d) of the outputs by them."""
    backbone = features.network()
    backbone.module.cpu()  # where the digest of its weights is taken, and activations are read from
    reading = None if progress is None else at_stage(progress, "reading activations")
    X = np.asarray(features.read(plan.rows, [layer], progress=reading)[layer], np.float64)
    check_activations(X, layer)
    check_varying(X, layer)
    backbone.module.to(images.where)
    step = None if progress is None else at_stage(progress, f"derivatives at {layer}")
    G = pooled_gradients(
        backbone.module,
        backbone.layer(layer),
        outputs,
        images.batches(plan.rows),
        pool=options.pool,
        method=options.method,
        progress=None if step is None else lambda done: step(done, len(plan.rows)),
    )
    return X, G


def _analyse(
    options: Attribute,
    plan: _Plan,
    X: NDArray[np.float64],
    G: NDArray[np.float64],
    target: Target,
    at: NDArray[np.intp],
) -> Analysis:
    return analyse(
        X,
        target,
        G,
        {name: np.flatnonzero(chosen[at]) for name, chosen in plan.among.items()},
        confounders=_design(plan.confounders, target.rows),
        folds=options.folds,
        refits=options.refits,
        permutations=options.permutations,
        seed=options.seed,
    )


def _on_patches(
    plan: _Plan,
    layer: str,
    analysis: Analysis,
    X: NDArray[np.float64],
    G: NDArray[np.float64],
    outputs: Sequence[Output],
) -> dict[str, NDArray[np.float64]]:
    """Return name → what a map shows of every row of the table, not a number outside of the concept's rows.

    ``C at LAYER`` is the concept as its vector, fitted on these rows, predicts it; ``OUTPUT per C at LAYER`` the
    change of an output per unit of the concept along its pattern.
    """
    fitted, maps = analysis.fitted, {}
    predicted = X @ fitted.found.vectors + fitted.intercepts
    for column, name in enumerate(fitted.classes):
        concept = fitted.target.name if name is None else f"{fitted.target.name}: {name}"
        per_unit = {
            f"{out.name} per {concept}": g @ fitted.found.patterns[:, column] for out, g in zip(outputs, G, strict=True)
        }
        for what, values in {concept: predicted[:, column], **per_unit}.items():
            whole = np.full(len(plan.table), np.nan)
            whole[fitted.target.rows] = values
            maps[f"{what} at {layer}"] = whole
    return maps


def _default_split(table: PatchTable, study: Study, guided: bool) -> str:
    """Return the split that a guided network was not trained on, where the table has it."""
    if not guided or study.splits.column not in table.frame.columns:
        return ALL
    there = set(table.frame[study.splits.column].dropna().astype("str"))
    return study.splits.read if study.splits.read in there else ALL


def _confounder(table: PatchTable, name: str, concepts: Sequence[str]) -> _Confounder:
    table.column("adjust", name)
    if name in concepts:
        raise InputError(f"adjust: {name} is attributed itself; a concept cannot be held fixed while it moves.")
    return _Confounder(table.concept(name).values)


def _design(confounders: Mapping[str, _Confounder], rows: NDArray[np.intp]) -> NDArray[np.float64] | None:
    return design({name: c.values[rows] for name, c in confounders.items()}) if confounders else None


def _labels(table: PatchTable, study: Study, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return the label (n,) of each row, empty where there is none."""
    if study.label not in table.frame.columns:
        return np.full(len(rows), "", dtype=object)
    column = table.frame[study.label].iloc[rows]
    return np.array(["" if m else str(v) for v, m in zip(column, column.isna(), strict=True)], dtype=object)


def _among(labels: NDArray[Any], wanted: Sequence[str] | None, column: str) -> dict[str, NDArray[np.bool_]]:
    """Return name → which rows are scored together."""
    known = [str(v) for v in np.unique(labels[labels != ""].astype(str))]
    sets = {ALL: np.ones(len(labels), dtype=bool), **{name: labels == name for name in known}}
    if wanted is None:
        return sets if len(known) > 1 else {ALL: sets[ALL]}
    for name in wanted:
        if name not in sets:
            raise InputError(f"among: no image of these rows has {column} {name!r}; {near_names(name, sets)}.")
    return {name: sets[name] for name in wanted}


def _rows(
    options: Attribute, plan: _Plan, backbone: Backbone, layer: str, analysis: Analysis, outputs: Sequence[Output]
) -> list[AttributeRow]:
    common = {
        "model": backbone.name,
        "weights": backbone.weights,
        "layer": layer,
        "permutations": options.permutations,
        "adjusted_for": options.adjust,
        "unit": plan.study.units.get(analysis.fitted.target.name, ""),
    }
    return [_row(analysis, one, outputs, common) for one in analysis.found]


def _row(analysis: Analysis, one: Found, outputs: Sequence[Output], common: Mapping[str, Any]) -> AttributeRow:
    fitted, target = analysis.fitted, analysis.fitted.target
    continuous = target.kind == "continuous"
    sd = float(target.y.std(ddof=1)) if continuous else None
    low, high = one.per_unit - one.reach, one.per_unit + one.reach
    per_sd = [None if sd is None else value * sd for value in (one.per_unit, low, high)]
    notes = []
    mean = one.scores["mean"].value
    if mean * one.per_unit < 0:
        notes.append(
            "The output changes in opposite directions along the vector and along the pattern: the vector also cancels "
            "noise, so its sign does not describe the concept here."
        )
    if math.isfinite(analysis.score) and not math.isfinite(analysis.score_low):
        notes.append(f"Decoding of {target.name}: {analysis.score_note or 'the interval is not estimable'}.")
    if one.zero_gradients:
        notes.append(f"At {one.zero_gradients} of {one.n} images the output does not depend on the layer.")
    return AttributeRow(
        **common,
        concept=target.name,
        concept_class=fitted.classes[one.column],
        kind=target.kind,
        target=outputs[one.output].name,
        among=one.among,
        n=one.n,
        n_groups=one.n_groups,
        n_fit=len(target.y),
        metric=target.metric,
        score=analysis.score,
        score_low=analysis.score_low,
        score_high=analysis.score_high,
        chance=target.chance,
        same_derivative=one.same_derivative,
        per_unit=one.per_unit,
        per_unit_low=low,
        per_unit_high=high,
        per_sd=per_sd[0],
        per_sd_low=per_sd[1],
        per_sd_high=per_sd[2],
        sd=sd,
        round_step=1.0 if sd is None else round_step(sd),
        per_unit_p=one.p,
        per_unit_q=math.nan,
        interval_note=one.note,
        scores=one.scores,
        alpha=fitted.alpha,
        cosine=float(analysis.cosines[one.column]),
        agreement=one.agreement,
        zero_gradients=one.zero_gradients,
        permuted=analysis.permuted,
        refits=analysis.refits,
        notes=tuple(notes),
    )


def round_step(sd: float) -> float:
    """Return the one of 1, 2, 5 × a power of ten that is nearest to ``sd`` by its ratio."""
    power = 10.0 ** math.floor(math.log10(sd))
    near = min((1.0, 2.0, 5.0, 10.0), key=lambda step: abs(math.log(step * power / sd)))
    return float(f"{near * power:.1g}")


def _with_q(rows: Sequence[AttributeRow]) -> tuple[AttributeRow, ...]:
    """Fill in q, each score's over all rows of the call."""
    per_unit = adjust_for_many([row.per_unit_p for row in rows])
    scores: list[dict[str, Score]] = [dict(row.scores) for row in rows]
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        having = [i for i, row in enumerate(rows) if name in row.scores]
        for i, q in zip(having, adjust_for_many([rows[i].scores[name].p for i in having]), strict=True):
            scores[i][name] = dataclasses.replace(scores[i][name], q=q)
    return tuple(
        dataclasses.replace(row, per_unit_q=q, scores=own) for row, q, own in zip(rows, per_unit, scores, strict=True)
    )


def _step(fitted: Fitted, column: int) -> NDArray[np.float64]:
    """Return the pattern (d,) times one standard deviation; of a class, the way from the others to it."""
    scale = float(fitted.target.y.std(ddof=1)) if fitted.target.kind == "continuous" else 1.0
    step: NDArray[np.float64] = fitted.found.patterns[:, column] * scale
    return step


def _moved(
    options: Attribute,
    backbone: Backbone,
    module: str,
    layer: str,
    fitted: Fitted,
    outputs: Sequence[Output],
    images: ImageReader,
) -> Iterator[Moved]:
    """Move the activations of some images along the pattern and watch."""
    rows = fitted.target.rows
    if len(rows) > MOVED_IMAGES:
        rows = np.sort(np.random.default_rng([options.seed, 4]).choice(rows, MOVED_IMAGES, replace=False))
    batches = list(images.batches(rows))
    layout = Layout(backbone.module, module, batches[0], pool=options.pool)
    look = watch_outputs(backbone.module, outputs)
    for column, name in enumerate(fitted.classes):
        yield Moved(
            layer=layer,
            concept=fitted.target.name,
            concept_class=name,
            n=len(rows),
            steps=SIZES,
            outputs=move_along(backbone.module, layout, batches, _step(fitted, column), SIZES, look),
        )
