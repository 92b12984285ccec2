"""When the channel of the normative rule turns: the threshold by Jacobians of the whole flow, the time by runs."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import linfb
from linfb import rules
from linfb.linear import Dop853
from linfb.networks import Given
from linfb.theory import normative_turn_time
from tests.test_theory_turning import jacobian
from tests.theory_flow import assert_close, integrate


def normative_flow(A, rate):
    """Return the right-hand side of the flow of W1, W2, P and Q (plain, any dtype)."""

    def rhs(W1, W2, P, Q):
        E, gap = A - W2 @ W1, P.T @ Q - W2
        return Q.T @ P @ E, E @ W1.T, -rate * Q @ gap.T, -rate * P @ gap

    return rhs


def factors(W2, rank):
    left, values, right = np.linalg.svd(W2)
    root = np.sqrt(values[:rank])[:, None]
    return root * left.T[:rank], root * right[:rank]


def started(s, scale, rank, tilt=1e-2, seed=1):
    """Return balanced weights along the modes, all but a hundredth, the stronger modes a bit larger."""
    rng = np.random.default_rng(seed)
    size = len(s)
    order = np.diag(1.0 + 0.1 * np.arange(size)[::-1])
    W1, W2 = (scale * (part + tilt * rng.standard_normal((size, size))) for part in (np.eye(size), order))
    return W1, W2, *factors(W2, rank)


def test_the_flow_is_that_of_linfb():
    s, times = [2.0, 1.0], [0.5, 2.0, 4.0]
    W1, W2, P, Q = started(s, 0.3, 1)
    found = linfb.simulate(
        linfb.Task(np.diag(s)), linfb.LinearNetwork((2, 2, 2), Given((W1, W2))), rules.normative(1, rate=3.0), times,
        method=Dop853(rtol=1e-12, atol=1e-14), observe=("network_map",),
    ).network_map.values[0]  # fmt: skip
    flow = integrate(normative_flow(np.diag(s), 3.0), (W1, W2, P, Q), times)
    assert_close(flow[1] @ flow[0], found, 1e-9)
    other = integrate(normative_flow(np.diag(s), 2.0), (W1, W2, P, Q), times)
    assert np.abs(other[1] @ other[0] - found).max() > 1e-2


@pytest.mark.parametrize("rate", [0.3, 5.0])
@pytest.mark.parametrize(("s", "rank"), [([3.0, 2.0, 1.0], 1), ([3.0, 2.0, 1.0], 2), ([3.0, 2.0], 1)])
def test_threshold_of_the_whole_flow(s, rank, rate):
    """A readout just below and just above it, at states of rest; what the readout itself would need is far above."""
    s = np.array(s)
    threshold = normative_turn_time(s, np.ones_like(s), rank)[0] * s[rank]
    served = np.where(np.arange(len(s)) < rank, np.sqrt(s), 0.0)
    growth = []
    for factor in (0.99, 1.0, 1.01):
        readout = served.copy()
        readout[rank] = factor * threshold
        state = np.diag(served), np.diag(readout), *factors(np.diag(served), rank)
        assert max(np.abs(x).max() for x in normative_flow(np.diag(s), rate)(*state)) < 1e-12
        values = np.linalg.eigvals(jacobian(normative_flow(np.diag(s), rate), state))
        growth.append(values.real.max())
    assert growth[0] < 1e-7
    assert abs(growth[1]) < 1e-6  # repeated zeros are good to the root of rounding
    assert growth[2] > 1e-3
    assert threshold < 0.95 * np.sqrt(s[rank - 1])


def test_a_stronger_mode_is_turned_to_at_once():
    """Without anything of it in the readout: the growth rate of a fast channel is the difference of the strengths."""
    served = np.diag([np.sqrt(2.0), 0.0])
    for strength in (1.9, 2.1):
        state = served, served, *factors(served, 1)
        values = np.linalg.eigvals(jacobian(normative_flow(np.diag([2.0, strength]), 1e4), state))
        largest = values.real.max()
        assert (largest > 1e-3) == (strength > 2.0)
        assert_close(largest, max(0.0, strength - 2.0), 1e-4)


def half_times(s, scale, rank, rate, *, tilt=1e-2):
    """Return when every mode of the integrated flow is half learned, as a multiple of the first turn's time."""
    A, state = np.diag(s), started(s, scale, rank, tilt)
    shapes, cuts = [x.shape for x in state], np.cumsum([x.size for x in state])[:-1]
    rhs = normative_flow(A, rate)

    def parts(flat):
        return [x.reshape(shape) for x, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    unit = normative_turn_time(s, np.linalg.norm(state[0], axis=0), rank)[0]
    run = solve_ivp(
        lambda _, flat: np.concatenate([x.ravel() for x in rhs(*parts(flat))]), (0.0, 2 * unit),
        np.concatenate([x.ravel() for x in state]), method="LSODA", rtol=1e-8, atol=1e-12,
        t_eval=np.linspace(0.0, 2 * unit, 2001),
    )  # fmt: skip
    share = np.array([np.diagonal(W2 @ W1) / s for W1, W2, *_ in map(parts, run.y.T)])
    return np.where(share.max(axis=0) > 0.5, run.t[np.argmax(share > 0.5, axis=0)], np.inf) / unit


@pytest.mark.parametrize(("s", "rank"), [([3.0, 2.0], 1), ([3.0, 1.0], 1), ([3.0, 2.0, 1.0], 2)])
def test_time_of_the_first_turn(s, rank):
    """Late by a share that falls like a root of the start, up to logarithms, and the less the faster the channel."""
    late = np.array([half_times(s, scale, rank, 30.0)[rank] - 1 for scale in (1e-2, 1e-3)])
    assert np.all(late > 0)
    assert 0.25 < np.log10(late[0] / late[1]) < 0.5
    assert half_times(s, 1e-3, rank, 3.0)[rank] - 1 > 1.5 * late[1]
    early = half_times(s, 1e-3, rank, 30.0)[:rank]
    assert np.all(early < 0.05)  # a logarithm, not a reciprocal


def test_an_aligned_start_waits_longer():
    """It has no tilt that could grow: at a finite rate nothing turns in twice the time."""
    assert half_times([3.0, 2.0], 1e-2, 1, 30.0, tilt=0.0)[1] == np.inf


def test_nothing_to_wait_for():
    assert normative_turn_time([2.0, 1.0], [0.1, 0.1], 2).shape == (0,)
    assert normative_turn_time([2.0, 2.0], [0.1, 0.1], 1) == 0.0


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: normative_turn_time([1.0, 2.0], [0.1, 0.1], 1), "s"),
        (lambda: normative_turn_time([1.0, 0.0], [0.1, 0.1], 1), "s"),
        (lambda: normative_turn_time([2.0, 1.0], [0.1, 0.0], 1), "a"),
        (lambda: normative_turn_time([2.0, 1.0], [0.1], 1), "a"),
        (lambda: normative_turn_time([2.0, 1.0], [0.1, 0.1], 0), "rank"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        call()
