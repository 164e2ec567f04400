"""Nucleus label masks read from the files of many programs; what is not a label mask is refused."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.io import loadmat
from skimage.measure import label

from conceptkit.errors import InputError
from conceptkit.images.image_files import is_deep, load, orientation_of, pillow_image, readable
from conceptkit.images.pixel_values import MOST_PIXELS, upright
from conceptkit.images.tiff_images import check_single
from conceptkit.images.tiff_pages import COMPRESSION, LOSSY, ORIENTATION, PHOTOMETRIC, is_tiff, tiff_pages
from conceptkit.pathology.contours import read_contours

Labels = NDArray[Any]

MOST_PIECES = 2.0
"""Largest mean number of connected pieces per label. Instance masks of whole images have up to 1.01, small windows of
them up to 2, maps of classes some 90."""

_ALL_USED, _SHARED = 0.98, 1.1
"""Share of the numbers of 8 or 16 bits from which a mask uses them all, and the mean number of pieces per label from
which nuclei then share a number."""

_GAP, _FRAGMENT = 4.0, 0.25
"""Pixels up to which two pieces of one label are close, and the share of the larger piece up to which the smaller is
a fragment: then they are one nucleus."""

_MOST_OF_ONE = 10
"""Largest number of pieces of one label; instance masks of whole images have up to 3."""

_NAMES = ("inst_map", "instance_map", "instances", "masks", "mask", "labels", "label")
"""Names under which programs keep a label mask next to other arrays."""

_WITHOUT_LOSS = ("PNG", "BMP", "GIF", "PPM", "TIFF")

_ROWS_LOOKED_AT = 64


def read_mask(path: Path, shape: tuple[int, ...] | None = None, mpp: float | None = None) -> Labels:
    """Return a label mask, (h, w) of whole numbers, 0 where there is no nucleus.

    Read are label images of QuPath, StarDist, ImageJ and Cellpose (``_cp_masks.png``), and arrays: ``.npy``, ``.npz``,
    the variable ``inst_map`` of a ``.mat`` file, and the contours of HoVer-Net's ``.json``. Nothing is unpickled:
    Cellpose's ``_seg.npy`` is refused.

    Parameters
    ----------
    path : the file
    shape : height and width of the image that the mask belongs to; contours need it
    mpp : microns per pixel of this image, ``None`` or NaN where unknown; contours are checked against it

    Raises
    ------
    InputError
        when the file is missing or damaged, or is not a label mask
    """
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            raise InputError(f"{path} does not exist.")
        if suffix == ".json":
            return read_contours(path, shape, math.nan if mpp is None else mpp)
        if suffix in _ARRAYS:
            return _checked(_as_labels(_ARRAYS[suffix](path), path), path)
        with readable(path):
            return _checked(_as_labels(_from_tiff(path) if is_tiff(path) else _from_image(path), path), path)
    except InputError as error:
        raise InputError(f"mask: {error}") from None


def read_mask_row(path: Path, row: int) -> Labels:
    """Return row ``row`` of the dataset ``masks`` (n, h, w) of an HDF5 file: the label mask of one patch, (h, w).

    A patch is a window of an image, so one nucleus may lie in it in several pieces: :func:`check_mask_rows` looks at
    many rows instead of one.

    Raises
    ------
    InputError
        when the file, the dataset or the row is missing, or holds no whole numbers
    """
    try:
        with h5py.File(path, "r") as file:
            data = file["masks"]
            if data.ndim not in (3, 4) or data.dtype.kind not in "iuf" or math.prod(data.shape[1:]) > MOST_PIXELS:
                raise InputError(
                    f"mask: masks of {path} must hold whole numbers, n x height x width, got {data.dtype} of shape "
                    f"{data.shape}."
                )
            if not 0 <= row < len(data):
                raise InputError(f"mask: masks of {path} has {len(data)} rows, got row {row}.")
            values = np.asarray(data[row])
    except (OSError, RuntimeError, KeyError, AttributeError) as error:
        raise InputError(f"mask: {path} holds no label images in a dataset masks ({error}).") from None
    try:
        return _as_labels(values, path)
    except InputError as error:
        raise InputError(f"mask: row {row} of {error}") from None


def check_mask_rows(path: Path) -> None:
    """Raise :class:`InputError` when the dataset ``masks`` of an HDF5 file looks like class maps.

    Some rows are looked at together, spread evenly over all of them.
    """
    try:
        with h5py.File(path, "r") as file:
            count = len(file["masks"])
    except (OSError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"mask: {path} holds no label images in a dataset masks ({error}).") from None
    rows = np.unique(np.linspace(0, count - 1, min(count, _ROWS_LOOKED_AT)).round().astype(int))
    check_instances((read_mask_row(path, int(row)) for row in rows), f"mask: masks of {path}")


def check_instances(masks: Iterable[Labels], name: str) -> None:
    """Raise :class:`InputError` when masks (h, w) that belong together look like class maps.

    Parameters
    ----------
    masks : label masks of patches
    name : of what holds them, for the message
    """
    found = [_pieces(mask) for mask in masks]
    labels, pieces = sum(len(values) for values, _ in found), sum(int(counts.sum()) for _, counts in found)
    if pieces > MOST_PIECES * labels:
        raise InputError(
            f"{name} have {labels} labels in {pieces} separate pieces, so this looks like a class map; give each "
            "nucleus its own integer."
        )


def _pieces(labels: Labels) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the labels that a mask has, and the number of connected pieces of each, (k,) both."""
    pieces, number = label(labels, background=0, connectivity=2, return_num=True)  # type: ignore[no-untyped-call]
    owner = np.zeros(number + 1, dtype=labels.dtype)
    owner[pieces.ravel()] = labels.ravel()
    return np.unique(owner[1:], return_counts=True)


def _apart(labels: Labels) -> bool:
    """Return whether the two pieces of a mask look like two nuclei: of similar size and not close to each other."""
    pieces, _ = ndimage.label(labels > 0, np.ones((3, 3)))
    gap = ndimage.distance_transform_edt(pieces != 1)[pieces == 2].min()
    areas = np.bincount(pieces.ravel())[1:]
    return bool(gap > _GAP and areas.min() > _FRAGMENT * areas.max())


def _checked(labels: Labels, path: Path) -> Labels:
    """Return a mask; refuse one whose labels are classes, or stand for several nuclei each."""
    values, counts = _pieces(labels)
    count, pieces = len(values), int(counts.sum())
    top = int(values[-1]) if count else 0
    if top in (255, 65535) and count >= _ALL_USED * top and pieces > _SHARED * count:
        raise InputError(
            f"{path} has {pieces} separate pieces under the labels up to {top}, so nuclei share labels; save the mask "
            f"with {16 if top == 255 else 32} bits."
        )
    # A single nucleus may have two pieces, but 1 and the largest number are what binary masks have.
    two_nuclei = count == 1 and pieces == 2 and int(values[0]) in (1, 255, 65535) and _apart(labels)
    if pieces > MOST_PIECES * count or two_nuclei:
        number, kind = ("one label", "binary mask") if count == 1 else (f"{count} labels", "class map")
        raise InputError(
            f"{path} is not a label image: it has {number} in {pieces} separate pieces, so this looks like a {kind}; "
            "give each nucleus its own integer."
        )
    if count and counts.max() > _MOST_OF_ONE:
        raise InputError(
            f"{path} is not a label image: its label {values[counts.argmax()]} lies in {counts.max()} separate pieces, "
            "as a class or a border does; give each nucleus its own integer, and 0 to everything else."
        )
    return labels


def _as_labels(values: NDArray[Any], path: Path) -> Labels:
    """Return an array as (h, w) of whole numbers from 0 on."""
    found = f"{values.dtype} of shape {values.shape}"
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[..., 0] if values.shape[-1] == 1 else values[0]
    if values.ndim == 3 and values.shape[2] in (3, 4):
        values = _one_channel(values, path)
    if values.ndim != 2 or values.dtype.kind not in "iufb" or values.size == 0:
        raise InputError(f"{path} is not a label image ({found}).")
    if values.dtype.kind == "f":
        # Float files hold whole numbers where the program that wrote them knows no integers.
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise InputError(f"{path} is not a label image: its values are not whole numbers ({found}).")
        exact = 2 ** min(np.finfo(values.dtype).nmant + 1, 53)
        if (largest := int(np.abs(values).max())) >= exact:  # neighbouring labels are rounded to one
            raise InputError(
                f"{path} has labels up to {largest}, and {values.dtype} keeps whole numbers apart only below {exact}; "
                "save the labels as integers."
            )
        values = values.astype(np.int64)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.min() < 0:
        raise InputError(f"{path} is not a label image: a label must be at least 0, got {values.min()}.")
    if values.max() > np.iinfo(np.int64).max:
        raise InputError(f"{path} is not a label image: a label must be below 2^63, got {values.max()}.")
    return values.astype(np.int64) if values.dtype == np.uint64 else values


def _one_channel(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the grey of pixels (h, w, s) with equal channels; further ones, such as opacity, must be constant."""
    grey, rest = (values[..., :3], values[..., 3:]) if values.shape[2] > 2 else (values[..., :1], values[..., 1:])
    if (grey != grey[..., :1]).any() or (rest != rest[:1, :1]).any():
        raise InputError(
            f"{path} is not a label image: it has colours, and which of them belong to one nucleus is unknown; save "
            "the labels as one whole number per pixel."
        )
    return values[..., 0]


def _from_tiff(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        pages = tiff_pages(file)
        check_single(pages, path)
        page = pages[0]
        if (lossy := LOSSY.get(page.one(COMPRESSION, 1))) is not None:
            raise InputError(
                f"{path} is compressed as {lossy}, which may blur labels into each other; save labels as PNG or TIFF "
                "without loss."
            )
        photometric = page.one(PHOTOMETRIC, 1)
        if not page.is_plain() or photometric not in (0, 1, 2, 3):
            if photometric == 0:
                raise InputError(
                    f"{path} is not a label image: 0 is white in it, and whether white is the background is unknown; "
                    "save it with 0 as black."
                )
            return _from_image(path)
        return upright(_one_channel(page.samples(file), path), page.one(ORIENTATION, 1))


def _from_image(path: Path) -> NDArray[Any]:
    with pillow_image(path) as image:
        if image.format not in _WITHOUT_LOSS:
            raise InputError(
                f"{path} is a {image.format}, which may blur labels into each other; save labels as PNG or TIFF."
            )
        if image.format != "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{path} holds several frames; save the labels as one image.")
        if is_deep(image) or image.mode not in ("1", "L", "P", "I", "I;16", "LA", "RGB", "RGBA"):
            raise InputError(f"{path} is not a label image (mode {image.mode}): one whole number per pixel is needed.")
        load(image)
        values = np.asarray(image)
        if image.mode == "P":
            values = _without_palette(values, np.reshape(image.getpalette("RGB") or [], (-1, 3)))
        elif values.ndim == 3:
            values = _one_channel(values, path)
        # Of TIFF files Pillow itself turns what it reads.
        return values if image.format == "TIFF" else upright(values, orientation_of(image))


def _without_palette(index: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """Return the labels of a palette image: its numbers, or its greys where programs have packed greys as a palette."""
    used = np.unique(index)
    if len(used) == 0 or used[-1] >= len(palette):
        return index
    colours = palette[used]
    is_grey = (colours == colours[:, :1]).all() and len(np.unique(colours[:, 0])) == len(used)
    return np.asarray(palette[:, 0][index]) if is_grey else index


def _from_npy(path: Path) -> NDArray[Any]:
    with _arrays_readable(path), path.open("rb") as stream:
        return _array(stream, path)


def _from_npz(path: Path) -> NDArray[Any]:
    with _arrays_readable(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        chosen = names if len(names) == 1 else [name for name in names if name in _NAMES]
        if len(chosen) != 1:
            raise InputError(
                f"{path} holds {len(names)} arrays ({', '.join(names[:5])}), and which is the label mask is unknown; "
                "save the label mask as its own file."
            )
        with archive.open(archive.namelist()[names.index(chosen[0])]) as stream:
            return _array(stream, path)


def _array(stream: IO[bytes], path: Path) -> NDArray[Any]:
    """Read one array, when its head states a size that fits."""
    version = np.lib.format.read_magic(stream)
    read_head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_head(stream)
    if dtype.hasobject:
        raise InputError(
            f"{path} is a pickle, as Cellpose's _seg.npy, which could run code and is not opened; save the labels as "
            "PNG or TIFF (cellpose --save_png or --save_tif)."
        )
    if math.prod(shape) > MOST_PIXELS:
        raise InputError(f"{path} is too large for one mask, got shape {shape}; cut it into smaller ones first.")
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


@contextmanager
def _arrays_readable(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None


def _from_mat(path: Path) -> NDArray[Any]:
    try:
        labels = loadmat(path, variable_names=["inst_map"], appendmat=False).get("inst_map")
    except NotImplementedError:
        raise InputError(f"{path} is a .mat file of version 7.3; save the labels as PNG or TIFF.") from None
    except Exception as error:  # SciPy has no error of its own: damaged files raise errors of any kind
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    if labels is None:
        raise InputError(f"{path} has no variable inst_map, in which HoVer-Net writes its labels.")
    return np.asarray(labels)


_ARRAYS: dict[str, Callable[[Path], NDArray[Any]]] = {".npy": _from_npy, ".npz": _from_npz, ".mat": _from_mat}
