"""Measure which human concepts a neural network encodes, and retrain it to rely on some and ignore others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import conceptkit.records.base as _records
from conceptkit.options import COMMANDS, RECORDS
from conceptkit.registry import load

if TYPE_CHECKING:
    from conceptkit.commands.extract import extract as extract
    from conceptkit.commands.measure import run_measure as run_measure
    from conceptkit.commands.predict import predict as predict
    from conceptkit.commands.probe_arrays import probe_arrays as probe_arrays
    from conceptkit.commands.report import write_report as write_report
    from conceptkit.commands.tile import run_tile as run_tile
    from conceptkit.commands.vector_network import score_images as score_images
    from conceptkit.errors import InputError as InputError
    from conceptkit.models.checkpoints import load_adapter as load_adapter
    from conceptkit.models.guided import GradientReversal as GradientReversal
    from conceptkit.models.guided import GuidedModel as GuidedModel
    from conceptkit.options import from_settings as from_settings
    from conceptkit.options.attribute import Attribute as Attribute
    from conceptkit.options.audit import Audit as Audit
    from conceptkit.options.bags import Bags as Bags
    from conceptkit.options.extract import Extract as Extract
    from conceptkit.options.grid import Grid as Grid
    from conceptkit.options.guide import Guide as Guide
    from conceptkit.options.guide import run_guide as run_guide
    from conceptkit.options.measure import Measure as Measure
    from conceptkit.options.predict import Predict as Predict
    from conceptkit.options.predictivity import Predictivity as Predictivity
    from conceptkit.options.probe import Probe as Probe
    from conceptkit.options.probe import run_probe as run_probe
    from conceptkit.options.robustness import Robustness as Robustness
    from conceptkit.options.tile import Tile as Tile
    from conceptkit.probe.classification import ConceptActivationVector as ConceptActivationVector
    from conceptkit.probe.region import ConceptRegion as ConceptRegion
    from conceptkit.probe.regression import RegressionConceptVector as RegressionConceptVector
    from conceptkit.probe.vectors import load_vectors as load_vectors
    from conceptkit.records.attribute import AttributeRecord as AttributeRecord
    from conceptkit.records.audit import AuditRecord as AuditRecord
    from conceptkit.records.bags import BagsRecord as BagsRecord
    from conceptkit.records.grid import GridRecord as GridRecord
    from conceptkit.records.guide import GuideRecord as GuideRecord
    from conceptkit.records.loading import load_record as load_record
    from conceptkit.records.predictivity import PredictivityRecord as PredictivityRecord
    from conceptkit.records.probe import ProbeRecord as ProbeRecord
    from conceptkit.records.robustness import RobustnessRecord as RobustnessRecord
    from conceptkit.report.plotting import plot as plot
    from conceptkit.synthetic.studies import embedded_study as embedded_study
    from conceptkit.tables.study import Study as Study
    from conceptkit.tables.study import load_study as load_study

__version__ = "0.1.0"

_HOMES: dict[str, str] = {
    "ConceptActivationVector": "conceptkit.probe.classification",
    "ConceptRegion": "conceptkit.probe.region",
    "GradientReversal": "conceptkit.models.guided",
    "GuidedModel": "conceptkit.models.guided",
    "InputError": "conceptkit.errors",
    "RegressionConceptVector": "conceptkit.probe.regression",
    "Study": "conceptkit.tables.study",
    "embedded_study": "conceptkit.synthetic.studies",
    "from_settings": "conceptkit.options",
    "extract": "conceptkit.commands.extract",
    "load_adapter": "conceptkit.models.checkpoints",
    "load_record": "conceptkit.records.loading",
    "load_study": "conceptkit.tables.study",
    "load_vectors": "conceptkit.probe.vectors",
    "plot": "conceptkit.report.plotting",
    "predict": "conceptkit.commands.predict",
    "probe_arrays": "conceptkit.commands.probe_arrays",
    "run_guide": "conceptkit.options.guide",
    "run_measure": "conceptkit.commands.measure",
    "run_probe": "conceptkit.options.probe",
    "run_tile": "conceptkit.commands.tile",
    "score_images": "conceptkit.commands.vector_network",
    "write_report": "conceptkit.commands.report",
}
"""Public name → its module; a command that writes a record, and the record, come from ``options``"""

for _place in (*RECORDS.values(), *(COMMANDS[_name] for _name in (*RECORDS, "tile", "measure", "extract", "predict"))):
    _HOMES[_place.partition(":")[2]] = _place.partition(":")[0]

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``conceptkit --help`` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'conceptkit' has no attribute {name!r}")
    return load(f"{_HOMES[name]}:{name}")


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)


# Records lie below the report, which draws them: the package, above both, joins them when a record is first shown.
_records.show_by(
    plot=lambda record: load("conceptkit.report.plotting:plot")(record),
    html=lambda record: load("conceptkit.report.plotting:to_html")(record),
)
