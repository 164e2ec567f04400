"""Derivatives of an output by a layer's pooled activations, taken with captum."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from captum.attr import LayerActivation, LayerGradientXActivation, LayerIntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit.attribution.outputs import Output
from conceptkit.errors import InputError
from conceptkit.families import ATTRIBUTIONS, POOLINGS
from conceptkit.models.layouts import hooked, measure_views
from conceptkit.models.pooling import shape_text

Floats = NDArray[np.float64]

INTEGRATION_STEPS = 20
"""Points between the baseline's activations and the image's at which the gradient is taken."""


def gradient(forward: Callable[[Tensor], Tensor], layer: nn.Module, images: Tensor) -> Tensor:
    """∂z/∂A at the image's activations A."""
    found: Tensor = LayerGradientXActivation(forward, layer, multiply_by_inputs=False).attribute(images)
    return found


def integrated_gradient(forward: Callable[[Tensor], Tensor], layer: nn.Module, images: Tensor) -> Tensor:
    """∂z/∂A averaged between the activations of an image of the mean colour and the image's."""
    found: Tensor = LayerIntegratedGradients(forward, layer, multiply_by_inputs=False).attribute(
        images, baselines=torch.zeros_like(images), n_steps=INTEGRATION_STEPS, internal_batch_size=len(images)
    )
    return found


POOLED = ("gap", "max", "flatten", "cls", "tokens")
"""Poolings under which moving all pooled positions by a step moves the pooled activation by that step"""


def check_pool(pool: str) -> str:
    """Return a pooling by which gradients can be pooled; raise :class:`InputError` for another one."""
    if POOLINGS.check("pool", pool) not in POOLED:
        raise InputError(f"pool: gradients can be pooled by {', '.join(POOLED)}, got {pool!r}.")
    return pool


class Layout:
    """The positions of a layer's output A that its pooled activation a (d,) summarises.

    Moving a by δ·v means moving every pooled position by δ·v, which moves mean and maximum over positions by δ·v.

    Parameters
    ----------
    layer : dotted name
    images : (n, 3, h, w) normalised, of the size that the network will be given
    pool : one of :data:`conceptkit.families.POOLINGS`
    """

    def __init__(self, module: nn.Module, layer: str, images: Tensor, *, pool: str = "gap") -> None:
        self.pool = check_pool(pool)
        self.module, self.layer = module, layer
        self.own = module.get_submodule(layer)
        self.view = measure_views(module, [layer], images)[layer]

    def positions(self, x: Tensor) -> Tensor:
        """Return the pooled part of x (n, …) as (n, d, …), a view; with ``flatten`` and ``cls`` (n, …, d)."""
        if self.pool == "flatten":
            return self.view.channels_first(x)
        if x.ndim <= 2:
            return x.view(len(x), -1)
        if self.pool == "cls":
            return x.select(1 if self.view.channels == 2 else 2, 0)
        return self.view.patches(x)

    def gather(self, gradient: Tensor) -> Tensor:
        """Return ∂z/∂a (n, d) from ∂z/∂A (n, …): the *sum* over the positions that were pooled.

        dz/dδ of moving every position p by δ·v is Σ_p ∂z/∂A_p · v: H·W times what the mean of the gradient gives.
        """
        read = self.positions(gradient)
        if self.pool == "flatten":
            return read.flatten(1)
        return read.flatten(2).sum(2) if read.ndim > 2 else read

    def spread(self, step: Tensor, like: Tensor) -> Tensor:
        """Return a move of A, of the shape of ``like`` (n, …), that moves the pooled activation by ``step`` (d,)."""
        moved = torch.zeros_like(like)
        read = self.positions(moved)  # a view
        read += step.view(read.shape[1:]) if self.pool == "flatten" else step.view(-1, *[1] * (read.ndim - 2))
        return moved


@contextlib.contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Set a network to evaluation with frozen weights and BatchNorm statistics, and back afterwards.

    Gradients then begin at the layer.
    """
    modes = {part: part.training for part in module.modules()}
    trained = [p for p in module.parameters() if p.requires_grad]
    module.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for part, mode in modes.items():
            part.training = mode


def check_layer(module: nn.Module, layer: str, output: Output, images: Tensor) -> None:
    """Raise :class:`InputError` when an output cannot be differentiated at a layer, for a few images (n, 3, h, w)."""
    seen: list[Any] = []
    with hooked(module, lambda name: lambda own, inputs, out: seen.append(out), [layer]), torch.no_grad():
        value = output.forward(images)
    if not seen:
        raise InputError(f"layer: {layer} takes no part in the network's forward pass to {output.name}.")
    if len(seen) > 1:
        raise InputError(
            f"layer: {layer} runs {len(seen)} times in one forward pass, so it has several activations; "
            "name a layer that runs once."
        )
    found = seen[0]
    if not isinstance(found, Tensor):
        raise InputError(f"layer: {layer} returns a {type(found).__name__}, not one tensor; name a layer inside.")
    if not found.is_floating_point():
        raise InputError(f"layer: {layer} returns {found.dtype}, which has no gradient.")
    if found.ndim == 2 and any(torch.equal(column, value) for column in found.T):
        raise InputError(f"layer: {layer} is the target {output.name} itself; name a layer before it.")
    with at_rest(module):
        derivatives(module, layer, output, images)


def derivatives(module: nn.Module, layer: str, output: Output, images: Tensor, *, method: str = "gradient") -> Tensor:
    """Return ∂z/∂A, of the shape (n, …) of the layer's output A, of an output z.

    Parameters
    ----------
    module : at rest, see :func:`at_rest`
    layer : dotted name
    images : (n, 3, h, w) normalised, on the network's device
    method : one of :data:`conceptkit.families.ATTRIBUTIONS`

    Raises
    ------
    InputError
        when no gradient of the output reaches the layer
    """
    take = ATTRIBUTIONS.choose("method", method)
    try:
        derivative: Tensor = take(output.forward, module.get_submodule(layer), images)
        return derivative
    except RuntimeError as error:
        if "does not require grad" not in str(error) and "have been used in the graph" not in str(error):
            raise
        if _matters(module, layer, output, images):
            raise InputError(
                f"layer: no gradient of {output.name} reaches {layer}, because a step between them has none (a "
                "rounding, an argmax, detach or no_grad); name a later layer."
            ) from None
        raise InputError(
            f"layer: {output.name} does not depend on {layer}, which is after it or in another branch; name a layer "
            "before the target."
        ) from None


def _matters(module: nn.Module, layer: str, output: Output, images: Tensor) -> bool:
    """Return whether an output changes with a layer's output."""
    with torch.no_grad():
        before = output.forward(images)
        with hooked(module, lambda name: lambda own, inputs, out: out + 1.0, [layer]):
            return not torch.equal(output.forward(images), before)


def pooled_gradients(
    module: nn.Module,
    layer: str,
    outputs: Sequence[Output],
    batches: Iterable[Tensor],
    *,
    pool: str = "gap",
    method: str = "gradient",
    progress: Callable[[int], None] | None = None,
) -> Floats:
    """Return G = ∂z/∂a for every image: the derivative of each output by the pooled activation of a layer.

    The derivative along a direction v (d,) is S = G·v.

    Parameters
    ----------
    layer : dotted name
    batches : images (n, 3, h, w) normalised, on the network's device
    pool : pooling of the probe's activations
    method : one of :data:`conceptkit.families.ATTRIBUTIONS`
    progress : receives the number of images done

    Returns
    -------
    (outputs, images, d)

    Raises
    ------
    InputError
        when an output cannot be differentiated at the layer, or its derivative is not finite or zero at every image
    """
    layout: Layout | None = None
    parts: list[list[Floats]] = [[] for _ in outputs]
    done = 0
    with at_rest(module):
        for images in batches:
            layout = layout or Layout(module, layer, images, pool=pool)
            for part, output in zip(parts, outputs, strict=True):
                found = derivatives(module, layer, output, images, method=method)
                part.append(layout.gather(found).detach().cpu().double().numpy())
            done += len(images)
            if progress is not None:
                progress(done)
    if not done:
        raise InputError("images: at least one is needed to take derivatives, got none.")
    gathered = np.stack([np.concatenate(part) for part in parts])
    for output, values in zip(outputs, gathered, strict=True):
        if not np.isfinite(values).all():
            raise InputError(f"target: the derivative of {output.name} at {layer} is not finite.")
        if not values.any():
            raise InputError(
                f"layer: the derivative of {output.name} is zero at {layer} for all {done} images, as before units "
                "that are never active; name a later layer."
            )
    return gathered


@contextlib.contextmanager
def moved_by(layout: Layout, step: Tensor) -> Iterator[None]:
    """Move the layer's output in forward passes so that its pooled activation moves by ``step`` (d,)."""

    def hook(own: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + layout.spread(step.to(output), output)

    with hooked(layout.module, lambda name: hook, [layout.layer]):
        yield


def position_values(module: nn.Module, layout: Layout, images: Tensor) -> Tensor:
    """Return the output (n, c, h, w) of a layer of maps; raise :class:`InputError` for other layers."""
    with torch.no_grad():
        found = LayerActivation(module, layout.own).attribute(images)
    if not isinstance(found, Tensor) or found.ndim != 4:
        got = shape_text(found) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"layer: a map needs a layer of maps (channels × height × width), {layout.layer} gives {got}.")
    return layout.view.patches(found)
