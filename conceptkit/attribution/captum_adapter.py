"""Concept activation vectors for captum's TCAV."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from captum.concept import Classifier
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader

from conceptkit.errors import InputError
from conceptkit.probe.classification import ConceptActivationVector


class ConceptClassifier(Classifier):  # type: ignore[misc]  # captum is untyped to mypy
    """A :class:`conceptkit.ConceptActivationVector` that ``captum.concept.TCAV`` fits and reads.

    captum flattens a layer's output. With ``channels``, the vector is fitted to pooled positions and repeated at every
    position, which gives the exact derivative by the pooled activation: the sum over positions.

    Parameters
    ----------
    method, alphas, folds : of the vector
    channels : number of channels of a layer of maps (n, channels, …); ``None`` to use every value of the layer
    """

    def __init__(
        self,
        *,
        method: str = "logistic",
        alphas: ArrayLike | None = None,
        folds: int = 3,
        channels: int | None = None,
    ) -> None:
        self._vector = ConceptActivationVector(method=method, alphas=alphas, folds=folds)
        self._channels = channels
        self._positions = 1

    @property
    def vector(self) -> ConceptActivationVector:
        """Return the vector that was fitted last."""
        return self._vector

    def train_and_eval(self, dataloader: DataLoader[Any], **kwargs: Any) -> dict[str, Tensor]:
        """Fit the vector to activations (n, values) and concepts (n,); return ``accs``, its training accuracy."""
        parts = [(x.detach().cpu().double(), y.cpu()) for x, y in dataloader]
        X = torch.cat([x for x, _ in parts]).numpy()
        y = torch.cat([y for _, y in parts]).numpy()
        X = self._pooled(X)
        # captum passes one concept after the other; folds of neighbouring rows would miss classes.
        order = np.random.default_rng(0).permutation(len(y))
        self._vector.fit(X[order], y[order])
        return {"accs": torch.tensor(float(np.mean(self._vector.predict(X) == y)))}

    def weights(self) -> Tensor:
        """Return the vectors (classes, values), not scaled to length 1; those of two concepts have opposite signs."""
        coefficients = torch.from_numpy(self._vector.coef_)
        if len(self._vector.classes_) == 2:
            coefficients = torch.cat([-coefficients, coefficients])
        return coefficients.repeat_interleave(self._positions, dim=1)

    def classes(self) -> list[int]:
        """Return the numbers of the concepts, in the order of :meth:`weights`."""
        return [int(c) for c in self._vector.classes_]

    def _pooled(self, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._channels is None:
            self._positions = 1
            return X
        self._positions, rest = divmod(X.shape[1], self._channels)
        if rest:
            raise InputError(f"channels: must divide the layer's {X.shape[1]} values, got {self._channels}.")
        pooled: np.ndarray[Any, Any] = X.reshape(len(X), self._channels, -1).mean(2)
        return pooled
