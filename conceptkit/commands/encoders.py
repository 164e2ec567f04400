"""Encoders by name: what ``conceptkit encoders`` lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptkit.families import ENCODERS
from conceptkit.models.presets import Preset
from conceptkit.options.base import Notify, Progress
from conceptkit.options.encoders import Encoders as Options


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The known encoders by name."""

    presets: Mapping[str, Preset]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        rows = [{"name": name, **dataclasses.asdict(preset)} for name, preset in self.presets.items()]
        return {"schema": "conceptkit/encoders/1", "encoders": rows}


def list_encoders(options: Options, *, progress: Progress | None = None, notify: Notify | None = None) -> Encoders:
    """Return the encoders, those of other packages included."""
    return Encoders(presets=dict(ENCODERS))
