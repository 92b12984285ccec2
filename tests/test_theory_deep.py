"""Modes of deep networks: formulas against scalar equations, matrix flows, simulations and limits."""

import numpy as np
import pytest
from scipy.special import elliprf

import linfb
from linfb import rules, theory
from linfb.linear import Dop853
from linfb.rules import mirrors, readers
from tests.linear_cases import convergence_order
from tests.theory_flow import assert_close, integrate

TIMES = np.array([0.0, 0.5, 2.0, 5.0, 12.0, 40.0])
# s, layers at the start, kappa; channels that see nothing, more than all (a reader's norm above one), large layers
STARTS = [
    (1.7, [0.1, 0.3], [0.4]),
    (1.7, [0.4, 0.05, 0.3], [0.2, 0.7]),
    (0.8, [0.2, 0.3, 0.4, 0.3], [0.3, 0.0, 0.6]),
    (1.2, [1.9, 0.1, 0.3], [1.0, 2.5]),
    (1.5, [0.5, 0.4, 0.6, 0.5, 0.7], [0.9, 0.3, 0.5, 0.4]),
]


def layers_flow(s, layers, kappa, times, decay=0.0, rtol=1e-13):
    """Integrate the strengths of the layers, one equation each."""
    gains = [np.prod(kappa[layer:]) for layer in range(len(layers))]

    def rhs(a):
        others = np.array([np.prod(np.delete(a, layer)) for layer in range(a.size)])
        return (gains * others * (s - np.prod(a)) - decay * a,)

    return integrate(rhs, (np.array(layers),), times, rtol=rtol)[0]


def matrix_flow(A, weights, channels, times, decay=0.0, **options):
    """Integrate the weights of a deep network with aligned mirrors, Q_l = P_l W_{l+1}."""

    def rhs(*W):
        below = [np.eye(A.shape[1])]
        for weight in W:
            below.append(weight @ below[-1])
        delta, rates = A - below[-1], []
        for layer in range(len(W) - 1, -1, -1):
            rates.insert(0, delta @ below[layer].T - decay * W[layer])
            if layer:
                P = channels[layer - 1]
                delta = (P @ W[layer]).T @ P @ delta
        return rates

    return integrate(rhs, weights, times, **options)


def network(widths, ranks, seed=0):
    """Return random unit vectors at every layer, orthonormal readers, and the shares that these see."""
    rng = np.random.default_rng(seed)
    vectors = [x / np.linalg.norm(x) for x in map(rng.standard_normal, widths)]
    pairs = zip(ranks, widths[2:], strict=True)
    channels = [np.linalg.qr(rng.standard_normal((width, rank)))[0].T for rank, width in pairs]
    kappa = [np.sum((P @ g) ** 2) for P, g in zip(channels, vectors[2:], strict=True)]
    return vectors, channels, np.array(kappa)


@pytest.mark.parametrize(("s", "layers", "kappa"), STARTS)
def test_layers_follow_their_equations(s, layers, kappa):
    found = theory.deep_mode(TIMES, s, layers, kappa)
    flow = layers_flow(s, layers, kappa, TIMES)
    assert_close(found, flow, 1e-10)
    strengths = np.prod(flow, axis=-1)
    known = strengths < 0.99 * s  # later the time is lost in the rounding of the strength
    assert known.sum() > 1
    assert_close(theory.deep_time(strengths[known], s, layers, kappa), TIMES[known], 1e-9)
    wrong = [*kappa[:-1], kappa[-1] + 0.1]
    with pytest.raises(AssertionError):
        assert_close(theory.deep_mode(TIMES, s, layers, wrong), flow, 1e-3)


def test_is_a_mode_of_the_matrix_flow():
    vectors, channels, kappa = network((5, 6, 4, 5), (2, 3))
    layers, s = [0.5, 0.3, 0.4], 1.6
    weights = [a * np.outer(g, f) for a, f, g in zip(layers, vectors, vectors[1:], strict=False)]
    flow = matrix_flow(s * np.outer(vectors[-1], vectors[0]), weights, channels, TIMES)
    found = theory.deep_mode(TIMES, s, layers, kappa)
    for a, W, f, g in zip(found.T, flow, vectors, vectors[1:], strict=False):
        assert_close(a[:, None, None] * np.outer(g, f), W, 1e-9)
    strength = vectors[-1] @ (flow[2] @ flow[1] @ flow[0]) @ vectors[0]
    for wrong in (np.ones(2), kappa[::-1]):  # no channels; the channels in the wrong order
        with pytest.raises(AssertionError):
            assert_close(np.prod(theory.deep_mode(TIMES, s, layers, wrong), axis=-1), strength, 1e-2)


def test_is_what_a_simulated_network_does():
    task = linfb.low_rank_teacher(7, 6, [1.4], right=np.eye(7)[:, :1])
    rule = rules.low_rank(2, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))
    hidden = linfb.LinearNetwork((7, 5, 4, 6), linfb.networks.Aligned(0.05))
    times = np.linspace(0.0, 9.0, 4)
    run = linfb.simulate(
        task, hidden, rule, times, seeds=[0, 1], method=Dop853(rtol=1e-9, atol=1e-12), observe="mode_strength"
    )
    for seed, strength in zip((0, 1), run.mode_strength.transpose("seed", "time", "mode").values, strict=True):
        state = linfb.linear.simulation.initial_state(task, hidden, rule, seed=seed)[0]
        hear = [np.linalg.svd(W)[0][:, 0] for W in state.weights[1:]]
        kappa = [np.sum((channel.P @ g) ** 2) for channel, g in zip(state.channels, hear, strict=True)]
        expected = np.prod(theory.deep_mode(times, 1.4, [0.05 ** (1 / 3)] * 3, kappa), axis=-1)
        assert_close(expected, strength[:, 0], 1e-7)  # of the solver
        with pytest.raises(AssertionError):
            assert_close(
                np.prod(theory.deep_mode(times, 1.4, [0.05 ** (1 / 3)] * 3, kappa[::-1]), axis=-1), strength, 1e-3
            )


@pytest.mark.parametrize("kappa", [[0.3], [0.3, 0.8], [0.1, 0.9, 0.4], [0.5, 2.0, 0.3, 0.7, 0.2]])
def test_balanced_time_in_closed_form(kappa):
    s, c0, c = 1.3, 1e-2, np.array([1e-2, 0.1, 0.65, 1.2999])
    start = theory.deep_balanced_layers(c0, kappa)
    assert_close(start[:-1] ** 2, kappa * start[1:] ** 2, 1e-15)
    assert np.prod(start) == pytest.approx(c0, rel=1e-14)
    times = theory.deep_balanced_time(c, s, c0, kappa)
    assert_close(times, theory.deep_time(c, s, start, kappa), 1e-9)
    assert_close(np.prod(layers_flow(s, start, kappa, times), axis=-1), c, 1e-9)
    with pytest.raises(AssertionError):
        assert_close(times, theory.deep_balanced_time(c, s, c0, np.sqrt(kappa)), 1e-2)
    assert_close(times / theory.deep_slowdown(kappa), theory.deep_balanced_time(c, s, c0, np.ones(len(kappa))), 1e-9)
    if len(kappa) == 1:
        assert_close(times[2], theory.time_to_half(s, c0, kappa=kappa[0]), 1e-12)


def test_late_times():
    late = np.prod(theory.deep_mode([1e3, 1e6], 1.3, [0.1, 0.2, 0.3], [0.4, 0.6]), axis=-1)
    assert_close(late, 1.3, 1e-14)


def test_equal_small_starts_of_three_layers_give_an_elliptic_integral():
    kappa, s, alphas = np.array([0.2, 0.6]), 1.5, np.array([0.04, 0.02, 0.01, 0.005])
    high, low = kappa[1], kappa[0] * kappa[1]
    times = np.array([theory.deep_time(s / 2, s, [alpha] * 3, kappa) for alpha in alphas]) * s * alphas
    errors = np.abs(times / elliprf(high, low, high * low) - 1)
    assert convergence_order(alphas, errors) == pytest.approx(1.0, abs=0.1)
    swapped = np.abs(times / elliprf(kappa[0], low, kappa[0] * low) - 1)
    assert convergence_order(alphas, swapped) < 0.3


def test_a_channel_that_sees_nothing_delays_most_at_the_output():
    alphas, orders = 0.1 * 0.5 ** np.arange(4, 8), []
    for blind in (None, 0, 1, 2):
        kappa = [0.0 if j == blind else 1.0 for j in range(3)]
        times = np.array([theory.deep_time(0.5, 1.0, [alpha] * 4, kappa) for alpha in alphas])
        orders.append(convergence_order(alphas, times / np.log(1 / alphas) if blind == 1 else times))
    assert orders == pytest.approx([-2.0, -2.0, -2.0, -6.0], abs=0.1)


def test_small_random_starts_become_balanced_up_to_their_square():
    """The velocity at half strength against the balanced mode's, with the share of the hidden direction found."""
    scales = np.array([0.16, 0.08, 0.04])
    errors: dict[str, list[float]] = {"theory": [], "channels swapped": []}
    vectors, channels, _ = network((3, 4, 4, 4), (2, 3), seed=4)
    drawn = [np.random.default_rng(5).standard_normal(shape) / 2 for shape in ((4, 3), (4, 4), (4, 4))]
    A = np.outer(vectors[-1], vectors[0])

    def along(weights, times):
        flow = matrix_flow(A, weights, channels, times, rtol=1e-10)
        return flow, vectors[-1] @ (flow[2] @ flow[1] @ flow[0]) @ vectors[0]

    for scale in scales:
        weights = [scale * W for W in drawn]
        span = 2.5 / scale
        for _ in range(2):  # the second time within the interval found the first time
            times = np.linspace(0.0, span, 100)
            flow, strength = along(weights, times)
            before = int(np.argmax(strength > 0.5)) - 1
            weights, span = [W[before] for W in flow], times[1]
        c, velocity = strength[before], np.diff(along(weights, [0.0, 1e-5])[1])[0] / 1e-5
        hidden = np.linalg.svd(weights[1])[0][:, 0]
        kappa = np.array([np.sum((P @ g) ** 2) for P, g in zip(channels, (hidden, vectors[-1]), strict=True)])
        for name, shares in (("theory", kappa), ("channels swapped", kappa[::-1])):
            errors[name].append(abs(velocity * theory.deep_slowdown(shares) / (3 * c ** (4 / 3) * (1 - c)) - 1))
    assert convergence_order(scales, errors["theory"]) == pytest.approx(2.0, abs=0.2)
    assert errors["theory"][-1] < 1e-2 < min(errors["channels swapped"])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_conserved_along_the_flow(decay):
    rng = np.random.default_rng(1)
    _, channels, _ = network((3, 4, 5, 2, 3), (2, 1, 3))
    weights = [0.6 * rng.standard_normal(shape) for shape in ((4, 3), (5, 4), (2, 5), (3, 2))]
    flow = matrix_flow(rng.standard_normal((3, 3)), weights, channels, TIMES[:4], decay)
    fade = np.exp(-2 * decay * TIMES[:4, None, None])
    for matrix in theory.deep_conserved(flow, channels):
        assert_close(matrix, fade * matrix[0], 1e-9)
    with pytest.raises(AssertionError):
        assert_close(*(theory.deep_conserved(flow, [None] * 3)[1][i] for i in (0, -1)), 1e-2)


@pytest.mark.parametrize("kappa", [[0.3], [0.5, 0.6]])
def test_rest_points(kappa):
    s = 1.4
    critical = theory.deep_critical_decay(s, kappa)
    for decay in (0.7 * critical,):
        threshold, end = theory.deep_rest_points(s, kappa, weight_decay=decay)
        far = [60.0 / decay]
        above = theory.deep_balanced_layers(1.05 * threshold + 1e-3, kappa)
        assert_close(np.prod(layers_flow(s, above, kappa, far, decay, 1e-10)[-1]), end, 1e-9)
        with pytest.raises(AssertionError):
            assert_close(np.prod(layers_flow(s, above, kappa, far, 0.99 * decay, 1e-10)[-1]), end, 1e-4)
        if len(kappa) > 1:
            below = theory.deep_balanced_layers(0.95 * threshold, kappa)
            assert np.prod(layers_flow(s, below, kappa, far, decay, 1e-10)[-1]) < 1e-9
    assert theory.deep_rest_points(s, kappa, weight_decay=1.001 * critical) == (np.inf, 0.0)
    whole = theory.deep_balanced_layers(s, kappa)
    assert np.prod(layers_flow(s, whole, kappa, [3e2], 1.2 * critical, 1e-10)[-1]) < 1e-9
    assert theory.deep_rest_points(s, kappa, weight_decay=0.0) == (0.0, s)


@pytest.mark.parametrize("ranks", [(1, 3), (3, 1), (3, 3)])
def test_the_narrowest_channel_bounds_the_rank_at_rest(ranks):
    rng = np.random.default_rng(3)
    _, channels, _ = network((3, 4, 4, 4), ranks, seed=2)
    A = np.linalg.qr(rng.standard_normal((4, 2)))[0] @ np.diag([2.0, 1.6]) @ np.eye(2, 3)
    weights = [0.6 * rng.standard_normal(shape) for shape in ((4, 3), (4, 4), (4, 4))]
    W1, W2, W3 = (W[-1] for W in matrix_flow(A, weights, channels, [400.0], 0.05, rtol=1e-8))
    values = np.linalg.svd(W3 @ W2 @ W1)[1]
    assert np.sum(values > 1e-3) == min(2, *ranks)
    assert values[0] > 0.5


def test_typical_slowdown_of_random_channels():
    ranks, widths, n_draws = (1, 8), (12, 20), 400
    rng = np.random.default_rng(11)
    shares = np.empty((n_draws, 2))
    for draw in shares:
        draw[:] = [
            np.sum(np.linalg.qr(rng.standard_normal((n, r)))[0][0] ** 2) for r, n in zip(ranks, widths, strict=True)
        ]
    found = np.log(theory.deep_slowdown(shares))

    def z_score(expected):
        return abs(found.mean() - np.log(expected)) / (found.std(ddof=1) / np.sqrt(n_draws))

    assert z_score(theory.typical_deep_slowdown(ranks, widths)) < 4
    assert z_score(theory.typical_deep_slowdown(ranks[::-1], widths[::-1])) > 8


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: theory.deep_mode(1.0, 1.0, [0.1, 0.1], [1.0, 1.0]), "layers"),
        (lambda: theory.deep_mode(1.0, 1.0, [0.1, -0.1], [1.0]), "layers"),
        (lambda: theory.deep_mode(1.0, 1.0, [2.0, 1.0], [1.0]), "layers"),
        (lambda: theory.deep_mode(-1.0, 1.0, [0.1, 0.1], [1.0]), "t"),
        (lambda: theory.deep_time(1.0, 1.0, [0.1, 0.1], [1.0]), "c"),
        (lambda: theory.deep_time(0.001, 1.0, [0.1, 0.1], [1.0]), "c"),
        (lambda: theory.deep_balanced_time(0.5, 1.0, 1.0, [1.0]), "c0"),
        (lambda: theory.deep_balanced_time(0.5, 1.0, 0.1, []), "kappa"),
        (lambda: theory.deep_balanced_layers(0.5, [0.0]), "kappa"),
        (lambda: theory.deep_slowdown(-1.0), "kappa"),
        (lambda: theory.deep_rest_points(0.0, [1.0], weight_decay=0.1), "s"),
        (lambda: theory.typical_deep_slowdown((1,), (2, 3)), "ranks"),
        (lambda: theory.typical_deep_slowdown((3,), (2,)), "ranks"),
        (lambda: theory.deep_conserved([np.eye(2), np.eye(3)], [None]), "weights"),
        (lambda: theory.deep_conserved([np.eye(2), np.eye(2)], []), "readers"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()
