"""Embedded studies of synthetic H&E-like tissue, with exact values of every concept.

Generated, not real: they show how the tools work and test them; they do not describe pathology.
"""

from conceptkit.synthetic.slides import SLIDE, with_slides, write_slide_features, write_trident
from conceptkit.synthetic.studies import STUDIES, cache_folder, embedded_study

__all__ = [
    "SLIDE",
    "STUDIES",
    "cache_folder",
    "embedded_study",
    "with_slides",
    "write_slide_features",
    "write_trident",
]
