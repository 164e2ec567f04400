"""One row per nucleus: place, size, shape, stain, texture, neighbours, type; kept in parts, joined to one Parquet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree
from skimage.measure import approximate_polygon, find_contours

from conceptkit.errors import InputError
from conceptkit.files.atomic import replacing
from conceptkit.pathology import colour
from conceptkit.pathology.morphology import Nuclei, find_nuclei
from conceptkit.pathology.nuclei import Found
from conceptkit.pathology.texture import luma

_TEXT = ("slide", "patch")
_NUMBERS = (
    *("x", "y", "x_um", "y_um", "area_px", "area_um2", "major_um", "minor_um", "eccentricity", "solidity"),
    *("circularity", "hematoxylin", "hematoxylin_sd", "contrast", "homogeneity", "neighbour_um", "neighbours3_um"),
)
COLUMNS: dict[str, pa.DataType] = {
    **dict.fromkeys(_TEXT, pa.string()),
    **dict.fromkeys(_NUMBERS, pa.float64()),
    "type": pa.string(),
    "confidence": pa.float64(),
    "touches_edge": pa.bool_(),
}
"""Column → type, in their order; what is unknown is null."""

CONTOUR = ("contour", pa.list_(pa.list_(pa.float64(), 2)))
"""Column of the outlines: (x, y) of each corner in level-0 pixels, anticlockwise as seen, without the first again."""

_DIRECTIONS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, np.sqrt(0.5)), (1, -1, np.sqrt(0.5)))
"""Steps of rows and columns, and the distance between lines of this direction."""


@dataclass(frozen=True)
class Place:
    """Where the pixels of a view lie on their slide."""

    slide: str
    x: float = 0.0
    """Level-0 pixel of the view's left edge."""
    y: float = 0.0
    scale: float = 1.0
    """Level-0 pixels per pixel of the view."""


@dataclass(frozen=True)
class Kept:
    """What is kept of each nucleus."""

    folder: Path
    """Of the parts."""
    contours: bool = False

    def file(self, key: str) -> Path:
        """Return the file of a part."""
        return self.folder / f"{key}.{'contours' if self.contours else 'nuclei'}.parquet"

    def write(self, key: str, tables: Iterable[pa.Table]) -> None:
        """Write the part of a job."""
        with replacing(self.file(key)) as temporary:
            _write(tables, temporary, self.contours)


@dataclass(frozen=True)
class NucleusTable:
    """The table of nuclei that a run writes."""

    out: Path
    contours: bool = False

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".parquet":
            raise InputError(f"nuclei-out: must end in .parquet, got {self.out}.")

    def kept(self, parts: Path | None, has_nuclei: bool, source: Path) -> Kept:
        """Return where the parts are kept; raise :class:`InputError` where ``source`` has no nuclei."""
        if not has_nuclei:
            raise InputError(f"nuclei-out: needs nuclei; set --nuclei, or give masks in {source}.")
        if parts is None:
            raise InputError("nuclei-out: needs a folder of parts, got none.")
        return Kept(parts, self.contours)

    def join(self, kept: Kept | None, keys: Iterable[str], patches: Iterable[str] | None = None) -> int:
        """Join the parts of jobs to the table, one part in memory at a time; return the number of rows.

        Where ``patches`` are given, nuclei of others are left out, as are those that lie in no patch.
        """
        if kept is None:
            raise InputError("nuclei-out: needs the parts of a run, got none.")
        chosen = None if patches is None else pa.array(patches, type=pa.string())
        with replacing(self.out) as temporary:
            tables = (part for key in keys for part in _batches(kept.file(key)))
            if chosen is not None:
                tables = (part.filter(pc.is_in(part["patch"], value_set=chosen)) for part in tables)
            return _write(tables, temporary, self.contours)


def nucleus_rows(
    image: NDArray[np.uint8],
    found: Found,
    mpp: float,
    place: Place,
    patches: Any,
    *,
    keep: Any = None,
    contours: bool = False,
) -> pa.Table:
    """Return a row per nucleus of one view (h, w, 3).

    Parameters
    ----------
    found : labels (h, w), and where known confidence and type of each label
    mpp : microns per pixel of the view; NaN where unknown
    patches : function from centres x and y (m,) in pixels of the view to the patch of each; ``None`` where it lies in
        none
    keep : function from centres to whether each has a row; neighbours count either way
    """
    nuclei = find_nuclei(found.labels[None])
    labels = np.zeros(len(nuclei.area), dtype=np.int64)
    labels[nuclei.owner] = found.labels.reshape(-1)[nuclei.pixels]
    centre_x, centre_y = nuclei.x + 0.5, nuclei.y + 0.5
    chosen = np.ones(len(labels), dtype=np.bool_) if keep is None else keep(centre_x, centre_y)
    mean, sd = nuclei.inside(colour.hematoxylin(image)[None])
    contrast, homogeneity = _texture(luma(image[None])[0], found.labels, labels)
    axes = 4 * np.sqrt(np.clip(_eigenvalues(nuclei), 0, None))
    nearest, three = _neighbours(centre_x, centre_y)
    x, y = place.x + place.scale * centre_x, place.y + place.scale * centre_y
    columns: dict[str, Any] = {
        "slide": np.full(len(labels), place.slide, dtype=object),
        "patch": np.asarray(patches(centre_x, centre_y), dtype=object),
        **{"x": x, "y": y, "x_um": x * mpp / place.scale, "y_um": y * mpp / place.scale},
        **{"area_px": nuclei.area, "area_um2": nuclei.area * mpp**2},
        **{"major_um": axes[1] * mpp, "minor_um": axes[0] * mpp},
        **{"eccentricity": nuclei.eccentricity(), "solidity": nuclei.solidity()},
        "circularity": np.minimum(1, 4 * np.pi * nuclei.area / perimeters(found.labels, labels) ** 2),
        **{"hematoxylin": mean, "hematoxylin_sd": sd, "contrast": contrast, "homogeneity": homogeneity},
        **{"neighbour_um": nearest * mpp, "neighbours3_um": three * mpp},
        "type": [found.types.get(int(k)) for k in labels],
        "confidence": np.array([found.confidence.get(int(k), np.nan) for k in labels]),
        "touches_edge": ~nuclei.whole,
    }
    arrays = [
        pa.array(np.asarray(columns[name])[chosen], type=kind, from_pandas=True) for name, kind in COLUMNS.items()
    ]
    table = pa.table(arrays, schema=pa.schema(list(COLUMNS.items())))
    if contours:
        outlines = outlines_of(found.labels, labels[chosen], place)
        table = table.append_column(CONTOUR[0], pa.array(outlines, type=CONTOUR[1]))
    return table


def _batches(file: Path) -> Iterable[pa.Table]:
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches():
            yield pa.Table.from_batches([batch])


def _write(tables: Iterable[pa.Table], path: Path, contours: bool) -> int:
    fields = [*COLUMNS.items(), *([CONTOUR] if contours else [])]
    rows, waiting, size = 0, [], 0
    with pq.ParquetWriter(path, pa.schema(fields)) as writer:
        for table in tables:
            waiting.append(table)
            size += table.num_rows
            if size >= 20_000:  # row groups of a few tiles each would be slow to read
                writer.write_table(pa.concat_tables(waiting))
                rows, waiting, size = rows + size, [], 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return rows + size


def perimeters(labels: NDArray[np.integer], which: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the perimeters of labels (h, w) in pixels by Crofton's formula in four directions, (m,).

    π/8 of the sum, over directions, of the crossings of the outline by lines of this direction times their distance.
    """
    padded = np.pad(labels, 1)
    top = int(labels.max()) + 1 if labels.size else 1
    total = np.zeros(top)
    for dy, dx, apart in _DIRECTIONS:
        first, second = _shifted(padded, dy, dx)
        crossed = first != second
        for side in (first, second):
            total += apart * np.bincount(side[crossed], minlength=top)[:top]
    return np.asarray(np.pi / 8 * total[which])


def outlines_of(labels: NDArray[np.integer], which: NDArray[np.int64], place: Place) -> list[list[list[float]]]:
    """Return the outline of each label as corners of pixels in level-0 pixels; of several pieces the longest."""
    boxes = find_objects(labels)
    out = []
    for label in which:
        box = boxes[int(label) - 1]
        mask = np.pad(labels[box] == label, 1).astype(np.float64)
        lines: list[NDArray[np.float64]] = find_contours(mask, 0.5)  # type: ignore[no-untyped-call]
        line: NDArray[np.float64] = approximate_polygon(max(lines, key=len), 0.4)  # type: ignore[no-untyped-call]
        rows, columns = (line[:-1] - 0.5).T  # padded by 1, and the middle of the first pixel is at 0.5
        x = place.x + place.scale * (columns + box[1].start)
        y = place.y + place.scale * (rows + box[0].start)
        out.append(np.stack([x, y], axis=1).round(2).tolist())
    return out


def _eigenvalues(nuclei: Nuclei) -> NDArray[np.float64]:
    """Return the smaller and larger variance of each nucleus' pixels along its axes, (2, m)."""
    yy, xx, xy = nuclei.moments.T
    root = np.sqrt((yy - xx) ** 2 + 4 * xy**2)
    return np.stack([yy + xx - root, yy + xx + root]) / 2


def _neighbours(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distance to the nearest other centre and the mean of the three nearest, (m,); NaN where fewer are."""
    if not len(x):
        return np.empty(0), np.empty(0)
    distances = cKDTree(np.column_stack([x, y])).query(np.column_stack([x, y]), k=4)[0][:, 1:]
    distances = np.where(np.isfinite(distances), distances, np.nan)
    return distances[:, 0], distances.mean(axis=1)


def _texture(
    grey: NDArray[np.uint8], labels: NDArray[np.integer], which: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return contrast and homogeneity inside each nucleus, as the measures do for a patch; NaN without a pair."""
    top = int(labels.max()) + 1 if labels.size else 1
    found = np.zeros((2, 4, top))
    for k, (dy, dx, _) in enumerate(_DIRECTIONS):
        first, second = _shifted(labels, dy, dx)
        one, other = (g.astype(np.int32) for g in _shifted(grey, dy, dx))
        same = (first == second) & (first > 0)
        squares = np.square((one - other)[same]).astype(np.float64)
        number = np.bincount(first[same], minlength=top).astype(np.float64)
        number[number == 0] = np.nan
        for j, values in enumerate((squares, 1 / (1 + squares))):
            found[j, k] = np.bincount(first[same], values, top) / number
    contrast, homogeneity = found.mean(axis=1)[:, which]
    return contrast, homogeneity


def _shifted(array: NDArray[Any], dy: int, dx: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two views of an array whose elements are one step apart."""
    height, width = array.shape
    if dx < 0:
        return array[: height - dy, -dx:], array[dy:, : width + dx]
    return array[: height - dy, : width - dx], array[dy:, dx:]


def owners(centres: NDArray[np.float64]) -> cKDTree:
    """Return the tree of tile centres (n, 2), for :func:`owner`."""
    return cKDTree(centres)


def owner(tree: cKDTree, points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the tile that each point (m, 2) belongs to, (m,): of overlapping tiles the one it lies most inside."""
    return np.asarray(tree.query(points, p=np.inf)[1])
