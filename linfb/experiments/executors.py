"""Where the tasks of a sweep are done: other processes, or the workers of a Dask cluster.

Any :class:`concurrent.futures.Executor` will do. These two also stop as one wants them to when a sweep is interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from linfb._checks import integer

__all__ = ["dask_cluster", "processes"]


@contextmanager
def processes(n: int) -> Iterator[Executor]:
    """Do tasks in n new processes of this machine, which share its cores; they end with the ``with`` block.

    Parameters
    ----------
    n : int

    Notes
    -----
    Processes are spawned, not forked: a script that uses them must keep its own work under
    ``if __name__ == "__main__":``. When the block ends with an error, tasks in progress are finished first; on an
    interrupt they are given up.

    Examples
    --------
    >>> with processes(2) as executor:
    ...     list(executor.map(abs, [-1, -2]))
    [1, 2]
    """
    integer("n", n, at_least=1)
    share = max(1, (os.cpu_count() or 1) // n)
    pool = ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=_settle, initargs=(share,))
    try:
        yield pool
    except KeyboardInterrupt:
        workers = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:  # results are written whole or not at all
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _settle(threads: int) -> None:
    """Let a worker use its share of the cores, and leave interrupts to the process that started it."""
    import signal

    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def dask_cluster(scheduler: str | None = None, *, workers: int | None = None) -> Iterator[Executor]:
    """Do tasks on the workers of a Dask cluster.

    Parameters
    ----------
    scheduler : str, optional
        Address of a running one, e.g. ``"tcp://10.0.0.1:8786"``, or path of its scheduler file; None starts a cluster
        on this machine, which ends with the ``with`` block.
    workers : int, optional
        Size of a cluster that is started here; None is one worker for each core.

    Raises
    ------
    ImportError
        Without ``dask[distributed]``, which comes with the extra ``dask``: ``pip install "linfb[dask]"``.
    OSError
        If no scheduler answers.

    Notes
    -----
    Dask does a task again, on another worker, when its worker dies; after several such deaths it gives the task up.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError('a Dask cluster needs dask[distributed]: pip install "linfb[dask]"') from error
    if scheduler is None:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            yield client.get_executor()
        return
    where = {"scheduler_file": scheduler} if os.path.exists(scheduler) else {"address": scheduler}
    with Client(**where, name="linfb") as client:
        yield client.get_executor()
