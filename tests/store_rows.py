"""Rows and values of a small activation store."""

from __future__ import annotations

import numpy as np

from conceptkit.features.store_files import Rows
from conceptkit.features.stores import ActivationStore

N, WIDTH = 12, 5

PROVENANCE = {"architecture": "net", "layer": "mixed10", "pool": "gap", "preprocessing": {"mean": [0.5], "std": [1.0]}}

IDS = [f"p{i:02d}" for i in range(N)]


def digests(changed=(), n=N):
    return [f"{i + (1000 if i in changed else 0):032x}" for i in range(n)]


VALUES = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)

LAYER = "mixed10"


def rows_of(ids=IDS, stamps=None, contents=None):
    """Rows of which stamps and contents can be changed apart from each other."""
    stamps = digests(n=len(ids)) if stamps is None else stamps
    contents = stamps if contents is None else contents
    return Rows(patch_ids=ids, stamps=stamps, digest=lambda row: contents[row])


def opened(path, provenance=PROVENANCE, rows=None, **options):
    rows = rows_of() if rows is None else rows
    return ActivationStore(path, provenance=provenance, rows=rows, widths=lambda: {LAYER: WIDTH}, **options)


def write(store, rows, values, contents=None):
    rows = np.asarray(rows)
    contents = digests(n=1000) if contents is None else contents
    store.write(rows, {LAYER: values}, [contents[row] for row in rows])
