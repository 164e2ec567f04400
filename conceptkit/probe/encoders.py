"""Paired differences between encoders that were probed on the same rows and folds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from conceptkit.errors import InputError
from conceptkit.evaluate.many_tests import adjust_for_many
from conceptkit.evaluate.paired import refit_difference
from conceptkit.probe.rows import Layer, PlacedRefits
from conceptkit.probe.targets import Target
from conceptkit.records.probe import EncoderDifference


def layer_pairs(layers: Sequence[Layer], against: str | None = None) -> list[tuple[Layer, Layer]]:
    """Return the layers of each two encoders that are compared: those of one name, or else in their order.

    Parameters
    ----------
    layers : of all encoders
    against : name of the encoder that the others are compared with; ``None`` for every two

    Raises
    ------
    InputError
        when two encoders share no layer's name and have different numbers of layers
    """
    by: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.encoder is not None:
            by.setdefault(layer.encoder, []).append(layer)
    two = itertools.combinations(by, 2) if against is None else ((name, against) for name in by if name != against)
    return [pair for one, other in two for pair in _paired(by[one], by[other])]


def _paired(ours: Sequence[Layer], theirs: Sequence[Layer]) -> Iterator[tuple[Layer, Layer]]:
    named = {layer.name: layer for layer in theirs}
    if any(layer.name in named for layer in ours):
        yield from ((layer, named[layer.name]) for layer in ours if layer.name in named)
        return
    if len(ours) != len(theirs):
        raise InputError(
            f"layer: {ours[0].encoder} has {len(ours)} layers and {theirs[0].encoder} {len(theirs)}, with no name in "
            "common; give each encoder as many, as ENCODER=LAYER."
        )
    yield from zip(ours, theirs, strict=True)


def encoder_differences(
    pairs: Sequence[tuple[Layer, Layer]], targets: Sequence[Target], refits: PlacedRefits
) -> tuple[EncoderDifference, ...]:
    """Return the difference of each pair's scores of each concept, with q over all of them.

    Parameters
    ----------
    pairs : by :func:`layer_pairs`
    refits : as :func:`conceptkit.probe.rows.probe_rows` fills them; none of the protocol of the paper
    """
    found = []
    for (one, other), target in itertools.product(pairs, targets):
        places = [(layer.place, target.name) for layer in (one, other)]
        if any(place not in refits for place in places):
            continue
        paired = refit_difference(*(refits[place] for place in places))
        found.append(
            EncoderDifference(
                encoder=str(one.encoder),
                against=str(other.encoder),
                layer=one.name,
                against_layer=other.name,
                concept=target.name,
                metric=target.metric,
                mean=paired.mean,
                low=paired.low,
                high=paired.high,
                p=paired.p if math.isfinite(paired.p) else None,
                n_groups=target.n_groups,
                interval_note=paired.note,
            )
        )
    q = adjust_for_many([one.p for one in found])
    return tuple(
        dataclasses.replace(one, q=value if math.isfinite(value) else None) for one, value in zip(found, q, strict=True)
    )
