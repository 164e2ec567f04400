"""The results of commands: frozen, saved as JSON and loaded again; a file per command."""

from conceptkit.records.attribute import AttributeRecord, AttributeRow, Moved, Score
from conceptkit.records.audit import AuditLayer, AuditLevel, AuditRecord, AuditRow
from conceptkit.records.bags import AttentionScore, BagScore, BagsRecord
from conceptkit.records.base import CONTEXT_FILE, EMBEDDINGS_FILE, RECORD_FILE, Record, to_json, write_atomically
from conceptkit.records.grid import Affinity, GridCell, GridRecord, PatchLevel
from conceptkit.records.guide import Candidate, Difference, GuideRecord, GuideRun, RunsRecord, Selection
from conceptkit.records.loading import load_record
from conceptkit.records.predictivity import PredictivityRecord, PredictivityRow
from conceptkit.records.probe import ProbeRecord, ProbeRow
from conceptkit.records.robustness import RobustnessCell, RobustnessDifference, RobustnessRecord, RobustnessRow
from conceptkit.records.texts import Metric, Note, concept_of

__all__ = [
    "CONTEXT_FILE",
    "EMBEDDINGS_FILE",
    "RECORD_FILE",
    "Affinity",
    "AttentionScore",
    "AttributeRecord",
    "AttributeRow",
    "AuditLayer",
    "AuditLevel",
    "AuditRecord",
    "AuditRow",
    "BagScore",
    "BagsRecord",
    "Candidate",
    "Difference",
    "GridCell",
    "GridRecord",
    "GuideRecord",
    "GuideRun",
    "Metric",
    "Moved",
    "Note",
    "PatchLevel",
    "PredictivityRecord",
    "PredictivityRow",
    "ProbeRecord",
    "ProbeRow",
    "Record",
    "RobustnessCell",
    "RobustnessDifference",
    "RobustnessRecord",
    "RobustnessRow",
    "RunsRecord",
    "Score",
    "Selection",
    "concept_of",
    "load_record",
    "to_json",
    "write_atomically",
]
