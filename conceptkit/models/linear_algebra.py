"""Products and eigendecompositions on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class TorchAlgebra:
    """The functions of :class:`conceptkit.probe.linear_algebra.LinearAlgebra` on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def product(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """Return the product (n, k) of matrices (n, d) and (d, k)."""
        return np.asarray((self._moved(a) @ self._moved(b)).cpu().numpy())

    def eigh(self, a: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return eigenvalues (d,), ascending, and eigenvectors (d, d) of a symmetric matrix."""
        values, vectors = torch.linalg.eigh(self._moved(a))
        return values.cpu().numpy(), vectors.cpu().numpy()

    def _moved(self, a: NDArray[Any]) -> torch.Tensor:
        # torch warns of arrays that are read-only
        return torch.from_numpy(a if a.flags.writeable else a.copy()).to(self.device)


def algebra_on(device: torch.device) -> TorchAlgebra | None:
    """Return the algebra of a GPU with double precision, or ``None`` for NumPy's."""
    return TorchAlgebra(device) if device.type == "cuda" else None
