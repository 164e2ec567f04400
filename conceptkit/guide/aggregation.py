"""Weighting by Jacobian descent: the tasks' gradients into what they share are aggregated by torchjd (an extra)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from conceptkit.errors import InputError

AGGREGATORS: Mapping[str, str] = {
    "jd-upgrad": "UPGrad",
    "jd-mgda": "MGDA",
    "jd-pcgrad": "PCGrad",
    "jd-imtl": "IMTLG",
    "jd-aligned": "AlignedMTL",
    "jd-config": "ConFIG",
}
"""Weighting strategy → class of ``torchjd.aggregation``"""


def aggregator(strategy: str) -> Any:
    """Return torchjd's aggregator for a strategy; :class:`InputError` when it or what it needs is not installed."""
    try:
        import torchjd.aggregation

        return getattr(torchjd.aggregation, AGGREGATORS[strategy])()
    except ImportError:
        raise InputError(
            f"weighting: {strategy} needs torchjd, or a part of it is not installed; pip install 'conceptkit[jd]'."
        ) from None


def backward(
    shared: Sequence[Tensor],
    alone: Iterable[Tensor],
    features: Sequence[Tensor],
    parameters: Sequence[Tensor],
    combine: Any,
) -> None:
    """Add gradients to ``.grad``: of each loss to its own head, and aggregated to the shared parameters.

    Parameters
    ----------
    shared : scalar losses that reach the shared parameters, one row of the Jacobian each
    alone : scalar losses that reach heads only
    features : what the heads read
    parameters : that are shared
    combine : from :func:`aggregator`
    """
    from torchjd.autojac import jac_to_grad, mtl_backward

    for loss in alone:
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch's own
    if not shared:  # no row of the batch has a label that reaches what is shared
        return
    mtl_backward(list(shared), features=list(features), retain_graph=False)
    jac_to_grad([p for p in parameters if getattr(p, "jac", None) is not None], combine)
