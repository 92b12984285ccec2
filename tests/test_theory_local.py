"""One mode under the synapse-local rule: its exact time against the network, its escape from small starts."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import lambertw

import linfb
from linfb import rules
from linfb.linear import Dop853
from linfb.networks import Given
from linfb.rules import mirrors, readers
from linfb.theory import local_escape_time, local_time
from tests.theory_flow import assert_close


def strengths(s, a, c, q, p, times, decay=0.0):
    """Return the mode's strength in a whole network of linfb that starts along it."""
    rng = np.random.default_rng(4)
    u, v, g, z = (x / np.linalg.norm(x) for x in (rng.standard_normal(n) for n in (4, 3, 5, 2)))
    network = linfb.LinearNetwork((3, 5, 4), Given((a * np.outer(g, v), c * np.outer(u, g))))
    reader, mirror = readers.Local(start=p * np.outer(z, u)), mirrors.KolenPollack(start=q * np.outer(z, g))
    result = linfb.simulate(
        linfb.Task(s * np.outer(u, v)), network, rules.local(2, reader=reader, mirror=mirror), times,
        weight_decay=decay, method=Dop853(rtol=1e-12, atol=1e-15), observe=("network_map",),
    )  # fmt: skip
    return np.einsum("i,tij,j->t", u, result.network_map.values[0], v)


@pytest.mark.parametrize(
    ("mode", "times"),
    [
        ((1.5, 0.3, 0.0, 0.05, 0.2), [2.0, 5.0, 6.0]),
        ((1.0, 1e-3, 2e-3, 0.0, 1.0), [4.0, 8.0]),
        ((2.0, 0.5, 0.4, 0.3, 0.0), [0.5, 1.5, 2.0]),
    ],
)
def test_time_is_that_of_the_network(mode, times):
    """A strength that is good to 1e-12 gives the time the worse the slower it changes."""
    found = strengths(*mode, times)
    assert_close(local_time(found, *mode), times, 1e-9)
    s, a, c, q, p = mode
    for wrong in ((1.001 * s, a, c, q, p), (s, a, c, q + 1e-3, p)):
        with pytest.raises(AssertionError):
            assert_close(local_time(found, *wrong), times, 1e-9)


def test_starts_and_ends():
    assert local_time(0.01, 1.0, 0.1, 0.1, 0.1, 0.1) == 0.0
    times = local_time([[0.2, 0.5], [0.9, 1 - 1e-9]], 1.0, 0.1, 0.1, 0.1, 0.1)
    assert times.shape == (2, 2)
    assert np.all(np.diff(times.ravel()) > 0)


def after_escape(s, start):
    """Return what passes until the mode is half learned once it has left a small start, but for what vanishes."""
    size = lambertw(s / start).real
    return (size**2 / 2 - (2 - np.log(2)) * size - np.log(2) - np.pi**2 / 12 + np.log(2) ** 2 / 2) / s**2


@pytest.mark.parametrize("ratios", [(1.0, 1.0, 1.0), (1.0, 0.7, 1.3), (1.0, 0.2, 0.0)])
def test_half_time_from_small_starts(ratios):
    """The reciprocal of the start, and its logarithm squared; the rest falls like the reciprocal of the logarithm."""
    s, rest, sizes = 1.5, [], []
    for scale in (1e-4, 1e-8):
        a, q, p = np.array(ratios) * scale
        half, escape = local_time(s / 2, s, a, 0.0, q, p), local_escape_time(s, a, q, p)
        assert_close(half / escape, 1.0, 2e-3)
        rest.append(half - escape - after_escape(s, q + p))
        sizes.append(lambertw(s / (q + p)).real)
        mean = 1 / (s * np.mean([a, q, p]))
        assert abs(half / mean - 1) > 5e-3 or ratios[1] == 1.0
        assert half > 10 * np.log(s / a**2) / (2 * s)  # what a mode needs behind a fixed channel
    assert_close(np.diff(np.log(rest)) / np.diff(np.log(sizes)), -1.0, 0.1)


def test_a_reader_of_order_one_makes_it_a_logarithm():
    s, p, scales = 1.5, 0.8, np.array([1e-3, 1e-5, 1e-7])
    escape = local_escape_time(s, scales, 0.5 * scales, p)
    assert_close(escape, np.log(4 * p / (1.5 * scales)) / (s * p), 1e-5)
    later = [local_time(s / 2, s, a, a, 0.5 * a, p) for a in scales] - escape
    assert_close(np.diff(later), 0.0, 1e-3)  # a constant
    assert abs(later[0]) > 0.1


def decaying(s, size, decay):
    """Integrate the mode from equal starts until it is learned or has faded; return when, and whether it is learned."""

    def velocity(_, state):
        a, c, q, p = state
        e = s - a * c
        return [q * p * e - decay * a, a * e - decay * c, a * p * e - decay * q, a * q * e - decay * p]

    def learned(_, state):
        return state[0] * state[1] - s / 4

    def faded(_, state):
        return state[0] - size / 30

    learned.terminal = faded.terminal = True
    run = solve_ivp(
        velocity, (0.0, 1e6), [size, 0.0, size, size], method="LSODA", rtol=1e-8, atol=1e-13, events=(learned, faded)
    )  # fmt: skip
    return run.t[-1], run.t_events[0].size > 0


def test_too_small_a_start_learns_nothing():
    """The threshold of the start under weight decay: that of the flow of a small mode, with an error of first order."""
    s, errors = 1.5, []
    for decay in (0.03, 0.003):
        low, high = 0.5 * decay / s, 2.0 * decay / s
        for _ in range(16):
            middle = np.sqrt(low * high)
            low, high = (low, middle) if decaying(s, middle, decay)[1] else (middle, high)
        errors.append(high * s / decay - 1)
        for size, finite in ((0.99 * decay / s, False), (1.01 * decay / s, True)):
            assert np.isfinite(local_escape_time(s, size, size, size, weight_decay=decay)) == finite
    assert_close(np.diff(np.log(errors)) / np.log(0.1), 1.0, 0.1)
    start = 1.5 * decay / s
    later, learns = decaying(s, start, decay)
    assert learns
    assert_close(local_escape_time(s, start, start, start, weight_decay=decay) / later, 1.0, 0.02)
    assert abs(local_escape_time(s, start, start, start) / later - 1) > 0.2


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: local_time(0.5, 0.0, 0.1, 0.1, 0.1, 0.1), "s"),
        (lambda: local_time(0.5, 1.0, 0.0, 0.1, 0.1, 0.1), "a"),
        (lambda: local_time(0.5, 1.0, 0.1, 0.1, 0.1, -0.1), "p"),
        (lambda: local_time(1.0, 1.0, 0.1, 0.1, 0.1, 0.1), "strength"),
        (lambda: local_time(1e-3, 1.0, 0.1, 0.1, 0.1, 0.1), "strength"),
        (lambda: local_escape_time(0.0, 0.1, 0.1, 0.1), "s"),
        (lambda: local_escape_time(1.0, 0.0, 0.1, 0.0), "a"),
        (lambda: local_escape_time(1.0, 0.1, 0.1, 0.1, weight_decay=-1.0), "weight_decay"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        call()
