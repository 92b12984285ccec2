"""Experiments that take no time, in a module of their own so that other processes find them."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from linfb.experiments import Experiment, Together, grid, resource, sweep


@dataclass(frozen=True)
class Walk:
    """A random walk; with a `log` every computation leaves a line there."""

    steps: int = 20
    width: float = 1.0
    kind: str = "normal"
    sizes: tuple[int, ...] = (1, 2)
    trouble: str | None = None
    seconds: float = resource(0.0)
    log: str | None = resource(None, recorded=False)
    broken: str | None = resource(None, recorded=False)

    def __post_init__(self):
        if self.width < 0:
            raise ValueError(f"width must be >= 0, got {self.width}")


def run(config, seed):
    if config.log is not None:
        with open(config.log, "a") as log:
            log.write(f"{os.getpid()} {config.width!r} {seed}\n")
    if config.trouble == "error" or (config.broken is not None and Path(config.broken).exists()):
        raise ArithmeticError(f"deliberate, seed {seed}")
    if config.trouble == "exit":
        raise SystemExit(3)
    if config.trouble == "interrupt":
        raise KeyboardInterrupt
    if config.trouble == "death":
        os._exit(9)
    if config.trouble == "number":
        return math.pi
    if config.trouble == "object":
        return xr.Dataset({"end": ((), object())})
    time.sleep(config.seconds)
    path = np.random.default_rng(seed).normal(0.0, config.width, config.steps).cumsum()
    return xr.Dataset(
        {"path": ("time", path), "end": path[-1], "extremes": ("which", [path.min(), path.max()])},
        {"time": np.arange(config.steps), "which": ["low", "high"]},
        {"kind": config.kind},
    )


def run_together(configs, seeds):
    if any(config.kind == "odd" for config in configs):
        raise ArithmeticError("not together")
    return [
        ArithmeticError("alone among others") if config.trouble else run(config, seed)
        for config, seed in zip(configs, seeds, strict=True)
    ]


walk = Experiment("walk", 1, Walk(), run, Together(("width", "trouble"), run_together))
plain = Experiment("plain", 1, {"steps": 20, "width": 1.0, "tags": ["a"], "free": None}, lambda config, seed: None)
nothing = 3


def sweep_seeds(n, store, fixed):
    """Sweep over seeds: what a process of its own does."""
    sweep(walk, grid(seed=range(n)), store, fixed=fixed, progress=False)
