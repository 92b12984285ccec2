"""Learning times that add up, against flows with a fast error-driven reader and a perfect mirror."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from linfb.theory import multiplexed_times, time_to_half
from tests.test_theory_turning import errors_flow
from tests.theory_flow import assert_close


def started(s, scale, hidden, rank, seed=0):
    """Return a teacher in general position, its weights, reader and perfect mirror at the start."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((len(s), len(s))))[0] for _ in range(2))
    W1, W2 = scale * rng.standard_normal((hidden, len(s))), scale * rng.standard_normal((len(s), hidden))
    return (left * s) @ right.T, W1, W2, np.linalg.qr(rng.standard_normal((len(s), rank)))[0].T


def half_times(A, W1, W2, P, rate, t_max, decay=0.0):
    """Return when every mode of the integrated flow is half learned; the reader is stiff."""
    cuts, shapes = np.cumsum([W1.size, W2.size]), (W1.shape, W2.shape, P.shape)
    rhs, nothing = errors_flow(A, rate, "perfect", decay=decay), np.zeros((len(P), len(W1)))

    def parts(flat):
        return [x.reshape(shape) for x, shape in zip(np.split(flat, cuts), shapes, strict=True)]

    start = np.concatenate([W1.ravel(), W2.ravel(), P.ravel()])
    run = solve_ivp(
        lambda _, flat: np.concatenate([x.ravel() for x in rhs(*parts(flat), nothing)[:3]]),
        (0, t_max), start, method="LSODA", t_eval=np.linspace(0, t_max, 2001), rtol=1e-7, atol=1e-10,
    )  # fmt: skip
    left, s, right = np.linalg.svd(A)
    shares = np.array([np.diagonal(left.T @ W2 @ W1 @ right.T) / s for W1, W2, _ in map(parts, run.y.T)])
    assert np.all(shares[-1] > 0.5)
    return run.t[np.argmax(shares > 0.5, axis=0)]


@pytest.mark.parametrize(("s", "rank", "scale"), [([3.0, 2.0, 1.0], 2, 1e-3), ([2.0, 1.0], 1, 1e-4)])
def test_against_the_flow(s, rank, scale):
    """Late by the time that it takes to turn, a few per cent; not in parallel, and not without what the readout did."""
    A, W1, W2, P = started(s, scale, 12, rank)
    expected = multiplexed_times(A, W1, W2, rank)
    found = half_times(A, W1, W2, P, 30.0, 1.2 * expected[-1])
    assert_close(found / expected, 1.0, 0.06)
    assert found[-1] > expected[-1]
    start = np.linalg.norm(W1 @ np.linalg.svd(A)[2][-1]) ** 2 / 2
    unhelped = expected[-1 - rank] + time_to_half(s[-1], start)
    for wrong in (multiplexed_times(A, W1, W2, len(s))[-1], unhelped):
        with pytest.raises(AssertionError):
            assert_close(found[-1] / wrong, 1.0, 0.06)


def test_against_the_flow_with_decay():
    A, W1, W2, P = started([2.0, 1.0], 1e-3, 6, 1)
    expected = multiplexed_times(A, W1, W2, 1, weight_decay=0.1)
    found = half_times(A, W1, W2, P, 60.0, 1.3 * expected[-1], decay=0.1)
    assert_close(found / expected, 1.0, 0.06)
    with pytest.raises(AssertionError):
        assert_close(found / multiplexed_times(A, W1, W2, 1), 1.0, 0.06)


def test_delay_of_the_turn_falls_with_the_rate():
    """A balance of orders says 1/2, up to logarithms; neither independent of the rate nor inverse to it."""
    A, W1, W2, P = started([2.0, 1.0], 1e-3, 6, 1)
    expected = multiplexed_times(A, W1, W2, 1)
    delays = [half_times(A, W1, W2, P, rate, 1.3 * expected[-1])[1] - expected[1] for rate in (15.0, 60.0)]
    assert 0.3 < np.log(delays[0] / delays[1]) / np.log(4.0) < 0.8


def test_sums_of_inverse_strengths():
    """The slope in the logarithm of the start scale, of each queue."""
    s, (A, W1, W2, _) = [5.0, 4.0, 3.0, 2.0, 1.0], started([5.0, 4.0, 3.0, 2.0, 1.0], 1.0, 8, 1)
    for rank in (1, 2, 3, 5):
        slope = np.subtract(
            *(multiplexed_times(A, scale * W1, scale * W2, rank) for scale in (1e-100, 1e-99))
        ) / np.log(10.0)  # fmt: skip
        assert_close(slope, [sum(1 / x for x in s[j::-rank]) for j in range(5)], 0.02)
    with pytest.raises(AssertionError):
        assert_close(slope, [sum(1 / x for x in s[j::-4]) for j in range(5)], 0.02)


@pytest.mark.parametrize("rank", [2, 3, 7])
def test_a_wide_channel_is_backpropagation(rank):
    A, start = np.diag([3.0, 1.0]), 1e-2 * np.eye(2)
    assert_close(multiplexed_times(A, start, start, rank), time_to_half([3.0, 1.0], 1e-4), 1e-12)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"A": np.eye(2)}, "A"),
        ({"W1": np.ones((1, 2))}, "W2"),
        ({"W1": np.ones((1, 2)), "W2": np.ones((2, 1))}, "W1"),
        ({"W1": 3 * np.eye(2)}, "W1"),
        ({"W1": np.zeros((2, 2)), "W2": np.zeros((2, 2))}, "W1"),
        ({"rank": 0}, "rank"),
        ({"weight_decay": 0.5}, "weight_decay"),
    ],
)
def test_bad_arguments_are_named(change, name):
    arguments = {"A": np.diag([2.0, 1.0]), "W1": 0.1 * np.eye(2), "W2": 0.1 * np.eye(2), "rank": 1, **change}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        multiplexed_times(**arguments)
