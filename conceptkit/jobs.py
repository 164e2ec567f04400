"""Independent jobs on several processes or a Dask cluster; a job that fails does not affect the others."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from conceptkit.errors import InputError, check_at_least, check_choice

Job = TypeVar("Job")
Result = TypeVar("Result")

_LIVES = 3
"""Number of crashed workers after which a job fails."""

_TIMEOUT = "10s"  # for a scheduler to answer

_AT_ONCE = 20
"""Jobs per worker thread that a scheduler holds: millions would exhaust it before the first comes back."""


@dataclass(frozen=True)
class Engine:
    """Where jobs run."""

    name: str = "processes"
    """One of :data:`ENGINES`."""
    workers: int | None = 1
    """Processes at once; 1 runs in this process, ``None`` takes one per processor."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as ``tcp://host:8786``."""

    def __post_init__(self) -> None:
        check_choice("engine", self.name, ENGINES)
        if self.workers is not None:
            check_at_least("workers", self.workers, 1)
        if (self.name == "dask") != (self.scheduler is not None):
            raise InputError(
                f"scheduler: must be given with --engine dask and only then, got {self.scheduler!r} for {self.name}."
            )


@dataclass(frozen=True)
class JobOutcome(Generic[Result]):
    """The outcome of one job."""

    index: int
    result: Result | None
    error: str | None
    """A sentence; ``None`` when the job gave its result."""


def usable_processors() -> int:
    """Return how many processors this process may use; of the machine, where the system knows no affinity."""
    # macOS and Windows have no sched_getaffinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], engine: Engine) -> Iterator[JobOutcome[Result]]:
    """Run ``function`` on every job and yield each outcome as soon as it is known, in any order.

    An :class:`InputError` becomes the outcome's error; any other exception too, with its type. A job whose worker died
    is run again on another; after the third death the job fails. Other processes must be able to import ``function``
    from the top level of a module, and to pickle jobs and results.
    """
    return ENGINES[engine.name](function, jobs, engine)


def _safely(function: Callable[[Any], Any], index: int, job: Any) -> JobOutcome[Any]:
    try:
        return JobOutcome(index, function(job), None)
    except InputError as error:
        return JobOutcome(index, None, str(error))
    except MemoryError:
        return JobOutcome(index, None, "memory: not enough for this job.")
    except Exception as error:
        return JobOutcome(index, None, f"failed with {type(error).__name__}: {' '.join(str(error).split())}")


def _end_with_parent() -> None:
    """End this process as soon as the one that gives it work is gone: a killed command leaves no workers behind."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _processes(function: Callable[[Any], Any], jobs: Sequence[Any], engine: Engine) -> Iterator[JobOutcome[Any]]:
    workers = min(engine.workers or usable_processors(), len(jobs))
    if workers <= 1:
        yield from (_safely(function, k, job) for k, job in enumerate(jobs))
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)  # a plain fork would copy the locks of torch's and HDF5's threads
    deaths = [0] * len(jobs)
    todo = list(range(len(jobs)))
    while todo:
        # After a worker died, the jobs that were running are repeated one at a time to find the cause.
        one = any(deaths[k] for k in todo)
        batch = [k for k in todo if deaths[k]][:1] if one else todo
        finished = set()
        try:
            with ProcessPoolExecutor(1 if one else workers, mp_context=context, initializer=_end_with_parent) as pool:
                futures = [pool.submit(_safely, function, k, jobs[k]) for k in batch]
                try:
                    for future in as_completed(futures):
                        outcome = future.result()
                        finished.add(outcome.index)
                        yield outcome
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except BrokenProcessPool:
            suspects = [k for k in batch if k not in finished]
            for k in suspects[: workers + 1]:  # a pool hands out one job more than it has workers
                deaths[k] += 1
        todo = [k for k in todo if k not in finished]
        for k in [k for k in todo if deaths[k] >= _LIVES]:
            yield JobOutcome(k, None, f"took down its worker {_LIVES} times; is there enough memory?")
            todo.remove(k)


def _dask(function: Callable[[Any], Any], jobs: Sequence[Any], engine: Engine) -> Iterator[JobOutcome[Any]]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise InputError("engine: dask is not installed; pip install 'conceptkit[dask]' installs it.") from None
    client: Any
    try:
        client = Client(engine.scheduler, timeout=_TIMEOUT, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"scheduler: {engine.scheduler} does not answer ({type(error).__name__}).") from None
    try:

        def submit(k: int) -> Any:
            # pure=False: equal jobs of two runs are two jobs.
            return client.submit(_safely, function, k, jobs[k], pure=False, retries=_LIVES)

        lives: dict[int, int] = {}
        futures: dict[Any, int] = {}
        left = iter(range(len(jobs)))
        waiting = as_completed(loop=client.loop)  # type: ignore[no-untyped-call]

        def hand_out(those: Iterable[int]) -> None:
            for k in those:
                lives.setdefault(k, _LIVES)
                future = submit(k)
                futures[future] = k
                waiting.add(future)  # type: ignore[no-untyped-call]

        def at_most() -> int:
            return _AT_ONCE * max(1, sum(int(n) for n in client.nthreads().values()))

        hand_out(itertools.islice(left, at_most()))
        for future in waiting:
            k = futures.pop(future)
            try:
                outcome = future.result()  # a job's own faults are outcomes: what is raised here befell its worker
            except Exception as error:
                lives[k] -= 1
                if lives[k]:
                    hand_out([k])
                    continue
                outcome = JobOutcome(k, None, f"was cancelled by the cluster ({type(error).__name__}).")
            if 2 * len(futures) < (most := at_most()):  # in bulk: asking for the workers is a round trip
                hand_out(itertools.islice(left, most - len(futures)))
            del lives[k]
            yield outcome
    finally:
        client.close()


ENGINES: dict[str, Callable[[Callable[[Any], Any], Sequence[Any], Engine], Iterator[JobOutcome[Any]]]] = {
    "processes": _processes,
    "dask": _dask,
}
"""Every engine by its name."""
