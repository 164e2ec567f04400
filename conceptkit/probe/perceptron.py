"""A small multi-layer perceptron for concepts that are not encoded linearly."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.targets import Target


class Perceptron:
    """One hidden layer of 64 units on standardised columns, stopped early by a tenth of the training part."""

    def __init__(self, *, classes: bool, seed: int = 0) -> None:
        self.classes, self.seed = classes, seed
        self.center, self.spread = 0.0, 1.0

    def fit(self, X: Floats, y: NDArray[Any]) -> Self:
        """Fit activations (n, d) to values, or class numbers (n,)."""
        if not self.classes:
            self.center, self.spread = float(y.mean()), float(y.std()) or 1.0
            y = (y - self.center) / self.spread
        network = (MLPClassifier if self.classes else MLPRegressor)(
            hidden_layer_sizes=(64,),
            alpha=1e-2,
            max_iter=150,
            early_stopping=True,
            n_iter_no_change=15,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # early stopping is the rule, ``max_iter`` its limit
            self.model = make_pipeline(StandardScaler(), network).fit(X, y)
        return self

    def predict(self, X: Floats) -> NDArray[Any]:
        """Return values, or class numbers (n,)."""
        predicted: NDArray[Any] = self.model.predict(X)
        return predicted if self.classes else predicted * self.spread + self.center


def held_out_mlp(X: Floats, target: Target, *, folds: int = 5, seed: int = 0) -> NDArray[Any]:
    """Return the out-of-fold predictions (n,) of a :class:`Perceptron`."""
    classes = target.kind == "categorical"
    out = np.empty(len(X), dtype=np.intp if classes else np.float64)
    for train, test in target.folds(folds):
        out[test] = Perceptron(classes=classes, seed=seed).fit(X[train], target.y[train]).predict(X[test])
    return out
