"""Every cell of the table source x reader x mirror on every kind of layer; and what each part does, by hand."""

import itertools
import math
from dataclasses import fields

import array_api_strict
import numpy as np
import pytest

from linfb import rules, simulate
from linfb.backend import Key, to_numpy
from linfb.engine import Optimizers, cross_entropy, mlp, sgd
from linfb.engine.backward import backward
from linfb.engine.layers.convolution import Conv2d
from linfb.engine.layers.dense import Dense
from linfb.engine.layers.direct import Direct
from linfb.engine.models import forward
from linfb.engine.state import initial_state, step
from linfb.linear.flow import State, dynamic, flow
from linfb.linear.flow import backward as linear_backward
from linfb.linear.online import compiled
from linfb.linear.solvers import Euler
from linfb.networks import Balanced, LinearNetwork, SmallRandom
from linfb.rules import Channel, Rule, mirrors, readers, resolve_rank, transport
from linfb.rules.channels import effective_readers, initial_channels
from linfb.tasks import low_rank_teacher
from tests.linear_cases import agree, as_users_call, correlated_task

TASK, COARSE = low_rank_teacher(8, 6, [2.0, 1.5, 1.0]), Euler(0.1)
SOURCES = ("above", "network", "hidden")
READERS = {
    "identity": readers.Identity(),
    "fixed": readers.Fixed(),
    "oja": readers.Oja(),
    "oja centred": readers.Oja(covariance="centred"),
    "oja normalised, labels": readers.Oja(on="labels", covariance="normalised"),
    "similarity": readers.SimilarityMatching(),
    "similarity normalised": readers.SimilarityMatching(covariance="normalised", ratio=2.0),
    "similarity labels": readers.SimilarityMatching(on="labels"),
    "local": readers.Local(),
    "normative": readers.Normative(),
}
MIRRORS = {
    "exact": mirrors.Exact(),
    "zero": mirrors.Zero(),
    "fixed": mirrors.Fixed(),
    "fixed svd": mirrors.Fixed("svd"),
    "sign uniform": mirrors.Sign(),
    "sign fixed": mirrors.Sign("fixed"),
    "sign random": mirrors.Sign("random"),
    "kolen_pollack": mirrors.KolenPollack(),
    "kolen_pollack svd": mirrors.KolenPollack(start="svd"),
    "weight_mirror": mirrors.WeightMirror(),
    "weight_mirror noise": mirrors.WeightMirror(probes=3),
    "weight_mirror svd": mirrors.WeightMirror(start="svd"),
    "normative": mirrors.Normative(),
}
DIRECT = r"source='(network|hidden)' has no forward weights"
FOLLOWS_WEIGHTS = {"exact", "normative", *(name for name in MIRRORS if name.startswith(("sign", "weight_mirror")))}


def refusal(source, reader, mirror):
    """Return what a cell is refused with, None for those that exist."""
    if source != "above" and (mirror in FOLLOWS_WEIGHTS or reader == "normative"):
        return DIRECT
    if (reader == "normative") != (mirror == "normative"):
        return "go together"
    if reader == "local" and (mirror in ("exact", "zero") or mirror.startswith("sign")):
        return "reader 'local' needs a mirror with a kernel Q"
    if mirror.endswith("svd") and (source != "above" or reader == "identity"):
        return "start of the mirror 'svd' sets P and Q"
    return None


def rule_of(source, reader, mirror, rank=2):
    return Rule("cell", source, READERS[reader], MIRRORS[mirror], None if reader == "identity" else rank)


TABLE = [(cell, refusal(*cell)) for cell in itertools.product(SOURCES, READERS, MIRRORS)]
ALLOWED = [cell for cell, refused in TABLE if refused is None]
REFUSED = [case for case in TABLE if case[1] is not None]

LAYERS = {  # layer, shape of its input, shape of the error at its output, way of a direct error, its shape
    "dense": (Dense(6, 4), (5, 6), (5, 4), Direct(3, (6,)), (5, 3)),
    "tokens": (Dense(6, 4), (5, 7, 6), (5, 7, 4), Direct(3, (6,)), (5, 7, 3)),
    "images": (Conv2d(3, 4, 3, stride=2, padding=1), (5, 6, 5, 3), (5, 3, 3, 4), Direct(3, (6, 5, 3)), (5, 3)),
}


def setting(kind, rule, seed=0):
    """Return layer, weights, channel, input and error: the layer is the middle one of three."""
    layer, x_shape, delta_shape, direct, error_shape = LAYERS[kind]
    rng, middle = np.random.default_rng(seed), layer
    weights = rng.standard_normal(layer.kernel_shape)
    if rule.direct(1, 3):
        middle, delta_shape = direct, error_shape
    top = Dense(4, 3)
    made = initial_channels(
        rule, [Dense(2, 3), middle, top], [np.ones((3, 2)), weights, rng.standard_normal((3, 4))], seed=seed
    )
    return middle, weights, made.channels[1], rng.standard_normal(x_shape), rng.standard_normal(delta_shape)


def strict(tree):
    """Move arrays of a tuple to the strict array library."""
    moved = [array_api_strict.asarray(a.copy()) if isinstance(a, np.ndarray) else a for a in tree]
    return tree._replace(**dict(zip(tree._fields, moved, strict=True))) if hasattr(tree, "_fields") else moved


@pytest.mark.parametrize(("cell", "message"), REFUSED, ids=lambda case: " - ".join(case) if len(case) == 3 else "")
def test_cells_that_do_not_exist_are_refused_with_a_reason(cell, message):
    with as_users_call(), pytest.raises(ValueError, match=message):
        rule_of(*cell)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("cell", ALLOWED, ids=" - ".join)
def test_every_other_cell_carries_errors_through_every_layer_in_every_library(cell, kind):
    rule = rule_of(*cell)
    layer, weights, channel, x, delta = setting(kind, rule)
    if rule.direct(1, 3):
        weights = None
    key, samples = Key(1).at("mirror"), math.prod(delta.shape[:-1])
    carried, gradient = transport(rule, layer, weights, channel, x, delta, delta, samples=samples, key=key)
    assert carried.shape == x.shape
    assert np.any(carried) == (cell[2] != "zero")
    learns = {"P": rule.reader.learns, "Q": rule.mirror.learns, "M": cell[1].startswith("similarity"), "gain": True}
    for name, array, descent in zip(channel._fields, channel, gradient, strict=True):
        if name == "gain":
            continue
        assert (descent is not None) == learns[name], name
        if descent is not None:
            assert descent.shape == array.shape
            assert np.all(np.isfinite(descent))
            assert np.any(descent) or cell[1] == cell[2] == "normative"
    s_channel, (s_weights, s_x, s_delta) = strict(channel), strict([weights, x, delta])
    s_carried, s_gradient = transport(
        rule, layer, s_weights, s_channel, s_x, s_delta, s_delta, samples=samples, key=key
    )
    agree(to_numpy(s_carried), carried)
    for descent, expected in zip(s_gradient, gradient, strict=True):
        if isinstance(expected, np.ndarray):
            agree(to_numpy(descent), expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_limits_in_which_rules_are_backpropagation_bit_for_bit(kind):
    layer, weights, _, x, delta = setting(kind, rules.backpropagation())
    exact, _ = transport(rules.backpropagation(), layer, weights, Channel(), x, delta)
    whole = readers.Fixed(start=np.eye(4))
    similar = readers.SimilarityMatching(start=np.eye(4))
    for reader, mirror in itertools.product((whole, similar), (mirrors.Exact(), mirrors.Fixed("weights"))):
        rule = Rule("limit", "above", reader, mirror, 4, layers=[1])
        assert np.array_equal(transport(rule, layer, weights, setting(kind, rule)[2], x, delta)[0], exact)
    rule = rules.feedback_alignment(mirror=mirrors.Fixed("weights"))
    assert np.array_equal(transport(rule, layer, weights, setting(kind, rule)[2], x, delta)[0], exact)
    rule = rules.normative(4)  # to rounding
    agree(transport(rule, layer, weights, setting(kind, rule)[2], x, delta)[0], exact, 1e-13)
    # negative controls: a random kernel, a narrower channel
    for rule in (rules.feedback_alignment(), rules.low_rank(3, reader=readers.Fixed(), mirror=mirrors.Exact())):
        off = transport(rule, layer, weights, setting(kind, rule)[2], x, delta)[0]
        assert np.linalg.norm(off - exact) > 0.1 * np.linalg.norm(exact)


# ---------------------------------------------------------------------------------------------------------------- sign


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_sign_mirror_writes_through_the_signs(kind, scale):
    layer, weights, _, x, delta = setting(kind, rules.backpropagation())
    size = np.sqrt(np.mean(weights**2)) if scale is None else scale
    whole = rules.sign_symmetry(mirror=mirrors.Sign(scale=scale))
    carried, _ = transport(whole, layer, weights, setting(kind, whole)[2], x, delta)
    agree(carried, layer.pull(size * np.sign(weights), x, delta), 1e-14)
    with pytest.raises(AssertionError):
        agree(carried, layer.pull(size * np.sign(weights + 0.2), x, delta), 1e-14)
    narrow = Rule("narrow", "above", readers.Fixed(), mirrors.Sign("fixed", scale), 2)
    channel = setting(kind, narrow)[2]
    carried, _ = transport(narrow, layer, weights, channel, x, delta)
    kernel = size * channel.Q * np.sign(np.tensordot(channel.P, weights, 1))
    agree(carried, layer.pull(kernel, x, delta @ channel.P.T), 1e-14)
    assert np.all(channel.Q > 0)


def kernels_of(mirror, weights, keys, seed=0):
    """Return the kernels that a dense layer's sign mirror writes through, one per key."""
    layer, rule = Dense(weights.shape[1], len(weights)), rules.sign_symmetry(mirror=mirror)
    channel = initial_channels(rule, [Dense(1, weights.shape[1]), layer], [None, weights], seed=seed).channels[1]
    x, unit = np.zeros((len(weights), weights.shape[1])), np.eye(len(weights))
    return [transport(rule, layer, weights, channel, x, unit, key=key)[0] for key in keys]


def test_magnitudes_of_the_sign_mirror():
    weights = np.random.default_rng(0).standard_normal((40, 50))
    keys = [Key(0).at(number) for number in (1, 1, 2)]
    (fixed, again), scale = kernels_of(mirrors.Sign("fixed"), weights, [None, keys[0]]), np.sqrt(np.mean(weights**2))
    assert np.array_equal(fixed, again)
    assert not np.array_equal(fixed, kernels_of(mirrors.Sign("fixed"), weights, [None], seed=1)[0])
    one, same, other = kernels_of(mirrors.Sign("random"), weights, keys)
    assert np.array_equal(one, same)
    assert not np.any(np.abs(one) == np.abs(other))
    for kernel in (fixed, one, other):
        assert np.array_equal(np.sign(kernel), np.sign(weights))
        sizes = np.abs(kernel) / scale  # half-normal: mean square 1 (variance 2), mean sqrt(2 / pi)
        assert abs(np.mean(sizes**2) - 1) / np.sqrt(2 / sizes.size) < 4
        assert abs(np.mean(sizes) - np.sqrt(2 / np.pi)) / np.sqrt((1 - 2 / np.pi) / sizes.size) < 4
        assert abs(np.mean(sizes) - 1 / 2) / np.sqrt((1 - 2 / np.pi) / sizes.size) > 4
    with pytest.raises(ValueError, match=r"magnitude='random' draws in every step and needs a key"):
        kernels_of(mirrors.Sign("random"), weights, [None])


def test_sign_symmetry_in_an_ensemble_keeps_every_run_s_own_scale():
    task, network = low_rank_teacher(6, 4, [2.0, 1.0]), LinearNetwork((6, 5, 4), SmallRandom(0.5))
    rule = rules.sign_symmetry()
    both = simulate(task, network, rule, [0.0, 1.0], seeds=[0, 1], method=COARSE, observe="loss")
    for seed in (0, 1):
        alone = simulate(task, network, rule, [0.0, 1.0], seeds=seed, method=COARSE, observe="loss")
        agree(both.loss.sel(seed=seed).values, alone.loss.values[0], 1e-13)
    assert abs(both.loss[0, 1] - both.loss[1, 1]) > 1e-6
    with pytest.raises(ValueError, match="needs a key, which only training has"):
        simulate(task, network, rules.sign_symmetry(magnitude="random"), [0.0, 1.0])


# ------------------------------------------------------------------------------------------------------- weight mirror


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reader", ["identity", "fixed", "similarity"])
def test_weight_mirror_sees_the_weights_exactly_through_all_unit_probes(kind, reader):
    rule = rule_of("above", reader, "weight_mirror")
    layer, weights, channel, x, delta = setting(kind, rule)
    if reader == "similarity":
        channel = channel._replace(M=np.array([[1.0, 0.4], [0.1, 1.0]]))
    ideal = weights if channel.P is None else np.tensordot(channel.filters, weights, 1)
    agree(transport(rule, layer, weights, channel, x, delta)[1].Q, channel.Q - ideal, 1e-13)
    with pytest.raises(AssertionError):
        agree(transport(rule, layer, weights, channel, x, delta)[1].Q, channel.Q - 1.01 * ideal, 1e-13)


@pytest.mark.parametrize("kind", LAYERS)
def test_noise_through_the_weights_shows_them_without_bias(kind):
    estimates = {}
    for n in (1, 4):
        rule = Rule("noisy", "above", readers.Fixed(), mirrors.WeightMirror(probes=n), 2)
        layer, weights, channel, x, delta = setting(kind, rule)
        exact = channel.Q - np.tensordot(channel.P, weights, 1)
        keys = [Key(0).at(n, number) for number in range(200)]
        estimates[n] = np.array([transport(rule, layer, weights, channel, x, delta, key=key)[1].Q for key in keys])

    def z_scores(n, expected):
        found = estimates[n]
        return (found.mean(axis=0) - expected) / (found.std(axis=0) / np.sqrt(len(found)))

    for n in (1, 4):
        assert np.abs(z_scores(n, exact)).max() < 4.5
        assert np.abs(z_scores(n, channel.Q)).max() > 6
    ratio = np.mean(estimates[1].var(axis=0)) / np.mean(estimates[4].var(axis=0))
    assert 3.2 < ratio < 5
    with pytest.raises(ValueError, match="probes draws in every step and needs a key"):
        transport(rule, layer, weights, channel, x, delta)


# ------------------------------------------------------------------------------------------------ readers that learn


def test_oja_s_covariance_is_that_of_what_the_option_says():
    rng = np.random.default_rng(0)
    P, rows = rng.standard_normal((2, 4)), rng.standard_normal((9, 4)) + 1.0
    centred = rows - rows.mean(axis=0)
    covariances = {
        "second_moment": rows.T @ rows / 9,
        "centred": centred.T @ centred / 9,
        "normalised": centred.T @ centred / 9 / centred.var(axis=0).max(),
    }
    layer, x = Dense(3, 4), np.zeros((9, 3))
    for option, other in itertools.product(covariances, repeat=2):
        rule = Rule("x", "above", readers.Oja(covariance=option), mirrors.Zero(), 2)
        found = transport(rule, layer, None, Channel(P), x, rows / 9)[1].P
        expected = -P @ covariances[other] @ (np.eye(4) - P.T @ P)
        if option == other:
            agree(found, expected, 1e-13)
        else:
            assert np.abs(found - expected).max() > 0.1


def similarity(reader, P, M, rows, labels=None):
    """Return what P and M descend on errors per sample."""
    n = len(rows)
    rule = Rule("x", "above", reader, mirrors.Zero(), len(P))
    layer = Dense(3, P.shape[1])
    return transport(rule, layer, None, Channel(P, M=M), np.zeros((n, 3)), rows / n, labels)


@pytest.mark.parametrize("covariance", ["second_moment", "centred", "normalised"])
@pytest.mark.parametrize("on", ["errors", "labels"])
def test_similarity_matching_follows_its_equations(covariance, on):
    rng = np.random.default_rng(1)
    P, M, rows, labels = (rng.standard_normal(s) for s in ((2, 4), (2, 2), (9, 4), (9, 4)))
    _, found = similarity(readers.SimilarityMatching(on, 1.0, covariance, ratio=3.0), P, M, rows, labels)
    seen = (rows if on == "errors" else labels).copy()
    if covariance != "second_moment":
        seen -= seen.mean(axis=0)
    if covariance == "normalised":
        seen /= seen.std(axis=0).max()
    dP, dM = np.zeros_like(P), np.zeros_like(M)
    for row in seen:
        z = np.linalg.inv(M) @ P @ row
        for i in range(2):
            dP[i] += (z[i] * row - z[i] ** 2 * P[i]) / 9
            dM[i] += 3.0 * (z[i] * z - z[i] ** 2 * M[i]) / 9
    agree(-found.P, dP, 1e-12)
    agree(-found.M, dM, 1e-12)
    with pytest.raises(AssertionError):
        agree(-found.M, dM / 3, 1e-12)


def test_units_behind_lateral_connections_obey_oja_s_flow_behind_a_matrix():
    rng = np.random.default_rng(2)
    P, M, rows = (rng.standard_normal(s) for s in ((2, 4), (2, 2), (9, 4)))
    F, C = np.linalg.inv(M) @ P, rows.T @ rows / 9
    expected = np.linalg.inv(M) @ F @ C @ (np.eye(4) - F.T @ F)
    for ratio, holds in ((1.0, True), (2.0, False)):
        _, found = similarity(readers.SimilarityMatching(ratio=ratio), P, M, rows)
        velocity = np.linalg.inv(M) @ (-found.P + found.M @ F)
        assert (np.abs(velocity - expected).max() < 1e-11 * np.abs(expected).max()) == holds


def test_synapses_of_similarity_matching_are_local_and_oja_s_are_not():
    rng = np.random.default_rng(3)
    P, rows, M = rng.standard_normal((3, 5)), rng.standard_normal((9, 5)), np.eye(3)
    M[1, 2], M[2, 0] = 0.3, -0.2  # unit 0 gets no inhibition: what it does depends on its own synapses
    other = P.copy()
    other[1:] += rng.standard_normal((2, 5))  # other units, with other activities
    reader = readers.SimilarityMatching()
    first, second = (similarity(reader, array, M, rows)[1].P for array in (P, other))
    agree(first[0], second[0], 1e-14)
    assert np.abs(first[1:] - second[1:]).max() > 0.1
    mixing = np.array([[1.0, 0, 0], [0.4, 1.2, -0.3], [0.1, 0.5, 0.8]])  # other synapses on unit 1, same activity
    first, second = (similarity(reader, B @ P, B @ M, rows)[1].P for B in (np.eye(3), mixing))
    agree(first[0], second[0], 1e-13)
    assert np.abs(first[1] - second[1]).max() > 0.1
    oja = [
        transport(rules.low_rank(3, mirror=mirrors.Zero()), Dense(3, 5), None, Channel(A), np.zeros((9, 3)), rows / 9)
        for A in (P, other)
    ]
    assert np.abs(oja[0][1].P[0] - oja[1][1].P[0]).max() > 0.1


def settled(reader, C, rank, steps=800, size=0.05, shrink=1.0):
    """Return the filters after Euler steps of a reader on a covariance, the error shrinking by a factor per step."""
    n, root = len(C), np.linalg.cholesky(C).T * np.sqrt(len(C))
    rule = Rule("x", "above", reader, mirrors.Zero(), rank)
    channel = Channel(reader.initial(rank, n, np.random.default_rng(0)), M=reader.initial_lateral(rank))
    for number in range(steps):
        rows = root / n * shrink**number
        _, gradient = transport(rule, Dense(2, n), None, channel, np.zeros((n, 2)), rows)
        moves = {"P": gradient.P, "M": gradient.M}
        moves = {name: getattr(channel, name) - size * d for name, d in moves.items() if d is not None}
        channel = channel._replace(**moves)
    return channel


def distance(rows, basis):
    """Return the sine of the largest angle between the space of rows and that of orthonormal columns."""
    q = np.linalg.qr(rows.T)[0]
    return np.linalg.norm(q - basis @ (basis.T @ q), 2)


def test_similarity_matching_finds_the_principal_subspace_as_oja_s_rule_does():
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    C = (basis * np.array([5.0, 3.0, 1.5, 0.5, 0.2])) @ basis.T
    for reader in (
        readers.Oja(),
        readers.SimilarityMatching(),
        readers.SimilarityMatching(start="gaussian"),
        readers.SimilarityMatching(ratio=2.0),
    ):
        channel = settled(reader, C, 2)
        assert distance(channel.filters, basis[:, :2]) < 1e-6
        agree(channel.filters @ channel.filters.T, np.eye(2), 1e-7)
    assert distance(settled(readers.Fixed(), C, 2, steps=1).filters, basis[:, :2]) > 0.1
    assert distance(settled(readers.Oja(), C, 2).filters, basis[:, [0, 2]]) > 0.1
    assert np.abs(channel.P @ channel.P.T - np.eye(2)).max() > 1e-3 or np.abs(channel.M - np.eye(2)).max() > 1e-3


def test_the_channel_keeps_its_scale_while_the_error_shrinks():
    C = np.diag([3.0, 2.0, 1.0, 0.5])
    channel = settled(readers.SimilarityMatching(), C, 2, steps=2000, size=1e-3, shrink=0.993)
    assert np.abs(channel.filters - settled(readers.Oja(), C, 2, steps=1).P).max() > 0.01  # it has turned
    agree(channel.filters @ channel.filters.T, np.eye(2), 2e-3)
    assert np.array_equal(np.diagonal(channel.M), np.ones(2))  # exactly
    uneven = settled(readers.SimilarityMatching(ratio=4.0), C, 2, steps=2000, size=1e-3, shrink=0.993)
    with pytest.raises(AssertionError):
        agree(uneven.filters @ uneven.filters.T, np.eye(2), 2e-3)
    rng = np.random.default_rng(5)
    P, rows = np.eye(2, 4), rng.standard_normal((9, 4))
    big, small = (
        similarity(readers.SimilarityMatching(covariance="normalised"), P, np.eye(2), s * rows)[1] for s in (1, 1e-5)
    )
    agree(big.P, small.P, 1e-12)
    agree(big.M, small.M, 1e-12)


def test_mirrors_follow_the_filters_of_connected_units():
    rng = np.random.default_rng(6)
    W, x, delta = (rng.standard_normal(s) for s in ((4, 6), (9, 6), (9, 4)))
    P, M = rng.standard_normal((2, 4)), np.array([[1.0, 0.5], [-0.3, 1.0]])
    F, layer = np.linalg.solve(M, P), Dense(6, 4)
    found = {}
    for name in ("exact", "sign uniform", "kolen_pollack"):
        rule = rule_of("above", "similarity", name)
        found[name] = transport(rule, layer, W, Channel(P, np.zeros((2, 6)), M=M), x, delta)
    agree(found["exact"][0], delta @ F.T @ F @ W, 1e-13)
    agree(found["sign uniform"][0], delta @ F.T @ np.sign(F @ W), 1e-13)
    agree(found["kolen_pollack"][1].Q, F @ delta.T @ x, 1e-13)
    assert np.abs(delta @ P.T @ P @ W - found["exact"][0]).max() > 0.1


@pytest.mark.parametrize("on", ["errors", "labels"])
def test_networks_learn_the_same_modes_through_similarity_matching_as_through_oja_s_rule(on):
    network, strengths = LinearNetwork((8, 7, 6), SmallRandom(0.05)), {}
    for reader in (readers.Oja(on), readers.SimilarityMatching(on)):
        rule = rules.low_rank(3, reader=reader)
        seen = ("mode_strength", "task_overlap")
        result = simulate(TASK, network, rule, [0.0, 25.0], weight_decay=1e-2, method=COARSE, observe=seen)
        strengths[reader.name] = result.mode_strength.values[0, -1]
        assert result.task_overlap[0, -1] > (1 - 1e-6 if on == "labels" else 0.99)
        assert result.task_overlap[0, 0] < 0.9
    agree(strengths["similarity_matching"], strengths["oja"], 1e-3)
    agree(strengths["oja"], [1.99, 1.49, 0.99], 1e-3)
    narrow = rules.low_rank(1, reader=readers.SimilarityMatching("labels"))
    blocked = simulate(TASK, network, narrow, [0.0, 25.0], weight_decay=1e-2, method=COARSE)
    with pytest.raises(AssertionError):
        agree(blocked.mode_strength.values[0, -1], strengths["oja"], 1e-2)


def test_runs_of_several_ranks_keep_to_themselves_under_lateral_connections():
    network = LinearNetwork((8, 7, 6), SmallRandom(0.3))
    rule = rules.low_rank(2, reader=readers.SimilarityMatching(rate=2.0))
    both = simulate(TASK, network, rule, [0.0, 2.0], ranks=[2, 4], method=COARSE)
    for rank in (2, 4):
        alone = simulate(TASK, network, rules.low_rank(rank, reader=rule.reader), [0.0, 2.0], method=COARSE)
        agree(both.mode_strength.sel(rank=rank).values, alone.mode_strength.values, 1e-13)
        still = simulate(TASK, network, rules.low_rank(rank, reader=readers.Fixed()), [0.0, 2.0], method=COARSE)
        with pytest.raises(AssertionError):
            agree(both.mode_strength.sel(rank=rank).values, still.mode_strength.values, 1e-4)


def test_the_flow_moves_lateral_connections_at_their_rate():
    rng, rate = np.random.default_rng(7), 1.7
    rule = rules.low_rank(2, reader=readers.SimilarityMatching(rate=rate, ratio=0.5))
    task, W = correlated_task(5, 4, rng), (rng.standard_normal((6, 5)), rng.standard_normal((4, 6)))
    P, M, Q = rng.standard_normal((2, 4)), np.array([[1.0, 0.3], [0.2, 1.0]]), rng.standard_normal((2, 6))
    state = State(W, (Channel(P, Q, 1.0, M),))
    moved = flow(rule, 0.3, state, *task.moment_set()).channels[0]
    E, F = task.teacher - W[1] @ W[0], np.linalg.solve(M, P)
    C = E @ task.Sigma_xx @ E.T + task.noise_covariance
    Z = F @ C @ F.T
    agree(moved.P, rate * (F @ C - np.diag(np.diag(Z)) @ P), 1e-12)  # no weight decay
    agree(moved.M, 0.5 * rate * (Z - np.diag(np.diag(Z)) @ M), 1e-12)
    assert len(dynamic(rule, state)) == 5
    assert len(dynamic(rules.low_rank(2), State(W, (Channel(P, Q),)))) == 4


def test_the_compiled_online_step_leaves_what_it_does_not_know_to_the_general_path():
    assert compiled(rules.low_rank(2))
    for rule in (
        rules.low_rank(2, reader=readers.SimilarityMatching()),
        rules.low_rank(2, reader=readers.Oja(covariance="centred")),
        rules.sign_symmetry(),
        rules.low_rank(2, layers=[1]),
        rules.low_rank(2, source="hidden"),
    ):
        assert not compiled(rule)


# ------------------------------------------------------------------------------------- starts from the weights, restart


def best(weights, rank):
    """Return the best approximation of a kernel of that rank."""
    left, values, right = np.linalg.svd(weights.reshape(len(weights), -1), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(weights.shape)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("mirror", ["fixed svd", "kolen_pollack svd", "weight_mirror svd", "normative"])
def test_start_at_the_best_approximation_of_the_weights(kind, mirror):
    reader = "normative" if mirror == "normative" else "fixed"
    for rank in (2, 4):
        rule = rule_of("above", reader, mirror, rank)
        layer, weights, channel, _, _ = setting(kind, rule)
        agree(layer.compose(channel.P.T, channel.Q), best(weights, rank), 1e-13)
        agree(channel.P @ channel.P.T, channel.Q.reshape(rank, -1) @ channel.Q.reshape(rank, -1).T, 1e-13)
        assert channel.P.flags.c_contiguous
        assert channel.Q.flags.c_contiguous
        assert np.abs(channel.P @ channel.P.T - np.eye(rank)).max() > 0.1  # not the reader's own start
    other = rule_of("above", "fixed", "kolen_pollack")
    layer, weights, channel, _, _ = setting(kind, other)
    assert np.abs(layer.compose(channel.P.T, channel.Q) - best(weights, 2)).max() > 0.1


def test_a_channel_wider_than_the_weights_rank_is_filled_with_zeros():
    weights = np.random.default_rng(0).standard_normal((4, 2))
    channel = mirrors.Normative().initial(Dense(2, 4), None, weights, (3, 2), np.random.default_rng(0))
    agree(channel.P.T @ channel.Q, weights, 1e-13)
    assert not np.any(channel.P[2])
    assert not np.any(channel.Q[2])


def test_weights_are_drawn_without_a_reader_that_starts_from_them():
    widths = (5, 6, 4)
    assert effective_readers(rules.low_rank(2, mirror=mirrors.KolenPollack(start="svd")), widths, seed=0) == (None,) * 2
    assert effective_readers(rules.low_rank(2), widths, seed=0)[0].shape == (2, 6)
    network = LinearNetwork(widths, Balanced(0.5))
    rule = rules.low_rank(2, mirror=mirrors.KolenPollack(start="svd"))
    task = low_rank_teacher(5, 4, [2.0, 1.0])
    result = simulate(task, network, rule, [0.0, 5.0], observe=("mirror_alignment", "mode_strength"))
    assert result.mode_strength.values[0, -1, 0] > 1.9
    assert result.mirror_alignment.values[0, 0, 0] > 0.8


@pytest.mark.parametrize("kind", LAYERS)
def test_normative_mirror_starts_again_from_the_present_weights(kind):
    rule = rules.normative(2, restart_every=3)
    layer, weights, channel, _, _ = setting(kind, rule)
    moved = weights + np.random.default_rng(1).standard_normal(weights.shape)
    for number in (1, 2, 4):
        assert rule.mirror.restarted(layer, channel, moved, number) is None
    for number in (3, 6):
        fresh = rule.mirror.restarted(layer, channel, moved, number)
        agree(layer.compose(fresh.P.T, fresh.Q), best(moved, 2), 1e-13)
        assert np.abs(layer.compose(channel.P.T, channel.Q) - best(moved, 2)).max() > 0.1
        there = rule.mirror.restarted(layer, strict(channel), array_api_strict.asarray(moved), number)
        agree(to_numpy(layer.compose(there.P.mT, there.Q)), best(moved, 2), 1e-13)
    single = rule.mirror.restarted(layer, channel, moved.astype(np.float32), 3)
    assert single.P.dtype == single.Q.dtype == np.float32
    assert rules.normative(2).mirror.restarted(layer, channel, moved, 3) is None


def batch(n_in=5, n_out=6, rows=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, n_in)), np.eye(n_out)[rng.integers(0, n_out, rows)]


def trained(rule, steps, optimisers=None, widths=(7, 8), seed=0):
    """Yield the state after each step on one batch."""
    model, optimisers = mlp(5, widths, 6, norm=None), optimisers or Optimizers(sgd(0.1, momentum=0.9))
    state, _ = initial_state(model, rule, optimisers, seed, np.array)
    x, targets = batch()
    for number in range(1, steps + 1):
        state, _, _ = step(
            model, rule, cross_entropy, optimisers, state, x, targets, number=number, key=Key(seed).at("step")
        )
        yield model, state


def test_training_starts_the_normative_channel_again_and_the_flow_says_that_it_does_not():
    rule = rules.normative(2, restart_every=3)
    for number, (model, state) in enumerate(trained(rule, 5), 1):
        weights, channel = state.weights[model.kernels[1]], state.channels[1]
        off = np.abs(channel.P.T @ channel.Q - best(weights, 2)).max()
        assert (off < 1e-13) == (number == 3)
        assert np.any(state.slots["channels/1/Q"][0]) == (number != 3)
    with pytest.raises(ValueError, match="restart_every starts again after steps of training"):
        simulate(TASK, LinearNetwork((8, 7, 6)), rule, [0.0, 1.0])


def test_training_moves_lateral_connections():
    rule = rules.low_rank(3, reader=readers.SimilarityMatching(covariance="normalised"))
    *_, (_, state) = trained(rule, 40, Optimizers(sgd(0.05)))
    for channel in state.channels[1:]:
        assert np.array_equal(np.diagonal(channel.M), np.ones(3))
        assert np.abs(channel.M - np.eye(3)).max() > 1e-3
        agree(channel.filters @ channel.filters.T, np.eye(3), 0.02)


@pytest.mark.parametrize("reader", [readers.Oja, readers.SimilarityMatching])
def test_a_reader_that_moves_in_every_third_step_moves_three_times_as_far(reader):
    def moves(every, steps):
        """Return by how much P and M of the top layer move in each step, where the weights rest."""
        rule = rules.low_rank(3, reader=reader(every=every), mirror=mirrors.Fixed())
        optimisers = Optimizers(sgd(0.0), P=sgd(0.01))
        model, x = mlp(6, (8, 7), 5), np.random.default_rng(0).standard_normal((20, 6))
        state, found = initial_state(model, rule, optimisers, 0, np.array)[0], []
        for number in range(1, steps + 1):
            before = [np.array(array) for array in state.channels[2] if isinstance(array, np.ndarray)]
            targets = np.eye(5)[np.arange(20) % 5]
            state, *_ = step(model, rule, cross_entropy, optimisers, state, x, targets, number=number)
            after = [array for array in state.channels[2] if isinstance(array, np.ndarray)]
            found.append([b - a for a, b in zip(before, after, strict=True)])
        return found

    (always, *_), third = moves(1, 1), moves(3, 6)
    assert all(np.array_equal(move, 0 * move) for i in (0, 1, 3, 4) for move in third[i])
    agree(np.abs(third[2][0]).max(), 3 * np.abs(always[0]).max(), 1e-12)
    for one, three in zip(always, third[2], strict=True):
        agree(3 * one, three, 1e-12)  # from the same place
    assert np.abs(third[5][0]).max() > 1e-6
    with pytest.raises(ValueError, match="every > 1 rests in steps of training"):
        simulate(TASK, LinearNetwork((8, 7, 6)), rules.low_rank(2, reader=reader(every=2)), [0.0, 1.0])
    with pytest.raises(ValueError, match="every must be >= 1"):
        reader(every=0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reader", ["identity", "oja", "similarity"])
def test_mirrors_learn_the_same_from_the_gradient_of_the_weights(kind, reader):
    rule = rule_of("above", reader, "kolen_pollack")
    layer, weights, channel, x, delta = setting(kind, rule)
    rows = np.repeat(delta, 3, axis=0), np.repeat(x, 3, axis=0)  # more rows than features: P times it costs less
    cost = []

    class Counted(type(layer)):
        def grad(self, *arguments):
            cost.append(arguments)
            return super().grad(*arguments)

    counted = Counted(*[getattr(layer, field.name) for field in fields(layer)])
    gradient = layer.grad(weights, rows[1], rows[0])
    _, known = transport(rule, counted, weights, channel, rows[1], rows[0], gradient=gradient)
    assert not cost
    _, unknown = transport(rule, counted, weights, channel, rows[1], rows[0])
    assert len(cost) == 1
    agree(known.Q, unknown.Q, 1e-12 * np.abs(gradient).max() * 10)
    _, other = transport(rule, counted, weights, channel, rows[1], rows[0], gradient=2 * gradient)  # control
    assert np.abs(other.Q - unknown.Q).max() > 1e-3


# ---------------------------------------------------------------------------------------------- ranks, layers, sources


def test_a_plain_rank_counts_for_every_block_of_a_layer():
    assert resolve_rank(2, 1, 12, blocks=3) == (6, False)
    assert resolve_rank(5, 1, 12, blocks=3) == (12, True)
    assert resolve_rank({1: 2}, 1, 12, blocks=3) == (2, False)
    assert resolve_rank(0.5, 1, 12, blocks=3) == (6, False)
    layers = [Dense(5, 4), Dense(4, 12, blocks=3), Dense(12, 4)]
    weights = [np.ones(layer.kernel_shape) for layer in layers]
    made = initial_channels(rules.low_rank(2), layers, weights, seed=0)
    assert made.ranks == {1: 6, 2: 2}
    assert made.channels[1].P.shape == (6, 12)
    assert made.channels[1].Q.shape == (6, 4)
    plain = initial_channels(rules.low_rank(2), [layers[0], Dense(4, 12), layers[2]], weights, seed=0)
    assert plain.ranks == {1: 2, 2: 2}


NAMED = {
    "zero": rules.zero_feedback(layers=[1]),
    "fa": rules.feedback_alignment(layers=[1]),
    "fa of a rank": rules.feedback_alignment(rank=2, gain="full_rank", layers=[1]),
    "sign": rules.sign_symmetry(layers=[1]),
    "kp": rules.kolen_pollack(layers=[1]),
    "weight-mirror": rules.weight_mirror(layers=[1]),
    "dfa": rules.direct_feedback_alignment(layers=[1]),
    "low-rank": rules.low_rank(2, gain="full_rank", layers=[1]),
    "direct-low-rank": rules.direct_low_rank(2, gain="full_rank", layers=[1]),
    "hidden": rules.direct_low_rank(2, source="hidden", layers=[1]),
    "local": rules.local(2, gain="full_rank", layers=[1]),
    "normative": rules.normative(2, gain="full_rank", layers=[1]),
}


def engine_gradients(rule, widths=(7, 8), seed=0):
    """Return model, channels, ranks and the way back of a network and batch that do not depend on the rule."""
    model = mlp(5, widths, 6, norm=None)
    state, made = initial_state(model, rule, Optimizers(sgd(0.1)), seed, np.array)
    x, targets = batch()
    outputs, caches = forward(model, state.weights, x)
    run = backward(model, rule, state.weights, state.channels, caches, cross_entropy(outputs, targets)[1], targets)
    return model, state, caches, made.ranks, run


@pytest.mark.parametrize("name", NAMED)
def test_layers_that_are_not_named_do_backpropagation_bit_for_bit(name):
    rule = NAMED[name]
    assert rule.layers == (1,)
    assert rule.gain == ("none" if rule.rank is None or name == "hidden" else "full_rank")
    exact, (_, state, _, ranks, found) = engine_gradients(rules.backpropagation())[-1], engine_gradients(rule)
    assert ranks == {1: 8 if rule.rank is None and name != "dfa" else 6 if name == "dfa" else 2, 2: 6}
    assert state.channels[2] == Channel()
    for k, same in ((2, True), (1, True), (0, False)):
        assert np.array_equal(found.deltas[k], exact.deltas[k]) == same
    everywhere = engine_gradients(Rule(rule.name, rule.source, rule.reader, rule.mirror, rule.rank, rule.gain))[-1]
    assert not np.array_equal(everywhere.deltas[1], exact.deltas[1])


def test_no_layer_under_a_rule_is_backpropagation_and_unknown_layers_are_named():
    rng, task = np.random.default_rng(8), correlated_task(5, 4, np.random.default_rng(8))
    weights = tuple(rng.standard_normal(s) for s in ((6, 5), (7, 6), (4, 7)))
    exact = flow(rules.backpropagation(), 0.1, State(weights, (Channel(), Channel())), *task.moment_set())
    rule = rules.feedback_alignment(layers=[2])
    made = initial_channels(rule, [Dense(W.shape[1], W.shape[0]) for W in weights], weights, seed=0)
    found = flow(rule, 0.1, State(weights, made.channels[1:]), *task.moment_set())
    assert made.ranks == {1: 7, 2: 4}
    assert np.array_equal(found.weights[2], exact.weights[2])
    assert not np.array_equal(found.weights[1], exact.weights[1])
    none = flow(rules.feedback_alignment(layers=()), 0.1, State(weights, (Channel(), Channel())), *task.moment_set())
    assert all(np.array_equal(a, b) for a, b in zip(none.weights, exact.weights, strict=True))
    with pytest.raises(ValueError, match=r"layers names layer 3; the layers with a channel are 1 to 2"):
        initial_channels(rules.low_rank(2, layers=[3]), [Dense(5, 6), Dense(6, 7), Dense(7, 4)], weights, seed=0)
    for layers, error in (("12", TypeError), (3, TypeError), ([0], ValueError), ([1.5], TypeError)):
        with as_users_call(), pytest.raises(error, match="layers"):
            rules.low_rank(2, layers=layers)


def test_the_error_of_the_last_hidden_layer_in_the_linear_theory():
    rng = np.random.default_rng(9)
    task, rule = correlated_task(5, 4, rng), rules.low_rank(2, source="hidden", reader=readers.Fixed())
    W = tuple(rng.standard_normal(s) for s in ((6, 5), (7, 6), (3, 7), (4, 3)))
    P = [rng.standard_normal((2, n)) for n in (3, 3, 4)]
    Q = [rng.standard_normal((2, n)) for n in (6, 7, 3)]
    state = State(W, tuple(Channel(p, q) for p, q in zip(P, Q, strict=True)))
    x, y = task.moment_set()
    h = [x, x @ W[0].T, x @ W[0].T @ W[1].T, x @ W[0].T @ W[1].T @ W[2].T]
    error = (h[3] @ W[3].T - y) / len(x)
    hidden = error @ P[2].T @ Q[2]  # at the last hidden layer, whose error all others get
    deltas = [hidden @ P[0].T @ Q[0], hidden @ P[1].T @ Q[1], hidden, error]
    run = linear_backward(rule, state, x, y)
    found = flow(rule, 0.0, state, x, y)
    for delta, expected in zip(run.deltas, deltas, strict=True):
        agree(delta, expected, 1e-13)
    for velocity, delta, below in zip(found.weights, deltas, h, strict=True):
        agree(velocity, -delta.T @ below, 1e-13)
    for channel, p, delta, below in zip(found.channels, P, (hidden, hidden, error), h[1:], strict=True):
        agree(channel.Q, -p @ delta.T @ below, 1e-13)
    with pytest.raises(AssertionError):
        agree(run.deltas[0], error[:, :3] @ P[0].T @ Q[0], 1e-3)


def test_the_error_of_the_last_hidden_layer_in_the_engine():
    rule = rules.direct_low_rank(2, source="hidden", reader=readers.Fixed())
    model, state, caches, ranks, run = engine_gradients(rule, widths=(7, 8, 9))
    assert ranks == {1: 2, 2: 2, 3: 2}
    assert [state.channels[k].P.shape[1] for k in (1, 2, 3)] == [9, 9, 6]
    carried = run.deltas[3] @ state.channels[3].P.T @ state.channels[3].Q
    hidden = None
    for k in (3, 2, 1):
        if k < 3:
            carried = hidden @ state.channels[k].P.T @ state.channels[k].Q
        for i in range(model.kernels[k] - 1, model.kernels[k - 1], -1):
            carried = model.layers[i].pull(state.weights[i], caches[i], carried)
        hidden = carried if k == 3 else hidden
        agree(run.deltas[k - 1], carried, 1e-13)
    assert run.reads[1] is run.reads[2] is run.deltas[2]
    network = engine_gradients(rules.direct_low_rank(2, reader=readers.Fixed()), widths=(7, 8, 9))[-1]
    assert network.reads[1].shape[1] == 6


def test_two_layers_know_no_difference_between_the_last_hidden_layer_and_the_one_above():
    above, hidden = (engine_gradients(rules.low_rank(2, source=s), widths=(7,))[-1] for s in ("above", "hidden"))
    assert all(np.array_equal(a, b) for a, b in zip(above.deltas, hidden.deltas, strict=True))
    deeper = [engine_gradients(rules.low_rank(2, source=s), widths=(7, 7, 7))[-1] for s in ("above", "hidden")]
    assert not np.array_equal(deeper[0].deltas[0], deeper[1].deltas[0])
    network = LinearNetwork((8, 7, 6), SmallRandom(0.3))
    runs = [
        simulate(TASK, network, rules.low_rank(2, source=s), [0.0, 1.0], method=COARSE)
        for s in ("above", "hidden", "network")
    ]
    assert np.array_equal(runs[0].mode_strength.values, runs[1].mode_strength.values)
    with as_users_call(), pytest.raises(ValueError, match=r"source must be one of 'network', 'hidden', got 'above'"):
        rules.direct_low_rank(2, source="above")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mirrors.Sign("both"), ValueError, "magnitude must be one of 'uniform', 'fixed', 'random'"),
        (lambda: mirrors.Sign(scale=0.0), ValueError, "scale must be finite and > 0"),
        (lambda: mirrors.WeightMirror(probes=0), ValueError, "probes must be >= 1"),
        (lambda: mirrors.WeightMirror(probes=2.5), TypeError, "probes must be an integer"),
        (lambda: mirrors.Normative(restart_every=0), ValueError, "restart_every must be >= 1"),
        (lambda: mirrors.Normative(restart_every="1"), TypeError, "restart_every must be an integer"),
        (lambda: mirrors.Fixed("aligned"), ValueError, "start must be one of 'random', 'weights', 'svd'"),
        (lambda: readers.SimilarityMatching(on="x"), ValueError, "on must be one of"),
        (lambda: readers.SimilarityMatching(rate=-1.0), ValueError, "rate must be finite and >= 0"),
        (lambda: readers.SimilarityMatching(ratio=-1.0), ValueError, "ratio must be finite and >= 0"),
        (lambda: readers.SimilarityMatching(covariance="c"), ValueError, "'second_moment', 'centred', 'normalised'"),
        (lambda: readers.SimilarityMatching(start="svd"), ValueError, "start must be one of"),
        (lambda: rules.sign_symmetry(magnitude="none"), ValueError, "magnitude"),
    ],
)
def test_parts_check_their_arguments(make, error, message):
    with as_users_call(), pytest.raises(error, match=message):
        make()


def test_sign_symmetry_by_its_short_name():
    rule = rules.by_name("sign", magnitude="random")
    assert (rule.mirror, rule.transports_weights) == (mirrors.Sign("random"), True)
    assert rules.by_name("sign").mirror.magnitude == "uniform"
