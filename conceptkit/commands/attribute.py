"""Attributing: from a network, layers and concepts to how its outputs depend on them, with maps and checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.commands.attribute_maps import ImageReader, MapDrawer
from conceptkit.errors import InputError, check_at_least, check_choice, check_distinct, near_names
from conceptkit.records.attribute import AttributeRecord, AttributeRow, Moved, Score
from conceptkit.runs.context import (
    center_column,
    default_concepts,
    names_kept,
    placed_in,
    table_targets,
    write_context,
)
from conceptkit.runs.opening import (
    Progress,
    at_stage,
    in_own_folder,
    notes_on,
    open_study,
    run_folder,
    split_rows,
    versions,
)
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from conceptkit.attribution.analysis import Analysis, Found
    from conceptkit.attribution.directions import Fitted
    from conceptkit.attribution.outputs import Output
    from conceptkit.models.backbones import Backbone

ALL = "all"
"""Stands for every row among splits, and for every image among labels."""

SIZES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Multiples of the step by which activations are moved."""

MOVED_IMAGES = 60
"""Images whose activations are moved: a mean over more would cost time and say the same."""


@in_own_folder("attribute")
def run_attribute(
    study: Study | str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    among: Sequence[str] | None = None,
    adjust: Sequence[str] = (),
    table: str | Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    group: str | None = None,
    categorical: Sequence[str] = (),
    nested: str | None = None,
    split: str | None = None,
    pool: str = "gap",
    method: str = "gradient",
    folds: int = 5,
    refits: int = 100,
    permutations: int = 500,
    maps: int = 6,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> AttributeRecord:
    """Measure how the outputs of a network depend on concepts at a layer.

    Parameters
    ----------
    study : a study, its file, or ``None`` for the current folder's and else the embedded one
    layers, concepts : names; ``None`` for the study's
    targets : outputs: classes of a guided network's main task, names of its concept heads, or numbers of classes;
        ``None`` for the second class of two, else for all
    among : labels whose images are scored apart; ``None`` for all images and each label
    adjust : columns that are held fixed in the change per unit
    table, model, weights, group, categorical, nested : as for :func:`run_probe`
    split : the only split whose rows are used, or ``all``; ``None``: of a checkpoint that guide wrote the study's
        evaluation split, as it was trained on others, and else all rows
    pool : ``gap``, ``max``, ``flatten``, ``cls`` or ``tokens``
    method : ``gradient``, or ``integrated`` (averaged on the way from an image of the mean colour)
    folds : of the held-out score
    refits : resamples of the groups on which everything is fitted again, at least 10
    permutations : shuffles of each concept for p; 0 for none
    maps : patches at each end of the contact sheet; 0 for no pictures
    seed : of resamples and shuffles
    device : ``auto``, ``cpu``, ``cuda``, …
    batch_size : images per pass
    out : run folder; ``None`` for the next free ``runs/attribute-NNN``
    progress : told of the work

    Raises
    ------
    InputError
        when something that was given cannot be used; nothing is written then
    """
    from conceptkit.attribution.analysis import LEAST_REFITS, analyse
    from conceptkit.attribution.outputs import choose_outputs
    from conceptkit.attribution.sensitivity import METHODS, check_layer, pooled_gradients
    from conceptkit.features.activations import read_activations, token_notes
    from conceptkit.models.checkpoints import checkpoint_notes, is_checkpoint, open_model
    from conceptkit.models.inference import choose_device, ieee_float32
    from conceptkit.models.pooling import POOLINGS
    from conceptkit.probe.targets import check_activations, check_varying

    check_choice("pool", pool, POOLINGS)
    check_choice("method", method, METHODS)
    check_at_least("refits", refits, LEAST_REFITS)
    for name, value in (("permutations", permutations), ("maps", maps), ("seed", seed)):
        check_at_least(name, value, 0)
    check_at_least("batch_size", batch_size, 1)
    where = choose_device(device)
    meant, data = open_study(study, table, model, weights, group, categorical)
    folder = run_folder(out, "attribute")
    layers, concepts = list(layers or meant.layers), list(concepts or meant.concepts or default_concepts(data, meant))
    check_distinct("layer", layers)
    check_distinct("concept", concepts)
    if meant.model is None:
        raise InputError("model: none is named, neither by --model nor in the study.")
    guided = is_checkpoint(meant.model)
    split = _default_split(data, meant, guided) if split is None else split
    keep = split_rows(data, meant, None if split == ALL else split)
    confounders = {name: _confounder(data, name, concepts) for name in adjust}
    for values in confounders.values():
        keep = keep & values.there
    groups = data.groups(meant.group)
    center = center_column(data, None)
    placing = {**placed_in(data, meant, center=center, nested=nested), "seed": seed}
    targets_read, skipped = table_targets(data, concepts, keep, groups, folds, placing)
    concepts = [target.name for target in targets_read]
    notes = [*notes_on(meant, data, concepts), *skipped]
    if guided and split not in (ALL, meant.splits.train, meant.splits.val):
        notes.append(f"Rows are those of {split}, on which the network was not trained; --split {ALL} takes all.")
    rows = np.unique(np.concatenate([target.rows for target in targets_read]))
    labels = _labels(data, meant, rows)
    named = _among(labels, among, meant.label)

    backbone = open_model(meant.model, meant.weights, seed=seed)
    notes = [*checkpoint_notes(backbone, data), *token_notes(data, backbone, layers), *notes]
    images = ImageReader(data, backbone, where, batch_size)
    few = images.of(rows[:2])
    with ieee_float32():
        backbone.module.to(where)
        outputs = choose_outputs(backbone.module, few, targets)
        own = {layer: backbone.layer(layer) for layer in layers}
        for layer in own.values():
            for output in outputs:
                check_layer(backbone.module, layer, output, few)
        drawn = MapDrawer(folder=folder, maps=maps, pool=pool, units=meant.units)
        found: list[AttributeRow] = []
        moved: list[Moved] = []
        for layer, dotted in own.items():
            backbone.module.cpu()  # where the digest of its weights is taken, and activations are read from
            X = read_activations(
                data,
                backbone,
                [layer],
                cache=cache_folder(),
                rows=rows,
                pool=pool,
                batch_size=batch_size,
                device=device,
                progress=None if progress is None else lambda done, todo: progress("reading activations", done, todo),
            )[layer].astype(np.float64)
            check_activations(X, layer)
            check_varying(X, layer)
            backbone.module.to(where)
            notify = None if progress is None else at_stage(progress, f"derivatives at {layer}")
            G = pooled_gradients(
                backbone.module,
                dotted,
                outputs,
                images.batches(rows),
                pool=pool,
                method=method,
                progress=None if notify is None else lambda done, step=notify: step(done, len(rows)),  # type: ignore[misc]
            )
            for i, target in enumerate(targets_read):
                if progress is not None:
                    progress(f"concepts at {layer}", i, len(concepts))
                at = np.searchsorted(rows, target.rows)
                analysis = analyse(
                    X[at],
                    target,
                    G[:, at],
                    {name: np.flatnonzero(chosen[at]) for name, chosen in named.items()},
                    confounders=_design(confounders, target.rows),
                    folds=folds,
                    refits=refits,
                    permutations=permutations,
                    seed=seed,
                )
                common = {
                    "model": backbone.name,
                    "weights": backbone.weights,
                    "layer": layer,
                    "permutations": permutations,
                    "adjusted_for": tuple(adjust),
                    "unit": meant.units.get(target.name, ""),
                }
                found += [_row(analysis, one, outputs, common) for one in analysis.found]
                moved += _moved(backbone, dotted, layer, pool, analysis.fitted, outputs, images, seed)
                drawn.draw(backbone, dotted, layer, analysis, X[at], images, groups)
            if progress is not None:
                progress(f"concepts at {layer}", len(concepts), len(concepts))
    backbone.module.cpu()
    record = AttributeRecord(
        study=meant.name,
        synthetic=meant.synthetic,
        group=meant.group,
        notes=tuple(notes),
        settings={
            "command": "attribute",
            "table": meant.table.name,
            "model": meant.model,
            "weights": backbone.weights,
            "weights_sha256": backbone.fingerprint(),
            "group": meant.group,
            "categorical": list(categorical),
            "center": center,
            "nested": nested,
            "layers": layers,
            "concepts": concepts,
            "targets": [output.name for output in outputs],
            "among": list(named),
            "adjust": list(adjust),
            "split": split,
            "pool": pool,
            "method": method,
            "folds": folds,
            "refits": refits,
            "permutations": permutations,
            "maps": maps,
            "seed": seed,
            "device": str(where),
            "batch_size": batch_size,
        },
        versions=versions(),
        folder=folder,
        rows=_with_q(found),
        moved=tuple(moved),
        figures=tuple(drawn.names),
    )
    drawn.save()
    write_context(folder, data, meant, rows, concepts=names_kept(meant, data, concepts))
    record.save(folder)
    return record


def _default_split(data: PatchTable, meant: Study, guided: bool) -> str:
    """Return the split that a guided network was not trained on, where the table has it."""
    if not guided or meant.splits.column not in data.frame.columns:
        return ALL
    there = set(data.frame[meant.splits.column].dropna().astype("str"))
    return meant.splits.read if meant.splits.read in there else ALL


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


def _confounder(data: PatchTable, name: str, concepts: Sequence[str]) -> _Confounder:
    data.column("adjust", name)
    if name in concepts:
        raise InputError(f"adjust: {name} is attributed itself; a concept cannot be held fixed while it moves.")
    return _Confounder(data.concept(name).values)


def _design(confounders: Mapping[str, _Confounder], rows: NDArray[np.intp]) -> NDArray[np.float64] | None:
    from conceptkit.probe.adjustment import design

    return design({name: c.values[rows] for name, c in confounders.items()}) if confounders else None


def _labels(data: PatchTable, meant: Study, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return the label (n,) of each row, empty where there is none."""
    if meant.label not in data.frame.columns:
        return np.full(len(rows), "", dtype=object)
    column = data.frame[meant.label].iloc[rows]
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
    from conceptkit.evaluate.many_tests import adjust_for_many

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
    backbone: Backbone,
    dotted: str,
    layer: str,
    pool: str,
    fitted: Fitted,
    outputs: Sequence[Output],
    images: ImageReader,
    seed: int,
) -> Iterator[Moved]:
    """Move the activations of some images along the pattern and watch."""
    from conceptkit.attribution.maps import move_along
    from conceptkit.attribution.outputs import watch_outputs
    from conceptkit.attribution.sensitivity import Layout

    rows = fitted.target.rows
    if len(rows) > MOVED_IMAGES:
        rows = np.sort(np.random.default_rng([seed, 4]).choice(rows, MOVED_IMAGES, replace=False))
    batches = list(images.batches(rows))
    layout = Layout(backbone.module, dotted, batches[0], pool=pool)
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
