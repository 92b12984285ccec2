"""The readout-only trajectory against the flow, and its memory integral against quadrature in many digits."""

import mpmath
import numpy as np
import pytest

from linfb.theory import readout_only_map
from linfb.theory.readout import _memory
from tests.theory_flow import assert_close, fixed_feedback_flow

TIMES = np.array([0.0, 0.01, 0.3, 1.0, 3.0, 10.0, 40.0])


@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("sizes", [(3, 4, 5), (3, 6, 2), (1, 1, 1), (4, 2, 6)])
def test_map_is_the_flow(sizes, decay):
    n_out, n_in, n_hidden = sizes
    rng = np.random.default_rng(sum(sizes))
    A = rng.standard_normal((n_out, n_in))
    W1, W2 = rng.standard_normal((n_hidden, n_in)), rng.standard_normal((n_out, n_hidden))
    first, second = fixed_feedback_flow(A, W1, W2, np.zeros_like(W2), TIMES, decay=decay)
    closed = readout_only_map(A, W1, W2, TIMES, weight_decay=decay)
    assert_close(closed, second @ first, 1e-10)
    for wrong in ((1.01 * A, W1, W2), (A, W1, 1.1 * W2)):
        with pytest.raises(AssertionError):
            assert_close(readout_only_map(*wrong, TIMES, weight_decay=decay), second @ first, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(readout_only_map(A, W1, W2, TIMES, weight_decay=decay + 0.01), second @ first, 1e-3)


def test_late_times():
    rng = np.random.default_rng(0)
    A, W1, W2 = rng.standard_normal((3, 4)), rng.standard_normal((2, 4)), rng.standard_normal((3, 2))
    regression = A @ np.linalg.pinv(W1) @ W1
    assert_close(readout_only_map(A, W1, W2, [1e4])[0], regression, 1e-12)
    assert_close(readout_only_map(A, W1, W2, [1e2], weight_decay=1e-10)[0], regression, 1e-7)
    assert_close(readout_only_map(A, W1, W2, [1e4, 1e6], weight_decay=0.1), 0.0, 1e-300)
    assert_close(readout_only_map(A, 0 * W1, W2, TIMES, weight_decay=0.1), 0.0, 0.0)


@pytest.mark.parametrize("decay", [1e-8, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("power", [0.0, 1e-40, 1e-12, 1e-3, 0.1, 1.0, 30.0, 1e4, 1e7])
def test_memory_integral(decay, power):
    t = np.array([1e-4, 0.01, 1.0, 0.49 / decay, 0.5 / decay, 0.51 / decay, 3.0 / decay, 30 / decay, 500 / decay])
    t = np.unique(t)
    result = _memory(t, np.array([power]), decay)[:, 0]
    with mpmath.workdps(80):
        rate = 2 * mpmath.mpf(decay)
        for time, value in zip(t, result, strict=True):
            x0 = mpmath.mpf(power) / rate
            x = x0 * mpmath.exp(-rate * mpmath.mpf(time))
            expected = mpmath.mpf(time)
            if power > 0.0:
                expected = mpmath.exp(x) / rate * (mpmath.e1(x) - mpmath.e1(x0))
            assert abs(value / expected - 1) < 2e-13
            assert not abs(1.001 * value / expected - 1) < 2e-13


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"A": np.ones(4)}, "A"),
        ({"W1": np.ones((2, 3))}, "W1"),
        ({"W2": np.ones((2, 3))}, "W2"),
        ({"W2": np.full((3, 2), np.nan)}, "W2"),
        ({"times": [-1.0]}, "times"),
        ({"times": [1.0, 0.0]}, "times"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_bad_arguments_are_named(change, name):
    good = {"A": np.ones((3, 4)), "W1": np.ones((2, 4)), "W2": np.ones((3, 2)), "times": [1.0]}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        readout_only_map(**{**good, **change})
