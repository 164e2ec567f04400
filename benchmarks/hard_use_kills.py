"""Runs killed at every moment, and two processes at one place."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from hard_use_bench import _anew, _bench, _commands, _contents_of, _fork, _wait


def kills(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Kill commands at random moments and at chosen steps of their writing; the same command must then end as ever."""
    bench = _bench(work)
    rng = np.random.default_rng(seed)
    rows = []
    for name, (argv, number) in _commands(work, bench).items():
        if only is not None and only not in name:
            continue
        out = work / "killed"
        _anew(out)
        steps = work / "steps"
        began = time.monotonic()
        code = _wait(_fork(argv, work, steps=steps))
        whole, total = time.monotonic() - began, int(steps.read_text())
        expected = _contents_of(out)
        _anew(out)
        code += _wait(_fork(argv, work))
        again = _contents_of(out)
        differs = sorted(k for k in {*expected, *again} if expected.get(k) != again.get(k))
        row = {
            "command": name,
            "seconds": round(whole, 1),
            "steps": total,
            "kills": 0,
            "other": 0,
            "left": 0,
            "failed": 0,
        }
        if code != 0 or differs:
            print(f"  {name}: exit {code}, undisturbed runs differ in {differs}")
        for k in range(max(2, round(number * scale))):
            _anew(out)
            kind = "step" if k % 2 else "moment"
            for _ in range(1 + (k % 5 == 4)):  # some are killed again when they go on
                if kind == "step":
                    code = _wait(_fork(argv, work, kill_at=int(rng.integers(1, total + 1))))
                else:
                    child = _fork(argv, work)
                    time.sleep(float(rng.uniform(0, whole)))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                    code = _wait(child)
                row["kills"] += code == -signal.SIGKILL
            half = sorted(p.name for p in out.rglob("*"))
            code, said = _wait(_fork(argv, work)), (work / "said").read_text()
            got = _contents_of(out)
            done = code == 0 or (code == 2 and "holds an earlier run" in said)
            other = [p for p in expected if got.get(p) != expected[p]]
            left = [p for p in got if p not in expected]
            row["failed"] += not done
            row["other"] += bool(other)
            row["left"] += bool(left)
            if not done or other or left:
                print(
                    f"  {name} #{k} ({kind}): exit {code}, other {other}, left {left}, was {half}: {said[-300:]}",
                    flush=True,
                )
        rows.append(row)
        print(row, flush=True)
    return rows


def together(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Start the same command twice at once: the second one waits or names the first, and no file is damaged."""
    bench = _bench(work)
    rows = []
    for name, (argv, _) in _commands(work, bench).items():
        if only is not None and only not in name:
            continue
        out = work / "killed"
        _anew(out)
        _wait(_fork(argv, work))
        expected = _contents_of(out)
        _anew(out)
        first = _fork(argv, work, said="first")
        while not any(out.rglob("*")):
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(first, signal.SIGSTOP)  # in the middle of its work
        second = _fork(argv, work, said="second")
        ended, status = 0, 0
        until = time.monotonic() + 20
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(second, os.WNOHANG)
            time.sleep(0.05)
        os.kill(first, signal.SIGCONT)
        codes = [_wait(first), os.waitstatus_to_exitcode(status) if ended else _wait(second)]
        told = [" ".join((work / f).read_text().split())[-160:] for f in ("first", "second")]
        same = _contents_of(out) == expected
        rows.append(
            {
                "command": name,
                "exits": str(codes),
                "same files": same,
                "second was told": told[codes.index(2)] if 2 in codes else "",
                "waited": not ended,
            }
        )
    return rows
