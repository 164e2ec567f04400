"""The page from finished runs, and the demonstration that makes them all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptkit.errors import InputError, check_at_least, check_place
from conceptkit.options.base import Notify, Progress
from conceptkit.options.guide import run_guide
from conceptkit.options.probe import run_probe
from conceptkit.options.report import SYNTHETIC, Demo, Report
from conceptkit.records import RECORD_FILE, GuideRecord, ProbeRecord, Record, load_record
from conceptkit.report.page import write_page
from conceptkit.synthetic import embedded_study


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A page that the command wrote."""

    path: Path
    study: str
    """Names of the runs' studies"""
    options: Report

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        folders = {name: self.options.settings()[name] for name in ("latex", "csv", "figures", "projector")}
        runs = list(self.options.runs)
        return {"schema": "conceptkit/report/1", "study": self.study, "path": str(self.path), "runs": runs, **folders}


def report(options: Report, *, progress: Progress | None = None, notify: Notify | None = None) -> Reported:
    """Write one offline HTML page from run folders."""
    studies = dict.fromkeys(load_record(run_of(Path(run))).study for run in options.runs)
    into = {"latex": options.latex, "csv": options.csv, "figures": options.figures}
    into["projector"] = options.projector
    path = write_report(options.runs, options.out, seed=options.seed, **into)
    return Reported(path=path, study=", ".join(studies), options=options)


def write_report(
    runs: Sequence[str | Path | Record],
    out: str | Path = "report.html",
    *,
    latex: str | Path | None = None,
    csv: str | Path | None = None,
    figures: str | Path | None = None,
    projector: str | Path | None = None,
    seed: int = 0,
) -> Path:
    """Write one offline HTML page from run folders, and its claims as JSON next to it.

    Parameters
    ----------
    runs : run folders or checkpoints in them, or records that were just made
    out : the page
    latex : folder for the tables as LaTeX (packages booktabs, graphicx)
    csv : folder for the tables as CSV, numbers in full
    figures : folder for the figures as SVG and PDF
    projector : folder for the saved features, for the embedding projector of TensorBoard
    seed : of the UMAPs

    Returns
    -------
    the page's path

    Raises
    ------
    InputError
        when a folder holds no record that can be read
    """
    if Path(out).suffix.lower() not in (".html", ".htm"):  # a run's own record must not be written over
        raise InputError(f"out: must end in .html, got {str(out)!r}.")
    check_place("out", Path(out))
    check_at_least("seed", seed, 0)
    places = {"latex": latex, "csv": csv, "figures": figures, "projector": projector}
    for name, place in places.items():
        if place is not None:
            if Path(place).exists() and not Path(place).is_dir():
                raise InputError(f"{name}: {place} is a file; name a folder.")
            check_place(name, Path(place) / "a table")
    folders = []
    for run in runs:
        if isinstance(run, Record):
            if run.folder is None:
                raise InputError("run: this record was not saved to a run folder.")
            folders.append(run.folder)
        else:
            folders.append(run_of(Path(run)))
    into = {name: None if place is None else Path(place) for name, place in places.items()}
    return write_page(folders, Path(out), seed=seed, **into)


def run_of(folder: Path) -> Path:
    """Return a run folder; of a checkpoint in one, the run that wrote it."""
    inside = folder.parent.name == "checkpoints" and not (folder / RECORD_FILE).exists()
    return folder.parent.parent if inside else folder


@dataclass(frozen=True, kw_only=True)
class Demonstrated:
    """The runs of the demonstration, and its page."""

    probe: ProbeRecord
    guide: GuideRecord
    null: GuideRecord
    """The counter-example: the same on ``embedded:null``"""
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        body = {"schema": "conceptkit/demo/1", "study": self.probe.study, "path": str(self.path)}
        runs = {"probe": self.probe, "guide": self.guide, "null": self.null}
        return {**body, **{name: record.to_dict() for name, record in runs.items()}}


def demo(options: Demo, *, progress: Progress | None = None, notify: Notify | None = None) -> Demonstrated:
    """Probe and guide on ``embedded:shortcut``, guide on ``embedded:null``, and report."""
    if notify is not None:
        notify(SYNTHETIC)
    folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; name a folder.")
    check_place("out", folder)
    for name in ("probe", "guide", "null"):
        if (folder / name / RECORD_FILE).exists():
            shutil.rmtree(folder / name)
    seed = options.seed
    study = embedded_study("shortcut")
    concepts = ["count", "area"]
    probed = run_probe(study, layers=["mixed10"], concepts=concepts, seed=seed, out=folder / "probe", progress=progress)
    how: dict[str, Any] = {"through": concepts, "arms": ["balanced", "through-balanced"], "seeds": [seed]}
    guided = run_guide(study, **how, out=folder / "guide", progress=progress)
    null = run_guide(embedded_study("null"), **how, out=folder / "null", progress=progress)
    path = write_report([probed, guided, null], folder / "report.html")
    return Demonstrated(probe=probed, guide=guided, null=null, path=path)
