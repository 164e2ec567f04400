"""What scores are by chance: those of directions fitted to shuffled concepts with the same groups."""

from __future__ import annotations

import numpy as np

from conceptkit.attribution.directions import Orders
from conceptkit.attribution.tcav import SCORES
from conceptkit.evaluate.scores import Floats
from conceptkit.probe.permutation import level_of
from conceptkit.probe.targets import Target


def shuffle_rows(target: Target, draws: int, seed: int) -> Orders:
    """Shuffle a concept at the level at which it varies (see :func:`conceptkit.probe.permutation.level_of`).

    Without groups rows change places. A concept that varies within groups alone is shuffled inside each. Otherwise
    groups change places, and the rows inside them too: a group is given the values of another one, repeated where that
    is smaller, so that patches resemble those of their patient as much as before.

    Returns
    -------
    (draws, n) the row that each row takes its value from; a draw in which a class does not occur is drawn again
    """
    rng = np.random.default_rng([seed, 3])
    level = level_of(target).name
    clusters = np.zeros(len(target.y), dtype=np.intp) if level == "rows" else target.clusters
    members = [np.flatnonzero(clusters == g) for g in range(int(clusters.max()) + 1)]
    out = np.empty((draws, len(target.y)), dtype=np.intp)
    for order in out:
        while True:
            source = rng.permutation(len(members)) if level == "groups" else np.arange(len(members))
            for own, other in zip(members, source, strict=True):
                order[own] = np.resize(rng.permutation(members[other]), len(own))
            if len(np.unique(target.y[order])) >= max(2, target.n_classes):
                break
    return out


def score_all(S: Floats, r2: Floats | float) -> dict[str, Floats]:
    """Return every score (t,) of derivatives S (n, t)."""
    return {name: score(S, r2) for name, score in SCORES.items()}


def two_sided_p(observed: float, null: Floats, indifferent: float = 0.0) -> float:
    """Return (1 + #{null at least as far from indifference}) / (1 + number); NaN for a score without a value.

    A shuffle whose score has no value counts as being as far: it cannot speak for the observed one.
    """
    if not np.isfinite(observed) or not len(null):
        return float("nan")
    reached = ~(np.abs(null - indifferent) < abs(observed - indifferent) * (1 - 1e-9))
    return float((1 + reached.sum()) / (1 + len(null)))
