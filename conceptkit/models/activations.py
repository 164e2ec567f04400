"""Activations of any layers in one pass, pooled where they arise, kept in stores."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit._checks import InputError, check_choice
from conceptkit.models.backbones import Backbone
from conceptkit.patches import PatchTable, Pixels
from conceptkit.stores import ActivationStore

Progress = Callable[[int, int], None]
"""Told how many rows are done, and how many there are."""


def _gap(x: Tensor, prefix: int) -> Tensor:
    """Mean over positions of maps (n, c, h, w), or over patch tokens (n, t, c)."""
    if x.ndim == 4:
        return x.mean((2, 3))
    return x[:, prefix:].mean(1) if x.ndim == 3 else x.clone()


def _max(x: Tensor, prefix: int) -> Tensor:
    """Maximum over positions of maps (n, c, h, w), or over patch tokens (n, t, c)."""
    if x.ndim == 4:
        return x.amax((2, 3))
    return x[:, prefix:].amax(1) if x.ndim == 3 else x.clone()


def _flatten(x: Tensor, prefix: int) -> Tensor:
    """Every value of the layer, in one row."""
    return x.flatten(1).clone()  # a copy, as a later layer may work in place


POOLINGS: Mapping[str, Callable[[Tensor, int], Tensor]] = {"gap": _gap, "max": _max, "flatten": _flatten}
"""Pooling → function from a layer's output and its number of class and register tokens to (n, d)."""


class _Enough(Exception):  # noqa: N818  # no error: it ends a forward pass whose layers have all been seen
    """Raised to stop a forward pass after the deepest layer asked for."""


@contextlib.contextmanager
def _taps(module: nn.Module, layers: Sequence[str], pool: str, seen: dict[str, Tensor]) -> Iterator[None]:
    """Hook ``layers`` so that their pooled outputs land in ``seen`` and the pass stops after the last of them."""
    pooling = POOLINGS[pool]
    prefix = int(getattr(module, "num_prefix_tokens", 0))

    def tap(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"layer: {layer} returns a {type(output).__name__}, not one tensor; name a layer inside."
                )
            seen[layer] = pooling(output, prefix)
            if len(seen) == len(layers):
                raise _Enough

        return hook

    handles = [module.get_submodule(layer).register_forward_hook(tap(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pooled_activations(
    module: nn.Module, images: Tensor, layers: Sequence[str], *, pool: str = "gap"
) -> dict[str, Tensor]:
    """Run one forward pass up to the deepest of ``layers``.

    Parameters
    ----------
    module : network in evaluation mode
    images : (n, 3, h, w) normalised
    layers : dotted module names, each once
    pool : ``gap``, ``max`` or ``flatten``

    Returns
    -------
    layer → (n, d) float32

    Raises
    ------
    InputError
        when a layer did not run, or returns no tensor
    """
    seen: dict[str, Tensor] = {}
    with _taps(module, layers, pool, seen), torch.inference_mode(), contextlib.suppress(_Enough):
        module(images)
    absent = [layer for layer in layers if layer not in seen]
    if absent:
        raise InputError(f"layer: {absent[0]} takes no part in the network's forward pass.")
    return {layer: seen[layer].float() for layer in layers}


def choose_device(device: str) -> torch.device:
    """Return the device named ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device: {device!r} cannot be used ({reason}).") from None
    return chosen


def read_pixels(table: PatchTable, rows: NDArray[np.intp], *, resized: bool = False) -> Pixels:
    """Read the pixels (n, h, w, 3) of some rows, all of one size.

    Raises
    ------
    InputError
        when a patch cannot be read, or sizes differ
    """
    images = [table.pixels(int(row)) for row in rows]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        first, other = (f"{s[1]}×{s[0]}" for s in sorted(shapes)[:2])
        raise InputError(
            f"table: patches must have one size, this table has {first} and {other} pixels; cut them to one size first."
        )
    return np.stack(images)


def read_activations(
    table: PatchTable,
    backbone: Backbone,
    layers: Sequence[str],
    *,
    cache: Path,
    rows: NDArray[np.intp] | None = None,
    pool: str = "gap",
    batch_size: int = 32,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return the activations of ``layers``, computing what the stores in ``cache`` lack.

    Every forward pass runs at ``batch_size`` rows, short batches padded: rows computed at another batch size would
    differ in their last bits.

    Parameters
    ----------
    layers : names or aliases, each once
    cache : folder of activation stores
    rows : row numbers of the table; all by default
    batch_size : images per forward pass
    progress : told of rows done and rows to do

    Returns
    -------
    layer as named → (len(rows), d) float32
    """
    check_choice("pool", pool, POOLINGS)
    rows = np.arange(len(table)) if rows is None else rows
    names = {layer: backbone.layer(layer) for layer in layers}
    where = choose_device(device)
    made_with = {
        "architecture": backbone.architecture,
        "weights": backbone.fingerprint(),
        "preprocessing": asdict(backbone.preprocessing),
        "pool": pool,
        "batch_size": batch_size,
    }
    patch_ids, identities = table.patch_ids, table.identities()
    table_digest = hashlib.sha256("\n".join(patch_ids).encode()).hexdigest()
    module = backbone.module.to(where)
    widths: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        stores: dict[str, ActivationStore] = {}
        for layer, name in names.items():
            provenance = {**made_with, "layer": name}
            key = hashlib.sha256(f"{json.dumps(provenance, sort_keys=True)}|{table_digest}".encode()).hexdigest()
            path = cache / "activations" / f"{key[:24]}.h5"
            if not path.exists() and not widths:
                first = backbone.preprocessing(read_pixels(table, rows[:1])).to(where)
                widths = {k: v.shape[1] for k, v in _forward(module, first, list(names.values()), pool).items()}
            store = ActivationStore(
                path,
                provenance=provenance,
                patch_ids=patch_ids,
                identities=identities,
                width=widths.get(name, 0),
            )
            stores[layer] = stack.enter_context(store)
        absent = {layer: store.missing(rows) for layer, store in stores.items()}
        wanted = [layer for layer in layers if len(absent[layer])]
        todo = np.unique(np.concatenate([absent[layer] for layer in wanted])) if wanted else rows[:0]
        batches = [todo[i : i + batch_size] for i in range(0, len(todo), batch_size)]
        done = 0
        for batch, pixels in _ahead(lambda b: read_pixels(table, b), batches):
            padded = np.concatenate([pixels, np.repeat(pixels[-1:], batch_size - len(pixels), axis=0)])
            images = backbone.preprocessing(padded).to(where)
            pooled = _forward(module, images, [names[layer] for layer in wanted], pool)
            for layer in wanted:
                stores[layer].write(batch, pooled[names[layer]][: len(batch)].cpu().numpy())
            done += len(batch)
            if progress is not None:
                progress(done, len(todo))
        return {layer: store.read(rows) for layer, store in stores.items()}


def _forward(module: nn.Module, images: Tensor, layers: Sequence[str], pool: str) -> dict[str, Tensor]:
    """Run :func:`pooled_activations`, in words a user understands when the network refuses the images' size."""
    try:
        return pooled_activations(module, images, list(dict.fromkeys(layers)), pool=pool)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        size = f"{images.shape[-1]}×{images.shape[-2]}"
        raise InputError(f"model: the network does not take patches of {size} pixels ({reason}).") from None


def _ahead(
    load: Callable[[NDArray[np.intp]], Pixels], batches: Sequence[NDArray[np.intp]]
) -> Iterator[tuple[NDArray[np.intp], Pixels]]:
    """Yield batches with their pixels, the next one being read while the last is computed on."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = [pool.submit(load, batch) for batch in batches[:2]]
        for i, batch in enumerate(batches):
            pixels = following.pop(0).result()
            if i + 2 < len(batches):
                following.append(pool.submit(load, batches[i + 2]))
            yield batch, pixels
