"""An experiment of one's own: the end of a random walk."""

import numpy as np
import xarray as xr

from linfb.experiments import Experiment


def run(config, seed):
    """Return where a walk ends."""
    steps = np.random.default_rng(seed).normal(0.0, config["width"], config["steps"])
    return xr.Dataset({"end": steps.sum()})


walk = Experiment("walk", version=1, config={"steps": 100, "width": 1.0}, run=run)
