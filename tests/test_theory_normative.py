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


@pytest.mark.parametrize("rate", [0.5, 20.0])
@pytest.mark.parametrize(("s", "rank"), [([3.0, 2.0, 1.0], 1), ([3.0, 2.0, 1.0], 2), ([3.0, 2.0], 1)])
def test_threshold_of_the_whole_flow(s, rank, rate):
    """A readout below, at and above it, in states of rest with the served modes' imbalance; it is not their readout."""
    s = np.array(s)
    threshold = normative_turn_time(s, np.ones_like(s), rank, rate=rate)[0] * s[rank]
    imbalance = 2 * s**1.5 / (3 * rate)
    first = np.sqrt(np.sqrt(s**2 + imbalance**2 / 4) - imbalance / 2) * (np.arange(len(s)) < rank)
    growth = []
    for factor in (0.99, 1.0, 1.01):
        readout = np.divide(s, first, out=np.zeros_like(s), where=first > 0)
        readout[rank] = factor * threshold
        served = np.where(first > 0, readout, 0.0)
        state = np.diag(first), np.diag(readout), *factors(np.diag(served), rank)
        assert max(np.abs(x).max() for x in normative_flow(np.diag(s), rate)(*state)) < 1e-12
        values = np.linalg.eigvals(jacobian(normative_flow(np.diag(s), rate), state))
        growth.append(values.real.max())
    assert growth[0] < 1e-6  # repeated zeros are good to the root of rounding
    assert abs(growth[1]) < 1e-6
    assert growth[2] > 1e-4
    assert threshold < 0.95 * readout[:rank].min()


def test_a_stronger_mode_is_turned_to_at_once():
    """Without anything of it in the readout: the growth rate of a fast channel is the difference of the strengths."""
    served = np.diag([np.sqrt(2.0), 0.0])
    for strength in (1.9, 2.1):
        state = served, served, *factors(served, 1)
        values = np.linalg.eigvals(jacobian(normative_flow(np.diag([2.0, strength]), 1e4), state))
        largest = values.real.max()
        assert (largest > 1e-3) == (strength > 2.0)
        assert_close(largest, max(0.0, strength - 2.0), 1e-4)


def run(s, scale, rank, rate, *, tilt=1e-2, duration=2.0):
    """Return the integrated flow's times, weights, and when every mode is half learned.

    All times are in units of that of the first turn of a fast channel.
    """
    state = started(s, scale, rank, tilt)
    shapes, cuts = [x.shape for x in state], np.cumsum([x.size for x in state])[:-1]
    rhs, unit = normative_flow(np.diag(s), rate), normative_turn_time(s, np.linalg.norm(state[0], axis=0), rank)[0]

    def parts(flat):
        return [x.reshape(shape) for x, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    found = solve_ivp(
        lambda _, flat: np.concatenate([x.ravel() for x in rhs(*parts(flat))]), (0.0, duration * unit),
        np.concatenate([x.ravel() for x in state]), method="LSODA", rtol=1e-8, atol=1e-12,
        t_eval=np.linspace(0.0, duration * unit, 2001),
    )  # fmt: skip
    weights = [parts(flat)[:2] for flat in found.y.T]
    share = np.array([np.diagonal(W2 @ W1) / s for W1, W2 in weights])
    half = np.where(share.max(axis=0) > 0.5, found.t[np.argmax(share > 0.5, axis=0)], np.inf)
    return weights, half / unit


@pytest.mark.parametrize("rate", [3.0, 30.0])
@pytest.mark.parametrize(("s", "rank"), [([3.0, 2.0], 1), ([3.0, 2.0, 1.0], 2)])
def test_time_of_the_first_turn(s, rank, rate):
    """Late by a share that falls like a root of the start, up to logarithms, with the readout as it was found."""
    late, s = [], np.array(s)
    for scale in (1e-2, 1e-3):
        weights, half = run(s, scale, rank, rate)
        readout = np.linalg.norm(weights[500][1][:rank], axis=1)  # in the middle of the wait
        expected = (readout / np.sqrt(s[:rank]))[-1]  # the weakest one is left
        late.append(half[rank] / expected - 1)
        assert np.all(half[:rank] < 0.2)
    assert np.all(np.array(late) > 0)
    assert late[1] < 0.12
    assert 0.35 < np.log10(late[0] / late[1]) < 0.5
    assert np.log10(half[rank] / late[1]) > 0.5


@pytest.mark.parametrize("s", [3.0, 1.0])
def test_what_a_slow_channel_leaves(s):
    """The served readout, to second order in the inverse rate; a balanced one is off to first order."""
    errors, balanced = [], []
    for rate in (10.0, 40.0):
        weights, _ = run([s, 0.5 * s], 1e-3, 1, rate, duration=0.3)
        found = np.linalg.norm(weights[-1][1][0])
        unit = normative_turn_time([s, 0.5 * s], [1.0, 1.0], 1, rate=rate)[0]
        errors.append(found / (unit * 0.5 * s / np.sqrt(0.75)) - 1)
        balanced.append(found / np.sqrt(s) - 1)
    assert_close(np.log(np.divide(*errors)) / np.log(4), 2.0, 0.2)
    assert_close(np.log(np.divide(*balanced)) / np.log(4), 1.0, 0.1)


def served_mode(s, start, rate):
    """Return when a served mode is half learned: first layer, readout and channel from equal starts."""

    def velocity(_, state):
        a, c, channel = state
        return [channel * (s - a * c), a * (s - a * c), 2 * rate * channel * (c - channel)]

    def half(_, state):
        return state[0] * state[1] - s / 2

    half.terminal = True
    return velocity, solve_ivp(velocity, (0.0, 1e6), [start] * 3, method="LSODA", rtol=1e-11, atol=1e-16, events=half)


@pytest.mark.parametrize(("s", "rate"), [(3.0, 3.0), (1.0, 1.0)])
def test_time_of_a_served_mode(s, rate):
    """A cube root of the start and a constant; not a logarithm."""
    velocity, _ = served_mode(s, 0.1, rate)
    start = np.array([[0.1]]), np.array([[0.1]]), *factors(np.array([[0.1]]), 1)
    whole = integrate(normative_flow(np.array([[s]]), rate), start, [1.0, 3.0])
    (reduced,) = integrate(lambda state: (velocity(0.0, state),), ([0.1] * 3,), [1.0, 3.0])
    assert_close(reduced[:, :2].T, np.squeeze(whole[:2]), 1e-9)
    scales = np.array([1e-6, 1e-8, 1e-10])
    times = np.array([served_mode(s, scale, rate)[1].t_events[0][0] for scale in scales])
    blow_up = solve_ivp(
        lambda _, y: [y[1], y[2], np.exp(y[0])], (0.0, 9.0), [0.0] * 3, rtol=1e-11, atol=1e-12,
        events=lambda _, y: y[0] - 30.0,
    )  # fmt: skip
    constant = blow_up.t_events[0][0] + (6 * np.exp(-30.0)) ** (1 / 3)
    assert_close(constant, 3.127348, 1e-6)
    later = times - constant * (2 * rate * s**2 * scales) ** (-1 / 3)
    assert np.abs(later).max() < 3
    assert_close(np.diff(later), 0.0, 0.02)
    assert np.all(times > 2 * np.log(s / scales**2) / (2 * s))


def test_an_aligned_start_waits_longer():
    """It has no tilt that could grow: at a finite rate nothing turns in twice the time."""
    assert run([3.0, 2.0], 1e-2, 1, 30.0, tilt=0.0)[1][1] == np.inf


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
