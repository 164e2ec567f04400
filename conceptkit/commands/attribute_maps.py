"""The pictures of an attribution: where in a patch a concept is predicted, with its held-out score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from conceptkit.attribution.analysis import Analysis
from conceptkit.attribution.maps import concept_maps, extremes
from conceptkit.errors import InputError
from conceptkit.evaluate.intervals import FEW_GROUPS
from conceptkit.features.activations import read_pixels
from conceptkit.images.decoding import Pixels
from conceptkit.models.backbones import Backbone
from conceptkit.report.concept_maps import Shown, contact_sheet
from conceptkit.report.drawing import to_bytes
from conceptkit.report.judging import mark_of, side_of
from conceptkit.report.wording import interval, metric_name
from conceptkit.tables.patches import PatchTable


@dataclass(frozen=True)
class ImageReader:
    """Images of the table, normalised for the network."""

    data: PatchTable
    backbone: Backbone
    where: Any
    batch_size: int

    def pixels(self, rows: NDArray[np.intp]) -> Pixels:
        """Return the pixels of some rows."""
        return read_pixels(self.data, rows)

    def of(self, rows: NDArray[np.intp]) -> Tensor:
        """Return some rows, normalised (n, 3, h, w)."""
        return self.backbone.preprocessing(self.pixels(rows), self.where)

    def batches(self, rows: NDArray[np.intp]) -> Iterator[Tensor]:
        """Give some rows in batches."""
        for start in range(0, len(rows), self.batch_size):
            yield self.of(rows[start : start + self.batch_size])


class MapDrawer:
    """The pictures of a run, drawn as the work goes and written at its end."""

    def __init__(self, *, folder: Path, maps: int, pool: str, units: Mapping[str, str]) -> None:
        self.names: list[str] = []
        self._folder, self._maps, self._pool, self._units = folder, maps, pool, units
        self._files: list[bytes] = []

    def draw(
        self,
        backbone: Backbone,
        dotted: str,
        layer: str,
        analysis: Analysis,
        X: NDArray[np.float64],
        images: ImageReader,
        groups: NDArray[Any] | None,
    ) -> None:
        """Draw where a concept is predicted in the patches at both ends; nothing for a layer without positions."""
        if not self._maps or self._pool != "gap":
            return
        fitted, target = analysis.fitted, analysis.fitted.target
        side = side_of(analysis.score, analysis.score_low, analysis.score_high, target.chance)
        few = groups is not None and target.n_groups < FEW_GROUPS
        reading = X @ fitted.found.vectors + fitted.intercepts
        for column, name in enumerate(fitted.classes):
            ends = extremes(reading[:, column], None if groups is None else groups[target.rows], self._maps)
            chosen = np.concatenate(ends)
            batches = images.batches(target.rows[chosen])
            vector = fitted.found.vectors[:, [column]], fitted.intercepts[[column]]
            try:
                found = np.concatenate(concept_maps(backbone.module, dotted, batches, *vector))[:, 0]
            except InputError:
                return
            pixels = images.pixels(target.rows[chosen])
            measured = [
                f"{target.y[i]:.4g}".replace("-", "−") if name is None else target.classes[int(target.y[i])]
                for i in chosen
            ]
            shown = [
                Shown(
                    name=images.data.patch_ids[int(target.rows[i])],
                    pixels=pixels[k],
                    map=found[k],
                    read=float(reading[i, column]),
                    measured=measured[k],
                )
                for k, i in enumerate(chosen)
            ]
            drawing = contact_sheet(
                shown[: len(ends[0])],
                shown[len(ends[0]) :],
                concept=target.name if name is None else f"{target.name}: {name}",
                layer=layer,
                unit=self._units.get(target.name, "") if name is None else "log-odds",
                level=float(np.median(reading[:, column])),
                decoded=f"{metric_name(target.metric)} = "
                + interval(analysis.score, analysis.score_low, analysis.score_high),
                established=mark_of(side, None, few=few) == "established",
                number=len(self.names) + 1,
            )
            self.names.append(f"{drawing.name}.png")
            self._files.append(to_bytes(drawing.figure, kind="png", dpi=110))

    def save(self) -> None:
        """Write the pictures into the run folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(self.names, self._files, strict=True):
            (self._folder / name).write_bytes(content)
