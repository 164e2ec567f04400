"""One call of each command that does something whole, as the end of its help shows it."""

from __future__ import annotations

EXAMPLES = {
    "predict": "predict runs/guide-001/checkpoints/guided-seed0 --table new.csv --out predicted.csv",
    "tile": "tile slides/ --out tiles.csv --size 224 --tile-mpp 0.5",
    "measure": "measure images.csv --out patches.csv --nuclei hematoxylin",
    "splits": "splits --table patches.csv",
    "extract": "extract --table patches.csv --model mobilenetv2_100 --layer blocks.6 --out activations.h5",
    "layers": "layers --model inception_v3",
    "report": "report runs/probe-001 runs/guide-001 --out report.html --latex tables",
    "demo": "demo --out runs/demo",
    "init": "init mystudy",
    "status": "status runs/guide-001",
    "doctor": "doctor",
}
"""Command → its example, without the program's name"""


def epilog(command: str) -> str:
    """Return the last line of a command's help."""
    return f"Example: conceptkit {EXAMPLES[command]}"
