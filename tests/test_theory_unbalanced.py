"""Starts with an imbalance: the exact map and a single mode against integrated flows; small starts by their order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.theory import (
    conserved,
    exact_map,
    expected_learned_fraction,
    growing_part,
    m_balanced_weights,
    mode_strength,
    rich_imbalance,
    small_start_map,
)
from linfb.theory import unbalanced_mode_strength as strength
from tests.theory_flow import assert_close, integrate, low_rank_flow

TIMES = np.array([0.0, 0.01, 0.3, 1.0, 2.0, 4.0, 8.0, 20.0])
# (out, in, hidden, rank of P, rank of A, imbalance, start scale)
SIZES = {
    "larger first layer": (4, 5, 3, 3, 2, 0.3, 0.1),
    "larger second layer": (4, 5, 3, 3, 2, -0.3, 0.1),
    "less channel than task": (5, 6, 4, 2, 4, 0.2, 0.1),
    "less channel than task, larger second layer": (5, 6, 2, 2, 4, -0.2, 0.1),
    "as many hidden units as inputs": (3, 4, 4, 3, 2, 5.0, 1e-3),
    "lazy": (3, 4, 1, 1, 1, -5.0, 0.3),
    "tiny imbalance": (4, 5, 3, 3, 2, -1e-6, 1e-3),
    "more channels than outputs": (5, 3, 2, 6, 3, -0.5, 1.0),
    "no task": (3, 3, 3, 2, 0, 0.5, 1.0),
}


def case(seed, sizes):
    n_out, n_in, n_hidden, rank, task_rank, imbalance, scale = sizes
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((n, task_rank)))[0] for n in (n_out, n_in))
    A, P = (left * rng.uniform(0.5, 3.0, task_rank)) @ right.T, rng.standard_normal((rank, n_out)) / np.sqrt(rank)
    W1, W2 = m_balanced_weights((n_out, n_in), n_hidden, P, scale=scale, rng=rng, imbalance=imbalance)
    return A, W1, W2, P, imbalance


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_map_is_the_flow(name, seed):
    A, W1, W2, P, imbalance = case(seed, SIZES[name])
    assert_close(conserved(W1, W2, P=P), imbalance * np.eye(len(W1)), 1e-13)
    first, second, _ = low_rank_flow(A, W1, W2, P @ W2, P, TIMES)
    assert_close(exact_map(A, W1, W2, TIMES, P=P), second @ first, 1e-9)
    assert np.isfinite(exact_map(A, W1, W2, [1e4], P=P)).all()
    if np.any(A):
        with pytest.raises(AssertionError):
            assert_close(exact_map(1.001 * A, W1, W2, TIMES, P=P), second @ first, 1e-9)


def test_a_balanced_start_of_the_same_readout_learns_another_curve():
    A, W1, W2, P, _ = case(0, SIZES["larger first layer"])
    _, balanced, right = np.linalg.svd(P @ W2)
    inputs = np.linalg.qr(W1.T)[0].T
    other = (right.T * np.append(balanced, np.zeros(len(right) - len(balanced)))) @ inputs
    maps = exact_map(A, W1, W2, TIMES, P=P), exact_map(A, other, W2, TIMES, P=P)
    with pytest.raises(AssertionError):
        assert_close(*maps, 0.1)


def test_a_larger_first_layer_teaches_the_readout_what_the_channel_does_not_see():
    A, W1, W2, P, _ = case(0, (3, 4, 4, 1, 2, 0.5, 0.1))
    assert_close(exact_map(A, W1, W2, [200.0], P=P)[0], A, 1e-9)
    balanced = m_balanced_weights((3, 4), 4, P, scale=0.1, rng=np.random.default_rng(0))
    assert np.linalg.norm(exact_map(A, *balanced, [200.0], P=P)[0] - A) > 0.1  # one mode only, or slowly


def test_imbalance_and_decay_are_refused():
    A, W1, W2, P, _ = case(0, SIZES["larger first layer"])
    with pytest.raises(ValueError, match=r"^weight_decay must be 0.*M-balanced"):
        exact_map(A, W1, W2, TIMES, P=P, weight_decay=0.1)


@pytest.mark.parametrize(("imbalance", "n_hidden"), [(0.1, 6), (-0.1, 3)])
def test_sizes_without_such_an_imbalance_are_refused(imbalance, n_hidden):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^imbalance .* needs n_hidden"):
        m_balanced_weights((4, 5), n_hidden, np.eye(4)[:2], scale=0.1, rng=rng, imbalance=imbalance)


# s, c0, imbalance, kappa
MODES = [
    (2.0, 0.01, 0.0, 1.0), (2.0, 0.01, 0.5, 0.3), (2.0, 0.0, -0.5, 1.0), (1.0, 3.0, 0.2, 0.5), (1.0, 1e-6, 30.0, 0.25),
    (1.5, 0.2, 0.7, 0.0), (0.0, 0.2, 0.1, 1.0), (1.0, 1e-9, 1e-9, 0.1), (1.0, 0.2, 0.0, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("s", "c0", "imbalance", "kappa"), MODES)
def test_mode_solves_its_equation(s, c0, imbalance, kappa):
    def velocity(wrong=1.0):
        return lambda c: ((s - c) * np.sqrt(imbalance**2 + 4 * wrong * kappa * c**2),)

    found = strength(TIMES, s, c0, imbalance, kappa=kappa)
    assert_close(found, integrate(velocity(), (c0,), TIMES, rtol=1e-13)[0], 1e-9)
    if kappa and (imbalance or c0):
        with pytest.raises(AssertionError):
            assert_close(found, integrate(velocity(1.2), (c0,), TIMES, rtol=1e-13)[0], 1e-7)


@given(st.floats(0.1, 5.0), st.floats(1e-8, 5.0), st.floats(0.01, 4.0), st.floats(0.0, 30.0))
def test_balanced_mode_is_the_logistic(s, c0, kappa, t):
    assert strength(t, s, c0, 0.0, kappa=kappa) == pytest.approx(mode_strength(t, s, c0, kappa=kappa), rel=1e-9)


def test_mode_of_the_matrix_flow():
    u, v, g = np.array([0.6, 0.8]), np.array([0.0, 1.0, 0.0]), np.array([[1.0]])
    P, a, b = np.array([[1.0, 0.0]]), 0.5, 0.1
    W1, W2 = a * g @ v[None], b * u[:, None] @ g
    maps = exact_map(2.0 * np.outer(u, v), W1, W2, TIMES, P=P)
    imbalance = a**2 - 0.36 * b**2
    assert_close(u @ maps @ v, strength(TIMES, 2.0, a * b, imbalance, kappa=0.36), 1e-12)
    with pytest.raises(AssertionError):
        assert_close(u @ maps @ v, strength(TIMES, 2.0, a * b, imbalance), 1e-2)


@pytest.mark.parametrize("kappa", [1.0, 0.1])
def test_curves_bend_below_the_boundary_only(kappa):
    s, edge, t = 2.0, rich_imbalance(2.0, kappa=kappa), np.linspace(0.0, 20.0, 20001)
    for share in (0.9, 1.1):
        bend = np.diff(strength(t, s, 0.0, share * edge, kappa=kappa), 2)
        assert (bend.max() > 1e-9) == (share < 1)


@pytest.mark.parametrize("imbalance", [0.4, 0.7, 1.0])
def test_share_of_rich_modes_behind_random_channels(imbalance):
    rank, n_modes, n_out, s, n_draws = 20, 10, 40, 2.0, 60
    shares = []
    for rng in map(np.random.default_rng, range(n_draws)):
        Q, _ = np.linalg.qr(rng.standard_normal((n_out, rank)))
        kappa = np.linalg.svd(Q[:n_modes], compute_uv=False) ** 2
        shares.append(np.mean(imbalance < rich_imbalance(s, kappa=kappa)))
    error = np.std(shares, ddof=1) / np.sqrt(n_draws)

    def z(mu):
        law = expected_learned_fraction(rank / n_out, n_modes / n_out, np.sqrt(2) * mu / s, n_out=n_out)
        return abs(np.mean(shares) - law) / error

    assert z(imbalance) < 4
    assert z(1.3 * imbalance) > 4


def test_extreme_arguments():
    assert strength(1e300, 2.0, 1e-300, 1e-3) == pytest.approx(2.0, rel=1e-15)
    assert strength(0.0, 2.0, 1e-12, 1e3) == pytest.approx(1e-12, rel=1e-12)
    assert strength(1e9, 2.0, 0.0, 0.0) == 0.0


def small_start(strengths, n_in, seed=4):
    """Return a task of which a channel of rank 2 sees modes of the given strengths, the channel, and a start."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0][:, :2] for n in (2, n_in))
    P = np.linalg.qr(rng.standard_normal((4, 2)))[0].T
    A = P.T @ (left * strengths) @ right.T + (np.eye(4) - P.T @ P) @ rng.standard_normal((4, n_in))
    return A, P, rng.standard_normal((3, n_in)), rng.standard_normal((4, 3)), left, right


def orders(strengths, n_in, start, *, decay=0.0, stop=14.0):
    """Measure the orders in its scale at which a small start and its replacement `start` agree, over all times.

    Those of the symmetric and antisymmetric part of what the channel sees of its modes, and of the whole map.
    """
    A, P, W1, W2, left, right = small_start(strengths, n_in)
    times, scales, errors = np.linspace(0.0, stop, round(stop / 0.1) + 1), np.array([3e-3, 3e-4]), []
    for scale in scales:
        first, second, _ = low_rank_flow(A, scale * W1, scale * W2, scale * P @ W2, P, times, decay=decay)
        wrong = start(A, scale * W1, scale * W2, times, P, decay) - second @ first
        seen = left.T @ P @ wrong @ right
        both = seen + seen.transpose(0, 2, 1), seen - seen.transpose(0, 2, 1), wrong
        errors.append([np.abs(part).max() for part in both])
    return np.log10(np.divide(*errors))


def growing(A, W1, W2, times, P, decay):
    return exact_map(A, *growing_part(A, W1, W2, P=P), times, P=P, weight_decay=decay)


def corrected(A, W1, W2, times, P, decay):
    return small_start_map(A, W1, W2, times, P=P, weight_decay=decay)


def first_layer_replaced(A, W1, W2, times, P, decay):
    """Balance a start by taking W1 from W2 alone."""
    left, _, right = np.linalg.svd(P @ A, full_matrices=False)
    return exact_map(A, W2.T @ P.T @ left @ right, W2, times, P=P, weight_decay=decay)


@pytest.mark.parametrize(("n_in", "decay"), [(2, 0.0), (4, 0.0), (4, 0.2)])
def test_small_start_map_is_of_second_order_in_everything(n_in, decay):
    strengths = np.array([3.0, 1.0])
    assert orders(strengths, n_in, corrected, decay=decay)[2] == pytest.approx(2.0, abs=0.1)
    assert orders(strengths, n_in, growing, decay=decay)[2] < 1.2


@pytest.mark.parametrize("strengths", [(3.0, 1.0), (2.0, 1.5)])
def test_growing_part_is_of_second_order_in_strengths_only(strengths):
    strong, weak = strengths
    found = orders(np.array(strengths), 2, growing)
    assert found[0] == pytest.approx(2.0, abs=0.1)
    assert found[1] == pytest.approx(1 + weak / strong, abs=0.1)
    assert found[2] == pytest.approx(1.0, abs=0.1)
    assert 1.7 < orders(np.array(strengths), 4, growing)[0] < 1.9  # a logarithm from inputs out of the channel's reach
    wrong = orders(np.array(strengths), 2, first_layer_replaced)  # learned at another time
    assert max(wrong[0], wrong[2]) < 0.2


def test_small_start_map_without_imbalance_is_exact():
    A, P, *_ = small_start(np.array([3.0, 1.0]), 4)
    W1, W2 = m_balanced_weights((4, 4), 3, P, scale=0.3, rng=np.random.default_rng(1))
    assert_close(small_start_map(A, W1, W2, TIMES, P=P), exact_map(A, W1, W2, TIMES, P=P), 1e-12)
    features, readout = growing_part(A, W1, W2, P=P)
    assert_close(conserved(features, readout, P=P), 0.0, 1e-13)


@pytest.mark.parametrize("kappa", [1.0, 0.3])
def test_growing_part_of_one_mode(kappa):
    """It is too strong at the start, and too weak, by a quarter of that, when half is learned."""
    s, t, root, errors, wrong = 2.0, np.linspace(0.0, 30.0, 601), np.sqrt(kappa), [], []
    for scale in (1e-1, 1e-2):
        a, b = 0.7 * scale, 0.1 * scale
        c0, missing = (a + root * b) ** 2 / (4 * root), (a - root * b) ** 2 / (4 * root)
        c = mode_strength(t, s, c0, kappa=kappa)
        over = (c - strength(t, s, a * b, a**2 - kappa * b**2, kappa=kappa)) / missing
        errors.append(np.abs(over - (c0 / c - c / s * (1 - c / s))).max())
        wrong.append(np.abs(over - c0 / c).max())
    assert np.log10(np.divide(*errors)) > 1.7  # a logarithm
    assert wrong[1] == pytest.approx(0.25, abs=0.01)
