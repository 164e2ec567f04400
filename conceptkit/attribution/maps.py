"""Maps of a concept in patches, patches with its extreme values, and outputs when activations move along it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conceptkit.attribution.sensitivity import Layout, at_rest, moved_by, position_values
from conceptkit.evaluate.scores import Floats


def concept_maps(
    module: nn.Module, layer: str, batches: Iterable[Tensor], vectors: Floats, intercepts: Floats
) -> list[Floats]:
    """Return the prediction w·A_p + b at every position p of a convolutional layer; its mean is the predicted concept.

    Parameters
    ----------
    layer : dotted name
    batches : images (n, 3, h, w) normalised, on the network's device
    vectors : (d, t), fitted on the layer's average over positions
    intercepts : (t,)

    Returns
    -------
    for each batch (n, t, rows, columns), in the concept's unit

    Raises
    ------
    InputError
        when the layer has no positions
    """
    out = []
    layout: Layout | None = None
    with at_rest(module):
        for images in batches:
            layout = layout or Layout(module, layer, images)
            values = position_values(module, layout, images).cpu().double().numpy()
            out.append(np.einsum("nchw,ct->nthw", values, vectors) + intercepts[:, None, None])
    return out


def extremes(reading: Floats, groups: NDArray[Any] | None, number: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the ``number`` rows of the highest and of the lowest readings (n,), at most one of each group (n,)."""

    def first(order: NDArray[np.intp]) -> NDArray[np.intp]:
        taken: list[int] = []
        seen: set[Any] = set()
        for row in order:
            group = row if groups is None else groups[row]
            if group not in seen:
                seen.add(group)
                taken.append(int(row))
            if len(taken) == number:
                break
        return np.array(taken, dtype=np.intp)

    order = np.argsort(reading, kind="stable")
    return first(order[::-1]), first(order)


def move_along(
    module: nn.Module,
    layout: Layout,
    batches: Sequence[Tensor],
    step: Floats,
    sizes: Sequence[float],
    look: Callable[[Tensor], Mapping[str, Tensor]],
) -> dict[str, tuple[float, ...]]:
    """Move activations along a step and return outputs: a check of the derivative's prediction.

    Parameters
    ----------
    batches : images (n, 3, h, w) normalised, on the network's device
    step : (d,) of the pooled activation
    sizes : multiples of the step
    look : function from images to output's name → (n,)

    Returns
    -------
    output → mean over all images at each size
    """
    found: dict[str, list[float]] = {}
    total = sum(len(images) for images in batches)
    with at_rest(module), torch.no_grad():
        for size in sizes:
            sums: dict[str, float] = {}
            for images in batches:
                with moved_by(layout, torch.from_numpy(step * size)):
                    for name, values in look(images).items():
                        sums[name] = sums.get(name, 0.0) + float(values.double().sum())
            for name, value in sums.items():
                found.setdefault(name, []).append(value / total)
    return {name: tuple(values) for name, values in found.items()}
