"""Measure which human concepts a neural network encodes, and retrain it to rely on some and ignore others."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conceptkit.commands.bags import run_bags
    from conceptkit.commands.extract import extract
    from conceptkit.commands.grid import run_grid
    from conceptkit.commands.guide import run_guide
    from conceptkit.commands.measure import run_measure
    from conceptkit.commands.predict import predict
    from conceptkit.commands.predictivity import run_predictivity
    from conceptkit.commands.probe import run_probe
    from conceptkit.commands.probe_arrays import probe_arrays
    from conceptkit.commands.report import write_report
    from conceptkit.commands.tile import run_tile
    from conceptkit.errors import InputError
    from conceptkit.models.guided import GradientReversal, GuidedModel
    from conceptkit.options import from_settings
    from conceptkit.options.attribute import Attribute
    from conceptkit.options.audit import Audit
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
    from conceptkit.synthetic import embedded_study
    from conceptkit.tables.study import Study, load_study

__version__ = "0.1.0"

_HOMES = {
    "Attribute": "options.attribute",
    "AttributeRecord": "records.attribute",
    "Audit": "options.audit",
    "AuditRecord": "records.audit",
    "BagsRecord": "records.bags",
    "ConceptActivationVector": "probe.classification",
    "ConceptRegion": "probe.region",
    "GradientReversal": "models.guided",
    "GridRecord": "records.grid",
    "GuideRecord": "records.guide",
    "GuidedModel": "models.guided",
    "InputError": "errors",
    "PredictivityRecord": "records.predictivity",
    "ProbeRecord": "records.probe",
    "RegressionConceptVector": "probe.regression",
    "Study": "tables.study",
    "embedded_study": "synthetic",
    "from_settings": "options",
    "extract": "commands.extract",
    "load_record": "records.loading",
    "load_study": "tables.study",
    "predict": "commands.predict",
    "probe_arrays": "commands.probe_arrays",
    "run_bags": "commands.bags",
    "run_grid": "commands.grid",
    "run_guide": "commands.guide",
    "run_measure": "commands.measure",
    "run_predictivity": "commands.predictivity",
    "run_probe": "commands.probe",
    "run_tile": "commands.tile",
    "write_report": "commands.report",
}

__all__ = [
    "Attribute",
    "AttributeRecord",
    "Audit",
    "AuditRecord",
    "BagsRecord",
    "ConceptActivationVector",
    "ConceptRegion",
    "GradientReversal",
    "GridRecord",
    "GuideRecord",
    "GuidedModel",
    "InputError",
    "PredictivityRecord",
    "ProbeRecord",
    "RegressionConceptVector",
    "Study",
    "__version__",
    "embedded_study",
    "extract",
    "from_settings",
    "load_record",
    "load_study",
    "predict",
    "probe_arrays",
    "run_bags",
    "run_grid",
    "run_guide",
    "run_measure",
    "run_predictivity",
    "run_probe",
    "run_tile",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``conceptkit --help`` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'conceptkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"conceptkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
