"""The command ``conceptkit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or checkpoints in them.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The page.")] = "report.html",
    latex: Annotated[str | None, typer.Option("--latex", metavar="DIR", help="Tables as LaTeX (booktabs).")] = None,
    csv: Annotated[str | None, typer.Option("--csv", metavar="DIR", help="Tables as CSV, numbers in full.")] = None,
    figures: Annotated[str | None, typer.Option("--figures", metavar="DIR", help="Figures as SVG and PDF.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the UMAPs.")] = 0,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Write one offline HTML page from finished runs."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.report import run_of, write_report
        from conceptkit.records import load_record

        names = list(dict.fromkeys(load_record(run_of(Path(run))).study for run in runs))
        path = write_report(runs, out, latex=latex, csv=csv, figures=figures, seed=seed)
        console.print(f"report written to {escape(str(path))}")
        for what, place in (("tables (LaTeX)", latex), ("tables (CSV)", csv), ("figures", figures)):
            if place is not None:
                console.print(f"{what} written to {escape(place)}")
        write_json_result(
            json,
            {
                "schema": "conceptkit/report/1",
                "study": ", ".join(names),
                "path": str(path),
                "runs": runs,
                "latex": latex,
                "csv": csv,
                "figures": figures,
            },
        )
