"""End points against long integrations: thresholds, hidden width, and feedback alignment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.theory import end_point, feedback_alignment_end_point, learned_modes
from tests.theory_flow import assert_close, fixed_feedback_flow, low_rank_flow


def case(seed, n_out, n_in, n_hidden, rank, task_rank):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((n_out, task_rank)))[0]
    right = np.linalg.qr(rng.standard_normal((n_in, task_rank)))[0]
    A = (left * np.linspace(3.0, 1.0, task_rank)) @ right.T
    P = rng.standard_normal((rank, n_out)) / np.sqrt(n_out)
    return A, 0.3 * rng.standard_normal((n_hidden, n_in)), 0.3 * rng.standard_normal((n_out, n_hidden)), P


SIZES = {"r > d": (5, 6, 6, 4, 2), "r < d": (5, 6, 6, 2, 4), "k < r": (5, 6, 2, 4, 4), "r > m": (3, 5, 5, 6, 3)}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("decay", [0.15, 0.6])
def test_mirrored_flow_ends_there(name, decay):
    A, W1, W2, P = case(1, *SIZES[name])
    Q = np.random.default_rng(9).standard_normal((len(P), len(W1)))  # not aligned at first: decay aligns it
    first, second, _ = low_rank_flow(A, W1, W2, Q, P, [400.0], decay=decay)
    last = (second @ first)[0]
    assert_close(last, end_point(A, P, weight_decay=decay, n_hidden=len(W1)), 1e-8)
    expected = learned_modes(A, P, weight_decay=decay, n_hidden=len(W1))
    assert np.linalg.matrix_rank(last, tol=1e-6) == expected
    for wrong in (1.2 * P, None):
        with pytest.raises(AssertionError):
            assert_close(last, end_point(A, wrong, weight_decay=decay, n_hidden=len(W1)), 1e-3)


def test_hidden_width_limits_the_modes():
    A, W1, W2, P = case(1, *SIZES["k < r"])
    first, second, _ = low_rank_flow(A, W1, W2, P @ W2, P, [400.0], decay=0.05)
    with pytest.raises(AssertionError):
        assert_close((second @ first)[0], end_point(A, P, weight_decay=0.05), 1e-2)
    assert learned_modes(A, P, weight_decay=0.05) == 4
    assert learned_modes(A, P, weight_decay=0.05, n_hidden=2) == 2


def test_threshold_is_sharp_and_strict():
    A, P = np.diag([4.0, 2.0, 1.0]), np.diag([0.5, 1.0, 1.0])
    counts = [learned_modes(A, P, weight_decay=d) for d in (0.0, 0.999, 1.0, 1.999, 2.0, 5.0)]
    assert counts == [3, 3, 2, 2, 0, 0]
    assert learned_modes(A, 10 * P, weight_decay=5.0) == 3


def test_limit_of_no_decay_projects_the_task():
    A, _, _, P = case(3, 5, 6, 6, 2, 4)
    rows = np.linalg.svd(P @ A)[2][:2]
    assert_close(end_point(A, P, weight_decay=0.0), A @ rows.T @ rows, 1e-13)
    assert_close(end_point(A, P, weight_decay=1e-9), end_point(A, P, weight_decay=0.0), 1e-8)
    assert_close(end_point(A, None, weight_decay=0.0), A, 1e-13)
    values = np.linalg.svd(A)[1]
    left_over = np.sum((A - end_point(A, P, weight_decay=0.0)) ** 2)
    assert left_over > np.sum(values[2:] ** 2)  # never better than the best rank-r map


@pytest.mark.parametrize(
    "P", [np.zeros((2, 3)), np.outer([1.0, 2.0], [1.0, 0.0, -1.0]), np.eye(3)[:0]], ids=["zero", "rank 1", "empty"]
)
def test_singular_readers(P):
    A = np.diag([3.0, 2.0, 1.0])
    rank = np.linalg.matrix_rank(P) if len(P) else 0
    assert learned_modes(A, P, weight_decay=0.0) == rank
    assert np.linalg.matrix_rank(end_point(A, P, weight_decay=0.0)) == rank
    assert learned_modes(np.zeros((3, 3)), P, weight_decay=0.0) == 0


@pytest.mark.parametrize(("rank", "decay"), [(4, 0.3), (2, 0.3), (1, 0.6)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_feedback_alignment_ends_there(rank, decay, seed):
    A, W1, W2, P = case(seed, 4, 5, 6, rank, 3)
    B = P.T @ np.random.default_rng(50 + seed).standard_normal((rank, 6))
    first, second = fixed_feedback_flow(A, W1, W2, B, [400.0], decay=decay)
    last = (second @ first)[0]
    assert_close(last, feedback_alignment_end_point(A, B, weight_decay=decay), 1e-8)
    for wrong in (1.1 * B, -B[::-1]):
        with pytest.raises(AssertionError):
            assert_close(last, feedback_alignment_end_point(A, wrong, weight_decay=decay), 1e-3)


def test_feedback_alignment_from_zero_weights_without_decay():
    A, W1, W2, P = case(4, 4, 5, 6, 2, 3)
    B = P.T @ np.random.default_rng(5).standard_normal((2, 6))
    first, second = fixed_feedback_flow(A, 0 * W1, 0 * W2, B, [200.0])
    predicted = feedback_alignment_end_point(A, B, weight_decay=0.0)
    assert_close((second @ first)[0], predicted, 1e-8)
    assert_close(predicted, end_point(A, P, weight_decay=0.0), 1e-12)
    with pytest.raises(AssertionError):
        assert_close(predicted, A, 1e-2)


def test_feedback_alignment_has_no_threshold():
    A, B = np.diag([3.0, 1.0]), 0.1 * np.eye(2)
    strong = feedback_alignment_end_point(A, B, weight_decay=2.0)
    assert 0 < strong[1, 1] < strong[0, 0] < 0.1
    assert learned_modes(A, None, weight_decay=3.5) == 0
    for decay in (1e-200, 1e-12, 1e12):
        share = np.diag(feedback_alignment_end_point(A, B, weight_decay=decay)) / [3.0, 1.0]
        assert np.all(np.isfinite(share))
        assert_close(share, float(decay < 1), 1e-6)


@given(st.sampled_from(["A", "P"]), st.sampled_from([np.nan, np.inf]), st.sampled_from([end_point, learned_modes]))
def test_bad_entries_are_named(name, value, function):
    arguments = {"A": np.ones((3, 4)), "P": np.ones((2, 3))}
    arguments[name][0, 0] = value
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        function(arguments["A"], arguments["P"], weight_decay=0.1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"P": np.ones((2, 4))}, "P"),
        ({"A": np.ones(4)}, "A"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": np.nan}, "weight_decay"),
        ({"n_hidden": 0}, "n_hidden"),
        ({"n_hidden": 1.5}, "n_hidden"),
    ],
)
def test_bad_arguments_are_named(change, name):
    arguments = {"A": np.ones((3, 4)), "P": np.ones((2, 3)), "weight_decay": 0.1, **change}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        end_point(**arguments)
    if name != "n_hidden":
        with pytest.raises((TypeError, ValueError), match=rf"^{'B' if name == 'P' else name}\b"):
            feedback_alignment_end_point(
                arguments["A"],
                np.ones((2, 3)) if name == "P" else np.ones((3, 2)),
                weight_decay=arguments["weight_decay"],
            )
