"""The closed form of one mode under feedback alignment against its two equations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.theory import conserved, feedback_alignment_mode, readout_only_map
from tests.theory_flow import assert_close, integrate

TIMES = np.array([0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0])


def equations(s, a0, c0, b, times=TIMES):
    return integrate(lambda a, c: (b * (s - a * c), (s - a * c) * a), (a0, c0), times, rtol=3e-14)  # da/dt, dc/dt


def check(s, a0, c0, b, tolerance=1e-10):
    a, c = feedback_alignment_mode(TIMES, s, a0, c0, b)
    first, second = equations(s, a0, c0, b)
    scale = max(1.0, np.abs(first).max(), np.abs(second).max())
    assert_close(a, first, tolerance * scale)
    assert_close(c, second, tolerance * scale)
    return first, second


@pytest.mark.parametrize("seed", range(40))
def test_random_starts(seed):
    s, a0, c0, b = np.random.default_rng(seed).standard_normal(4) * [2.0, 1.0, 1.0, 1.0]
    first, second = check(s, a0, c0, b)
    for wrong in ((1.01 * s, a0, c0, b), (s, a0, c0, -b), (s, a0, c0 + 0.01, b)):
        a, c = feedback_alignment_mode(TIMES, *wrong)
        with pytest.raises(AssertionError):
            assert_close([a, c], [first, second], 1e-4)


@pytest.mark.parametrize("b", [0.5, -0.5, 3.0, 1e-3, -1e-9, 1e-15, 1e-160, 0.0])
@pytest.mark.parametrize(("a0", "c0"), [(0.0, 0.0), (0.3, 0.2), (0.3, -2.0), (-1.0, 0.5), (0.0, 1.0)])
def test_small_feedback_and_starts_on_either_side(b, a0, c0):
    check(1.0, a0, c0, b)


@pytest.mark.parametrize("s", [0.0, 1e-12, 1e-9, -1e-5, 1e-3])
@pytest.mark.parametrize(("a0", "c0", "b"), [(1.0, 0.5, 1.0), (2.0, 1.0, 2.0), (10.0, 50.0, 1.0), (-1, -0.5, -1.0)])
def test_near_a_triple_root(s, a0, c0, b):
    """No conserved part, c = a^2 / (2 b), and hardly a task: the three roots nearly agree, far from the start."""
    check(s, a0, c0, b)


@pytest.mark.parametrize("offset", [0.0, 1e-12, -1e-12, 1e-6, -1e-6, 1e-3, -1e-3])
@pytest.mark.parametrize("a0", [-3.0, -1.2, 0.0, 0.5, -20.0])
@pytest.mark.parametrize(("b", "s"), [(1.0, 1.0), (2.0, 0.5)])
def test_near_a_double_root(offset, a0, b, s):
    """A bottleneck where an unstable and a stable point have just met or are about to."""
    conserved_part = -1.5 * (b * s) ** (2 / 3) / b
    check(s, a0, conserved_part + a0 * a0 / (2 * b) + offset, b)


@pytest.mark.parametrize(("a0", "c0", "b"), [(0.2, 0.3, 0.7), (3.0, -2.0, 0.7), (0.0, 0.0, -1.0), (1.0, 1.0, 1.0)])
def test_ends_with_the_task_learned(a0, c0, b):
    a, c = feedback_alignment_mode(np.array([1e2, 1e4, 1e8, 1e300]), 1.0, a0, c0, b)
    assert_close(a * c, 1.0, 1e-14)
    assert_close(c - a**2 / (2 * b), c0 - a0**2 / (2 * b), 1e-13)


def test_fixed_points_stay():
    a, c = feedback_alignment_mode(TIMES, 1.0, 2.0, 0.5, 0.7)
    assert np.all(a == 2.0)
    assert np.all(c == 0.5)


def test_without_feedback_is_the_readout_alone():
    a, c = feedback_alignment_mode(TIMES, 1.3, 0.8, 0.1, 0.0)
    assert_close(a * c, readout_only_map([[1.3]], [[0.8]], [[0.1]], TIMES)[:, 0, 0], 1e-14)


def test_conserves_what_the_matrix_rule_conserves():
    a, c = feedback_alignment_mode(TIMES, 1.3, 0.8, 0.1, -0.4)
    invariant = conserved(a[:, None, None], c[:, None, None], B=[[-0.4]])
    assert_close(invariant, invariant[0], 1e-14)


@given(*(st.floats(-20.0, 20.0) for _ in range(3)), st.floats(-20.0, 20.0), st.floats(0.0, 1e6))
def test_any_start_is_finite_and_conserved(s, a0, c0, b, t):
    a, c = feedback_alignment_mode(t, s, a0, c0, b)
    scale = 1 + a0**2 + a**2 + abs(b) * (abs(c0) + abs(c))
    assert abs(2 * b * (c - c0) - (a**2 - a0**2)) <= 1e-12 * scale
    error = np.sign(s - a0 * c0)  # never changes, so that a moves one way
    assert error * (s - a * c) >= -1e-12 * scale
    assert error * b * (a - a0) >= -1e-99


def test_shapes():
    assert np.ndim(feedback_alignment_mode(1.0, 1.0, 0.1, 0.1, 0.5)[0]) == 0
    assert feedback_alignment_mode(np.ones((2, 3)), 1.0, 0.1, 0.1, 0.5)[1].shape == (2, 3)


@given(st.sampled_from(["s", "a0", "c0", "b"]), st.sampled_from([np.nan, np.inf, "x", None, [1.0]]))
def test_bad_numbers_are_named(name, value):
    arguments = {"s": 1.0, "a0": 0.1, "c0": 0.1, "b": 0.5, name: value}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        feedback_alignment_mode(1.0, **arguments)


@pytest.mark.parametrize("t", [-1.0, np.nan, [0.0, np.inf]])
def test_bad_times_are_named(t):
    with pytest.raises(ValueError, match=r"^t\b"):
        feedback_alignment_mode(t, 1.0, 0.1, 0.1, 0.5)
