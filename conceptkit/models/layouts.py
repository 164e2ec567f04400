"""Axes of channels, positions and tokens in a layer's output, found by running the network at two image sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conceptkit.errors import InputError, reason_of
from conceptkit.models.pooling import View

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)

_SPATIAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""Modules whose output is always (n, c, h, w)"""

_OTHER_SIZES = ((1 / 2, 3 / 4), (3 / 2, 2.0), (1 / 2, 1 / 2), (2.0, 2.0))
"""Height and width of the second image as shares of the first's: the first pair that the network takes, then the next
pairs for layers that remain unclear"""

_LEAST_SIDE = 32

_MOST_EXTRA = 16
"""Largest number of extra tokens that count as class and register tokens when the network does not name them"""

_EQUAL = 1e-6
"""Largest difference, as a share of the largest value, between outputs that do not depend on the image"""


class Enough(Exception):  # noqa: N818  # not an error: all layers have been seen
    """Raised to stop a forward pass after the deepest layer needed."""


@dataclass(frozen=True)
class Prefix:
    """The class and register tokens that a module states."""

    count: int
    has_class: bool


@dataclass
class _Pass:
    """Outputs of a network's modules in one forward pass of ``n`` images."""

    n: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Dotted name → shape, in the order in which modules finish; only modules that return one tensor"""
    constant: dict[int, int] = field(default_factory=dict)
    """Number of tokens → how many of the first ones do not depend on the image; −1 when other ones do not"""


def stated_prefixes(module: nn.Module) -> list[Prefix]:
    """Return the distinct prefixes that a network or modules inside it state by known attributes.

    timm states ``num_prefix_tokens``. Other transformers have parameters: ``class_token`` (torchvision),
    ``cls_token`` and ``register_tokens`` (DINOv2, Hugging Face), ``distillation_token`` (DeiT), ``class_embedding``
    (CLIP).
    """
    found: list[Prefix] = []
    for owner in module.modules():
        count: Any = getattr(owner, "num_prefix_tokens", None)
        names = [n for n in ("cls_token", "class_token", "class_embedding") if _is_token(getattr(owner, n, None))]
        if count is None:
            count = len(names[:1])
            count += sum(_is_token(getattr(owner, n, None)) for n in ("dist_token", "distillation_token"))
            registers = next((getattr(owner, n, None) for n in ("register_tokens", "reg_token")), None)
            if isinstance(registers, Tensor):
                count += registers.shape[-2] if registers.ndim > 1 else 1
        if int(count) and (stated := Prefix(int(count), bool(names))) not in found:
            found.append(stated)
    return found


def _is_token(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == value.shape[-1] > 0


def measure_views(module: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, View]:
    """Return the view of each layer.

    The network runs on two images of noise and, if it can, on one of another size: axes that change are positions, and
    the one that does not holds the channels. Networks of one input size are read by the module's type, the number of
    patches, or modules of known type with an output of the same shape.

    Tokens before the patches are those that the network states by known attributes; otherwise those in excess of h·w
    of the patch embedding's convolution. Both are checked against the tokens that are the same for two images.

    Parameters
    ----------
    module : in evaluation mode; neither weights nor statistics nor the global random state change
    layers : dotted names
    images : (n, 3, h, w) normalised, or features (n, d); only shape, type and device matter

    Raises
    ------
    InputError
        when a layer takes no part in the pass, or does not return one tensor with a row per image
    """
    first = _run(module, layers, images, 2, images.shape[2:])
    for layer in layers:
        _check_rows(layer, first)
    views: dict[str, View] = {}
    for sizes in (_OTHER_SIZES, _OTHER_SIZES[1:]):  # a 3×3 map may keep one side at 3/4 of the size
        left = [layer for layer in layers if layer not in views or views[layer].unclear]
        several = any(len(first.shapes[layer]) > 2 for layer in left)
        other = _other_size(module, layers, images, sizes) if several else None
        evidence = _Evidence(module, first, other)
        views |= {layer: evidence.view(layer) for layer in left}
    return {layer: views[layer] for layer in layers}


def _check_rows(layer: str, first: _Pass) -> None:
    shape = first.shapes[layer]
    if not shape or shape[0] != first.n:
        got = "×".join(map(str, shape)) or "a single number"
        raise InputError(
            f"layer: {layer} returns {got} for {first.n} images, and its first axis does not count images; name the "
            "block around it."
        )


def _other_size(
    module: nn.Module, layers: Sequence[str], images: Tensor, sizes: Sequence[tuple[float, float]]
) -> _Pass | None:
    height, width = images.shape[-2:]
    for tall, wide in sizes:
        size = (int(height * tall), int(width * wide))
        if min(size) < min(_LEAST_SIDE, height, width):
            continue
        with contextlib.suppress(Exception):  # raised by a network that does not take the size
            return _run(module, layers, images, 1, size)
    return None


def _run(module: nn.Module, layers: Sequence[str], images: Tensor, n: int, size: Sequence[int]) -> _Pass:
    """Run a network on ``n`` images of noise up to the deepest layer."""
    made = _Pass(n)
    noise = torch.randn(n, images.shape[1], *size, generator=torch.Generator().manual_seed(0))
    absent = set(layers)

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(own: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                made.shapes.pop(name, None)
                made.shapes[name] = tuple(output.shape)
                _look_for_tokens(made, output)
            elif name in absent:
                raise InputError(
                    f"layer: {name} returns a {type(output).__name__}, not one tensor; name a layer inside."
                )
            absent.discard(name)
            if not absent:
                raise Enough

        return hook

    with hooked(module, look), torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.suppress(Enough):
        module(noise.to(images))
    for layer in layers:
        if layer in absent:
            raise InputError(f"layer: {layer} takes no part in the network's forward pass.")
    return made


@contextlib.contextmanager
def hooked(
    module: nn.Module, look: Callable[[str], Callable[[nn.Module, Any, Any], Any]], names: Sequence[str] | None = None
) -> Iterator[None]:
    """Hook modules inside a network within the context, all by default; ``look`` makes the hook of a dotted name."""
    chosen = [name for name, _ in module.named_modules() if name] if names is None else names
    handles = [module.get_submodule(name).register_forward_hook(look(name)) for name in chosen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def refused_size(images: Tensor) -> Iterator[None]:
    """Raise :class:`InputError` in place of what a network raises for images (n, 3, h, w) of a size it cannot take."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        size = f"{images.shape[-1]}×{images.shape[-2]}"
        raise InputError(f"model: the network does not take patches of {size} pixels ({reason_of(error)}).") from None


def _look_for_tokens(made: _Pass, x: Tensor) -> None:
    """Count the tokens (n, t, c) that are the same for two images, when a number of tokens first occurs.

    Before the first attention these are the class and register tokens.
    """
    if x.ndim != 3 or len(x) != 2 or not x.is_floating_point() or x.shape[1] in made.constant:
        return
    same = (x[0] - x[1]).abs().amax(1) <= _EQUAL * x.abs().max()
    total = int(same.sum())
    if total < x.shape[1]:  # else it is a parameter, such as the embedding of positions
        made.constant[x.shape[1]] = total if bool(same[:total].all()) else -1


class _Evidence:
    """A network's outputs at one or two image sizes."""

    def __init__(self, module: nn.Module, first: _Pass, other: _Pass | None) -> None:
        self.first, self.other = first, other
        self.stated = stated_prefixes(module)
        self.modules = dict(module.named_modules())
        maps = {n: s for n, s in first.shapes.items() if isinstance(self.modules[n], _SPATIAL) and len(s) == 4}
        self.grids = {s[2] * s[3] for s in maps.values()}
        """Numbers of positions of maps"""
        self.patches = self._patch_embedding(maps)
        """Positions of the patch embedding's output"""

    def _patch_embedding(self, maps: Mapping[str, tuple[int, ...]]) -> int | None:
        """Return the number of positions of the last convolution's output before the first tokens."""
        last = None
        for name, shape in self.first.shapes.items():
            if name in maps and isinstance(self.modules[name], nn.Conv2d):
                last = shape[2] * shape[3]
            elif len(shape) == 3 and shape[0] == self.first.n and 1 not in shape:
                break
        return last

    def view(self, layer: str) -> View:
        shape = self.first.shapes[layer]
        if len(shape) < 3:
            return View()
        channels = self._channels(layer, shape)
        text = "×".join(map(str, shape[1:]))
        if channels is None:
            return View(
                unclear=f"{layer} returns {text}, and neither a second image size nor the module's type shows which "
                "axis holds the channels; use --pool flatten, or name the block around it"
            )
        if len(shape) == 3:
            return self._with_tokens(layer, channels, shape[3 - channels])
        with_prefix = {t for t in shape[1:] if self.first.constant.get(t, 0) > 0} - {shape[channels]}
        if with_prefix:
            return View(
                unclear=f"{layer} returns {text}, where tokens are split into heads or windows and class tokens are "
                "among the patches; use --pool flatten, or name the block around it"
            )
        return View(channels=channels)

    def _channels(self, layer: str, shape: tuple[int, ...]) -> int | None:
        """Return the axis of the channels, or ``None`` if it is unclear."""
        other = None if self.other is None else self.other.shapes.get(layer)
        if other is not None and len(other) == len(shape):
            changed = [axis for axis in range(1, len(shape)) if shape[axis] != other[axis]]
            # Attention weights (n, heads, t, t) are not maps: t counts all positions.
            square = len(changed) > 1 and len({other[axis] for axis in changed}) == 1 < other[changed[0]]
            if changed and not square:
                fixed = [axis for axis in range(1, len(shape)) if axis not in changed]
                wide = [axis for axis in fixed if shape[axis] > 1] or fixed[:1]
                if len(wide) == 1:
                    return wide[0]
        wide = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
        if len(wide) < 2:
            return wide[0] if wide else 1
        typed = self._typed(layer)
        if typed is not None:
            return typed
        if len(shape) == 3 and self.first.constant.get(shape[1], 0) > 0:
            return 2
        if len(shape) == 3 and (counted := [axis for axis in (1, 2) if self._counts_tokens(shape[axis])]):
            return 3 - counted[0] if len(counted) == 1 else None
        return self._like_others(shape)

    def _like_others(self, shape: tuple[int, ...]) -> int | None:
        """Return the axis of the channels in outputs of the same shape of modules of known type, if they agree."""
        typed = {n: axis for n in self.first.shapes if (axis := self._typed(n)) is not None}
        same = {axis for name, axis in typed.items() if self.first.shapes[name] == shape}
        if len(same) == 1:
            return same.pop()
        # Such as a stage that returns (n, c, h, w) and works on (n, h, w, c).
        permuted = [n for n in typed if sorted(self.first.shapes[n][1:]) == sorted(shape[1:])]
        widths = {self.first.shapes[n][typed[n]] for n in permuted if self.first.shapes[n][0] == shape[0]}
        if same or len(widths) != 1 or shape[1:].count(width := widths.pop()) != 1:
            return None
        return shape.index(width, 1)

    def _counts_tokens(self, number: int) -> bool:
        return any(number - count in self.grids for count in (0, *(s.count for s in self.stated)))

    def _typed(self, layer: str) -> int | None:
        """Return the axis of the channels that a torch module has by definition."""
        own, shape = self.modules[layer], self.first.shapes[layer]
        if len(shape) < 3:
            return None
        if isinstance(own, (*_CHANNELS_FIRST, *_SPATIAL)):
            return 1
        if isinstance(own, nn.Linear):
            return len(shape) - 1 if shape[-1] == own.out_features else None
        if isinstance(own, nn.LayerNorm):
            if type(own) is nn.LayerNorm or len(own.normalized_shape) > 1:
                return len(shape) - 1 if len(own.normalized_shape) == 1 else None
            # LayerNorm2d of timm and torchvision normalises the channels of (n, c, h, w).
            fits = [axis for axis in (1, len(shape) - 1) if shape[axis] == own.normalized_shape[0]]
            return fits[0] if len(fits) == 1 else 1 if "2d" in type(own).__name__ else None
        return None

    def _with_tokens(self, layer: str, channels: int, t: int) -> View:
        """Return the view of ``t`` tokens."""
        plain = View(channels=channels)
        constant = self.first.constant.get(t) or None  # 0: all depend on the image, as after attention
        if t in self.grids and not constant:
            return plain
        counts = {t - grid for grid in self.grids}
        if not self.grids:  # patches are cut without a convolution: their number occurs before the class token joins
            counts = {t - s[1] for s in self.first.shapes.values() if len(s) == 3 and s[1] < t}
        for stated in self.stated:
            if constant == stated.count or (constant is None and stated.count in counts):
                return View(channels=channels, prefix=stated.count, has_class=stated.has_class)
        if constant is None and any(grid % t == 0 for grid in self.grids):
            return plain  # fewer positions, merged as by pooling
        extra = constant if constant in counts else None
        if constant is None and not self.stated and self.patches is not None:
            extra = t - self.patches
        if extra is not None and 0 < extra <= _MOST_EXTRA:
            what = "first was treated as the class token"
            if extra > 1:
                what = f"first {extra} were treated as class and register tokens"
            return View(
                channels=channels,
                prefix=extra,
                has_class=extra == 1 or any(stated.has_class for stated in self.stated),
                note=f"{layer} returns {t} tokens for {t - extra} patches; the {what} (not named by the network).",
            )
        if not self.stated and not any(self.first.constant.values()):
            return plain
        return View(
            unclear=f"{layer} returns {t} tokens, which the patches of the patch embedding and the class and register "
            "tokens that the network states do not explain; use --pool flatten, or name another layer"
        )
