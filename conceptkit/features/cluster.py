"""Extraction on an existing Dask cluster: batches go to its workers, rows come back."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, reason_of

if TYPE_CHECKING:
    from conceptkit.features.activations import Computed, Job

BATCHES_AT_ONCE = 4
"""Batches per task of a worker, which reads images while it computes."""

PARTS_PER_WORKER = 3
"""Tasks that each thread of a worker has at a time, so that memory does not grow with the table."""

PATIENCE = 20
"""Seconds that the scheduler has to answer."""

_kept: dict[str, Job] = {}
_one_at_a_time = threading.Lock()  # a worker may have several threads, and a network that is read has hooks


def computed_on_cluster(scheduler: str, job: Job, rows: NDArray[np.intp]) -> Iterator[Computed]:
    """Compute rows on the workers of a Dask cluster, which must see the images under the same paths.

    Parameters
    ----------
    scheduler : its address
    job : sent to each worker once
    rows : row numbers

    Raises
    ------
    InputError
        when dask is not installed, nothing answers at the address, or a row cannot be read
    """
    try:
        import distributed
    except ImportError:
        raise InputError("engine: dask is not installed; pip install 'conceptkit[dask]' brings it.") from None
    dask: Any = distributed
    try:
        client = dask.Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"scheduler: no Dask scheduler answers at {scheduler} ({reason_of(error)}).") from None
    table = dataclasses.replace(job.table, folder=job.table.folder.resolve())
    sent = dataclasses.replace(job, table=table, stated_shape=job.shape)
    size = BATCHES_AT_ONCE * int(job.options["batch_size"])
    with client:
        name = f"conceptkit-{id(job)}-{client.id}"
        everywhere = client.scatter(sent, broadcast=True, hash=False)
        starts = iter(range(0, len(rows), size))
        waiting = dask.as_completed(loop=client.loop)

        def hand_out() -> None:
            free = PARTS_PER_WORKER * max(1, sum(client.nthreads().values())) - waiting.count()
            for i in itertools.islice(starts, max(0, free)):
                waiting.add(client.submit(_compute, rows[i : i + size], name=name, job=everywhere, pure=False))

        hand_out()
        for future in waiting:
            computed = future.result()
            future.release()
            hand_out()  # before the rows are taken, so that workers go on while these are written
            yield from computed


def _compute(rows: NDArray[np.intp], *, name: str, job: Job) -> list[Computed]:
    """Compute rows on a worker, which keeps the prepared network of the last job."""
    with _one_at_a_time:
        if name not in _kept:
            _kept.clear()
            _kept[name] = job
        return list(_kept[name].computed(rows))
