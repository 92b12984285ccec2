"""Capture by a Kolen-Pollack mirror: the reduced cycle against integrated flows, and when there is one."""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import ellipe, ellipk

from linfb.theory import capture_period, capture_rate, critical_reader_rate
from tests.theory_flow import assert_close, errors_flow, integrate

S = np.array([2.0, 1.0])


def packed(flow, shapes):
    """Return the flow as a function of one vector."""
    cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

    def parts(flat):
        return [x.reshape(shape) for x, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    return lambda _, flat: np.concatenate([np.ravel(x) for x in flow(*parts(flat))])


def captured(s, decay):
    """Return W1, W2, P, Q of one unit where theory puts the cycle of a fast reader, as it passes mode 2."""
    size = np.sqrt(s[0] ** 2 * ellipe(1 - (s[1] / s[0]) ** 2) / ellipk(1 - (s[1] / s[0]) ** 2) / decay)
    return np.array([[0, size]]), np.array([[0], [s[1] / size]]), np.array([[-1.0, 0]]), np.array([[size]])


def passages(s, rate, decay, span, *, start=None, rtol=1e-9):
    """Return the times at which the unit's weight from input 1 vanishes, from the cycle's start if not another."""
    start = captured(s, decay) if start is None else start
    flow = packed(errors_flow(np.diag(s), rate, "kolen_pollack", decay=decay), [x.shape for x in start])
    run = solve_ivp(flow, (0, span), np.concatenate([np.ravel(x) for x in start]), method="LSODA", rtol=rtol,
                    atol=rtol, events=lambda _, flat: flat[0])  # fmt: skip
    return run.t_events[0]


@pytest.mark.parametrize("factor", [1.05, 1.5, 10.0])
@pytest.mark.parametrize("s", [(2.0, 1.0), (3.0, 2.5)])
def test_period_is_that_of_two_angles(s, factor):
    """The same limit as a flow of two angles in time: the unit's and the reader's."""
    a, b = s
    rate = factor * capture_rate(s)

    def flow(_, angles):
        phi, theta = angles
        sees = b * np.sin(theta) * np.cos(phi) - a * np.cos(theta) * np.sin(phi)
        return sees, rate * sees * (a * np.sin(theta) * np.sin(phi) + b * np.cos(theta) * np.cos(phi))

    run = solve_ivp(flow, (0, 40 * capture_period(s, rate=rate)), [0, np.pi / 2], method="DOP853", rtol=1e-12,
                    atol=1e-13, events=lambda _, angles: np.sin(angles[0]))  # fmt: skip
    period = np.diff(run.t_events[0])[-1]
    assert_close(period, capture_period(s, rate=rate), 1e-9 * period)
    assert abs(period - capture_period(s)) > 1e-4


def test_period_of_fast_readers():
    for s in ((3.0, 0.1), (2.0, 1.0), (1.0, 1.0)):
        expected = quad(lambda x, a, b: 1 / np.hypot(a * np.sin(x), b * np.cos(x)), 0, np.pi, args=s,
                        points=[np.pi / 2], epsabs=1e-13, epsrel=1e-13)[0]  # fmt: skip
        assert_close(capture_period(s), expected, 1e-9)
    errors = [capture_period(S, rate=rate) - capture_period(S) for rate in (40.0, 80.0)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)


def test_equal_strengths():
    assert capture_rate([1.5, 1.5]) == pytest.approx(critical_reader_rate([1.5, 1.5], 1), rel=1e-12)
    assert_close(capture_period([1.5, 1.5], rate=1.0), np.pi / np.sqrt(1.5**2 - 1), 1e-9)
    assert capture_period([1.5, 1.5], rate=0.66) == np.inf
    assert capture_rate([1.5, 1.5 * (1 - 1e-6)]) == pytest.approx(1 / 1.5, rel=1e-5)


def test_period_of_the_whole_flow():
    """Weak decay is a limit, and decay changes the period by its square."""
    rate, errors = 1.2, []
    for decay in (0.04, 0.02):
        period = np.diff(passages(S, rate, decay, 5 / decay, rtol=1e-8))[-1]
        errors.append(period - capture_period(S, rate=rate))
    assert np.abs(errors).max() < 0.02
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)
    assert abs(period - capture_period(S)) > 0.5


@pytest.mark.parametrize(("factor", "goes_on"), [(0.9, False), (1.1, True)])
def test_below_the_critical_rate_the_start_decides(factor, goes_on):
    rate, decay = factor * capture_rate(S), 0.02
    assert rate < critical_reader_rate(S, 1, weight_decay=decay)
    times = passages(S, rate, decay, 60.0, rtol=1e-7)
    assert (times[-1] > 50) == goes_on
    size = np.sqrt(S[0] - decay)
    learned = np.array([[size, 0]]), np.array([[size], [0]]), np.array([[1, 1e-3]]), np.array([[size]])
    hidden = passages(S, rate, decay, 60.0, start=learned, rtol=1e-7)
    assert hidden.size == 0  # mode 1 stays, from the state that is critical elsewhere


def exponents(s, rate, decay):
    """Return exponents over a cycle of another hidden unit, small and beside a captured one, and those at one time."""
    start = captured(s, decay)
    flow = packed(errors_flow(np.diag(s), rate, "kolen_pollack", decay=decay), [x.shape for x in start])
    begin, end = passages(s, rate, decay, 10 / decay)[[-3, -1]]
    first = np.concatenate([np.ravel(x) for x in start])
    settled = solve_ivp(flow, (0, begin), first, method="LSODA", rtol=1e-10, atol=1e-10).y[:, -1]

    def system(flat):
        """The unit's entry of the mirror, its weights from the two inputs and to the two outputs."""
        w, c, p = flat[:2], flat[2:4], flat[4:6]
        E, matrix = np.diag(s) - np.outer(c, w), -decay * np.eye(5)
        matrix[0, 1:3] = matrix[1:3, 0] = p @ E
        matrix[3:, 1:3] = E
        return matrix

    def rhs(_, flat):
        return np.concatenate([flow(0, flat[:7]), (system(flat) @ flat[7:].reshape(5, 5)).ravel()])

    both = np.concatenate([settled, np.eye(5).ravel()])
    after = solve_ivp(rhs, (0, end - begin), both, method="LSODA", rtol=1e-10, atol=1e-12).y[7:, -1].reshape(5, 5)
    over = np.log(np.abs(np.linalg.eigvals(after))) / (end - begin)
    return np.sort(over)[::-1], np.sort(np.linalg.eigvals(system(settled)).real)[::-1]


def test_other_units_fade():
    """Exponents 0 (a rotation of hidden units), -lambda (three times, two of them the readout's) and -2 lambda."""
    decay = 0.2
    over_a_cycle, at_one_time = exponents(S, 2.0, decay)
    assert_close(over_a_cycle, [0, -decay, -decay, -decay, -2 * decay], 1e-4)
    assert at_one_time[0] > 0.5  # if the captured unit stood still the other would grow


@pytest.mark.parametrize(("rank", "s"), [(1, (2.0, 1.0)), (2, (3.0, 2.0, 1.0))])
def test_small_starts_are_captured(rank, s):
    """Of six hidden units as many remain as the channel is wide, and the map goes round with the period of theory."""
    s, rng = np.array(s), np.random.default_rng(rank)
    W1, W2 = 1e-2 * rng.standard_normal((6, s.size)), 1e-2 * rng.standard_normal((s.size, 6))
    P = np.linalg.qr(rng.standard_normal((s.size, rank)))[0].T
    units = {}
    times = np.linspace(60, 66, 241)
    for mirror in ("kolen_pollack", "perfect"):
        runs = integrate(errors_flow(np.diag(s), 10.0, mirror, decay=0.1), (W1, W2, P, P @ W2), times, rtol=1e-5)
        layer = np.concatenate([runs[0].transpose(0, 2, 1), runs[1]], axis=1)
        values = np.linalg.svd(layer, compute_uv=False)
        units[mirror] = (values[..., rank] / values[..., 0]).max()
        if mirror == "kolen_pollack":
            known = np.einsum("tik,tki->ti", runs[1], runs[0])[:, rank] / s[rank]
            up = np.flatnonzero((known[:-1] < 0.5) & (known[1:] >= 0.5))
            crossings = times[up] + (0.5 - known[up]) / (known[up + 1] - known[up]) * (times[1] - times[0])
            assert_close(np.diff(crossings), capture_period(s, rank), 0.02 * capture_period(s, rank))
    assert units["kolen_pollack"] < 0.01
    assert units["perfect"] > 0.1


@pytest.mark.parametrize(("mirror", "gamma"), [("kolen_pollack", 0.0), ("weight_mirror", 0.1), ("weight_mirror", 1.0)])
def test_another_unit_grows_beside_one_whose_mirror_follows(mirror, gamma):
    """And not beside one that Kolen and Pollack's mirror has captured."""
    W1, W2, P, Q = captured(S, 0.1)
    more = np.array([[1e-6, 2e-6]])
    state = np.vstack([W1, more]), np.hstack([W2, more.T]), P, np.hstack([Q, [[1e-6]]])
    flow = errors_flow(np.diag(S), 10.0, mirror, decay=0.1, gamma=gamma)
    W1, W2, *_ = (x[-1] for x in integrate(flow, state, [60.0], rtol=1e-7))
    second = np.linalg.svd(np.vstack([W1.T, W2]), compute_uv=False)[1]
    assert second < 1e-5 if mirror == "kolen_pollack" else second > 0.1


def test_capture_lasts_without_decay():
    """The error never falls below that of the cycle, where a mirror that follows lets everything be learned."""
    rng = np.random.default_rng(0)
    W1, W2 = 1e-2 * rng.standard_normal((6, 2)), 1e-2 * rng.standard_normal((2, 6))
    P = np.linalg.qr(rng.standard_normal((2, 1)))[0].T
    for mirror in ("kolen_pollack", "perfect"):
        runs = integrate(errors_flow(np.diag(S), 10.0, mirror), (W1, W2, P, P @ W2), np.linspace(40, 60, 41), rtol=1e-5)
        left = np.linalg.norm(np.diag(S) - runs[1] @ runs[0], 2, axis=(1, 2))
        if mirror == "perfect":
            assert left.max() < 0.01
        else:
            assert S[1] - 0.02 < left.min() < S[1] + 0.1
            assert S[0] - 0.1 < left.max() < S[0] + 0.02
            size = np.sum(runs[0] ** 2, axis=(1, 2))
            assert (size[-1] - size[0]) / 20 == pytest.approx(2 * S[0] ** 2 * ellipe(0.75) / ellipk(0.75), rel=0.1)


def test_limits():
    assert capture_rate([2.0]) == capture_rate([2.0, 0.0]) == capture_period([2.0, 1.0], 2) == np.inf
    assert capture_period(S, rate=0.99 * capture_rate(S)) == np.inf
    assert capture_period(S, rate=1.001 * capture_rate(S)) > 10 * capture_period(S)
    assert 1 / 4 < capture_rate(S) < 2
    assert capture_rate(3 * S) == pytest.approx(capture_rate(S) / 3, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: capture_rate([1.0, 2.0]), "s"),
        (lambda: capture_rate([1.0, 0.5], 0), "rank"),
        (lambda: capture_period([0.0, 0.0]), "s"),
        (lambda: capture_period([1.0, 0.5], rate=0.0), "rate"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        call()
