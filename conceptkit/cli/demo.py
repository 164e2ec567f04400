"""The command ``conceptkit demo``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import SYNTHETIC, progress_bars, reading_console, sentences, show_record, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption


def demo(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for both runs and the page.")] = "runs/demo",
    seed: Annotated[int, typer.Option("--seed", help="Of training and resamples.")] = 0,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Probe, guide and report on the embedded synthetic study, in one go."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.report import run_demo

        console.print(SYNTHETIC, style="bold yellow")
        with progress_bars() as progress:
            probed, guided, path = run_demo(out, seed=seed, progress=progress)
        for record in (probed, guided):
            show_record(console, record)
        console.print(f"report written to {escape(str(path))}")
        body = {"schema": "conceptkit/demo/1", "study": probed.study, "path": str(path)}
        write_json_result(json, {**body, "probe": probed.to_dict(), "guide": guided.to_dict()})
