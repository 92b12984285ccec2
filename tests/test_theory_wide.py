"""Lazy networks of infinite width: kernels by quadrature, outputs by integration, finite networks by their order."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import special
from scipy.integrate import quad

from figures.wide import gradient_flow
from linfb.engine import Dense, Model, Optimizers, ReLU, sgd, squared_error
from linfb.engine.state import initial_state, step
from linfb.rules import backpropagation, low_rank, mirrors, readers, zero_feedback
from linfb.theory import lazy_outputs, tangent_kernels
from linfb.theory._gaussian import PAIRS
from tests.theory_flow import assert_close, integrate

ACTIVATIONS = ("linear", "relu", "erf")
TIMES = np.array([0.0, 1.0, 5.0, 20.0, 60.0])


def draw(seed=0, p=12, n=3, m=3, q=7):
    """Return training inputs and targets, test inputs and a reader of two of three outputs."""
    rng = np.random.default_rng(seed)
    X, Z, Y, P = (rng.standard_normal(shape) for shape in ((p, n), (q, n), (p, m), (2, m)))
    return X, Y, Z, P / np.linalg.norm(P, 2)


def erf(u):
    return special.erf(u / np.sqrt(2))


def gauss(u):
    return np.sqrt(2 / np.pi) * np.exp(-0.5 * u**2)


def relu(u):
    return np.maximum(u, 0.0)


def angular(function, length):
    """Average over two normal variables a homogeneous function, by its angles; `length` is its mean over radii."""

    def average(one, other):
        def integrand(angle):
            direction = np.array([np.cos(angle), np.sin(angle)])
            return function(one @ direction) * function(other @ direction) * length / (2 * np.pi)

        kinks = [np.arctan2(y, x) + turn for x, y in (one, other) for turn in (-np.pi / 2, np.pi / 2)]
        edges = [0.0, *sorted(np.mod(kinks, 2 * np.pi)), 2 * np.pi]
        return sum(quad(integrand, a, b, epsabs=1e-13)[0] for a, b in pairwise(edges))

    return average


def hermite(function):
    """Average over two normal variables by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)

    def average(one, other):
        u, v = (a[0] * nodes[:, None] + a[1] * nodes for a in (one, other))
        return weights @ (function(u) * function(v)) @ weights / (2 * np.pi)

    return average


@pytest.mark.parametrize(
    ("activation", "product", "slopes"),
    [
        ("relu", angular(relu, 2.0), angular(lambda u: float(u > 0), 1.0)),
        ("erf", hermite(erf), hermite(gauss)),
        ("linear", hermite(lambda u: u), hermite(np.ones_like)),
    ],
)
def test_averages_by_quadrature(activation, product, slopes):
    rng = np.random.default_rng(1)
    for _ in range(8):
        one, other = 0.6 * rng.standard_normal((2, 2))
        covariances = [np.asarray(a @ b) for a, b in ((one, one), (one, other), (other, other))]
        averages = [product(one, other), slopes(one, other)]
        assert_close([f(*covariances) for f in PAIRS[activation]], averages, 1e-9)
        kernels = tangent_kernels(np.sqrt(2) * one[None], np.sqrt(2) * other[None], activation=activation)
        assert_close(np.ravel(kernels), np.multiply(averages, [1.0, one @ other]), 1e-9)
        for wrong in set(PAIRS) - {activation}:
            with pytest.raises(AssertionError):
                assert_close(PAIRS[wrong][1](*covariances), slopes(one, other), 1e-3)


def test_kernels_of_parallel_inputs():
    X = np.array([[3.0, 4.0], [6.0, 8.0], [-3.0, -4.0], [0.0, 0.0]])
    readout, hidden = tangent_kernels(X, activation="relu")
    assert_close(readout[0], [6.25, 12.5, 0.0, 0.0], 1e-12)  # x.x / 2n; opposite inputs share no active unit
    assert_close(hidden[0], [6.25, 12.5, 0.0, 0.0], 1e-7)  # an angle of 1e-8 is rounding
    for activation in ACTIVATIONS:
        square, rest = (tangent_kernels(X, Z, activation=activation) for Z in (None, X[1:]))
        assert_close([part[:, 1:] for part in square], rest, 0.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_by_integration(activation):
    X, Y, Z, P = draw()
    rng = np.random.default_rng(2)
    start, start_test = rng.standard_normal(Y.shape), rng.standard_normal((len(Z), Y.shape[1]))
    (R, H), (r, h) = (tangent_kernels(points, X, activation=activation) for points in (X, Z))

    def flow(C):
        def rhs(F, f):
            error = (Y - F) / len(X)
            return R @ error + H @ error @ C, r @ error + h @ error @ C

        return integrate(rhs, (start, start_test), TIMES)

    options = {"activation": activation, "start": start}
    for C in (P.T @ P, np.eye(3), np.zeros((3, 3)), 0.3 * np.eye(3)):
        train, test = flow(C)
        metric = C[0, 0] if np.allclose(C, C[0, 0] * np.eye(3)) else C
        assert_close(lazy_outputs(TIMES, X, Y, metric=metric, **options), train, 1e-9)
        assert_close(lazy_outputs(TIMES, X, Y, Z, metric=metric, start_test=start_test, **options), test, 1e-9)
        with pytest.raises(AssertionError):
            assert_close(lazy_outputs(TIMES, X, Y, metric=1.1 * C + 0.1 * np.eye(3), **options), train, 1e-3)


def test_outputs_in_the_end():
    X, Y, Z, P = draw()
    for_ever = lazy_outputs(np.inf, X, Y, Z, metric=P.T @ P, activation="erf", start=0.5, start_test=0.5)
    late = lazy_outputs([1e9, np.inf], X, Y, Z, metric=P.T @ P, activation="erf", start=0.5, start_test=0.5)
    assert_close(late, np.stack([for_ever, for_ever]), 1e-6)
    assert_close(lazy_outputs(np.inf, X, Y, metric=P.T @ P, activation="erf"), Y, 1e-6)
    few = lazy_outputs(np.inf, X, Y, activation="linear")  # three inputs cannot fit twelve samples
    assert_close(few, X @ np.linalg.lstsq(X, Y, rcond=None)[0], 1e-10)
    assert np.abs(few - Y).max() > 0.1


def feedback(rule, W2, P, rng):
    """Return what is fixed in the feedback and what follows the readout, and the metric of the theory."""
    unseen, independent = np.zeros((3, 3)), rng.standard_normal(W2.shape)
    return {
        "backpropagation": (0.0, np.eye(3), np.eye(3)),
        "aligned channel": (0.0, P.T @ P, P.T @ P),
        "aligned and fixed": (P.T @ P @ W2, unseen, P.T @ P),
        "feedback alignment": (independent, unseen, unseen),
        "feedback alignment of rank 2": (P.T @ P @ independent, unseen, unseen),
        "unaligned mirror": (P.T @ P @ (independent - W2), P.T @ P, unseen),
        "signs": (np.sign(W2), unseen, np.sqrt(2 / np.pi) * np.eye(3)),
    }[rule]


@pytest.mark.parametrize(
    "rule",
    [
        "backpropagation", "aligned channel", "aligned and fixed", "feedback alignment", "feedback alignment of rank 2",
        "unaligned mirror", "signs",
    ],
)  # fmt: skip
def test_wide_networks_approach_theory(rule):
    X, Y, _, P = draw()
    x, times, widths = X / np.sqrt(X.shape[1]), [5.0, 15.0], np.array([32, 128, 512, 2048])
    squares = np.empty((2, widths.size, 8))
    for w, width in enumerate(widths):
        for seed in range(squares.shape[2]):
            rng = np.random.default_rng((seed, int(width)))
            W1, W2 = rng.standard_normal((width, X.shape[1])), rng.standard_normal((Y.shape[1], width))
            fixed, metric, C = feedback(rule, W2, P, rng)
            run = gradient_flow(times, X, Y, X, W1, W2, fixed=fixed, metric=metric, activation="relu", step=2.5)
            start = relu(x @ W1.T) @ W2.T / np.sqrt(width)
            for i, one in enumerate((C, np.zeros((3, 3)) if np.any(C) else np.eye(3))):
                flow = lazy_outputs(times, X, Y, metric=one, activation="relu", start=start)
                squares[i, w, seed] = np.mean((run - flow) ** 2)
    right, wrong = np.sqrt(squares.mean(axis=2))

    def approaches(deviation):
        assert deviation[-1] < 0.03
        assert abs(np.polyfit(np.log(widths), np.log(deviation), 1)[0] + 0.5) < 0.1

    approaches(right)
    with pytest.raises(AssertionError):
        approaches(wrong)
    assert wrong[-1] > 0.05


def engine_outputs(rule, x, Y, W1, W2, rate, *, steps):
    """Take full-batch gradient steps with the engine from given weights and return the outputs."""
    model = Model((Dense(x.shape[1], len(W1)), ReLU(), Dense(len(W1), len(W2))))
    optimisers = Optimizers(sgd(rate))
    state, _ = initial_state(model, rule, optimisers, 0, np.array)
    state = state._replace(weights=(W1.copy(), state.weights[1], W2.copy()))
    for number in range(1, steps + 1):
        state, _, _ = step(model, rule, squared_error, optimisers, state, x, Y, number=number)
    return relu(x @ state.weights[0].T) @ state.weights[2].T


def test_engine_steps_are_those_of_the_lazy_network():
    """ReLU is homogeneous: weights of variance 1 / sqrt k and rates 1 / sqrt k are the network of the theory."""
    X, Y, _, P = draw()
    rng, width, rate = np.random.default_rng(5), 32, 0.1
    W1, W2 = rng.standard_normal((width, X.shape[1])), rng.standard_normal((3, width))
    x, size, outputs = X / np.sqrt(X.shape[1]), width**-0.25, {}
    channel = low_rank(2, reader=readers.Fixed(start=P), mirror=mirrors.Exact())
    for rule, metric in ((backpropagation(), np.eye(3)), (channel, P.T @ P), (zero_feedback(), np.zeros((3, 3)))):
        outputs[rule] = engine_outputs(rule, x, Y, size * W1, size * W2, rate / np.sqrt(width), steps=5)
        first, second = W1, W2
        for _ in range(5):
            hidden = relu(x @ first.T)
            error = (Y - hidden @ second.T / np.sqrt(width)) * rate / (len(X) * np.sqrt(width))
            back = (hidden > 0) * (error @ metric @ second)
            first, second = first + back.T @ x, second + error.T @ hidden
        assert_close(outputs[rule], relu(x @ first.T) @ second.T / np.sqrt(width), 1e-12)
    for rule in (backpropagation(), zero_feedback()):
        with pytest.raises(AssertionError):
            assert_close(outputs[rule], outputs[channel], 1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, "activation must be one of"),
        ({"metric": np.eye(2)}, "metric has shape"),
        ({"metric": -1.0}, "metric must be positive semi-definite"),
        ({"metric": [[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]}, "metric must be symmetric"),
        ({"Y": np.ones((3, 3))}, "Y has shape"),
        ({"X_test": np.ones((3, 4))}, "X_test has shape"),
        ({"start": np.ones(3)}, "start has shape"),
        ({"t": [-1.0]}, "t .* must be >= 0"),
        ({"t": np.nan}, "t .* contains NaN"),
    ],
)
def test_bad_input_is_refused(change, message):
    X, Y, _, _ = draw()
    arguments = {"t": 1.0, "X": X, "Y": Y, "activation": "relu"} | change
    with pytest.raises(ValueError, match=message):
        lazy_outputs(**arguments)
