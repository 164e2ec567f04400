"""Wild input: every call ends in a result or a sentence, and no file is lost."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hard_use_bench import DATA, HERE, LIMIT, SPACE, _environment


def wild(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Run every family, each in a process of its own so that a crash or a hang takes no other case with it."""
    from hard_use_case import write_bench
    from hard_use_input import FAMILIES

    bench = work / "bench"
    if not bench.exists():
        write_bench(bench, DATA)
    out = []
    for family, (_, number) in FAMILIES.items():
        if only is not None and only not in family:
            continue
        total = max(1, round(number * scale))
        found = list(_in_children(work, family, total, seed))
        kinds = Counter(f["kind"] for f in found)
        rss = max((f.get("rss", 0) for f in found), default=0)
        bad = [f for f in found if f["kind"] not in ("refused", "done", "part")]
        row = {
            "family": family,
            "cases": total,
            "refused": kinds["refused"],
            "done": kinds["done"],
            "part": kinds["part"],
        }
        out.append({**row, "bad": len(bad), "slowest s": max(f.get("s", 0) for f in found), "peak MB": rss})
        for f in bad:
            print(f"  {family} #{f['k']}: {f['kind']}: {f['why']}\n    {f.get('argv')}", flush=True)
        print(out[-1], flush=True)
    return out


def _in_children(work: Path, family: str, total: int, seed: int) -> Iterator[dict[str, Any]]:
    k = 0
    while k < total:
        command = [sys.executable, str(HERE), "--child", family, "--from", str(k), "--to", str(total)]
        command += ["--seed", str(seed), "--work", str(work)]
        with (work / "child.err").open("w") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment(work))
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):
                    found = json.loads(line)
                    if found["kind"] != "begun":
                        yield found
                        k = found["k"] + 1
            code = child.wait()
        if code == 0 and k == 0:
            raise RuntimeError((work / "child.err").read_text()[-2000:])
        if k < total and code != 0:  # it died, or its time was up
            said = (work / "child.err").read_text().strip().splitlines()[-3:]
            yield {"k": k, "kind": "hang" if code == -signal.SIGALRM else f"crash ({code})", "why": " / ".join(said)}
            k += 1


def wild_child(work: Path, family: str, start: int, stop: int, seed: int) -> None:
    """Run some cases in this process and print what became of each."""
    from hard_use_case import Case
    from hard_use_input import FAMILIES
    from typer.testing import CliRunner

    import conceptkit.commands.guide
    import conceptkit.commands.probe  # noqa: F401 - heavy imports come before the limit of space
    from conceptkit.cli import app

    sizes = Path("/proc/self/status").read_text().splitlines()
    used = int(next(line for line in sizes if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
    make = FAMILIES[family][0]
    written: list[str] = []
    inside: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not inside:
            return
        runs = event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
        # Libraries look for libraries, and fonts, by these two.
        if runs and Path(str(arguments[0])).name not in ("ldconfig", "fc-list"):
            written.append(f"{event} {arguments[:1]}")
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        removed = event in ("os.remove", "os.rmdir") and arguments[1] == -1  # else within a folder that is open already
        path: Any = None
        if opened or removed or event in ("os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree"):
            path = arguments[0]
        elif event in ("os.rename", "os.link", "os.symlink"):
            path = arguments[1]
        if isinstance(path, (str, bytes, os.PathLike)) and not os.path.abspath(os.fsdecode(path)).startswith(
            tuple(inside)
        ):
            written.append(f"{event} {os.fsdecode(path)}")

    sys.addaudithook(watch)
    for k in range(start, stop):
        folder = work / "cases" / f"{family.split()[0]}-{k}"
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("in", "out", "cwd"):
            (folder / name).mkdir(parents=True)
        case = Case([], folder)
        make(case, work / "bench", np.random.default_rng([seed, k, *family.encode()]))
        before = _contents(case.given)
        os.chdir(folder / "cwd")
        free = bool(case.notes)
        cache = os.environ["XDG_CACHE_HOME"]
        places = [str(work if free else folder / "out"), str(work / "tmp"), str(work / "cache"), "/dev/", cache]
        written.clear()
        argv = [part.encode("utf-8", "replace").decode().replace("\0", "") for part in case.argv]
        signal.alarm(int(LIMIT))
        began = time.monotonic()
        inside[:] = places
        result = CliRunner().invoke(app, argv)
        inside.clear()
        signal.alarm(0)
        verdict = {
            "k": k,
            "s": round(time.monotonic() - began, 2),
            "rss": _peak(),
            "argv": " ".join(a[:80] for a in argv),
        }
        os.chdir(work)
        kind, why = _judge(case, result)
        if kind in ("refused", "done", "part"):
            strange = sorted(str(p.name) for p in (folder / "cwd").iterdir()) if not free else []
            if written:
                kind, why = "escape", str(written[:3])
            elif strange or (folder / "canary").exists() or (folder / "cwd" / "canary").exists():
                kind, why = "escape", f"wrote {strange}"
            elif _contents(case.given) != before:
                kind, why = "escape", "an input was changed"
            else:
                shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({**verdict, "kind": kind, "why": why}), flush=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def _contents(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def _judge(case: Any, result: Any) -> tuple[str, str]:
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "conceptkit" in f.filename]
        return "traceback", f"{type(error).__name__}: {str(error)[:160]} @ {' > '.join(ours[-3:])}"
    said = result.stderr.strip().splitlines()
    if "Traceback (most recent" in result.stderr:
        return "traceback", "printed: " + said[-1][:200]
    if result.exit_code == 2:
        told = [line for line in said if line.startswith("Error: ")]
        if len(told) != 1:
            return "wording", f"{len(told)} sentences: {result.stderr[:300]!r}"
        after = said[said.index(told[0]) + 1 :]
        if not (after or told)[-1].rstrip().endswith("."):
            return "wording", f"no sentence: {told[0][:200]!r}"
        if "failed with" in told[0]:
            return "wording", told[0][:300]
        if not case.notes and (left := [p.name for p in case.out.rglob("*") if p.is_file() and p.name.startswith(".")]):
            return "left behind", str(left)
        return "refused", told[0][7:200]
    if result.exit_code not in (0, 1):
        return f"exit {result.exit_code}", result.stderr[:200]
    if "failed with" in result.stdout + result.stderr:
        at = (result.stdout + result.stderr).index("failed with")
        return "wording", (result.stdout + result.stderr)[max(0, at - 80) : at + 160]
    try:
        lost = case.check(result.stdout)
    except Exception as problem:
        return "check", f"{type(problem).__name__}: {problem}"
    if lost:
        return "drop", lost
    if result.exit_code == 1 and "skipped" not in result.stderr + result.stdout:
        return "exit 1", result.stderr[:200]
    return ("part" if result.exit_code == 1 else "done"), ""
