"""Break conceptkit on purpose, and count what broke: wild input, strangers' files, kills, other threads, odd places."""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
DATA = HERE.parents[2] / "shared" / "data"

LIMIT = 60.0
"""Seconds that a call of wild input may take before it counts as hung"""

SPACE = 6 * 2**30
"""Bytes of address space that a process may have beyond what its imports took"""


# --- wild input ------------------------------------------------------------------------------------------------------


def wild(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Run every family, each in a process of its own so that a crash or a hang takes no other case with it."""
    from hard_use_input import FAMILIES, write_bench

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


def _environment(work: Path) -> dict[str, str]:
    for name in ("cache", "tmp", "home"):
        (work / name).mkdir(exist_ok=True)
    more = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(work / "tmp"), "HOME": str(work / "home")}
    kept = Path.home() / ".cache" if "XDG_CACHE_HOME" not in os.environ else Path(os.environ["XDG_CACHE_HOME"])
    more["XDG_CACHE_HOME"] = str(kept)  # the embedded study lies there
    return {
        **os.environ,
        **more,
        "PYTHONPATH": str(HERE.parents[1]),
        "MPLCONFIGDIR": str(work / "cache"),
        **_quiet(work),
    }


def _quiet(work: Path) -> dict[str, str]:
    return {"TORCHINDUCTOR_CACHE_DIR": str(work / "cache" / "torch")}


def wild_child(work: Path, family: str, start: int, stop: int, seed: int) -> None:
    """Run some cases in this process and print what became of each."""
    from hard_use_input import FAMILIES, Case
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


# --- kills -----------------------------------------------------------------------------------------------------------


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
    """Start the same command twice at once: the second waits or is told who is at work, and nothing is spoilt."""
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


def _commands(work: Path, bench: Path) -> dict[str, tuple[list[str], int]]:
    """Return name → the command, writing into ``killed``, and how often it is killed."""
    out = work / "killed"
    study = ["--study", str(bench / "conceptkit.toml")]
    other = bench / "second.svs"
    if not other.exists():
        shutil.copy(bench / "slide.svs", other)
        lines = "".join(f"{k}.{kind},i{k}{kind},p{k},0.25\n" for k in range(3) for kind in ("jpg", "png", "tif"))
        (bench / "images.csv").write_text("image,image_id,patient,mpp\n" + lines)
    slides = [str(bench / "slide.svs"), str(other), "--size", "256", "--workers", "1"]
    fast = ["--unfreeze", "none", "--trunk", "8", "--epochs", "6", "--warmup", "1", "--folds", "2", "--device", "cpu"]
    measure = ["--patch-size", "32", "--nuclei", "hematoxylin", "--masks-out", str(out / "masks"), "--workers", "1"]
    return {
        "extract": (
            [
                "extract",
                *study,
                "--layer",
                "mixed0,mixed2",
                "--batch-size",
                "4",
                "--device",
                "cpu",
                "--out",
                str(out / "s.h5"),
            ],
            40,
        ),
        "tile, png": (["tile", *slides, "--export", "png", "--out", str(out / "t.csv")], 24),
        "tile, h5": (["tile", *slides, "--export", "h5", "--out", str(out / "t.parquet")], 24),
        "measure": (["measure", str(bench / "images.csv"), *measure, "--out", str(out / "m.csv")], 24),
        "probe": (
            ["probe", *study, "--permutations", "100", "--folds", "2", "--device", "cpu", "--out", str(out / "run")],
            16,
        ),
        "guide": (["guide", *study, *fast, "--out", str(out / "run")], 40),
    }


def _bench(work: Path) -> Path:
    """Return the folder of small real files; everything heavy is imported, so that a fork begins with the work."""
    from hard_use_input import write_bench

    for name in ("cache", "tmp", "home"):
        (work / name).mkdir(exist_ok=True)
    if not (work / "bench").exists():
        # In a process of its own: what has been computed here, with threads, could not be forked.
        child = os.fork()
        if child == 0:
            write_bench(work / "bench", DATA)
            os._exit(0)
        if _wait(child):
            raise SystemExit("the bench could not be written.")
    import captum
    import lightning
    import skimage.feature
    import statsmodels.api
    import timm
    import torch

    import conceptkit.commands.guide
    import conceptkit.commands.probe  # noqa: F401 - each child finds it imported

    torch.set_num_threads(1)
    del captum, lightning, skimage, statsmodels, timm
    return work / "bench"


def _anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _fork(
    argv: list[str],
    work: Path,
    *,
    steps: Path | None = None,
    kill_at: int | None = None,
    said: str = "said",
    prepare: Any = None,
) -> int:
    """Start a command in a process of its own and return its number.

    Parameters
    ----------
    steps : file that takes the number of steps in which something was written
    kill_at : the step before which the process kills itself
    prepare : called in the new process first
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(work / said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(work)
        from conceptkit.cli import app
        from conceptkit.guide import loop

        sys.argv = ["conceptkit", *argv]
        if prepare is not None:
            prepare()
        loop.EVERY = 0.0  # the state of a training is written after each epoch
        counted = _count_steps(kill_at) if steps is not None or kill_at is not None else [0]
        try:
            app(argv)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if steps is not None:
            steps.write_text(str(counted[0]))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _count_steps(kill_at: int | None) -> list[int]:
    """Count each step of writing, and end this process before one of them."""
    import h5py

    counted = [0]

    def step() -> None:
        counted[0] += 1
        if counted[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "fcntl.flock"):
            step()

    sys.addaudithook(watch)
    for owner, name in ((h5py.Dataset, "__setitem__"), (h5py.File, "flush"), (h5py.Group, "create_dataset")):
        setattr(owner, name, _after(step, getattr(owner, name)))
    return counted


def _after(step: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def stepped(*given: Any, **options: Any) -> Any:
        step()
        return function(*given, **options)

    return stepped


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _contents_of(folder: Path) -> dict[str, str]:
    """Return the name of every file and folder below ``folder`` → what is in it."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


# --- strangers -------------------------------------------------------------------------------------------------------

_EVIL = "from pathlib import Path\nPath({canary!r}).touch()\ndef make():\n    raise SystemExit(99)\n"


def trust(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Open what strangers made, each file of which would write a canary if any of its code were run."""
    import h5py
    from hard_use_input import stranger

    bench = _bench(work)
    place = work / "trust"
    _anew(place)
    canary = place / "canary"
    (work / "evil.py").write_text(_EVIL.format(canary=str(canary)))  # in the folder that commands run in
    out = str(place / "out")
    table = ["--table", str(bench / "patches.csv")]
    extract = ["extract", *table, "--layer", "mixed0", "--device", "cpu", "--out", f"{out}.h5"]
    tries: dict[str, list[str]] = {}

    for name in ("weights.pt", "weights.pth", "weights.bin", "weights.safetensors"):
        (place / name).write_bytes(stranger(canary))
        tries[f"pickle as {name}"] = [
            *extract[:-1],
            f"{out}-w.h5",
            "--model",
            "test_resnet",
            "--weights",
            str(place / name),
        ]
    for name in ("features.npy", "features.h5", "features.parquet"):
        (place / name).write_bytes(stranger(canary))
        tries[f"pickle as {name}"] = ["probe", *table, "--features", str(place / name), "--out", f"{out}-{name}"]
    odd = np.empty(48, dtype=object)
    odd[:] = [_Touches(str(canary))] * 48
    np.save(place / "objects.npy", odd, allow_pickle=True)
    tries["array of objects"] = ["probe", *table, "--features", str(place / "objects.npy"), "--out", f"{out}-objects"]
    (place / "images.csv").write_text(f"image,mask\n{bench / '0.png'},objects.npy\n")
    tries["mask of objects"] = ["measure", str(place / "images.csv"), "--patch-size", "32", "--out", f"{out}-m.csv"]
    reference = ["--export", "png", "--stain", "reinhard", "--stain-reference", str(place / "objects.npy")]
    tries["stain reference of objects"] = [
        "tile",
        str(bench / "slide.svs"),
        "--size",
        "512",
        *reference,
        "--out",
        f"{out}-t.csv",
    ]

    guided = bench / "guided" / "checkpoints" / "guided-seed0"
    for named in ("evil:make", "os:getcwd", "builtins:breakpoint", "os:abort"):
        folder = place / f"checkpoint-{named.replace(':', '-')}"
        shutil.copytree(guided, folder)
        description = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps({**description, "architecture": named}))
        model = ["--model", str(folder)]
        tries[f"checkpoint of {named}, predict"] = ["predict", str(folder), *table, "--out", f"{out}.csv"]
        tries[f"checkpoint of {named}, layers"] = ["layers", *model]
        tries[f"checkpoint of {named}, extract"] = [*extract, *model]
        tries[f"checkpoint of {named}, guide"] = ["guide", *table, *model, "--encourage", "count", "--dry-run"]
        tries[f"checkpoint of {named}, audit"] = [
            "audit",
            str(folder),
            *table,
            "--concept",
            "count",
            "--out",
            f"{out}-a",
        ]
        for key, more in (("evil", ""), ("folder", f"@{folder}")):
            study = place / f"{key}-{named.replace(':', '-')}.toml"
            study.write_text((bench / "conceptkit.toml").read_text().replace("mini_inception", named + more))
            for part in ("patches.csv", "patches.h5"):
                shutil.copy(bench / part, place / part)
            for command in (["probe", "--out", f"{out}-p"], ["guide", "--out", f"{out}-g", "--dry-run"]):
                tries[f"study of {named}{more[:1]}, {command[0]}"] = [*command, "--study", str(study)]

    for kind in ("external link", "external data", "virtual data"):
        store, victim = place / f"{kind.replace(' ', '-')}.h5", place / f"{kind.replace(' ', '-')}-victim.h5"
        shutil.copy(bench / "store.h5", store)
        shutil.copy(bench / "store.h5", victim)
        with h5py.File(store, "r+") as file:
            file["state"][:] = 0
            stamps = file["stamps"][:]
            if kind == "external link":
                del file["stamps"]
                file["stamps"] = h5py.ExternalLink(str(victim), "/stamps")
            elif kind == "external data":
                del file["stamps"]
                file.create_dataset("stamps", stamps.shape, stamps.dtype, external=[(str(victim), 0, stamps.nbytes)])
            else:
                layout = h5py.VirtualLayout(stamps.shape, stamps.dtype)
                layout[:] = h5py.VirtualSource(str(victim), "stamps", stamps.shape)
                del file["stamps"]
                file.create_virtual_dataset("stamps", layout)
        with h5py.File(victim, "r+") as file:
            file["stamps"][:] = b"theirs"
        tries[f"store with {kind}"] = [*extract[:-1], str(store), "--model", "mini_inception"]

    rows: Counter[str] = Counter()
    before = {p: p.read_bytes() for p in place.glob("*victim.h5")}
    for name, argv in tries.items():
        code, said = _wait(_fork(argv, work)), (work / "said").read_text()
        run = canary.exists()
        canary.unlink(missing_ok=True)
        changed = [p.name for p, content in before.items() if p.read_bytes() != content]
        bad = run or code != 2 or "Traceback" in said or bool(changed)
        rows["tried"] += 1
        rows["refused in a sentence"] += code == 2 and "Traceback" not in said
        rows["code run"] += run
        rows["other files changed"] += bool(changed)
        if bad:
            print(f"  {name}: exit {code}, run {run}, changed {changed}: {said.strip()[-300:]}", flush=True)
    (work / "evil.py").unlink()
    escaped = _fork_and_tell(lambda: _escapes(work, bench, place), work)
    downloads = _fork_and_tell(lambda: _downloads(work, place), work)
    return [{"what": "files of strangers", **rows, "detail": ""}, *escaped, *downloads]


class _Touches:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def _fork_and_tell(make: Callable[[], Any], work: Path) -> Any:
    """Return what a function gives that computes, in a process of its own: this one must stay fit to be forked."""
    child = os.fork()
    if child == 0:
        try:
            (work / "told.json").write_text(json.dumps(make()))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    if _wait(child):
        raise SystemExit("a part failed; see above.")
    return json.loads((work / "told.json").read_text())


def _escapes(work: Path, bench: Path, place: Path) -> list[dict[str, Any]]:
    """Report on a table all of whose names are markup, and count what of them became markup."""
    from html.parser import HTMLParser

    import pandas as pd

    import conceptkit as ck
    from conceptkit.commands.report import write_report

    nasty = '"><script>run()</script><img src=x onerror=run()>'
    frame = pd.read_csv(bench / "patches.csv").rename(
        columns={"count": f"</script>{nasty}", "area": "=1+1\\input{/etc/passwd}"}
    )
    frame["h5"] = str(bench / "patches.h5")
    frame["center"] = [f"{nasty}{v}" for v in frame["center"]]
    frame["patient"] = [f"=cmd|' /C calc'!A0 {nasty}{v}" for v in frame["patient"]]
    frame["label"] = [f"</script>{nasty}{v}" for v in frame["label"]]
    frame["patch_id"] = [f"{nasty}{v}" for v in frame["patch_id"]]
    folder = place / "nasty"
    folder.mkdir()
    frame.to_csv(folder / "patches.csv", index=False)
    concepts = [f"</script>{nasty}", "=1+1\\input{/etc/passwd}"]
    study = ck.Study(
        name=nasty,
        table=folder / "patches.csv",
        model="mini_inception",
        layers=("mixed0",),
        concepts=tuple(concepts),
        group="patient",
        units={concepts[0]: nasty},
    )
    ck.run_probe(study, permutations=0, folds=2, out=folder / "probe")
    options = {"epochs": 1, "warmup": 0, "trunk": (8,), "unfreeze": ()}
    ck.run_guide(study, encourage=[concepts[0]], discourage=["center"], **options, folds=2, out=folder / "guide")
    plain = write_report([bench / "probed", bench / "guided"], folder / "plain.html")
    page = write_report(
        [folder / "probe", folder / "guide"], folder / "page.html", latex=folder / "latex", csv=folder / "csv"
    )

    class Count(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: Counter[str] = Counter()
            self.handlers = 0

        def handle_starttag(self, tag: str, attributes: Any) -> None:
            self.tags[tag] += 1
            self.handlers += sum(name.startswith("on") for name, _ in attributes)

    found = {}
    for name, path in (("plain", plain), ("nasty", page)):
        found[name] = Count()
        found[name].feed(path.read_text(encoding="utf-8"))
    more = found["nasty"].tags["script"] - found["plain"].tags["script"]
    tex = "".join(p.read_text() for p in (folder / "latex").glob("*.tex"))
    cells = [c for p in (folder / "csv").glob("*.csv") for row in csv.reader(p.open(newline="")) for c in row]
    formulas = sum(cell[:1] in tuple("=+@") and not _a_number(cell) for cell in cells)
    nothing = {"refused in a sentence": "", "other files changed": ""}
    page_says = f"{more:+d} script elements, {found['nasty'].handlers} handlers"
    table_says = f"{formulas} cells of CSV that a spreadsheet would take for formulas"
    return [
        {"what": "a page of markup", "tried": 1, **nothing, "code run": found["nasty"].handlers, "detail": page_says},
        {
            "what": "tables of markup",
            "tried": len(cells),
            **nothing,
            "code run": tex.count("\\input{"),
            "detail": table_says,
        },
    ]


def _a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _downloads(work: Path, place: Path) -> list[dict[str, Any]]:
    """Open a published network from a hub's cache that is whole, and from one whose weights were exchanged."""
    import timm
    import torch
    from huggingface_hub import constants
    from safetensors.torch import save_file

    from conceptkit.errors import InputError
    from conceptkit.models.backbones import open_backbone

    constants.HF_HUB_CACHE = str(place / "hub")
    os.environ["HF_HUB_CACHE"] = constants.HF_HUB_CACHE
    config = timm.get_pretrained_cfg("test_resnet")
    repository = Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("0" * 40)
    for folder in (blobs, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in timm.create_model("test_resnet").state_dict().items()}
    save_file(state, place / "published.safetensors", metadata={"format": "pt"})
    content = (place / "published.safetensors").read_bytes()
    blob = blobs / hashlib.sha256(content).hexdigest()
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    rows = []
    for name, written in (("as published", content), ("one bit other", content[:-1] + bytes([content[-1] ^ 1]))):
        blob.write_bytes(written)
        try:
            opened = open_backbone("test_resnet").weights
        except InputError as error:
            opened = str(error)
        refused = {"refused in a sentence": int("not what was" in opened), "other files changed": "", "code run": 0}
        rows.append({"what": f"download {name}", "tried": 1, **refused, "detail": opened[-60:]})
    return rows


# --- the same again --------------------------------------------------------------------------------------------------


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


# --- odd places ------------------------------------------------------------------------------------------------------


def places(work: Path, seed: int, scale: float, only: str | None) -> list[dict[str, Any]]:
    """Run commands where there is no room, no right to write, no home, no terminal, or no alphabet."""
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

    # The rest needs a process from its beginning.
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
    return _counted(rows)


def _said() -> str:
    return Path("/dev/shm/hard-use-said").read_text()


def _counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(row["place"], Counter())["good" if row["as it should"] else "bad"] += 1
    return [
        {"place": place, "runs": c.total(), "as they should": c["good"], "not": c["bad"]} for place, c in found.items()
    ]


# --- the whole -------------------------------------------------------------------------------------------------------

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
