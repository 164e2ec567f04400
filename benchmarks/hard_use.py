"""Break conceptkit on purpose, and count what broke: wild input, strangers' files, kills, other threads, odd places."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hard_use_bench import _environment
from hard_use_kills import kills, together
from hard_use_places import determinism, places
from hard_use_trust import trust
from hard_use_wild import wild, wild_child

PARTS = {
    "wild": wild,
    "kills": kills,
    "together": together,
    "trust": trust,
    "determinism": determinism,
    "places": places,
}


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    if not rows:
        return
    names = list(rows[0])
    cells = [[str(row.get(n, "")) for n in names] for row in rows]
    wide = [max(len(n), *(len(c[i]) for c in cells)) for i, n in enumerate(names)]
    for line in ([*names], ["-" * w for w in wide], *cells):
        print("  ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of cases")
    parser.add_argument("--only", help="families of wild input whose name holds this")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--to", dest="stop", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        wild_child(given.work, given.child, given.start, given.stop, given.seed)
        return
    with contextlib.ExitStack() as stack:
        if os.environ.get("OMP_NUM_THREADS") != "1":  # read when torch is imported
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hard-use-")))
        work.mkdir(parents=True, exist_ok=True)
        os.environ.update(_environment(work.resolve()))
        for part in given.parts or PARTS:
            began = time.monotonic()
            print(f"\n== {part}", flush=True)
            show(PARTS[part](work.resolve(), given.seed, given.scale, given.only))
            print(f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
