"""Where a result comes from: versions and platform, to be stored with it."""

from __future__ import annotations

import inspect
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["attributes", "git_state", "provenance", "versions"]


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


def git_state(file: str | Path = __file__, *, besides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the commit of the checkout that a file belongs to, and whether anything in it differs from that commit.

    Both are None for a file that is in no checkout, such as one of an installed package. What lies under the paths of
    `besides` may differ.
    """

    def git(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, cwd=Path(file).parent, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    paths = [":(top)", *(f":(top,exclude){path}" for path in besides)]
    try:
        git("ls-files", "--error-unmatch", Path(file).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *paths))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


@cache
def _git_state(file: str) -> dict[str, Any]:
    return git_state(file)


def provenance(code: Callable[..., Any]) -> dict[str, Any]:
    """Return where a result of a function comes from, as JSON holds it: versions, kind of machine, commit of the code.

    Examples
    --------
    >>> sorted(provenance(versions))
    ['git', 'machine', 'versions']
    """
    try:
        file = inspect.getfile(code)
    except TypeError:  # not written in Python
        file = ""
    return {"versions": versions(), "machine": platform.machine(), "git": dict(_git_state(file))}
