"""Where a result comes from: versions and platform, to be stored with it."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["attributes", "versions"]


def versions() -> dict[str, str]:
    """Return the versions of linfb, Python and the array libraries that are installed."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    from linfb import __version__

    found = {"linfb": __version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "numba", "xarray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def attributes(**config: Any) -> dict[str, str]:
    """Return attributes for an xarray.Dataset: each entry of `config` as text, versions and machine as JSON.

    Examples
    --------
    >>> attributes(weight_decay=0.1)["weight_decay"]
    '0.1'
    """
    recorded = {key: value if isinstance(value, str) else repr(value) for key, value in config.items()}
    return recorded | {"versions": json.dumps(versions()), "machine": platform.machine()}
