"""Measure which human concepts a neural network encodes, and retrain it to rely on some and ignore others."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conceptkit._checks import InputError
    from conceptkit.models.guided import GradientReversal, GuidedModel
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
    from conceptkit.study import Study, load_study
    from conceptkit.synthetic import embedded_study
    from conceptkit.workflow.array_probing import probe_arrays
    from conceptkit.workflow.attributing import run_attribute
    from conceptkit.workflow.auditing import run_audit
    from conceptkit.workflow.bagging import run_bags
    from conceptkit.workflow.extracting import extract
    from conceptkit.workflow.grids import run_grid
    from conceptkit.workflow.guiding import run_guide
    from conceptkit.workflow.measuring import run_measure
    from conceptkit.workflow.predicting import predict
    from conceptkit.workflow.predictivity import run_predictivity
    from conceptkit.workflow.probing import run_probe
    from conceptkit.workflow.reporting import write_report
    from conceptkit.workflow.tiling import run_tile

__version__ = "0.1.0"

_HOMES = {
    "AttributeRecord": "records.attribute",
    "AuditRecord": "records.audit",
    "BagsRecord": "records.bags",
    "ConceptActivationVector": "probe.classification",
    "ConceptRegion": "probe.region",
    "GradientReversal": "models.guided",
    "GridRecord": "records.grid",
    "GuideRecord": "records.guide",
    "GuidedModel": "models.guided",
    "InputError": "_checks",
    "PredictivityRecord": "records.predictivity",
    "ProbeRecord": "records.probe",
    "RegressionConceptVector": "probe.regression",
    "Study": "study",
    "embedded_study": "synthetic",
    "extract": "workflow.extracting",
    "load_record": "records.loading",
    "load_study": "study",
    "predict": "workflow.predicting",
    "probe_arrays": "workflow.array_probing",
    "run_attribute": "workflow.attributing",
    "run_audit": "workflow.auditing",
    "run_bags": "workflow.bagging",
    "run_grid": "workflow.grids",
    "run_guide": "workflow.guiding",
    "run_measure": "workflow.measuring",
    "run_predictivity": "workflow.predictivity",
    "run_probe": "workflow.probing",
    "run_tile": "workflow.tiling",
    "write_report": "workflow.reporting",
}

__all__ = [
    "AttributeRecord",
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
    "load_record",
    "load_study",
    "predict",
    "probe_arrays",
    "run_attribute",
    "run_audit",
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
