"""Domains that nobody labelled: ``latent:3`` among what is discouraged becomes a column of the table.

``latent:3+mixed2`` takes what the study's network makes of the patches at that layer beside their stain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError
from conceptkit.features.pixels import read_stain_profiles
from conceptkit.guide.setup import Wish
from conceptkit.options.base import Progress
from conceptkit.runs.opening import at_stage
from conceptkit.synthetic import cache_folder
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study

LATENT = "latent"
"""Name of the column, and what a wish for it begins with"""

SEED = 0
"""Of the clustering: the same in every run, so that runs can be compared"""

CLEAR = 0.05
"""Above this p the note says that there are no such domains"""

CENTER = "center"
"""Column that domains are compared with where the table has it"""


@dataclass(frozen=True)
class Latent:
    """What the domains came to."""

    domains: int
    rows: Mapping[str, Mapping[str, int]]
    """Domain → split (or ``none``) → rows"""
    unknown: int
    """Rows whose stain could not be read"""
    agreement: Mapping[str, float]
    """``training`` and ``other`` rows → adjusted Rand index with the center: 1 the same, 0 chance; empty without one"""
    unit: str
    """What was sorted: the group's column, or rows"""
    explained: float
    """Share of the variance that lies between domains, along the axes in which these differ"""
    by_chance: float
    """The same where there are no domains, see :class:`conceptkit.pathology.domains.Domains`"""
    p: float
    layer: str | None = None
    """Whose features had a say beside the stain"""
    network: str | None = None

    def note(self) -> str:
        """Return what a reader has to know."""
        sizes = ", ".join(f"{name}: {sum(of.values())}" for name, of in self.rows.items())
        source = "" if self.layer is None else f" and from what {self.network} makes of them at {self.layer}"
        text = f"{self.domains} latent domains were proposed from the stain of the training rows{source}, by "
        text += f"{self.unit} (k-means; rows {sizes}"
        text += f"; {self.unknown} rows without stained tissue have none)" if self.unknown else ")"
        if self.agreement:
            told = ", ".join(f"{value:.2f} on {rows} rows" for rows, value in self.agreement.items())
            text += f"; adjusted Rand index with {CENTER} {told} (0 is chance)"
        text += f". They explain {self.explained:.2f} of the variance in which they differ, "
        text += f"{self.by_chance:.2f} where there are none (p = {self.p:.2g})"
        if self.p > CLEAR:
            text += ": the training rows do not fall into such domains, and discouraging them has no ground"
        return text + "."


def is_latent(wish: Wish) -> bool:
    """Tell whether a wish is for domains that are to be proposed."""
    return wish.concept.startswith(f"{LATENT}:")


def with_latent(
    data: PatchTable, meant: Study, wishes: Sequence[Wish], *, progress: Progress | None = None
) -> tuple[PatchTable, list[Wish], Latent | None]:
    """Return the table with the column of latent domains that a wish asks for, and the wishes for that column.

    Without such a wish all is returned as it is.

    Raises
    ------
    InputError
        when the wish is malformed, the table has such a column already or no pixels, or no split to train on
    """
    asked = [wish for wish in wishes if is_latent(wish)]
    if not asked:
        return data, list(wishes), None
    if len(asked) > 1:
        raise InputError(f"{LATENT}: domains are proposed once, got {', '.join(w.concept for w in asked)}.")
    (wish,) = asked
    number, plus, layer = wish.concept.removeprefix(f"{LATENT}:").partition("+")
    if not number.isdecimal() or int(number) < 2:
        raise InputError(f"{LATENT}: needs a number of domains of at least 2, as in {LATENT}:3, got {wish.concept!r}.")
    if plus and not layer:
        raise InputError(f"{LATENT}: a layer must follow the plus, as in {LATENT}:3+mixed2, got {wish.concept!r}.")
    if not wish.discouraged:
        raise InputError(f"encourage: {wish.concept} can only be discouraged, as nobody knows what the domains are.")
    if LATENT in data.frame.columns:
        raise InputError(f"{LATENT}: the table has a column {LATENT} already; discourage {LATENT} takes that.")
    found, summary = _propose(data, meant, int(number), layer or None, progress)
    renamed = [w._replace(concept=LATENT) if w is wish else w for w in wishes]
    return found, renamed, summary


def refuse_latent(argument: str, concept: str, where: str) -> None:
    """Refuse domains where none are proposed.

    Raises
    ------
    InputError
        when the concept asks for them
    """
    if concept.startswith(f"{LATENT}:"):
        raise InputError(
            f"{argument}: {concept} is proposed for a single pair of networks, not {where}; name a column of the table."
        )


def _propose(
    data: PatchTable, meant: Study, domains: int, layer: str | None, progress: Progress | None
) -> tuple[PatchTable, Latent]:
    from sklearn.metrics import adjusted_rand_score

    from conceptkit.pathology.domains import propose_domains

    split = data.column("split", meant.splits.column)
    fitted = (split == meant.splits.train).to_numpy(dtype=bool)
    notify = None if progress is None else at_stage(progress, "stain")
    profiles = read_stain_profiles(data, np.arange(len(data)), cache=cache_folder(), progress=notify)
    if profiles is None:
        raise InputError(f"{LATENT}: domains are read from pixels, and the table has none.")
    groups = data.groups(meant.group)
    numbers = None if groups is None else np.unique(groups.astype(str), return_inverse=True)[1]
    features = None if layer is None else _features(data, meant, layer, progress)
    proposed = propose_domains(profiles, fitted, numbers, domains, features=features, seed=SEED)
    codes = proposed.codes
    values = np.array([None if code < 0 else str(code + 1) for code in codes], dtype=object)
    frame = data.frame.assign(**{LATENT: values})
    changed = dataclasses.replace(data, frame=frame, kinds={**data.kinds, LATENT: "categorical"})
    parts = split.astype(object).where(split.notna(), "none")
    rows: dict[str, dict[str, int]] = {}
    for code in range(domains):
        own: Any = parts[codes == code].value_counts()
        rows[str(code + 1)] = {str(name): int(n) for name, n in own.items()}
    agreement = {}
    if CENTER in data.frame.columns:
        center = data.concept(CENTER).values
        known = (codes >= 0) & np.array([v is not None for v in center], dtype=bool)
        for name, here in (("training", known & fitted), ("other", known & ~fitted)):
            if here.any():
                agreement[name] = float(adjusted_rand_score(center[here].astype(str), codes[here]))
    unit = "row" if meant.group is None else meant.group
    return changed, Latent(
        domains=domains,
        rows=rows,
        unknown=int((codes < 0).sum()),
        agreement=agreement,
        unit=unit,
        explained=proposed.explained,
        by_chance=proposed.by_chance,
        p=proposed.p,
        layer=layer,
        network=None if layer is None else meant.model,
    )


def _features(data: PatchTable, meant: Study, layer: str, progress: Progress | None) -> NDArray[np.float32]:
    """Return the channel means (n, d) of the study's network, which has not learned of any domain yet."""
    from conceptkit.features.activations import read_activations
    from conceptkit.models.checkpoints import open_model

    if meant.model is None:
        raise InputError(f"{LATENT}: features at {layer} need a network; name it by --model.")
    backbone = open_model(meant.model, meant.weights)
    notify = None if progress is None else at_stage(progress, f"features at {layer}")
    return read_activations(data, backbone, [layer], cache=cache_folder(), progress=notify)[layer]
