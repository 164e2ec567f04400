"""Downloaded weights: whether the hub answers, which files are in its cache, and whether their hashes are right."""

from __future__ import annotations

import hashlib
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from conceptkit.errors import InputError, reason_of


def download_error(model: str, error: Exception) -> InputError:
    """Return the error of a download that failed: what is missing for access, or why it broke off.

    Parameters
    ----------
    model : as the user named it
    error : of the hub's client, or of reading what was downloaded
    """
    if not isinstance(error, RepositoryNotFoundError):
        return cannot_download(model, reason_of(error))
    place = f"{constants.ENDPOINT}/{model.removeprefix('hf-hub:').partition('@')[0]}"
    if isinstance(error, GatedRepoError):
        token = "the token in use has no access" if huggingface_hub.get_token() else "no token is set"
        return InputError(
            f"model: {model} is gated and {token}; request access at {place}, then set HF_TOKEN to a token of that "
            "account."
        )
    return InputError(
        f"model: {model} was not found at {place}; check the name, or set HF_TOKEN to a token of an account that can "
        "read it."
    )


def cannot_download(model: str, reason: str) -> InputError:
    """Return the error of weights that cannot be downloaded."""
    return InputError(
        f"weights: those of {model} could not be downloaded ({reason}); "
        "use --weights FILE, or --weights random for untrained weights."
    )


def kept_files(config: Any) -> list[Path]:
    """Return the files of an earlier download, given timm's description of the weights."""
    if config.hf_hub_id:
        return kept_of_hub(config.hf_hub_id, config.hf_hub_filename)
    name = Path(str(config.url or "")).name
    kept = Path(torch.hub.get_dir()) / "checkpoints" / name
    return [kept] if name and kept.is_file() else []


def kept_of_hub(repository: str, filename: str | None = None) -> list[Path]:
    """Return the weights files of an earlier download of a hub's repository."""
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
    """Return whether a hub's repository is in the cache; raise :class:`InputError` when its name is not valid."""
    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(repository, "config.json"), str)
    except HFValidationError as error:
        raise InputError(f"model: hf-hub:{repository} is not a valid repository name ({error}).") from None


def check_hash(path: Path) -> None:
    """Raise :class:`InputError` when a downloaded file does not have its publisher's hash.

    The client only compares sizes. The hub's cache names a file by its SHA-256 (or git's SHA-1), other sites by the
    first digits of its SHA-256; a file with neither name cannot be checked.
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
            f"weights: {path} is not what was published (its hash is {own[:8]}…, not {stated[:8]}…); remove it to "
            "download it again."
        )


def hub_answers(limit: float = 6.0) -> bool:
    """Return whether the hub answers within ``limit`` seconds; its client retries for almost a minute."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=limit):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer too
        except (OSError, ValueError):
            return

    # In a thread, because looking up a host has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit)
    return answered.is_set()
