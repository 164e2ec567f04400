"""A small multi-layer perceptron: what can be read of a concept beyond the linear."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.folds import make_folds
from conceptkit.probe.targets import Target


def held_out_mlp(X: Floats, target: Target, *, folds: int = 5, seed: int = 0) -> NDArray[Any]:
    """Return the out-of-fold predictions (n,) of a small multi-layer perceptron.

    One hidden layer of 64 units on standardised columns; a tenth of the training part decides when to stop.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    continuous = target.kind == "continuous"
    kind = MLPRegressor if continuous else MLPClassifier
    center, spread = (target.y.mean(), target.y.std()) if continuous else (0.0, 1.0)
    out = np.empty(len(X), dtype=np.float64 if continuous else np.intp)
    for train, test in make_folds(len(X), target.groups, folds, what=f"the rows with {target.name}"):
        network = kind(
            hidden_layer_sizes=(64,),
            alpha=1e-2,
            max_iter=150,
            early_stopping=True,
            n_iter_no_change=15,
            random_state=seed,
        )
        y = (target.y[train] - center) / spread if continuous else target.y[train]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the early stop is the rule, the limit its bound
            model = make_pipeline(StandardScaler(), network).fit(X[train], y)
        predicted = model.predict(X[test])
        out[test] = predicted * spread + center if continuous else predicted
    return out
