"""Online learning through the compiled kernel, runs of an ensemble in parallel threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from linfb.linear.flow import State
from linfb.rules import Channel, Rule, mirrors, readers

__all__ = ["advance", "compiled"]

_WAYS = {mirrors.Zero: 0, mirrors.Fixed: 1, mirrors.KolenPollack: 1, mirrors.Exact: 2}


def compiled(rule: Rule) -> bool:
    """Return whether the compiled kernel knows the rule; the others take the general path."""
    if isinstance(rule.reader, readers.Oja) and rule.reader.covariance != "second_moment":
        return False
    if rule.layers is not None or rule.source == "hidden":
        return False
    known = (readers.Identity, readers.Fixed, readers.Oja)  # not what is derived from them, which may learn otherwise
    return type(rule.reader) in known and type(rule.mirror) in _WAYS


def advance(
    rule: Rule,
    weight_decay: Any,
    state: State,
    inputs: np.ndarray,
    labels: np.ndarray,
    step_size: float,
    *,
    reader_rate: Any = None,
    mirror_rate: Any = None,
) -> State:
    """Return the state of all runs after one step per entry of `inputs`.

    Parameters
    ----------
    rule : Rule
        One that :func:`compiled` accepts.
    weight_decay : float or numpy.ndarray, shape (run, 1, 1)
    state : State
        NumPy arrays with a leading run axis.
    inputs, labels : numpy.ndarray, shapes (step, run, batch, in) and (step, run, batch, out)
    step_size : float
    reader_rate, mirror_rate : float or numpy.ndarray, shape (run, 1, 1), optional
        None takes the rule's own.
    """
    from linfb.kernels import cpu_online

    weights = tuple(np.array(W) for W in state.weights)
    n_runs = len(weights[0])
    none = np.zeros((n_runs, 0, 0), weights[0].dtype)
    P, Q, gains = [none], [none], [np.ones(n_runs)]
    for channel in state.channels:
        P.append(none if channel.P is None else np.array(channel.P))
        Q.append(none if channel.Q is None else np.array(channel.Q))
        gains.append(np.broadcast_to(np.ravel(channel.gain), n_runs))
    gain = np.stack(gains, axis=1)
    way, on = _WAYS[type(rule.mirror)], getattr(rule.reader, "on", "errors")
    q_rate = rule.mirror.learns * (rule.mirror.rate if mirror_rate is None else mirror_rate)
    p_rate = rule.reader.learns * (rule.reader.rate if reader_rate is None else reader_rate)
    decay, q_rate, p_rate = (
        np.broadcast_to(np.ravel(rate), n_runs).tolist() for rate in (weight_decay, q_rate, p_rate)
    )

    def run(r: int) -> None:
        cpu_online.online_sgd(
            tuple(W[r] for W in weights), tuple(p[r] for p in P), tuple(q[r] for q in Q), gain[r],
            np.ascontiguousarray(inputs[:, r]), np.ascontiguousarray(labels[:, r]),
            step_size, decay[r], way, q_rate[r], p_rate[r], on == "labels", rule.source == "network",
        )  # fmt: skip

    if n_runs == 1:
        run(0)
    else:
        with ThreadPoolExecutor(min(n_runs, os.cpu_count() or 1)) as pool:
            list(pool.map(run, range(n_runs)))
    channels = tuple(
        Channel(None if channel.P is None else p, None if channel.Q is None else q, channel.gain)
        for channel, p, q in zip(state.channels, P[1:], Q[1:], strict=True)
    )
    return State(weights, channels)
