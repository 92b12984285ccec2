"""The closed-form trajectory against an independent integration of the flow, against its limits and itself."""

import time

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm

from linfb.theory import conserved, end_point, exact_map, m_balanced_weights
from tests.theory_flow import assert_close, integrate, low_rank_flow

# (out, in, hidden, rank of P, rank of A, weight decay, start scale)
SIZES = {
    "more channel than task": (4, 5, 6, 3, 2, 0.0, 0.1),
    "less channel than task": (5, 6, 4, 2, 4, 0.0, 0.1),
    "less channel than task, decay": (5, 6, 4, 2, 4, 0.2, 0.1),
    "narrow hidden layer": (5, 6, 2, 4, 4, 0.05, 0.1),
    "one hidden unit": (4, 4, 1, 3, 3, 0.0, 0.3),
    "wide hidden layer, few inputs": (4, 2, 7, 4, 2, 0.1, 0.5),
    "more channels than outputs": (3, 5, 4, 6, 3, 0.1, 0.2),
    "strong decay": (4, 4, 4, 3, 3, 3.0, 1.0),
    "large start": (4, 5, 3, 3, 3, 0.0, 2.0),
    "tiny start": (4, 5, 3, 3, 3, 0.0, 1e-4),
    "single output": (1, 4, 3, 1, 1, 0.3, 0.1),
    "no task": (3, 3, 3, 2, 0, 0.0, 1.0),
    "no task, decay": (3, 3, 3, 2, 0, 0.3, 1.0),
}


def teacher(rng, n_out, n_in, rank):
    left = np.linalg.qr(rng.standard_normal((n_out, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((n_in, rank)))[0]
    return (left * rng.uniform(0.5, 3.0, rank)) @ right.T


def case(seed, sizes, P=None):
    n_out, n_in, n_hidden, rank, task_rank, decay, scale = sizes
    rng = np.random.default_rng(seed)
    A = teacher(rng, n_out, n_in, task_rank)
    P = rng.standard_normal((rank, n_out)) / np.sqrt(rank) if P is None else P
    W1, W2 = m_balanced_weights((n_out, n_in), n_hidden, P, scale=scale, rng=rng)
    return A, W1, W2, P, decay


def flow_map(A, W1, W2, P, decay, times, **options):
    first, second, _ = low_rank_flow(A, W1, W2, P @ W2, P, times, decay=decay, **options)
    return second @ first


def well_posed(times, sizes):
    """Leave out late times where the start may lie on a saddle's stable manifold (see the test of reflections)."""
    _, n_in, n_hidden, rank, *_ = sizes
    return times if min(n_hidden, rank) < n_in else times[times <= 8.0]


TIMES = np.array([0.0, 0.01, 0.3, 1.0, 2.0, 4.0, 8.0, 20.0, 60.0])


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_map_is_the_flow(name, seed):
    A, W1, W2, P, decay = case(seed, SIZES[name])
    times = well_posed(TIMES, SIZES[name])
    flow = flow_map(A, W1, W2, P, decay, times)
    assert_close(exact_map(A, W1, W2, times, P=P, weight_decay=decay), flow, 1e-9)
    if np.any(A):
        with pytest.raises(AssertionError):
            assert_close(exact_map(1.001 * A, W1, W2, times, P=P, weight_decay=decay), flow, 1e-9)
    with pytest.raises(AssertionError):
        assert_close(exact_map(A, W1, W2, times, P=P, weight_decay=decay + 1e-3), flow, 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_map_is_the_flow_at_random_sizes(seed):
    rng = np.random.default_rng(1000 + seed)
    n_out, n_in, n_hidden = rng.integers(2, 8, 3)
    sizes = (n_out, n_in, n_hidden, rng.integers(1, n_out + 3), rng.integers(1, min(n_out, n_in) + 1))
    A, W1, W2, P, decay = case(seed, (*sizes, rng.choice([0.0, 0.02, 0.5]), rng.choice([1e-3, 0.1, 1.0])))
    times = well_posed(TIMES, sizes)
    closed, flow = exact_map(A, W1, W2, times, P=P, weight_decay=decay), flow_map(A, W1, W2, P, decay, times)
    assert_close(closed, flow, 1e-9)
    with pytest.raises(AssertionError):
        assert_close(exact_map(1.001 * A, W1, W2, times, P=P, weight_decay=decay), flow, 1e-9)


def test_reflections_stay_at_a_saddle():
    """In coordinates of the modes W1 = R (P W2)^T; where R is square, det R = -1 forbids the last mode for ever."""
    A, W2 = np.diag([3.0, 2.0]), np.array([[0.1, 0.05], [0.0, 0.1]])
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    assert_close(exact_map(A, W2.T @ turn, W2, [1e4])[0], A, 1e-12)
    reflected = exact_map(A, W2.T @ turn @ np.diag([1.0, -1.0]), W2, [1.0, 8.0, 1e4])
    assert_close(reflected[-1], np.diag([3.0, 0.0]), 1e-12)
    flow = flow_map(A, W2.T @ turn @ np.diag([1.0, -1.0]), W2, np.eye(2), 0.0, [1.0, 8.0])
    assert_close(reflected[:2], flow, 1e-9)


def singular_readers(n_out):
    rng = np.random.default_rng(5)
    orthonormal = np.linalg.qr(rng.standard_normal((n_out, n_out)))[0].T
    return {
        "identity": np.eye(n_out),
        "zero": np.zeros((2, n_out)),
        "rank one of three": np.outer([1.0, 2.0, -1.0], orthonormal[0]),
        "repeated row": orthonormal[[0, 1, 1]],
        "tiny second row": orthonormal[:2] * np.array([[1.0], [1e-9]]),
        "orthonormal": orthonormal[:2],
        "one output only": np.eye(n_out)[:1],
    }


@pytest.mark.parametrize("reader", singular_readers(4))
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_singular_and_zero_metrics(reader, decay):
    P = singular_readers(4)[reader]
    A, W1, W2, P, _ = case(3, (4, 5, 4, len(P), 3, decay, 0.2), P=P)
    closed = exact_map(A, W1, W2, TIMES, P=P, weight_decay=decay)
    assert_close(closed, flow_map(A, W1, W2, P, decay, TIMES), 1e-9)


def test_channel_matters():
    """Negative control: the same start is balanced for P and for R P, and only the right metric gives the flow."""
    A, W1, W2, P, _ = case(0, (4, 5, 3, 2, 3, 0.0, 0.1))
    rotated = np.array([[0.6, -0.8], [0.8, 0.6]]) @ P  # the same metric
    flow = flow_map(A, W1, W2, P, 0.0, TIMES)
    assert_close(exact_map(A, W1, W2, TIMES, P=rotated), flow, 1e-9)
    other = P + np.outer([0.1, -0.1], np.linalg.svd(W2.T, full_matrices=True)[2][-1])  # agrees with P on W2
    assert_close(other @ W2, P @ W2, 1e-12)
    with pytest.raises(AssertionError):
        assert_close(exact_map(A, W1, W2, TIMES, P=other), flow, 1e-3)


def test_backpropagation_is_the_identity_channel():
    A, W1, W2, P, _ = case(1, (4, 5, 3, 4, 3, 0.0, 0.1), P=np.eye(4))

    def backpropagation(W1, W2):
        E = A - W2 @ W1
        return W2.T @ E, E @ W1.T

    first, second = integrate(backpropagation, (W1, W2), TIMES)
    assert_close(exact_map(A, W1, W2, TIMES), second @ first, 1e-9)
    assert np.array_equal(exact_map(A, W1, W2, TIMES), exact_map(A, W1, W2, TIMES, P=P))


@pytest.mark.parametrize("aligned", [1.0, -1.0])
def test_start_along_the_singular_vectors(aligned):
    """Starts on invariant manifolds: modes that are not excited stay so; opposite signs decay to zero."""
    A = np.diag([3.0, 2.0, 1.0])
    W2 = 0.1 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    W1 = W2.T * np.array([1.0, 1.0, aligned])
    late = exact_map(A, W1, W2, [0.0, 30.0, 1e4])
    assert_close(late[0], 0.01 * np.diag([0.0, 1.0, aligned]), 1e-17)
    assert_close(late[1], np.diag([0.0, 2.0, max(aligned, 0.0)]), 1e-12)
    assert_close(late[2], np.diag([0.0, 2.0, max(aligned, 0.0)]), 1e-12)


LATE = np.array([1.0, 10.0, 100.0, 1e3, 3e3, 1e4])


@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_late_times(decay):
    """Up to t = 1e4: of three modes the channel sees one, and the readout of the others is still moving then."""
    A, *_ = case(4, (4, 5, 3, 2, 3, 0.0, 1.0))
    hidden_output = np.linalg.svd(A)[0][:, 3]
    P = np.stack([np.ones(4) / 2, hidden_output])
    _, W1, W2, P, _ = case(4, (4, 5, 3, 2, 3, decay, 0.03), P=P)
    closed, flow = exact_map(A, W1, W2, LATE, P=P, weight_decay=decay), flow_map(A, W1, W2, P, decay, LATE)
    assert_close(closed, flow, 1e-9)
    with pytest.raises(AssertionError):
        assert_close(exact_map(A, W1, W2, LATE, P=P, weight_decay=decay + 1e-6), flow, 1e-9)
    assert np.abs(closed[-1] - closed[-2]).max() > 1e-2


def test_late_times_of_a_slow_task():
    """A -> eta A, W -> sqrt(eta) W slows the flow by eta: the same trajectory at 1000 times the time."""
    A, W1, W2, P, decay = case(6, (4, 5, 4, 3, 3, 0.1, 0.1))
    eta, root = 1e-3, np.sqrt(1e-3)
    fast = exact_map(A, W1, W2, TIMES[1:], P=P, weight_decay=decay)
    slow = exact_map(eta * A, root * W1, root * W2, TIMES[1:] / eta, P=P, weight_decay=eta * decay)
    assert_close(slow / eta, fast, 1e-11)


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(4))
def test_restart(seed, decay):
    """The map at t is the map at t - 5 from the weights that the flow has reached at 5."""
    A, W1, W2, P, _ = case(20 + seed, (5, 6, 3 + seed, 3, 4, decay, 0.1))
    first, second, _ = low_rank_flow(A, W1, W2, P @ W2, P, [5.0], decay=decay, rtol=1e-13)
    times = np.array([6.0, 30.0, 300.0, 3e3, 1e4])
    whole = exact_map(A, W1, W2, times, P=P, weight_decay=decay)
    assert_close(exact_map(A, first[0], second[0], times - 5, P=P, weight_decay=decay), whole, 1e-9)
    with pytest.raises(AssertionError):
        assert_close(exact_map(A, first[0], second[0], times - 4, P=P, weight_decay=decay), whole, 1e-9)


@pytest.mark.parametrize("sizes", [(4, 5, 6, 3, 2), (5, 6, 4, 2, 4), (5, 6, 2, 4, 4), (3, 5, 4, 6, 3)])
def test_ends_at_the_end_point(sizes):
    A, W1, W2, P, decay = case(7, (*sizes, 0.2, 0.1))
    last = exact_map(A, W1, W2, [1e4], P=P, weight_decay=decay)[0]
    assert_close(last, end_point(A, P, weight_decay=decay, n_hidden=len(W1)), 1e-10)
    with pytest.raises(AssertionError):
        assert_close(last, end_point(A, P, weight_decay=1.01 * decay, n_hidden=len(W1)), 1e-6)


def precise_map(A, W1, W2, P, decay, t):
    """Formula (2) with 120 digits: matrix exponential and Van Loan's integral."""
    n_out, n_in = A.shape
    size = n_out + n_in
    with mpmath.workdps(120):
        A, W1, W2, P = (mpmath.matrix(array.tolist()) for array in (A, W1, W2, P))
        F, C = -mpmath.mpf(decay) * mpmath.eye(size), mpmath.zeros(size, size)
        F[:n_in, n_in:], F[n_in:, :n_in] = A.T * P.T * P, A
        C[:n_in, :n_in] = 2 * mpmath.eye(n_in)
        H = mpmath.zeros(2 * size, 2 * size)
        H[:size, :size], H[:size, size:], H[size:, size:] = -F.T, C, F
        exponential = mpmath.expm(H * t)
        start = mpmath.zeros(size, W1.rows)
        start[:n_in, :], start[n_in:, :] = W1.T, W2
        X = exponential[size:, size:] * start
        G = start.T * exponential[size:, size:].T * exponential[:size, size:] * start
        result = X[n_in:, :] * (mpmath.eye(W1.rows) + G) ** -1 * X[:n_in, :].T
        return np.array(result.tolist(), dtype=float)


@pytest.mark.parametrize(("excitation", "tolerance"), [(1e-2, 1e-12), (1e-4, 1e-10), (1e-6, 1e-8)])
def test_weakly_excited_fast_mode(excitation, tolerance):
    """A start that hardly excites the fastest mode, in 120 digits: slower modes are learned and overtaken.

    The rounding of the start, 1e-16, is this large a share of the excitation, times the start's scale of 0.1.
    """
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.standard_normal((3, 3)))[0], np.linalg.qr(rng.standard_normal((4, 3)))[0]
    A, W2 = (left * [3.0, 2.8, 1.0]) @ right.T, 0.1 * rng.standard_normal((3, 2))
    generator = excitation * rng.standard_normal((4, 4))
    turn = expm(generator - generator.T)  # without it mode 1 would be on its stable manifold
    W1 = W2.T @ (left * [-1.0, 1.0, 1.0]) @ right.T @ turn
    times = np.array([1.0, 3.0, 5.0, 6.0, 8.0, 15.0, 30.0])
    precise = np.array([precise_map(A, W1, W2, np.eye(3), 0.0, t) for t in times])
    assert_close(exact_map(A, W1, W2, times), precise, tolerance)
    assert_close(exact_map(A, W1, W2, [*times, 1e4])[:-1], precise, tolerance)


def test_scalar_channel_slows_a_mode():
    """Negative control for the whole: backpropagation's map is far from that behind half a channel."""
    A, W1, W2, P, _ = case(2, (4, 5, 3, 4, 3, 0.0, 0.1), P=np.eye(4) / 2)
    flow = flow_map(A, W1, W2, P, 0.0, TIMES)
    assert_close(exact_map(A, W1, W2, TIMES, P=P), flow, 1e-9)
    with pytest.raises(ValueError, match="not M-balanced"):
        exact_map(A, W1, W2, TIMES)
    with pytest.raises(AssertionError):
        assert_close(exact_map(A, 2 * W1, W2, TIMES), flow, 0.1)


def test_refuses_unbalanced_starts():
    A, W1, W2, P, _ = case(0, SIZES["more channel than task"])
    W1[0, 0] += 1e-3
    violation = np.abs(conserved(W1, W2, P=P)).max()
    with pytest.raises(ValueError, match=f"not M-balanced.*by up to {violation:.3g}".replace("+", r"\+")):
        exact_map(A, W1, W2, TIMES, P=P)


def test_does_not_change_its_arguments():
    A, W1, W2, P, _ = case(0, SIZES["more channel than task"])
    copies = [array.copy() for array in (A, W1, W2, P)]
    exact_map(A, W1, W2, TIMES, P=P)
    assert all(np.array_equal(array, copy) for array, copy in zip((A, W1, W2, P), copies, strict=True))


GOOD = dict(zip(("A", "W1", "W2", "P"), case(0, SIZES["more channel than task"])[:4], strict=True))


@given(st.sampled_from(["A", "W1", "W2", "P"]), st.sampled_from(["shape", "nan", "inf", "ndim", "type"]))
def test_bad_arrays_are_named(name, fault):
    bad = GOOD[name].copy()
    if fault in ("nan", "inf"):
        bad[-1, -1] = float(fault)
    arguments = {
        **GOOD,
        name: {"shape": bad[:, :-1], "ndim": bad[0], "type": [["x"]]}.get(fault, bad),
    }
    expected = TypeError if fault == "type" else ValueError
    # a task with an input less than W1 has is first seen at W1
    with pytest.raises(expected, match=r"^(A|W1|W2)\b" if (name, fault) == ("A", "shape") else rf"^{name}\b"):
        exact_map(arguments["A"], arguments["W1"], arguments["W2"], [1.0], P=arguments["P"])


@given(
    st.sampled_from(
        [[], [[1.0]], 1.0, [-1.0], [1.0, 1.0], [2.0, 1.0], [0.0, np.nan], [np.inf], ["x"]],
    )
)
def test_bad_times_are_named(times):
    with pytest.raises((TypeError, ValueError), match=r"^times\b"):
        exact_map(GOOD["A"], GOOD["W1"], GOOD["W2"], times, P=GOOD["P"])


@pytest.mark.parametrize("decay", [-0.1, np.nan, np.inf, "much", None, True])
def test_bad_decay_is_named(decay):
    with pytest.raises((TypeError, ValueError), match=r"^weight_decay\b"):
        exact_map(GOOD["A"], GOOD["W1"], GOOD["W2"], [1.0], P=GOOD["P"], weight_decay=decay)


def test_faster_than_integration():
    """128-64-64 units, 200 times up to 100: processor time against DOP853 (about 50 times in quiet conditions)."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((64, 32)) @ rng.standard_normal((32, 128)) / 8
    P = np.linalg.qr(rng.standard_normal((64, 32)))[0].T
    W1, W2 = m_balanced_weights(A.shape, 64, P, scale=0.01, rng=rng)
    begin = time.process_time()
    maps = exact_map(A, W1, W2, np.linspace(0.0, 100.0, 200), P=P)
    closed = time.process_time() - begin
    begin = time.process_time()
    flow = flow_map(A, W1, W2, P, 0.0, [0.0, 100.0], rtol=1e-8)
    assert time.process_time() - begin > 10 * closed
    assert_close(maps[-1], flow[-1], 1e-4)
