"""The command ``conceptkit audit``."""

from __future__ import annotations

from typing import Annotated

import typer

from conceptkit.cli.console import (
    introduce,
    progress_bars,
    reading_console,
    sentences,
    show_findings,
    write_json_result,
)
from conceptkit.cli.options import (
    CategoricalOption,
    DebugOption,
    DeviceOption,
    FoldsOption,
    GroupOption,
    JsonOption,
    OutOption,
    StudyOption,
    TableOption,
    name_list,
)


def audit(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint that guide wrote.")],
    concept: Annotated[str, typer.Option("--concept", help="The concept that is looked for, such as center.")],
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Layers, comma-separated; some blocks and the trunk by default.")
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    group: GroupOption = None,
    categorical: CategoricalOption = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Rows of this split alone; by default all outside training and validation."),
    ] = None,
    folds: FoldsOption = 5,
    permutations: Annotated[int, typer.Option("--permutations", help="For p; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of resamples and permutations.")] = 0,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per pass.")] = 16,
    out: OutOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Look for a concept that should be gone: fresh probes from the input to the logit, and what erasing it costs."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.audit import run_audit
        from conceptkit.report.audit_tables import audit_tables, audit_verdicts
        from conceptkit.runs.opening import find_study

        meant = find_study(study, table)
        introduce(console, meant)
        with progress_bars() as progress:
            record = run_audit(
                checkpoint,
                concept,
                study=meant,
                layers=name_list(layer) or None,
                group=group,
                categorical=name_list(categorical),
                split=split,
                folds=folds,
                permutations=permutations,
                seed=seed,
                device=device,
                batch_size=batch_size,
                out=out,
                progress=progress,
            )
        show_findings(console, record, audit_tables(record), audit_verdicts(record))
        write_json_result(json, record.to_dict())
