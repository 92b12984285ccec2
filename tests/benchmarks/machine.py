"""What was measured on: processor, libraries, and the ceilings of products and copies."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

PACKAGES = ("linfb", "numpy", "scipy", "numba", "torch", "jax")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _best(call: Any, repeats: int) -> float:
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return min(durations)


def gemm(threads: int, dtype: str, size: int, repeats: int = 20) -> float:
    """Return operations per second of NumPy's product of square matrices, the best of some."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((size, size)).astype(dtype) for _ in range(2))
    out = np.empty_like(a)
    with threadpool_limits(threads):
        return 2 * size**3 / _best(lambda: np.matmul(a, b, out=out), repeats)


def copies(megabytes: int) -> dict[str, float]:
    """Return bytes per second, read and written, of a copy on one thread into memory in use and into fresh memory."""
    source = np.zeros(megabytes << 18, np.float32)
    target = np.ones_like(source)
    warm = _best(lambda: np.copyto(target, source), 5)
    fresh = _best(lambda: np.copyto(np.empty_like(source), source), 3)
    return {"warm": 2 * source.nbytes / warm, "fresh": 2 * source.nbytes / fresh}


def ceilings(*, quick: bool = False) -> dict[str, Any]:
    """Return what products and copies reach now, per second.

    Parameters
    ----------
    quick : bool
        Small sizes, for a test of the code: no ceilings worth the name.
    """
    size = 64 if quick else 1024
    return {
        "gemm_flops_per_s": {
            dtype: {str(threads): gemm(threads, dtype, size) for threads in (1, 2)} for dtype in ("float32", "float64")
        },
        "copy_bytes_per_s": copies(1 if quick else 64),
    }


def describe() -> dict[str, Any]:
    """Return what a record says of the machine, but for its ceilings."""
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "blas": sorted({f"{pool['internal_api']} {pool['version']} ({pool.get('architecture')})" for pool in blas}),
    }
