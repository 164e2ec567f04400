"""The small bundled network of the embedded study: a miniature inception whose blocks have Keras' names."""

from __future__ import annotations

from importlib import resources
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN = (0.5, 0.5, 0.5)
"""Means of red, green and blue, on the scale 0 to 1."""

STD = (0.25, 0.25, 0.25)
"""Standard deviations of red, green and blue, on the scale 0 to 1."""

WEIGHTS_FILE = "mini_inception.safetensors"
"""File of the bundled weights next to this module, in float16."""

TISSUE_FILE = "mini_inception_tissue.safetensors"
"""File of the weights that were trained further on generated tissue, in float16."""

WEIGHTS = {"bundled": WEIGHTS_FILE, "tissue": TISSUE_FILE}
"""Name → file of trained weights"""

LAYER_NAMES = tuple(f"mixed{i}" for i in range(11))
"""The blocks in the order in which they run."""


class ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        # Half the kernel on every side, so that strided convolutions and poolings agree on odd sizes too.
        padding = (size[0] // 2, size[1] // 2)
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n, inputs, h, w) to (n, outputs, h / stride, w / stride), sizes rounded up."""
        return cast(Tensor, self.act(self.bn(self.conv(x))))


class BlockA(nn.Module):
    """Fine scale: 1×1, 5×5, two 3×3, and pooled branches (``mixed0`` to ``mixed2``)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormAct(inputs, 12, 1)
        self.branch5x5 = nn.Sequential(ConvNormAct(inputs, 8, 1), ConvNormAct(8, 12, 5))
        self.branch3x3dbl = nn.Sequential(ConvNormAct(inputs, 8, 1), ConvNormAct(8, 12, 3), ConvNormAct(12, 16, 3))
        self.branch_pool = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), ConvNormAct(inputs, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n, inputs, h, w) to (n, 48, h, w)."""
        return torch.cat([self.branch1x1(x), self.branch5x5(x), self.branch3x3dbl(x), self.branch_pool(x)], 1)


class BlockB(nn.Module):
    """Reduction by two with a 3×3, a doubled 3×3 and a pooled branch (``mixed3``)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNormAct(inputs, 48, 3, stride=2)
        self.branch3x3dbl = nn.Sequential(
            ConvNormAct(inputs, 16, 1), ConvNormAct(16, 20, 3), ConvNormAct(20, 32, 3, stride=2)
        )
        self.branch_pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n, inputs, h, w) to (n, 80 + inputs, h / 2, w / 2)."""
        return torch.cat([self.branch3x3(x), self.branch3x3dbl(x), self.branch_pool(x)], 1)


class BlockC(nn.Module):
    """Middle scale: factorised 5×5 and doubled 5×5 branches, as 1×5 and 5×1 (``mixed4`` to ``mixed7``)."""

    def __init__(self, inputs: int, inner: int = 20) -> None:
        super().__init__()
        self.branch1x1 = ConvNormAct(inputs, 40, 1)
        self.branch5x5 = nn.Sequential(
            ConvNormAct(inputs, inner, 1), ConvNormAct(inner, inner, (1, 5)), ConvNormAct(inner, 40, (5, 1))
        )
        self.branch5x5dbl = nn.Sequential(
            ConvNormAct(inputs, inner, 1),
            ConvNormAct(inner, inner, (5, 1)),
            ConvNormAct(inner, inner, (1, 5)),
            ConvNormAct(inner, inner, (5, 1)),
            ConvNormAct(inner, 32, (1, 5)),
        )
        self.branch_pool = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), ConvNormAct(inputs, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n, inputs, h, w) to (n, 128, h, w)."""
        return torch.cat([self.branch1x1(x), self.branch5x5(x), self.branch5x5dbl(x), self.branch_pool(x)], 1)


class BlockD(nn.Module):
    """Second reduction by two, with a 3×3, a factorised 5×5 and a pooled branch (``mixed8``)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = nn.Sequential(ConvNormAct(inputs, 48, 1), ConvNormAct(48, 80, 3, stride=2))
        self.branch5x5x3 = nn.Sequential(
            ConvNormAct(inputs, 32, 1),
            ConvNormAct(32, 32, (1, 5)),
            ConvNormAct(32, 32, (5, 1)),
            ConvNormAct(32, 48, 3, stride=2),
        )
        self.branch_pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n, inputs, h, w) to (n, 128 + inputs, h / 2, w / 2)."""
        return torch.cat([self.branch3x3(x), self.branch5x5x3(x), self.branch_pool(x)], 1)


class BlockE(nn.Module):
    """Coarse scale: expanded branches of parallel 1×3 and 3×1; each ends in a conv unit (``mixed9``, ``mixed10``)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormAct(inputs, 32, 1)
        self.branch3x3_1 = ConvNormAct(inputs, 96, 1)
        self.branch3x3_2a = ConvNormAct(96, 48, (1, 3))
        self.branch3x3_2b = ConvNormAct(96, 48, (3, 1))
        self.branch3x3dbl_1 = ConvNormAct(inputs, 80, 1)
        self.branch3x3dbl_2 = ConvNormAct(80, 96, 3)
        self.branch3x3dbl_3a = ConvNormAct(96, 48, (1, 3))
        self.branch3x3dbl_3b = ConvNormAct(96, 48, (3, 1))
        self.branch_pool = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), ConvNormAct(inputs, 32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n, inputs, h, w) to (n, 256, h, w)."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(x),
            ],
            1,
        )


class MiniInception(nn.Module):
    """An inception-style network of some 0.6 million weights for RGB patches of 96 × 96, at least 64 × 64 pixels.

    Its blocks follow InceptionV3 (Szegedy et al., 2016) at a tenth of the width; its methods are those of a timm model.

    Parameters
    ----------
    num_classes : outputs of the last layer ``fc``; 0 makes ``fc`` the identity
    """

    num_features: int = 256

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            ConvNormAct(3, 16, 3, stride=2), ConvNormAct(16, 32, 3, stride=2), ConvNormAct(32, 32, 3)
        )
        self.mixed0 = BlockA(32)
        self.mixed1 = BlockA(48)
        self.mixed2 = BlockA(48)
        self.mixed3 = BlockB(48)
        self.mixed4 = BlockC(128)
        self.mixed5 = BlockC(128)
        self.mixed6 = BlockC(128)
        self.mixed7 = BlockC(128)
        self.mixed8 = BlockD(128)
        self.mixed9 = BlockE(256)
        self.mixed10 = BlockE(256)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Map normalised patches ``x`` (n, 3, h, w) to the output of ``mixed10`` (n, 256, h / 16, w / 16)."""
        x = self.stem(x)  # (n, 32, h / 4, w / 4)
        x = self.mixed0(x)  # (n, 48, h / 4, w / 4)
        x = self.mixed1(x)
        x = self.mixed2(x)
        x = self.mixed3(x)  # (n, 128, h / 8, w / 8)
        x = self.mixed4(x)
        x = self.mixed5(x)
        x = self.mixed6(x)
        x = self.mixed7(x)
        x = self.mixed8(x)  # (n, 256, h / 16, w / 16)
        x = self.mixed9(x)
        return cast(Tensor, self.mixed10(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool ``x`` (n, 256, h, w) over space to (n, 256) and, unless ``pre_logits``, apply ``fc``."""
        x = self.global_pool(x)
        return x if pre_logits else cast(Tensor, self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised patches ``x`` (n, 3, h, w) to (n, num_classes), or to (n, 256) without classes."""
        return self.forward_head(self.forward_features(x))


def load_mini_inception(*, pretrained: bool = True, seed: int | None = None, weights: str = "bundled") -> MiniInception:
    """Return the network in training mode without classes; the global random state does not change.

    Parameters
    ----------
    pretrained : read trained weights; otherwise draw random ones
    seed : of the initial weights (He et al., 2015: normal, variance 2 / fan-out); ``None`` for a new one every time
    weights : which trained weights: ``bundled``, from ``examples/pretrain_mini_inception.py`` (drawn shapes and
        textures), or ``tissue``, which ``examples/pretrain_on_pairs.py`` trained further on pairs of generated patches
    """
    with torch.random.fork_rng(devices=[]):  # layers draw their default weights on construction
        model = MiniInception()
    if pretrained:
        with resources.as_file(resources.files("conceptkit.models") / WEIGHTS[weights]) as path:
            state = load_file(path)
        # Counters of batch normalisation are integers and stay so.
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, strict=True)
        return model
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    return model
