"""Adapters: guided networks on features, whose backbone standardises them, and their form for other programs."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit.errors import InputError, check_place
from conceptkit.files.atomic import replacing
from conceptkit.models.guided import CONTINUOUS, MAIN, GuidedModel

FEATURES = "features"
"""Architecture and weights of an adapter's backbone"""

AGREEMENT = 1e-5
"""Largest difference between an exported adapter and its network, as a share of the largest output or of 1"""

OPSET = 17


class Standardised(nn.Module):
    """Features (n, width) in units of standard deviations of the training rows; it has no weights.

    Parameters
    ----------
    width : values per row
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return standardised rows; raise :class:`InputError` for anything but (n, width), such as images."""
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise InputError(
                f"features: the adapter reads {self.num_features} features per patch, got {tuple(x.shape[1:])}; set "
                "--features to features like those it was trained on."
            )
        return (x - self.mean) / self.deviation

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """Return ``x``: there is nothing to pool."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised rows."""
        return self.forward_features(x)

    def standardise(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> None:
        """Set the moments (width,); a constant column keeps its scale."""
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(np.where(deviation > 0, deviation, 1.0)))


class Given(nn.Module):
    """Stands for :class:`Standardised` where rows are standardised already; its part ``features`` can be hooked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.features = nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return rows (n, width) as they are."""
        out: Tensor = self.features(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """Return ``x``: there is nothing to pool."""
        return x


def on_standardised(model: GuidedModel) -> GuidedModel:
    """Return a float64 copy of an adapter that reads standardised rows, so that 0 is the mean of the training rows."""
    own = copy.deepcopy(model).double()
    own.backbone = Given(model.width)
    return own


def is_adapter(module: nn.Module) -> bool:
    """Return whether a network is a guided one on features."""
    return isinstance(module, GuidedModel) and isinstance(module.backbone, Standardised)


def check_export(backbone: nn.Module, file: str | Path) -> None:
    """Raise :class:`InputError`, before a training, when its network could not be written as ONNX."""
    if not isinstance(backbone, Standardised):
        raise InputError("export: only an adapter can be written as ONNX; train on --features.")
    _onnx()
    check_place("export", Path(file))


def export_onnx(model: nn.Module, file: str | Path) -> Path:
    """Write an adapter as an ONNX graph, from ``features`` (n, width) to a raw output per task (extra ``onnx``).

    The graph has the discouraged heads too. Its metadata ``tasks`` hold kind, classes, mean and deviation of each task,
    as JSON: a value is output × deviation + mean, a main task of two classes has one logit.

    Raises
    ------
    InputError
        when it is not an adapter, the extra is missing, or onnxruntime's outputs differ by more than :data:`AGREEMENT`
    """
    if not isinstance(model, GuidedModel) or not is_adapter(model):
        raise InputError("export: only an adapter, trained by guide on features, can be written as ONNX.")
    onnx, runtime = _onnx()
    helper, inner = onnx.helper, model.backbone
    assert isinstance(inner, Standardised)
    nodes, weights = _steps(onnx, model)
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "adapter",
        [helper.make_tensor_value_info(FEATURES, floats, ["n", model.width])],
        [helper.make_tensor_value_info(task.name, floats, ["n", task.nodes]) for task in model.tasks],
        weights,
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    helper.set_model_props(whole, {"tasks": json.dumps([dataclasses.asdict(task) for task in model.tasks])})
    onnx.checker.check_model(whole)
    session = runtime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    noise = torch.randn(64, model.width, generator=torch.Generator().manual_seed(0))
    rows = inner.mean.cpu() + inner.deviation.cpu() * noise
    with torch.inference_mode():
        expected = model(rows)
    for name, found in zip(expected, session.run(list(expected), {FEATURES: rows.numpy()}), strict=True):
        largest = max(float(expected[name].abs().max()), 1.0)
        apart = float((torch.from_numpy(found) - expected[name]).abs().max())
        if not apart <= AGREEMENT * largest:
            raise InputError(f"export: the ONNX graph differs by {apart:.2g} at {name}; nothing was written.")
    with replacing(Path(file)) as temporary:
        temporary.write_bytes(whole.SerializeToString())
    return Path(file)


def _steps(onnx: Any, model: GuidedModel) -> tuple[list[Any], list[Any]]:
    """Return the nodes of an adapter's graph, in the order in which they run, and their weights."""
    helper = onnx.helper
    nodes: list[Any] = []
    weights: list[Any] = []
    at = FEATURES

    def step(operator: str, name: str, *values: Tensor, **how: Any) -> None:
        nonlocal at
        names = [f"{name}.{k}" for k in range(len(values))]
        weights.extend(
            onnx.numpy_helper.from_array(value.detach().cpu().numpy(), one)
            for value, one in zip(values, names, strict=True)
        )
        nodes.append(helper.make_node(operator, [at, *names], [name], **how))
        at = name

    inner: Any = model.backbone
    step("Sub", "centred", inner.mean)
    step("Div", "standardised", inner.deviation)
    for k, layer in enumerate(model.trunk):
        dense: Any = layer
        step("Gemm", f"dense{k}", dense[0].weight, dense[0].bias, transB=1)
        step("Relu", f"trunk{k}")
    if model.erasure is not None:
        step("Sub", "erasure_centred", model.erasure.mean)
        step("Gemm", "erasure", model.erasure.matrix, model.erasure.mean, transB=1)
    end = at
    for task in sorted(model.tasks, key=lambda task: task.name == MAIN and bool(model.through)):
        at = end
        if task.name == MAIN and model.through:
            read = []
            for concept in model.through:
                at = concept.name
                if concept.kind != CONTINUOUS:
                    step("Softmax", f"{at}.shares")
                    step("Slice", f"{concept.name}.read", *map(torch.tensor, ([1], [len(concept.classes)], [1])))
                read.append(at)
            nodes.append(helper.make_node("Concat", read, ["concepts"], axis=1))
            at = "concepts"
        head: Any = model.heads[task.name]
        beside = model.residual if task.residual else None
        step("Gemm", task.name if beside is None else "through", head.weight, head.bias, transB=1)
        if beside is not None:
            at = end
            step("Gemm", "residual", beside.weight, torch.zeros(task.nodes), transB=1)
            nodes.append(helper.make_node("Add", ["through", "residual"], [task.name]))
    return nodes, weights


def _onnx() -> tuple[Any, Any]:
    """Return onnx and onnxruntime; raise :class:`InputError` where the extra is missing."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"export: {error.name} is missing; pip install 'conceptkit[onnx]'.") from None
    return onnx, onnxruntime
