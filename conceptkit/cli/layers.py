"""The command ``conceptkit layers``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from conceptkit.cli.console import reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption, ModelOption


def layers(
    model: ModelOption = None,
    size: Annotated[int | None, typer.Option("--size", help="Side of the images, in pixels.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="List the parts of blocks too.")] = False,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """List the layers of a network, with the shape of their output and their other names; needs no weights."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.extract import find_layers
        from conceptkit.errors import InputError
        from conceptkit.models.backbones import is_factory

        if model is None:
            raise InputError("model: none is named; --model takes one.")
        if is_factory(model):
            console.print(f"{escape(model)} is code of yours, and is run.", style="yellow")
        found, side = find_layers(model, size)
        shown = [layer for layer in found if everything or layer.aliases or layer.name.count(".") < 2]
        grid = Table(title=escape(f"{model}, images of {side}×{side} pixels"), title_justify="left")
        for column in ("layer", "other names", "output of one image", "kind"):
            grid.add_column(column)
        for layer in shown:
            shape = (
                f"returns a {layer.returns}" if layer.shape is None else "×".join(map(str, layer.shape)) or "one value"
            )
            grid.add_row(*map(escape, (layer.name, ", ".join(layer.aliases), shape, layer.kind)))
        console.print(grid)
        if len(shown) < len(found):
            console.print(f"{len(found) - len(shown)} more inside these: --all", style="dim")
        write_json_result(
            json,
            {
                "schema": "conceptkit/layers/1",
                "model": model,
                "size": side,
                "layers": [
                    {"name": x.name, "aliases": x.aliases, "shape": x.shape, "kind": x.kind, "returns": x.returns}
                    for x in shown
                ],
            },
        )
