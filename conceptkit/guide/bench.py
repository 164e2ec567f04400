"""The bench on which networks are trained under the same conditions: one table, one split, one evaluation."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conceptkit.errors import InputError
from conceptkit.features import activations
from conceptkit.guide.building import build_model
from conceptkit.guide.embeddings import drawn_rows, read_spaces, write_embeddings
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import Inputs, inputs_for, pass_size, prepare_inputs
from conceptkit.guide.objective import encode, joint_codes
from conceptkit.guide.plan import Plan
from conceptkit.guide.prefix import frozen_layers
from conceptkit.guide.reading import Reading, TrainedRun, read_run
from conceptkit.guide.search import Trial, search
from conceptkit.guide.setup import Setup
from conceptkit.guide.training import DivergedError, Trained, predict, train
from conceptkit.models.checkpoints import save_checkpoint
from conceptkit.models.guided import CATEGORICAL, MAIN, GuidedModel, Task
from conceptkit.options.base import Progress
from conceptkit.options.training import TrainingOptions
from conceptkit.pathology.restaining import restained_at_random
from conceptkit.runs.context import names_kept, write_context
from conceptkit.runs.opening import at_stage
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.resolution import resolution_of
from conceptkit.tables.study import Study

Spaces = dict[str, NDArray[np.float16]]
"""Layer → features of the rows that figures show"""

NOTHING_CACHED = "Nothing was cached: the network trains its first layer, or its code cannot be split."

ALIKE = "Baseline and guided networks share data, order, seeds, options and the weighting of losses."


@dataclass(frozen=True)
class Arm:
    """One network to train."""

    name: str
    """Name of the run"""
    tasks: Sequence[Task]
    """The main task first"""
    options: TrainingOptions
    seed: int
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Task → values (n used rows,) instead of the table's"""
    balanced_by: tuple[Task, ...] | None = None
    """Discouraged categories by which the main loss is balanced; ``None`` for those among the tasks"""
    fit: Callable[[Bench, Arm], TrainedRun] | None = None
    """How it is fitted, if it is not a network of the bench"""
    solve: Callable[[Bench, Arm, GuidedModel, Inputs, Mapping[str, Tensor]], Trained] | None = None
    """How its network is fitted to inputs and targets, if not by :func:`train`"""
    penalty: float = 0.0
    """λ of the residual path of a bottleneck, if its main task has one"""

    @property
    def label(self) -> str:
        """Return the name of the run with its seed, as folders and files have it."""
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class Places:
    """Where a training writes."""

    checkpoint: Path | None
    """Folder of the trained network; ``None``: it is not kept"""
    recorded: Path | None = None
    """Path of the checkpoint in the record, when the folder is moved afterwards"""
    rescued: Path | None = None
    """Folder of the last good state of a training that diverges; ``checkpoint`` by default"""
    state: Path | None = None
    """File from which a killed training is resumed"""
    logs: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """A trained network, what was read from it, and the rows as it sees them."""

    run: TrainedRun
    model: GuidedModel
    inputs: Inputs


@dataclass
class Bench(ABC):
    """What the networks of one experiment share; a row of ``data`` is a patch or a bag."""

    data: PatchTable
    study: Study
    plan: Plan
    reading: Reading
    engine: TrainingEngine
    progress: Progress | None = None

    @abstractmethod
    def build(self, tasks: Sequence[Task], options: TrainingOptions, seed: int) -> GuidedModel:
        """Return a network at its start."""

    @abstractmethod
    def inputs(self, network: GuidedModel) -> Inputs:
        """Return the used rows as the trained part of a network sees them."""

    @abstractmethod
    def save(self, network: GuidedModel, folder: Path) -> None:
        """Write a checkpoint."""

    @property
    def used(self) -> NDArray[np.intp]:
        """Return the row numbers of the table that belong to a split."""
        return self.plan.used

    @property
    def at(self) -> dict[str, NDArray[np.intp]]:
        """Return split → positions among the used rows."""
        return {name: np.searchsorted(self.used, rows) for name, rows in self.plan.rows.items()}

    @property
    def evaluated(self) -> NDArray[np.intp]:
        """Return the row numbers of all evaluation splits, in order."""
        return np.sort(np.concatenate([self.plan.rows[name] for name in self.plan.evaluation]))

    def values(self, concept: str) -> NDArray[Any]:
        """Return the values of a concept (n used rows,)."""
        return self.data.select(self.used).concept(concept).values

    def targets(self, tasks: Sequence[Task], columns: Mapping[str, NDArray[Any]] | None = None) -> dict[str, Tensor]:
        """Return task → encoded values (n used rows,), the table's unless ``columns`` has others."""
        given = columns or {}
        column = {task.name: self.study.label if task.name == MAIN else task.name for task in tasks}
        return {
            task.name: encode(task, list(given[task.name] if task.name in given else self.values(column[task.name])))
            for task in tasks
        }

    def training_inputs(self, network: GuidedModel, options: TrainingOptions) -> Inputs:
        """Return the used rows as a network is trained on them."""
        return self.inputs(network)

    def shortcut(self, arm: Arm) -> Tensor:
        """Return the classes (n used rows,) by which the main loss of an arm is balanced, −1 where unknown or none."""
        by = arm.balanced_by
        if by is None:
            by = tuple(task for task in arm.tasks if task.adversarial and task.kind == CATEGORICAL)
        return joint_codes(list(self.targets(by).values())) if by else torch.full((len(self.used),), -1)

    def train(self, arm: Arm, places: Places) -> Outcome:
        """Train one network, save it, and read it.

        Raises
        ------
        InputError
            when the training diverges; its last good state is saved
        """
        network = self.build(arm.tasks, arm.options, arm.seed)
        inputs = self.training_inputs(network, arm.options)
        targets = self.targets(arm.tasks, arm.columns)
        # Rows that train only concepts may be evaluation rows: their main label stays hidden.
        targets[MAIN][np.searchsorted(self.used, self.plan.concept_rows)] = -1
        rows = {**self.at, "train": np.searchsorted(self.used, self.plan.training)}
        stage = f"{arm.name}, seed {arm.seed}"
        progress = None if self.progress is None else at_stage(self.progress, f"training {stage}")
        try:
            result = (
                arm.solve(self, arm, network, inputs, targets)
                if arm.solve is not None
                else train(
                    network,
                    inputs,
                    targets,
                    rows,
                    arm.options,
                    seed=arm.seed,
                    engine=self.engine,
                    state=places.state,
                    log_to=places.logs,
                    shortcut=self.shortcut(arm),
                    progress=progress,
                )
            )
        except DivergedError as error:
            folder = places.rescued or places.checkpoint
            if folder is None:
                raise
            if error.kept is not None and self.engine.first:
                self.save(error.kept.model, folder)
            raise error.kept_in(folder) from None
        if self.engine.first and places.checkpoint is not None:
            self.save(result.model, places.checkpoint)
        return self._read(arm, result, places.recorded or places.checkpoint, f"reading {stage}")

    def _read(self, arm: Arm, result: Trained, checkpoint: Path | None, stage: str) -> Outcome:
        seen = self.inputs(result.model)
        outputs, trunk = predict(result.model, seen, device=self.engine.device)
        raw = {k: v.numpy().astype(np.float64) for k, v in outputs.items()}
        if self.progress is not None:
            self.progress(stage, 0, 1)
        run = read_run(
            arm.name, arm.seed, checkpoint, result.history, arm.tasks, raw, trunk.numpy(), self.plan, self.reading
        )
        if self.progress is not None:
            self.progress(stage, 1, 1)
        return Outcome(run, result.model, seen)


@dataclass
class PatchBench(Bench):
    """A bench of patches; the output of the frozen part of the network is computed once, when it is first needed."""

    setup: Setup = field(kw_only=True)
    keep_inputs: Callable[[Callable[[], Inputs]], Inputs] | None = None
    """Receives how inputs are computed and returns them, from a file where they are kept"""
    whole: PatchBench | None = None
    """Bench of these and other rows, whose inputs are used"""
    copies: int = 0
    """Re-stained copies of each training patch, at most, of any network of the bench"""
    _shared: dict[tuple[str, ...], Inputs] = field(default_factory=dict, init=False)
    """Frozen layers that heads read → the rows, see :meth:`_inputs`"""

    @property
    def drawn(self) -> NDArray[np.intp]:
        """Return the positions, among the used rows, of those that figures show."""
        place = np.searchsorted(self.used, self.evaluated)
        return place[drawn_rows(len(place))]

    def spaces(self, outcome: Outcome) -> Spaces:
        """Return the features of a trained network that figures show."""
        return read_spaces(outcome.model, outcome.inputs, self.drawn, device=self.engine.device)

    def inputs(self, network: GuidedModel) -> Inputs:
        """Return the used rows as the trained part of a network sees them."""
        return self._seen(network).with_copies(0)

    def training_inputs(self, network: GuidedModel, options: TrainingOptions) -> Inputs:
        """Return the used rows with the re-stained copies on which a network is trained."""
        return self._seen(network).with_copies(options.augment)

    def _seen(self, network: GuidedModel) -> Inputs:
        if self.whole is None:
            return self._inputs(network)
        return self.whole._inputs(network).only(np.searchsorted(self.whole.used, self.used))

    def _inputs(self, network: GuidedModel) -> Inputs:
        # The split lies where training begins, which is the same in all runs; a head on a layer before it needs more.
        before = tuple(frozen_layers(network)) if network.layers else ()
        if before not in self._shared:
            keep = None if before else self.keep_inputs
            self._shared[before] = self._compute(network) if keep is None else keep(lambda: self._compute(network))
        return inputs_for(network, self._shared[before])

    def _compute(self, network: GuidedModel) -> Inputs:
        size = pass_size(self.engine.device)
        rows = np.searchsorted(self.used, self.plan.scaled_on)  # never a row that validates or evaluates
        parts = [_pixel_batches(self.data.select(self.used), size, self.progress)]
        parts += [
            _pixel_batches(self.data.select(self.plan.scaled_on), size, self.progress, copy=copy)
            for copy in range(self.copies)
        ]
        found = prepare_inputs(
            network,
            self.setup.backbone,
            itertools.chain(*parts),
            batch_size=size,
            device=self.engine.device,
            cache=self.setup.training.cache,
        )
        if not self.copies:
            return found
        copies = torch.arange(len(self.used))[:, None].repeat(1, self.copies)
        made = len(self.used) + np.arange(self.copies * len(rows)).reshape(self.copies, -1).T
        copies[rows] = torch.from_numpy(made)
        return replace(found, copies=copies)

    @property
    def notes(self) -> list[str]:
        """Return a note when the output of the frozen part could not be cached."""
        whole = any(inputs.preprocessing is not None for inputs in self._shared.values())
        return [NOTHING_CACHED] if whole and self.setup.training.cache != "off" else []

    def build(self, tasks: Sequence[Task], options: TrainingOptions, seed: int) -> GuidedModel:
        """Return a network at its start."""
        return build_model(self.setup.backbone, tasks, options, seed=seed, origin=self.setup.origin)

    def save(self, network: GuidedModel, folder: Path) -> None:
        """Write a checkpoint, with the resolution that it was trained on."""
        trained_on = resolution_of(self.data.select(self.plan.training))
        save_checkpoint(network, self.setup.backbone, folder, marks=self.plan.marks, trained_on=trained_on)

    def write_context(
        self,
        folder: Path,
        trained: Sequence[TrainedRun],
        trunks: Mapping[str, NDArray[np.float32]],
        spaces: Mapping[str, Spaces],
    ) -> None:
        """Write what the report draws: features, predictions, and the patches themselves.

        Parameters
        ----------
        trunks : run → (n evaluated rows, width)
        spaces : run → see :meth:`spaces`
        """
        rows, reading = self.evaluated, self.reading
        place = np.searchsorted(self.used, rows)
        probabilities = {run.label: run.probability[place] for run in trained}
        write_embeddings(
            folder,
            self.data,
            self.study,
            rows,
            trunks,
            spaces=spaces,
            probabilities=probabilities,
            classes=self.plan.classes,
        )
        write_context(
            folder,
            self.data,
            self.study,
            self.used,
            concepts=names_kept(self.study, self.data, [*reading.encourage, *reading.discourage, *self.study.concepts]),
            targets=[
                replace(target, rows=np.searchsorted(self.used, reading.split_rows[target.rows]))
                for target in {**reading.concepts, **reading.leaks}.values()
            ],
            folds=reading.folds,
            trained=self.plan.training,
        )

    def digest(self, arm: Arm) -> str:
        """Return a name that identifies one training by its options, tasks, values, rows, pixels and weights."""
        origin = self.setup.origin
        stated = [asdict(arm.options), [asdict(task) for task in arm.tasks], arm.seed, self.engine.precision]
        identities = self.data.select(self.used).identities()
        named = hashlib.sha256()
        for text in (json.dumps(stated), self.setup.backbone.fingerprint(), *identities):
            named.update(text.encode())
        arrays = [self.plan.training, self.plan.concept_rows, self.plan.rows["val"], self.shortcut(arm).numpy()]
        arrays += [] if origin is None else [t.numpy() for t in origin.trunk.state_dict().values()]
        arrays += [values.numpy() for values in self.targets(arm.tasks, arm.columns).values()]
        for array in arrays:
            named.update(np.ascontiguousarray(array).tobytes())
        return named.hexdigest()[:12]

    def search(self, trials: int, seed: int) -> tuple[Trial, ...]:
        """Search for options by the baseline's validation loss, use the best ones, and return all trials.

        Raises
        ------
        InputError
            when the training continues from a checkpoint, which fixes the trunk
        """
        if self.setup.origin is not None:
            raise InputError("search: not available when training continues from a checkpoint, which fixes the trunk.")
        main = self.setup.tasks[:1]
        done = 0

        def loss(options: TrainingOptions) -> float:
            nonlocal done
            network = self.build(main, options, seed)
            targets = self.targets(main)
            try:
                result = train(network, self.inputs(network), targets, self.at, options, seed=seed, engine=self.engine)
            except InputError:  # the learning rate is too high and the losses are not finite: the trial has failed
                return float("nan")
            finally:
                done += 1
                if self.progress is not None:
                    self.progress("searching", done, trials)
            return result.history[result.best_epoch - 1][f"val/{MAIN}"] if result.best_epoch else float("nan")

        best, tried = search(loss, self.setup.training, trials=trials, seed=seed)
        self.setup = replace(self.setup, training=best)
        return tried


def _pixel_batches(
    table: PatchTable, size: int, progress: Progress | None, *, copy: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of batches, or of a re-stained copy of each patch."""
    stage = "frozen part of the network" if copy is None else f"frozen part of the network, re-stained copy {copy + 1}"
    for start in range(0, len(table), size):
        rows = np.arange(start, min(start + size, len(table)))
        pixels = activations.read_pixels(table, rows)
        if copy is not None:
            names = [f"{table.patch_ids[row]}|{copy}" for row in rows]
            pixels = np.stack([restained_at_random(image, name) for image, name in zip(pixels, names, strict=True)])
        yield pixels
        if progress is not None:
            progress(stage, min(start + size, len(table)), len(table))
