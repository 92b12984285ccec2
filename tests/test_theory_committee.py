"""Committee machines: averages by quadrature, the flow as the literature has it, online learning at finite n."""

import math

import numpy as np
import pytest

from figures.committee import Config, Setting, online_sgd, setting_of
from linfb.theory import committee_learning, committee_loss, exact_map
from linfb.theory._gaussian import MOMENTS
from tests.test_theory_wide import erf, gauss
from tests.theory_flow import assert_close, integrate

TIMES = np.array([0.0, 1.0, 4.0, 15.0])


def draw(seed=0, hidden=2, teacher=3, m=3):
    """Return overlaps, readout, teacher's readout, a reader of two outputs and a fixed feedback."""
    rng = np.random.default_rng(seed)
    root = (
        rng.standard_normal((hidden + teacher, hidden + teacher + 2))
        * np.repeat([0.4, 0.8], [hidden, teacher])[:, None]
    )
    V, V_star, B = (rng.standard_normal((m, size)) for size in (hidden, teacher, hidden))
    return root @ root.T / 4, 0.5 * V, V_star, np.linalg.qr(rng.standard_normal((m, m)))[0][:2], B


def average(function, C):
    """Average a function of Gaussian variables by a product of Gauss-Hermite rules."""
    points, weights = np.polynomial.hermite_e.hermegauss({1: 80, 2: 80, 3: 40, 4: 22}[len(C)])
    grid = np.stack(np.meshgrid(*[points] * len(C), indexing="ij")).reshape(len(C), -1)
    mass = math.prod(np.meshgrid(*[weights / weights.sum()] * len(C), indexing="ij")).ravel()
    values, vectors = np.linalg.eigh(C)
    return mass @ function(*(vectors * np.sqrt(np.maximum(values, 0.0)) @ grid))


@pytest.mark.parametrize(("activation", "phi", "slope"), [("erf", erf, gauss), ("linear", np.positive, np.ones_like)])
def test_averages_by_quadrature(activation, phi, slope):
    rng = np.random.default_rng(3)
    root = 0.2 * rng.standard_normal((4, 5))
    C = root @ root.T
    product, single, slopes, both = MOMENTS[activation](C, 2)
    for indices in ((0, 1, 2, 3), (1, 0, 3, 2), (0, 0, 2, 3), (0, 1, 1, 0), (1, 1, 1, 1), (0, 1, 2, 2)):
        i, j, k, l = indices
        own = sorted(set(indices))
        at = [own.index(index) for index in indices]

        def expected(function, own=own, at=at):
            return average(lambda *u: function(*(u[place] for place in at)), C[np.ix_(own, own)])

        found = [product[i, k], single[i, j, k], single[i, k, l], slopes[i, j], both[i, j, k, l]]
        by_rule = [
            expected(lambda a, b, c, d: phi(a) * phi(c)),
            expected(lambda a, b, c, d: slope(a) * b * phi(c)),
            expected(lambda a, b, c, d: slope(a) * c * phi(d)),
            expected(lambda a, b, c, d: slope(a) * slope(b)),
            expected(lambda a, b, c, d: slope(a) * slope(b) * phi(c) * phi(d)),
        ]
        assert_close(found, by_rule, 1e-9)
        for wrong in range(5):
            with pytest.raises(AssertionError):
                assert_close(found[wrong], by_rule[wrong] + 1e-6, 1e-9)
    others = MOMENTS["linear" if activation == "erf" else "erf"](C, 2)
    for one, other in zip((product, single, slopes, both), others, strict=True):
        assert np.abs(one - other).max() > 1e-3


def textbook_flow(C, V, V_star, feedback, rate, readout_rate, noise, times):
    """Integrate the equations of Saad and Solla, written out term by term for several outputs."""
    hidden, fields = V.shape[1], len(C)

    def I2(C, a, b):
        return 2 / np.pi * math.asin(C[a, b] / math.sqrt((1 + C[a, a]) * (1 + C[b, b])))

    def I3(C, a, b, c):
        root = math.sqrt((1 + C[a, a]) * (1 + C[c, c]) - C[a, c] ** 2)
        return 2 / np.pi / root * (C[b, c] * (1 + C[a, a]) - C[a, b] * C[a, c]) / (1 + C[a, a])

    def I4(C, a, b, c, d):
        det = (1 + C[a, a]) * (1 + C[b, b]) - C[a, b] ** 2

        def form(c, d, diagonal):
            return (
                det * (C[c, d] + diagonal) - C[b, c] * C[b, d] * (1 + C[a, a]) - C[a, c] * C[a, d] * (1 + C[b, b])
                + C[a, b] * (C[a, c] * C[b, d] + C[a, d] * C[b, c])
            )  # fmt: skip

        angle = math.asin(form(c, d, 0) / math.sqrt(form(c, c, 1) * form(d, d, 1)))
        return 4 / np.pi**2 / math.sqrt(det) * angle

    def rhs(C, V):
        A, B, dC, dV = np.hstack([V, -V_star]), feedback(V), np.zeros_like(C), np.zeros_like(V)
        F = B.T @ A
        for i in range(hidden):
            for j in range(fields):
                pull = -rate * sum(F[i, k] * I3(C, i, j, k) for k in range(fields))
                dC[i, j] += pull
                dC[j, i] += pull
            for j in range(hidden):
                dC[i, j] += rate**2 * sum(
                    F[i, k] * F[j, l] * I4(C, i, j, k, l) for k in range(fields) for l in range(fields)
                )
                det = (1 + C[i, i]) * (1 + C[j, j]) - C[i, j] ** 2
                dC[i, j] += rate**2 * noise**2 * (B.T @ B)[i, j] * 2 / np.pi / math.sqrt(det)
            dV[:, i] = -readout_rate * sum(A[:, k] * I2(C, k, i) for k in range(fields))
        return dC, dV

    return integrate(rhs, (C, V), times, rtol=1e-11)


@pytest.mark.parametrize("rule", ["backpropagation", "aligned channel", "direct feedback"])
def test_flow_is_that_of_the_literature(rule):
    C, V, V_star, P, B = draw(teacher=2)
    options, feedback = {
        "backpropagation": ({}, lambda V: V),
        "aligned channel": ({"P": P}, lambda V: P.T @ P @ V),
        "direct feedback": ({"B": B}, lambda V: B),
    }[rule]
    times, rates = np.array([0.0, 2.0]), {"learning_rate": 0.6, "readout_rate": 0.3, "noise": 0.4}
    overlaps, readout = textbook_flow(C, V, V_star, feedback, 0.6, 0.3, 0.4, times)
    run = committee_learning(times, C, V, V_star, **options, **rates)
    assert_close(run.overlaps, overlaps, 1e-8)
    assert_close(run.readout, readout, 1e-8)
    assert_close(run.feedback, [feedback(v) for v in readout], 1e-8)
    assert np.abs(readout[1] - readout[0]).max() > 0.02
    for wrong in ({"B": V}, {"P": np.eye(3)[:1]}, {"noise": 0.0}, {"learning_rate": 0.3}, {"readout_rate": 0.6}):
        other = committee_learning(
            times, C, V, V_star, **{**({} if {"P", "B"} & set(wrong) else options), **rates, **wrong}
        )
        with pytest.raises(AssertionError):
            assert_close(other.overlaps, overlaps, 1e-3)


@pytest.mark.parametrize("activation", ["erf", "linear"])
def test_channel_is_backpropagation_from_the_effective_teacher(activation):
    C, V, V_star, P, _ = draw()
    options = {"activation": activation, "learning_rate": 0.4}
    for reader, noise in ((P[:1], 0.2), (P, 0.2), (0.7 * P, 0.0), (np.array([[1.0, -0.5, 2.0]]) / 2, 0.0)):
        run = committee_learning(TIMES, C, V, V_star, P=reader, noise=noise, **options)
        visible = committee_learning(TIMES, C, reader @ V, reader @ V_star, noise=noise, **options)
        assert_close(run.overlaps, visible.overlaps, 1e-7)
        assert_close(reader @ run.readout, visible.readout, 1e-7)
        assert np.abs(run.overlaps[-1] - run.overlaps[0]).max() > 0.1
        with pytest.raises(AssertionError):
            assert_close(
                committee_learning(TIMES, C, V, V_star, noise=noise, **options).overlaps, visible.overlaps, 1e-3
            )


def test_one_output_teaches_all_nonlinear_units_and_one_mode_of_linear_ones():
    setting = setting_of(Config(teacher=((1.2, -1.2), (0.5, 1.0), (-1.0, 0.5))))
    start = setting.overlaps, setting.readout, setting.teacher
    last = {
        activation: committee_learning([0.0, 150.0], *start, P=[[1.0, 0.0, 0.0]], activation=activation).loss[1]
        for activation in ("erf", "linear")
    }
    assert last["erf"] < 1e-3
    assert last["linear"] > 0.1
    blind = committee_learning([0.0, 150.0], *start, B=np.zeros((3, 2)))
    assert blind.loss[1] > 0.1


def test_small_rates_of_linear_units_are_the_exact_linear_flow():
    """Fields' covariance I and W = W1: linear units at a small rate follow the flow of the two-layer linear network."""
    rng = np.random.default_rng(4)
    n, m = 3, 3
    W1, W2 = (np.eye(3) * 0.3, np.eye(3) * 0.3)
    teacher = rng.standard_normal((m, n))
    rows = np.concatenate([W1, np.eye(n)])
    deviation = []
    for rate in (4e-3, 2e-3, 1e-3):
        times = np.array([0.0, 2.0, 4.0]) / rate
        run = committee_learning(times, rows @ rows.T, W2, teacher, activation="linear", learning_rate=rate)
        found = run.readout @ run.overlaps[:, :3, 3:]
        deviation.append(np.abs(found - exact_map(teacher, W1, W2, rate * times)).max())
    order = np.diff(np.log(deviation)) / np.log(0.5)
    assert np.abs(order - 1).max() < 0.1
    assert deviation[-1] < 5e-3


@pytest.mark.parametrize("activation", ["erf", "linear"])
def test_online_learning_approaches_the_flow(activation):
    C, V, V_star, P, B = draw(teacher=2)
    fixed = np.stack([0 * B, 0 * B, B, 0 * B])
    metric = np.stack([np.eye(3), P.T @ P, np.zeros((3, 3)), np.zeros((3, 3))])
    setting, sizes = Setting(C, V, V_star, fixed, metric), np.array([16, 64, 256])
    options = {"activation": activation, "learning_rate": 0.5, "noise": 0.3}
    rules = ({}, {"P": P}, {"B": B}, {"B": 0 * B})
    flows = [committee_learning([0.0, 3.0], C, V, V_star, **rule, **options) for rule in rules]
    squares = np.empty((sizes.size, len(rules), len(rules)))
    for s, n in enumerate(sizes):
        overlaps, _ = online_sgd(np.array([3.0]), setting, n_in=n, seeds=[(s, seed) for seed in range(40)], **options)
        for i, flow in enumerate(flows):
            squares[s, i] = np.mean((overlaps[:, 0] - flow.overlaps[1]) ** 2, axis=(0, 2, 3))
    deviation = np.sqrt(squares)

    def approaches(deviation):
        assert abs(np.polyfit(np.log(sizes), np.log(deviation), 1)[0] + 0.5) < 0.1

    for i in range(3):  # without feedback nothing moves
        approaches(deviation[:, i, i])
        for j in range(3):
            if i != j:
                with pytest.raises(AssertionError):
                    approaches(deviation[:, i, j])
    assert deviation[:, 3, 3].max() < 1e-12


def test_a_step_is_the_gradient():
    """One step of backpropagation is the gradient of the example's loss, by finite differences."""
    C, V, V_star, _, _ = draw(teacher=2)
    setting, n = Setting(C, V, V_star, np.zeros((1, 3, 2)), np.eye(3)[None]), 7
    overlaps, readout = online_sgd(
        np.array([0.0, 1 / n]), setting, n_in=n, activation="erf", learning_rate=0.1, seeds=[5], noise=0.2
    )
    rng = np.random.default_rng(5)
    root = np.linalg.cholesky(C) * np.sqrt(n)
    rows = root @ np.linalg.qr(rng.standard_normal((n, 4)))[0].T
    x, zeta = rng.standard_normal((1, n), dtype=np.float32)[0].astype(float), 0.2 * rng.standard_normal((1, 3))[0]

    def loss(W, V):
        fields = np.concatenate([W, rows[2:]]) @ x / np.sqrt(n)
        return 0.5 * np.sum((V @ erf(fields[:2]) - V_star @ erf(fields[2:]) - zeta) ** 2)

    def slope(function, at):
        moves = 1e-5 * np.eye(at.size).reshape(-1, *at.shape)
        return np.array([function(at + d) - function(at - d) for d in moves]).reshape(at.shape) / 2e-5

    W = rows[:2] - 0.1 * slope(lambda W: loss(W, V), rows[:2])
    after = np.concatenate([W, rows[2:]])
    assert_close(overlaps[0, 1, 0], after @ after.T / n, 1e-9)
    assert_close(readout[0, 1, 0], V - 0.1 / n * slope(lambda V: loss(rows[:2], V), V), 1e-10)


def test_divergence_is_said(monkeypatch):
    C, V, V_star, _, _ = draw()
    monkeypatch.setattr("linfb.theory.committee.EVALUATIONS", 300)
    with pytest.raises(RuntimeError, match="lower learning_rate"):
        committee_learning([0.0, 50.0], C, 10 * V, V_star, activation="linear", learning_rate=20.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "activation must be one of"),
        ({"P": np.eye(3), "B": np.ones((3, 2))}, "give either B or P"),
        ({"P": np.eye(2)}, "P has shape"),
        ({"B": np.ones((2, 3))}, "B has shape"),
        ({"overlaps": np.eye(4)}, "overlaps has shape"),
        ({"overlaps": -np.eye(5)}, "overlaps must be positive"),
        ({"teacher": np.ones((2, 3))}, "teacher has shape"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"noise": -1.0}, "noise must be"),
        ({"times": [1.0, 0.0]}, "times must increase"),
    ],
)
def test_bad_input_is_refused(change, message):
    C, V, V_star, _, _ = draw()
    arguments = {"times": [0.0, 1.0], "overlaps": C, "readout": V, "teacher": V_star} | change
    with pytest.raises(ValueError, match=message):
        committee_learning(**arguments)


@pytest.mark.parametrize(("activation", "phi"), [("erf", erf), ("linear", np.positive)])
def test_loss_by_quadrature(activation, phi):
    C, V, V_star, _, _ = draw(hidden=1, teacher=1)
    A = np.hstack([V, -V_star])
    expected = average(lambda *u: 0.5 * np.sum((A @ phi(np.stack(u))) ** 2, axis=0), C)
    assert_close(committee_loss(C, V, V_star, activation=activation), expected, 1e-9)
    with pytest.raises(AssertionError):
        assert_close(committee_loss(C, 1.01 * V, V_star, activation=activation), expected, 1e-4)


def test_loss_refuses_what_does_not_fit():
    C, V, V_star, _, _ = draw()
    assert committee_loss([C, C], [V, V], V_star).shape == (2,)
    for wrong in ((C, [V, V], V_star), (C, V, V_star[:2]), (C[1:, 1:], V, V_star), (C, V[0], V_star)):
        with pytest.raises(ValueError, match="overlaps have shape"):
            committee_loss(*wrong)
