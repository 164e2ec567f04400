"""The same bytes at any number of threads, and odd places to work in."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hard_use_bench import HERE, _anew, _bench, _commands, _contents_of, _counted, _fork, _said, _wait


def determinism(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Probe and guide the same twice in processes of their own, then with another number of threads."""
    bench = _bench(work)
    place = work / "again"
    _anew(place)
    study = ["--study", str(bench / "conceptkit.toml"), "--device", "cpu"]
    fast = ["--trunk", "8", "--epochs", "3", "--warmup", "1", "--folds", "2"]
    commands = {
        "probe": [
            "probe",
            *study,
            "--concept",
            "count,area,center",
            "--layer",
            "mixed0,mixed2",
            "--permutations",
            "50",
        ],
        "guide, trunk alone": ["guide", *study, *fast, "--unfreeze", "none"],
        "guide, last block": ["guide", *study, *fast],
    }
    rows = []
    for number, (name, argv) in enumerate(commands.items()):
        records, others = {}, {}
        for run, threads in (("a", 1), ("b", 1), ("c", 2)):
            out = place / f"{number}{run}"
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            environment |= {"OPENBLAS_NUM_THREADS": str(threads), "XDG_CACHE_HOME": str(place / f"cache{run}")}
            command = [sys.executable, "-m", "conceptkit", *argv, "--out", str(out), "--json", str(out) + ".json"]
            subprocess.run(command, check=True, env=environment, capture_output=True, cwd=work)
            records[run] = Path(str(out) + ".json").read_bytes()
            others[run] = {k: v for k, v in _contents_of(out).items() if k not in ("record.json", "context.h5")}
        a, b, c = (json.loads(records[k]) for k in "abc")
        far = dict.fromkeys(("score", "auc", "other"), 0.0)
        where = ""
        for path, x, y in _numbers_of(a, c):
            kind = "auc" if "auc" in path else "score" if path.endswith("score") or "metrics" in path else "other"
            if abs(x - y) > far[kind]:
                far[kind], where = abs(x - y), path if kind == "other" else where
        rows.append(
            {
                "command": name,
                "same JSON bytes": records["a"] == records["b"],
                "differ in": ", ".join(sorted(_differing(a, b))) or "nothing",
                "same files beside": others["a"] == others["b"],
                "2 threads, scores": f"{far['score']:.1e}",
                "AUC": f"{far['auc']:.1e}",
                "any number": f"{far['other']:.1e} {where}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def _differing(a: Any, b: Any, path: str = "") -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return {w for k in {*a, *b} for w in _differing(a.get(k), b.get(k), f"{path}.{k}" if path else k)}
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return {w for x, y in zip(a, b, strict=True) for w in _differing(x, y, path)}
    return set() if a == b else {path}


def _numbers_of(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, float, float]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a:
            yield from _numbers_of(a[key], b.get(key), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list):
        for x, y in zip(a, b, strict=False):
            yield from _numbers_of(x, y, path)
    elif isinstance(a, float) and isinstance(b, float):
        yield path, a, b


def places(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Run commands on full and read-only disks, without a home folder or a terminal, and in other locales."""
    bench = _bench(work)
    rows = []
    commands = {name: argv for name, (argv, _) in _commands(work, bench).items()}
    commands["report"] = [
        "report",
        str(bench / "probed"),
        str(bench / "guided"),
        "-o",
        str(work / "killed" / "page.html"),
    ]
    commands["predict"] = [
        "predict",
        str(bench / "guided/checkpoints/guided-seed0"),
        "--table",
        str(bench / "patches.csv"),
    ]
    commands["predict"] += ["--out", str(work / "killed" / "p.csv"), "--device", "cpu"]
    out = work / "killed"

    def note(place: str, name: str, code: int, fine: bool, said: str) -> None:
        good = fine and "Traceback" not in said
        rows.append({"place": place, "command": name, "exit": code, "as it should": good})
        if not good:
            print(f"  {place}, {name}: exit {code}: {said.strip()[-400:]}", flush=True)

    def same(name: str, expected: dict[str, str]) -> bool:
        return name == "report" or _contents_of(out) == expected  # a page numbers its figures at random

    for name, argv in commands.items():
        _anew(out)
        _wait(_fork(argv, work))
        expected = _contents_of(out)
        largest = max(p.stat().st_size for p in out.rglob("*") if p.is_file())
        whole = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())

        # A file that may not grow: at any size below the one it needs.
        for share in (0.0, 0.1, 0.5, 0.95):
            _anew(out)
            limit = int(share * largest)

            def small(limit: int = limit) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

            code, said = _wait(_fork(argv, work, prepare=small, said="/dev/shm/hard-use-said")), _said()
            half = [k for k, v in _contents_of(out).items() if v != "folder" and k.split("/")[-1][:1] == "."]
            note(f"file size {share:.0%}", name, code, code in (1, 2) and not half, f"{said} left {half}")
        code = _wait(_fork(argv, work))
        note("…and then room", name, code, code == 0 and same(name, expected), (work / "said").read_text())

        # A disk of its own that is too small; where everything fits into a few blocks none is.
        _anew(out)
        if (
            whole < 16_384
            or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={whole // 2}", "tmpfs", str(out)]).returncode
        ):
            continue
        try:
            code, said = _wait(_fork(argv, work)), (work / "said").read_text()
            half = [k for k, v in _contents_of(out).items() if v != "folder" and k.split("/")[-1][:1] == "."]
            note("disk full", name, code, code in (1, 2) and not half, f"{said} left {half}")
            subprocess.run(["mount", "-o", f"remount,size={8 * whole + 2**20}", str(out)], check=True)
            code = _wait(_fork(argv, work))
            note("…and then room", name, code, code == 0 and same(name, expected), (work / "said").read_text())
            for path in out.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
            code, said = _wait(_fork(argv, work)), (work / "said").read_text()
            note("read-only", name, code, code == 2, said)
        finally:
            subprocess.run(["umount", str(out)], check=True)

    _from_the_start(commands, work, out, note)
    return _counted(rows)


def _from_the_start(
    commands: dict[str, list[str]], work: Path, out: Path, note: Callable[[str, str, int, bool, str], None]
) -> None:
    """Start processes without a home, an alphabet or streams."""
    new = [sys.executable, "-m", "conceptkit"]
    for name in ("extract", "probe", "guide", "report"):
        _anew(out)
        argv = commands[name]
        bare = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
        done = subprocess.run(
            [*new, *argv], env=bare, cwd=work, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        note("no home, no environment", name, done.returncode, done.returncode == 0, done.stderr + done.stdout)
        _anew(out)
        plain = {**os.environ, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run([*new, *argv], env=plain, cwd=work, capture_output=True, stdin=subprocess.DEVNULL)
        note(
            "locale C",
            name,
            done.returncode,
            done.returncode == 0,
            (done.stderr + done.stdout).decode("utf-8", "replace"),
        )
        _anew(out)
        closed = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *new, *argv], env=os.environ, cwd=work)
        note("no streams at all", name, closed.returncode, closed.returncode == 0, "")
        _anew(out)
        with open("/dev/full", "w") as full:
            done = subprocess.run([*new, *argv], cwd=work, stdout=full, stderr=subprocess.PIPE, text=True)
        note("standard output full", name, done.returncode, done.returncode != 0, done.stderr)
        _anew(out)
        piped = subprocess.run(
            ["sh", "-c", '"$@" | head -c 1', "sh", *new, *argv], cwd=work, capture_output=True, text=True
        )
        note("a pipe that closes", name, piped.returncode, piped.returncode == 0, piped.stderr)
