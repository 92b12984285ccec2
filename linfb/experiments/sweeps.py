"""Many runs: what is stored is left out, the rest goes to an executor, and every task stores what it finished."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from linfb._checks import integer
from linfb._errors import InterruptedRun
from linfb._provenance import provenance
from linfb.experiments.experiment import Experiment, Run
from linfb.experiments.store import Store, StoreError

__all__ = ["Report", "runs_of", "sweep"]


@dataclass(frozen=True)
class Report:
    """What became of a sweep.

    Parameters
    ----------
    store : Store
    runs : tuple of Run
        In the order of the points, each once.
    found, computed, failed : frozenset of str
        Keys of the runs whose results were there before, are there now, and that failed, now or before.
    damaged : mapping
        What was wrong with results that were set aside and computed anew, by key.
    """

    store: Store
    runs: tuple[Run, ...]
    found: frozenset[str]
    computed: frozenset[str]
    failed: frozenset[str]
    damaged: Mapping[str, str]

    @property
    def keys(self) -> list[str]:
        """Keys of all results, in the order of the points."""
        return [run.key for run in self.runs if run.key not in self.failed]

    def __str__(self) -> str:
        words = [f"{len(self.runs)} runs", f"{len(self.found)} found", f"{len(self.computed)} computed"]
        words += [f"{len(self.failed)} failed"] if self.failed else []
        words += [f"{len(self.damaged)} of them damaged before"] if self.damaged else []
        return ", ".join(words)


def runs_of(experiment: Experiment, points: Iterable[Mapping[str, Any]], fixed: Mapping[str, Any] = {}) -> list[Run]:
    """Return the runs that points stand for, each once.

    Parameters
    ----------
    experiment : Experiment
    points : iterable of mappings
        From field to value, see :mod:`linfb.experiments.designs`; ``seed`` is 0 where a point does not say it.
    fixed : mapping
        Settings of all runs.

    Raises
    ------
    ValueError
        For a field or a setting that the experiment does not know, before anything runs; the message names the field.
    """
    points = [dict(point) for point in points]
    if not points:
        raise ValueError("points of a sweep must be at least one")
    for point in points:
        for name in point:
            if name in fixed:
                raise ValueError(f"{name} is fixed and swept over")
            if name in experiment.resources:
                raise ValueError(f"{name} says how a run is computed, not what it is: it can be fixed, not swept over")
    runs: dict[str, Run] = {}
    for point in points:
        settings = {**fixed, **point}
        seed = settings.pop("seed", 0)
        run = Run(experiment, experiment.configured(settings), seed)
        runs.setdefault(run.key, run)
    return list(runs.values())


def sweep(
    experiment: Experiment,
    points: Iterable[Mapping[str, Any]],
    store: Store | str | Path,
    *,
    fixed: Mapping[str, Any] = {},
    executor: Executor | None = None,
    together: int = 1,
    retry: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run an experiment at all points and store every result; what is stored already is not computed again.

    Parameters
    ----------
    experiment : Experiment
    points : iterable of mappings
        From field to value, see :func:`linfb.experiments.grid` and its neighbours; the field ``seed`` is 0 if not set.
    store : Store or path
        For workers on other machines: a folder that all of them see under this path.
    fixed : mapping
        Settings of all runs, also of those fields that are no part of a result's key, such as the device.
    executor : concurrent.futures.Executor, optional
        Where tasks are done; None is this process. See :mod:`linfb.experiments.executors`.
    together : int
        At most so many runs are one task, if they differ in the seed and the experiment's ``together.fields`` only.
    retry : bool
        Whether to run again what failed before.
    progress : bool
        Whether to show a progress bar (on standard error).
    say : callable
        Told about damaged results.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        For bad points, before anything runs.
    StoreError
        If the store cannot be written to, such as on a full disk.
    RuntimeError
        If a worker died with its task, or writes to another folder than this process reads.
    InterruptedRun
        On the user's interrupt (it is a KeyboardInterrupt).

    Notes
    -----
    However a sweep ends, the finished runs are in the store, since workers put them there themselves, and the same call
    goes on from them. A run that raises an error is recorded with it and does not stop the others. Sweeps that share a
    store leave each other's runs in progress alone and wait for them. ``tests/test_experiments.py`` and, with killed
    processes and full disks, ``tests/test_slow_sweeps.py`` hold this to its word.

    Examples
    --------
    >>> import tempfile
    >>> from linfb.experiments import experiment_named, grid
    >>> small = {"singular_values": [2.0, 1.0], "n_in": 6, "n_out": 4, "hidden": [5], "t_max": 5.0, "n_times": 3}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     points = grid(rank=[1, 2], seed=range(2))
    ...     for _ in range(2):
    ...         report = sweep(experiment_named("simulate"), points, folder, fixed=small, progress=False)
    ...         print(report)
    ...     dataset = report.store.read(report.keys[0])[0]
    4 runs, 0 found, 4 computed
    4 runs, 4 found, 0 computed
    >>> dataset.loss.dims
    ('time',)
    """
    from tqdm import tqdm

    integer("together", together, at_least=1)
    runs = runs_of(experiment, points, fixed)
    store = Store(Path(store.folder if isinstance(store, Store) else store).absolute())
    store.tidy()
    damaged = {run.key: problem for run in runs if (problem := store.problem(run.key)) is not None}
    for key, problem in damaged.items():
        with store.claimed(key) as mine:
            if mine and store.problem(key):  # still: another sweep may have been faster
                say(f"damaged result, computed anew: {problem}; it is now {store.set_aside(key)}")
    found = frozenset(run.key for run in runs if run.key in store)
    failed = (
        frozenset() if retry else frozenset(run.key for run in runs if run.key not in found and store.failure(run.key))
    )
    waiting = {run.key: run for run in runs if run.key not in found | failed}
    computed: set[str] = set()
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), disable=not progress, unit="run") as bar:
        try:
            while waiting:
                tasks = [
                    _Task(store, tuple(some), retry) for some in _grouped(experiment, list(waiting.values()), together)
                ]
                for outcomes in _outcomes(executor, tasks):
                    done = {key for key, outcome in outcomes.items() if outcome != "busy"}
                    computed |= {key for key in done if outcomes[key] == "stored"}
                    failed |= done - computed
                    for key in done:
                        del waiting[key]
                    bar.set_postfix_str(f"{len(failed)} failed" if failed else "", refresh=False)
                    bar.update(len(done))
                if waiting:
                    time.sleep(_PATIENCE)
        except KeyboardInterrupt as error:
            text = f"interrupted with {len(waiting)} of {len(runs)} runs to do; the same sweep goes on from there"
            raise InterruptedRun(text) from error
    if unseen := [key for key in computed if key not in store]:
        raise RuntimeError(
            f"workers stored {len(unseen)} results that are not in {store.folder}: the store must be a folder that all "
            "workers and this process see under the same path"
        )
    return Report(store, tuple(runs), found, frozenset(computed), failed, damaged)


_PATIENCE = 0.5  # seconds between looks at runs that another sweep has in progress


@dataclass(frozen=True)
class _Task:
    """Runs that a worker does as one: all that it needs to know."""

    store: Store
    runs: tuple[Run, ...]
    retry: bool


def _outcomes(executor: Executor | None, tasks: Sequence[_Task]) -> Iterator[dict[str, str]]:
    """Yield what became of the runs of each task, as tasks are finished."""
    if executor is None:
        yield from map(perform, tasks)
        return
    futures = [executor.submit(perform, task) for task in tasks]
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except (StoreError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise RuntimeError(
                    f"a worker was lost with its task ({type(error).__name__}: {error}); finished runs are stored, the "
                    "same sweep goes on from them"
                ) from error
    finally:
        for future in futures:
            future.cancel()


def _grouped(experiment: Experiment, runs: Sequence[Run], most: int) -> Iterator[Sequence[Run]]:
    """Yield the runs of each task."""
    together = experiment.together
    if together is None or most == 1:
        yield from ([run] for run in runs)
        return
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        shared = {name: value for name, value in run.identity["config"].items() if name not in together.fields}
        kinds.setdefault(repr(shared), []).append(run)
    for kind in kinds.values():
        parts = -(-len(kind) // most)
        yield from (kind[i::parts] for i in range(parts))


def perform(task: _Task) -> dict[str, str]:
    """Do the runs of a task and store each; return by key whether it was "stored", "failed" or is "busy" elsewhere."""
    store, outcomes = task.store, {}
    with ExitStack() as claims:
        todo = []
        for run in task.runs:
            if not claims.enter_context(store.claimed(run.key)):
                outcomes[run.key] = "busy"
            elif run.key in store:  # by another sweep, since this one began
                outcomes[run.key] = "stored"
            elif not task.retry and store.failure(run.key):
                outcomes[run.key] = "failed"
            else:
                todo.append(run)
        for run, result, record in _computed(todo):
            outcomes[run.key] = _stored(store, run.key, result, record)
    return outcomes


def _stored(store: Store, key: str, result: Any, record: dict[str, Any]) -> str:
    """Store a result, or the error that there is instead; one that netCDF cannot hold is an error of the run."""
    import xarray as xr

    if not isinstance(result, xr.Dataset | BaseException):
        result = TypeError(f"an experiment must return an xarray.Dataset, this one returned {type(result).__name__}")
    if not isinstance(result, BaseException):
        try:
            store.write(key, result, record)
            return "stored"
        except StoreError:
            raise
        except Exception as error:
            result = error
    told = {
        "type": type(result).__name__,
        "message": str(result),
        "traceback": "".join(traceback.format_exception(result)),
    }
    store.write_failure(key, record | {"error": told})
    return "failed"


def _computed(runs: Sequence[Run]) -> Iterator[tuple[Run, Any, dict[str, Any]]]:
    """Yield the result of each run, or the error that it ended with, and its record."""
    if len(runs) > 1 and (results := _together(runs)) is not None:
        yield from results
        return
    for run in runs:
        with _Clock(run.experiment, 1) as clock:
            try:
                result: Any = run.experiment.run(run.config, run.seed)
            except (Exception, SystemExit) as error:
                result = error
        yield run, result, clock.record(run)


def _together(runs: Sequence[Run]) -> list[tuple[Run, Any, dict[str, Any]]] | None:
    """Return the same for runs done as one; None if that fails as a whole, so that each is to be tried alone."""
    experiment = runs[0].experiment
    assert experiment.together is not None
    with _Clock(experiment, len(runs)) as clock:
        try:
            results = experiment.together.run([run.config for run in runs], [run.seed for run in runs])
        except Exception:
            return None
    return [(run, result, clock.record(run)) for run, result in zip(runs, results, strict=True)]


class _Clock:
    """Where and when runs were done, and for how long."""

    def __init__(self, experiment: Experiment, together: int) -> None:
        self.made = provenance(experiment.run) | {"together": together}

    def __enter__(self) -> _Clock:
        self.made["started"], self._began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.made["seconds"] = round(time.perf_counter() - self._began, 3)

    def record(self, run: Run) -> dict[str, Any]:
        """Return what is stored beside the result of a run."""
        return run.identity | {"provenance": self.made | run.experiment.placed(run.config)}
