"""Training one guided network, resuming a killed training, and predicting."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from conceptkit.errors import InputError
from conceptkit.families import DISCOURAGING
from conceptkit.guide.engine import TrainingEngine, quiet_lightning
from conceptkit.guide.inputs import Inputs, on_device
from conceptkit.guide.loop import Batches, EpochProgress, KeepState, Loop, NotFiniteError
from conceptkit.models.guided import GuidedModel, Task
from conceptkit.models.inference import choose_device, forked_rng, ieee_float32
from conceptkit.options.training import TrainingOptions


@dataclass(frozen=True)
class Trained:
    """A trained network and its history."""

    model: GuidedModel
    history: tuple[Mapping[str, float], ...]
    best_epoch: int


class DivergedError(InputError):
    """Training diverged: a loss is not finite."""

    kept: Trained | None = None
    """The network in its best state, else in the last state with finite losses, if there was one"""

    def kept_in(self, folder: Path) -> InputError:
        """Return an error that says where the network was saved."""
        reason = str(self).removesuffix(".")
        if self.kept is None:
            return InputError(f"{reason}; no epoch had finished, so no checkpoint was saved.")
        return InputError(f"{reason}; the best state so far, of epoch {self.kept.best_epoch}, is saved in {folder}.")


def train(
    model: GuidedModel,
    inputs: Inputs,
    targets: Mapping[str, Tensor],
    rows: Mapping[str, NDArray[np.intp]],
    options: TrainingOptions,
    *,
    seed: int,
    engine: TrainingEngine | None = None,
    state: Path | None = None,
    log_to: Path | None = None,
    progress: EpochProgress | None = None,
    shortcut: Tensor | None = None,
) -> Trained:
    """Train a network and return it in the state of least validation loss.

    Parameters
    ----------
    targets : task → (n,) encoded values of every row, see :func:`conceptkit.guide.objective.encode`
    rows : ``train`` and ``val`` → row numbers
    seed : of the order of batches and of dropout
    state : file for the state of the training. If it exists, the training is resumed, and its result equals that of an
        uninterrupted training bit for bit. The caller removes it
    log_to : folder of the logs
    shortcut : (n,) classes of what the main loss is balanced by, −1 where unknown; by default the discouraged
        categories of the network

    Raises
    ------
    DivergedError
        when a loss is not finite
    InputError
        when the state is of another training
    """
    engine = engine or TrainingEngine()
    engine.check()
    batches = Batches(torch.from_numpy(rows["train"]), options.batch_size, seed=seed)
    held_back = Batches(torch.from_numpy(rows["val"]), 256, seed=None)
    loop = Loop(model, inputs, targets, rows, options, batches, None if engine.parallel else progress, shortcut)
    if engine.parallel and loop.aggregator is not None:
        raise InputError(
            f"weighting: {loop.weighting.aggregation} trains in one process, got {engine.devices} devices."
        )
    check_processes(options, model.tasks, engine)
    where = choose_device(engine.device)
    with tempfile.TemporaryDirectory() as scratch, forked_rng(where), ieee_float32(), quiet_lightning():
        if state is not None:
            state.parent.mkdir(parents=True, exist_ok=True)
        if engine.parallel:  # the result of other processes comes back in files
            loop.rescued, loop.handed = Path(scratch) / "rescued.ckpt", Path(scratch) / "handed.ckpt"
        if state is None or not _finished(state, loop):
            torch.manual_seed(seed)
            callbacks = [] if state is None else [KeepState(state)]
            trainer = engine.trainer(epochs=options.epochs, callbacks=[*callbacks], log_to=log_to)
            loop.train()  # a built model is in evaluation mode, and the trainer does not change modes
            resumed = str(state) if state is not None and state.is_file() else None
            try:
                trainer.fit(loop, batches, held_back, ckpt_path=resumed, weights_only=True)
            except NotFiniteError as error:
                raise _diverged(str(error), loop) from None
            except ProcessRaisedException as error:
                of_process = _error_of_process(error)
                diverged = isinstance(of_process, NotFiniteError)
                raise (_diverged(str(of_process), loop) if diverged else of_process) from None
            except ProcessExitedException as error:
                # The result is written before a process ends.
                if loop.handed is None or not loop.handed.is_file():
                    raise InputError(
                        f"devices: a process of the training ended before the training did ({error}); check the free "
                        "memory, or train with fewer devices."
                    ) from None
            if loop.handed is not None:
                handed = torch.load(loop.handed, map_location="cpu", weights_only=True)
                loop.history, (loop.best_loss, loop.best_epoch, loop.best_state) = handed["history"], handed["best"]
    return _in_state(loop, loop.best_epoch, loop.best_state)


def check_processes(options: TrainingOptions, tasks: Sequence[Task], engine: TrainingEngine) -> None:
    """Raise :class:`InputError` if several processes would not learn the same as one."""
    if engine.parallel and DISCOURAGING[options.method].needs_whole and any(task.adversarial for task in tasks):
        raise InputError(
            f"method: {options.method} compares the rows of whole batches and trains in one process, got "
            f"{engine.devices * engine.nodes} devices; set --method confusion, or train in one process."
        )


def _in_state(loop: Loop, epoch: int, state: Mapping[str, Tensor]) -> Trained:
    """Return the network in one of its states, on the CPU."""
    model = loop.model
    model.load_state_dict({**model.state_dict(), **state})  # with the frozen tensors
    model.eval().to("cpu")
    if loop.method.erases and model.erasure is not None:
        loop.to("cpu")
        loop.erase(model.erasure)  # fitted again, as that of the epoch was fitted before its steps
        model.eval()
    return Trained(model, tuple(loop.history), epoch)


def _diverged(sentence: str, loop: Loop) -> DivergedError:
    """Return the error of a training, with its last good state."""
    error = DivergedError(sentence)
    epoch, state = loop.good
    if loop.rescued is not None and loop.rescued.is_file():
        rescued = torch.load(loop.rescued, map_location="cpu", weights_only=True)
        loop.history, (epoch, state) = rescued["history"], rescued["good"]
    if epoch:
        error.kept = _in_state(loop, epoch, state)
    return error


def _error_of_process(error: ProcessRaisedException) -> Exception:
    """Return the error of a process, if it is one of ours."""
    last = str(error).strip().splitlines()[-1]
    name, _, sentence = last.partition(": ")
    for kind in (NotFiniteError, InputError):
        if name.endswith(kind.__name__):
            return kind(sentence)
    return error


def _finished(file: Path, loop: Loop) -> bool:
    """Return whether the file holds a finished training, whose result the loop then has."""
    if not file.is_file():
        return False
    try:
        kept = torch.load(file, map_location="cpu", weights_only=True)
        same = kept["state_dict"].keys() == loop.state_dict().keys()
        history = list(kept["conceptkit"]["history"])
    except Exception as error:  # a broken file raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"state: {file} cannot be read ({reason}); remove it to train again.") from None
    if not same:
        raise InputError(
            f"state: {file} is of another training, or of another version of conceptkit; remove it to train again."
        )
    loop.history = history
    loop.best_loss, loop.best_epoch, loop.best_state = kept["conceptkit"]["best"]
    if loop.finished:
        return True
    loop.history = []
    return False


def predict(
    model: GuidedModel, inputs: Inputs, *, batch_size: int = 256, device: str = "auto"
) -> tuple[dict[str, Tensor], Tensor]:
    """Return task → raw output (n, nodes), and what the main head reads (n, width), for all rows."""
    outputs: list[dict[str, Tensor]] = []
    shared: list[Tensor] = []
    n = len(inputs.tensors[0])
    with on_device(model, inputs, device) as where, torch.inference_mode():
        for start in range(0, n, batch_size):
            batch = inputs.batch(torch.arange(start, min(start + batch_size, n)), where)
            reads = model.reads(*inputs.rest(*batch))
            shared.append(model.represented(reads).cpu())
            outputs.append({name: output.cpu() for name, output in model.outputs(reads).items()})
    return {name: torch.cat([o[name] for o in outputs]) for name in outputs[0]}, torch.cat(shared)
