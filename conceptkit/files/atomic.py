"""Atomic writes, and folders in which one process works at a time."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conceptkit.errors import InputError

LOCK_FILE = ".lock"
"""Name of the lock file of a folder; it names the process that holds the lock."""

_LONGEST = 100
"""Bytes of a name that its temporary file repeats, as file systems allow 255."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` if the block succeeds; readers never see a partial file.

    What processes of this machine left of ``path`` when they were killed is removed. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".new")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp denies other users reading
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def take_space(path: Path, size: int) -> None:
    """Reserve the disk space of a file, so that a full disk is noticed at once."""
    with path.open("ab") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, max(1, size))


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``path``; it is removed at the end or, after a kill, by the next process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=".new"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_left(path: Path) -> None:
    """Remove temporary files of killed processes of this machine that wrote ``path``."""
    start = _start(path)
    for left in path.parent.glob(f"{glob.escape(start)}*.new"):
        try:
            os.kill(int(left.name.removeprefix(start).split(".")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        except (OSError, ValueError):
            continue


def temporary_path(path: Path) -> Path:
    """Return a path in the folder of ``path`` that :func:`remove_left` removes after a kill."""
    return path.with_name(f"{_prefix(path)}new")


def _start(path: Path) -> str:
    return f".{path.name.encode()[:_LONGEST].decode(errors='ignore')}.{socket.gethostname()}."


def _prefix(path: Path) -> str:
    return f"{_start(path)}{os.getpid()}."


@contextlib.contextmanager
def held(folder: Path, *, argument: str = "out") -> Iterator[None]:
    """Lock a folder for this process; the system releases the lock when the process ends.

    A missing folder is created, and removed again if nothing was written into it.

    Raises :class:`InputError` when another process has locked it, and names that process.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: a second process is not noticed
        yield
        return
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    path = folder / LOCK_FILE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # another process has just ended and removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            who = handle.read(300).strip() or "another process"
            handle.close()
            raise InputError(f"{argument}: {who} works on {folder}; wait for it or name another place.") from None
        if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
            break
        handle.close()  # it was removed between opening and locking
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()} ({Path(sys.argv[0]).name or 'python'})")
        handle.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: who opens it now sees that it is gone
        handle.close()
        with contextlib.suppress(OSError):  # not empty
            for empty in made:
                empty.rmdir()


def holder(path: Path) -> str:
    """Return which process has locked a file, as ``process 123``, or that it is unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[5].split(":")[-1] == inode and int(fields[4]) not in (0, -1, os.getpid()):
                return f"process {fields[4]}"
    return "another process, perhaps of another machine,"
