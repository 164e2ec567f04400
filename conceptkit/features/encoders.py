"""Encoders that are probed together: opened by name, and read on the same rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conceptkit.errors import InputError, check_choice
from conceptkit.features.sources import Features, open_features
from conceptkit.tables.patches import PatchTable
from conceptkit.tables.study import Study


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Features that are compared with others of the same patches."""

    name: str | None
    """``None`` for features that are probed without a name"""
    features: Features

    def read(self, rows: NDArray[np.intp], **how: Any) -> dict[str, Any]:
        """Return layer → (len(rows), d), see :meth:`.sources.Features.read`; an error names the encoder."""
        try:
            return self.features.read(rows, **how)
        except InputError as error:
            raise _of(self.name, error) from None


def _of(name: str | None, error: InputError) -> InputError:
    argument, _, rest = str(error).partition(": ")
    return error if name is None else InputError(f"{argument}: of encoder {name}, {rest}")


def is_several(features: Any, model: Any) -> bool:
    """Return whether encoders were given by name."""
    return isinstance(features, Mapping) or isinstance(model, Mapping)


def open_encoders(
    table: PatchTable,
    study: Study,
    *,
    features: Any,
    model: Any,
    weights: str | None,
    layers: Sequence[str],
    against: str | None = None,
    **how: Any,
) -> list[Encoder]:
    """Open the features of one encoder, or those of several by name, files before networks.

    Parameters
    ----------
    study : names the network, its weights and layers, where none is given by name
    features, model : as :mod:`conceptkit.options.encoders` returns them
    layers : names; ``ENCODER=LAYER`` is a layer of one encoder. Where networks are compared with files, a layer without
        an encoder is one of the networks
    against : name of the encoder that the others are compared with
    how : further arguments of :func:`.sources.open_features`

    Raises
    ------
    InputError
        when an encoder has no name or is named twice, a difference is requested of one encoder, or one cannot be opened
    """
    files, networks = _named(features, model)
    names = [*files, *networks]
    if against is not None:
        if len(names) < 2:
            raise InputError(
                f"against: a difference needs two encoders, as --features NAME=PATH,NAME=PATH or --model A,B, got "
                f"{names[0] if names else 'one without a name'}."
            )
        check_choice("against", against, names)
    if not names:
        return [Encoder(name=None, features=open_features(table, study, layers=layers, features=features, **how))]
    if len(networks) > 1 and weights is not None and Path(weights).is_file():
        raise InputError(
            f"weights: {weights} cannot be the weights of {len(networks)} networks; use checkpoint folders."
        )

    def opened(name: str) -> Encoder:
        own = _layers_of(name, layers, names, shared=bool(networks) == (name in networks))
        try:
            of = dataclasses.replace(study, model=networks[name], weights=weights) if name in networks else study
            return Encoder(name=name, features=open_features(table, of, layers=own, features=files.get(name), **how))
        except InputError as error:
            raise _of(name, error) from None

    return [opened(name) for name in names]


def _named(features: Any, model: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Return name → file and name → network of named encoders."""
    if not is_several(features, model):
        return {}, {}
    if features is not None and not isinstance(features, Mapping):
        raise InputError(f"features: to be compared with networks it needs a name, as NAME={features}.")
    files = dict(features or {})
    if model is None or isinstance(model, Mapping):
        networks = dict(model or {})
    else:
        networks = {model if isinstance(model, str) else type(model).__name__: model}
    if both := [name for name in networks if name in files]:
        raise InputError(f"model: encoder {both[0]} is named twice, in features too; give each encoder its own name.")
    return files, networks


def _layers_of(name: str, layers: Sequence[str], names: Collection[str], *, shared: bool) -> list[str] | None:
    """Return the layers of one encoder; ``None`` where none was given. ``shared``: those without an encoder too."""
    own = []
    for layer in layers:
        encoder, equals, rest = layer.partition("=")
        if equals:
            check_choice("layer", encoder, names)
        if encoder == name if equals else shared:
            own.append(rest if equals else layer)
    return own or None
