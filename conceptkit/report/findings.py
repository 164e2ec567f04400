"""What each kind of record is read by: its tables and its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conceptkit.records import (
    AttributeRecord,
    AuditRecord,
    BagsRecord,
    GridRecord,
    GuideRecord,
    PredictivityRecord,
    ProbeRecord,
    Record,
)
from conceptkit.report.attribution_tables import attribution_tables, attribution_verdicts
from conceptkit.report.audit_tables import audit_tables, audit_verdicts
from conceptkit.report.bag_tables import bag_tables, bag_verdicts
from conceptkit.report.grid_tables import grid_split_table, grid_tables, grid_verdicts
from conceptkit.report.judging import Verdict
from conceptkit.report.predictivity_tables import predictivity_table, predictivity_verdicts
from conceptkit.report.table import Table
from conceptkit.report.tables import tables
from conceptkit.report.verdicts import guide_verdicts, probe_verdicts

TABLES: Mapping[type[Record], Callable[[Any], Sequence[Table]]] = {
    ProbeRecord: tables,
    GuideRecord: tables,
    GridRecord: lambda record: [grid_split_table(record), *grid_tables(record)],
    PredictivityRecord: lambda record: [predictivity_table(record)],
    AttributeRecord: attribution_tables,
    AuditRecord: audit_tables,
    BagsRecord: bag_tables,
}
"""Class of record → its tables, in the order in which they are read"""

VERDICTS: Mapping[type[Record], Callable[[Any], Sequence[Verdict]]] = {
    ProbeRecord: probe_verdicts,
    GuideRecord: guide_verdicts,
    GridRecord: grid_verdicts,
    PredictivityRecord: predictivity_verdicts,
    AttributeRecord: attribution_verdicts,
    AuditRecord: audit_verdicts,
    BagsRecord: bag_verdicts,
}
"""Class of record → its verdicts, the most important first"""
