"""Laws of random channels against draws (z-scores), exact moments at finite size and quadrature."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from linfb.backend import Key
from linfb.engine import cross_entropy, vgg_like, vit
from linfb.engine.backward import backward
from linfb.engine.models import forward, initial_weights
from linfb.engine.trees import flatten
from linfb.observables.measures import cosine, participation_ratio
from linfb.rules import Channel, backpropagation, low_rank
from linfb.rules.mirrors import Exact
from linfb.rules.readers import Fixed
from linfb.theory import (
    carried_alignment,
    expected_learned_fraction,
    learned_modes,
    overlap_atoms,
    overlap_cdf,
    overlap_density,
    overlap_distribution,
    time_to_half,
    time_to_half_cdf,
    time_to_half_quantile,
)
from tests.theory_flow import assert_close

DRAWS = 100
FRACTIONS = [(0.5, 0.25), (0.25, 0.5), (0.75, 0.5), (0.5, 0.5), (0.2, 0.8), (0.9, 0.9), (0.3, 1.0), (1.0, 0.4)]


def readers(n_out, rank, seed=0):
    """Uniformly random P with orthonormal rows."""
    rng = np.random.default_rng([seed, n_out, rank])
    return [np.linalg.qr(rng.standard_normal((n_out, rank)))[0].T for _ in range(DRAWS)]


def overlaps(n_out, rank, task_rank):
    """Eigenvalues of U^T M U for the first coordinates as task, shape (draw, mode)."""
    return np.array([np.linalg.svd(P[:, :task_rank].T)[1] ** 2 for P in readers(n_out, rank)])


def z_score(samples, expected):
    return (np.mean(samples) - expected) / (np.std(samples, ddof=1) / np.sqrt(len(samples)))


@pytest.mark.parametrize(("rank", "n_out"), [(1, 2), (2, 8), (5, 20), (19, 20)])
def test_overlap_of_one_direction(rank, n_out):
    kappa = np.array([np.sum(P[:, 0] ** 2) for P in readers(n_out, rank)])
    law = overlap_distribution(rank, n_out)
    assert abs(z_score(kappa, law.mean())) < 4
    assert abs(z_score(kappa**2, law.moment(2))) < 4
    for level in (0.25, 0.5, 0.75):
        assert abs(z_score((kappa <= law.ppf(level)).astype(float), level)) < 4
    assert law.mean() == pytest.approx(rank / n_out, rel=1e-14)
    assert abs(z_score(kappa, (rank / n_out) ** 2)) > 4  # as if reading and writing each cost a share


@pytest.mark.parametrize(("rank", "n_out", "decay"), [(1, 4, 0.3), (3, 8, 0.5), (6, 9, 0.8), (2, 6, 1.0)])
def test_alignment_of_errors_of_many_dimensions(rank, n_out, decay):
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((n_out, n_out)))[0]
    errors = decay ** np.arange(n_out)[:, None] * rotation
    found = np.array([cosine(errors @ P.T @ P, errors) ** 2 for P in readers(n_out, rank)])
    mean, variance = carried_alignment(rank, n_out, dimension=participation_ratio(errors))
    if decay == 1.0:  # errors alike in all directions leave nothing to chance
        assert_close(found, mean, 1e-12)
        assert variance < 1e-15
        return
    squares = (found - mean) ** 2
    assert abs(z_score(found, mean)) < 4
    assert abs(z_score(squares, variance)) < 4
    assert abs(z_score(found, mean**2)) > 4  # as if the cosine itself were r / m
    assert abs(z_score(squares, overlap_distribution(rank, n_out).var())) > 4 or decay < 0.4  # as if D were 1


def test_alignment_behind_isotropic_weights():
    """Two independent channels behind isotropic weights multiply their shares, up to the scatter of either."""
    n_out, ranks = 12, (3, 6)
    rng = np.random.default_rng(2)
    errors, W = rng.standard_normal((40, n_out)), np.linalg.qr(rng.standard_normal((n_out, n_out)))[0]
    pairs = zip(readers(n_out, ranks[0]), readers(n_out, ranks[1], seed=5), strict=True)
    found = [cosine(errors @ P.T @ P @ W @ R.T @ R, errors @ W) ** 2 for P, R in pairs]
    expected = np.prod([carried_alignment(rank, n_out)[0] for rank in ranks])
    assert abs(z_score(found, expected)) < 4
    assert abs(z_score(found, carried_alignment(min(ranks), n_out)[0])) > 4  # as if the narrower one decided


@pytest.mark.parametrize("network", ["vgg", "vit"])
def test_mean_over_channels_is_backpropagation_scaled_by_their_shares(network):
    """In any network: the mean over readers of either half of the features, which is exact, hands on one half."""
    if network == "vgg":
        model = vgg_like((4, 4, 1), 4, widths=(4,), dense=4, dropout=0.0)
    else:
        model = vit((4, 4, 1), 4, patch=2, width=4, depth=1, heads=2, dropout=0.0, drop_path=0.0)
    rng = np.random.default_rng(0)
    weights, x = initial_weights(model, 0), rng.standard_normal((6, 4, 4, 1))
    outputs, caches = forward(model, weights, x, Key(0))
    delta = cross_entropy(outputs, np.eye(4)[rng.integers(0, 4, 6)])[1]

    widths = [model.layers[i].n_out for i in model.kernels[1:]]

    def carried(rule, channels):
        run = backward(model, rule, weights, (None, *channels), caches, delta)
        return flatten({"weights": run.weights, "errors": run.deltas})

    def scaled(share):
        return carried(backpropagation(), [Channel(gain=share)] * len(widths))

    halves = [[Channel(P=np.eye(m)[: m // 2]), Channel(P=np.eye(m)[m // 2 :])] for m in widths]
    runs = [carried(low_rank(2, reader=Fixed(), mirror=Exact()), channels) for channels in product(*halves)]
    expected, wrong, exact = scaled(0.5), scaled(0.25), scaled(1.0)
    for path, array in expected.items():
        size = np.abs(exact[path]).max()
        assert_close(np.mean([run[path] for run in runs], axis=0) / size, array / size, 1e-12)
    assert np.abs(expected["errors/0"] - wrong["errors/0"]).max() > 0.01 * np.abs(exact["errors/0"]).max()


def test_residual_branches_leave_what_the_skip_connection_carries():
    """The closed form is off by the scatter of channels and weights, which falls with the root of the width."""
    widths, share, size, off, wrong = (32, 64, 128, 256), 0.25, 1.5, [], []
    rng = np.random.default_rng(4)
    for width in widths:
        found, chain = [], []
        for _ in range(150):
            reads = rng.permuted(np.tile(np.arange(width) < share * width, (3, 1)), axis=1)  # weights are isotropic
            above, (W, V) = rng.standard_normal(width), rng.standard_normal((2, width, width)) / np.sqrt(width)
            carried = reads[0] * above
            true, narrow = above + size * W @ (V @ above), carried + size * W @ (reads[1] * (V @ (reads[2] * carried)))
            branch = 1 - np.sum(above**2) / np.sum(true**2)
            squared = cosine(narrow[None], true[None]) ** 2
            found.append(squared - share * (1 - branch * (1 - share**2)))
            chain.append(squared - share**3)
        off.append(np.sqrt(np.mean(np.square(found))))
        wrong.append(np.mean(chain))
    assert abs(np.polyfit(np.log(widths), np.log(off), 1)[0] + 0.5) < 0.1
    assert min(wrong) > 0.7 * max(wrong)  # the mean deviation without the skip connection does not fall


def test_an_aligned_reader_has_the_largest_cosine():
    spectrum = np.array([4.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    errors = np.diag(np.sqrt(spectrum))
    for rank in range(1, 6):
        best = cosine(errors * (np.arange(6) < rank), errors) ** 2
        assert best == pytest.approx(spectrum[:rank].sum() / spectrum.sum(), rel=1e-14)
        drawn = [cosine(errors @ P.T @ P, errors) ** 2 for P in readers(6, rank)]
        assert max(drawn) <= best + 1e-12
        assert np.mean(drawn) < best - 0.05


def second_moment(n_out, rank, task_rank):
    """Mean of tr K^2 / d at finite size, from the invariant fourth moments of a random projector."""
    off = rank * (n_out - rank) / (n_out * (n_out - 1) * (n_out + 2))
    return (rank**2 - 2 * off * n_out) / n_out**2 + off * (1 + task_rank)


@pytest.mark.parametrize(("n_out", "rank", "task_rank"), [(6, 2, 3), (10, 7, 5), (12, 3, 8), (8, 4, 4)])
def test_finite_size_moments(n_out, rank, task_rank):
    values = np.zeros((DRAWS, task_rank))
    seen = overlaps(n_out, rank, task_rank)
    values[:, : seen.shape[1]] = seen
    first, second = values.mean(axis=1), (values**2).mean(axis=1)
    assert abs(z_score(first, rank / n_out)) < 4
    assert abs(z_score(second, second_moment(n_out, rank, task_rank))) < 4
    assert abs(z_score(second, (rank / n_out) ** 2)) > 4  # as if every direction saw the mean
    at_zero, at_one = overlap_atoms(rank / n_out, task_rank / n_out)
    assert_close(np.mean(values < 1e-12, axis=1), at_zero, 1e-12)
    assert_close(np.mean(values > 1 - 1e-12, axis=1), at_one, 1e-12)


def edges(beta, alpha):
    outer, inner = np.sqrt(alpha * (1 - beta)), np.sqrt(beta * (1 - alpha))
    return (outer - inner) ** 2, (outer + inner) ** 2


def integral(function, beta, alpha, upto=1.0):
    """Integrate function * density over the lower part of the support, regular at the edges."""
    low, high = edges(beta, alpha)

    def integrand(phi):
        x = low + (high - low) * np.sin(phi) ** 2
        return function(x) * overlap_density(x, beta, alpha) * (high - low) * np.sin(2 * phi)

    return quad(integrand, 0.0, np.arcsin(np.sqrt(upto)), epsabs=1e-13, epsrel=1e-12)[0]


@pytest.mark.parametrize(("beta", "alpha"), FRACTIONS)
def test_law_is_normalised_with_the_right_mean(beta, alpha):
    at_zero, at_one = overlap_atoms(beta, alpha)
    assert integral(lambda x: 1.0, beta, alpha) + at_zero + at_one == pytest.approx(1.0, abs=1e-10)
    assert integral(lambda x: x, beta, alpha) + at_one == pytest.approx(beta, abs=1e-10)


@pytest.mark.parametrize(("beta", "alpha"), FRACTIONS)
def test_distribution_integrates_the_density(beta, alpha):
    at_zero, _ = overlap_atoms(beta, alpha)
    low, high = edges(beta, alpha)
    for share in (0.01, 0.3, 0.8, 0.99):
        expected = at_zero + integral(lambda x: 1.0, beta, alpha, share)
        assert_close(overlap_cdf(low + share * (high - low), beta, alpha), expected, 1e-10)
    assert overlap_cdf(-1e-9, beta, alpha) == 0.0
    assert overlap_cdf(1.0, beta, alpha) == 1.0


def test_single_direction_in_the_limit():
    """For one direction among many the law narrows to the mean, as the Beta law does."""
    beta, alpha = 0.3, 1e-4
    variance = integral(lambda x: (x - beta) ** 2, beta, alpha)
    assert variance == pytest.approx(alpha * beta * (1 - beta), rel=1e-3)


@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.25), (0.25, 0.5), (0.75, 0.5)])
def test_finite_size_bias_falls_like_one_over_m(beta, alpha):
    limit = integral(lambda x: x**2, beta, alpha) + overlap_atoms(beta, alpha)[1]
    bias = [second_moment(m, beta * m, alpha * m) - limit for m in (100, 200, 400)]
    assert bias[0] / bias[1] == pytest.approx(2.0, abs=0.05)
    assert bias[1] / bias[2] == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.25), (0.25, 0.5), (0.75, 0.5)])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_expected_number_of_learned_modes(beta, alpha, threshold):
    """Mean over channels within 4 standard errors and the O(1 / m) bias of the limit."""
    n_out = 64
    rank, task_rank = int(beta * n_out), int(alpha * n_out)
    A = np.eye(n_out, task_rank) * 2.0
    counts = [learned_modes(A, P, weight_decay=2.0 * threshold) / task_rank for P in readers(n_out, rank)]
    expected = expected_learned_fraction(beta, alpha, threshold)
    error = np.std(counts, ddof=1) / np.sqrt(DRAWS)
    assert abs(np.mean(counts) - expected) < 4 * error + 1 / n_out
    for wrong in (
        expected_learned_fraction(beta, alpha, threshold + 0.2),
        expected_learned_fraction(beta - 0.2, alpha, threshold),
    ):
        assert abs(np.mean(counts) - wrong) > 4 * error + 1 / n_out


def test_learned_fraction_at_its_ends():
    for beta, alpha in FRACTIONS:
        assert expected_learned_fraction(beta, alpha, 0.0) == pytest.approx(min(1.0, beta / alpha), abs=1e-12)
        assert_close(expected_learned_fraction(beta, alpha, [1.0, 2.0]), 0.0, 0.0)
        below = expected_learned_fraction(beta, alpha, 1 - 1e-12)
        assert below == pytest.approx(overlap_atoms(beta, alpha)[1], abs=1e-5)


def test_learning_times_of_random_channels():
    s, c0, rank, n_out = 2.0, 0.01, 3, 12
    kappa = np.array([np.sum(P[:, 0] ** 2) for P in readers(n_out, rank, seed=1)])
    times = time_to_half(s, c0, kappa=kappa)
    for share in (0.2, 0.5, 0.8):
        t = time_to_half_quantile(share, s, c0, rank, n_out)
        assert time_to_half_cdf(t, s, c0, rank, n_out) == pytest.approx(share, abs=1e-12)
        assert abs(z_score((times <= t).astype(float), share)) < 4
        wrong = time_to_half_quantile(share, s, c0, 2 * rank, n_out)
        assert abs(z_score((times <= wrong).astype(float), share)) > 4
    fastest = time_to_half(s, c0)
    assert_close(time_to_half_cdf([0.0, 0.99 * fastest, fastest], s, c0, rank, n_out), 0.0, 0.0)
    assert time_to_half_quantile(0.0, s, c0, rank, n_out) == fastest
    assert time_to_half_quantile(1.0, s, c0, rank, n_out) == np.inf
    assert time_to_half_cdf(1e9, s, c0, rank, n_out) == pytest.approx(1.0, abs=1e-8)


@given(st.floats(-1.0, 2.0), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_density_and_distribution_are_proper(x, beta, alpha):
    assert overlap_density(x, beta, alpha) >= 0
    assert 0 <= overlap_cdf(x, beta, alpha) <= 1 + 1e-12
    assert overlap_cdf(x, beta, alpha) <= overlap_cdf(x + 0.1, beta, alpha) + 1e-12


@pytest.mark.parametrize(("rank", "n_out"), [(0, 4), (4, 4), (5, 4), (1.5, 4), (True, 4), (1, 0)])
def test_bad_sizes_are_named(rank, n_out):
    with pytest.raises((TypeError, ValueError), match=r"^(rank|n_out)\b"):
        overlap_distribution(rank, n_out)


def test_full_rank_is_explained():
    with pytest.raises(ValueError, match="sees everything, kappa = 1"):
        overlap_distribution(4, 4)


@given(
    st.sampled_from([overlap_density, overlap_cdf, expected_learned_fraction, overlap_atoms]),
    st.sampled_from(["rank_fraction", "task_fraction"]),
    st.sampled_from([0.0, -0.1, 1.1, np.nan, "x", None]),
)
def test_bad_fractions_are_named(function, name, value):
    fractions = {"rank_fraction": 0.5, "task_fraction": 0.5, name: value}
    extra = {"x": 0.5} if function in (overlap_density, overlap_cdf) else {}
    extra = {"threshold": 0.5} if function is expected_learned_fraction else extra
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        function(**fractions, **extra)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: carried_alignment(0, 4), "rank"),
        (lambda: carried_alignment(5, 4), "rank"),
        (lambda: carried_alignment(1, 1), "n_out"),
        (lambda: carried_alignment(1, 4, dimension=4.5), "dimension"),
        (lambda: overlap_density(np.nan, 0.5, 0.5), "x"),
        (lambda: expected_learned_fraction(0.5, 0.5, -0.1), "threshold"),
        (lambda: time_to_half_cdf(-1.0, 1.0, 0.1, 1, 3), "t"),
        (lambda: time_to_half_cdf(1.0, 1.0, 0.9, 1, 3), "c0"),
        (lambda: time_to_half_cdf(1.0, -1.0, 0.1, 1, 3), "s"),
        (lambda: time_to_half_quantile(1.5, 1.0, 0.1, 1, 3), "q"),
        (lambda: time_to_half_quantile(0.5, [1.0], 0.1, 1, 3), "s"),
    ],
)
def test_bad_numbers_are_named(call, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
        call()
