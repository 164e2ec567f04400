"""What the campaigns of hard_use.py share: a small study to break, its commands, and processes that are killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().with_name("hard_use.py")

DATA = HERE.parents[2] / "shared" / "data"

LIMIT = 60.0
"""Seconds that a call of wild input may take before it counts as hung"""

SPACE = 6 * 2**30
"""Bytes of address space that a process may have beyond what its imports took"""


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
    from hard_use_case import write_bench

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


def _said() -> str:
    return Path("/dev/shm/hard-use-said").read_text()


def _counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(row["place"], Counter())["good" if row["as it should"] else "bad"] += 1
    return [
        {"place": place, "runs": c.total(), "as they should": c["good"], "not": c["bad"]} for place, c in found.items()
    ]
