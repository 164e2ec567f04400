"""All tables of a record, in the order in which they are read."""

from __future__ import annotations

from conceptkit.records import GuideRecord, ProbeRecord
from conceptkit.report.guide_tables import comparison_table, difference_table, leakage_table, main_task_table
from conceptkit.report.probe_tables import control_table, probe_table
from conceptkit.report.table import Table
from conceptkit.report.wording import is_finite


def tables(record: ProbeRecord | GuideRecord) -> list[Table]:
    """Return all tables of a record, in the order in which they are read."""
    if isinstance(record, ProbeRecord):
        controlled = any(is_finite(r.score_random_concept) or is_finite(r.p) for r in record.rows)
        return [probe_table(record), *([control_table(record)] if controlled else [])]
    return [table(record) for table in (comparison_table, leakage_table, main_task_table, difference_table)]
