"""A probe computed by torch has NumPy's numbers, on the processor and, where there is one, on a GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conceptkit.files.matrix import ReadMatrix
from conceptkit.models.linear_algebra import TorchAlgebra, algebra_on
from conceptkit.probe.linear_algebra import computed_by
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import validate

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


class Counted(TorchAlgebra):
    products = eigenvectors = 0

    def product(self, a, b):
        self.products += 1
        return super().product(a, b)

    def eigh(self, a):
        self.eigenvectors += 1
        return super().eigh(a)


class Single(TorchAlgebra):
    def eigh(self, a):
        return tuple(found.astype(np.float64) for found in super().eigh(a.astype(np.float32)))


def made(d):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 15)
    X = rng.normal(size=(300, d)) + rng.normal(size=(20, d))[groups]
    y = X[:, :5].sum(1) + rng.normal(size=300) + rng.normal(size=20)[groups]
    return X, y, groups.astype(str)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("d", "kind", "files"),
    [(40, "continuous", False), (400, "continuous", False), (40, "categorical", False), (40, "continuous", True)],
)
def test_torch_gives_the_numbers_of_numpy(device, d, kind, files, tmp_path):
    X, y, groups = made(d)
    values = y if kind == "continuous" else np.where(y > 0, "a", "b").astype(object)
    rows = ReadMatrix(lambda at: X[at], *X.shape, tmp_path) if files else X
    target = make_target("c", kind, values, groups)

    def numbers(algebra):
        with computed_by(algebra):
            [found] = validate(rows, [target], permutations=30, controls=True, n_resamples=50, keep=True)
        scores = {k: v for k, v in dataclasses.asdict(found).items() if isinstance(v, float)}
        return scores, found.predicted, found.fit.weights

    by_torch = Counted(torch.device(device))
    expected, found = numbers(None), numbers(by_torch)
    assert found[0] == pytest.approx(expected[0], abs=1e-8, nan_ok=True)
    np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=1e-8)
    assert by_torch.eigenvectors >= 5
    assert by_torch.products >= 5
    rough = numbers(Single(torch.device(device)))  # the control: single precision
    assert np.abs(rough[2] - expected[2]).max() > 1e-8


def test_a_gpu_is_used_where_there_is_one():
    assert algebra_on(torch.device("cpu")) is None
    assert algebra_on(torch.device("mps")) is None  # has no double precision
    assert algebra_on(torch.device("cuda")).device.type == "cuda"
