"""What random channels teach under weight decay, and at finite width: quadrature, exact moments and draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from linfb.theory import (
    end_point,
    expected_learned_fraction,
    expected_loss,
    half_learned_fraction,
    inverse_overlap_tail,
    overlap_atoms,
    overlap_cdf,
    overlap_density,
    overlap_moment,
    phase_boundaries,
    time_to_half,
    time_to_half_cdf,
    time_to_half_quantile,
)
from tests.theory_flow import assert_close

FRACTIONS = [(0.5, 0.25), (0.25, 0.5), (0.75, 0.5), (0.5, 0.5), (0.2, 0.8), (0.9, 0.9), (0.3, 1.0), (1.0, 0.4)]
SIZES = [(32, 16, 8), (32, 8, 16), (32, 24, 16)]


def readers(draws, n_out, rank, seed=0):
    """Uniformly random P with orthonormal rows, shape (draw, rank, out)."""
    rng = np.random.default_rng([seed, n_out, rank])
    return np.linalg.qr(rng.standard_normal((draws, n_out, rank)))[0].transpose(0, 2, 1)


def overlaps(draws, n_out, rank, task_rank, seed=0):
    """Eigenvalues of U^T M U for the first coordinates as task, shape (draw, mode)."""
    values = np.zeros((draws, task_rank))
    seen = np.linalg.svd(readers(draws, n_out, rank, seed)[:, :, :task_rank], compute_uv=False) ** 2
    values[:, : seen.shape[1]] = seen
    return values


def z_score(samples, expected):
    return (np.mean(samples) - expected) / (np.std(samples, ddof=1) / np.sqrt(len(samples)))


def slope(sizes, errors):
    """Exponent of a power law."""
    return np.polyfit(np.log(sizes), np.log(np.abs(errors)), 1)[0]


@pytest.mark.parametrize(("n_out", "rank", "task_rank"), [(12, 9, 2), (20, 14, 5), (30, 20, 12)])
@pytest.mark.parametrize("order", [1, 2, -1])
def test_exact_moments(n_out, rank, task_rank, order):
    samples = np.mean(overlaps(600, n_out, rank, task_rank) ** order, axis=1)
    assert abs(z_score(samples, overlap_moment(order, rank, task_rank, n_out))) < 4
    assert abs(z_score(samples, overlap_moment(order, rank + 1, task_rank, n_out))) > 4


def test_inverse_moment_is_not_that_of_the_limit():
    samples = np.mean(1 / overlaps(600, 30, 20, 12), axis=1)
    assert abs(z_score(samples, inverse_overlap_tail(0.0, 20 / 30, 12 / 30))) > 4


def test_moments_at_their_ends():
    assert overlap_moment(-1, 5, 4, 10) == np.inf
    assert [overlap_moment(order, 6, 3, 6) for order in (1, 2, -1)] == [1.0, 1.0, 1.0]
    assert overlap_moment(2, 3, 8, 8) == pytest.approx(3 / 8, rel=1e-14)


def integral(function, beta, alpha):
    """Integrate function * density over the support, regular at the edges."""
    outer, inner = np.sqrt(alpha * (1 - beta)), np.sqrt(beta * (1 - alpha))
    low, high = (outer - inner) ** 2, (outer + inner) ** 2

    def integrand(phi):
        x = low + (high - low) * np.sin(phi) ** 2
        return function(x) * overlap_density(x, beta, alpha) * (high - low) * np.sin(2 * phi)

    return quad(integrand, 0.0, np.pi / 2, epsabs=1e-13, epsrel=1e-12, limit=200)[0]


@pytest.mark.parametrize(("beta", "alpha"), FRACTIONS)
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.95, 1.0, 1.5])
def test_loss_is_its_integral(beta, alpha, threshold):
    at_zero, at_one = overlap_atoms(beta, alpha)
    share = min(1.0, threshold**2)
    expected = at_zero + integral(lambda x: min(1.0, threshold**2 / x), beta, alpha) + share * at_one
    assert_close(expected_loss(beta, alpha, threshold), expected, 1e-9)  # quadrature across a kink
    if threshold < 1:
        assert abs(expected_loss(beta, alpha, 1.01 * threshold) - expected) > 1e-5


def test_loss_at_its_ends():
    for beta, alpha in FRACTIONS:
        assert expected_loss(beta, alpha, 0.0) == pytest.approx(max(0.0, 1 - beta / alpha), abs=1e-12)
        assert_close(expected_loss(beta, alpha, [1.0, 1e9]), 1.0, 1e-15)
    assert expected_loss(0.5, 0.25, 0.01) == pytest.approx(1e-4 * 0.75 / 0.25, rel=1e-12)
    assert np.isfinite(expected_loss(0.5, 0.5, [0.0, 1e-9])).all()  # the law reaches zero: a loss of order theta
    assert expected_loss(0.5, 0.5, 1e-6) == pytest.approx(4e-6 / np.pi, rel=1e-5)


def test_loss_is_that_of_the_end_points():
    decay, s, n_out, rank, task_rank = 0.8, 2.0, 12, 5, 4
    A = s * np.eye(n_out, task_rank)
    for P, kappa in zip(readers(20, n_out, rank), overlaps(20, n_out, rank, task_rank), strict=True):
        left = np.sum((A - end_point(A, P, weight_decay=decay)) ** 2) / np.sum(A**2)
        assert_close(left, np.mean(np.minimum(1.0, (decay / s) ** 2 / kappa)), 1e-12)
        assert abs(left - np.mean(np.maximum(0.0, 1 - decay / (s * np.sqrt(kappa))))) > 1e-3  # what is learned instead


@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.25), (0.75, 0.5), (0.8, 0.1)])
def test_bias_of_the_inverse_moment_and_what_is_left_of_it(beta, alpha):
    sizes = np.array([200, 400, 800])
    exact = np.array([overlap_moment(-1, round(beta * m), round(alpha * m), m) for m in sizes])
    plain = exact - inverse_overlap_tail(0.0, beta, alpha)
    left = exact - np.array([inverse_overlap_tail(0.0, beta, alpha, n_out=int(m)) for m in sizes])
    assert slope(sizes, plain) == pytest.approx(-1.0, abs=0.1)
    assert slope(sizes, left) == pytest.approx(-2.0, abs=0.1)
    assert slope(sizes, plain) != pytest.approx(-2.0, abs=0.1)


@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.25), (0.25, 0.5), (0.75, 0.5), (0.5, 0.5)])
def test_bias_of_the_second_moment_and_what_is_left_of_it(beta, alpha):
    """The mean of x^2 over a law F on [0, 1] is one less the integral of 2x F(x)."""
    sizes = np.array([64, 128, 256])
    outer, inner = np.sqrt(alpha * (1 - beta)), np.sqrt(beta * (1 - alpha))
    low, high = (outer - inner) ** 2, (outer + inner) ** 2

    def second(n_out):
        def integrand(phi):
            x = low + (high - low) * np.sin(phi) ** 2
            return 2 * x * overlap_cdf(x, beta, alpha, n_out=n_out) * (high - low) * np.sin(2 * phi)

        rest = overlap_atoms(beta, alpha)[0] * low**2 + (1 - overlap_atoms(beta, alpha)[1]) * (1 - high**2)
        return 1 - quad(integrand, 0.0, np.pi / 2, epsabs=1e-13, epsrel=1e-12)[0] - rest

    exact = np.array([overlap_moment(2, int(beta * m), int(alpha * m), int(m)) for m in sizes])
    plain, left = exact - second(None), exact - np.array([second(int(m)) for m in sizes])
    assert slope(sizes, plain) == pytest.approx(-1.0, abs=0.1)
    assert slope(sizes, left) == pytest.approx(-2.0, abs=0.1)


@pytest.mark.parametrize(("n_out", "rank", "task_rank"), SIZES)
@pytest.mark.parametrize("threshold", [0.4, 0.6])
def test_learned_share_and_loss_at_finite_width(n_out, rank, task_rank, threshold):
    kappa, (beta, alpha) = overlaps(1500, n_out, rank, task_rank), (rank / n_out, task_rank / n_out)
    shares = np.mean(kappa > threshold**2, axis=1)
    losses = np.mean(np.minimum(1.0, threshold**2 / np.maximum(kappa, 1e-300)), axis=1)
    for samples, law in ((shares, expected_learned_fraction), (losses, expected_loss)):
        assert abs(z_score(samples, law(beta, alpha, threshold, n_out=n_out))) < 4
        assert abs(z_score(samples, law(beta, alpha, threshold + 0.05, n_out=n_out))) > 4
        if threshold == 0.4:  # where the bias of the limit is largest
            assert abs(z_score(samples, law(beta, alpha, threshold))) > 4


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_boundaries_of_the_phases(alpha, threshold):
    some, every = phase_boundaries(alpha, threshold)
    assert 0 <= some <= every <= 1
    if every < 0.999:
        assert expected_learned_fraction(min(every + 1e-6, 1.0), alpha, threshold) == pytest.approx(1.0, abs=1e-12)
        assert expected_learned_fraction(every - 1e-3, alpha, threshold) < 1.0
    if some > 2e-3:
        assert expected_learned_fraction(some - 1e-6, alpha, threshold) == pytest.approx(0.0, abs=1e-12)
        assert expected_learned_fraction(some + 1e-3, alpha, threshold) > 0.0


def test_boundaries_at_their_ends():
    assert phase_boundaries(0.3, 0.0) == (0.0, pytest.approx(0.3, rel=1e-14))
    assert phase_boundaries(0.3, 1.0) == (pytest.approx(0.7, rel=1e-14), 1.0)
    assert phase_boundaries(0.8, 0.5)[1] == 1.0  # alpha >= 1 - theta^2: nothing but the full width


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_half_learned_share_is_that_of_draws(decay):
    s, c0, (n_out, rank, task_rank) = 2.0, 0.01, SIZES[0]
    times = time_to_half(s, c0, kappa=overlaps(1500, n_out, rank, task_rank), weight_decay=decay)
    for t in (1.6, 2.0, 3.0, 50.0):
        samples = np.mean(times <= t, axis=1)
        expected = half_learned_fraction(t, s, c0, 0.5, 0.25, weight_decay=decay, n_out=n_out)
        assert abs(np.mean(samples) - expected) < 4 * np.std(samples) / np.sqrt(1500) + 2 / n_out**2
    wrong = half_learned_fraction(2.0, s, c0, 0.5, 0.25, weight_decay=decay + 0.1, n_out=n_out)
    assert abs(z_score(np.mean(times <= 2.0, axis=1), wrong)) > 4


def test_half_learned_share_at_its_ends():
    fastest = time_to_half(2.0, 0.01)
    assert_close(half_learned_fraction([0.0, 0.99 * fastest], 2.0, 0.01, 0.9, 0.9), 0.0, 0.0)
    assert half_learned_fraction(fastest, 2.0, 0.01, 0.9, 0.9) == pytest.approx(8 / 9)  # what is seen wholly
    late = half_learned_fraction(1e9, 2.0, 0.01, 0.5, 0.25, weight_decay=0.6)
    assert late == pytest.approx(expected_learned_fraction(0.5, 0.25, 0.6), abs=1e-9)
    assert late < expected_learned_fraction(0.5, 0.25, 0.3) - 0.1
    assert half_learned_fraction(1e9, 2.0, 0.01, 0.5, 0.25, weight_decay=1.5) == 0.0


def test_times_of_one_mode_with_decay():
    s, c0, rank, n_out, decay = 2.0, 0.01, 3, 12, 0.2
    times = time_to_half(s, c0, kappa=overlaps(400, n_out, rank, 1, seed=1)[:, 0], weight_decay=decay)
    for share in (0.2, 0.5, 0.8):
        t = time_to_half_quantile(share, s, c0, rank, n_out, weight_decay=decay)
        assert time_to_half_cdf(t, s, c0, rank, n_out, weight_decay=decay) == pytest.approx(share, abs=1e-9)
        assert abs(z_score((times <= t).astype(float), share)) < 4
        wrong = time_to_half_quantile(share, s, c0, rank, n_out)
        assert abs(z_score((times <= wrong).astype(float), share)) > 4
    assert time_to_half_quantile(0.999, s, c0, rank, n_out, weight_decay=decay) == np.inf


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: overlap_moment(3, 2, 2, 8), "order"),
        (lambda: overlap_moment(1, 9, 2, 8), "rank"),
        (lambda: overlap_moment(1, 2, 9, 8), "task_rank"),
        (lambda: overlap_moment(1, 2, 2, 0), "n_out"),
        (lambda: overlap_cdf(0.5, 0.5, 0.5, n_out=0), "n_out"),
        (lambda: inverse_overlap_tail(np.nan, 0.5, 0.5), "x"),
        (lambda: expected_loss(0.5, 0.5, -1.0), "threshold"),
        (lambda: expected_loss(1.5, 0.5, 1.0), "rank_fraction"),
        (lambda: phase_boundaries(0.5, 1.5), "threshold"),
        (lambda: phase_boundaries(0.0, 0.5), "task_fraction"),
        (lambda: half_learned_fraction(-1.0, 1.0, 0.1, 0.5, 0.5), "t"),
        (lambda: half_learned_fraction(1.0, 1.0, 0.1, 0.5, 0.5, weight_decay=-1.0), "weight_decay"),
        (lambda: time_to_half(1.0, 0.1, weight_decay=np.inf), "weight_decay"),
    ],
)
def test_bad_numbers_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        call()
