"""Unlabelled domains: the discouraged concept ``latent:3`` becomes a column of the table.

``latent:3+mixed2`` uses the features of the study's network at that layer in addition to the stain of the patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from conceptkit.errors import InputError
from conceptkit.features.pixels import read_stain_profiles
from conceptkit.features.sources import open_features
from conceptkit.guide.goals import Goal
from conceptkit.options.base import Progress
from conceptkit.pathology.domains import propose_domains
from conceptkit.runs.opening import at_stage
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

LATENT = "latent"
"""Name of the column, and prefix of its goal"""

SEED = 0
"""Seed of the clustering: the same in every run, so that runs can be compared"""

CLEAR = 0.05
"""Above this p the note says that there is no evidence of domains"""

CENTER = "center"
"""Column that domains are compared with, if the table has it"""


@dataclass(frozen=True)
class Latent:
    """Summary of proposed domains."""

    domains: int
    rows: Mapping[str, Mapping[str, int]]
    """Domain → split (or ``none``) → number of rows"""
    unknown: int
    """Number of rows without readable stain"""
    agreement: Mapping[str, float]
    """``training`` and ``other`` rows → adjusted Rand index with the center: 1 the same, 0 chance; empty without one"""
    unit: str
    """What was clustered: the group's column, or ``row``"""
    explained: float
    """Share of the variance between domains, along the axes in which they differ"""
    by_chance: float
    """The same without domains, see :class:`conceptkit.pathology.domains.Domains`"""
    p: float
    layer: str | None = None
    """Layer whose features were used in addition to the stain"""
    network: str | None = None

    def note(self) -> str:
        """Return the note of a record."""
        sizes = ", ".join(f"{name}: {sum(of.values())}" for name, of in self.rows.items())
        source = "" if self.layer is None else f" and from the features of {self.network} at {self.layer}"
        text = f"{self.domains} latent domains were proposed from the stain of the training rows{source}, by "
        text += f"{self.unit} (k-means; rows {sizes}"
        text += f"; {self.unknown} rows without stained tissue have none)" if self.unknown else ")"
        if self.agreement:
            values = ", ".join(f"{value:.2f} on {rows} rows" for rows, value in self.agreement.items())
            text += f"; adjusted Rand index with {CENTER} {values} (0 is chance)"
        text += f". They explain {self.explained:.2f} of the variance in which they differ, "
        text += f"{self.by_chance:.2f} without domains (p = {self.p:.2g})"
        if self.p > CLEAR:
            text += ": there is no evidence of such domains in the training rows, so discouraging them has no basis"
        return text + "."


def is_latent(goal: Goal) -> bool:
    """Return whether a goal is about domains that are to be proposed."""
    return goal.concept.startswith(f"{LATENT}:")


def refuse_latent(argument: str, concept: str, where: str) -> None:
    """Raise :class:`InputError` for latent domains where none are proposed."""
    if concept.startswith(f"{LATENT}:"):
        raise InputError(
            f"{argument}: {concept} is available for a single pair of networks, not {where}; name a column of the "
            "table."
        )


def with_latent(
    table: PatchTable, study: Study, goals: Sequence[Goal], *, progress: Progress | None = None
) -> tuple[PatchTable, list[Goal], Latent | None]:
    """Return the table with a column of latent domains, the goals for that column, and a summary of the domains.

    Without a goal about latent domains, table and goals are returned unchanged.

    Raises
    ------
    InputError
        when the goal is malformed, or the table has such a column already, no pixels, or no training split
    """
    latent = [goal for goal in goals if is_latent(goal)]
    if not latent:
        return table, list(goals), None
    if len(latent) > 1:
        raise InputError(f"{LATENT}: domains are proposed once, got {', '.join(g.concept for g in latent)}.")
    (goal,) = latent
    number, plus, layer = goal.concept.removeprefix(f"{LATENT}:").partition("+")
    if not number.isdecimal() or int(number) < 2:
        raise InputError(f"{LATENT}: needs a number of domains of at least 2, as in {LATENT}:3, got {goal.concept!r}.")
    if plus and not layer:
        raise InputError(f"{LATENT}: a layer must follow the plus, as in {LATENT}:3+mixed2, got {goal.concept!r}.")
    if not goal.discouraged:
        raise InputError(f"encourage: {goal.concept} can only be discouraged; what the domains mean is unknown.")
    if LATENT in table.frame.columns:
        raise InputError(f"{LATENT}: the table already has a column {LATENT}; use --discourage {LATENT} for that.")
    table, summary = _propose(table, study, int(number), layer or None, progress)
    return table, [g._replace(concept=LATENT) if g is goal else g for g in goals], summary


def _propose(
    table: PatchTable, study: Study, domains: int, layer: str | None, progress: Progress | None
) -> tuple[PatchTable, Latent]:
    split = table.column("split", study.splits.column)
    fitted = (split == study.splits.train).to_numpy(dtype=bool)
    counted = None if progress is None else at_stage(progress, "stain")
    profiles = read_stain_profiles(table, np.arange(len(table)), cache=cache_folder(), progress=counted)
    if profiles is None:
        raise InputError(f"{LATENT}: domains are read from pixels, and the table has none.")
    groups = table.groups(study.group)
    numbers = None if groups is None else np.unique(groups.astype(str), return_inverse=True)[1]
    features = None if layer is None else _features(table, study, layer, progress)
    proposed = propose_domains(profiles, fitted, numbers, domains, features=features, seed=SEED)
    codes = proposed.codes
    values = np.array([None if code < 0 else str(code + 1) for code in codes], dtype=object)
    changed = dataclasses.replace(
        table, frame=table.frame.assign(**{LATENT: values}), kinds={**table.kinds, LATENT: "categorical"}
    )
    parts = split.astype(object).where(split.notna(), "none")
    counts: Any = [parts[codes == code].value_counts() for code in range(domains)]
    return changed, Latent(
        domains=domains,
        rows={str(k + 1): {str(name): int(n) for name, n in own.items()} for k, own in enumerate(counts)},
        unknown=int((codes < 0).sum()),
        agreement=_agreement(table, codes, fitted),
        unit=study.group or "row",
        explained=proposed.explained,
        by_chance=proposed.by_chance,
        p=proposed.p,
        layer=layer,
        network=None if layer is None else study.model_name,
    )


def _agreement(table: PatchTable, codes: NDArray[np.intp], fitted: NDArray[np.bool_]) -> dict[str, float]:
    """Return ``training`` and ``other`` rows → adjusted Rand index of domains and centers."""
    if CENTER not in table.frame.columns:
        return {}
    center = table.concept(CENTER).values
    known = (codes >= 0) & np.array([v is not None for v in center], dtype=bool)
    parts = {"training": known & fitted, "other": known & ~fitted}
    return {
        name: float(adjusted_rand_score(center[rows].astype(str), codes[rows]))
        for name, rows in parts.items()
        if rows.any()
    }


def _features(table: PatchTable, study: Study, layer: str, progress: Progress | None) -> NDArray[np.float32]:
    """Return the channel means (n, d) of the study's network at a layer."""
    counted = None if progress is None else at_stage(progress, f"features at {layer}")
    read = open_features(table, study, layers=[layer]).read(np.arange(len(table)), progress=counted)
    return np.asarray(read[layer])
