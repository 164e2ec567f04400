"""Activation stores: rows of activations on disk, resumable after a kill, never taken for another network's."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from conceptkit._checks import InputError

SCHEMA = "conceptkit/activations/1"


class ActivationStore:
    """Activations of one layer, one row per patch, in an HDF5 file of fixed layout.

    The file is created whole (all space allocated) beside its place and moved there, so that later writes change
    values alone. A row counts as there when its entry of the completion map says so, which is written after the row.

    Parameters
    ----------
    path : the HDF5 file; created when absent
    provenance : what the values depend on beside the pixels: network, layer, pooling, preprocessing
    patch_ids : (n,) names of the rows
    identities : (n,) digests of each row's pixels; a row whose digest changed is not there any more
    width : activations per row

    Raises
    ------
    InputError
        when the file is not a store, is of another schema, provenance or table, or is in use
    """

    def __init__(
        self,
        path: Path,
        *,
        provenance: Mapping[str, Any],
        patch_ids: Sequence[str],
        identities: Sequence[str],
        width: int,
    ) -> None:
        self.path = path
        stated = json.dumps(provenance, sort_keys=True)
        if not path.exists():
            self._create(stated, patch_ids, width)
        self._file = self._open()
        try:
            self._check(stated, patch_ids)
            changed = np.array(self._file["identities"].asstr()[:]) != np.array(identities, dtype=object)
            if changed.any():
                self._file["done"][changed] = False
                self._file.flush()
                self._file["identities"][changed] = np.array(identities, dtype="S32")[changed]
                self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def missing(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return those of ``rows`` that are not there yet."""
        there: NDArray[np.bool_] = self._file["done"][:]
        return rows[~there[rows]]

    def write(self, rows: NDArray[np.intp], values: NDArray[np.float32]) -> None:
        """Write values (len(rows), width); they count as there once they are on their way to the disk."""
        order = np.argsort(rows)
        self._file["values"][rows[order]] = values[order]
        self._file.flush()
        self._file["done"][rows[order]] = True
        self._file.flush()

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return values (len(rows), width) of rows that are there.

        Raises
        ------
        InputError
            when one of them is not
        """
        absent = len(self.missing(rows))
        if absent:
            raise InputError(f"store: {self.path} lacks {absent} of the {len(rows)} rows asked for.")
        values: NDArray[np.float32] = self._file["values"][:]
        return values[rows]

    def _create(self, provenance: str, patch_ids: Sequence[str], width: int) -> None:
        import h5py

        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        n = len(patch_ids)
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs["schema"] = SCHEMA
                file.attrs["provenance"] = provenance
                file.create_dataset("patch_ids", data=np.array(patch_ids, dtype=h5py.string_dtype()))
                file.create_dataset("identities", data=np.zeros(n, dtype="S32"))
                file.create_dataset("done", data=np.zeros(n, dtype=bool))
                early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                # One row per chunk: rows are written and read in any order.
                file.create_dataset("values", (n, width), np.float32, chunks=(1, width), dcpl=early)
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _open(self) -> Any:
        import h5py

        try:
            return h5py.File(self.path, "r+")
        except BlockingIOError:
            raise InputError(f"store: {self.path} is in use by another process; wait for it to finish.") from None
        except OSError as error:
            raise InputError(f"store: {self.path} cannot be opened ({error}); remove it to compute it anew.") from None

    def _check(self, provenance: str, patch_ids: Sequence[str]) -> None:
        schema = self._file.attrs.get("schema")
        if schema != SCHEMA:
            raise InputError(f"store: {self.path} has schema {schema!r}, this version reads {SCHEMA!r}.")
        kept, asked = json.loads(self._file.attrs["provenance"]), json.loads(provenance)
        differing = [k for k in sorted({*kept, *asked}) if kept.get(k) != asked.get(k)]
        if differing:
            what = "; ".join(f"{k} {kept.get(k)!r} instead of {asked.get(k)!r}" for k in differing)
            raise InputError(f"store: {self.path} was made with {what}.")
        if list(self._file["patch_ids"].asstr()[:]) != list(patch_ids):
            raise InputError(f"store: {self.path} was made for another table, whose patch_ids differ.")
