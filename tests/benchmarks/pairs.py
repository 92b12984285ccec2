"""Fast paths of the linear core and what they replace, as tuples (name, slow, fast, distance of their results)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import linfb
from linfb import rules
from linfb.linear import SGD, Euler
from tests.benchmarks.measure import difference

Pair = tuple[str, Callable[[], Any], Callable[[], Any], Callable[[Any, Any], float]]


def online() -> list[Pair]:
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
        (f"500 online steps, {seeds} run(s): array library / compiled",
         lambda n=seeds: run(n, lambda rule: False), lambda n=seeds: run(n, compiled), difference)
        for seeds in (1, 8)
    ]  # fmt: skip


def ensembles() -> list[Pair]:
    """Eight seeds one by one against one batched ensemble: 32-16-16, 500 Euler steps."""
    task, network = linfb.low_rank_teacher(32, 16, [3.0, 2.0, 1.0]), linfb.LinearNetwork((32, 16, 16))

    def run(seeds: Any) -> Any:
        return linfb.simulate(
            task, network, rules.low_rank(2), [5.0], seeds=seeds, method=Euler(0.01), observe="network_map"
        )["network_map"].values

    return [
        ("8 seeds, 500 Euler steps: one by one / as one ensemble",
         lambda: np.concatenate([run([seed]) for seed in range(8)]), lambda: run(range(8)), difference)
    ]  # fmt: skip
