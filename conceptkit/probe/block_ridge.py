"""Ridge solutions from joint moments of features and targets, for rows that are too many for memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conceptkit.evaluate.scores import Floats
from conceptkit.probe.conjugate_gradients import conjugate_gradients
from conceptkit.probe.linear_algebra import eigh
from conceptkit.probe.ridge import Moments, scale_of
from conceptkit.probe.space import Space, leading_space

Fit = tuple[Floats, Floats]
"""Coefficients (d, t) and intercepts (t,)"""


@dataclass(frozen=True)
class BlockRidge:
    """Ridge solutions of columns from their joint moments with the features."""

    d: int
    n: int
    mean: Floats  # (d + k,)
    scale: Floats  # (d,)
    spectrum: Floats  # (d,)
    vectors: Floats  # (d, d)
    products: Floats  # (d, k) of the features in the eigenbasis with the columns

    @classmethod
    def of(cls, moments: Moments, d: int, scale: Floats | None = None) -> BlockRidge:
        """Factorise the joint moments of ``d`` features and the columns; ``scale`` (d,) replaces that of these rows."""
        if scale is None:
            scale = scale_of(Moments(moments.n, moments.mean[:d], moments.scatter[:d, :d]))
        gram = moments.scatter[:d, :d] / scale
        gram /= scale[:, None]
        spectrum, V = eigh(gram)
        products = V.T @ (moments.scatter[:d, d:] / scale[:, None])
        return cls(d, moments.n, moments.mean, scale, np.maximum(spectrum, 0.0), V, products)

    def fit(self, mix: Floats, alpha: Floats) -> Fit:
        """Return coefficients and intercepts of combinations (k, t) of the columns, each at its penalty (t,)."""
        B = self.vectors @ ((self.products @ mix) / (self.spectrum[:, None] + alpha)) / self.scale[:, None]
        return B, self.mean[self.d :] @ mix - self.mean[: self.d] @ B

    def space(self) -> Space:
        """Return the space of the rows, without a limit."""
        return leading_space(
            self.n, self.mean[: self.d], self.scale, self.spectrum, lambda c: self.vectors @ c / self.scale[:, None]
        )

    def errors(self, held: Moments, mix: Floats, alphas: Floats) -> Floats:
        """Return squared errors (a, t) on held-out rows of combinations (k, t) of the columns, at each penalty (a,)."""
        d, a, k = self.d, len(alphas), self.products.shape[1]
        shrunk = self.products[:, None, :] / (self.spectrum[:, None] + alphas)[:, :, None]  # (d, a, k)
        B = self.vectors @ shrunk.reshape(d, a * k)
        B /= self.scale[:, None]
        off = (held.mean[d:] - self.mean[d:])[None] - ((held.mean[:d] - self.mean[:d]) @ B).reshape(a, k)
        with_x = (held.scatter[:d, :d] @ B).reshape(d, a, k)
        B = B.reshape(d, a, k)
        out = np.empty((a, mix.shape[1]))
        for i in range(a):
            cross = B[:, i].T @ held.scatter[:d, d:]
            squares = held.scatter[d:, d:] - cross - cross.T + B[:, i].T @ with_x[:, i]
            squares += held.n * np.outer(off[i], off[i])
            out[i] = np.einsum("kt,kl,lt->t", mix, squares, mix, optimize=True)
        return out

    def errors_at(self, held: Moments, mix: Floats, alpha: Floats) -> Floats:
        """Return squared errors (t,) on held-out rows of combinations (k, t), each at its own penalty (t,)."""
        d = self.d
        B, _ = self.fit(mix, alpha)
        off = (held.mean[d:] - self.mean[d:]) @ mix - (held.mean[:d] - self.mean[:d]) @ B
        error = np.einsum("kt,kl,lt->t", mix, held.scatter[d:, d:], mix, optimize=True) + held.n * off**2
        error += (B * (held.scatter[:d, :d] @ B - 2 * held.scatter[:d, d:] @ mix)).sum(0)
        return np.asarray(error)

    def without(
        self,
        units: Sequence[tuple[int, Floats]],
        scatters: Sequence[NDArray[np.float32]],
        sums: Floats,
        alpha: Floats,
    ) -> tuple[Floats, Floats]:
        """Return how the deletion of training units changes errors: by level (u, t) + z q (d, u, t), z standardised.

        Parameters
        ----------
        units, scatters : number, mean (d,) and scatter (d, d) of each unit
        sums : (u, 1 + d, t) Σ (1, x) e of its errors
        alpha : (t,) penalties
        """
        d = self.d
        n = np.array([n for n, _ in units], dtype=np.float64)
        center = (np.stack([mean for _, mean in units], axis=1) - self.mean[:d, None]) / self.scale[:, None]  # (d, u)
        inner = (sums[:, 1:] - self.mean[:d, None] * sums[:, :1]).transpose(1, 0, 2) / self.scale[:, None, None]
        b = np.concatenate([sums[:, 0][None], inner])  # (1 + d, u, t)
        kept = self.spectrum[:, None] + np.tile(alpha, len(units))  # (d, u · t)

        def spectral(v: Floats, power: float) -> Floats:
            """Return (G + α)^power v."""
            flat = self.vectors.T @ v.reshape(d, -1)
            return np.asarray(self.vectors @ (flat * kept**power)).reshape(v.shape)

        def others(v: Floats) -> Floats:
            """Return the normal equations of all other rows times v."""
            at_center = v[0] + np.einsum("du,dut->ut", center, v[1:])
            out = np.concatenate([self.n * v[:1], spectral(v[1:], 1.0)])
            out[0] -= n[:, None] * at_center
            out[1:] -= center[:, :, None] * (n[:, None] * at_center)
            for i, scatter in enumerate(scatters):
                out[1:, i] -= (scatter @ (v[1:, i] / self.scale[:, None]).astype(np.float32)) / self.scale[:, None]
            return out

        def approximately(r: Floats) -> Floats:
            return np.concatenate([r[:1] / self.n, spectral(r[1:], -1.0)])

        v = conjugate_gradients(others, approximately, b)
        return v[0], v[1:]
