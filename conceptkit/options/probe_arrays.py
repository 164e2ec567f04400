"""Options of ``probe_arrays``."""

from __future__ import annotations

from typing import Any

from conceptkit.options.base import Names, Options, declare, option


@declare
class ArrayProbe(Options):
    """How features are probed that are given as arrays."""

    folds: int = option(5, minimum=2)
    """Number of cross-validation folds."""
    alphas: Any = None
    """Penalties to choose from; ``None`` for 20 values from 0.1 to 10⁶."""
    permutations: int = option(1000, minimum=0)
    """Permutations of each concept, for p; 0 for none."""
    random_state: int = option(0, minimum=0)
    """Seed of everything that is drawn at random."""
    categorical: Names = ()
    """Concepts to treat as classes whatever their type."""
    adjust_terms: str = option("linear", choices=("linear", "quadratic"))
    """linear, or quadratic: squares and pairwise interactions of the confounders too."""
    protocol: str = option("cross-validated", choices=("cross-validated", "paper"))
    """cross-validated, or paper: least squares fitted and scored on the same rows."""
    n_resamples: int = option(2000, minimum=1)
    """Bootstrap resamples behind each interval."""
    layer: str = "features"
    """Name of the features in the result, when X is one array."""
