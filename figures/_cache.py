"""Results on disk under a key that says what they depend on, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures._source import library_hash, source_of

if TYPE_CHECKING:
    import xarray as xr

LAYOUT = 1  # of the files below; a change makes old ones unreadable


class CorruptCache(Exception):
    """A cached file is not what was written."""


def key_of(name: str, config: Any, device: str) -> str:
    """Return the key of one simulation: figure, settings, device, the code that simulates, and the whole library."""
    content = {
        "layout": LAYOUT,
        "figure": name,
        "config": asdict(config),
        "device": device,
        "simulate": source_of(name, ["simulate"]),
        "linfb": library_hash(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def store(folder: Path, key: str, dataset: xr.Dataset, **record: Any) -> None:
    """Store a data set as netCDF and beside it, last, a record with the checksum of the file."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "data.nc"
        dataset.to_netcdf(path, engine="h5netcdf")
        content = path.read_bytes()
    write_atomically(folder / f"{key}.nc", content)
    record |= {"sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(folder / f"{key}.json", json.dumps(record, indent=1).encode())


def fetch(folder: Path, key: str) -> tuple[xr.Dataset, dict[str, Any]] | None:
    """Return a stored data set and its record, None if there is none.

    Raises
    ------
    CorruptCache
        If the file's checksum is not the one recorded, or the record cannot be read.
    """
    import xarray as xr

    data, record_path = folder / f"{key}.nc", folder / f"{key}.json"
    if not record_path.exists():
        return None
    try:
        record = json.loads(record_path.read_bytes())
        if hashlib.sha256(data.read_bytes()).hexdigest() != record["sha256"]:
            raise CorruptCache(f"{data.name} does not have the checksum that was recorded")
        with xr.open_dataset(data, engine="h5netcdf") as dataset:
            return dataset.load(), record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCache(f"{data.name} or its record cannot be read ({type(error).__name__})") from error
