"""The bench on which networks are trained alike: one table, one cut, one way of reading what was learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.guide.building import build_model
from conceptkit.guide.embeddings import drawn_rows, read_spaces
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import Inputs, inputs_for, pass_size, prepare_inputs
from conceptkit.guide.objective import encode
from conceptkit.guide.reading import Reading, TrainedRun, read_run
from conceptkit.guide.search import Trial, search
from conceptkit.guide.setup import Setup
from conceptkit.guide.training import DivergedError, predict, train
from conceptkit.models.checkpoints import save_checkpoint
from conceptkit.models.guided import MAIN
from conceptkit.options.base import Progress
from conceptkit.runs.opening import at_stage
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.resolution import resolution_of
from conceptkit.tables.study import Study

if TYPE_CHECKING:
    from torch import Tensor

    from conceptkit.guide.options import TrainingOptions
    from conceptkit.models.guided import GuidedModel, Task

Spaces = dict[str, NDArray[np.float16]]
"""Layer → features of the rows that pictures show"""

NOTHING_CACHED = "Nothing was cached: the network trains its first layer, or its code cannot be cut."


@dataclass
class Bench:
    """What the networks of one experiment share; the frozen part's output is computed when it is first needed."""

    data: PatchTable
    meant: Study
    setup: Setup
    reading: Reading
    engine: TrainingEngine
    progress: Progress | None = None
    keep_inputs: Callable[[Callable[[], Inputs]], Inputs] | None = None
    """Told how the inputs are computed, returns them: from a file, where they are kept"""
    _shared: Inputs | None = field(default=None, init=False)

    @property
    def used(self) -> NDArray[np.intp]:
        """Return the row numbers of the table that belong to a split."""
        return self.setup.plan.used

    @property
    def at(self) -> dict[str, NDArray[np.intp]]:
        """Return split → positions among the used rows."""
        return {name: np.searchsorted(self.used, rows) for name, rows in self.setup.plan.rows.items()}

    @property
    def evaluated(self) -> NDArray[np.intp]:
        """Return the row numbers of all evaluation splits, in order."""
        plan = self.setup.plan
        return np.sort(np.concatenate([plan.rows[name] for name in plan.evaluation]))

    @property
    def drawn(self) -> NDArray[np.intp]:
        """Return the positions, among the used rows, of those that pictures show."""
        place = np.searchsorted(self.used, self.evaluated)
        return place[drawn_rows(len(place))]

    def values(self, concept: str) -> NDArray[Any]:
        """Return a concept's values (n used rows,)."""
        return self.data.select(self.used).concept(concept).values

    def inputs(self, network: GuidedModel) -> Inputs:
        """Return the used rows as this network's trained part sees them."""
        if self._shared is None:

            def compute() -> Inputs:
                size = pass_size(self.engine.device)
                pixels = _pixel_batches(self.data.select(self.used), size, self.progress)
                return prepare_inputs(
                    network,
                    self.setup.backbone,
                    pixels,
                    batch_size=size,
                    device=self.engine.device,
                    cache=self.setup.training.cache,
                )

            self._shared = compute() if self.keep_inputs is None else self.keep_inputs(compute)
        # One cut serves all runs: it lies where training begins, which is the same in each.
        return inputs_for(network, self._shared)

    @property
    def notes(self) -> list[str]:
        """Return what has to be said of how the rows were kept."""
        whole = self._shared is not None and self._shared.preprocessing is not None
        return [NOTHING_CACHED] if whole and self.setup.training.cache != "off" else []

    def build(self, tasks: Sequence[Task], training: TrainingOptions, seed: int) -> GuidedModel:
        """Build a network at its start."""
        return build_model(self.setup.backbone, tasks, training, seed=seed, origin=self.setup.origin)

    def train(
        self,
        name: str,
        tasks: Sequence[Task],
        training: TrainingOptions,
        *,
        seed: int,
        checkpoint: Path,
        seen_as: Path | None = None,
        rescued: Path | None = None,
        state: Path | None = None,
        log_to: Path | None = None,
        columns: Mapping[str, NDArray[Any]] | None = None,
        draw: bool = False,
    ) -> tuple[TrainedRun, Spaces | None]:
        """Train one network, keep it, and read it.

        Parameters
        ----------
        name : of the run
        tasks : the main task first
        checkpoint : folder to keep the network in
        seen_as : what the record calls this folder, where it is moved afterwards
        rescued : folder for the good state of a network whose losses end up not finite; ``checkpoint`` if not named
        state : file of the training's state, from which a killed one goes on
        log_to : folder of the logs that the engine is asked for
        columns : task → values (n used rows,), instead of the table's
        draw : whether the features that pictures show are read too
        """
        plan = self.setup.plan
        network = self.build(tasks, training, seed)
        inputs = self.inputs(network)
        targets = self.targets(tasks, columns)
        # What trains the concepts alone may be an evaluation row: its main label stays out of sight.
        targets[MAIN][np.searchsorted(self.used, plan.concept_rows)] = -1
        stage = f"training {name}, seed {seed}"
        try:
            result = train(
                network,
                inputs,
                targets,
                {**self.at, "train": np.searchsorted(self.used, plan.training)},
                training,
                seed=seed,
                engine=self.engine,
                state=state,
                log_to=log_to,
                progress=None if self.progress is None else at_stage(self.progress, stage),
            )
        except DivergedError as error:
            folder = rescued or checkpoint
            if error.kept is not None and self.engine.first:
                self._save(error.kept.model, folder)
            raise error.kept_in(folder) from None
        if self.engine.first:
            self._save(result.model, checkpoint)
        seen = self.inputs(result.model)
        device = self.engine.device
        outputs, trunk = predict(result.model, seen, device=device)
        spaces = read_spaces(result.model, seen, self.drawn, device=device) if draw else None
        raw = {k: v.numpy().astype(np.float64) for k, v in outputs.items()}
        self._tell(f"reading {name}, seed {seed}", 0)
        where = seen_as or checkpoint
        read = read_run(name, seed, where, result.history, tasks, raw, trunk.numpy(), plan, self.reading)
        self._tell(f"reading {name}, seed {seed}", 1)
        return read, spaces

    def _save(self, network: GuidedModel, folder: Path) -> None:
        plan = self.setup.plan
        trained_on = resolution_of(self.data.select(plan.training))
        save_checkpoint(network, self.setup.backbone, folder, marks=plan.marks, trained_on=trained_on)

    def digest(self, tasks: Sequence[Task], training: TrainingOptions, seed: int) -> str:
        """Return a name for one training that no other has: its options, tasks, values, rows, pixels and weights."""
        named = hashlib.sha256()
        plan = self.setup.plan
        part = self.data.select(self.used)
        origin = (
            None if self.setup.origin is None else [t.numpy() for t in self.setup.origin.trunk.state_dict().values()]
        )
        for text in (
            json.dumps([asdict(training), [asdict(task) for task in tasks], seed, self.engine.precision]),
            self.setup.backbone.fingerprint(),
            *part.identities(),
        ):
            named.update(text.encode())
        for array in (plan.training, plan.concept_rows, plan.rows["val"], *(origin or ())):
            named.update(np.ascontiguousarray(array).tobytes())
        for values in self.targets(tasks).values():
            named.update(values.numpy().tobytes())
        return named.hexdigest()[:12]

    def search(self, trials: int, seed: int) -> tuple[Trial, ...]:
        """Search for options on the baseline's validation loss, take the best, and return all that were tried.

        Raises
        ------
        InputError
            when the training goes on from a checkpoint, whose trunk is what it is
        """
        if self.setup.origin is not None:
            raise InputError("search: training that goes on keeps the trunk of its checkpoint; there is no choice.")
        main = self.setup.tasks[:1]
        done = 0

        def loss(options: TrainingOptions) -> float:
            nonlocal done
            network = self.build(main, options, seed)
            targets = self.targets(main)
            try:
                result = train(network, self.inputs(network), targets, self.at, options, seed=seed, engine=self.engine)
            except InputError:  # a rate too high ends in losses that are no numbers: the trial has failed
                return float("nan")
            finally:
                done += 1
                if self.progress is not None:
                    self.progress("searching", done, trials)
            return result.history[result.best_epoch - 1][f"val/{MAIN}"] if result.best_epoch else float("nan")

        best, tried = search(loss, self.setup.training, trials=trials, seed=seed)
        self.setup = replace(self.setup, training=best)
        return tried

    def targets(self, tasks: Sequence[Task], columns: Mapping[str, NDArray[Any]] | None = None) -> dict[str, Tensor]:
        """Return task → encoded values (n used rows,), the table's unless ``columns`` has others."""
        columns = columns or {}
        return {t.name: encode(t, list(columns[t.name] if t.name in columns else self._own_values(t))) for t in tasks}

    def _own_values(self, task: Task) -> NDArray[Any]:
        return self.values(self.meant.label if task.name == MAIN else task.name)

    def _tell(self, stage: str, done: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, 1)


def _pixel_batches(data: PatchTable, size: int, progress: Progress | None) -> Iterator[NDArray[np.uint8]]:
    from conceptkit.features.activations import read_pixels

    for start in range(0, len(data), size):
        yield read_pixels(data, np.arange(start, min(start + size, len(data))))
        if progress is not None:
            progress("frozen part of the network", min(start + size, len(data)), len(data))
