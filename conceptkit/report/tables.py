"""The report in words and numbers: records in, plain sentences and tidy tables out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conceptkit.records import Difference, GuideRecord, GuideRun, ProbeRecord, ProbeRow

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
"""What stands where a number is missing."""

READABLE_ABOVE_CHANCE = 0.05
"""A discouraged concept is called still readable when a fresh probe scores this much above chance."""

FEW_GROUPS = 5
"""Below so many patients an interval says little, and the sentences say so."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One sentence of the summary."""

    text: str
    tone: str
    """``clear`` when the interval or the bound settles it, ``open`` when it does not."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: tidy numbers, and what a reader has to know of them."""

    name: str
    """Short name, fit for a file."""
    title: str
    caption: str
    frame: pd.DataFrame
    """Numbers as numbers. Columns ``x low`` and ``x high`` are the 95 % interval of ``x``, ``x sd`` its spread."""
    digits: int = 2
    """Decimals shown."""


# --- numbers as text ---------------------------------------------------------------------------------------------


def number(value: object, *, digits: int = 2, signed: bool = False) -> str:
    """Return ``value`` with ``digits`` decimals and a true minus sign; :data:`MISSING` when it is no finite number."""
    if not _is_finite(value):
        return MISSING
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if not text.strip("+-0."):  # neither −0.00 nor +0.00
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(value: object, low: object, high: object, *, digits: int = 2, signed: bool = False) -> str:
    """Return ``value [low, high]``; an end that rounding would move onto 0 is given one more decimal."""
    if not _is_finite(value):
        return MISSING
    if not (_is_finite(low) or _is_finite(high)):
        return number(value, digits=digits, signed=signed)
    if any(_is_finite(end) and 0 < abs(float(end)) < 0.5 * 10**-digits for end in (low, high)):  # type: ignore[arg-type]
        digits += 1
    return (
        f"{number(value, digits=digits, signed=signed)} [{number(low, digits=digits)}, {number(high, digits=digits)}]"
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _mean_sd(values: Iterable[object]) -> tuple[float, float]:
    """Return mean and sample SD of the finite values; NaN for the SD of fewer than two."""
    finite = [v for v in map(_float, values) if math.isfinite(v)]
    if not finite:
        return math.nan, math.nan
    mean = math.fsum(finite) / len(finite)
    if len(finite) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / (len(finite) - 1))


def shown(table: Table) -> pd.DataFrame:
    """Return the table as people read it: every cell a text, intervals and spreads beside their number."""
    import pandas as pd

    frame, digits = table.frame, table.digits
    parts = {f"{column} {end}" for column in frame.columns for end in ("low", "high", "sd")}

    def cells(column: str) -> list[str]:
        values = frame[column].tolist()
        if f"{column} low" in frame:
            ends = zip(values, frame[f"{column} low"].tolist(), frame[f"{column} high"].tolist(), strict=True)
            signed = column.startswith("difference")
            return [interval(*end, digits=digits, signed=signed) for end in ends]
        if f"{column} sd" in frame:
            spreads = [number(sd, digits=digits) for sd in frame[f"{column} sd"].tolist()]
            texts = [number(v, digits=digits) for v in values]
            return [t if sd == MISSING else f"{t} ± {sd}" for t, sd in zip(texts, spreads, strict=True)]
        return [_cell(v, column, digits) for v in values]

    names = [str(column) for column in frame.columns if column not in parts]
    return pd.DataFrame({name: cells(name) for name in names}, columns=names, dtype=object)


def _cell(value: object, column: str, digits: int) -> str:
    if isinstance(value, str):
        return value or MISSING
    if not _is_finite(value):
        return MISSING
    if column in ("p", "p within", "least p", "q") and isinstance(value, float):
        return number(value, digits=4)
    if column == "alpha" and isinstance(value, float):  # a penalty spans decades
        return f"{float(f'{value:.3g}'):g}".replace("-", "−")
    return str(value) if isinstance(value, int) else number(value, digits=digits)


def numeric_columns(table: Table) -> set[str]:
    """Return the columns of :func:`shown` that hold numbers, to be set flush right."""
    from pandas.api.types import is_numeric_dtype

    return {str(c) for c in table.frame.columns if is_numeric_dtype(table.frame[c])}


# --- words -------------------------------------------------------------------------------------------------------

_METRICS = {
    "r2": "R²",
    "r2_in_sample": "R² in sample",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "f1": "F1",
}


def metric_name(metric: str) -> str:
    """Return a metric's name as people write it."""
    return _METRICS.get(metric, metric)


def groups_word(group: str | None, n: int = 2) -> str:
    """Return the word for ``n`` of what is never split: patients, slides, or groups of the named column."""
    if group is None:
        return "row" if n == 1 else "rows"
    word = group if group in ("patient", "slide", "case", "donor", "group") else f"group ({group})"
    return word if n == 1 else word.replace(" (", "s (") if " (" in word else f"{word}s"


def _how_many(n_groups: int, group: str | None) -> str:
    words = f"{n_groups} {groups_word(group, n_groups)}"
    return f"only {words}: too few to trust the interval" if _are_few(n_groups, group) else words


def _are_few(n_groups: int, group: str | None) -> bool:
    return n_groups < FEW_GROUPS and group is not None


def networks(rows: Sequence[ProbeRow]) -> list[tuple[str, str]]:
    """Return the (model, weights) pairs of ``rows`` in their order."""
    return list(dict.fromkeys((r.model, r.weights) for r in rows))


def run_names(record: GuideRecord) -> list[str]:
    """Return the names of the runs in their order, each once whatever its number of seeds."""
    return list(dict.fromkeys(run.name for run in record.runs))


def reference_run(record: GuideRecord) -> str | None:
    """Return the run that the others are compared with: ``baseline``, or the first; ``None`` without runs."""
    names = run_names(record)
    return "baseline" if "baseline" in names else (names[0] if names else None)


def _compared_runs(record: GuideRecord) -> list[str]:
    return [name for name in run_names(record) if name != reference_run(record)]


def _over_seeds(
    record: GuideRecord, name: str, read: Callable[[GuideRun], Mapping[str, Mapping[str, float | None]]], *keys: str
) -> tuple[float, float]:
    """Return mean and SD over the seeds of run ``name`` of the number under ``keys``."""
    outer, inner = keys
    return _mean_sd(read(run).get(outer, {}).get(inner) for run in record.runs if run.name == name)


def _names_in(record: GuideRecord, first: Sequence[str], read: Callable[[GuideRun], Iterable[str]]) -> list[str]:
    return list(dict.fromkeys([*first, *(name for run in record.runs for name in read(run))]))


def with_unit(concept: str, units: Mapping[str, str]) -> str:
    """Return the concept's name with its unit, where it is known."""
    return f"{concept} ({units[concept]})" if units.get(concept) else concept


# --- sentences ---------------------------------------------------------------------------------------------------


def probe_verdicts(record: ProbeRecord) -> list[Verdict]:
    """Return one sentence per network and concept: where it is read best, and against what."""
    several = networks(record.rows)
    concepts = list(dict.fromkeys(r.concept for r in record.rows))
    out = []
    for network in several:
        for concept in concepts:
            rows = [r for r in record.rows if (r.model, r.weights) == network and r.concept == concept]
            if rows:
                verdict = _probe_verdict(rows, record.group)
                prefix = f"{network[0]} ({network[1]}): " if len(several) > 1 else ""
                out.append(Verdict(text=prefix + verdict.text, tone=verdict.tone))
    return out


def _is_in_sample(row: ProbeRow) -> bool:
    return row.protocol != "cross-validated"


def _paper_verdict(row: ProbeRow) -> Verdict:
    text = (
        f"{row.concept} at {row.layer}: R² {number(row.score)} in sample, by the paper's protocol (least squares "
        f"fitted and scored on the same {row.n} rows); no evidence of what holds on other patients."
    )
    return Verdict(text=text, tone="open")


def _probe_verdict(rows: Sequence[ProbeRow], group: str | None) -> Verdict:
    scored = [r for r in rows if _is_finite(r.score)]
    if not scored:
        return Verdict(text=f"{rows[0].concept} could not be scored at any layer.", tone="open")
    best = max(scored, key=lambda r: r.score)
    if _is_in_sample(best):
        return _paper_verdict(best)
    measure, chance = metric_name(best.metric), "0" if best.chance == 0 else number(best.chance)
    score = interval(best.score, best.score_low, best.score_high)
    layers = "" if len(scored) == 1 else f" (the best of {len(scored)} layers)"
    readable = best.score_low > best.chance
    if readable:
        text = f"{best.concept} is readable at {best.layer}{layers}: held-out {measure} {score}"
    elif _is_finite(best.score_low):
        text = f"{best.concept} is not shown to be readable at {best.layer}{layers}: held-out {measure} {score}"
    else:
        text = f"{best.concept} at {best.layer}{layers} has no interval to judge by: held-out {measure} {score}"
    random = best.score_random_network
    learned = True
    if _is_finite(random):
        text += f", against {number(random)} for the same network with random weights"
        learned = not best.score_low <= _float(random)
        if readable and not learned:
            text += ", which the interval does not exclude: it need not have been learned"
    if readable and _is_finite(best.score_pixels) and best.score_low <= _float(best.score_pixels):
        as_well = _float(best.score_pixels) >= best.score
        text += f"; plain statistics of the pixels reach {number(best.score_pixels)}, "
        text += "so that no network is needed for it" if as_well else "which the interval does not exclude"
        learned = False
    text += f"; chance is {chance}"
    claims = []
    if group is not None and _is_finite(best.score_patchwise):
        claims.append(f"ignoring {groups_word(group)} would have claimed {number(best.score_patchwise)}")
    if _is_finite(best.score_in_sample):
        claims.append(f"scoring in sample {number(best.score_in_sample)}")
    if claims:
        text += "; " + ", ".join(claims)
    of = f"of {_how_many(best.n_groups, group)}" if group is not None else "taken as independent"
    text += f" ({best.n} rows {of})."
    settled = readable and learned and not _are_few(best.n_groups, group)
    return Verdict(text=text, tone="clear" if settled else "open")


def guide_verdicts(record: GuideRecord) -> list[Verdict]:
    """Return the sentences of a guide record: concepts, then leakage, then the main task per split."""
    said: dict[str, list[Verdict]] = {"encouraged": [], "discouraged": [], "main task": []}
    for d in record.differences:
        said[difference_kind(d)].append(_difference_verdict(d, record))
    none = [] if record.differences else [Verdict(text="No paired difference between runs was recorded.", tone="open")]
    return said["encouraged"] + _leakage_verdicts(record) + said["discouraged"] + said["main task"] + none


_READERS = {"probe": "probe", "linear": "linear probe", "mlp": "MLP probe"}
"""First part of a difference's metric → who reads the concept that is its second part."""


def _read_by(d: Difference) -> tuple[str, str]:
    """Return the reader's key and the concept of ``d``; two empty texts for a metric of the main task."""
    reader, _, concept = d.metric.partition(":")
    return (reader, concept) if concept and reader in _READERS else ("", "")


def difference_kind(d: Difference) -> str:
    """Return whether ``d`` is of an ``encouraged`` concept, a ``discouraged`` one, or the ``main task``."""
    return {"": "main task", "probe": "encouraged"}.get(_read_by(d)[0], "discouraged")


def _difference_verdict(d: Difference, record: GuideRecord) -> Verdict:
    guiding = "guiding" if (d.run, d.against) == ("guided", "baseline") else f"{d.run} (against {d.against})"
    reader, concept = _read_by(d)
    names = (d.against, d.run)
    if reader == "probe":
        what = f"the held-out probe score of {concept} on {d.split}"
        levels = [_over_seeds(record, name, lambda r: r.concepts, concept, "probe")[0] for name in names]
    elif reader:
        what = f"what a fresh {_READERS[reader]} reads of {concept} on {d.split}"
        levels = [_over_seeds(record, name, lambda r: r.leakage, concept, reader)[0] for name in names]
    else:
        what = f"the {metric_name(d.metric)} on {d.split}"
        levels = [_over_seeds(record, name, lambda r: r.metrics, d.split, d.metric)[0] for name in names]
    if not _is_finite(d.mean):
        return Verdict(text=f"How {guiding} changed {what} could not be measured.", tone="open")
    # The levels rest on all rows, the paired difference on those that both runs have: where the two disagree in sign,
    # both in one sentence would contradict each other; the tables show them apart.
    agree = (levels[1] - levels[0]) * d.mean > 0
    moved = f", from {number(levels[0])} to {number(levels[1])}" if agree else ""
    over = f" ({_how_many(d.n_groups, record.group)})."
    if not (_is_finite(d.low) and _is_finite(d.high)):
        size = number(d.mean, signed=True)
        return Verdict(
            text=f"{_upper(guiding)} moved {what} by {size}{moved}, without an interval to judge by.", tone="open"
        )
    if d.low <= 0 <= d.high:
        size = interval(d.mean, d.low, d.high, signed=True)
        text = f"{_upper(guiding)} did not clearly change {what}: {size}, the interval covers 0{over}"
        return Verdict(text=text, tone="open")
    verb, sign = ("raised", 1.0) if d.mean > 0 else ("lowered", -1.0)
    ends = sorted((sign * d.low, sign * d.high))
    text = f"{_upper(guiding)} {verb} {what} by {interval(sign * d.mean, *ends)}{moved}{over}"
    return Verdict(text=text, tone="open" if _are_few(d.n_groups, record.group) else "clear")


def _upper(text: str) -> str:
    """Return ``text`` with a capital when it is our word, and as it is when it is a run's name."""
    return "Guiding" if text == "guiding" else text


def _leakage_verdicts(record: GuideRecord) -> list[Verdict]:
    reference = reference_run(record)
    compared = _compared_runs(record) or run_names(record)
    out = []
    for concept in record.discourage:
        for name in compared:
            linear, mlp, chance = _leakage(record, name, concept)
            network = "the guided network" if name == "guided" else f"the network of {name}"
            if not (_is_finite(linear) or _is_finite(mlp)) or not _is_finite(chance):
                out.append(Verdict(text=f"What is left of {concept} in {network} was not measured.", tone="open"))
                continue
            best = max(v for v in (linear, mlp) if _is_finite(v))
            readable = best > chance + READABLE_ABOVE_CHANCE
            # chance is 0 for R² alone: a class-wise measure of k classes has 1/k
            measure = "R²" if chance == 0 else "balanced accuracy"
            state = "is still readable from" if readable else "is near chance in"
            text = f"{concept} {state} {network}: {measure} {number(linear)} linear, {number(mlp)} MLP"
            text += f", chance {'0' if chance == 0 else number(chance)}"
            before = [v for v in _leakage(record, reference or "", concept)[:2] if _is_finite(v)]
            if name != reference and before:
                text += f" ({reference} {number(max(before))})"
            out.append(Verdict(text=text + ".", tone="clear"))
    return out


def _leakage(record: GuideRecord, name: str, concept: str) -> tuple[float, float, float]:
    read = [_over_seeds(record, name, lambda r: r.leakage, concept, key)[0] for key in ("linear", "mlp", "chance")]
    return read[0], read[1], read[2]


# --- tables ------------------------------------------------------------------------------------------------------


def _frame(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(columns))


def probe_table(record: ProbeRecord) -> Table:
    """Return every layer and concept with all scores of it."""
    metrics = {metric_name(r.metric) for r in record.rows}
    several = len(networks(record.rows)) > 1
    rows = [
        {
            "model": r.model,
            "weights": r.weights,
            "layer": r.layer,
            "concept": r.concept,
            "held out": math.nan if _is_in_sample(r) else r.score,
            "held out low": r.score_low,
            "held out high": r.score_high,
            "adjusted": _float(r.score_adjusted),
            "adjusted low": _float(r.score_adjusted_low),
            "adjusted high": _float(r.score_adjusted_high),
            "left out": _float(r.score_leave_out),
            "ceiling": _float(r.ceiling),
            "random network": _float(r.score_random_network),
            "above random": math.nan if _is_in_sample(r) else r.score - _float(r.score_random_network),
            "ignoring groups": r.score_patchwise if record.group is not None else math.nan,
            "in sample": r.score_in_sample,
            "chance": r.chance,
            "metric": metric_name(r.metric),
            "rows": r.n,
            "groups": r.n_groups,
            "folds": r.folds,
            "alpha": r.alpha,
        }
        for r in record.rows
    ]
    columns = list(rows[0]) if rows else ["layer", "concept", "held out"]
    # one network is named once, in the caption, not in every row
    dropped = {"metric"} if len(metrics) == 1 else set()
    dropped |= set() if several else {"model", "weights"}
    unasked = {n for n in ("adjusted", "left out", "ceiling") if not any(_is_finite(row[n]) for row in rows)}
    dropped |= unasked | {f"{name} {end}" for name in unasked for end in ("low", "high")}
    dropped |= set() if record.group is not None else {"ignoring groups", "groups"}
    of = "" if several or not rows else f" Network: {record.rows[0].model}, weights {record.rows[0].weights}."
    of += f" Scores are {next(iter(metrics))}." if len(metrics) == 1 else ""
    apart = (
        f"no {groups_word(record.group, 1)} on both sides of a fold" if record.group else "rows taken as independent"
    )
    return Table(
        name="probe",
        title="What each layer knows of each concept",
        caption=f"Held out: pooled out-of-fold predictions, {apart}, with a 95 % interval from resampling "
        f"{groups_word(record.group)}.{of} Random network: the same architecture with random weights. "
        "In sample and ignoring groups are what a careless analysis would report; they are no evidence. "
        "Alpha is the ridge penalty of the vector fitted on all rows.",
        frame=_frame(rows, [c for c in columns if c not in dropped]),
    )


def control_table(record: ProbeRecord) -> Table:
    """Return what every score has to be read against: baselines, made-up concepts and permutations."""
    several = len(networks(record.rows)) > 1
    rows = [
        {
            "model": r.model,
            "weights": r.weights,
            "layer": r.layer,
            "concept": r.concept,
            "pixels": _float(r.score_pixels),
            "above baseline": _float(r.r2_above_baseline),
            "random concepts": _float(r.score_random_concept),
            "selectivity": _float(r.selectivity),
            "shuffled": _float(r.score_shuffled),
            "p": _float(r.p),
            "p within": _float(r.p_within),
            "least p": _float(r.p_min),
            "q": _float(r.q),
            "permuted": r.permuted or "",
            "ICC": _float(r.icc),
            "cosine": _float(r.cosine),
        }
        for r in record.rows
    ]
    columns = list(rows[0]) if rows else ["layer", "concept"]
    optional = ("pixels", "p", "p within", "least p", "q", "ICC")
    dropped = {name for name in optional if not any(_is_finite(row[name]) for row in rows)}
    dropped |= set() if several else {"model", "weights"}
    return Table(
        name="controls",
        title="What the scores have to be read against",
        caption="Pixels: raw pixel and colour statistics, by the same procedure. Above baseline: the score less the "
        "best of chance, random network and pixels. Random concepts have the concept's intra-class correlation (ICC) "
        "and mean nothing; selectivity is the score less theirs. p is that of permutations at the level at which the "
        "concept varies (permuted), least p the smallest that it could be, q is p adjusted for everything probed "
        "(Benjamini and Hochberg). Cosine: mean between the directions that the folds found.",
        frame=_frame(rows, [c for c in columns if c not in dropped]),
    )


def comparison_table(record: GuideRecord) -> Table:
    """Return the encouraged concepts, reference beside compared runs (the paper's Table 6, held out)."""
    reference, compared = reference_run(record), _compared_runs(record)
    single = len(compared) == 1
    probe, head = (f"{compared[0]} probe", f"{compared[0]} head") if single else ("probe", "head")
    before = f"{reference} probe"
    differences = {(d.run, d.metric): d for d in record.differences if d.against == reference}
    rows = []
    for concept in _names_in(record, record.encourage, lambda r: r.concepts):
        for name in compared or [""]:  # a lone run is still shown, beside nothing
            row: dict[str, object] = {"concept": with_unit(concept, record.units)}
            row["run"] = name or MISSING
            row[before], row[f"{before} sd"] = _over_seeds(
                record, reference or "", lambda r: r.concepts, concept, "probe"
            )
            row[probe], row[f"{probe} sd"] = _over_seeds(record, name, lambda r: r.concepts, concept, "probe")
            row[head], row[f"{head} sd"] = _over_seeds(record, name, lambda r: r.concepts, concept, "head")
            d = differences.get((name, f"probe:{concept}"))
            row["difference"], row["difference low"], row["difference high"] = (
                (d.mean, d.low, d.high) if d else (math.nan, math.nan, math.nan)
            )
            rows.append(row)
    columns = list(rows[0]) if rows else ["concept", "run", before, probe, head, "difference"]
    return Table(
        name="concepts",
        title="Encouraged concepts, before and after",
        caption=f"Held-out scores on {record.evaluated_on}: R² for continuous concepts, balanced accuracy for "
        "categorical ones. Probe: a fresh linear probe on the frozen network; head: the network's own output. "
        f"Mean{_seeds_words(record)}. Difference: probe, paired over the same rows, with a 95 % interval from "
        f"resampling {groups_word(record.group)}.",
        frame=_frame(rows, [c for c in columns if not (single and c == "run")]),
    )


def _seeds_words(record: GuideRecord) -> str:
    seeds = len({run.seed for run in record.runs})
    return f" ± SD over {seeds} seeds" if seeds > 1 else " of one seed"


def main_task_table(record: GuideRecord) -> Table:
    """Return the main task's scores, one row per split and run."""
    several = len({run.seed for run in record.runs}) > 1
    rows = []
    for split in _names_in(record, (), lambda r: r.metrics):
        for name in run_names(record):
            row: dict[str, object] = {"split": split, "run": name}
            for metric in ("auc", "f1", "balanced_accuracy"):
                shown_as = metric_name(metric)
                row[shown_as], row[f"{shown_as} sd"] = _over_seeds(record, name, lambda r: r.metrics, split, metric)
            row["seeds"] = sum(run.name == name and split in run.metrics for run in record.runs)
            rows.append(row)
    columns = list(rows[0]) if rows else ["split", "run", "AUC", "F1", "balanced accuracy", "seeds"]
    return Table(
        name="main-task",
        title="Main task",
        caption=f"Mean{_seeds_words(record)}."
        + (" The SD is the spread over refits." if several else "")
        + f" What few {groups_word(record.group)} leave uncertain is in the intervals of the differences.",
        frame=_frame(rows, columns),
        digits=3,
    )


def leakage_table(record: GuideRecord) -> Table:
    """Return what fresh probes still read of the discouraged concepts."""
    rows = []
    for concept in _names_in(record, record.discourage, lambda r: r.leakage):
        for name in run_names(record):
            row: dict[str, object] = {"concept": concept, "run": name}
            for key, column in (("linear", "linear probe"), ("mlp", "MLP probe")):
                row[column], row[f"{column} sd"] = _over_seeds(record, name, lambda r: r.leakage, concept, key)
            row["chance"] = _over_seeds(record, name, lambda r: r.leakage, concept, "chance")[0]
            rows.append(row)
    columns = list(rows[0]) if rows else ["concept", "run", "linear probe", "MLP probe", "chance"]
    return Table(
        name="leakage",
        title="Discouraged concepts: what is left",
        caption=f"Fresh probes on the frozen networks, held out, on {record.evaluated_on}; mean{_seeds_words(record)}. "
        "The adversary's own accuracy says nothing of invariance: a probe trained afterwards does. "
        "Balanced accuracy for categorical concepts, R² for continuous ones.",
        frame=_frame(rows, columns),
    )


def difference_table(record: GuideRecord) -> Table:
    """Return every paired difference with its interval."""
    rows = [
        {
            "split": d.split,
            "run": d.run,
            "against": d.against,
            "what": _difference_name(d),
            "difference": d.mean,
            "difference low": d.low,
            "difference high": d.high,
            "groups": d.n_groups,
        }
        for d in record.differences
    ]
    columns = ["split", "run", "against", "what", "difference", "difference low", "difference high", "groups"]
    return Table(
        name="differences",
        title="Paired differences",
        caption=f"Same rows, same resamples for both runs, averaged over seeds; 95 % interval from resampling "
        f"{groups_word(record.group)}. An interval that covers 0 leaves open whether there is a difference; it does "
        "not show that there is none.",
        frame=_frame(rows, columns),
        digits=3,
    )


def _difference_name(d: Difference) -> str:
    reader, concept = _read_by(d)
    return f"{concept} ({_READERS[reader]})" if reader else metric_name(d.metric)


def difference_parts(record: GuideRecord) -> list[tuple[str, str, str]]:
    """Return what, split and run of each difference, for a figure's labels; the run is empty when there is but one."""
    several = len({(d.run, d.against) for d in record.differences}) > 1
    return [(_difference_name(d), d.split, d.run if several else "") for d in record.differences]


def tables(record: ProbeRecord | GuideRecord) -> list[Table]:
    """Return all tables of a record, in the order in which they are read."""
    if isinstance(record, ProbeRecord):
        controlled = any(_is_finite(r.score_random_concept) or _is_finite(r.p) for r in record.rows)
        return [probe_table(record), *([control_table(record)] if controlled else [])]
    return [table(record) for table in (comparison_table, leakage_table, main_task_table, difference_table)]
