"""Device, processes, precision and logs of a training; none of them changes the result but by rounding."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch.distributed as dist
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from conceptkit.errors import InputError, check_at_least, check_choice
from conceptkit.models.inference import choose_device

PRECISIONS: Mapping[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""Name → Lightning's name"""

LOGGERS = ("csv", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class TrainingEngine:
    """Device, processes, precision and logs of a training."""

    device: str = "auto"
    devices: int = 1
    """Processes on this machine, one per device; each works on its share of every batch"""
    nodes: int = 1
    """Machines; the command is started on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set. Only the first one, of
    rank 0, writes results"""
    precision: str = "32"
    loggers: tuple[str, ...] = ()
    """Any of :data:`LOGGERS`"""

    def check(self) -> None:
        """Raise :class:`InputError` for an option that cannot be used."""
        check_at_least("devices", self.devices, 1)
        check_at_least("nodes", self.nodes, 1)
        check_choice("precision", self.precision, PRECISIONS)
        for name in self.loggers:
            check_choice("log", name, LOGGERS)
        if "tensorboard" in self.loggers:
            try:
                import torch.utils.tensorboard  # noqa: F401  # Lightning needs it at the first line it writes
            except ImportError:
                raise InputError("log: tensorboard is not installed; pip install tensorboard, or take csv.") from None
        kind = choose_device(self.device).type
        if self.precision == "16" and kind == "cpu":
            raise InputError("precision: 16 needs a GPU; on a CPU take 32 or bf16.")
        if self.nodes > 1:
            _check_machine(self.nodes)

    @property
    def parallel(self) -> bool:
        """Return whether several processes train."""
        return self.devices * self.nodes > 1

    @property
    def first(self) -> bool:
        """Return whether this machine is the one that writes the results."""
        return self.nodes == 1 or int(os.environ["NODE_RANK"]) == 0

    def trainer(self, *, epochs: int, callbacks: list[lightning.Callback], log_to: Path | None) -> lightning.Trainer:
        """Return Lightning's trainer for this engine; ``log_to`` is the folder of the logs, ``None`` for none."""
        where = choose_device(self.device)
        loggers: list[Logger] = []
        if log_to is not None:
            if "csv" in self.loggers:
                loggers.append(CSVLogger(log_to.parent, name=log_to.name, version="csv", flush_logs_every_n_steps=1))
            if "tensorboard" in self.loggers:
                loggers.append(TensorBoardLogger(log_to.parent, name=log_to.name, version="tensorboard"))
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator={"cuda": "gpu"}.get(where.type, where.type),
            devices=self.devices if where.index is None or self.parallel else [where.index],
            num_nodes=self.nodes,
            # The command itself runs in one process per machine; only the training runs in several.
            strategy=Spawned(start_method="spawn") if self.parallel else "auto",
            precision=PRECISIONS[self.precision],
            use_distributed_sampler=False,
            callbacks=callbacks,
            logger=loggers or False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )


class Spawned(DDPStrategy):
    """Processes that leave their group before they end, as one that ends with the group's threads running may abort."""

    def teardown(self) -> None:
        """Release the training, then the process group."""
        super().teardown()
        if dist.is_initialized():
            dist.barrier()  # the first process serves the addresses of the others, so it must not leave first
            gc.collect()  # the wrapped network, whose reducer holds the group
            dist.destroy_process_group()


def _check_machine(nodes: int) -> None:
    """Raise unless the environment says which machine this is and where the first one is; without, all would wait."""
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if lacking:
        raise InputError(
            f"nodes: set {', '.join(lacking)} in the environment of each of the {nodes} machines: address and a free "
            "port of the first one, and the number of each from 0."
        )
    rank = os.environ["NODE_RANK"]
    if not rank.isdecimal() or int(rank) >= nodes:
        raise InputError(f"nodes: NODE_RANK must be a number from 0 to {nodes - 1}, got {rank!r}.")


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence advice of Lightning that does not apply: batches come from memory, the user chooses devices."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
