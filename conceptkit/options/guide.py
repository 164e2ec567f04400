"""Options of ``guide``, and those that it shares with ``grid``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptkit.errors import InputError
from conceptkit.families import ARMS, DISTURBANCES, RECIPES
from conceptkit.options.base import Names, RecordCommand, declare, option, seed_list
from conceptkit.options.shared import NetworkOptions, TableOptions
from conceptkit.options.training import TrainingOverrides


@declare
class Guided(TableOptions, NetworkOptions, TrainingOverrides, RecordCommand):
    """Options of every command that trains guided networks on patches."""

    encourage: Names | None = None
    """Concepts to encourage: CONCEPT or CONCEPT@LAYER, comma-separated; default: the study's."""
    discourage: Names | None = None
    """Concepts to discourage, as above; default: the study's."""
    features: str | Path | None = None
    """Features of the patches, on which an adapter is trained instead of a network on images: an activation store or
    your own file (.h5, .npy, .parquet)."""
    layer: str | None = None
    """Layer of an activation store with several."""
    recipe: str = option("ours", choices=RECIPES)
    """Recipe that sets the training options that are not given."""
    folds: int = option(5, minimum=2)
    """Number of cross-validation folds of the probes that read the trained networks."""
    within: Names = ()
    """Columns within whose levels AUCs are computed too, besides the discouraged categories and the center."""
    primary: str | None = None
    """Primary contrast, declared before the run: RUN:SPLIT:METRIC, or none; default: the weighted AUC of the guided
    network, or of the bottleneck, over unseen centers."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    dry_run: bool = False
    """Print what would be trained, and stop."""

    @property
    def feature_layer(self) -> str | None:
        """Return the layer of an activation store."""
        return self.layer


VARIED = ("layer", "strength", "augment")
"""Options of which a selection tries several values"""


def _trials(value: Any) -> Any:
    """Return the number of trials; 0 for the trials of a record, as its options are the best of them."""
    return 0 if isinstance(value, list | tuple) else value


@declare
class Guide(Guided):
    """Train a baseline and a guided network under the same conditions, and measure what guiding changed."""

    name = "guide"
    example = "guide --study study.toml --encourage area_um2,count --discourage center --seeds 0,1,2"
    runner = "conceptkit.commands.guide:guide"
    leads = True

    discourage: Names | None = None
    """Concepts to discourage, as above; latent:3 for three domains proposed from stain, latent:3+LAYER from stain and
    the network's features there; default: the study's."""
    plan: bool = False
    """Print how well concepts and frozen features predict the label, the smallest detectable difference and the
    recommended arm, and stop."""
    select: str | None = option(None, choices=("leave-one-center-out",))
    """Choose among at most 12 candidates by the mean AUC within training centers that are left out in turn, and train
    the chosen arm; --arms, --layer, --strength and --augment may then list several values."""
    with_test: bool = False
    """Show these AUCs on evaluation splits too; every result then says so."""
    through: Names | None = None
    """Concepts of a bottleneck, CONCEPT or CONCEPT@LAYER: the main head of the arms through, through-balanced and
    others reads nothing but predictions of them."""
    bottleneck: str = option("sequential", choices=("sequential", "joint"))
    """sequential: concept heads on the network as it is, then the main head; joint: trained with the network."""
    residual: float | None = option(None, minimum=0)
    """Penalty λ of a path past the bottleneck, from the features to the main task: the arm hybrid."""
    intervene: Names | None = None
    """Concepts of the bottleneck that get their true values in the evaluation, or none; default: each, and all."""
    arms: Names | None = option(None, choices=lambda: (*ARMS, "all"))
    """Networks to train, comma-separated, or all; default: baseline and guided, balanced if a category is discouraged,
    and with --through its arms and components."""
    layer: Names | None = None  # type: ignore[assignment]  # a list of what other commands have once
    """Layer of an activation store with several; a list with --select."""
    strength: tuple[float, ...] | None = option(None, minimum=0)  # type: ignore[assignment]
    """Strength of discouraging at the end of the warmup; default: 1; a list with --select."""
    augment: tuple[int, ...] | None = option(None, minimum=0)  # type: ignore[assignment]
    """Re-stained copies of each training patch; default: 0; a list with --select."""
    seed: int = option(0, minimum=0)
    """Seed of a single pair of networks."""
    seeds: tuple[int, ...] | None = option(None, parse=seed_list)
    """Number of seeds (5), or a list (1001,822): one pair of networks per seed; default: --seed."""
    devices: int = option(1, minimum=1)
    """Processes on this machine that share each batch."""
    nodes: int = option(1, minimum=1)
    """Machines; the command is started on each."""
    precision: str = option("32", choices=("32", "bf16", "16"))
    """Floating-point precision."""
    log: Names = option((), choices=("csv", "tensorboard"))
    """Loggers of the losses, comma-separated."""
    disturb: Names = option((), choices=DISTURBANCES)
    """Disturb every patch by a known amount, which becomes the concept made_NAME; comma-separated."""
    search: int = option(0, minimum=0, parse=_trials)
    """Number of sets of trunk, dropout, l2 and lr to try on the baseline first."""
    transductive: bool = False
    """Train the concepts on evaluation rows too; the result says so."""
    allow_leakage: bool = False
    """Allow groups with rows in several splits; the result says so."""
    export: str | Path | None = None
    """ONNX file of the guided adapter of the first seed (the baseline, if none is guided), for other programs; needs
    pip install 'conceptkit[onnx]'."""

    def __post_init__(self) -> None:
        """Check the values; only a selection has several of an option."""
        super().__post_init__()
        for name in VARIED:
            given = getattr(self, name)
            if given is not None and (not given or (self.select is None and len(given) > 1)):
                got = ", ".join(map(str, given)) or "none"
                raise InputError(f"{name}: must be one value without --select, got {got}.")

    @property
    def feature_layer(self) -> str | None:
        """Return the layer of an activation store, the first of several."""
        return self.layer[0] if self.layer else None

    def overrides(self) -> dict[str, Any]:
        """Return the training options that are given, of several values the first."""
        given = super().overrides()
        return {name: value[0] if name in VARIED else value for name, value in given.items()}


def run_guide(
    study: Any = None, *, out: str | Path | None = None, progress: Any = None, notify: Any = None, **options: Any
) -> Any:
    """Return the record of :class:`Guide` with ``options``; see :meth:`Guide.run` for the other parameters."""
    return Guide(**options).run(study, out=out, progress=progress, notify=notify)
