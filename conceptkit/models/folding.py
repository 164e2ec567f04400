"""A faster copy of a network: batch normalisations folded into convolutions, and weights laid out for the device."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

AGREEMENT = 5e-5
"""Largest difference between prepared and plain network, as a share of the largest value of an output."""

_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Tracer(fx.Tracer):
    """Does not trace into convolutions and normalisations, those of timm's classes included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def prepared(
    module: nn.Module,
    run: Callable[[nn.Module, Tensor], Sequence[Tensor]],
    images: Tensor,
    *,
    keep: Collection[str] = (),
    layout: torch.memory_format = torch.channels_last,
) -> tuple[nn.Module, int] | None:
    """Return a faster copy and its number of folded normalisations; ``None`` where its outputs differ.

    Parameters
    ----------
    module : in evaluation mode; not changed
    run : function from a network and images to its outputs
    images : (n, 3, h, w) normalised, on which copy and network must agree to :data:`AGREEMENT`
    keep : as for :func:`folded`
    layout : of the copy's weights and its images
    """
    expected = run(module, images)
    try:
        copied, count = folded(module, keep)
        copied = copied.to(memory_format=layout)
        found = run(copied, images.contiguous(memory_format=layout))
    except Exception:  # a user's network may not allow a copy or the removal of a normalisation
        return None
    # Written so that NaN, as of a network that overflows, counts as a difference.
    agrees = all((f - e).abs().max() <= AGREEMENT * e.abs().max() for f, e in zip(found, expected, strict=True))
    return (copied, count) if agrees else None


def folded(module: nn.Module, keep: Collection[str] = ()) -> tuple[nn.Module, int]:
    """Return a copy whose batch normalisations are folded into the convolutions before them, and their number.

    Only pairs that nothing else reads, as torch.fx sees the network, are folded; parts that cannot be traced stay.

    Parameters
    ----------
    module : in evaluation mode; not changed
    keep : dotted names of layers whose outputs must not change
    """
    module = copy.deepcopy(module)
    count = 0
    for prefix, graph in _graphs(module, ""):
        for conv_name, norm_name in _pairs(module, prefix, graph):
            # A layer that ends between the two would return normalised values.
            if any(_inside(conv_name, layer) and not _inside(norm_name, layer) for layer in keep):
                continue
            _fold(module, conv_name, norm_name)
            count += 1
    return module, count


def _inside(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _graphs(module: nn.Module, prefix: str) -> Iterator[tuple[str, fx.Graph]]:
    """Yield the graph of the whole network, or else of the largest parts that can be traced."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # raised by networks that read shapes while traced
            graph = _Tracer().trace(module)
    except Exception:  # whatever a network's code raises without real tensors
        for name, child in module.named_children():
            if next(child.children(), None) is not None:
                yield from _graphs(child, f"{prefix}{name}.")
        return
    yield prefix, graph


def _pairs(module: nn.Module, prefix: str, graph: fx.Graph) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the normalisations that are their only readers."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = f"{prefix}{before.target}", f"{prefix}{node.target}"
        once = calls[str(before.target)] == calls[str(node.target)] == 1
        if once and _foldable(module.get_submodule(names[0]), module.get_submodule(names[1])):
            found.append(names)
    return found


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    known_conv = type(conv) is nn.Conv2d or type(conv).__name__ == "Conv2dSame"  # others reshape their weights
    # timm's normalisations hold the activation (and a drop) that follows as children, and call them in this order.
    known_norm = type(norm) in _PLAIN_NORMS or [n for n, _ in norm.named_children()] == ["drop", "act"]
    if not (known_conv and known_norm and isinstance(norm, _BatchNorm)):
        return False
    return "weight" in conv._parameters and norm.running_mean is not None and not norm.training


def _fold(module: nn.Module, conv_name: str, norm_name: str) -> None:
    conv: Any = module.get_submodule(conv_name)
    norm: Any = module.get_submodule(norm_name)
    given = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    with torch.no_grad():  # in float64, so that folding itself costs no digit
        exact: list[Any] = [None if v is None else v.detach().double() for v in given]
        weight, bias, mean, variance, scale, shift = exact
        fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
        conv.weight, conv.bias = (nn.Parameter(v.to(conv.weight.dtype), requires_grad=False) for v in fused)
    rest = nn.Sequential(OrderedDict(norm.named_children()))
    parent, _, own = norm_name.rpartition(".")
    module.get_submodule(parent).add_module(own, rest.eval() if len(rest) else nn.Identity())
