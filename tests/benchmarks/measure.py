"""Interleaved timing.

Absolute times drift with the machine, so every row compares sides that take turns within one run, after a warm-up, on
pinned threads and without garbage collection. Medians are reported, and the quartiles of the rounds.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from linfb._threads import threads as in_threads

WARM_UP = 2
PAUSE = 0.01  # seconds before every call: threads of the side before, which wait for more work at full speed, give up


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Let linfb, BLAS (one thread of it in each of linfb's) and PyTorch use so many threads, and collect no garbage."""
    torch = sys.modules.get("torch")
    before, collecting = torch.get_num_threads() if torch else 0, gc.isenabled()
    if torch:
        torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with in_threads(threads):
            yield
    finally:
        if collecting:
            gc.enable()
        if torch:
            torch.set_num_threads(before)


def interleaved(
    sides: Mapping[str, Callable[[], Any]], seconds: float, *, least: int = 5, most: int = 200, warm_up: int = WARM_UP
) -> dict[str, np.ndarray]:
    """Return the durations of sides that take turns for so many seconds, the first one changing from round to round.

    Parameters
    ----------
    sides : mapping
        From name to what is timed.
    seconds : float
        When to stop, but for the bounds on the number of rounds.
    least, most : int
        Those bounds.
    warm_up : int
        Number of calls of each before.

    Returns
    -------
    dict
        From name to durations in seconds, one per round.
    """
    for call in sides.values():
        for _ in range(warm_up):
            call()
    durations: dict[str, list[float]] = {name: [] for name in sides}
    names, begin = list(sides), time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - begin > seconds:
            break
        for name in names if turn % 2 else reversed(names):
            time.sleep(PAUSE)
            start = time.perf_counter()
            sides[name]()
            durations[name].append(time.perf_counter() - start)
    return {name: np.array(found) for name, found in durations.items()}


def summary(durations: np.ndarray) -> dict[str, Any]:
    """Return median and quartiles in milliseconds, and the number of rounds."""
    low, middle, high = (1e3 * np.quantile(durations, [0.25, 0.5, 0.75])).tolist()
    return {"ms": middle, "quartiles_ms": [low, high], "rounds": len(durations)}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, Any]:
    """Return the ratio of medians, and the quartiles of the ratios of the rounds."""
    value = float(np.median(numerator) / np.median(denominator))
    return {"value": value, "quartiles": np.quantile(numerator / denominator, [0.25, 0.75]).tolist()}


def row(
    name: str,
    sides: Mapping[str, Callable[[], Any] | None],
    seconds: float,
    *,
    over: tuple[str, str],
    at_most: float | None = None,
    at_least: float | None = None,
    accuracy: Mapping[str, Any] | None = None,
    flops: Mapping[str, float] | None = None,
    ceiling: float | None = None,
    least: int = 5,
    warm_up: int = WARM_UP,
    **more: Any,
) -> dict[str, Any]:
    """Measure one row of the record.

    Parameters
    ----------
    name : str
    sides : mapping
        From name to what is timed; None is a side that is missing, and reported as such.
    seconds : float
        See :func:`interleaved`.
    over : pair of str
        Which side's time is divided by which other's.
    at_most, at_least : float, optional
        The goal for that ratio.
    accuracy : mapping, optional
        What was compared and by how much it differed.
    flops : mapping, optional
        Operations in matrix products of each side.
    ceiling : float, optional
        Operations per second of large products on as many threads.
    least, warm_up : int
        See :func:`interleaved`.
    """
    present = {side: call for side, call in sides.items() if call is not None}
    durations = interleaved(present, seconds, least=least, warm_up=warm_up)
    entry: dict[str, Any] = {"name": name, "sides": {}, "over": list(over), "ratio": None, "met": None, **more}
    for side in sides:
        entry["sides"][side] = summary(durations[side]) if side in durations else "missing"
        if flops and side in durations and flops.get(side):
            found = entry["sides"][side]
            found["gflop"] = flops[side] / 1e9
            if ceiling:
                found["share_of_ceiling"] = flops[side] / (found["ms"] / 1e3) / ceiling
    if set(over) <= set(durations):
        entry["ratio"] = ratio(durations[over[0]], durations[over[1]])
    if at_most is not None or at_least is not None:
        entry["goal"] = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
        if entry["ratio"] is not None:
            entry["met"] = met(entry["ratio"]["value"], entry["goal"])
    if accuracy:
        entry["accuracy"] = dict(accuracy)
    return entry


def met(value: float, goal: Mapping[str, float]) -> bool:
    """Return whether a value reaches its goal; NaN does not."""
    return bool(value <= goal["at_most"] if "at_most" in goal else value >= goal["at_least"])


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference of two arrays, over the largest entry of the second."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def distance(found: Iterable[Any], expected: Sequence[Any]) -> float:
    """Return the largest Euclidean distance of any array from the expected one, over the length of that.

    Arrays that vanish in exact arithmetic are rounding alone: lengths count as a thousandth of the largest at least.
    """
    lengths = [float(np.linalg.norm(array)) for array in expected]
    gaps = [float(np.linalg.norm(a - b)) for a, b in zip(found, expected, strict=True)]
    return max(gap / max(length, 1e-3 * max(lengths)) for gap, length in zip(gaps, lengths, strict=True))
