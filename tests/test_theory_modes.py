"""The logistic of one mode against its equation, the matrix flow and the textbook form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.theory import exact_map, mode_strength, time_to_half
from tests.theory_flow import assert_close, integrate

TIMES = np.array([0.0, 0.1, 0.5, 1.0, 3.0, 10.0, 200.0])
# s, c0, kappa, decay; the fourth and fifth are critical: sqrt(kappa) s = decay
MODES = [
    (2.0, 0.01, 1.0, 0.0),
    (2.0, 0.01, 0.3, 0.1),
    (1.0, 3.0, 0.5, 0.2),
    (2.0, 0.5, 0.25, 1.0),
    (2.0, 0.5, 0.25, np.nextafter(1.0, 2.0)),
    (1.0, 0.2, 0.09, 0.4),
    (1.0, 0.2, 0.0, 0.4),
    (0.0, 0.2, 1.0, 0.0),
    (1.5, 0.2, 4.0, 0.3),
]


@pytest.mark.parametrize(("s", "c0", "kappa", "decay"), MODES)
def test_solves_its_equation(s, c0, kappa, decay):
    flow = integrate(lambda c: (2 * c * (np.sqrt(kappa) * (s - c) - decay),), (c0,), TIMES, rtol=1e-13)[0]
    assert_close(mode_strength(TIMES, s, c0, kappa=kappa, weight_decay=decay), flow, 1e-10)
    with pytest.raises(AssertionError):
        assert_close(mode_strength(TIMES, s, c0, kappa=kappa + 0.1, weight_decay=decay), flow, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(mode_strength(TIMES, s, c0, kappa=kappa, weight_decay=decay + 0.1), flow, 1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_is_a_mode_of_the_matrix_flow(decay):
    rng = np.random.default_rng(0)
    u, v, g = (x / np.linalg.norm(x) for x in (rng.standard_normal(n) for n in (4, 5, 3)))
    P = np.linalg.qr(rng.standard_normal((4, 2)))[0].T
    kappa, beta = np.sum((P @ u) ** 2), 0.2
    W2, W1 = beta * np.outer(u, g), np.sqrt(kappa) * beta * np.outer(g, v)
    maps = exact_map(1.7 * np.outer(u, v), W1, W2, TIMES, P=P, weight_decay=decay)
    strength = u @ maps @ v
    assert kappa < 0.9
    assert_close(mode_strength(TIMES, 1.7, strength[0], kappa=kappa, weight_decay=decay), strength, 1e-12)
    with pytest.raises(AssertionError):  # a theory that ignores the channel
        assert_close(mode_strength(TIMES, 1.7, strength[0], weight_decay=decay), strength, 1e-2)


def test_textbook_form_of_backpropagation():
    s, a0 = 1.3, 0.02
    growth = np.exp(2 * s * TIMES)
    assert_close(mode_strength(TIMES, s, a0), s * growth / (growth - 1 + s / a0), 1e-14)


def test_late_and_extreme_times():
    assert mode_strength(1e300, 2.0, 1e-300) == 2.0
    assert mode_strength(1e300, 2.0, 0.1, weight_decay=0.5) == 1.5
    assert mode_strength(1e300, 2.0, 0.1, weight_decay=3.0) == 0.0
    assert mode_strength(0.0, 2.0, 0.1) == 0.1
    assert mode_strength(1e4, 2.0, 0.0) == 0.0
    assert mode_strength(1e4, 2.0, 0.5, kappa=0.25, weight_decay=1.0) == pytest.approx(
        0.5 / (1 + 0.5 * 1e4), rel=1e-14
    )  # the critical mode decays like 1 / t


def test_critical_point_is_approached_continuously():
    near = [mode_strength(7.0, 2.0, 0.5, kappa=0.25, weight_decay=1.0 + e) for e in (-1e-12, 0.0, 1e-12)]
    assert_close(np.diff(near), 0.0, 1e-11)


def test_broadcasts():
    strength = mode_strength(TIMES[:, None], [1.0, 2.0], 0.1, kappa=[[0.5, 1.0]], weight_decay=0.1)
    assert strength.shape == (7, 2)
    assert strength[3, 1] == mode_strength(TIMES[3], 2.0, 0.1, weight_decay=0.1)


@given(st.floats(0.1, 10.0), st.floats(1e-6, 0.5), st.floats(1e-3, 4.0), st.floats(0.0, 100.0), st.floats(0, 3))
def test_stays_between_start_and_end(s, share, kappa, t, decay):
    c0 = share * s
    end = max(0.0, s - decay / np.sqrt(kappa))
    strength = mode_strength(t, s, c0, kappa=kappa, weight_decay=decay)
    assert min(c0, end) * (1 - 1e-12) <= strength <= max(c0, end) * (1 + 1e-12)


@given(st.floats(0.1, 10.0), st.floats(1e-6, 0.49), st.floats(1e-3, 4.0))
def test_half_time_is_when_half_is_reached(s, share, kappa):
    t = time_to_half(s, share * s, kappa=kappa)
    assert mode_strength(t, s, share * s, kappa=kappa) == pytest.approx(s / 2, rel=1e-12)
    assert mode_strength(1.1 * t, s, share * s, kappa=kappa) > s / 2 * (1 + 1e-4)


@given(st.floats(0.1, 5.0), st.floats(1e-6, 0.499), st.floats(0.01, 4.0), st.floats(0.0, 2.0))
def test_half_time_with_decay(s, share, kappa, decay):
    t, end = time_to_half(s, share * s, kappa=kappa, weight_decay=decay), s - decay / np.sqrt(kappa)
    if end > 0.5001 * s:
        half = mode_strength(t, s, share * s, kappa=kappa, weight_decay=decay)
        assert half == pytest.approx(s / 2, rel=1e-8)
    elif end < 0.4999 * s:
        assert t == np.inf


def test_half_time_without_channel():
    assert time_to_half(2.0, 0.1, kappa=[1.0, 0.25, 0.0])[2] == np.inf
    assert time_to_half(2.0, 1.0, kappa=0.0) == 0.0


@given(st.sampled_from(["t", "s", "c0", "kappa"]), st.sampled_from([-1e-9, np.nan, np.inf, -np.inf]))
def test_bad_numbers_are_named(name, value):
    arguments = {"t": 1.0, "s": 1.0, "c0": 0.1, "kappa": 1.0, name: [0.5, value]}
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        mode_strength(arguments["t"], arguments["s"], arguments["c0"], kappa=arguments["kappa"])


@pytest.mark.parametrize(("s", "c0", "name"), [(0.0, 0.1, "s"), (1.0, 0.0, "c0"), (1.0, 0.6, "c0"), (1.0, -1, "c0")])
def test_half_time_refuses(s, c0, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        time_to_half(s, c0)


def test_bad_types_are_named():
    with pytest.raises(TypeError, match=r"^t must"):
        mode_strength("soon", 1.0, 0.1)
    with pytest.raises(TypeError, match=r"^weight_decay must"):
        mode_strength(1.0, 1.0, 0.1, weight_decay=[0.1])


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(ValueError, match=r"do not broadcast: t \(2,\), s \(3,\), c0 \(\), kappa \(\)"):
        mode_strength([1.0, 2.0], [1.0, 2.0, 3.0], 0.1)
    with pytest.raises(ValueError, match=r"do not broadcast: s \(2,\), c0 \(3,\)"):
        time_to_half([1.0, 2.0], [0.1, 0.2, 0.3])
