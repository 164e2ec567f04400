"""What a command found, frozen, saved as JSON and loaded back: a file per command."""

from conceptkit.records.attribute import AttributeRecord, AttributeRow, Moved, Score
from conceptkit.records.audit import AuditLayer, AuditLevel, AuditRecord, AuditRow
from conceptkit.records.bags import AttentionScore, BagScore, BagsRecord
from conceptkit.records.base import CONTEXT_FILE, EMBEDDINGS_FILE, RECORD_FILE, Record, to_json, write_atomically
from conceptkit.records.grid import Affinity, GridCell, GridRecord, PatchLevel
from conceptkit.records.guide import Difference, GuideRecord, GuideRun
from conceptkit.records.loading import AnyRecord, load_record
from conceptkit.records.predictivity import PredictivityRecord, PredictivityRow
from conceptkit.records.probe import ProbeRecord, ProbeRow

__all__ = [
    "CONTEXT_FILE",
    "EMBEDDINGS_FILE",
    "RECORD_FILE",
    "Affinity",
    "AnyRecord",
    "AttentionScore",
    "AttributeRecord",
    "AttributeRow",
    "AuditLayer",
    "AuditLevel",
    "AuditRecord",
    "AuditRow",
    "BagScore",
    "BagsRecord",
    "Difference",
    "GridCell",
    "GridRecord",
    "GuideRecord",
    "GuideRun",
    "Moved",
    "PatchLevel",
    "PredictivityRecord",
    "PredictivityRow",
    "ProbeRecord",
    "ProbeRow",
    "Record",
    "Score",
    "load_record",
    "to_json",
    "write_atomically",
]
