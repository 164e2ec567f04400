"""Scores of how an output depends on a concept: sign count, magnitude, mean, bidirectional relevance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from conceptkit._checks import InputError
from conceptkit.evaluate.scores import Floats


def sign_count(S: Floats, r2: Floats | float = 0.0) -> Floats:
    """Return #{S > 0} / n: the share of images whose output rises along the direction (Kim et al., 2018).

    Parameters
    ----------
    S : (n, …) directional derivatives of n images; a derivative of exactly 0 does not count as positive

    Returns
    -------
    (…), from 0 to 1
    """
    return np.asarray((S > 0).mean(0), dtype=np.float64)


def magnitude(S: Floats, r2: Floats | float = 0.0) -> Floats:
    """Return Σ max(S, 0) / Σ|S|: the share of all change that is upward, from 0 to 1; NaN where nothing changes.

    That is the formula of captum's documentation; what captum computes under that name is :func:`mean`.
    """
    total = np.abs(S).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(total > 0, np.maximum(S, 0.0).sum(0) / total, np.nan), dtype=np.float64)


def mean(S: Floats, r2: Floats | float = 0.0) -> Floats:
    """Return the mean derivative: change of the output per unit of length in activation space."""
    return np.asarray(S.mean(0), dtype=np.float64)


def relevance(S: Floats, r2: Floats | float) -> Floats:
    """Return the bidirectional relevance Br = max(R², 0) · mean(S) / sd(S) (Graziani et al., 2018).

    A concept that is not read (R² ≤ 0) has none. NaN where the derivative is the same for all images, as in a linear
    network, or there is one image only.

    Parameters
    ----------
    S : (n, …)
    r2 : (…) held-out R² of the concept
    """
    if len(S) < 2:
        return np.full(S.shape[1:], np.nan)
    spread = S.std(0, ddof=1)
    # A linear output has one derivative up to rounding: a ratio to that rounding would be a number without meaning.
    same = spread <= 1e-6 * np.abs(S).max(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(r2, 0.0) * S.mean(0) / spread
    return np.asarray(np.where(same, np.nan, ratio), dtype=np.float64)


SCORES: Mapping[str, Callable[[Floats, Floats | float], Floats]] = {
    "sign_count": sign_count,
    "magnitude": magnitude,
    "mean": mean,
    "relevance": relevance,
}
"""Name → function from derivatives (n, …) and R² (…) to scores (…)."""

INDIFFERENT: Mapping[str, float] = {"sign_count": 0.5, "magnitude": 0.5, "mean": 0.0, "relevance": 0.0}
"""Name → the score of an output that does not care; tests are two-sided about it."""


def directional_derivatives(G: Floats, unit: Floats) -> Floats:
    """Return S = G·v (n, t) of derivatives G (n, d) and directions v (d, t).

    Raises
    ------
    InputError
        when there is no image
    """
    if not len(G):
        raise InputError("images: a score needs at least one, got none.")
    out: Floats = G @ unit
    return out
