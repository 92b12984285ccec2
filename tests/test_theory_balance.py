"""Balanced starts, and what each rule conserves along integrated flows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.theory import conserved, m_balanced_weights, mirror_error
from tests.theory_flow import assert_close, fixed_feedback_flow, low_rank_flow

TIMES = np.array([0.0, 0.5, 1.0, 3.0, 10.0])


def start(seed=0, n_out=4, n_in=5, n_hidden=3, rank=2):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((n_out, n_in)),
        0.5 * rng.standard_normal((n_hidden, n_in)),
        0.5 * rng.standard_normal((n_out, n_hidden)),
        0.5 * rng.standard_normal((rank, n_hidden)),
        rng.standard_normal((rank, n_out)),
    )


def stays(matrices, tolerance=1e-10):
    """The matrices do not change, and are not all zero: nothing conserved is not a test."""
    assert np.abs(matrices[0]).max() > 1e-2
    assert_close(matrices, matrices[0], tolerance)


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_aligned_channel_conserves(rank):
    A, W1, W2, _, P = start(rank=rank)
    first, second, _ = low_rank_flow(A, W1, W2, P @ W2, P, TIMES)
    stays(conserved(first, second, P=P))
    for wrong in ({}, {"P": 1.1 * P}, {"B": W2}):
        with pytest.raises(AssertionError):
            stays(conserved(first, second, **wrong), 1e-3)


def test_constant_mismatch_conserves():
    A, W1, W2, Q, P = start()
    first, second, third = low_rank_flow(A, W1, W2, Q, P, TIMES)
    stays(conserved(first, second, P=P, Q=third))
    for wrong in ({"P": P}, {"P": P, "Q": np.broadcast_to(Q, third.shape)}, {"P": P, "Q": -third}):
        with pytest.raises(AssertionError):
            stays(conserved(first, second, **wrong), 1e-3)


def test_kolen_pollack_without_compression_conserves():
    A, W1, W2, Q, _ = start(rank=4)
    first, second, third = low_rank_flow(A, W1, W2, Q, np.eye(4), TIMES)
    stays(conserved(first, second, Q=third))
    assert_close(conserved(first, second, Q=third), conserved(first, second, P=np.eye(4), Q=third), 1e-14)


@pytest.mark.parametrize("rank", [1, 3])
def test_fixed_feedback_conserves(rank):
    A, W1, W2, Q, P = start(rank=rank)
    first, second = fixed_feedback_flow(A, W1, W2, P.T @ Q, TIMES)
    stays(conserved(first, second, B=P.T @ Q))
    for wrong in ({}, {"B": -P.T @ Q}, {"B": P.T @ Q + 0.1}, {"P": P}):
        with pytest.raises(AssertionError):
            stays(conserved(first, second, **wrong), 1e-3)


def test_backpropagation_conserves_and_decays_with_decay():
    A, W1, W2, _, _ = start(rank=4)
    first, second, _ = low_rank_flow(A, W1, W2, W2, np.eye(4), TIMES)
    stays(conserved(first, second))
    first, second, _ = low_rank_flow(A, W1, W2, W2, np.eye(4), TIMES, decay=0.1)
    assert_close(conserved(first, second), np.exp(-0.2 * TIMES)[:, None, None] * conserved(W1, W2), 1e-10)
    with pytest.raises(AssertionError):
        stays(conserved(first, second), 1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_mirror_error_decays(decay):
    A, W1, W2, Q, P = start()
    _, second, third = low_rank_flow(A, W1, W2, Q, P, TIMES, decay=decay)
    predicted = mirror_error(TIMES, Q - P @ W2, weight_decay=decay)
    assert_close(third - P @ second, predicted, 1e-10)
    with pytest.raises(AssertionError):
        assert_close(third - P @ second, mirror_error(TIMES, Q - P @ W2, weight_decay=decay + 0.01), 1e-4)


@given(*(st.integers(1, 9) for _ in range(4)), st.floats(1e-6, 1e3), st.integers(0, 5))
def test_balanced_at_any_size(n_out, n_in, n_hidden, rank, scale, seed):
    rng = np.random.default_rng(seed)
    P = rng.standard_normal((rank, n_out))
    W1, W2 = m_balanced_weights((n_out, n_in), n_hidden, P, scale=scale, rng=rng)
    assert W1.shape == (n_hidden, n_in)
    assert W2.shape == (n_out, n_hidden)
    assert_close(conserved(W1, W2, P=P), 0.0, 1e-14 * max(1.0, np.linalg.norm(W1) ** 2, np.linalg.norm(P @ W2) ** 2))
    channel_rank = min(n_hidden, rank, n_out, n_in)
    assert np.linalg.matrix_rank(W1) == channel_rank == np.linalg.matrix_rank(P @ W2, tol=1e-10 * scale)
    assert np.linalg.matrix_rank(W2) >= min(n_out - min(rank, n_out) + channel_rank, n_hidden, n_out) - channel_rank


def test_balanced_without_channel_and_otherwise_generic():
    rng = np.random.default_rng(0)
    draws = [m_balanced_weights((3, 6), 4, None, scale=0.5, rng=rng) for _ in range(200)]
    W1, W2 = (np.array(parts) for parts in zip(*draws, strict=True))
    assert_close(conserved(W1, W2), 0.0, 1e-14)
    for weights, variance in ((W2, 0.25), (W1, 0.25 * 3 / 6)):  # O of orthonormal rows spreads 3 outputs over 6 inputs
        mean_square = np.mean(weights**2, axis=(1, 2))
        assert abs(np.mean(mean_square) - variance) < 4 * np.std(mean_square) / np.sqrt(200)
    assert_close(np.mean(W1, axis=0), 0.0, 4 * 0.36 / np.sqrt(200))


def test_singular_and_zero_readers():
    rng = np.random.default_rng(1)
    for P in (np.zeros((2, 4)), np.outer([1.0, 2.0, 3.0], rng.standard_normal(4))):
        W1, W2 = m_balanced_weights((4, 5), 3, P, scale=1.0, rng=rng)
        assert_close(conserved(W1, W2, P=P), 0.0, 1e-12)
        assert np.linalg.matrix_rank(W2) == 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"A_shape": 3}, "A_shape"),
        ({"A_shape": (3, 0)}, "A_shape"),
        ({"n_hidden": 0}, "n_hidden"),
        ({"n_hidden": 2.5}, "n_hidden"),
        ({"P": np.ones((2, 4))}, "P"),
        ({"P": [[1.0, np.nan, 0.0]]}, "P"),
        ({"scale": 0.0}, "scale"),
        ({"rng": 0}, "rng"),
    ],
)
def test_bad_arguments_are_named(change, name):
    given_ = {"A_shape": (3, 4), "n_hidden": 2, "P": None, "scale": 1.0, "rng": np.random.default_rng(0), **change}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        m_balanced_weights(given_["A_shape"], given_["n_hidden"], given_["P"], scale=given_["scale"], rng=given_["rng"])


def test_contradictory_and_misshapen_rules_are_refused():
    _, W1, W2, Q, P = start()
    B = np.ones((4, 3))
    for wrong in ({"B": B, "P": P}, {"B": B, "Q": Q}):
        with pytest.raises(ValueError, match=r"^B describes"):
            conserved(W1, W2, **wrong)
    for wrong, name in (({"B": B.T}, "B"), ({"P": P.T}, "P"), ({"P": P, "Q": Q.T}, "Q"), ({"Q": Q}, "Q")):
        with pytest.raises(ValueError, match=f"^{name} has shape"):
            conserved(W1, W2, **wrong)
    with pytest.raises(ValueError, match=r"^W1 has shape"):
        conserved(W1.T, W2)
    with pytest.raises(ValueError, match=r"^W2 .*NaN"):
        conserved(W1, np.nan * W2)


@pytest.mark.parametrize(("t", "decay"), [(-1.0, 0.1), (np.nan, 0.1), (1.0, -0.1), (1.0, np.inf)])
def test_mirror_error_refuses(t, decay):
    with pytest.raises(ValueError, match=r"^(t|weight_decay)\b"):
        mirror_error(t, np.ones((2, 3)), weight_decay=decay)
