"""Pairs of the linear core: closed form, online learning, reduced coordinates, ensembles, each against a peer.

Every function returns tuples (name, slow, fast, distance): two functions without arguments whose durations are
compared, and a function of their results that says how far these are apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

import linfb
from linfb import rules
from linfb.kernels import cpu_online
from linfb.linear import SGD, Euler, RungeKutta4
from linfb.rules import mirrors, readers
from linfb.theory import exact_map

Pair = tuple[str, Callable[[], Any], Callable[[], Any], Callable[[Any, Any], float]]

STEPS = 20_000


def gap(a: Any, b: Any) -> float:
    """Return the largest difference of two arrays."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def integrated(A: np.ndarray, W1: np.ndarray, W2: np.ndarray, P: Any, times: np.ndarray, rtol: float) -> np.ndarray:
    """Return the maps by SciPy's DOP853 with nothing around it: three or five products per evaluation."""
    split = W1.size

    def layers(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return state[..., :split].reshape(*state.shape[:-1], *W1.shape), state[..., split:].reshape(
            *state.shape[:-1], *W2.shape
        )

    def field(_: float, state: np.ndarray) -> np.ndarray:
        first, second = layers(state)
        error, velocity = A - second @ first, np.empty_like(state)
        d_first, d_second = layers(velocity)
        back = (second.T, error) if P is None else ((P @ second).T, P @ error)
        np.matmul(*back, out=d_first)
        np.matmul(error, first.T, out=d_second)
        return velocity

    start = np.concatenate([W1.ravel(), W2.ravel()])
    solution = solve_ivp(field, (0.0, times[-1]), start, "DOP853", times, rtol=rtol, atol=1e-3 * rtol)
    first, second = layers(np.ascontiguousarray(solution.y.T))
    return second @ first


def trajectories() -> list[Pair]:
    """Closed form against adaptive integration: 128-64-64, 200 times up to t = 100, errors of 1e-9 and of 3e-7."""
    task, times = linfb.gaussian_teacher(128, 64, 32, scale=1 / 8), np.linspace(0.5, 100.0, 200)
    network, pairs = linfb.LinearNetwork((128, 64, 64), linfb.Balanced(0.1)), []
    reader = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 8)))[0].T
    for name, P in (("backpropagation", None), ("fixed channel, r = 8", reader)):
        weights = network.draw(task, (P,), seed=0)
        for rtol in (1e-11, 1e-8):
            pairs.append((
                f"trajectory, {name}: bare DOP853 (rtol {rtol:g}) / closed form",
                lambda W=weights, P=P, rtol=rtol: integrated(task.Sigma_yx, *W, P, times, rtol),
                lambda W=weights, P=P: exact_map(task.Sigma_yx, *W, times, P=P),
                gap,
            ))  # fmt: skip
    return pairs


def jax_online(W1: np.ndarray, W2: np.ndarray, inputs: np.ndarray, labels: np.ndarray, eta: float) -> Callable[[], Any]:
    """Return JAX's scan over the samples, layers stored transposed and steps unrolled as is fastest for it on a CPU."""
    import jax
    import jax.numpy as jnp

    def step(layers: Any, sample: Any) -> tuple[Any, None]:
        (first, second), (x, y) = layers, sample
        hidden = x @ first
        delta = hidden @ second - y
        return (first - eta * jnp.outer(x, second @ delta), second - eta * jnp.outer(hidden, delta)), None

    scan = jax.jit(lambda layers, samples: jax.lax.scan(step, layers, samples, unroll=4)[0])
    start = jnp.asarray(W1.T.copy()), jnp.asarray(W2.T.copy())
    samples = jnp.asarray(inputs), jnp.asarray(labels)

    def run() -> np.ndarray:
        first, second = jax.block_until_ready(scan(start, samples))
        return np.asarray(second).T @ np.asarray(first).T

    return run


def online() -> list[Pair]:
    """Batch-1 online learning, 128-64-64, float32, 20,000 steps on given samples: JAX's scan against the kernel.

    JAX runs backpropagation in all pairs; of the other rules the distance is from the kernel in double precision.
    """
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((STEPS, 1, 128))
    labels = inputs @ (rng.standard_normal((128, 64)) / np.sqrt(128))
    W = rng.standard_normal((64, 128)) / 20, rng.standard_normal((64, 64)) / 20
    none, P = np.zeros((0, 64)), np.linalg.qr(rng.standard_normal((64, 8)))[0].T
    Q = rng.standard_normal((8, 64)) / 20

    def kernel(dtype: Any, channel: Any, way: int, q_rate: float, p_rate: float) -> np.ndarray:
        layers = tuple(layer.astype(dtype) for layer in W)
        arrays = [tuple(np.array(array, dtype, order="C") for array in (none, one)) for one in channel]
        cpu_online.online_sgd(
            layers, *arrays, np.ones(2), *data[dtype], 1e-3, 0.0, way, q_rate, p_rate, False, False
        )  # fmt: skip
        return layers[1] @ layers[0]

    data = {dtype: (inputs.astype(dtype), labels.astype(dtype)) for dtype in (np.float32, np.float64)}
    cases = {
        "backpropagation": ((none, none), 2, 0.0, 0.0),
        "fixed channel, r = 8": ((P, Q), 1, 0.0, 0.0),
        "low-rank feedback (Oja, Kolen-Pollack), r = 8": ((P, Q), 1, 1.0, 1.0),
    }
    peer = jax_online(*(layer.astype(np.float32) for layer in W), *(a[:, 0] for a in data[np.float32]), 1e-3)
    return [
        (
            f"{STEPS} online steps, {name}: JAX scan (backpropagation) / compiled",
            peer,
            lambda case=case: kernel(np.float32, *case),
            lambda slow, fast, case=case: gap(fast, kernel(np.float64, *case)),
        )
        for name, case in cases.items()
    ]


def flows() -> list[Pair]:
    """Flows in all inputs against reduced coordinates: 200 Runge-Kutta steps."""
    wide = linfb.low_rank_teacher(784, 10, np.linspace(3.0, 1.0, 10))
    paper = linfb.gaussian_teacher(128, 64, 32, scale=1 / 8)
    channel = rules.low_rank(8, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))
    cases = {
        "128-64-64, balanced behind r = 8": (paper, (128, 64, 64), linfb.Balanced(0.1), channel),
        "128-64-64, random": (paper, (128, 64, 64), linfb.SmallRandom(0.1), channel),
        "784-100-10, random": (wide, (784, 100, 10), linfb.SmallRandom(0.1), rules.low_rank(4)),
    }

    def run(case: Any, coordinates: str) -> Any:
        task, widths, start, rule = case
        return linfb.simulate(
            task, linfb.LinearNetwork(widths, start), rule, [1.0], method=RungeKutta4(5e-3), coordinates=coordinates,
            observe="network_map",
        )["network_map"]  # fmt: skip

    return [
        (f"flow, {name}: all inputs / reduced coordinates",
         lambda c=case: run(c, "full"), lambda c=case: run(c, "reduced"), gap)
        for name, case in cases.items()
    ]  # fmt: skip


def linear_ensembles() -> list[Pair]:
    """Runs one by one against one ensemble, 32-16-16: eight seeds x four ranks, four seeds x four reader rates."""
    task, network = linfb.low_rank_teacher(32, 16, [3.0, 2.0, 1.0]), linfb.LinearNetwork((32, 16, 16))
    sweeps = {
        "8 seeds x 4 ranks": (range(8), {"ranks": (1, 2, 4, 8)}),
        "4 seeds x 4 rates": (range(4), {"rates": {"reader_rate": (0.25, 0.5, 1.0, 2.0)}}),
    }

    def run(method: Any, time: float, seeds: Any, sweep: Any) -> np.ndarray:
        return linfb.simulate(
            task, network, rules.low_rank(4), [time], seeds=seeds, method=method, observe="network_map", **sweep
        )["network_map"].values  # fmt: skip

    def singly(method: Any, time: float, seeds: Any, sweep: Any) -> np.ndarray:
        return np.stack([
            np.concatenate([run(method, time, seed, one)[0] for seed in seeds]) for one in _members(sweep)
        ])  # fmt: skip

    return [
        (f"{sizes}, {name}: one by one / as one ensemble",
         lambda m=method, t=time, s=sweep: singly(m, t, *s), lambda m=method, t=time, s=sweep: run(m, t, *s), gap)
        for sizes, sweep in sweeps.items()
        for name, method, time in (
            ("500 Euler steps", Euler(0.01), 5.0), ("2,000 online steps, float32", SGD(1e-3, dtype="float32"), 2.0)
        )
    ]  # fmt: skip


def _members(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of a sweep over ranks or one rate, one value each."""
    if "ranks" in sweep:
        return [{"ranks": [rank]} for rank in sweep["ranks"]]
    return [{"rates": {name: [rate]}} for name, rates in sweep["rates"].items() for rate in rates]
