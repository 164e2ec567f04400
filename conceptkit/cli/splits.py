"""The command ``conceptkit splits``."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from conceptkit.cli.console import introduce, reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption, StudyOption, TableOption


def splits(
    study: StudyOption = None,
    table: TableOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Print how many patches, patients and slides each split, center and label has."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.splits import count_splits
        from conceptkit.runs.opening import find_study

        opened = find_study(study, table)
        introduce(console, opened)
        counted = count_splits(opened)
        grid = Table(title="Patches by split, center and label", title_justify="left")
        for name in counted.columns:
            grid.add_column(escape(name))
        for row in counted.rows:
            grid.add_row(*(escape(str(row[name])) for name in counted.columns))
        console.print(grid)
        for note in counted.notes:
            console.print(escape(note), style="dim")
        write_json_result(
            json,
            {
                "schema": "conceptkit/splits/1",
                "study": opened.name,
                "rows": list(counted.rows),
                "notes": list(counted.notes),
            },
        )
