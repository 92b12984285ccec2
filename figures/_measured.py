"""What training steps take, measured in calls of ``train``: seconds, with rules in turns, and the peak of memory."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule
    from linfb.datasets import Splits

EPOCHS = 3
"""Epochs of a call that is timed: the first warms up, the last begins when what is timed ends."""


@dataclass
class Clock:
    """A schedule that leaves the learning rate alone and notes when the steps of each epoch begin."""

    begun: list[float] = field(default_factory=list)

    def __call__(self, epoch: float) -> float:
        """Return the factor 1."""
        if epoch == int(epoch) and epoch >= len(self.begun):
            self.begun.append(time.perf_counter())
        return 1.0


def few(splits: Splits, rows: int) -> Splits:
    """Return so many rows for training (or as many as there are), and one for validation and for a test."""
    first = {"train": rows, "validation": 1, "test": 1}
    parts = {name: getattr(splits, name) for name in first}
    return replace(splits, **{name: type(part)(*(one[: first[name]] for one in part)) for name, part in parts.items()})


def step_seconds(train: Callable[..., xr.Dataset], rules: Mapping[str, Rule], rounds: int) -> xr.DataArray:
    """Return the seconds of a step under each rule, over and over in turns.

    Timed are whole steps of :func:`linfb.engine.train`, from the rows of a batch to the updated weights and channels,
    with one row's validation after each epoch. Absolute times drift with the machine; those of one round are
    neighbours, so ratios within a round are what to compare.

    Parameters
    ----------
    train : callable
        :func:`linfb.engine.train` of a rule, with all else given but schedule and epochs; more than one step an epoch.
    rules : mapping
        From names to rules.
    rounds : int
        How often each rule is timed; the order is reversed from round to round.

    Returns
    -------
    xarray.DataArray, dims (cell, round)
    """
    import xarray as xr

    seconds: dict[str, list[float]] = {name: [] for name in rules}
    for turn in range(rounds):
        for name in list(rules)[:: -1 if turn % 2 else 1]:
            clock = Clock()
            run = train(rules[name], epochs=EPOCHS, schedule=clock)
            steps = run.sizes["step"] // EPOCHS
            seconds[name].append((clock.begun[-1] - clock.begun[1]) / ((EPOCHS - 2) * steps))
    return xr.DataArray(list(seconds.values()), {"cell": list(rules)}, ("cell", "round"))


def peak_bytes(train: Callable[..., xr.Dataset], rule: Rule) -> int:
    """Return the most bytes that a call of ``train`` holds at once, beyond what was there before: its data.

    To what a step needs, a call adds a copy of the best weights. Code that is used for the first time would count too.
    """
    gc.collect()
    tracemalloc.start()
    try:
        train(rule, epochs=1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
