"""The table and the sentences on whether a probe's vectors mean their concepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from conceptkit.records import ProbeRecord
from conceptkit.records.meaning import INSEPARABLE, LEAST_AGREEMENT, LEAST_GAIN, MOST_CHANGE, SHARE, Meaning
from conceptkit.report.judging import Mark, Verdict, verdict
from conceptkit.report.table import Table, ends, make_table
from conceptkit.report.wording import as_float, interval, number

_ANSWERS: Mapping[str, tuple[Mark, str]] = {
    "aligned": ("established", "means what it says"),
    "correlated": ("associated", "means something correlated"),
    "unstable": ("open", "is unstable"),
    "undecided": ("open", "is not shown to mean its concept"),
}


def meaning_table(record: ProbeRecord) -> Table:
    """Return what the vector of each layer and continuous concept was tested for."""
    rows = [
        {
            "layer": one.layer,
            "concept": one.concept,
            "verdict": _ANSWERS[one.verdict][1],
            "other concept": one.against or "",
            "r² of both": as_float(one.related),
            "r²": as_float(one.own),
            "r² for other": as_float(one.cross),
            **ends("partial r²", one.partial, one.partial_low, one.partial_high),
            "expected": as_float(one.expected),
            "cosine": as_float(one.cosine),
            "refits": as_float(one.agreement),
            **{name: as_float(one.changes.get(name)) for name in _changes(record)},
            **ends("AUPRC gain", _gain(one), one.gain_low, one.gain_high),
            "AUPRC": as_float(one.auprc),
            "shifted": as_float(one.auprc_shifted),
            "random vectors": as_float(one.auprc_random),
            "pointing": as_float(one.pointing),
            "pointing shifted": as_float(one.pointing_shifted),
        }
        for one in record.meanings
    ]
    return make_table(
        "meaning",
        "Whether each vector means its concept",
        "Other concept: the one that explains most of the held-out predictions. r²: squared correlation of the "
        "predictions with the concept, with the other concept (r² for other), and with the concept while the other is "
        "held fixed (partial r²); expected: what it would be if the errors were independent. Cosine: between the "
        "patterns of both. Refits: mean correlation between the predictions of the folds' vectors. Disturbances: root "
        "mean square change of the prediction, in standard deviations of the concept. AUPRC: how well the concept map "
        "finds nuclei, its gain over maps moved at random, and that of random vectors. Pointing: share of patches "
        f"whose highest position lies on nuclei. Unstable: refits below {LEAST_AGREEMENT}, or a change above "
        f"{MOST_CHANGE}. Something correlated: less than {SHARE} of the expected partial r² is left, or (concepts of "
        f"nuclei) the gain is below {LEAST_GAIN}. Means what it says: clearly above these bounds, as far as tested.",
        rows,
    )


def meaning_verdicts(record: ProbeRecord) -> list[Verdict]:
    """Return a sentence for each vector that was tested."""
    return [_sentence(one) for one in record.meanings]


def _sentence(one: Meaning) -> Verdict:
    mark, words = _ANSWERS[one.verdict]
    why = list(_reasons(one))
    return verdict(mark, f"The vector of {one.concept} at {one.layer} {words}" + (f": {'; '.join(why)}" if why else ""))


def _reasons(one: Meaning) -> Iterator[str]:
    """Yield the numbers behind a verdict."""
    if not one.decoded:
        yield "its held-out score is not above chance"
        return
    if one.verdict == "unstable":
        if one.agreement is not None and one.agreement < LEAST_AGREEMENT:
            yield f"refitted vectors agree by {number(one.agreement)} (at least {LEAST_AGREEMENT} is stable)"
        for name, size in one.changes.items():
            if size > MOST_CHANGE:
                yield f"{name} changes its prediction by {number(size)} standard deviations"
        return
    if one.share is not None:
        left = f"{interval(*one.share)} of the expected partial r² is left with {one.against} held fixed"
        if as_float(one.related) >= INSEPARABLE:
            left = f"{one.against} is nearly the same (r² = {number(one.related)}) and cannot be separated"
        yield left
    if one.gain_low is not None:
        yield (
            f"its map finds nuclei with AUPRC {number(one.auprc)}, moved at random {number(one.auprc_shifted)} "
            f"(gain {interval(_gain(one), one.gain_low, one.gain_high)})"
        )
    if one.share is None and one.gain_low is None:
        yield "there is neither another continuous concept nor a nucleus mask to test it by"
    elif one.changes:
        name = max(one.changes, key=lambda key: one.changes[key])
        yield f"disturbed images change it by at most {number(one.changes[name])} standard deviations ({name})"


def _gain(one: Meaning) -> float:
    return as_float(one.auprc) - as_float(one.auprc_shifted)


def _changes(record: ProbeRecord) -> list[str]:
    return list(dict.fromkeys(name for one in record.meanings for name in one.changes))
