"""The frozen part of a network: a network is split where trained layers begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from conceptkit.models.folding import prepared
from conceptkit.models.guided import GuidedModel


class Pooled(nn.Module):
    """A guided network from images to pooled features, which may be frozen."""

    def __init__(self, model: GuidedModel) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.layers = model.layers
        self._features = model.features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of normalised images (n, 3, h, w)."""
        return self._features(images)


def split(model: GuidedModel) -> tuple[nn.Module, nn.Module] | None:
    """Split the way from images to pooled features into a frozen and a trained part.

    Parameters
    ----------
    model : with ``requires_grad`` set on what is trained, and the backbone in evaluation mode

    Returns
    -------
    prefix, suffix : the prefix maps images to a tuple of tensors, the suffix maps those to the tuple of features; both
        share the weights of the network. ``None`` if the code of the network cannot be traced, or nothing is frozen
    """
    if not any(p.requires_grad for p in model.backbone.parameters()):
        return Pooled(model), _AsTheyAre()
    traced = _trace(model)
    if traced is None:
        return None
    whole, graph = traced
    live = _live_nodes(graph, whole)
    output = next(n for n in graph.nodes if n.op == "output")
    users = [n for n in graph.nodes if n in live or n is output]
    # Values that do not depend on the images, such as frozen weights, belong to the suffix.
    of_rows = _following([n for n in graph.nodes if n.op == "placeholder"])
    boundary = list(dict.fromkeys(i for n in users for i in n.all_input_nodes if i not in live and i in of_rows))
    if any(n.op == "placeholder" for n in boundary):
        return None  # the first layer is trained: nothing is frozen
    return _part(whole, graph, boundary, frozen=True), _part(whole, graph, boundary, frozen=False)


def frozen_layers(model: GuidedModel) -> list[str]:
    """Return the layers that heads read and training does not change; none if the network cannot be traced."""
    traced = _trace(model)
    if traced is None:
        return []
    whole, graph = traced
    live = _live_nodes(graph, whole)
    output = next(n for n in graph.nodes if n.op == "output")
    return [layer for layer, node in zip(model.layers, output.args[0][1:], strict=True) if node not in live]


class _AsTheyAre(nn.Module):
    """The trained part behind a frozen backbone: the identity."""

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Return the features."""
        return features


class _Tracer(fx.Tracer):
    """Runs hooks on leaf modules too; a module without children is a leaf.

    No split lies inside a leaf, and its code may depend on sizes, as convolutions with same padding do.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one step."""
        # So is a normalisation with its activation, so that it can be folded, unless its children are read.
        norm = isinstance(m, _BatchNorm) and not any(part._forward_hooks for part in m.modules() if part is not m)
        return norm or super().is_leaf_module(m, module_qualified_name) or not any(True for _ in m.children())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call."""
        output = super().call_module(m, forward, args, kwargs)
        if self.is_leaf_module(m, self.path_of_module(m)):
            for hook in m._forward_hooks.values():
                hook(m, args, output)
        return output


def _trace(model: GuidedModel) -> tuple[nn.Module, fx.Graph] | None:
    whole = Pooled(model)
    try:
        return whole, _Tracer().trace(whole)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, NotImplementedError):
        return None  # data-dependent control flow


def _live_nodes(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """Return the nodes whose values change with training: trained layers and what depends on them."""
    live: set[fx.Node] = set()
    for node in graph.nodes:
        own = False
        if node.op == "call_module":
            own = any(p.requires_grad for p in root.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            value: Any = root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            own = isinstance(value, Tensor) and value.requires_grad
        if node.op != "output" and (own or any(i in live for i in node.all_input_nodes)):
            live.add(node)
    return live


def _part(root: nn.Module, graph: fx.Graph, boundary: list[fx.Node], *, frozen: bool) -> nn.Module:
    """Copy the nodes before the boundary (which is the output) or after it (which is the input)."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = next(n for n in graph.nodes if n.op == "output")
    if frozen:
        needed = _ancestors(boundary, stop=set()) | set(boundary)
    else:
        copies.update({node: part.placeholder(node.name) for node in boundary})
        needed = _ancestors([output], stop=set(boundary))
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = part.node_copy(node, lambda n: copies[n])
    wanted = boundary if frozen else output.args[0]
    part.output(tuple(copies[n] for n in wanted))
    return fx.GraphModule(root, part)


def _following(nodes: list[fx.Node]) -> set[fx.Node]:
    """Return ``nodes`` and what is computed from them."""
    found = set(nodes)
    waiting = list(nodes)
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _ancestors(nodes: list[fx.Node], *, stop: set[fx.Node]) -> set[fx.Node]:
    """Return what ``nodes`` are computed from, back to ``stop``."""
    found: set[fx.Node] = set()
    waiting = [i for node in nodes for i in node.all_input_nodes]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            if current not in stop:
                waiting.extend(current.all_input_nodes)
    return found


class Frozen(nn.Module):
    """A frozen part as it runs: a copy with folded normalisations, in the memory layout of its device.

    Parameters
    ----------
    prefix : from :func:`split`; it runs itself if the copy does not agree with it
    example : (n, 3, h, w) normalised images
    channels_last : memory layout of weights and images
    """

    def __init__(self, prefix: nn.Module, example: Tensor, *, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        layers = prefix.layers if isinstance(prefix, Pooled) else ()
        keep = [f"backbone.{layer}" for layer in layers]
        found = prepared(prefix.eval(), cached, example, keep=keep, layout=self._layout)
        self.part = prefix if found is None else found[0]
        self.folded = 0 if found is None else found[1]
        """Number of folded normalisations"""

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the frozen part for normalised images (n, 3, h, w), detached."""
        return cached(self.part, images.contiguous(memory_format=self._layout))


def cached(prefix: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of a prefix for normalised images, detached."""
    with torch.inference_mode():
        tensors: tuple[Tensor, ...] = prefix(images)
    return tensors
