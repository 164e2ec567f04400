"""Encoders of computational pathology by name: where they are, and how their authors use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of a network that does not state its own."""

_HALF, _CLIP = (0.5, 0.5, 0.5), ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_GATED, _APACHE, _OWKIN = "CC-BY-NC-ND-4.0", "Apache-2.0", "Owkin non-commercial"
_SWIGLU: Mapping[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One encoder as its authors use it; numbers are those of its model card."""

    repository: str
    """OWNER/NAME on the Hugging Face Hub"""
    width: int
    """Features per patch"""
    licence: str
    source: str
    """Publication"""
    mpp: float = 0.5
    """Microns per pixel of the patches"""
    size: int = 224
    """Side in pixels that patches are resized to"""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    layer: str = "norm"
    """Layer that the features are pooled from"""
    pool: str = "cls"
    """Member of :data:`conceptkit.families.POOLINGS`"""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of timm's constructor, besides those that the hub states; layers of timm by name"""
    remark: str = ""
    """How the features differ from those of the authors' code"""
    package: str = ""
    """Package that opens it, of a network that timm cannot open; its features are read with ``--features``"""


uni = Preset(
    repository="MahmoodLab/UNI",
    width=1024,
    licence=_GATED,
    source="Chen et al., Nature Medicine 2024",
    arguments={"init_values": 1e-5, "dynamic_img_size": True},
)
uni2_h = Preset(
    repository="MahmoodLab/UNI2-h",
    width=1536,
    licence=_GATED,
    source="Chen et al., Nature Medicine 2024 (second release, 2025)",
    arguments={
        **{"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536},
        **{"mlp_ratio": 2.66667 * 2, "num_classes": 0, "no_embed_class": True, "reg_tokens": 8},
        **{"dynamic_img_size": True, **_SWIGLU},
    },
)
conch = Preset(
    repository="MahmoodLab/CONCH",
    width=512,
    licence=_GATED,
    source="Lu et al., Nature Medicine 2024",
    size=448,
    mean=_CLIP[0],
    std=_CLIP[1],
    pool="",
    package="conch",
)
conch_v1_5 = Preset(
    repository="MahmoodLab/conchv1_5",
    width=768,
    licence=_GATED,
    source="Ding et al., Nature Medicine 2025",
    size=448,
    pool="",
    package="transformers",
)
virchow = Preset(
    repository="paige-ai/Virchow",
    width=2560,
    licence=_APACHE,
    source="Vorontsov et al., Nature Medicine 2024",
    pool="cls-tokens",
    arguments=_SWIGLU,
)
virchow2 = Preset(
    repository="paige-ai/Virchow2",
    width=2560,
    licence=_GATED,
    source="Zimmermann et al., arXiv:2408.00738",
    pool="cls-tokens",
    arguments=_SWIGLU,
)
h_optimus_0 = Preset(
    repository="bioptimus/H-optimus-0",
    width=1536,
    licence=_APACHE,
    source="Saillard et al., 2024",
    mean=_OPTIMUS[0],
    std=_OPTIMUS[1],
    arguments={"init_values": 1e-5, "dynamic_img_size": False},
)
h_optimus_1 = Preset(
    repository="bioptimus/H-optimus-1",
    width=1536,
    licence=_GATED,
    source="Bioptimus, 2025",
    mean=_OPTIMUS[0],
    std=_OPTIMUS[1],
    arguments={"init_values": 1e-5, "dynamic_img_size": False},
)
h0_mini = Preset(
    repository="bioptimus/H0-mini",
    width=768,
    licence=_GATED,
    source="Filiot et al., arXiv:2501.16239",
    mean=_OPTIMUS[0],
    std=_OPTIMUS[1],
    arguments=_SWIGLU,
)
prov_gigapath = Preset(
    repository="prov-gigapath/prov-gigapath",
    width=1536,
    licence=_APACHE,
    source="Xu et al., Nature 2024",
    remark="patches are resized to 224 pixels; its authors resize to 256 and use the middle 224",
)
phikon = Preset(
    repository="owkin/phikon",
    width=768,
    licence=_OWKIN,
    source="Filiot et al., medRxiv 2023",
    package="transformers",
)
phikon_v2 = Preset(
    repository="owkin/phikon-v2",
    width=1024,
    licence=_OWKIN,
    source="Filiot et al., arXiv:2409.09173",
    package="transformers",
)
hibou_l = Preset(
    repository="histai/hibou-L",
    width=1024,
    licence=_APACHE,
    source="Nechaev et al., arXiv:2406.05074",
    mean=_HIBOU[0],
    std=_HIBOU[1],
    package="transformers",
)
midnight = Preset(
    repository="kaiko-ai/midnight",
    width=3072,
    licence="MIT",
    source="Karasikov et al., arXiv:2504.05186",
    mean=_HALF,
    std=_HALF,
    pool="cls-tokens",
    package="transformers",
)
