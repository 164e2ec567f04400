"""Weights that are downloaded: whether the hub answers, what is kept here, and whether a file is what was published."""

from __future__ import annotations

import hashlib
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from conceptkit.errors import InputError


def cannot_download(model: str, reason: str) -> InputError:
    """Return the error of weights that cannot be had, which names the two ways out."""
    return InputError(
        f"weights: those of {model} could not be downloaded ({reason}); "
        "give a file with --weights FILE, or take untrained weights with --weights random."
    )


def kept_files(config: Any) -> list[Path]:
    """Return the files that an earlier download left, given timm's description of the weights."""
    if config.hf_hub_id:
        return kept_of_hub(config.hf_hub_id, config.hf_hub_filename)
    name = Path(str(config.url or "")).name
    kept = Path(torch.hub.get_dir()) / "checkpoints" / name
    return [kept] if name and kept.is_file() else []


def kept_of_hub(repository: str, filename: str | None = None) -> list[Path]:
    """Return the files of weights that an earlier download left of a hub's repository."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        kept = [
            huggingface_hub.try_to_load_from_cache(repository, file)
            for file in (filename, "model.safetensors", "pytorch_model.bin")
            if file
        ]
    except HFValidationError:
        return []
    return [Path(path) for path in kept if isinstance(path, str)]


def repository_kept(repository: str) -> bool:
    """Return whether the hub's repository can be read from an earlier download.

    Raises
    ------
    InputError
        when no repository can have that name
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(repository, "config.json"), str)
    except HFValidationError as error:
        raise InputError(f"model: hf-hub:{repository} is no name of a repository ({error}).") from None


def check_hash(path: Path) -> None:
    """Raise :class:`InputError` when a downloaded file is not what its publisher's hash says.

    The client compares sizes alone. The hub's cache calls a file by its SHA-256 (or git's SHA-1), other sites name a
    file with the first digits of its SHA-256; where neither is there, as where links cannot be made, nothing is known.
    """
    blob = path.parent / path.readlink() if path.is_symlink() else path
    if blob is path:
        found = re.search(r"-([0-9a-f]{8,64})\.", path.name)
        stated = found.group(1) if found else ""
    else:
        stated = blob.name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) else ""
    if not stated:
        return
    with path.open("rb") as stream:
        if blob is not path and len(stated) == 40:
            content = stream.read()
            own = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
    if not own.startswith(stated):
        raise InputError(
            f"weights: {path} is not what was published (its hash is {own[:8]}…, not {stated[:8]}…); remove it, so "
            "that it is downloaded again."
        )


def hub_answers(limit: float = 6.0) -> bool:
    """Return whether the hub answers within ``limit`` seconds; its own client retries for almost a minute."""
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=limit):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer: the client's own error will say more
        except (OSError, ValueError):
            return

    # A thread, as looking a name up cannot be given a time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit)
    return answered.is_set()
