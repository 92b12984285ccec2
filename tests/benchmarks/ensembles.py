"""Throughput of an ensemble against that of single runs, ours and PyTorch's: 32 perceptrons 64-128-128-10, batch 32.

What is timed is one epoch of so many steps with all that belongs to it (start, one evaluation of a few rows); of
PyTorch the steps alone. A first call of each compiles and is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from linfb import rules
from linfb.datasets import Dataset
from linfb.engine import amsgrad, grid, mlp, sgd, train, train_ensemble

WIDTHS = (64, 128, 128, 10)
BATCH = 32
MEMBERS = 32
OPTIMIZERS: dict[str, Any] = {"sgd": sgd(0.01, momentum=0.9), "amsgrad": amsgrad(1e-3)}
RULES = {"backpropagation": rules.backpropagation(), "low-rank": rules.low_rank(8)}
PAIRS = (("backpropagation", "sgd"), ("backpropagation", "amsgrad"), ("low-rank", "sgd"), ("low-rank", "amsgrad"))


def data(steps: int) -> Any:
    """Return random data of so many batches, with few rows to evaluate."""
    rng, n = np.random.default_rng(0), BATCH * (steps + 1)
    x, labels = rng.standard_normal((n, WIDTHS[0])).astype("float32"), np.arange(n) % WIDTHS[-1]
    whole = Dataset.from_arrays(x, labels, x[:BATCH], labels[:BATCH], name="noise")
    return whole.splits(validation=BATCH)


def single(steps: int, rule: str, optimizer: str, threads: int = 2) -> Callable[[], Any]:
    """Return what trains the members one after the other."""
    splits, model = data(steps), mlp(WIDTHS[0], WIDTHS[1:-1], WIDTHS[-1])
    settings: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "threads": threads, "progress": False}

    def run() -> None:
        for seed in range(MEMBERS):
            train(splits, model, RULES[rule], optimizer=OPTIMIZERS[optimizer], seed=seed, **settings)

    return run


def ensemble(steps: int, rule: str, optimizer: str, threads: int = 2) -> Callable[[], Any]:
    """Return what trains the members together."""
    splits, model = data(steps), mlp(WIDTHS[0], WIDTHS[1:-1], WIDTHS[-1])
    members = grid(RULES[rule], OPTIMIZERS[optimizer], seeds=range(MEMBERS))
    return lambda: train_ensemble(
        splits, model, members, epochs=1, batch_size=BATCH, threads=threads, progress=False
    )  # fmt: skip


def torch_single(steps: int, optimizer: str, threads: int = 2) -> Callable[[], Any]:
    """Return what trains the members one after the other by PyTorch."""
    import torch

    splits = data(steps)
    x, labels = torch.tensor(splits.train[0]), torch.tensor(splits.train[1])

    def run() -> None:
        torch.set_num_threads(threads)
        for seed in range(MEMBERS):
            torch.manual_seed(seed)
            layers: list[Any] = []
            for n_in, n_out in pairwise(WIDTHS[:-1]):
                layers += [torch.nn.Linear(n_in, n_out, bias=False), torch.nn.BatchNorm1d(n_out), torch.nn.ReLU()]
            model = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTHS[-2], WIDTHS[-1]))
            optimiser: Any = (
                torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) if optimizer == "sgd"
                else torch.optim.Adam(model.parameters(), 1e-3, amsgrad=True)
            )  # fmt: skip
            for some in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(x[some]), labels[some]).backward()
                optimiser.step()

    return run


def rows(steps: int = 64, repeats: int = 5, torch: bool = True, threads: int = 2) -> list[dict[str, Any]]:
    """Return medians of interleaved measurements, in ms per member and step, and their ratios to the ensemble's."""
    found = []
    for rule, optimizer in PAIRS:
        calls = {
            "ensemble": ensemble(steps, rule, optimizer, threads), "single": single(steps, rule, optimizer, threads)
        }  # fmt: skip
        if torch and rule == "backpropagation":
            calls["torch"] = torch_single(steps, optimizer, threads)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(repeats + 1):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                if repeat:
                    times[name].append(1e3 * (time.perf_counter() - begin) / (MEMBERS * steps))
        row: dict[str, Any] = {name: median(values) for name, values in times.items()}
        ratios = {f"{name}/ensemble": row[name] / row["ensemble"] for name in calls if name != "ensemble"}
        found.append({"rule": rule, "optimizer": optimizer} | row | ratios)
    return found


if __name__ == "__main__":
    for row in rows():
        print({key: value if isinstance(value, str) else round(value, 4) for key, value in row.items()})
