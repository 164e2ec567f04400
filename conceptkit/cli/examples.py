"""One call of each command that does something whole, as the end of its help shows it."""

from __future__ import annotations

EXAMPLES = {
    "probe": "probe --table patches.csv --group patient --model mobilenetv2_100 --layer blocks.6 --concept area_um2",
    "guide": "guide --study study.toml --encourage area_um2,count --discourage center --seeds 0,1,2",
    "bags": "bags --table tiles.csv --by slide --encourage count --discourage center",
    "predictivity": "predictivity --table patches.csv --concept area_um2,count",
}
"""Command → its example, without the program's name"""


def epilog(command: str) -> str:
    """Return the last line of a command's help."""
    return f"Example: conceptkit {EXAMPLES[command]}"
