"""The command ``conceptkit attribute``."""

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
    ModelOption,
    OutOption,
    StudyOption,
    TableOption,
    WeightsOption,
    name_list,
)


def attribute(
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Layers, comma-separated; conceptkit layers lists a network's.")
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help="Concepts, columns of the table, comma-separated.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Classes (names of a checkpoint's, else numbers) or a checkpoint's heads."),
    ] = None,
    among: Annotated[
        list[str] | None, typer.Option("--among", help="Labels whose images are scored apart; all is every image.")
    ] = None,
    adjust: Annotated[
        list[str] | None,
        typer.Option("--adjust", help="Columns that are held fixed in the change per unit, comma-separated."),
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    group: GroupOption = None,
    categorical: CategoricalOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Use the rows of this split alone, or all; of a checkpoint by default those it was not trained on.",
        ),
    ] = None,
    pool: Annotated[str, typer.Option("--pool", help="gap, max, flatten, cls or tokens.")] = "gap",
    method: Annotated[
        str, typer.Option("--method", help="gradient, or integrated: averaged on the way from an empty image.")
    ] = "gradient",
    folds: FoldsOption = 5,
    refits: Annotated[int, typer.Option("--refits", help="Resamples of patients that all is fitted on again.")] = 100,
    permutations: Annotated[
        int, typer.Option("--permutations", help="How often each concept is permuted, for p; 0 for no p.")
    ] = 500,
    maps: Annotated[int, typer.Option("--maps", help="Patches at each end of a contact sheet; 0 for none.")] = 6,
    seed: Annotated[int, typer.Option("--seed", help="Of resamples and permutations.")] = 0,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per pass.")] = 16,
    out: OutOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how a network's outputs depend on concepts: change per unit, TCAV, Br, and where they are read."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.attribute import run_attribute
        from conceptkit.report.attribution_tables import attribution_tables, attribution_verdicts
        from conceptkit.runs.opening import find_study

        meant = find_study(study, table)
        introduce(console, meant)
        with progress_bars() as progress:
            record = run_attribute(
                meant,
                layers=name_list(layer) or None,
                concepts=name_list(concept) or None,
                targets=name_list(target) or None,
                among=name_list(among) or None,
                adjust=name_list(adjust),
                model=model,
                weights=weights,
                group=group,
                categorical=name_list(categorical),
                split=split,
                pool=pool,
                method=method,
                folds=folds,
                refits=refits,
                permutations=permutations,
                maps=maps,
                seed=seed,
                device=device,
                batch_size=batch_size,
                out=out,
                progress=progress,
            )
        show_findings(console, record, attribution_tables(record), attribution_verdicts(record))
        write_json_result(json, record.to_dict())
