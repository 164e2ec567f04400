"""The primary contrast of an experiment, declared before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conceptkit.errors import InputError, check_choice
from conceptkit.guide.endpoints import OVERALL, Endpoints
from conceptkit.records import Difference, Note

NONE = "none"
"""Text of ``--primary`` for no primary contrast"""

GUIDED = "guided"


@dataclass(frozen=True)
class Contrast:
    """One score of one run, against its reference."""

    run: str
    split: str
    metric: str

    def __str__(self) -> str:
        """Return the text of the option."""
        return f"{self.run}:{self.split}:{self.metric}"

    def is_of(self, d: Difference) -> bool:
        """Return whether a difference is the contrast."""
        return (d.run, d.split, d.metric) == (self.run, self.split, self.metric)


def announced(primary: Contrast | None) -> list[str]:
    """Return the sentence that declares a contrast before the training; none without one."""
    return [] if primary is None else [f"Primary contrast: {primary}; all other differences are secondary."]


def declared(
    text: str | None,
    runs: Sequence[str],
    scores: Mapping[str, Sequence[str]],
    endpoints: Endpoints,
    where: str,
    *,
    default: str | None = GUIDED,
) -> tuple[Contrast | None, list[Note]]:
    """Return the primary contrast, and a note where the default is not the weighted AUC over unseen centers.

    Parameters
    ----------
    text : ``RUN:SPLIT:METRIC``, ``none``, or ``None`` for the default: the run ``default`` and the weighted AUC over
        unseen centers; without these, or where it is not defined, the AUC of the rows ``where`` concepts are read
    runs : names of the runs that are compared with another
    scores : split → metrics that are compared

    Raises
    ------
    InputError
        when the text names something that is not compared
    """
    if text == NONE or (text is None and default not in runs):
        return None, []
    if text is not None:
        run, rest = _leading(text, runs, "run")
        split, metric = _leading(rest, list(scores), "split")
        if metric.endswith("_weighted") and split in endpoints.refused:
            raise InputError(f"primary: {metric} is not defined on {split}, as {endpoints.refused[split]}.")
        return Contrast(run, split, check_choice("primary", metric, scores[split])), []
    run, unseen = str(default), endpoints.unseen
    if unseen and unseen not in endpoints.refused:
        return Contrast(run, unseen, "auc_weighted"), []
    split = where if where in scores else OVERALL
    why = "its weighted AUC is not defined on" if unseen else "no split has"
    note = f"The primary contrast is the AUC on {split}, as {why} {unseen or 'a center that training does not have'}."
    return Contrast(run, split, "auc"), [Note("note", note)]


def _leading(text: str, known: Sequence[str], what: str) -> tuple[str, str]:
    """Return the known name that a text begins with, and what follows its colon; names may hold colons themselves."""
    name = next((k for k in sorted(known, key=len, reverse=True) if text.startswith(f"{k}:")), None)
    if name is None:
        head = text.partition(":")[0]
        check_choice(f"primary, {what}", head, known)
        raise InputError(f"primary: must be RUN:SPLIT:METRIC or {NONE}, nothing follows {head!r}.")
    return name, text[len(name) + 1 :]
