"""The command ``conceptkit predictivity``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from conceptkit.cli.console import introduce, progress_bars, reading_console, sentences, write_json_result
from conceptkit.cli.options import (
    CategoricalOption,
    DebugOption,
    GroupOption,
    JsonOption,
    OutOption,
    StudyOption,
    TableOption,
    name_list,
    seed_list,
)


def predictivity(
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help="Concepts, in the order in which sets grow, comma-separated.")
    ] = None,
    alone: Annotated[
        list[str] | None,
        typer.Option("--alone", help="By default what the study discourages, and center."),
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    group: GroupOption = None,
    categorical: CategoricalOption = None,
    seeds: Annotated[str, typer.Option("--seeds", help="How many (5), or a list (1001,822).")] = "5",
    out: OutOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how far concept values alone tell the main label: from chance, each concept, growing sets, the center."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.predictivity import run_predictivity
        from conceptkit.runs.opening import find_study

        meant = find_study(study, table)
        introduce(console, meant)
        with progress_bars() as progress:
            record = run_predictivity(
                meant,
                concepts=None if concept is None else name_list(concept),
                alone=None if alone is None else name_list(alone),
                group=group,
                categorical=name_list(categorical),
                seeds=seed_list(seeds),
                out=out,
                progress=progress,
            )
        unit = "groups" if record.group else "rows"
        splits = list(dict.fromkeys(row.split for row in record.rows))
        title = f"AUC of the main label from columns alone, mean ± SD over seeds, 95 % interval over {unit}"
        grid = Table(title=title, title_justify="left")
        for name in ("columns", "", *splits):
            grid.add_column(escape(name))
        values = {(row.inputs, row.role, row.split): row for row in record.rows}
        for inputs, role in dict.fromkeys((row.inputs, row.role) for row in record.rows):
            cells = []
            for split in splits:
                row = values[inputs, role, split]
                spread = "" if row.sd != row.sd else f" ± {row.sd:.3f}"
                cells.append(f"{row.auc:.3f}{spread} [{row.low:.3f}, {row.high:.3f}]")
            grid.add_row(escape(" + ".join(inputs)), role, *map(escape, cells))
        console.print(grid)
        for note in record.notes:
            console.print(escape(note), style="dim")
        console.print(f"run saved in {escape(str(record.folder))}")
        write_json_result(json, record.to_dict())
