"""Measure which human concepts a neural network encodes, and retrain it to rely on some and ignore others."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import conceptkit.records.base as _records

if TYPE_CHECKING:
    from conceptkit.commands.extract import extract
    from conceptkit.commands.guide import run_guide
    from conceptkit.commands.measure import run_measure
    from conceptkit.commands.predict import predict
    from conceptkit.commands.probe_arrays import probe_arrays
    from conceptkit.commands.report import write_report
    from conceptkit.commands.tile import run_tile
    from conceptkit.errors import InputError
    from conceptkit.models.guided import GradientReversal, GuidedModel
    from conceptkit.options import from_settings
    from conceptkit.options.attribute import Attribute
    from conceptkit.options.audit import Audit
    from conceptkit.options.bags import Bags
    from conceptkit.options.grid import Grid
    from conceptkit.options.guide import Guide
    from conceptkit.options.predictivity import Predictivity
    from conceptkit.options.probe import Probe, run_probe
    from conceptkit.probe.classification import ConceptActivationVector
    from conceptkit.probe.region import ConceptRegion
    from conceptkit.probe.regression import RegressionConceptVector
    from conceptkit.records.attribute import AttributeRecord
    from conceptkit.records.audit import AuditRecord
    from conceptkit.records.bags import BagsRecord
    from conceptkit.records.grid import GridRecord
    from conceptkit.records.guide import GuideRecord
    from conceptkit.records.loading import load_record
    from conceptkit.records.predictivity import PredictivityRecord
    from conceptkit.records.probe import ProbeRecord
    from conceptkit.report.plotting import plot
    from conceptkit.synthetic import embedded_study
    from conceptkit.tables.study import Study, load_study

__version__ = "0.1.0"

_HOMES = {
    "Attribute": "options.attribute",
    "AttributeRecord": "records.attribute",
    "Audit": "options.audit",
    "AuditRecord": "records.audit",
    "Bags": "options.bags",
    "BagsRecord": "records.bags",
    "ConceptActivationVector": "probe.classification",
    "ConceptRegion": "probe.region",
    "GradientReversal": "models.guided",
    "Grid": "options.grid",
    "GridRecord": "records.grid",
    "Guide": "options.guide",
    "GuideRecord": "records.guide",
    "GuidedModel": "models.guided",
    "InputError": "errors",
    "Predictivity": "options.predictivity",
    "PredictivityRecord": "records.predictivity",
    "Probe": "options.probe",
    "ProbeRecord": "records.probe",
    "RegressionConceptVector": "probe.regression",
    "Study": "tables.study",
    "embedded_study": "synthetic",
    "from_settings": "options",
    "extract": "commands.extract",
    "load_record": "records.loading",
    "load_study": "tables.study",
    "plot": "report.plotting",
    "predict": "commands.predict",
    "probe_arrays": "commands.probe_arrays",
    "run_guide": "commands.guide",
    "run_measure": "commands.measure",
    "run_probe": "options.probe",
    "run_tile": "commands.tile",
    "write_report": "commands.report",
}

__all__ = [
    "Attribute",
    "AttributeRecord",
    "Audit",
    "AuditRecord",
    "Bags",
    "BagsRecord",
    "ConceptActivationVector",
    "ConceptRegion",
    "GradientReversal",
    "Grid",
    "GridRecord",
    "Guide",
    "GuideRecord",
    "GuidedModel",
    "InputError",
    "Predictivity",
    "PredictivityRecord",
    "Probe",
    "ProbeRecord",
    "RegressionConceptVector",
    "Study",
    "__version__",
    "embedded_study",
    "extract",
    "from_settings",
    "load_record",
    "load_study",
    "plot",
    "predict",
    "probe_arrays",
    "run_guide",
    "run_measure",
    "run_probe",
    "run_tile",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``conceptkit --help`` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'conceptkit' has no attribute {name!r}")
    return getattr(_module(_HOMES[name]), name)


def _module(home: str) -> Any:
    return importlib.import_module(f"conceptkit.{home}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__


# Records lie below the report, which draws them: the package, above both, joins them when a record is first shown.
_records.show_by(
    plot=lambda record: _module("report.plotting").plot(record),
    html=lambda record: _module("report.plotting").to_html(record),
)
