"""The command ``conceptkit bags``."""

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
    seed_list,
    whole_numbers,
)


def bags(
    by: Annotated[
        str | None, typer.Option("--by", help="Column that names the bag of each patch: slide, patient, …")
    ] = None,
    encourage: Annotated[
        list[str] | None, typer.Option("--encourage", help="Concepts of a bag to know, comma-separated.")
    ] = None,
    discourage: Annotated[
        list[str] | None, typer.Option("--discourage", help="Concepts of a bag not to know, comma-separated.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Column of the main task, instead of the study's.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option("--positive", help="Class of the label that makes a bag positive, if it varies there.")
    ] = None,
    share: Annotated[
        float, typer.Option("--share", help="Share of a bag's patches that has to be exceeded for it; 0 for any.")
    ] = 0.0,
    layer: Annotated[str | None, typer.Option("--layer", help="Whose pooled output is a patch's features.")] = None,
    features: Annotated[
        str | None, typer.Option("--features", help="Your own features (.h5, .npy, .parquet), instead of a network.")
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    group: GroupOption = None,
    categorical: CategoricalOption = None,
    attention: Annotated[str, typer.Option("--attention", help="gated, plain, or mean for none.")] = "gated",
    embedding: Annotated[int, typer.Option("--embedding", help="Width of an embedded patch.")] = 64,
    hidden: Annotated[int, typer.Option("--hidden", help="Width inside the attention.")] = 32,
    trunk: Annotated[
        str | None,
        typer.Option("--trunk", help="Widths of dense layers on what is pooled, such as 32; none by default."),
    ] = None,
    dropout: Annotated[float | None, typer.Option("--dropout", help="Rate after each dense layer.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="At most.")] = None,
    warmup: Annotated[int | None, typer.Option("--warmup", help="Epochs in which discouraging sets in.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Epochs without a lower validation loss.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Bags per step.")] = None,
    weighting: Annotated[str | None, typer.Option("--weighting", help="Of the losses, as for guide.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="How to discourage: confusion, reversal, coral, mmd or leace.")
    ] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="Of discouraging, at the end of warmup.")] = None,
    balance_main: Annotated[
        float | None, typer.Option("--balance-main", help="Power of balancing weights in the main loss, 0 to 1.")
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option("--within", help="Columns within whose levels AUCs are taken too, comma-separated."),
    ] = None,
    folds: FoldsOption = 5,
    seeds: Annotated[str, typer.Option("--seeds", help="How many (5), or a list (1001,822).")] = "1",
    device: DeviceOption = "auto",
    out: OutOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Train attention over the patches of slides or patients, guided by concepts of the whole bag."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.bags import run_bags
        from conceptkit.report.bag_tables import bag_tables, bag_verdicts
        from conceptkit.runs.opening import find_study

        chosen = {
            "trunk": None if trunk is None else whole_numbers("trunk", trunk),
            "dropout": dropout,
            "lr": lr,
            "epochs": epochs,
            "warmup": warmup,
            "patience": patience,
            "batch_size": batch_size,
            "weighting": weighting,
            "method": method,
            "strength": strength,
            "balance_main": balance_main,
        }
        meant = find_study(study, table)
        introduce(console, meant)
        with progress_bars() as progress:
            record = run_bags(
                meant,
                by=by,
                encourage=None if encourage is None else name_list(encourage),
                discourage=None if discourage is None else name_list(discourage),
                label=label,
                positive=positive,
                share=share,
                layer=layer,
                features=features,
                model=model,
                weights=weights,
                group=group,
                categorical=name_list(categorical),
                attention=attention,
                embedding=embedding,
                hidden=hidden,
                options={k: v for k, v in chosen.items() if v is not None},
                folds=folds,
                within=name_list(within),
                seeds=seed_list(seeds),
                device=device,
                out=out,
                progress=progress,
            )
        show_findings(console, record, bag_tables(record), bag_verdicts(record))
        write_json_result(json, record.to_dict())
