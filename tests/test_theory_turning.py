"""When an error-driven reader turns: the conditions against the whole flow, by its Jacobian and by runs."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from linfb.theory import (
    critical_reader_rate,
    critical_reader_rate_at,
    critical_tilt,
    modes_learned_by_errors,
    turning_exponent,
    visible_error_flow,
)
from tests.theory_flow import assert_close, errors_flow, integrate

STRENGTHS = np.array([4.0, 3.0, 2.0, 1.0])


def jacobian(rhs, state):
    """Return the Jacobian by complex steps, exact to rounding."""
    cuts = np.cumsum([x.size for x in state])[:-1]

    def flat(vector):
        parts = [x.reshape(y.shape) for x, y in zip(np.split(vector, cuts), state, strict=True)]
        return np.concatenate([np.ravel(x) for x in rhs(*parts)])

    start = np.concatenate([np.ravel(x) for x in state])
    return np.stack([flat(start + 1e-30j * e).imag / 1e-30 for e in np.eye(start.size)], axis=1)


def learned(s, rank, decay=0.0):
    """Return W1, W2, P, Q where the first `rank` modes are learned and the others hidden."""
    root = np.diag(np.sqrt(s[:rank] - decay))
    W1, W2, P = np.zeros((rank, len(s))), np.zeros((len(s), rank)), np.eye(rank, len(s))
    W1[:, :rank], W2[:rank] = root, root
    return W1, W2, P, P @ W2


def contains(values, value, tolerance=1e-7):
    assert np.abs(values - value).min() < tolerance


CASES = [(0.0, None), (0.1, None), (0.3, [0.0, 0.0, -0.02, 0.0]), (0.0, [0.1, 0.4, 0.2, 0.0])]


@pytest.mark.parametrize("mirror", ["perfect", "kolen_pollack", "weight_mirror"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("decay", "noise"), CASES)
def test_pairs_are_eigenvalues_of_the_whole_flow(decay, noise, rank, mirror):
    """Repeated eigenvalues of a Jacobian are good to the root of rounding only, hence 1e-7; a weight mirror lags."""
    noise = None if noise is None else np.array(noise) + 0.02
    options = {"weight_decay": decay, "noise": noise}
    critical = critical_reader_rate(STRENGTHS, rank, **options)
    for rate in (0.9, 1.1) if critical in (0.0, np.inf) else (0.9 * critical, 1.1 * critical):
        rhs = errors_flow(np.diag(STRENGTHS), rate, mirror, decay=decay, noise=noise)
        values = np.linalg.eigvals(jacobian(rhs, learned(STRENGTHS, rank, decay)))
        exponent = turning_exponent(STRENGTHS, rank, rate, **options)
        contains(values, exponent)
        assert (exponent.real > 0) == (rate > critical)
        if rate > critical:
            assert values.real.max() == pytest.approx(exponent.real, abs=1e-7)
        else:
            assert values.real.max() < 1e-7
        with pytest.raises(AssertionError):
            contains(values, turning_exponent(1.01 * STRENGTHS, rank, rate, **options))


@pytest.mark.parametrize("mirror", ["perfect", "kolen_pollack"])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_critical_rate_is_a_hopf_bifurcation(rank, mirror):
    decay = 0.05
    critical = critical_reader_rate(STRENGTHS, rank, weight_decay=decay)
    a, b = STRENGTHS[rank - 1], STRENGTHS[rank]
    exponent = turning_exponent(STRENGTHS, rank, critical, weight_decay=decay)
    assert abs(exponent.real) < 1e-12
    rhs = errors_flow(np.diag(STRENGTHS), critical, mirror, decay=decay)
    contains(np.linalg.eigvals(jacobian(rhs, learned(STRENGTHS, rank, decay))), exponent, 1e-9)
    errors = []
    for weak in (0.02, 0.01):
        frequency = turning_exponent(STRENGTHS, rank, critical_reader_rate(STRENGTHS, rank, weight_decay=weak),
                                     weight_decay=weak).imag  # fmt: skip
        errors.append([
            critical_reader_rate(STRENGTHS, rank, weight_decay=weak) - (a - weak) / b**2,
            frequency - weak * np.sqrt(a**2 - b**2) / b,
        ])  # fmt: skip
    order = np.log2(np.abs(np.divide(*errors)))
    assert_close(order, [2, 2], 0.1)  # the expansions are of first order in the decay


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mirror", ["perfect", "kolen_pollack", "weight_mirror"])
def test_general_condition_at_random_states(mirror, seed):
    """Any readers, unbalanced weights; the mirror as it stands where it may be anything."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((5, 4))
    P = np.linalg.qr(rng.standard_normal((5, 2)))[0].T
    V = np.linalg.qr((P @ A).T)[0]
    R = np.eye(2) + 0.3 * rng.standard_normal((2, 2))
    W1, W2 = R @ V.T, A @ V @ np.linalg.inv(R)
    Q = P @ W2 + (0.5 * rng.standard_normal((2, 2)) if mirror == "kolen_pollack" else 0)
    E = A - W2 @ W1
    critical = critical_reader_rate_at(E, P, W2, Q)
    for rate in (critical - 0.3, critical + 0.3):
        values = np.linalg.eigvals(jacobian(errors_flow(A, rate, mirror), (W1, W2, P, Q)))
        growth = (rate - critical) * np.linalg.norm(E, 2) ** 2
        nearest = np.abs(values.real - growth).min()
        assert nearest < 1e-7
        assert (values.real.max() > 1e-3) == (rate > critical)
        assert np.abs(values.real - (rate - critical) * np.linalg.norm(E, 2)).min() > 10 * nearest


@pytest.mark.parametrize(("factor", "turns"), [(0.9, False), (1.1, True)])
@pytest.mark.parametrize("rank", [1, 2])
def test_runs_on_both_sides(rank, factor, turns):
    """From slightly disturbed hidden states; the wrong threshold, with s_{r+1} in the place of s_r, fails."""
    s = np.array([3.0, 2.0, 1.0])
    rate = factor * critical_reader_rate(s, rank)
    rng = np.random.default_rng(rank)
    W1, W2, P, _ = learned(s, rank)
    W1, W2 = np.pad(W1, ((0, 3 - rank), (0, 0))), np.pad(W2, ((0, 0), (0, 3 - rank)))
    W1, W2 = (W + 1e-4 * rng.standard_normal(W.shape) for W in (W1, W2))
    end = integrate(errors_flow(np.diag(s), rate, "perfect"), (W1, W2, P, P @ W2), [150.0 / s[rank - 1]], rtol=1e-7)
    left = np.linalg.norm(np.diag(s) - end[1][0] @ end[0][0], 2)
    assert (left < 0.9 * s[rank]) == turns == (rate > critical_reader_rate(s, rank))
    wrong = s[rank] / s[rank] ** 2
    assert rate > wrong  # by which it would turn both times


@pytest.mark.parametrize(("rank", "rate"), [(1, 0.6), (1, 1.4), (1, 2.6), (2, 1.4), (2, 2.6)])
def test_how_many_modes_are_learned(rank, rate):
    s = np.array([3.0, 2.0, 1.0])
    rng = np.random.default_rng(7)
    W1, W2 = 1e-3 * rng.standard_normal((4, 3)), 1e-3 * rng.standard_normal((3, 4))
    P = np.linalg.qr(rng.standard_normal((3, rank)))[0].T
    end = integrate(errors_flow(np.diag(s), rate, "perfect"), (W1, W2, P, P @ W2), [60.0], rtol=1e-8)
    found = np.sum(np.diag(end[1][0] @ end[0][0]) > 0.5 * s)
    assert found == modes_learned_by_errors(s, rank, rate)
    assert found != modes_learned_by_errors(s, rank, rate / 3) or found == rank


def tilted(s, rank, tilt):
    """Return W1, W2, P, Q where modes are learned and the reader is tilted towards the next one."""
    W1, W2, P, Q = learned(s, rank)
    P[-1, rank - 1 : rank + 1] = np.cos(tilt), np.sin(tilt)
    return W1, W2, P, Q


def escapes(s, rank, rate, mirror, state):
    """Whether a reader ends far from the first modes within a long time, at lambda = 0."""
    flow, shapes = errors_flow(np.diag(s), rate, mirror), [x.shape for x in state]
    cuts = np.cumsum([x.size for x in state[:-1]])

    def parts(flat):
        return [x.reshape(shape) for x, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    def far(_, flat):
        return abs(parts(flat)[2][-1, rank]) - 0.8

    far.terminal = True
    start = np.concatenate([np.ravel(x) for x in state])
    if far(0, start) > 0:
        return True
    run = solve_ivp(lambda _, flat: np.concatenate([np.ravel(x) for x in flow(*parts(flat))]), (0, 1e4), start,
                    method="LSODA", rtol=1e-8, atol=1e-12, events=far)  # fmt: skip
    return run.status == 1


@pytest.mark.parametrize(
    ("mirror", "rank"), [("perfect", 1), ("perfect", 2), ("weight_mirror", 1), ("kolen_pollack", 1)]
)
def test_tilt_that_escapes(mirror, rank):
    """The formula is of leading order: its relative error at least halves with the distance from the critical rate."""
    s, errors = np.array([3.0, 2.0, 1.0]), []
    name = "kolen_pollack" if mirror == "kolen_pollack" else "perfect"
    other = "perfect" if mirror == "kolen_pollack" else "kolen_pollack"
    for distance in (0.05, 0.025):
        rate = (1 - distance) * critical_reader_rate(s, rank)
        theory = critical_tilt(s, rank, rate, mirror=name)
        low, high = theory, 1.04 * theory
        ends = [escapes(s, rank, rate, mirror, tilted(s, rank, tilt)) for tilt in (low, high)]
        assert ends == [False, True]
        for _ in range(9):
            middle = (low + high) / 2
            turns = escapes(s, rank, rate, mirror, tilted(s, rank, middle))
            low, high = (low, middle) if turns else (middle, high)
        errors.append(middle / theory - 1)
        assert abs(middle / critical_tilt(s, rank, rate, mirror=other) - 1) > 0.09
    assert np.abs(errors).max() < 0.03
    assert np.log2(errors[0] / errors[1]) > 0.9


@pytest.mark.parametrize("mirror", ["perfect", "kolen_pollack"])
def test_small_random_starts_escape_below_the_critical_rate(mirror):
    """By a relative distance of the order 2/3 in their scale (with logarithms), as if that were their tilt."""
    s, found = np.array([2.0, 1.0]), []
    rng = np.random.default_rng(0)
    W1, W2, angle = rng.standard_normal((3, 2)), rng.standard_normal((2, 3)), rng.uniform(-1, 1)
    P = np.array([[np.cos(angle), np.sin(angle)]])
    for scale in (1e-3, 1e-5):
        low, high, until = 1e-4, 0.2, 1.2 * np.log(1 / scale) + 4
        for _ in range(9):
            middle = np.sqrt(low * high)
            rate = (1 - middle) * critical_reader_rate(s, 1)
            flow = errors_flow(np.diag(s), rate, mirror)
            start = [x[-1] for x in integrate(flow, (scale * W1, scale * W2, P, scale * P @ W2), [until], rtol=1e-9)]
            low, high = (middle, high) if escapes(s, 1, rate, mirror, start) else (low, middle)
        found.append(middle)
    assert 0.55 < np.log10(found[0] / found[1]) / 2 < 0.75


def test_no_tilt_is_needed_above_the_critical_rate():
    assert critical_tilt([3.0, 2.0, 1.0], 1, 0.8) == 0
    assert critical_tilt([3.0, 2.0], 2, 0.8) == np.inf
    assert critical_tilt([3.0, 0.0], 1, 0.8) == np.inf


def test_limits():
    assert critical_reader_rate(STRENGTHS, 4) == critical_reader_rate(STRENGTHS, 9) == np.inf
    assert turning_exponent(STRENGTHS, 4, 1.0).real == -np.inf
    assert critical_reader_rate([3.0, 0.0], 1) == np.inf  # nothing to be found there
    assert critical_reader_rate([3.0, 0.0], 1, noise=[0.0, 0.1]) == 0.0  # but noise
    assert critical_reader_rate([3.0, 0.2], 1, weight_decay=0.3) == np.inf  # too weak to be learned by anybody
    isotropic = critical_reader_rate(STRENGTHS, 2, weight_decay=0.1, noise=[0.3] * 4)
    assert isotropic == critical_reader_rate(STRENGTHS, 2, weight_decay=0.1)
    assert critical_reader_rate_at(np.zeros((2, 2)), [[1.0, 0.0]], np.eye(2), [[1.0, 0.0]]) == np.inf


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: critical_reader_rate([1.0, -1.0], 1), "s"),
        (lambda: critical_reader_rate([1.0, 0.5], 1, weight_decay=1.0), "s"),
        (lambda: critical_reader_rate([1.0, 0.5], 0), "rank"),
        (lambda: critical_reader_rate([1.0, 0.5], 1, noise=[1.0]), "noise"),
        (lambda: turning_exponent([1.0, 0.5], 1, -1.0), "rate"),
        (lambda: modes_learned_by_errors([1.0, 2.0], 1, 1.0), "s"),
        (lambda: critical_tilt([1.0, 2.0], 1, 1.0), "s"),
        (lambda: critical_tilt([1.0, 1.0], 1, 1.0), "s"),
        (lambda: critical_tilt([2.0, 1.0], 1, 1.0, mirror="none"), "mirror"),
        (lambda: critical_reader_rate_at(np.eye(2), [[1.0, 0.0]], np.eye(2), [[1.0, 0.0]]), "P"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        call()


@pytest.mark.parametrize("rank", [1, 2])
def test_labels_of_equal_variance_leave_no_hidden_state_but_that_of_the_weakest_modes(rank):
    """What cannot be learned is noise, v - s^2 along every mode; without it every choice of modes has its rate."""
    s, v = STRENGTHS, 17.0
    for order in (s, s[::-1]):
        critical = critical_reader_rate(order, rank, noise=v - order**2)
        assert critical == (0.0 if order is s else pytest.approx(1 / order[:rank].max(), rel=1e-12))
        assert critical_reader_rate(order, rank) > 0


def tanh_flow(x, y, rate, mirror):
    """Return the right-hand side of the flow of a network of tanh units on samples (plain, any dtype)."""

    def rhs(W1, W2, P, Q):
        h = np.tanh(x @ W1.T)
        delta, n = y - h @ W2.T, len(x)
        Q = P @ W2 if mirror == "perfect" else Q
        C = delta.T @ delta / n
        mirrored = P @ delta.T @ h / n if mirror == "kolen_pollack" else 0 * Q
        return ((delta @ P.T @ Q) * (1 - h**2)).T @ x / n, delta.T @ h / n, rate * (P @ C - P @ C @ P.T @ P), mirrored

    return rhs


def hidden_state(seed, rank=2):
    """Return inputs, labels and W1, W2, P, Q of a network of tanh units at rest, whose errors are all hidden."""
    rng = np.random.default_rng(seed)
    x, W1, W2 = rng.standard_normal((7, 4)), rng.standard_normal((3, 4)), rng.standard_normal((4, 3))
    P = np.linalg.qr(rng.standard_normal((4, rank)))[0].T
    h = np.tanh(x @ W1.T)
    unlearned = np.eye(7) - h @ np.linalg.pinv(h)
    return x, h @ W2.T + unlearned @ rng.standard_normal((7, 4)) @ (np.eye(4) - P.T @ P), (W1, W2, P, P @ W2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mirror", ["perfect", "kolen_pollack"])
def test_visible_errors_of_tanh_units_move_as_in_the_whole_flow(mirror, seed):
    """Negative control: the condition of linear networks, with mean slopes and the mean size of inputs, is far off."""
    x, y, (W1, W2, P, Q) = hidden_state(seed)
    if mirror == "kolen_pollack":
        Q = Q + 0.3 * np.random.default_rng(seed).standard_normal(Q.shape)
    h = np.tanh(x @ W1.T)
    errors, slopes = y - h @ W2.T, 1 - h**2
    for rate in (0.2, 1.0, 4.0):
        values = np.linalg.eigvals(jacobian(tanh_flow(x, y, rate, mirror), (W1, W2, P, Q)))
        exponents = np.linalg.eigvals(visible_error_flow(errors, P, W2, Q, x, h, slopes, rate))
        exponent = exponents[np.argmax(exponents.real)]
        contains(values, exponent if exponent.real > 1e-6 else 0)  # there is a manifold of hidden states
        assert values.real.max() == pytest.approx(max(exponent.real, 0), abs=1e-7)
        mean = slopes.mean(0)
        pull = np.linalg.eigvals(P @ W2 @ (mean**2 * Q).T).real.min() * np.trace(x.T @ x) / x.size
        crude = rate * np.linalg.norm(errors, 2) ** 2 / len(x) - pull
        assert abs(crude - exponent.real) > 0.05


def test_visible_errors_on_samples_move_as_those_of_linear_networks():
    """With whitened inputs and errors without noise; inputs that are not whitened are the control."""
    s, rate = np.array([3.0, 2.0, 1.0]), 1.3
    W1, W2, P, Q = learned(s, 2)
    E, x = np.diag(s) - W2 @ W1, np.sqrt(3) * np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    growth = (rate - critical_reader_rate_at(E, P, W2, Q)) * np.linalg.norm(E, 2) ** 2
    found = [
        np.linalg.eigvals(
            visible_error_flow(inputs @ E.T, P, W2, Q, inputs, inputs @ W1.T, np.ones((3, 2)), rate)
        ).real.max()
        for inputs in (x, x * [1.0, 1.0, 2.0])
    ]
    assert found[0] == pytest.approx(growth, abs=1e-12)
    assert abs(found[1] - growth) > 0.1


def test_visible_errors_are_refused_if_there_are_any():
    x, y, (W1, W2, P, Q) = hidden_state(0)
    h = np.tanh(x @ W1.T)
    with pytest.raises(ValueError, match="P must not see the errors"):
        visible_error_flow(y - h @ W2.T + 1e-3 * P[0], P, W2, Q, x, h, 1 - h**2, 1.0)
    with pytest.raises(ValueError, match=r"slopes has shape \(6, 3\), expected \(7, 3\)"):
        visible_error_flow(y - h @ W2.T, P, W2, Q, x, h, (1 - h**2)[1:], 1.0)
