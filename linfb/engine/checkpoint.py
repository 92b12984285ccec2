"""Checkpoints: one file of arrays with a JSON header, replaced atomically. Nothing in it is ever executed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linfb.backend import to_numpy

__all__ = ["FILE_NAME", "load", "save"]

FILE_NAME = "checkpoint.safetensors"
"""What a checkpoint is called in its folder."""

_HEADER, _FORMAT = "linfb", 3


def save(folder: str | os.PathLike, arrays: Mapping[str, Any], header: Mapping[str, Any]) -> Path:
    """Write a checkpoint; an older one in the folder is replaced only when the new one is complete.

    Parameters
    ----------
    folder : path
        Made if it does not exist.
    arrays : mapping
        From path to array, of any library.
    header : mapping
        Whatever JSON can hold.

    Returns
    -------
    pathlib.Path
        The file.
    """
    from safetensors.numpy import save as serialise

    target = Path(folder) / FILE_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    host = {path: np.ascontiguousarray(to_numpy(array)) for path, array in arrays.items()}
    data = serialise(host, metadata={_HEADER: json.dumps({"format": _FORMAT, **header})})
    descriptor, temporary = tempfile.mkstemp(prefix=FILE_NAME, suffix=".part", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def load(folder: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Read a checkpoint.

    Parameters
    ----------
    folder : path

    Returns
    -------
    arrays, header : dict, dict
        As they were saved; None instead if the folder holds no checkpoint.

    Raises
    ------
    ValueError
        If the file is damaged, or was not written by linfb.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / FILE_NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint of linfb: {error}") from error
    if header.pop("format", None) != _FORMAT:
        raise ValueError(f"checkpoint {path} has a format that this version of linfb does not know")
    return arrays, header
