"""The command ``conceptkit doctor``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption

_MARKS = {"good": ("✓", "green"), "less": ("–", "yellow"), "bad": ("✗", "bold red")}


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask whether the hub answers.")] = False,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Check the installation, and say what each missing piece would disable; exit code 1 when it is unusable."""
    with sentences(debug), reading_console(json) as console:
        from conceptkit.commands.doctor import examine

        found = examine(offline=offline)
        for finding in found.findings:
            mark, style = _MARKS[finding.state]
            console.print(f"[{style}]{mark} {finding.name}[/]: {escape(finding.found)}")
            if finding.disables and finding.state != "good":
                console.print(f"    disables {escape(finding.disables)}", style="dim")
            if finding.remedy:
                console.print(f"    remedy: {escape(finding.remedy)}", style="dim")
        console.print("conceptkit can be used." if found.is_usable else "conceptkit cannot be used as it is.")
        write_json_result(json, found.to_dict())
        if not found.is_usable:
            raise typer.Exit(1)
