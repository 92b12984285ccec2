"""Results on disk: one file for each finished run, written whole or not at all, checked whenever it is read.

A result is a netCDF file, followed by its record as a line of JSON and a line of fixed length that holds two checksums:
of the data and of the record. Readers of netCDF do not look behind the data's end, so that the file opens in any of
them; a file that was cut short has no such last line. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

from linfb._checks import path as checked_path

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DamagedResult", "Store", "StoreError", "as_netcdf", "write_atomically"]

_FOOTER = re.compile(rb"\nlinfb-record-1 (\d{12}) ([0-9a-f]{64}) ([0-9a-f]{64})\n")
_FOOTER_SIZE = len(b"\nlinfb-record-1 \n") + 12 + 2 * 65
_ABANDONED = 86_400.0  # seconds after which an unfinished file cannot be somebody's who still writes


class DamagedResult(ValueError):
    """A stored file is not what was written."""


class StoreError(OSError):
    """A store cannot be written to; what it held before is intact."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and have it on the disk before returning.

    Parameters
    ----------
    path : pathlib.Path
        Its folder is made if there is none; a file that is there is replaced when the new one is complete.
    content : bytes

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind then, and an older file is as it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "a" / "note.txt", b"whole")
    ...     (Path(folder) / "a" / "note.txt").read_bytes()
    b'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # a folder can be synchronised on POSIX systems only
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def as_netcdf(dataset: xr.Dataset) -> bytes:
    """Return a data set as the content of a netCDF file.

    Made in memory, so that the HDF5 library never meets a full disk, and without :meth:`xarray.Dataset.to_netcdf`,
    which on a worker of Dask takes a lock of the whole cluster for a file that only this process knows.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    content = io.BytesIO()
    with h5netcdf.File(content, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file))
    return content.getvalue()


@dataclass(frozen=True)
class Store:
    """A folder of results under their keys.

    Any number of processes may read and write it at once. What a key stands for is up to the caller: for
    :func:`linfb.experiments.sweep` a key is the hash of what a run is.

    Parameters
    ----------
    folder : path
        Made when something is written.

    Notes
    -----
    The folder holds ``<key>.nc`` for each finished run, ``<key>.failed.json`` for each failed one, ``damaged/`` with
    files that were found not to be what was written, and, while runs are in progress, ``<key>.lock``. Names that begin
    with a dot and end in ``.part`` are files that are being written.

    Examples
    --------
    >>> import tempfile, xarray
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store(folder)
    ...     store.write("a1", xarray.Dataset({"loss": 0.5}), {"seed": 3})
    ...     dataset, record = store.read("a1")
    ...     float(dataset.loss), record, store.keys()
    (0.5, {'seed': 3}, ['a1'])
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", checked_path("folder", self.folder))
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder of the store must be a folder, and {self.folder} is a file")

    def __contains__(self, key: str) -> bool:
        """Whether a result is there; :meth:`read` finds out whether it is whole."""
        return self._result(key).exists()

    def keys(self) -> list[str]:
        """Return the keys of all results, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.nc") if not path.name.startswith("."))

    def write(self, key: str, dataset: xr.Dataset, record: Mapping[str, Any]) -> None:
        """Store a result and remove the record of an earlier failure.

        Parameters
        ----------
        key : str
        dataset : xarray.Dataset
        record : mapping
            What to know about it, as JSON can hold it.

        Raises
        ------
        StoreError
            If it cannot be written, such as on a full disk.
        """
        data = as_netcdf(dataset)
        note = _json(record).encode()
        footer = f"\nlinfb-record-1 {len(note):012d} {_sha256(note)} {_sha256(data)}\n"
        self._write(self._result(key), data + note + footer.encode())
        self._failure(key).unlink(missing_ok=True)

    def read(self, key: str) -> tuple[xr.Dataset, dict[str, Any]]:
        """Return a result and its record.

        Raises
        ------
        KeyError
            If there is none.
        DamagedResult
            If the file is not what was written.
        """
        import xarray as xr

        with self._opened(key) as file:
            record, data = _record(file)
            file.seek(0)
            content = file.read(data[0])
        if _sha256(content) != data[1]:
            raise DamagedResult(f"{key}.nc does not have the checksum that was recorded")
        with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as dataset:
            return dataset.load().drop_encoding(), record  # else text that is joined to this is cut to its width

    def record(self, key: str) -> dict[str, Any]:
        """Return the record of a result without reading its data; raises as :meth:`read` does."""
        with self._opened(key) as file:
            return _record(file)[0]

    def damaged(self) -> dict[str, str]:
        """Read every result and return what is wrong with those that are damaged, by key."""
        found = {}
        for key in self.keys():
            if problem := self.problem(key):
                found[key] = problem
        return found

    def problem(self, key: str) -> str | None:
        """Return what is wrong with a result; None if there is none or it is whole."""
        try:
            with self._opened(key) as file:
                _, (size, checksum) = _record(file)
                file.seek(0)
                whole = _sha256(file.read(size)) == checksum
            return None if whole else f"{key}.nc does not have the checksum that was recorded"
        except DamagedResult as error:
            return str(error)
        except KeyError:
            return None

    def set_aside(self, key: str) -> Path:
        """Move a result, such as a damaged one, to the folder ``damaged``, and return where it is now."""
        aside = self.folder / "damaged"
        aside.mkdir(exist_ok=True)
        number = 0
        while (target := aside / f"{key}.{number}.nc").exists():
            number += 1
        with suppress(FileNotFoundError):  # another sweep was faster
            os.replace(self._result(key), target)
        return target

    def write_failure(self, key: str, record: Mapping[str, Any]) -> None:
        """Record that a run failed; raises :class:`StoreError` as :meth:`write` does."""
        self._write(self._failure(key), (_json(record, indent=1) + "\n").encode())

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return the records of all failed runs that have no result since, by key."""
        found = {}
        for path in sorted(self.folder.glob("*.failed.json")):
            key = path.name.removesuffix(".failed.json")
            if not path.name.startswith(".") and key not in self and (record := self.failure(key)) is not None:
                found[key] = record
        return found

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return the record of a failed run; None if there is none that can be read."""
        try:
            return json.loads(self._failure(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Hold a run while it is computed; yields False if somebody else, who is alive, holds it.

        A claim is a lock of the operating system: it ends with the process that holds it, however that ends. Where
        there are no such locks everybody gets every claim, and two sweeps may compute a run twice, with one result.
        """
        try:
            import fcntl
        except ImportError:  # pragma: no cover - not POSIX
            yield True
            return
        path = self.folder / f"{key}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error
        mine = True  # also on a file system without locks
        try:
            with suppress(OSError):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    mine = False
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)
            os.close(descriptor)

    def tidy(self) -> None:
        """Remove unfinished files that were left by processes which were killed, a day ago or earlier."""
        for path in self.folder.glob(".*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def _result(self, key: str) -> Path:
        return self.folder / f"{key}.nc"

    def _failure(self, key: str) -> Path:
        return self.folder / f"{key}.failed.json"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            error.errno,
            f"the store cannot be written to ({error.strerror or error}); the results that it holds are intact, and "
            "the same sweep goes on from them",
            str(self.folder),
        )

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        try:
            with open(self._result(key), "rb") as file:
                yield file
        except FileNotFoundError as error:
            raise KeyError(f"the store {self.folder} holds no result {key}") from error


def _record(file: BinaryIO) -> tuple[dict[str, Any], tuple[int, str]]:
    """Return the record of a file, and size and checksum of the data in front of it."""
    name, size = Path(file.name).name, file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FOOTER_SIZE))
    found = _FOOTER.fullmatch(file.read())
    if found is None:
        raise DamagedResult(f"{name} is incomplete or was not written by linfb")
    end, length = size - _FOOTER_SIZE, int(found[1])
    if length > end:
        raise DamagedResult(f"{name} is incomplete")
    file.seek(end - length)
    note = file.read(length)
    if _sha256(note) != found[2].decode():
        raise DamagedResult(f"{name} does not have the checksum of its record")
    return json.loads(note), (end - length, found[3].decode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(record: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False, indent=indent)
