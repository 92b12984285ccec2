"""Channels that learn: the reduced flow against whole networks, and one mode's start and half time against flows."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import linfb
from linfb import rules
from linfb.linear import Dop853
from linfb.networks import Given
from linfb.rules import mirrors, readers
from linfb.theory import adaptive_half_time, adaptive_modes, adaptive_start, mode_strength, time_to_half
from tests.test_theory_turning import errors_flow
from tests.theory_flow import assert_close, integrate

TIGHT = Dop853(rtol=1e-12, atol=1e-14)
TIMES = [0.0, 0.5, 2.0]
MIRRORS = {
    "exact": lambda Q: mirrors.Exact(), "kolen_pollack": lambda Q: mirrors.KolenPollack(start=Q),
    "weight_mirror": lambda Q: mirrors.WeightMirror(rate=1.3, start=Q),
}  # fmt: skip


def products(W1, W2, P, Q, left, right, mirror):
    """Return the reader's overlap and the Gram matrix of the hidden vectors, of mirrors that are not exact with Q's."""
    vectors = [W1 @ right, W2.T @ left] + ([] if mirror == "exact" else [Q.T @ P @ left])
    return left.T @ P.T @ P @ left, np.hstack(vectors).T @ np.hstack(vectors)


def network(rng, s, widths, rank, inside):
    """Draw a task and a network, with weights that have nothing outside the task's modes if they are to be inside."""
    n_in, hidden, n_out = widths
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (n_out, n_in))
    W1, W2 = 0.3 * rng.standard_normal((hidden, n_in)), 0.3 * rng.standard_normal((n_out, hidden))
    if inside:
        left, right = left[:, : len(s)], right[:, : len(s)]
        W1, W2 = W1 @ right @ right.T, left @ left.T @ W2
    P = np.linalg.qr(rng.standard_normal((n_out, rank)))[0].T
    task = linfb.Task((left[:, : len(s)] * s) @ right[:, : len(s)].T)
    return task, W1, W2, P, 0.3 * rng.standard_normal((rank, hidden)), left, right


@pytest.mark.parametrize(
    ("mirror", "on", "inside"),
    [
        ("exact", "errors", True), ("kolen_pollack", "errors", False), ("weight_mirror", "errors", True),
        ("exact", "labels", False), ("kolen_pollack", "labels", True),
    ],
)  # fmt: skip
def test_modes_are_those_of_the_network(mirror, on, inside):
    """Weights inside the modes, at unequal widths; or any weights, with modes of strength zero for the rest."""
    s, widths = [2.0, 1.0], (6, 4, 5) if inside else (4, 3, 4)
    task, W1, W2, P, Q, left, right = network(np.random.default_rng(1), s, widths, 2, inside)
    rule = rules.low_rank(2, reader=readers.Oja(on=on, rate=0.7, start=P), mirror=MIRRORS[mirror](Q))
    start = linfb.LinearNetwork(widths, Given((W1, W2)))
    whole = linfb.simulate(task, start, rule, TIMES, weight_decay=0.05, method=TIGHT, observe=("network_map",))
    strengths = np.pad(s, (0, left.shape[1] - 2))
    seen = products(W1, W2, P, Q, left, right, mirror)
    options = {"on": on, "mirror": mirror, "rate": 0.7, "mirror_rate": 1.3, "weight_decay": 0.05}
    expected = left.T @ whole.network_map.values[0] @ right
    assert_close(adaptive_modes(TIMES, strengths, *seen, **options).map, expected, 1e-9)
    wrong = options | {"on": "labels" if on == "errors" else "errors"}
    with pytest.raises(AssertionError):
        assert_close(adaptive_modes(TIMES, strengths, *seen, **wrong).map, expected, 1e-3)


def test_any_network_with_the_same_products_learns_alike():
    s = [2.0, 1.0]
    _, W1, W2, P, Q, left, right = network(np.random.default_rng(2), s, (2, 7, 6), 3, True)
    seen = products(W1, W2, P, Q, left, right, "kolen_pollack")
    found = adaptive_modes(TIMES, s, *seen)
    rng = np.random.default_rng(3)
    to_left, to_right, to_hidden = (
        np.linalg.qr(rng.standard_normal((n + 3, n)))[0] for n in (len(left), len(right), len(W1))
    )
    moved = (to_hidden @ W1 @ to_right.T, to_left @ W2 @ to_hidden.T, P @ to_left.T, Q @ to_hidden.T)
    flow = integrate(
        errors_flow(to_left @ (left * s) @ right.T @ to_right.T, 1.0, "kolen_pollack"), moved, TIMES
    )  # fmt: skip
    maps = (to_left @ left).T @ flow[1] @ flow[0] @ (to_right @ right)
    assert_close(found.map, maps, 1e-9)
    overlaps = (to_left @ left).T @ flow[2].transpose(0, 2, 1) @ flow[2] @ to_left @ left
    assert_close(found.overlap, overlaps, 1e-9)
    again = adaptive_modes([3.0, 4.0], s, found.overlap[1], found.gram[1])
    assert_close(again.map, adaptive_modes([3.5, 4.5], s, *seen).map, 1e-9)


def mode_flow(s, a, c, kappa, q, rate, *, on="errors", decay=0.0, small=False):
    """Return the plain equations of one mode, of the small one if told so, and its start."""

    def velocity(_, state):
        a, c, q, seen = state
        e = s - (0.0 if small else a * c)
        drive = c * seen if mirror else q * np.sqrt(seen)
        pull = s if on == "labels" else e
        return [
            drive * e - decay * a, a * e - decay * c, a * np.sqrt(seen) * e - decay * q,
            2 * rate * pull**2 * seen * (1 - seen),
        ]  # fmt: skip

    mirror = q is None
    return velocity, [a, c, 0.0 if mirror else q, kappa]


def half_time(*mode, **options):
    """Return when the mode has half of its strength, by integration."""

    def half(_, state):
        return state[0] * state[1] - mode[0] / 2

    half.terminal = True
    velocity, start = mode_flow(*mode, **options)
    run = solve_ivp(velocity, (0.0, 1e3), start, method="DOP853", rtol=1e-12, atol=1e-15, events=half)
    return run.t_events[0][0]


def order(errors, scales):
    return np.diff(np.log(np.abs(errors))) / np.diff(np.log(scales))


@pytest.mark.parametrize("q", [None, 0.4])
@pytest.mark.parametrize(("s", "kappa", "rate"), [(1.5, 0.2, 1.0), (1.0, 0.01, 0.4), (2.0, 0.7, 3.0), (1.0, 0.3, 0.2)])
def test_start_is_what_the_linear_flow_makes_of_it(s, kappa, rate, q):
    """Integrated until the reader sees all but 1e-13 of the mode."""
    velocity, start = mode_flow(s, 1.0, 0.7, kappa, q, rate, small=True)
    end = (np.log(1e13) + np.log(1 / kappa - 1)) / (2 * rate * s**2)
    run = solve_ivp(velocity, (0.0, end), start, method="DOP853", rtol=1e-13, atol=1e-15)
    a, c, q_end, _ = run.y[:, -1]
    grown = ((a + (c if q is None else q_end)) / 2 * np.exp(-s * end)) ** 2
    found = adaptive_start(s, 1.0, 0.7, kappa, q=q, rate=rate)
    assert_close(found / grown, 1.0, 1e-9)
    other = adaptive_start(s, 1.0, 0.7, kappa, q=None if q else 0.7 * np.sqrt(kappa), rate=rate)
    for wrong in (other, 0.7**2 * np.sqrt(kappa), (1.7 / 2) ** 2):
        with pytest.raises(AssertionError):
            assert_close(wrong / grown, 1.0, 1e-3)


@pytest.mark.parametrize("on", ["errors", "labels"])
@pytest.mark.parametrize(
    ("mirror", "rate", "expected"),
    [("exact", 1.0, 2.0), ("exact", 0.3, 0.9), ("kolen_pollack", 1.0, 1.0), ("kolen_pollack", 0.2, 0.6)],
)
def test_half_time_from_small_starts(mirror, rate, expected, on):
    """The error falls like a power of the start; without what the reader costs, or with a fixed reader, it does not."""
    s, kappa, scales = 1.5, 0.2, np.array([1e-3, 1e-4])
    starts = np.array([1.1, 0.8]) * scales[:, None]
    q = None if mirror == "exact" else 0.5 * scales
    integrated = [
        half_time(s, a, c, kappa, None if q is None else 0.5 * scale, rate, on=on)
        for scale, (a, c) in zip(scales, starts, strict=True)
    ]
    errors = adaptive_half_time(s, *starts.T, kappa, q=q, rate=rate) - integrated
    assert np.abs(errors).max() < 0.02
    if mirror == "exact" and on == "labels" and rate < 1:
        expected *= 2  # all that the reader has not seen yet is in the formula
    assert_close(order(errors, scales), expected, 0.1)
    still = time_to_half(s, starts.prod(axis=1), kappa=kappa)
    found = time_to_half(s, (starts.sum(axis=1) / 2) ** 2)
    for wrong in (still, found):
        assert np.abs(wrong - integrated).min() > 0.1
        assert np.abs(order(wrong - integrated, scales)) < 0.5


@pytest.mark.parametrize(("q", "expected"), [(None, 2.0), (0.5, 1.0)])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_curve_from_small_starts(decay, q, expected):
    """Backpropagation's logistic from the equivalent start, at all times."""
    s, kappa, errors, scales = 1.5, 0.2, [], [1e-3, 1e-4]
    for scale in scales:
        times = np.linspace(0.0, 12.0, 200)
        mode = (s, 1.1 * scale, 0.8 * scale, kappa, q and q * scale)
        velocity, start = mode_flow(*mode, 1.0, decay=decay)
        run = solve_ivp(velocity, (0.0, 12.0), start, t_eval=times, method="DOP853", rtol=1e-12, atol=1e-15)
        c0 = adaptive_start(*mode[:-1], q=mode[-1])
        errors.append(np.abs(run.y[0] * run.y[1] - mode_strength(times, s, c0, weight_decay=decay)).max())
        assert np.abs(run.y[0] * run.y[1] - mode_strength(times, s, c0)).max() > 0.05 or decay == 0.0
        assert np.abs(run.y[0] * run.y[1] - mode_strength(times, s, c0, weight_decay=decay, kappa=kappa)).max() > 0.3
    if q is not None:
        expected *= s / (s - decay)  # a mirror that does not fit fades meanwhile
    assert_close(order(errors, scales), expected, 0.02)


def test_hidden_vectors_add_as_vectors():
    """A random start in a whole network: one mode, nothing outside it."""
    rng, s, rate, scale = np.random.default_rng(5), 1.5, 1.0, 1e-4
    u, v = (x / np.linalg.norm(x) for x in rng.standard_normal((2, 5)))
    first, readout = scale * rng.standard_normal((2, 6))
    P = np.linalg.qr(rng.standard_normal((5, 2)))[0].T
    weights = np.sqrt([adaptive_start(s, *one, (P @ u) @ (P @ u), rate=rate) for one in ((1.0, 0.0), (0.0, 1.0))])
    start = (np.outer(first, v), np.outer(u, readout), P, P @ np.outer(u, readout))
    flow = integrate(errors_flow(s * np.outer(u, v), rate, "perfect"), start, [5.0, 7.0, 9.0], rtol=1e-10)
    found = np.einsum("i,tij,tjk,k->t", u, flow[1], flow[0], v)
    effective = np.sum((weights[0] * first + weights[1] * readout) ** 2)
    assert_close(found, mode_strength([5.0, 7.0, 9.0], s, effective), 1e-6)
    apart = np.sum((weights[0] * first) ** 2 + (weights[1] * readout) ** 2)
    assert np.abs(found - mode_strength([5.0, 7.0, 9.0], s, apart)).max() > 1e-3


def test_limits():
    s, a, c = 1.3, 2e-3, 1e-3
    assert_close(adaptive_start(s, a, c, 1.0), (a + c) ** 2 / 4, 1e-18)
    assert_close(adaptive_start(s, a, c, 1.0, q=c), (a + c) ** 2 / 4, 1e-18)
    assert_close(adaptive_half_time(s, a, c, 0.3, rate=1e9), time_to_half(s, (a + c) ** 2 / 4), 1e-6)
    root = np.sqrt(0.3)
    balanced = time_to_half(s, root * c**2, kappa=0.3)  # a fixed channel
    slow = [adaptive_half_time(s, root * c, c, 0.3, q=root * c, rate=rate) - balanced for rate in (1e-4, 1e-5)]
    assert_close(order(slow, [1e-4, 1e-5]), 1.0, 0.1)
    assert abs(slow[1]) < 1e-3 * balanced
    assert adaptive_half_time(s, root * c, c, 0.3, rate=0.05) < 0.9 * balanced  # a slow reader is still of use


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: adaptive_start(0.0, 0.1, 0.1, 0.5), "s"),
        (lambda: adaptive_start(1.0, 0.0, 0.0, 0.5), "a"),
        (lambda: adaptive_start(1.0, 0.1, 0.1, 0.0), "kappa"),
        (lambda: adaptive_start(1.0, 0.1, 0.1, 1.1), "kappa"),
        (lambda: adaptive_start(1.0, 0.1, 0.1, 0.5, rate=0.01), "rate"),
        (lambda: adaptive_start(1.0, 0.1, 0.1, 0.5, q=-1.0), "q"),
        (lambda: adaptive_half_time(1.0, 1.0, 1.0, 0.5), "a"),
        (lambda: adaptive_half_time(1.0, 10.0, 0.1, 0.01, q=10.0, rate=0.1), "a"),
        (lambda: adaptive_modes([0.0], [1.0], [[1.1]], np.eye(3)), "overlap"),
        (lambda: adaptive_modes([0.0], [1.0], [[1.0]], np.eye(2)), "gram"),
        (lambda: adaptive_modes([0.0], [1.0], [[1.0]], -np.eye(3)), "gram"),
        (lambda: adaptive_modes([0.0], [1.0], [[1.0]], np.eye(3), mirror="perfect"), "mirror"),
        (lambda: adaptive_modes([0.0], [1.0], [[1.0]], np.eye(3), on="all"), "on"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        call()
