"""Preconditioned conjugate gradients for many systems together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conceptkit.evaluate.scores import Floats

_TOLERANCE, _MOST_STEPS = 1e-4, 60
"""Where the deletion of a unit counts as solved: an interval has three digits"""


def conjugate_gradients(
    product: Callable[[Floats], Floats], precondition: Callable[[Floats], Floats], b: Floats
) -> Floats:
    """Solve systems (m, u, t) of symmetric positive definite products, each column on its own."""

    def dot(a: Floats, c: Floats) -> Floats:
        return np.asarray(np.einsum("mut,mut->ut", a, c))

    z = precondition(b)
    v, r, p, rz = np.zeros_like(b), b.copy(), z, dot(b, z)
    goal = _TOLERANCE**2 * rz
    for _ in range(_MOST_STEPS):
        if (rz <= goal).all():
            break
        Ap = product(p)
        step = np.divide(rz, dot(p, Ap), out=np.zeros_like(rz), where=rz > goal)
        v += step * p
        r -= step * Ap
        z = precondition(r)
        before, rz = rz, dot(r, z)
        p = z + np.divide(rz, before, out=np.zeros_like(rz), where=before > goal) * p
    return v
