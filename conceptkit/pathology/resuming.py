"""What was finished of a long run, kept in parts until all is: a run that was interrupted takes up there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from conceptkit.files.atomic import replacing


def parts_folder(out: Path) -> Path:
    """Return the folder of a table's parts, absolute as workers of a cluster may stand in another folder."""
    return out.absolute().with_name(out.name + ".parts")


def file_state(path: Path | None) -> list[Any]:
    """Return what tells a file from another and from itself after a change."""
    if path is None or not path.is_file():
        return [str(path)]
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]


def part_key(values: Sequence[Any]) -> str:
    """Return a digest of all that a part follows from, as JSON: another file or option is another part."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def kept_parts(parts: Path | None, keys: Sequence[str]) -> dict[int, pd.DataFrame]:
    """Return the parts that are there, by the number of their key."""
    if parts is None:
        return {}
    files = {k: parts / f"{key}.parquet" for k, key in enumerate(keys)}
    return {k: pd.read_parquet(file) for k, file in files.items() if file.is_file()}


def keep_part(parts: Path | None, key: str, frame: pd.DataFrame) -> None:
    """Keep what is finished; nothing without a folder."""
    if parts is None:
        return
    with replacing(parts / f"{key}.parquet") as temporary:
        frame.to_parquet(temporary, index=False)
