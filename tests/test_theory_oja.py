"""The closed form of the Oja flow against its equation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.theory import oja_metric
from tests.theory_flow import assert_close, integrate

TIMES = np.array([0.0, 0.1, 0.5, 1.0, 3.0, 8.0])


def orthonormal(rng, rank, n_out):
    return np.linalg.qr(rng.standard_normal((n_out, rank)))[0].T


def covariance(rng, n_out, rank):
    factor = rng.standard_normal((n_out, rank))
    return factor @ factor.T / n_out


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("C_rank", [1, 3, 5])
def test_solves_the_flow(rank, C_rank):
    rng = np.random.default_rng(10 * rank + C_rank)
    C, P0 = covariance(rng, 5, C_rank), orthonormal(rng, rank, 5)
    (P,) = integrate(lambda P: (1.7 * P @ C @ (np.eye(5) - P.T @ P),), (P0,), TIMES)
    flow = P.transpose(0, 2, 1) @ P
    assert_close(oja_metric(TIMES, C, P0, rate=1.7), flow, 1e-10)
    for wrong in ((C, orthonormal(rng, rank, 5)), (C.T @ C + np.eye(5)[::-1] @ C @ np.eye(5)[::-1], P0)):
        with pytest.raises(AssertionError):
            assert_close(oja_metric(TIMES, *wrong, rate=1.7), flow, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(oja_metric(TIMES, C, P0), flow, 1e-3)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_formula_as_it_is_written(rank):
    rng = np.random.default_rng(rank)
    C, P0 = covariance(rng, 6, 6), orthonormal(rng, rank, 6)
    values, vectors = np.linalg.eigh(C)
    for t in (0.0, 0.3, 1.0):
        growth = (vectors * np.exp(values * t)) @ vectors.T
        expected = growth @ P0.T @ np.linalg.inv(P0 @ growth @ growth @ P0.T) @ P0 @ growth
        assert_close(oja_metric(t, C, P0), expected, 1e-12)


@given(st.integers(1, 6), st.integers(0, 20), st.sampled_from([0.0, 1.0, 1e3, 1e4, 1e8]))
def test_is_a_projector_at_any_time(rank, seed, t):
    rng = np.random.default_rng(seed)
    M = oja_metric(t, covariance(rng, 6, 4), orthonormal(rng, rank, 6))
    assert_close(M, M.T, 1e-13)
    assert_close(M @ M, M, 1e-12)
    assert np.trace(M) == pytest.approx(rank, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ends_on_the_leading_eigenvectors(rank):
    rng = np.random.default_rng(rank)
    vectors = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    C = (vectors * [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]) @ vectors.T
    leading = vectors[:, :rank] @ vectors[:, :rank].T
    P0 = orthonormal(rng, rank, 6)
    assert_close(oja_metric([1e3, 1e6], C, P0), leading, 1e-13)
    with pytest.raises(AssertionError):
        assert_close(oja_metric(1.0, C, P0), leading, 1e-3)


def test_absent_directions_stay_absent():
    C, P0 = np.diag([3.0, 2.0, 1.0]), np.array([[0.0, 0.6, 0.8]])
    assert_close(oja_metric(1e5, C, P0), np.diag([0.0, 1.0, 0.0]), 1e-15)


def test_weak_overlaps_take_over_late():
    """An overlap of 1e-5 with the first eigenvector grows from tilt to turn at ln(1e5) / (3 - 2)."""
    P0 = np.array([[1e-5, np.sqrt(1 - 1e-10), 0.0]])
    M = oja_metric(np.log(1e5) + np.array([-5.0, 0.0, 5.0, 1e4]), np.diag([3.0, 2.0, 1.0]), P0)
    ratio = np.exp([-10.0, 0.0, 10.0, 300.0])
    assert_close(M[:, 0, 0], ratio / (1 + ratio), 1e-9)


def test_restart():
    rng = np.random.default_rng(1)
    C, P0 = covariance(rng, 5, 5), orthonormal(rng, 2, 5)
    middle = np.linalg.eigh(oja_metric(2.0, C, P0))[1][:, -2:].T
    assert_close(oja_metric(7.0, C, P0), oja_metric(5.0, C, middle), 1e-12)


def test_shapes():
    P0 = np.eye(3)[:2]
    assert oja_metric(1.0, np.eye(3), P0).shape == (3, 3)
    assert oja_metric([1.0], np.eye(3), P0).shape == (1, 3, 3)
    assert_close(oja_metric([0.0, 5.0], np.zeros((3, 3)), P0), P0.T @ P0, 1e-15)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"P0": 2 * np.eye(3)[:2]}, "P0"),
        ({"P0": np.eye(4)[:, :3]}, "P0"),
        ({"P0": np.ones(3)}, "P0"),
        ({"P0": np.full((2, 3), np.nan)}, "P0"),
        ({"C": np.eye(4)}, "C"),
        ({"C": -np.eye(3)}, "C"),
        ({"C": np.eye(3) + np.eye(3, k=1)}, "C"),
        ({"t": -1.0}, "t"),
        ({"t": np.nan}, "t"),
        ({"t": [[1.0]]}, "t"),
        ({"rate": 0.0}, "rate"),
    ],
)
def test_bad_arguments_are_named(change, name):
    arguments = {"t": 1.0, "C": np.eye(3), "P0": np.eye(3)[:2], **change}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        oja_metric(**arguments)
