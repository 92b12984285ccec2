"""Ratios of two things measured in one run: `make bench` prints them and writes benchmarks.json.

Absolute times drift with the machine, so every row is a pair; the accuracy of the fast side against its oracle stands
beside it. BLAS works on one thread.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import linfb
from linfb import rules
from linfb._provenance import versions
from linfb.linear import SGD, Dop853
from linfb.rules import mirrors, readers

REPEATS = 5


def seconds(function: Callable[[], Any]) -> list[float]:
    """Return the durations of repeated calls, after one that warms up."""
    function()
    durations = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        function()
        durations.append(time.perf_counter() - begin)
    return durations


def pair(name: str, slow: Callable[[], Any], fast: Callable[[], Any], distance: Callable[[Any, Any], float]) -> dict:
    """Return one row: medians, their ratio and the largest difference of the results."""
    a, b = seconds(slow), seconds(fast)
    row = {
        "name": name, "slow_ms": 1e3 * median(a), "fast_ms": 1e3 * median(b), "ratio": median(a) / median(b),
        "spread": [min(a) / max(b), max(a) / min(b)], "difference": distance(slow(), fast()),
    }  # fmt: skip
    print(f"{name:62s} {row['slow_ms']:9.2f} ms {row['fast_ms']:9.2f} ms  ratio {row['ratio']:6.1f}  "
          f"[{row['spread'][0]:.1f}, {row['spread'][1]:.1f}]  difference {row['difference']:.1e}")  # fmt: skip
    return row


def gap(a: Any, b: Any) -> float:
    """Return the largest difference of two maps."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def trajectories() -> list[dict]:
    """Closed form against adaptive integration: 128-64-64, 200 times up to t = 100."""
    task, times = linfb.gaussian_teacher(128, 64, 32, scale=1 / 8), np.linspace(0.5, 100.0, 200)
    network = linfb.LinearNetwork((128, 64, 64), linfb.Balanced(0.1))
    cases = {
        "backpropagation": rules.backpropagation(),
        "fixed channel, r = 8": rules.low_rank(8, reader=readers.Fixed(), mirror=mirrors.Exact()),
    }

    def simulated(rule: Any) -> Any:
        return linfb.simulate(task, network, rule, times, method=Dop853(), observe="network_map")["network_map"][0]

    def predicted(rule: Any) -> Any:
        return linfb.theory.predict(task, network, rule, times, observe="network_map")["network_map"][0]

    return [
        pair(f"trajectory, {name}: DOP853 (rtol 1e-8) / closed form",
             lambda r=rule: simulated(r), lambda r=rule: predicted(r), gap)
        for name, rule in cases.items()
    ]  # fmt: skip


def online() -> list[dict]:
    """The compiled online step against the general path: 128-64-64, batch 1, 500 steps, one run and eight."""
    from linfb.linear import simulation

    task = linfb.low_rank_teacher(128, 64, [3.0, 2.0, 1.0], label_noise=0.1)
    network, rule = linfb.LinearNetwork((128, 64, 64), linfb.SmallRandom(0.3)), rules.low_rank(8)
    compiled = simulation.compiled

    def run(seeds: int, known: Callable[[Any], bool]) -> Any:
        simulation.compiled = known
        try:
            return linfb.simulate(
                task, network, rule, [0.05], seeds=range(seeds), method=SGD(1e-4), observe="network_map"
            )["network_map"]
        finally:
            simulation.compiled = compiled

    return [
        pair(f"500 online steps, {seeds} run(s): array library / compiled",
             lambda n=seeds: run(n, lambda rule: False), lambda n=seeds: run(n, compiled), gap)
        for seeds in (1, 8)
    ]  # fmt: skip


def ensembles() -> list[dict]:
    """Eight seeds one by one against one batched ensemble: 32-16-16, 500 Euler steps."""
    from linfb.linear import Euler

    task, network = linfb.low_rank_teacher(32, 16, [3.0, 2.0, 1.0]), linfb.LinearNetwork((32, 16, 16))

    def run(seeds: Any) -> Any:
        return linfb.simulate(
            task, network, rules.low_rank(2), [5.0], seeds=seeds, method=Euler(0.01), observe="network_map"
        )["network_map"].values

    return [
        pair("8 seeds, 500 Euler steps: one by one / as one ensemble",
             lambda: np.concatenate([run([seed]) for seed in range(8)]), lambda: run(range(8)), gap)
    ]  # fmt: skip


def main() -> None:
    """Measure every pair and write the record."""
    with threadpool_limits(1):
        rows = [row for group in (trajectories, online, ensembles) for row in group()]
    record = {"machine": platform.processor() or platform.machine(), "versions": versions(), "rows": rows}
    Path("benchmarks.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
