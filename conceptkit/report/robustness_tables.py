"""The tables and verdicts of robustness: indices, their support, probes of label and center, encoders compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from conceptkit.records import ProbeRow, RobustnessDifference, RobustnessRecord, RobustnessRow
from conceptkit.records.probe import EncoderDifference
from conceptkit.report.judging import Verdict, are_few, few_words, is_significant, mark_of, p_words, side_of, verdict
from conceptkit.report.remedy_tables import remedy_table
from conceptkit.report.table import Row, Table, ends, make_table
from conceptkit.report.wording import as_float, counted, groups_word, interval, is_finite, metric_name

_OF_CENTERS = ("RI", "MaRI", "CRoMa", "CRoMa tail")
"""Indices that are given without each center"""

_SHOWN = ("RI", "MaRI", "CRoMa", "CRoMa tail", "CRoMa below 0", "APD", "nIPD", "label kNN", "center kNN")


def robustness_tables(record: RobustnessRecord) -> list[Table]:
    """Return the tables of a record."""
    compared = [_difference_table(record)] if record.differences else []
    return [
        index_table(record),
        *([_probe_table(record)] if record.probes else []),
        *([remedy_table(record.remedies)] if record.remedies else []),
        *compared,
        _support_table(record),
        _center_table(record),
        _cell_table(record),
    ]


def places(rows: Sequence[RobustnessRow]) -> dict[tuple[str, str], dict[str, RobustnessRow]]:
    """Return encoder (or network) and layer → index → its row."""
    found: dict[tuple[str, str], dict[str, RobustnessRow]] = {}
    for row in rows:
        found.setdefault((row.encoder or row.model, row.layer), {})[row.index] = row
    return found


def index_table(record: RobustnessRecord) -> Table:
    """Return every index of every layer, with its interval over patients."""
    rows = []
    for (encoder, layer), by in places(record.rows).items():
        cells: dict[str, object] = {"encoder": encoder, "layer": layer}
        for name in _SHOWN:
            row = by.get(name)
            cells |= ends(name, *((None,) * 3 if row is None else (row.value, row.low, row.high)))
            if name == "MaRI":
                cells["chance"] = as_float(None if row is None else row.chance)
        rows.append(cells)
    patients = groups_word(record.group)
    return make_table(
        "robustness",
        "Biology or hospital",
        f"95 % intervals over {patients}, centers fixed. RI, MaRI: share of near rows of the same label and another "
        "center among those that share one of both (MaRI: nearer ones weigh more); chance: of features "
        "that know neither, by the numbers of such rows. CRoMa: "
        "from −1 (hospital) to 1 (biology), the median over rows; its tail is the mean of the lowest tenth, which is "
        "below 0 where rows follow neither: compare it between encoders. "
        "APD and nIPD: loss of a probe of the label when its training rows tie label and center; 0: none. kNN: "
        f"balanced accuracy from near rows of other {patients}.",
        rows,
        without=_unneeded(rows),
    )


def _support_table(record: RobustnessRecord) -> Table:
    patients = groups_word(record.group)
    rows = [
        {
            "encoder": row.encoder or row.model,
            "layer": row.layer,
            "index": row.index,
            "value": row.value,
            **ends(
                "over centers", row.value if row.centers_low is not None else None, row.centers_low, row.centers_high
            ),
            "SD over repeats": as_float(row.sd),
            "rows that count": "" if row.n_rows is None else f"{row.n_rows} of {row.n}",
            patients: _text(row.n_patients),
            "k": _text(row.k),
            "tau": as_float(row.tau),
        }
        for row in record.rows
    ]
    return make_table(
        "robustness support",
        "What each index rests on",
        f"Rows that count have an informative neighbour (RI, MaRI) or all typed neighbours (CRoMa), and the {patients} "
        "are theirs. Over centers: 95 % interval for other centers, from ten centers on. k: number of neighbours, "
        "chosen by the kNN accuracy of the label. Tau: temperature of MaRI.",
        rows,
        without=_unneeded(rows),
        details=True,
    )


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _center_table(record: RobustnessRecord) -> Table:
    rows = []
    for (encoder, layer), by in places(record.rows).items():
        kept = {name: by[name] for name in _OF_CENTERS if name in by}
        for center in dict.fromkeys(c for row in kept.values() for c in row.without_center):
            values = {name: as_float(row.without_center.get(center)) for name, row in kept.items()}
            rows.append({"encoder": encoder, "layer": layer, "without": center, **values})
    return make_table(
        "robustness without a center",
        "Without each center",
        "The indices of all other centers: a value far from the others is due to that center.",
        rows,
        without=_unneeded(rows),
        details=True,
    )


def _cell_table(record: RobustnessRecord) -> Table:
    labels = dict.fromkeys(cell.label for cell in record.cells)
    by = {(cell.center, cell.label): cell for cell in record.cells}
    rows = [
        {"center": center}
        | {
            f"{label}: {word}": getattr(by[center, label], field) if (center, label) in by else 0
            for label in labels
            for word, field in (("rows", "n_rows"), (groups_word(record.group), "n_patients"))
        }
        for center in dict.fromkeys(cell.center for cell in record.cells)
    ]
    return make_table("robustness cells", "Rows by center and label", "", rows, details=True)


def _probe_table(record: RobustnessRecord) -> Table:
    order = list(places(record.rows))
    rows = [
        {
            "encoder": row.encoder or row.model,
            "layer": row.layer,
            "decoded": row.concept,
            **ends("held out", row.score, row.score_low, row.score_high),
            **ends("AUC", row.auc, row.auc_low, row.auc_high),
            "unseen center": as_float(row.score_leave_out),
            "chance": row.chance,
            "metric": metric_name(row.metric),
            groups_word(record.group): row.n_groups,
        }
        for row in sorted(record.probes, key=lambda row: order.index((row.encoder or row.model, row.layer)))
    ]
    return make_table(
        "robustness probes",
        "What fresh probes decode",
        f"Linear probes, no {groups_word(record.group, 1)} on both sides of a fold, with 95 % intervals over "
        f"{groups_word(record.group)}. Unseen center: score on held-out centers. A center that can be decoded does no "
        "harm by itself; it can where a label goes with it.",
        rows,
        without=_unneeded(rows),
    )


def _difference_table(record: RobustnessRecord) -> Table:
    of_indices: list[tuple[RobustnessDifference | EncoderDifference, str]] = [(d, d.index) for d in record.differences]
    probes = [(d, f"{d.concept} probe") for d in record.probe_differences]
    rows: list[Row] = [
        {
            "of": name,
            "encoder": d.encoder,
            "against": d.against,
            "layer": d.layer if d.layer == d.against_layer else f"{d.layer} / {d.against_layer}",
            **ends("difference", d.mean, d.low, d.high),
            "p": as_float(d.p),
            "q": as_float(d.q),
            groups_word(record.group): d.n_groups,
        }
        for d, name in [*of_indices, *probes]
    ]
    return make_table(
        "robustness differences",
        "Paired differences between encoders",
        f"The encoder minus the other, on the same rows, with a 95 % interval over {groups_word(record.group)}, the "
        "centers fixed. q is p adjusted for all differences of indices, or of probes (Benjamini and Hochberg).",
        rows,
        without=_unneeded(rows),
    )


def _unneeded(rows: Sequence[Row]) -> set[str]:
    """Return the columns ``layer`` and ``metric`` where they have one value."""
    return {name for name in ("layer", "metric") if len({row.get(name) for row in rows}) == 1}


def robustness_verdicts(record: RobustnessRecord) -> list[Verdict]:
    """Return, for each layer, which side the indices take, and the differences between encoders."""
    by_place = places(record.rows)
    layers = [encoder for encoder, _ in by_place]
    out = []
    for (encoder, layer), by in by_place.items():
        where = f"{layer} of {encoder}" if layers.count(encoder) > 1 else encoder
        if "RI" in by and by["RI"].chance is not None:
            out.append(_judged(by["RI"], by["RI"].chance, where, record))
        out += [
            _judged_center(row, where, record)
            for row in record.probes
            if (row.encoder or row.model, row.layer, row.concept) == (encoder, layer, record.settings.get("center"))
        ]
    for d in record.differences:
        if d.index not in ("RI", "CRoMa"):
            continue
        few = are_few(d.n_groups, record.group)
        mark = mark_of(side_of(d.mean, d.low, d.high), is_significant(d.q), few=few, sought=("above", "below"))
        better, worse = (d.encoder, d.against) if d.mean >= 0 else (d.against, d.encoder)
        size = interval(d.mean, d.low, d.high, signed=True)
        clear = f"Near rows follow biology more in {better} than in {worse}"
        answer = clear if mark == "established" else "No clear difference"
        text = f"{answer}: {d.encoder} − {d.against}, {d.index} {size}, {p_words(d.q, 'q')}"
        out.append(verdict(mark, text, few_words(d.n_groups, record.group)))
    return out


def _judged(row: RobustnessRow, chance: float, where: str, record: RobustnessRecord) -> Verdict:
    side = side_of(row.value, row.low, row.high, chance)
    n = row.n_patients or 0
    mark = mark_of(side, None, few=are_few(n, record.group), sought=("above", "below"))
    follows = {"above": "biology more than the hospital", "below": "the hospital more than biology"}
    if mark == "established":
        answer = f"In {where}, near rows follow {follows[side]}"
    else:
        answer = f"Open whether in {where} near rows follow biology or the hospital"
    size = interval(row.value, row.low, row.high)
    counted_rows = f"; {row.n_rows} of {row.n} rows count" if row.n_rows != row.n else ""
    text = f"{answer}: {row.index} {size}, chance {chance:.2f} ({counted(record.group, n)}{counted_rows})"
    return verdict(mark, text, few_words(n, record.group))


def _judged_center(row: ProbeRow, where: str, record: RobustnessRecord) -> Verdict:
    side = side_of(row.score, row.score_low, row.score_high, row.chance)
    mark = mark_of(side, None, few=are_few(row.n_groups, record.group))
    size = interval(row.score, row.score_low, row.score_high)
    answer = (
        "The center can be decoded from" if mark == "established" else "Open whether the center can be decoded from"
    )
    chance = interval(row.chance, math.nan, math.nan) if is_finite(row.chance) else ""
    text = (
        f"{answer} {where}: {metric_name(row.metric)} {size}, chance {chance} ({counted(record.group, row.n_groups)})"
    )
    return verdict(mark, text, few_words(row.n_groups, record.group))
