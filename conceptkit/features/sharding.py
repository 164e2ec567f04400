"""Extraction under torchrun: each rank computes its rows into a shard, and the first rank merges them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.features.activations import Job, fill
from conceptkit.features.store_files import BrokenError
from conceptkit.features.stores import ActivationStore

Skipped = list[tuple[int, str]]


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started."""

    rank: int
    world: int
    local: int
    """Number of this process on its machine, and of the GPU that it uses"""


def ranks() -> Ranks | None:
    """Return the rank of this process; ``None`` without torchrun."""
    try:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        return None
    return Ranks(rank, world, local) if world > 1 and "MASTER_ADDR" in os.environ else None


def absorb_shards(path: Path, store: ActivationStore) -> None:
    """Take over rows of earlier shards that were never merged, and remove their files."""
    for shard in sorted(path.parent.glob(f"{path.name}.shard*")):
        with contextlib.suppress(BrokenError):  # a broken shard has no rows; on a full disk the shard stays
            store.absorb(shard)
        shard.unlink()


def extract_shards(
    own: Ranks,
    job: Job,
    path: Path,
    opened: Callable[[Path, Job], ActivationStore],
    progress: Callable[[int], Callable[[int], None] | None],
) -> tuple[int, Skipped]:
    """Compute the missing rows of a store, shared among the ranks; return rows written and skipped by all of them.

    Parameters
    ----------
    own : this process
    job : that of the whole table
    path : the store
    opened : opens a store for a job's table; only the first rank opens ``path``
    progress : function from rows to do to a function that receives rows done

    Raises
    ------
    InputError
        on every rank when one of them fails; rows that others finished are kept
    """
    with _exchange() as exchange, contextlib.ExitStack() as stack:
        store: ActivationStore | None = None
        plan: tuple[NDArray[np.intp], Any] | str = ""
        if own.rank == 0:
            try:
                store = stack.enter_context(opened(path, job))
                absorb_shards(path, store)
                missing = store.missing(np.arange(len(job.table)))
                plan = missing, job.shape if len(missing) else None
            except (InputError, OSError) as error:
                plan = str(error)
        plan = exchange(plan)[0]
        if isinstance(plan, str):
            raise InputError(plan)
        missing, shape = plan
        share = _share(missing, own, int(job.options["batch_size"]))
        result: tuple[int, Skipped] | str = (0, [])
        if len(share):
            part = dataclasses.replace(
                job, table=job.table.select(share), stated_shape=shape, options=_on_own_device(job.options, own)
            )
            try:
                with opened(path.with_name(f"{path.name}.shard{own.rank}of{own.world}"), part) as shard:
                    step = progress(len(share)) if own.rank == 0 else None
                    written, skipped = fill([shard], part.computed(np.arange(len(share))), progress=step)
                result = written, [(int(share[row]), reason) for row, reason in skipped]
            except (InputError, OSError) as error:
                result = str(error)
        results = exchange(result)
        done = [r for r in results if not isinstance(r, str)]
        skipped = [bad for _, skipped in done for bad in skipped]
        if store is not None:
            absorb_shards(path, store)
            store.skip(np.array([row for row, _ in skipped], dtype=np.intp))
        stack.close()
        exchange(None)  # no rank reads the store before it is merged
    if errors := [r for r in results if isinstance(r, str)]:
        raise InputError(errors[0])
    return sum(written for written, _ in done), skipped


def _share(rows: NDArray[np.intp], own: Ranks, size: int) -> NDArray[np.intp]:
    """Return this rank's rows: whole batches, so that only one rank pads a batch."""
    batches = [rows[i : i + size] for i in range(0, len(rows), size)][own.rank :: own.world]
    return np.concatenate(batches) if batches else rows[:0]


def _on_own_device(options: Mapping[str, Any], own: Ranks) -> dict[str, Any]:
    """Return options with this rank's GPU, unless the user chose a device."""
    if options["device"] in ("auto", "cuda") and torch.cuda.is_available():
        return {**options, "device": f"cuda:{own.local % torch.cuda.device_count()}"}
    return dict(options)


@contextlib.contextmanager
def _exchange() -> Iterator[Callable[[Any], list[Any]]]:
    """Join the ranks; yield a function from each rank's object to the list of all ranks' objects."""
    joined = not dist.is_initialized()
    if joined:
        # Only plans and results are exchanged, so gloo suffices on GPUs too; a rank may wait long for the slowest.
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))

    def exchange(value: Any) -> list[Any]:
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, value)
        return found

    try:
        yield exchange
    finally:
        if joined:
            dist.destroy_process_group()
