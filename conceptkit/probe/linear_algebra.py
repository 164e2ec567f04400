"""Products and eigendecompositions of large matrices, by NumPy or, inside :func:`computed_by`, elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats


class LinearAlgebra(Protocol):
    """What takes the time of a probe; arrays come back in the precision in which they came."""

    def product(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """Return the product (n, k) of matrices (n, d) and (d, k)."""

    def eigh(self, a: Floats) -> tuple[Floats, Floats]:
        """Return eigenvalues (d,), ascending, and eigenvectors (d, d) of a symmetric matrix."""


class _NumPy:
    def product(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(a @ b)

    def eigh(self, a: Floats) -> tuple[Floats, Floats]:
        # NumPy's divide and conquer: SciPy's default takes 100 times as long when dead units make the spectrum
        # degenerate.
        return np.linalg.eigh(a)


_used: LinearAlgebra = _NumPy()


@contextlib.contextmanager
def computed_by(algebra: LinearAlgebra | None) -> Iterator[None]:
    """Compute by ``algebra`` in all threads; ``None`` changes nothing."""
    global _used
    before = _used
    _used = algebra or before
    try:
        yield
    finally:
        _used = before


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the product (n, k) of matrices (n, d) and (d, k)."""
    return _used.product(a, b)


def eigh(a: Floats) -> tuple[Floats, Floats]:
    """Return eigenvalues (d,), ascending, and eigenvectors (d, d) of a symmetric matrix."""
    return _used.eigh(a)
