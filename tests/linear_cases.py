"""Cases and equations shared by the tests of linear networks; the equations are typed in the paper's column layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import jaxtyping
import numpy as np

from linfb.linear.flow import State
from linfb.rules import Channel, Rule, mirrors, readers
from linfb.tasks import Task

READERS = {
    "identity": lambda: readers.Identity(),
    "fixed": lambda: readers.Fixed(),
    "oja errors": lambda: readers.Oja(on="errors", rate=1.7),
    "oja labels": lambda: readers.Oja(on="labels", rate=0.6),
    "oja normalised": lambda: readers.Oja(on="errors", covariance="normalised", rate=1.3),
    "local": lambda: readers.Local(rate=0.8),
    "normative": lambda: readers.Normative(rate=1.9),
}
MIRRORS = {
    "exact": lambda: mirrors.Exact(),
    "zero": lambda: mirrors.Zero(),
    "fixed": lambda: mirrors.Fixed(),
    "kolen_pollack": lambda: mirrors.KolenPollack(rate=1.1),
    "weight_mirror": lambda: mirrors.WeightMirror(rate=2.3),
    "normative": lambda: mirrors.Normative(rate=1.4),
}


def exists(source: str, reader: str, mirror: str) -> bool:
    """Say whether a cell of the table source x reader x mirror exists."""
    if (reader == "normative") != (mirror == "normative"):
        return False
    if reader == "local" and mirror in ("exact", "zero"):
        return False
    return source == "above" or mirror not in ("exact", "weight_mirror", "normative")


CELLS = [(s, r, m) for s in ("above", "network") for r in READERS for m in MIRRORS if exists(s, r, m)]


def rule_of(source: str, reader: str, mirror: str, rank=2, gain: str = "none") -> Rule:
    """Return the rule of a cell."""
    rank = None if reader == "identity" else rank
    return Rule(f"{source}, {reader}, {mirror}", source, READERS[reader](), MIRRORS[mirror](), rank, gain)


def random_covariance(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a covariance far from the identity."""
    root = rng.standard_normal((size, size + 1))
    return root @ root.T / size


def correlated_task(n_in: int, n_out: int, rng: np.random.Generator) -> Task:
    """Return a task whose inputs are not whitened and whose labels carry anisotropic noise."""
    return Task(
        rng.standard_normal((n_out, n_in)),
        input_covariance=random_covariance(n_in, rng),
        label_noise=0.3 * random_covariance(n_out, rng),
    )


def random_state(rule: Rule, widths, rng: np.random.Generator, *, runs: int = 2, rank: int = 2) -> State:
    """Return a state far from any special point, with a run axis."""
    weights = tuple(rng.standard_normal((runs, above, below)) for below, above in pairwise(widths))
    channels = []
    for l in range(1, len(weights)):
        n_read = widths[-1] if rule.source == "network" else widths[l + 1]
        r = n_read if rule.reader.name == "identity" else rank
        P = None if rule.reader.name == "identity" else rng.standard_normal((runs, r, n_read))
        Q = None if rule.mirror.name in ("exact", "zero") else rng.standard_normal((runs, r, widths[l]))
        channels.append(Channel(P, Q, 1.0 if rule.gain == "none" else np.sqrt(n_read / r)))
    return State(weights, tuple(channels))


def paper_flow(rule: Rule, state: State, run: int, task: Task, weight_decay: float) -> SimpleNamespace:
    """Return dW, dP, dQ of one run from the paper's matrix equations: columns are samples, Q is hidden x rank.

    Errors are linear in the output error, d_l = D_l (y - yhat), and activities in the input, h_l = H_l x.
    """
    W = [weights[run] for weights in state.weights]
    Sigma, noise, T = task.Sigma_xx, task.noise_covariance, task.teacher
    H = [np.eye(T.shape[1])]
    for weights in W:
        H.append(weights @ H[-1])
    E = T - H[-1]
    C_error = E @ Sigma @ E.T + noise
    C_label = T @ Sigma @ T.T + noise
    L, direct, kind = len(W), rule.source == "network", rule.mirror.name
    D: list = [None] * (L + 1)
    D[L] = np.eye(T.shape[0])
    dP, dQ = [None] * L, [None] * L
    for l in range(L - 1, 0, -1):
        channel, above = state.channels[l - 1], W[l]
        R = D[L] if direct else D[l + 1]
        P = np.eye(len(R)) if channel.P is None else channel.P[run]
        Q = None if channel.Q is None else channel.Q[run].T
        if kind == "exact":
            B = above.T @ P.T @ P
        elif kind == "zero":
            B = np.zeros((H[l].shape[0], len(R)))
        else:
            B = Q @ P
        D[l] = channel.gain * B @ R
        G = H[l] @ Sigma @ E.T @ R.T  # <h d^T>
        if kind == "kolen_pollack":
            dQ[l] = 1.1 * (G @ P.T - weight_decay * Q)
        elif kind == "weight_mirror":
            dQ[l] = 2.3 * (above.T @ P.T - Q)
        elif kind == "normative":
            dQ[l] = -1.4 * (Q @ P - above.T) @ P.T
        reader = rule.reader
        if reader.name == "oja":
            C = C_label if reader.on == "labels" and (direct or l == L - 1) else R @ C_error @ R.T
            if reader.covariance == "normalised":
                C = C / (np.diag(C).max() or 1.0)
            dP[l] = reader.rate * P @ C @ (np.eye(len(R)) - P.T @ P)
        elif reader.name == "local":
            dP[l] = 0.8 * (Q.T @ G - weight_decay * P)
        elif reader.name == "normative":
            dP[l] = -1.9 * Q.T @ (Q @ P - above.T)
    dW = [D[l + 1] @ E @ Sigma @ H[l].T - weight_decay * W[l] for l in range(L)]
    return SimpleNamespace(W=dW, P=dP[1:], Q=[None if q is None else q.T for q in dQ[1:]])


def agree(found, expected, tolerance: float = 1e-12) -> None:
    """Assert agreement of arrays relative to their largest entry (at least 1); NaN fails."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    error = float(np.abs(found - expected).max(initial=0.0)) / scale
    assert error <= tolerance, f"relative error {error:.3g} > {tolerance:.3g}"


def convergence_order(steps, errors) -> float:
    """Return the slope of log error against log step."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@contextmanager
def as_users_call() -> Iterator[None]:
    """Switch the tests' own type checks off, so that bad arguments meet the library's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
