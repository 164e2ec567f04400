"""Weighting by Jacobian descent: torchjd (an extra) aggregates the tasks' gradients into shared layers."""

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
    """Return torchjd's aggregator for a strategy; :class:`InputError` when it is not installed."""
    try:
        import torchjd.aggregation

        return getattr(torchjd.aggregation, AGGREGATORS[strategy])()
    except ImportError:
        raise InputError(
            f"weighting: {strategy} needs torchjd with its extras; pip install 'conceptkit[jd]'."
        ) from None


def backward(
    shared: Sequence[Tensor],
    alone: Iterable[Tensor],
    features: Sequence[Tensor],
    parameters: Sequence[Tensor],
    combine: Any,
) -> None:
    """Add gradients to ``.grad``: of each loss to its own head, and aggregated ones to the shared parameters.

    Parameters
    ----------
    shared : scalar losses that reach the shared parameters, one row of the Jacobian each
    alone : scalar losses that reach only heads
    features : inputs of the heads
    combine : from :func:`aggregator`
    """
    from torchjd.autojac import jac_to_grad, mtl_backward

    for loss in alone:
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch's own
    if not shared:  # no row of the batch has such a label
        return
    mtl_backward(list(shared), features=list(features), retain_graph=False)
    jac_to_grad([p for p in parameters if getattr(p, "jac", None) is not None], combine)
