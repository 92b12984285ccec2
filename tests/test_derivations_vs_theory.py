"""The formulas of the derivations against those of linfb.theory, which are typed apart, on random draws."""

import re

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad

from derivations import derive
from linfb import theory

DRAWS = 25
TOLERANCE = 1e-12


def formula(name):
    """Return the closed form of a derivation as a NumPy function."""
    result = derive(name)
    return sp.lambdify(result.symbols, result.expression, ["scipy", "numpy"])


def agree(computed, expected, tolerance=TOLERANCE):
    """Assert that two results agree relative to the larger of one and their size; NaN fails."""
    computed, expected = np.asarray(computed), np.asarray(expected)
    assert computed.shape == expected.shape
    scale = max(1.0, float(np.max(np.abs(expected))))
    assert float(np.max(np.abs(computed - expected))) <= tolerance * scale


def differ(computed, expected):
    """Assert that two results do not agree: the negative control of `agree`."""
    with pytest.raises(AssertionError):
        agree(computed, expected)


def draws(seed):
    """Return one random stream per draw."""
    return [np.random.default_rng((seed, draw)) for draw in range(DRAWS)]


def letters(result, rng):
    """Draw a value for every symbol of an invariant; return them in order and as matrices by letter."""
    values = rng.standard_normal(len(result.symbols))
    places = [re.fullmatch(r"([A-Z]\d?)_(\d)(\d)", symbol.name).groups() for symbol in result.symbols]
    matrices = {}
    for letter in {place[0] for place in places}:
        own = [(int(i) - 1, int(j) - 1, v) for (name, i, j), v in zip(places, values, strict=True) if name == letter]
        matrices[letter] = np.zeros((1 + max(i for i, _, _ in own), 1 + max(j for _, j, _ in own)))
        for i, j, value in own:
            matrices[letter][i, j] = value
    return values, matrices


def rotation(angle):
    """Return the unit vector of an angle and one at a right angle to it."""
    return np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])


def test_mirror_error():
    misalignment = formula("mirror_alignment")
    for rng in draws(1):
        mismatch, decay, t = rng.standard_normal(), rng.uniform(0.0, 2.0), rng.uniform(0.1, 5.0)
        expected = misalignment(t, mismatch, decay)
        agree(theory.mirror_error(t, [[mismatch]], weight_decay=decay), [[expected]])
        differ(theory.mirror_error(t, [[mismatch]], weight_decay=2 * decay + 0.1), [[expected]])


def test_conserved_when_aligned():
    result, invariant = derive("m_balancedness"), formula("m_balancedness")
    for rng in draws(2):
        values, x = letters(result, rng)
        expected = invariant(*values)
        agree(theory.conserved(x["W1"], x["W2"], P=x["P"]), expected)
        agree(theory.conserved(x["W1"], x["W2"], P=x["P"], Q=x["P"] @ x["W2"]), expected)
        differ(theory.conserved(x["W1"], x["W2"]), expected)


def test_conserved_with_learned_mirror():
    result, invariant = derive("constant_mismatch_invariant"), formula("constant_mismatch_invariant")
    for rng in draws(3):
        values, x = letters(result, rng)
        mirror = x["P"] @ x["W2"] + x["D"].T
        agree(theory.conserved(x["W1"], x["W2"], P=x["P"], Q=mirror), invariant(*values))
        differ(theory.conserved(x["W1"], x["W2"], P=x["P"]), invariant(*values))


def test_conserved_with_fixed_feedback():
    result, invariant = derive("fixed_feedback_invariant"), formula("fixed_feedback_invariant")
    for rng in draws(4):
        values, x = letters(result, rng)
        agree(theory.conserved(x["W1"], x["W2"], B=x["B"].T), invariant(*values))
        differ(theory.conserved(x["W1"], x["W2"], B=-x["B"].T), invariant(*values))


def test_mode_strength():
    curve = formula("single_mode")
    t = np.linspace(0.0, 6.0, 25)
    for rng in draws(5):
        s, c0, kappa, decay = (
            rng.uniform(0.5, 3.0),
            rng.uniform(1e-4, 0.4),
            rng.uniform(0.1, 1.0),
            rng.uniform(0.01, 2.0),
        )
        expected = curve(t, s, c0, kappa, decay)
        agree(theory.mode_strength(t, s, c0, kappa=kappa, weight_decay=decay), expected)
        differ(theory.mode_strength(t, s, c0, kappa=kappa**2, weight_decay=decay), expected)
        differ(theory.mode_strength(t, s, c0, kappa=kappa, weight_decay=2 * decay), expected)


def test_mode_strength_at_threshold():
    curve = formula("critical_mode")
    t = np.linspace(0.0, 6.0, 25)
    for rng in draws(6):
        s, c0, root = rng.uniform(0.5, 3.0), rng.uniform(0.1, 0.4), rng.uniform(0.3, 1.0)
        expected = curve(t, c0, root**2)
        agree(theory.mode_strength(t, s, c0, kappa=root**2, weight_decay=root * s), expected)
        differ(theory.mode_strength(t, s, c0, kappa=root**2, weight_decay=0.99 * root * s), expected)


def test_saxe_mode():
    curve = formula("saxe_mode")
    t = np.linspace(0.0, 6.0, 25)
    for rng in draws(7):
        s, a0 = rng.uniform(0.5, 3.0), rng.uniform(1e-4, 0.4)
        agree(theory.mode_strength(t, s, a0), curve(t, s, a0))
        differ(theory.mode_strength(t, s, a0), curve(2 * t, s, a0))


def test_time_to_half():
    time = formula("half_time")
    for rng in draws(8):
        s, c0, kappa = rng.uniform(0.5, 3.0), rng.uniform(1e-4, 0.2), rng.uniform(0.1, 0.9)
        agree(theory.time_to_half(s, c0, kappa=kappa), time(s, c0, kappa))
        differ(theory.time_to_half(s, c0, kappa=kappa**2), time(s, c0, kappa))


def small_network(rng):
    """Draw the network of the small closed form: its arguments, teacher, weights and channel."""
    sigma, phi, theta = rng.uniform(0.3, 2.0), *rng.uniform(0.0, 2 * np.pi, 2)
    a, p, b = rng.standard_normal(2), rng.choice([-1, 1], 2) * rng.uniform(0.4, 1.5, 2), rng.standard_normal(2)
    direction, (hidden, _) = sigma * rotation(phi)[0], rotation(theta)
    teacher = np.array([a, (direction - p[0] * a) / p[1]])
    return (sigma, phi, theta, *a, *p, *b), teacher, (p @ b) * hidden[None], b[:, None], p[None]


def test_exact_map_at_explicit_size():
    trajectory = formula("exact_trajectory_small")
    times = np.array([0.0, 0.1, 0.7, 2.0, 5.0])
    for rng in draws(9):
        arguments, teacher, w1, w2, channel = small_network(rng)
        decay = rng.uniform(0.05, 0.8)
        expected = np.array([trajectory(t, decay, *arguments) for t in times])
        agree(theory.exact_map(teacher, w1, w2, times, P=channel, weight_decay=decay), expected)
        differ(theory.exact_map(teacher, w1, w2, times, P=channel, weight_decay=1.01 * decay), expected)
        differ(theory.exact_map(teacher[::-1], w1, w2, times, P=channel, weight_decay=decay), expected)


def test_readout_only_mode():
    relaxation = formula("linear_regression_limit")
    times = np.linspace(0.0, 3.0, 13)
    for rng in draws(10):
        s, h, c0, decay = rng.uniform(0.5, 3.0), rng.uniform(0.3, 2.0), rng.uniform(0.0, 1.0), rng.uniform(0.2, 1.0)
        (u, _), (x, _) = (rotation(angle) for angle in rng.uniform(0.0, 2 * np.pi, 2))
        w1, w2 = np.sqrt(h) * x[None], c0 / np.sqrt(h) * u[:, None]
        maps = theory.readout_only_map(s * np.outer(u, x), w1, w2, times, weight_decay=decay)
        expected = relaxation(times, s, h, c0, decay)
        agree(maps, expected[:, None, None] * np.outer(u, x))
        differ(maps, (s + (c0 - s) * np.exp(-h * times))[:, None, None] * np.outer(u, x))


def test_end_point_rank_one():
    form = formula("end_point")
    learned = []
    for rng in draws(11):
        teacher, channel, decay = rng.standard_normal((2, 2)), rng.standard_normal((1, 2)), rng.uniform(0.1, 2.0)
        expected = form(*teacher.ravel(), *channel.ravel(), decay)
        agree(theory.end_point(teacher, channel, weight_decay=decay), expected)
        learned.append(bool(np.any(expected)))
        if learned[-1]:
            differ(theory.end_point(teacher, channel, weight_decay=1.01 * decay), expected)
            differ(theory.end_point(teacher, 1.01 * channel, weight_decay=decay), expected)
    assert 0 < sum(learned) < DRAWS  # both sides of the threshold


def test_end_point_without_decay():
    form = formula("vanishing_decay")
    for rng in draws(12):
        teacher, channel = rng.standard_normal((2, 2)), rng.standard_normal((1, 2))
        expected = form(*teacher.ravel(), *channel.ravel())
        agree(theory.end_point(teacher, channel, weight_decay=0.0), expected)
        differ(theory.end_point(teacher, channel, weight_decay=0.1), expected)


def test_learned_modes():
    for rng in draws(13):
        teacher, channel, decay = rng.standard_normal((4, 5)), rng.standard_normal((3, 4)), rng.uniform(0.2, 4.0)
        visible = channel @ teacher
        origin = np.block([[-decay * np.eye(5), visible.T], [visible, -decay * np.eye(3)]])
        growing = int(np.sum(np.linalg.eigvalsh(origin) > 0))
        assert theory.learned_modes(teacher, channel, weight_decay=decay) == growing
        assert theory.learned_modes(teacher, channel, weight_decay=decay, n_hidden=1) == min(growing, 1)
        assert theory.learned_modes(teacher, channel, weight_decay=100.0) == 0


def test_overlap_distribution():
    density = formula("overlap_law")
    x = np.linspace(0.05, 0.95, 19)
    for rng in draws(14):
        outputs = int(rng.integers(3, 12))
        rank = int(rng.integers(1, outputs))
        law = theory.overlap_distribution(rank, outputs)
        agree(law.pdf(x), density(x, float(rank), float(outputs)))
        agree(law.mean(), rank / outputs)
        agree(law.var(), 2 * rank * (outputs - rank) / (outputs**2 * (outputs + 2)))
        differ(law.pdf(x), density(x, rank + 1.0, outputs + 1.0))


def test_overlap_density_and_atoms():
    density = formula("overlap_spectrum")
    for rng in draws(15):
        beta, alpha = rng.uniform(0.05, 0.95, 2)
        low, high = ((np.sqrt(alpha * (1 - beta)) + sign * np.sqrt(beta * (1 - alpha))) ** 2 for sign in (-1, 1))
        x = low + (high - low) * np.linspace(0.01, 0.99, 31)
        agree(theory.overlap_density(x, beta, alpha), density(x, beta, alpha))
        differ(theory.overlap_density(x, alpha, beta), density(x, beta, alpha))
        at_zero, at_one = theory.overlap_atoms(beta, alpha)

        def moment(power, low=low, high=high, beta=beta, alpha=alpha):
            def integrand(angle):
                place = low + (high - low) * np.sin(angle) ** 2
                return place**power * density(place, beta, alpha) * (high - low) * np.sin(2 * angle)

            return quad(integrand, 0.0, np.pi / 2, epsabs=1e-12, epsrel=1e-12)[0]

        agree(moment(0) + at_zero + at_one, 1.0, 1e-10)
        agree(moment(1) + at_one, beta, 1e-10)
        differ(moment(0) + at_zero + at_one + 1e-6, 1.0)


def test_overlap_moments():
    second = formula("overlap_moments")
    for rng in draws(31):
        outputs = int(rng.integers(3, 12))
        rank, directions = (int(size) for size in rng.integers(1, outputs, 2))
        agree(theory.overlap_moment(2, rank, directions, outputs), second(rank, directions, outputs))
        differ(theory.overlap_moment(2, rank, directions, outputs), second(rank, directions, outputs + 1))


def test_overlap_correction():
    """The resolvent of a signed measure N is -int N(x) / (z - x)^2 dx, with its distribution function."""
    resolvent = formula("overlap_correction")
    for rng in draws(32):
        beta, alpha, width = *rng.uniform(0.05, 0.95, 2), int(rng.integers(10, 100))
        low, high = ((np.sqrt(alpha * (1 - beta)) + sign * np.sqrt(beta * (1 - alpha))) ** 2 for sign in (-1, 1))
        z = high + rng.uniform(0.2, 1.0)

        def integrand(angle, beta=beta, alpha=alpha, low=low, high=high, z=z, width=width):
            x = low + (high - low) * np.sin(angle) ** 2
            extra = theory.overlap_cdf(x, beta, alpha, n_out=width) - theory.overlap_cdf(x, beta, alpha)
            return -alpha * width * extra / (z - x) ** 2 * (high - low) * np.sin(2 * angle)

        found = quad(integrand, 0.0, np.pi / 2, epsabs=1e-13, epsrel=1e-12)[0]
        agree(found, resolvent(z, low, high), 1e-9)
        differ(found, 1.01 * resolvent(z, low, high))


def test_overlap_tail():
    tail = formula("overlap_tail")
    for rng in draws(33):
        beta, alpha, u = *rng.uniform(0.05, 0.95, 2), rng.uniform(0.1, 5.0)
        p, q = (abs(np.sqrt(alpha * (1 - beta)) + sign * np.sqrt(beta * (1 - alpha))) for sign in (-1, 1))
        x = (p**2 + q**2 * u**2) / (1 + u**2)
        expected = tail(u, p, q) / (2 * np.pi * alpha) + theory.overlap_atoms(beta, alpha)[1]
        agree(theory.inverse_overlap_tail(x, beta, alpha), expected)
        differ(theory.inverse_overlap_tail(x, beta, alpha), 1.001 * expected)


def test_time_to_half_with_decay():
    time = formula("half_time_decay")
    for rng in draws(34):
        s, share, kappa = rng.uniform(0.5, 3.0), rng.uniform(0.001, 0.4), rng.uniform(0.1, 1.0)
        decay = rng.uniform(0.0, 0.45) * s * np.sqrt(kappa)
        agree(theory.time_to_half(s, share * s, kappa=kappa, weight_decay=decay), time(s, share * s, kappa, decay))
        differ(
            theory.time_to_half(s, share * s, kappa=kappa, weight_decay=0.9 * decay), time(s, share * s, kappa, decay)
        )


def test_unbalanced_mode():
    reached, t = formula("unbalanced_mode"), np.array([0.1, 0.5, 1.0, 3.0])
    for rng in draws(35):
        s, a, b, kappa = rng.uniform(0.5, 2.0), *rng.uniform(0.05, 1.0, 2), rng.uniform(0.1, 1.0)
        mu, root = a**2 - kappa * b**2, np.sqrt(kappa)
        z = reached(t, s, (a + root * b) ** 2, kappa, mu)
        found = theory.unbalanced_mode_strength(t, s, a * b, mu, kappa=kappa)
        agree(found, (z - mu**2 / z) / (4 * root), 1e-11)
        differ(theory.unbalanced_mode_strength(t, s, a * b, 0.9 * mu, kappa=kappa), found)


def test_carried_alignment():
    variance = formula("carried_alignment")
    for rng in draws(21):
        outputs = int(rng.integers(3, 12))
        rank, dimension = int(rng.integers(1, outputs)), rng.uniform(1.0, outputs)
        found = theory.carried_alignment(rank, outputs, dimension=dimension)
        agree(found, (rank / outputs, variance(float(rank), float(outputs), dimension)))
        differ(100 * found[1], 100 * variance(float(rank), float(outputs), 1.01 * dimension))


def test_feedback_alignment_mode():
    elapsed = formula("feedback_alignment_mode")
    times = np.array([0.05, 0.2, 0.5, 1.0, 2.0])
    for rng in draws(16):
        s, a0, c0, b = rng.uniform(0.5, 2.0), rng.uniform(0.05, 0.3), rng.uniform(0.0, 0.3), rng.uniform(0.4, 1.5)
        roots = np.roots([-0.5, 0.0, -b * (c0 - a0**2 / (2 * b)), b * s]).astype(complex)
        a, c = theory.feedback_alignment_mode(times, s, a0, c0, b)
        agree(c - a**2 / (2 * b), np.full(times.shape, c0 - a0**2 / (2 * b)))
        pace = b * (s - a * c)  # an error in a is the error in t times the velocity
        reached = elapsed(a.astype(complex), a0, *roots)
        agree((reached.real - times) * pace, np.zeros(times.shape))
        differ((elapsed(1.001 * a.astype(complex), a0, *roots).real - times) * pace, np.zeros(times.shape))


def test_feedback_alignment_end_point():
    strength = formula("feedback_alignment_stationary")
    for rng in draws(17):
        left, right = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
        s, b, decay = rng.uniform(0.3, 3.0, 3), rng.uniform(0.5, 1.5), rng.uniform(0.1, 0.9)
        feedback = b * np.linalg.qr(rng.standard_normal((5, 3)))[0].T  # (out, hidden), orthogonal rows
        final = theory.feedback_alignment_end_point(left * s @ right.T, feedback, weight_decay=decay)
        error = s - np.diag(left.T @ final @ right)
        agree(strength(error, b, decay), s)
        differ(strength(error, b, 1.01 * decay), s)


def test_oja_metric():
    metric = formula("oja_flow")
    times = np.array([0.0, 0.3, 1.0, 4.0])
    for rng in draws(18):
        theta, rate = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.2, 2.0)
        spectrum = rng.uniform(0.1, 2.0, 2)
        start = rotation(theta)[0][None]
        expected = np.array([metric(t, theta, *spectrum, rate) for t in times])
        agree(theory.oja_metric(times, np.diag(spectrum), start, rate=rate), expected)
        differ(theory.oja_metric(times, np.diag(spectrum), start, rate=1.1 * rate), expected)


def test_deep_balanced_time():
    function = formula("deep_balanced_time")
    for rng in draws(41):
        s, kappa = rng.uniform(0.5, 2.0), rng.uniform(0.1, 1.0, 2)
        c0, c = s * rng.uniform(0.01, 0.3), s * rng.uniform(0.3, 0.99)
        clock = kappa[0] ** (1 / 3) * kappa[1] ** (2 / 3)
        agree(theory.deep_balanced_time(c, s, c0, kappa), function(c, s, c0, clock))
        differ(theory.deep_balanced_time(c, s, c0, kappa[::-1]), function(c, s, c0, clock))


def test_deep_critical_decay():
    function = formula("deep_critical_decay")
    for rng in draws(42):
        s, kappa = rng.uniform(0.5, 2.0), rng.uniform(0.1, 1.0, rng.integers(2, 6))
        clock = 1 / theory.deep_slowdown(kappa)
        agree(theory.deep_critical_decay(s, kappa), function(kappa.size - 1, s, clock))
        differ(theory.deep_critical_decay(s, kappa), function(kappa.size, s, clock))


def test_label_noise_mode():
    function = formula("label_noise_mode")
    for rng in draws(43):
        s, kappa, noise, rate, balance = rng.uniform(0.1, 1.0, 5)
        n_in, n_out, batch = (int(size) for size in rng.integers(2, 9, 3))
        options = {"noise": noise, "learning_rate": rate, "batch_size": batch, "balance": balance}
        expected = function(s, kappa, n_in, n_out, noise, rate, batch, balance)
        agree(theory.mode_excess_loss(s, kappa, n_in, n_out, **options), expected)
        differ(theory.mode_excess_loss(s, kappa**2, n_in, n_out, **options), expected)


def test_decayed_noise_mode():
    function = formula("decayed_noise_mode")
    for rng in draws(44):
        s, kappa, lost, noise, rate = rng.uniform(0.1, 1.0, 5)
        n_in, n_out, batch = (int(size) for size in rng.integers(2, 9, 3))
        rank, decay = int(rng.integers(1, n_out)), lost * s * np.sqrt(kappa)
        options = {"weight_decay": decay, "noise": noise, "learning_rate": rate, "batch_size": batch}
        expected = function(s, kappa, n_in, n_out, rank, decay, noise, rate, batch)
        agree(theory.decayed_mode_excess_loss(s, kappa, n_in, n_out, rank, **options), expected)
        differ(theory.decayed_mode_excess_loss(s, kappa, n_in + 1, n_out, rank, **options), expected)
