"""The command ``conceptkit probe``."""

from __future__ import annotations

from typing import Annotated

import typer

from conceptkit.cli.console import introduce, progress_bars, reading_console, sentences, show_record, write_json_result
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
    name_pairs,
)


def probe(
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Layers, comma-separated; conceptkit layers lists a network's.")
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help="Concepts, columns of the table, comma-separated.")
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    features: Annotated[
        str | None, typer.Option("--features", help="A store of extract, or your own features (.h5, .npy, .parquet).")
    ] = None,
    group: GroupOption = None,
    center: Annotated[
        str | None,
        typer.Option("--center", help="Column of the centers, or none. Default: center, if present."),
    ] = None,
    nested: Annotated[
        str | None, typer.Option("--nested", help="Column of units nested in the groups, such as slides of patients.")
    ] = None,
    categorical: CategoricalOption = None,
    split: Annotated[str | None, typer.Option("--split", help="Use the rows of this split alone.")] = None,
    pool: Annotated[str, typer.Option("--pool", help="gap, max, flatten, cls or tokens.")] = "gap",
    folds: FoldsOption = 5,
    permutations: Annotated[
        int, typer.Option("--permutations", help="How often each concept is permuted, for p; 0 for no p.")
    ] = 1000,
    adjust: Annotated[
        list[str] | None,
        typer.Option("--adjust", help="Confounders for a partial R², comma-separated; stain means all stain measures."),
    ] = None,
    adjust_terms: Annotated[
        str, typer.Option("--adjust-terms", help="linear, or quadratic: squares and pairwise interactions too.")
    ] = "linear",
    leave_out: Annotated[
        str | None,
        typer.Option("--leave-out", help="Also score with each level of this column held out. Default: the centers."),
    ] = None,
    repeat: Annotated[
        list[str] | None,
        typer.Option("--repeat", help="CONCEPT=COLUMN of its repeated measurement, for the reliability ceiling."),
    ] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="cross-validated, or paper: least squares, scored in sample.")
    ] = "cross-validated",
    seed: Annotated[int, typer.Option("--seed", help="Of folds, resamples, permutations and random networks.")] = 0,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per forward pass.")] = 16,
    out: OutOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how well concepts are read from layers, on patients the vectors have not seen."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.probe import run_probe
        from conceptkit.runs.opening import find_study

        meant = find_study(study, table)
        introduce(console, meant)
        with progress_bars() as progress:
            record = run_probe(
                meant,
                layers=name_list(layer) or None,
                concepts=name_list(concept) or None,
                model=model,
                weights=weights,
                features=features,
                group=group,
                center=center,
                nested=nested,
                categorical=name_list(categorical),
                split=split,
                pool=pool,
                folds=folds,
                permutations=permutations,
                adjust=name_list(adjust),
                adjust_terms=adjust_terms,
                leave_out=leave_out,
                repeat=name_pairs("repeat", repeat),
                protocol=protocol,
                seed=seed,
                device=device,
                batch_size=batch_size,
                out=out,
                progress=progress,
            )
        show_record(console, record)
        write_json_result(json, record.to_dict())
