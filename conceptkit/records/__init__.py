"""What a command found, frozen, saved as JSON and loaded back: a file per command."""

from conceptkit.records.base import EMBEDDINGS_FILE, RECORD_FILE, Record, to_json, write_atomically
from conceptkit.records.guide import Difference, GuideRecord, GuideRun
from conceptkit.records.loading import AnyRecord, load_record
from conceptkit.records.probe import ProbeRecord, ProbeRow

__all__ = [
    "EMBEDDINGS_FILE",
    "RECORD_FILE",
    "AnyRecord",
    "Difference",
    "GuideRecord",
    "GuideRun",
    "ProbeRecord",
    "ProbeRow",
    "Record",
    "load_record",
    "to_json",
    "write_atomically",
]
