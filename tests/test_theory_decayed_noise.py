"""Online learning under weight decay: against the flow's own remaining cost, exact moments of samples and the rule."""

from itertools import product

import numpy as np
import pytest

from linfb import theory
from tests.linear_cases import convergence_order
from tests.theory_flow import integrate


def task(strengths, n_out=4, n_in=5, rank=2, seed=0):
    """Return a task with modes of the given strengths and a reader with orthonormal rows."""
    rng = np.random.default_rng(seed)
    left, right, reader = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (n_out, n_in, n_out))
    return (left[:, : len(strengths)] * strengths) @ right[:, : len(strengths)].T, reader[:rank]


def end_weights(A, P, decay, n_hidden, seed=0):
    """Return weights at rest, with hidden units turned at random."""
    _, strengths, right = np.linalg.svd(P @ A, full_matrices=False)
    roots = np.sqrt(np.maximum(strengths - decay, 0.0))[:n_hidden]
    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((n_hidden, n_hidden)))[0][:, : len(roots)]
    W1 = (turned * roots) @ right[: len(roots)]
    return W1, A @ W1.T @ np.linalg.inv(decay * np.eye(n_hidden) + W1 @ W1.T)


def velocity(A, W1, W2, P, decay):
    E = A - W2 @ W1
    return W2.T @ P.T @ P @ E - decay * W1, E @ W1.T - decay * W2


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("decay", [0.05, 0.4])
def test_one_mode_is_a_case_of_the_general_formula(rank, decay):
    A, P = task([1.5], rank=rank, seed=rank)
    kappa = min(1.0, (np.linalg.norm(P @ A) / 1.5) ** 2)
    options = {"weight_decay": decay, "noise": 0.3, "learning_rate": 0.01, "batch_size": 3}
    general = theory.end_point_excess_loss(A, P, **options)
    single = theory.decayed_mode_excess_loss(1.5, kappa, 5, 4, rank, **options)
    assert general == pytest.approx(single, rel=1e-11)
    assert theory.end_point_excess_loss(A, P, n_hidden=3, **options | {"noise": 0.09 * np.eye(4)}) == general
    assert theory.decayed_mode_excess_loss(1.5, kappa, 6, 4, rank, **options) != pytest.approx(single, rel=1e-4)


def test_covariance_of_the_weights_and_shift_of_their_mean():
    """One hidden unit, so that both exist; differences are exact for a cubic flow, quadrature for samples."""
    A, P = task([1.5, 0.3], n_out=2, n_in=2, rank=1, seed=3)
    decay, step, size, half = 0.2, 0.01, 4, 2
    W1, W2 = end_weights(A, P, decay, 1)
    rest, basis = np.concatenate([W1.ravel(), W2.ravel()]), np.eye(size)

    def flow(w):
        return np.concatenate([part.ravel() for part in velocity(A, w[None, :half], w[half:, None], P, decay)])

    def loss(w):
        return 0.5 * np.sum((A - np.outer(w[half:], w[:half])) ** 2)

    def slopes(f):  # along all coordinates
        return np.stack(
            [(8 * (f(rest + u) - f(rest - u)) - (f(rest + 2 * u) - f(rest - 2 * u))) / 12 for u in basis], -1
        )

    def bend(f, u, v):  # a second derivative, of a polynomial of degree four
        small, large = (
            sum(a * b * f(rest + h * (a * u + b * v)) for a in (1, -1) for b in (1, -1)) / (4 * h**2)
            for h in (0.5, 1.0)
        )
        return (4 * small - large) / 3

    nodes, weights = np.sqrt(3) * np.array([-1, 0, 1]), np.array([1, 4, 1]) / 6
    noise = np.zeros((size, size))
    for place in product(range(3), repeat=4):
        x, xi = nodes[list(place[:2])], 0.3 * nodes[list(place[2:])]
        delta = A @ x + xi - W2 @ W1 @ x
        gradient = np.concatenate([(W2.T @ P.T @ P @ np.outer(delta, x)).ravel(), delta * (W1 @ x)])
        change = gradient - decay * rest
        noise += np.prod(weights[list(place)]) * np.outer(change, change)
    J, identity = slopes(flow), np.eye(size)
    spread = np.linalg.solve(np.kron(J, identity) + np.kron(identity, J), -noise.ravel()).reshape(size, size)
    pairs = [(spread[i, j], basis[i], basis[j]) for i in range(size) for j in range(size)]
    shift = -np.linalg.solve(J, sum(c * bend(flow, u, v) for c, u, v in pairs) / 2)
    expected = step * (slopes(loss) @ shift + sum(c * bend(loss, u, v) for c, u, v in pairs) / 2)
    found = theory.end_point_excess_loss(A, P, weight_decay=decay, noise=0.3, learning_rate=step)
    assert found == pytest.approx(expected, rel=1e-9)
    still = expected - step * slopes(loss) @ shift  # the spread alone
    assert found != pytest.approx(still, rel=0.05)


def test_turned_hidden_units_cost_nothing():
    """Two modes: noise of one output's label against second differences of the loss along integrated flows."""
    A, P = task([2.0, 1.5], n_in=3, rank=3)
    decay, output, h = 0.4, np.array([0.5, -1.0, 0.3, 0.8]), 0.02
    W1, W2 = end_weights(A, P, decay, 2)
    rest = np.sum((A - W2 @ W1) ** 2)

    def cost(size, x):
        first = W1 + size * W2.T @ P.T @ P @ np.outer(output, x)
        second = W2 + size * np.outer(output, W1 @ x)

        def rhs(first, second, _):
            return *velocity(A, first, second, P, decay), 0.5 * (np.sum((A - second @ first) ** 2) - rest)

        return integrate(rhs, (first, second, np.zeros(1)), [100.0], rtol=1e-11)[2][0, 0]

    def bend(x):
        f = {k: cost(k * h, x) for k in (-3, -2, -1, 1, 2, 3)}
        return (2 * (f[3] + f[-3]) - 27 * (f[2] + f[-2]) + 270 * (f[1] + f[-1]) - 490 * cost(0.0, x)) / (180 * h**2)

    options = {"weight_decay": decay, "learning_rate": 0.1}
    silent = theory.end_point_excess_loss(A, P, noise=0.0, **options)
    found = theory.end_point_excess_loss(A, P, noise=np.outer(output, output), **options) - silent
    expected = 0.05 * sum(bend(x) for x in np.eye(3))
    assert found == pytest.approx(expected, rel=1e-6)
    assert found + silent != pytest.approx(expected, rel=1e-2)


def test_vanishing_decay():
    """Leaves the loss at balanced weights, with an error of first order in the decay."""
    A, P = task([2.0, 1.2], rank=3)
    options = {"noise": 0.2, "learning_rate": 0.02}
    _, strengths, right = np.linalg.svd(P @ A, full_matrices=False)
    W1 = np.sqrt(strengths[:2])[:, None] * right[:2]
    limit = theory.excess_loss(W1, A @ np.linalg.pinv(W1), P=P, **options)
    decays = np.array([1e-3, 1e-4])
    errors = [theory.end_point_excess_loss(A, P, weight_decay=decay, **options) - limit for decay in decays]
    assert convergence_order(decays, np.abs(errors)) == pytest.approx(1.0, abs=0.1)
    other = theory.excess_loss(2 * W1, A @ np.linalg.pinv(2 * W1), P=P, **options)
    assert abs(other - limit) > 100 * abs(errors[1])


def online_losses(A, P, W1, W2, *, decay, noise, step, begin, end, n_runs, seed=0):
    """Return the loss of independent runs of the sample rule, averaged from time `begin` to `end`."""
    rng = np.random.default_rng(seed)
    W1, W2 = np.repeat(W1[None], n_runs, 0), np.repeat(W2[None], n_runs, 0)
    metric, total = P.T @ P, np.zeros(n_runs)
    for i in range(round(end / step)):
        x = rng.standard_normal((n_runs, A.shape[1], 1))
        hidden, W2T = W1 @ x, np.swapaxes(W2, 1, 2)
        delta = A @ x + noise * rng.standard_normal((n_runs, len(A), 1)) - W2 @ hidden
        W1, W2 = (
            W1 + step * (W2T @ (metric @ delta) * np.swapaxes(x, 1, 2) - decay * W1),
            W2 + step * (delta * np.swapaxes(hidden, 1, 2) - decay * W2),
        )
        if i >= begin / step:
            total += 0.5 * np.sum((A - W2 @ W1) ** 2, axis=(1, 2))
    return total / (round(end / step) - np.ceil(begin / step))


def z_score(losses, expected):
    return abs(losses.mean() - expected) / (losses.std(ddof=1) / np.sqrt(len(losses)))


def test_follows_the_sample_rule():
    """Two learned modes, a lost one and a hidden unit to spare, which starts with some weight."""
    A, P = task([2.0, 1.2, 0.5], rank=3, seed=1)
    decay, noise, step = 0.4, 0.5, 0.005
    W1, W2 = end_weights(A, P, decay, 3)
    rest = 0.5 * np.sum((A - W2 @ W1) ** 2)
    start = W1 + 0.05 * np.ones_like(W1), W2 - 0.05 * np.ones_like(W2)
    losses = online_losses(A, P, *start, decay=decay, noise=noise, step=step, begin=10, end=30, n_runs=400) - rest
    options = {"weight_decay": decay, "learning_rate": step}
    assert theory.learned_modes(A, P, weight_decay=decay) == 2
    whole, samples = (theory.end_point_excess_loss(A, P, noise=size, **options) for size in (noise, 0.0))
    assert z_score(losses, whole) < 4
    assert z_score(losses, whole - samples) > 4  # label noise alone
    assert z_score(losses, samples) > 4


def test_relative_error_is_of_first_order_in_the_learning_rate():
    """Backpropagation of scalars; the variance of the runs is reduced by the noise of their steps, of mean zero."""
    s, decay, noise, n_runs, begin, end = 1.0, 0.3, 0.3, 40_000, 8.0, 40.0
    steps, errors, wrong = np.array([0.08, 0.04]), [], []
    rng = np.random.default_rng(5)
    for step in steps:
        a = b = np.full(n_runs, np.sqrt(s - decay))
        losses, known, count = np.zeros(n_runs), np.zeros((2, n_runs)), 0
        for i in range(round(end / step)):
            x, xi = rng.standard_normal((2, n_runs))
            error = s - a * b
            sample = (error * x + noise * xi) * x
            if i >= begin / step:
                losses += 0.5 * (error**2 - decay**2)
                known += np.stack([b, a]) * (sample - error)
                count += 1
            a, b = a + step * (b * sample - decay * a), b + step * (a * sample - decay * b)
        centred = known - known.mean(axis=1, keepdims=True)
        share = np.linalg.lstsq(centred.T, losses - losses.mean())[0]
        found = np.mean(losses - share @ known) / count
        options = {"weight_decay": decay, "learning_rate": step}
        whole, samples = (
            theory.decayed_mode_excess_loss(s, 1.0, 1, 1, 1, noise=size, **options) for size in (noise, 0.0)
        )
        errors.append(abs(found / whole - 1))
        wrong.append(abs(found / (whole - samples) - 1))
    assert convergence_order(steps, errors) == pytest.approx(1.0, abs=0.1)
    assert convergence_order(steps, wrong) < 0.5


def test_weak_decay_and_label_noise_share_the_balance():
    """Limits do not commute: what matters is decay against the noise of a step."""
    A, P = task([1.5], n_in=10, rank=2, seed=2)
    decay, noise, step = 0.02, 1.0, 0.01
    kappa = (np.linalg.norm(P @ A) / 1.5) ** 2
    W1, W2 = end_weights(A, P, decay, 1)
    rest = 0.5 * np.sum((A - W2 @ W1) ** 2)
    losses = online_losses(A, P, W1, W2, decay=decay, noise=noise, step=step, begin=40, end=80, n_runs=60) - rest

    def expected(balance):
        return theory.mode_excess_loss(1.5, kappa, 10, 4, noise=noise, learning_rate=step, balance=balance)

    noisy = step * noise**2
    assert z_score(losses, expected((10 * noisy + 2 * decay) / (2 * noisy + 2 * decay))) < 4
    assert z_score(losses, expected(1.0)) > 4
    assert z_score(losses, expected(10 / 2)) > 4


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (
            lambda: theory.end_point_excess_loss(np.eye(2), None, weight_decay=0.0, noise=1.0, learning_rate=0.1),
            "weight_decay",
        ),
        (
            lambda: theory.end_point_excess_loss(
                np.eye(2), None, weight_decay=0.1, noise=1.0, learning_rate=0.1, n_hidden=1
            ),
            "n_hidden",
        ),
        (
            lambda: theory.decayed_mode_excess_loss(1.0, 1.0, 2, 2, 3, weight_decay=0.1, noise=1.0, learning_rate=0.1),
            "rank",
        ),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()


def test_lost_modes_are_at_rest():
    options = {"weight_decay": 1.0, "noise": 1.0, "learning_rate": 0.1}
    assert theory.end_point_excess_loss(np.diag([0.9, 0.5]), None, **options) == 0
    assert theory.decayed_mode_excess_loss(0.9, 1.0, 2, 2, 2, **options) == 0
