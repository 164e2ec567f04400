"""The command ``conceptkit guide``."""

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
    seed_list,
    whole_numbers,
)


def guide(
    encourage: Annotated[
        list[str] | None, typer.Option("--encourage", help="Concepts to know, comma-separated.")
    ] = None,
    discourage: Annotated[
        list[str] | None, typer.Option("--discourage", help="Concepts not to know, comma-separated.")
    ] = None,
    study: StudyOption = None,
    table: TableOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    group: GroupOption = None,
    categorical: CategoricalOption = None,
    unfreeze: Annotated[
        list[str] | None, typer.Option("--unfreeze", help="Layers to train, comma-separated; none for the trunk alone.")
    ] = None,
    trunk: Annotated[
        str | None, typer.Option("--trunk", help="Widths of the dense layers, such as 2048,512,256.")
    ] = None,
    dropout: Annotated[float | None, typer.Option("--dropout", help="Rate after each dense layer.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="Of kernels.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="At most.")] = None,
    warmup: Annotated[int | None, typer.Option("--warmup", help="Epochs of the reversal's schedule.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Epochs without a lower validation loss.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Patches per step.")] = None,
    weighting: Annotated[
        str | None, typer.Option("--weighting", help="vanilla, uncertainty or uncertainty-bounded.")
    ] = None,
    reversal: Annotated[str | None, typer.Option("--reversal", help="constant, ramp or switched.")] = None,
    folds: FoldsOption = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of a single pair of runs.")] = 0,
    seeds: Annotated[str | None, typer.Option("--seeds", help="How many (5), or a list (1001,822).")] = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Train a baseline and a guided network alike, and measure what guiding changed."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.workflow.guiding import run_guide
        from conceptkit.workflow.opening import find_study

        chosen = {
            "unfreeze": None if unfreeze is None else tuple(n for n in name_list(unfreeze) if n != "none"),
            "trunk": None if trunk is None else whole_numbers("trunk", trunk),
            "dropout": dropout,
            "lr": lr,
            "weight_decay": weight_decay,
            "epochs": epochs,
            "warmup": warmup,
            "patience": patience,
            "batch_size": batch_size,
            "weighting": weighting,
            "reversal": reversal,
        }
        meant = find_study(study, table)
        introduce(console, meant)
        with progress_bars() as progress:
            record = run_guide(
                meant,
                encourage=None if encourage is None else name_list(encourage),
                discourage=None if discourage is None else name_list(discourage),
                model=model,
                weights=weights,
                group=group,
                categorical=name_list(categorical),
                options={k: v for k, v in chosen.items() if v is not None},
                folds=folds,
                seeds=[seed] if seeds is None else seed_list(seeds),
                device=device,
                out=out,
                progress=progress,
            )
        show_record(console, record)
        write_json_result(json, record.to_dict())
