"""Every family of named members: where its built-in members are, and what a member is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conceptkit.registry import Registry


def _in(module: str, *names: str, **objects: str) -> dict[str, str]:
    """Return name → place of members in one module; ``objects`` are those whose object has another name."""
    places = {name: name.replace("-", "_") for name in names} | objects
    return {name: f"conceptkit.{module}:{place}" for name, place in places.items()}


ADAPTERS: Registry[Any] = Registry(
    "adapters",
    {
        **_in("pathology.adapters.image_folder", classes="image_folder"),
        **_in("pathology.adapters.camelyon", "camelyon"),
        **_in("pathology.adapters.pannuke", "pannuke"),
        **_in("pathology.adapters.paper_hdf5", paper="paper_table"),
        **_in("pathology.adapters.coords", coords="coords_table"),
        **_in("pathology.adapters.qupath", qupath="qupath_objects"),
    },
)
"""Functions from a published layout of data to a patch table, see :mod:`conceptkit.pathology.adapters`; each is a
subcommand of ``adapt``"""

ARMS: Registry[Any] = Registry(
    "arms",
    _in("guide.arms", "baseline", "balanced", "augmented", "guided", random="random_target", shuffled="shuffled")
    | _in("guide.arms", "logistic")
    | _in("guide.bottleneck_arms", "through", **{"through-balanced": "through_balanced"})
    | _in("guide.bottleneck_arms", "components", "hybrid")
    | _in("guide.bottleneck_arms", **{f"through-{of}": f"through_{of}" for of in ("random", "shuffled")}),
    member="conceptkit.guide.arms:ArmKind",
)
"""Networks that ``guide`` trains next to each other, see :func:`conceptkit.guide.arms.as_arm`; the first ones are
references"""

ATTRIBUTIONS: Registry[Any] = Registry(
    "attributions", _in("attribution.sensitivity", "gradient", integrated="integrated_gradient")
)
"""Functions from logit (n,), layer and images to derivatives of the shape of the layer's output"""

DISCOURAGING: Registry[Any] = Registry(
    "discouraging",
    _in("guide.discouraging", "confusion", "ridge", "reversal", "coral", "mmd", "leace"),
    member="conceptkit.guide.discouraging:Method",
)
"""Methods of discouraging a concept, see :func:`conceptkit.guide.discouraging.as_method`"""

DISTURBANCES: Registry[Any] = Registry(
    "disturbances",
    {
        **_in("pathology.disturbances", "rotation", "scale", "jpeg", blur="defocus"),
        **_in("pathology.disturbances", "hematoxylin", "eosin"),
    },
    member="conceptkit.pathology.disturbances:Disturbance",
)
"""Ways to disturb a patch by a known amount, applied in this order"""

ENCODERS: Registry[Any] = Registry(
    "encoders",
    {
        **_in("models.presets", "uni", "uni2-h", "conch", **{"conch-v1.5": "conch_v1_5"}),
        **_in("models.presets", "virchow", "virchow2", "h-optimus-0", "h-optimus-1", "h0-mini", "prov-gigapath"),
        **_in("models.presets", "phikon", "phikon-v2", "hibou-l", "midnight"),
    },
    member="conceptkit.models.presets:Preset",
)
"""Encoders that ``--model`` opens by name, see :class:`conceptkit.models.presets.Preset`"""

MEASURES: Registry[Any] = Registry(
    "measures",
    {
        **_in(
            "pathology.measures",
            *("count", "area_px", "area_um2", "contrast", "correlation", "homogeneity", "asm", "density_mm2"),
            *("nuclear_share", "area_sd_px", "area_sd_um2", "eccentricity", "solidity"),
            *("hematoxylin", "hematoxylin_sd"),
            *("nuclei_contrast", "nuclei_correlation", "nuclei_homogeneity", "nuclei_asm"),
            *("neighbour_px", "neighbour_um", "neighbour_sd_px"),
            *("stain_h_r", "stain_h_g", "stain_h_b", "stain_e_r", "stain_e_g", "stain_e_b"),
            *("lab_l", "lab_a", "lab_b", "lab_l_sd", "lab_a_sd", "lab_b_sd"),
            *("ink", "blur", "jpeg_blocks", "jpeg_quality"),
        ),
        **_in("pathology.quality", "background", "blur_share", "folds"),
        **_in(
            "pathology.typed_measures",
            *("neoplastic_count", "neoplastic_density_mm2", "neoplastic_share", "neoplastic_area_um2"),
            *("inflammatory_count", "inflammatory_density_mm2", "inflammatory_share", "inflammatory_area_um2"),
            *("connective_count", "connective_density_mm2", "connective_share", "connective_area_um2"),
            *("dead_count", "dead_density_mm2", "dead_share", "dead_area_um2"),
            *("epithelial_count", "epithelial_density_mm2", "epithelial_share", "epithelial_area_um2"),
            *("infiltration_30um", "inflammatory_distance_um"),
        ),
    },
    member="conceptkit.pathology.batch:PatchMeasure",
)
"""Concepts that are computed from patches, see :func:`conceptkit.pathology.batch.as_measure`"""

NUCLEI: Registry[Any] = Registry(
    "nuclei",
    {
        **_in("pathology.hematoxylin", hematoxylin="open_hematoxylin"),
        **_in("pathology.compact", compact="open_compact"),
        **_in("pathology.maskrcnn", maskrcnn="open_maskrcnn"),
    },
)
"""Functions from a file of weights (or ``None``) and a device to a segmenter: a function from an image (h, w, 3) and
its microns per pixel (or ``None``) to labels (h, w), 0 where there is no nucleus"""

OPTIMIZERS: Registry[Any] = Registry("optimizers", _in("guide.optimizers", "adam", "sgd"))
"""Functions from groups of parameters, the training options and ``fused`` (whether every parameter has a gradient in
every step) to an optimizer"""

POOLINGS: Registry[Any] = Registry(
    "poolings",
    _in(
        "models.pooling",
        **{"gap": "mean", "max": "maximum", "flatten": "flatten"},
        **{"cls": "class_token", "tokens": "token_mean", "cls-tokens": "class_and_tokens"},
    ),
)
"""Functions from a layer's output and its :class:`~conceptkit.models.pooling.View` to one row per image, (n, d)"""

PROBES: Registry[Any] = Registry(
    "probes", _in("probe.remnants", linear="fit_linear", mlp="fit_mlp", kernel="fit_kernel")
)
"""Functions from training activations (n, d), values or class numbers (n,), groups (n,) or ``None`` and whether the
values are classes to an object with ``predict``; ``audit`` fits each of them"""

RECIPES: Registry[Any] = Registry("recipes", _in("guide.recipes", "ours", "paper", "paper-code"))
"""Functions from the names of the discouraged concepts to training options by name"""

REMEDIES: Registry[Any] = Registry(
    "remedies",
    {
        **_in("probe.remedies", "nothing", "leace", "centring", "qleace", "combat"),
        **_in("features.pixel_remedies", "reinhard", "macenko", "restained"),
    },
    member="conceptkit.probe.remedies:Remedy",
)
"""Changes of features or pixels against the center, see :func:`conceptkit.probe.remedies.as_remedy`"""

SCHEDULES: Registry[Any] = Registry("schedules", _in("guide.objective", "constant", "ramp", "switched"))
"""Functions from progress p (0 at the start, 1 when the schedule has ended) to the strength λ of the discouragement"""

STAIN: Registry[Any] = Registry(
    "stain", _in("pathology.stain", reinhard="Reinhard", macenko="Macenko"), member="builtins:type"
)
"""Classes with the methods of :class:`conceptkit.pathology.stain.StainMethod`"""

WEIGHTINGS: Registry[Any] = Registry(
    "weightings",
    {
        **_in("guide.weighting", "vanilla", "fixed", "uncertainty", "uncertainty-bounded", "uncertainty-full", "dwa"),
        **_in(
            "guide.weighting",
            **dict.fromkeys(("jd-upgrad", "jd-mgda", "jd-pcgrad", "jd-imtl", "jd-aligned", "jd-config"), "vanilla"),
        ),
    },
)
"""Functions from a task and the number after the colon (or ``None``) to the task's term in the total of the losses; the
gradients of ``jd-…`` are aggregated as well"""

FAMILIES: Mapping[str, Registry[Any]] = {
    registry.family: registry
    for registry in (
        *(MEASURES, NUCLEI, STAIN, DISTURBANCES, ADAPTERS, ENCODERS, POOLINGS, ATTRIBUTIONS, PROBES),
        *(ARMS, WEIGHTINGS, DISCOURAGING, SCHEDULES, OPTIMIZERS, RECIPES, REMEDIES),
    )
}
"""Name → family"""
