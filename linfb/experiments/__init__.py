"""Sweeps that go on where they stopped: experiments, the points to run them at, executors, a store of results.

>>> import tempfile
>>> from linfb.experiments import experiment_named, grid, joined, sweep
>>> with tempfile.TemporaryDirectory() as folder:
...     points = grid(rank=[1, 2, 4], seed=range(2))
...     report = sweep(experiment_named("simulate"), points, folder, fixed={"t_max": 5.0}, progress=False)
...     runs = joined(report.store, report.keys)
>>> dict(runs.loss.sizes)
{'rank': 3, 'seed': 2, 'time': 41}
"""

from linfb.experiments.designs import Choice, Integers, LogUniform, Uniform, crossed, grid, random, value, zipped
from linfb.experiments.executors import dask_cluster, processes
from linfb.experiments.experiment import Experiment, Run, Together, changed, experiment_named, resource
from linfb.experiments.results import condition, joined, scalars, selected
from linfb.experiments.store import DamagedResult, Store, StoreError
from linfb.experiments.sweeps import Report, runs_of, sweep

__all__ = [
    "Choice", "DamagedResult", "Experiment", "Integers", "LogUniform", "Report", "Run", "Store", "StoreError",
    "Together", "Uniform", "changed", "condition", "crossed", "dask_cluster", "experiment_named", "grid", "joined",
    "processes", "random", "resource", "runs_of", "scalars", "selected", "sweep", "value", "zipped",
]  # fmt: skip
