"""Finite steps at learned weights: against the sample rule itself, exact second moments and gradient descent."""

from itertools import product

import numpy as np
import pytest

from linfb import theory
from tests.linear_cases import convergence_order
from tests.theory_flow import assert_close

SIZES = {"n_in": 5, "n_out": 4}


def one_mode(s=1.5, rank=2, balance=1.0, seed=0):
    """Return weights of one hidden unit that have learned a mode, a reader, and the share that it sees."""
    rng = np.random.default_rng(seed)
    P = np.linalg.qr(rng.standard_normal((SIZES["n_out"], rank)))[0].T
    u, v = _ends(rng)
    kappa = float(np.sum((P @ u) ** 2))
    features = np.sqrt(s * np.sqrt(kappa * balance))
    return features * v[None], s / features * u[:, None], P, kappa


def _ends(rng):
    u, v = rng.standard_normal(SIZES["n_out"]), rng.standard_normal(SIZES["n_in"])
    return u / np.linalg.norm(u), v / np.linalg.norm(v)


def change(E, W1, W2, P, x):
    """Return what one sample's input does to E, to first order, per learning rate."""
    return np.outer(E @ x, x) @ W1.T @ W1 + W2 @ W2.T @ P.T @ P @ np.outer(E @ x, x)


@pytest.mark.parametrize("balance", [1.0, 2.5, 0.3])
def test_one_mode_is_a_case_of_the_general_formula(balance):
    W1, W2, P, kappa = one_mode(balance=balance)
    options = {"noise": 0.3, "learning_rate": 0.01, "batch_size": 3}
    general = theory.excess_loss(W1, W2, P=P, **options)
    single = theory.mode_excess_loss(1.5, kappa, **SIZES, balance=balance, **options)
    assert single == pytest.approx(general, rel=1e-12)
    isotropic = options | {"noise": 0.09 * np.eye(SIZES["n_out"])}
    assert theory.excess_loss(W1, W2, P=P, **isotropic) == pytest.approx(general, rel=1e-12)
    assert theory.mode_excess_loss(1.5, 1.0, **SIZES, balance=balance, **options) != pytest.approx(general, rel=1e-2)


def test_follows_the_sample_rule():
    """Independent runs of the nonlinear rule itself."""
    W1, W2, P, kappa = one_mode(rank=3)
    A, noise, step, n_runs = W2 @ W1, 0.2, 0.01, 1200
    rng = np.random.default_rng(3)
    metric = P.T @ P
    features, readout = np.repeat(W1, n_runs, 0), np.repeat(W2.T, n_runs, 0)
    for _ in range(round(5 / (2 * np.sqrt(kappa) * 1.5 * step))):
        x = rng.standard_normal((n_runs, SIZES["n_in"]))
        hidden = np.sum(features * x, axis=1, keepdims=True)
        delta = x @ A.T + noise * rng.standard_normal((n_runs, SIZES["n_out"])) - hidden * readout
        carried = np.sum(readout * (delta @ metric), axis=1, keepdims=True)
        features, readout = features + step * carried * x, readout + step * delta * hidden
    losses = 0.5 * np.sum((A - readout[:, :, None] * features[:, None]) ** 2, axis=(1, 2))

    def z_score(share):
        expected = theory.mode_excess_loss(1.5, share, **SIZES, noise=noise, learning_rate=step)
        return abs(losses.mean() - expected) / (losses.std(ddof=1) / np.sqrt(n_runs))

    assert kappa < 0.8
    assert z_score(kappa) < 4
    for wrong in (kappa**2, 1.0):  # kappa for its root; no kappa
        assert z_score(wrong) > 4


def test_relative_error_is_of_first_order_in_the_learning_rate():
    """Against the exact second moments of the linearised rule, iterated to rest."""
    W1, W2, P, _ = one_mode()
    n_in, n_out = SIZES["n_in"], SIZES["n_out"]
    K = np.kron(np.eye(n_out), W1.T @ W1) + np.kron(W2 @ W2.T @ P.T @ P, np.eye(n_in))
    steps, errors, wrong = np.array([0.02, 0.01]), [], []
    for step in steps:
        C = np.zeros((K.shape[0],) * 2)
        for _ in range(round(25 / step)):
            cube = C.reshape(n_out, n_in, n_out, n_in)
            spread = np.swapaxes(cube, 1, 3) + np.einsum("akbk,ij->aibj", cube, np.eye(n_in))
            drive = K @ (spread.reshape(C.shape) + np.eye(K.shape[0])) @ K.T
            mean = C - step * K @ C
            C = mean - step * mean @ K.T + step**2 * drive
        expected = theory.excess_loss(W1, W2, P=P, noise=1.0, learning_rate=step)
        errors.append(abs(expected / (np.trace(C) / 2) - 1))
        wrong.append(abs(theory.excess_loss(W1, W2, noise=1.0, learning_rate=step) / (np.trace(C) / 2) - 1))
    assert convergence_order(steps, errors) == pytest.approx(1.0, abs=0.1)
    assert convergence_order(steps, wrong) < 0.5


def test_noise_moves_the_balance():
    rng = np.random.default_rng(4)
    P = rng.standard_normal((2, 4))
    W1, W2 = rng.standard_normal((3, 5)), rng.standard_normal((4, 3))
    n_samples = 60_000
    x, delta = rng.standard_normal((n_samples, 5)), 0.5 * rng.standard_normal((n_samples, 4))
    hidden, carried = x @ W1.T, delta @ P.T @ P @ W2
    squares = np.einsum("si,sj,s->sij", carried, carried, np.sum(x**2, axis=1))
    squares -= np.einsum("si,sj,s->sij", hidden, hidden, np.sum((delta @ P.T) ** 2, axis=1))
    error = squares.std(axis=0) / np.sqrt(n_samples)
    found = theory.noise_balance(W1, W2, P=P, noise=0.5, learning_rate=1.0)
    assert np.max(np.abs(squares.mean(axis=0) - found) / error) < 4
    wrong = theory.noise_balance(W1, W2, noise=0.5, learning_rate=1.0)
    assert np.max(np.abs(squares.mean(axis=0) - wrong) / error) > 8
    rest = one_mode(rank=2, balance=SIZES["n_in"] / 2)
    assert_close(theory.noise_balance(*rest[:2], P=rest[2], noise=1.0, learning_rate=1.0), 0.0, 1e-12)


def test_largest_step_of_gradient_descent():
    rng = np.random.default_rng(5)
    A, P = rng.standard_normal((4, 3)), rng.standard_normal((3, 4))
    _, values, right = np.linalg.svd(P @ A, full_matrices=False)
    W1 = np.sqrt(values)[:, None] * right
    W2 = A @ np.linalg.inv(W1)
    limit = theory.largest_step(W1, W2, P=P)
    assert limit == pytest.approx(1 / values[0], rel=1e-12)

    def distance(step):
        first, second = W1 + 1e-9 * rng.standard_normal(W1.shape), W2 + 1e-9 * rng.standard_normal(W2.shape)
        for _ in range(1500):
            E = A - second @ first
            first, second = first + step * second.T @ P.T @ P @ E, second + step * E @ first.T
        return np.linalg.norm(A - second @ first)

    assert distance(0.99 * limit) < 1e-11
    assert distance(1.01 * limit) > 1e-6
    assert theory.largest_step(W1, W2) != pytest.approx(limit, rel=0.05)  # of backpropagation


@pytest.mark.parametrize("batch_size", [1, 2])
def test_largest_step_of_online_learning(batch_size):
    """Against the transfer matrix of second moments, by Gauss-Hermite quadrature, which is exact for quartics."""
    rng = np.random.default_rng(6)
    W1, W2, P = rng.standard_normal((1, 2)), rng.standard_normal((2, 1)), rng.standard_normal((1, 2))
    nodes, weights = np.sqrt(3) * np.array([-1, 0, 1]), np.array([1, 4, 1]) / 6
    basis = np.eye(4).reshape(4, 2, 2)
    limit = theory.largest_step(W1, W2, P=P, batch_size=batch_size)

    def radius(step):
        total = np.zeros((16, 16))
        for places in product(range(3), repeat=2 * batch_size):
            samples = nodes[list(places)].reshape(batch_size, 2)
            moved = [E - step * np.mean([change(E, W1, W2, P, x) for x in samples], axis=0) for E in basis]
            transfer = np.reshape(moved, (4, 4)).T
            total += np.prod(weights[list(places)]) * np.kron(transfer, transfer)
        return np.sort(np.abs(np.linalg.eigvals(total)))

    at_rest = 1  # E that no sample moves: one of its second moments stays as it is
    assert radius(limit)[-1 - at_rest :] == pytest.approx(1.0, abs=1e-4)
    assert radius(1.1 * limit)[-1] > 1.01
    assert theory.largest_step(W1, W2, P=P) > 1.1 * limit


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: theory.mode_excess_loss(1.0, 0.0, 2, 2, noise=1.0, learning_rate=0.1), "kappa"),
        (lambda: theory.mode_excess_loss(1.0, 1.0, 2, 2, noise=1.0, learning_rate=0.0), "learning_rate"),
        (lambda: theory.excess_loss(np.eye(2), np.eye(3), noise=1.0, learning_rate=0.1), "W2"),
        (lambda: theory.excess_loss(np.eye(2), np.eye(2), noise=-1.0, learning_rate=0.1), "noise"),
        (lambda: theory.noise_balance(np.eye(2), np.eye(2), P=np.eye(3), noise=1.0, learning_rate=0.1), "P"),
        (lambda: theory.largest_step(np.eye(2), np.eye(2), batch_size=0), "batch_size"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()
