"""How the results of commands without a record are printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from conceptkit.commands.doctor import Examination
    from conceptkit.commands.encoders import Encoders
    from conceptkit.commands.extract import Extracted, NetworkLayers
    from conceptkit.commands.init import Started
    from conceptkit.commands.make_splits import MadeSplits
    from conceptkit.commands.nuclei import NucleiScored, NucleiTrained
    from conceptkit.commands.predict import Predicted
    from conceptkit.commands.report import Demonstrated, Reported
    from conceptkit.commands.splits import SplitCounts
    from conceptkit.commands.status import RunStatus
    from conceptkit.commands.tile import Tiled
    from conceptkit.commands.verify import Verified
    from conceptkit.pathology.measuring import Measured
    from conceptkit.pathology.viewers.exporting import Exported

from conceptkit.cli.console import show_record

_STYLES = {"finished": "green", "running": "bold", "stopped": "yellow", "empty": "dim"}
_MARKS = {"good": ("✓", "green"), "less": ("–", "yellow"), "bad": ("✗", "bold red")}


def show_tiled(console: Console, tiled: Tiled) -> None:
    """Print what ``tile`` wrote."""
    _show_skipped(console, tiled.skipped)
    for note in tiled.notes:
        console.print(escape(note), style="yellow" if note in tiled.warnings else "dim")
    if tiled.resumed:
        console.print(f"{tiled.resumed} slides were finished by an earlier run", style="dim")
    console.print(f"{len(tiled.table)} tiles written to {escape(tiled.path)}")


def show_measured(console: Console, measured: Measured) -> None:
    """Print what ``measure`` wrote."""
    _show_skipped(console, measured.skipped)
    _show_notes(console, measured.notes)
    if measured.resumed:
        console.print(f"{measured.resumed} were measured by an earlier run", style="dim")
    console.print(f"{len(measured.table)} patches written to {escape(measured.path)}")


def show_nuclei_trained(console: Console, trained: NucleiTrained) -> None:
    """Print what ``nuclei train`` came to."""
    _show_notes(console, trained.notes)
    before = "" if math.isnan(trained.before) else f", {trained.before:.3f} before the training"
    console.print(
        f"{trained.score} {trained.aji:.3f} on {len(trained.validation)} validation images{before} "
        f"(step {trained.best_step} of {trained.steps}, {len(trained.training)} training images)"
    )
    if trained.types:
        right = "not measured" if trained.recall is None else f"{trained.recall:.0%} right (mean over types)"
        console.print(f"types of the validation images' nuclei: {right}; {escape(', '.join(trained.types))}")
    console.print(f"weights written to {escape(trained.path)}")


def show_nuclei_scored(console: Console, scored: NucleiScored) -> None:
    """Print the scores of ``nuclei score``."""
    names = {"aji": "AJI", "dice": "Dice", "pq": "PQ", "f1": "F1 at IoU 0.5", "r": "count r", "bias": "count bias"}
    grid = Table(title=f"Nuclei by {escape(scored.method)} against the annotated ones", title_justify="left")
    for column in (scored.by or "", "images", *names.values()):
        grid.add_column(escape(column))
    for group, values in scored.groups.items():
        cells = [
            "–" if math.isnan(values[n]) else f"{values[n]:+.0%}" if n == "bias" else f"{values[n]:.3f}" for n in names
        ]
        if group:
            grid.add_row(escape(group), f"{values['images']:.0f}", *cells)
    total = scored.groups[""]
    cells = ["–" if math.isnan(total[n]) else f"{total[n]:+.0%}" if n == "bias" else f"{total[n]:.3f}" for n in names]
    grid.add_row("all", f"{total['images']:.0f}", *cells, style="bold")
    console.print(grid)
    worst = scored.rows.dropna(subset="aji").nsmallest(3, "aji")
    lowest = (f"{escape(name)} {aji:.3f}" for name, aji in zip(worst["image_id"], worst["aji"], strict=True))
    console.print(f"lowest AJI: {', '.join(lowest)}")
    _show_notes(console, scored.notes)
    for place in (scored.path, scored.figure):
        if place is not None:
            console.print(f"written: {escape(place)}")


def show_extracted(console: Console, extracted: Extracted) -> None:
    """Print what ``extract`` wrote."""
    found = extracted.activations
    _show_skipped(console, found.skipped)
    before = len(found) - found.rows_written
    path = escape(str(extracted.options.store or found.path))
    console.print(f"{found.rows_written} rows written to {path}, {before} already present")


def show_layers(console: Console, found: NetworkLayers) -> None:
    """Print the layers of a network."""
    title = f"{found.model}, images of {found.size}×{found.size} pixels"
    grid = Table(title=escape(title), title_justify="left")
    for column in ("layer", "other names", "output of one image", "kind"):
        grid.add_column(column)
    for layer in found.layers:
        shape = f"returns a {layer.returns}" if layer.shape is None else "×".join(map(str, layer.shape)) or "one value"
        grid.add_row(*map(escape, (layer.name, ", ".join(layer.aliases), shape, layer.kind)))
    console.print(grid)
    if found.hidden:
        console.print(f"{found.hidden} more inside these: --all", style="dim")


def show_encoders(console: Console, found: Encoders) -> None:
    """Print the encoders by name."""
    grid = Table(title="Encoders by name, as their authors use them", title_justify="left")
    for column in ("--model", "repository", "µm/px", "pixels", "features", "pooling", "licence"):
        grid.add_column(column, overflow="fold")
    for name, one in found.presets.items():
        pool = f"needs {one.package}" if one.package else one.pool
        grid.add_row(
            *map(escape, (name, one.repository, f"{one.mpp:g}", str(one.size), str(one.width), pool, one.licence))
        )
    console.print(grid)
    console.print(
        "Most repositories are gated: request access on the repository's page at huggingface.co, then set HF_TOKEN. "
        "An encoder that needs another package is not opened; extract its features and set --features.",
        style="dim",
    )


def show_predicted(console: Console, predicted: Predicted) -> None:
    """Print what ``predict`` wrote."""
    columns, options = escape(", ".join(predicted.columns)), predicted.options
    _show_skipped(console, predicted.skipped)
    where = f"written to {escape(str(options.out))}" if options.out else "predicted"
    rows = "bags" if "bag" in predicted.frame else "patches"
    console.print(f"{len(predicted.frame)} {rows} {where}: {columns}")
    for note in predicted.frame.attrs["notes"]:
        console.print(escape(note), style="bold yellow")
    if options.maps:
        console.print(f"maps drawn in {escape(str(options.maps))}")
    if options.qupath:
        console.print(f"GeoJSON for QuPath written to {escape(str(options.qupath))}")


def show_exported(console: Console, exported: Exported) -> None:
    """Print what ``qupath`` wrote."""
    _show_notes(console, exported.notes)
    objects = " and ".join(f"{n:,} {w}" for n, w in ((exported.tiles, "tiles"), (exported.nuclei, "nuclei")) if n)
    out = escape(str(exported.out))
    images = f"{len(exported.images)} image{'s' * (len(exported.images) != 1)}"
    console.print(f"{objects or '0 objects'} of {images} written to {out}")
    if (exported.out / "import.groovy").is_file():
        console.print(f"In QuPath, open the images and run {out}/import.groovy (Automate > Script editor).")


def show_splits(console: Console, found: Any) -> None:
    """Print the counts of a study, or the splits that were made."""
    (_show_made_splits if hasattr(found, "parts") else _show_counts)(console, found)


def _show_counts(console: Console, counted: SplitCounts) -> None:
    grid = Table(title="Patches by split, center and label", title_justify="left")
    for name in counted.columns:
        grid.add_column(escape(name))
    for row in counted.rows:
        grid.add_row(*(escape(str(row[name])) for name in counted.columns))
    console.print(grid)
    _show_notes(console, counted.notes)


_LABELS_BESIDE = 3
"""Maximum number of labels whose shares fit in one table with the other columns of 100 characters"""


def _show_made_splits(console: Console, made: MadeSplits) -> None:
    grid = Table(title=f"Splits by patient (column {escape(made.column)})", title_justify="left")
    labels = list(made.parts[0].labels)
    beside = labels if len(labels) <= _LABELS_BESIDE else []
    has_centers, has_auc = made.parts[0].centers is not None, any(part.shortcut for part in made.parts)
    for name in ("part", "share", "patients", *["centers"] * has_centers, "patches", *beside):
        grid.add_column(escape(name))
    if has_auc:
        for name in ("AUC of center", "chance", "95 %"):
            grid.add_column(name)
    n = sum(part.patients for part in made.parts)
    for part in made.parts:
        cells = [part.name, f"{part.share:.1%}", f"{part.patients:,} ({part.patients / n:.1%})"]
        cells += [str(part.centers)] * has_centers + [f"{part.patches:,}"]
        cells += [f"{part.labels[name]:.1%}" for name in beside]
        if has_auc:
            found = part.shortcut
            values = [math.nan] * 3 if found is None else [found.auc, found.chance, found.high]
            cells += ["–" if math.isnan(value) else f"{value:.3f}" for value in values]
        grid.add_row(*map(escape, cells))
    console.print(grid)
    if not beside and labels:
        console.print(_label_shares(made))
    _show_notes(console, made.notes)
    if made.out is not None:
        console.print(f"{len(made.frame):,} patches written to {escape(str(made.out))}")


def _label_shares(made: MadeSplits) -> Table:
    """Return a row per label, as there may be many."""
    grid = Table("label", *(escape(part.name) for part in made.parts))
    for name in made.parts[0].labels:
        grid.add_row(escape(name), *(f"{part.labels[name]:.1%}" for part in made.parts))
    return grid


def show_report(console: Console, reported: Reported) -> None:
    """Print what ``report`` wrote."""
    console.print(f"report written to {escape(str(reported.path))}")
    options = reported.options
    places = {"tables (LaTeX)": options.latex, "tables (CSV)": options.csv, "figures": options.figures}
    places |= {"embeddings for the projector": options.projector}
    console.print(f"claims written to {escape(str(reported.path.with_suffix('.json')))}")
    for what, place in places.items():
        if place is not None:
            console.print(f"{what} written to {escape(str(place))}")


def show_verified(console: Console, verified: Verified) -> None:
    """Print which claims of a report hold; those that do not, one by one."""
    ways: dict[str, int] = {}
    for claim in verified.claims:
        if claim.holds:
            ways[claim.how] = ways.get(claim.how, 0) + 1
        else:
            console.print(f"[bold red]✗[/] {escape(claim.path)}: {escape(claim.text)}")
            console.print(f"    {escape(claim.how)}", style="dim")
    held = ", ".join(f"{n} {how}" for how, n in ways.items())
    console.print(f"{sum(ways.values())} of {len(verified.claims)} claims hold{f' ({held})' if held else ''}")


def show_demo(console: Console, demonstrated: Demonstrated) -> None:
    """Print the records of ``demo``."""
    for record in (demonstrated.probe, demonstrated.guide, demonstrated.null):
        show_record(console, record)
    console.print(f"report written to {escape(str(demonstrated.path))}")


def show_started(console: Console, started: Started) -> None:
    """Print what ``init`` wrote."""
    console.print(f"study file written to {escape(str(started.path))}")
    for note in started.notes:
        console.print(f"• {escape(note)}")
    console.print("Check it, then run: conceptkit probe" if started.table else "Then check it.")


def show_status(console: Console, found: RunStatus) -> None:
    """Print how far a run is."""
    what = f"{found.kind} " if found.kind else ""
    console.print(f"{what}{escape(found.path)}: {found.state}", style=_STYLES[found.state])
    if found.done is not None and found.state != "empty":
        of = "" if found.total is None else f" of {found.total}"
        left = "" if found.minutes_left is None else f", about {_duration(found.minutes_left)} left"
        console.print(f"{found.done}{of} {found.unit} finished{left}")
    if found.minutes_quiet is not None:
        console.print(f"last written {_duration(found.minutes_quiet)} ago")
    for training in found.trainings:
        losses = ", ".join(f"{escape(name)} {value:.4g}" for name, value in training.losses.items())
        console.print(f"{escape(training.name)}: epoch {training.epoch}, {losses}")
    for name, reason in found.failed.items():
        console.print(f"{escape(name)} failed: {escape(reason)}", style="yellow")
    _show_notes(console, found.notes)


def show_doctor(console: Console, found: Examination) -> None:
    """Print the findings of ``doctor``."""
    for finding in found.findings:
        mark, style = _MARKS[finding.state]
        console.print(f"[{style}]{mark} {finding.name}[/]: {escape(finding.found)}")
        if finding.disables and finding.state != "good":
            console.print(f"    disables {escape(finding.disables)}", style="dim")
        if finding.remedy:
            console.print(f"    remedy: {escape(finding.remedy)}", style="dim")
    console.print(
        "conceptkit can be used." if found.is_usable else "conceptkit cannot be used: see the missing packages above."
    )


def _show_skipped(console: Console, skipped: Iterable[tuple[str, str]]) -> None:
    for what, reason in skipped:
        console.print(f"skipped {escape(what)}: {escape(reason)}", style="yellow")


def _show_notes(console: Console, notes: tuple[str, ...]) -> None:
    for note in notes:
        console.print(escape(note), style="dim")


def _duration(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"


SHOWS: Mapping[str, Callable[[Console, Any], None]] = {
    "predict": show_predicted,
    "tile": show_tiled,
    "measure": show_measured,
    "nuclei train": show_nuclei_trained,
    "nuclei score": show_nuclei_scored,
    "qupath": show_exported,
    "splits": show_splits,
    "extract": show_extracted,
    "layers": show_layers,
    "encoders": show_encoders,
    "report": show_report,
    "verify": show_verified,
    "demo": show_demo,
    "init": show_started,
    "status": show_status,
    "doctor": show_doctor,
}
"""Command → what prints its result; commands without one here print a record"""
