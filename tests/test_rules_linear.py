"""Rules as points of the table: exact coincidences, starts of the channels, ranks, and what is refused."""

import itertools
import logging
import types

import numpy as np
import pytest

from linfb import rules
from linfb.engine.layers.dense import Dense
from linfb.linear.flow import State, dynamic, flow
from linfb.rules import Channel, Rule, mirrors, readers, resolve_rank, transport
from linfb.rules.channels import effective_readers, initial_channels
from tests.linear_cases import MIRRORS, READERS, agree, as_users_call, correlated_task, exists, random_state, rule_of

N_IN, N_OUT = 6, 4


def one_layer(seed=0, batch=3):
    rng = np.random.default_rng(seed)
    return Dense(N_IN, N_OUT), *(rng.standard_normal(s) for s in ((N_OUT, N_IN), (batch, N_IN), (batch, N_OUT)))


def test_feedback_alignment_through_the_weights_is_backpropagation_bit_for_bit():
    layer, W, x, delta = one_layer()
    exact, _ = transport(rules.backpropagation(), layer, W, Channel(), x, delta)
    fixed, _ = transport(rules.feedback_alignment(), layer, W, Channel(Q=W.copy()), x, delta)
    assert np.array_equal(fixed, exact)
    random = np.random.default_rng(1).standard_normal(W.shape)
    other, _ = transport(rules.feedback_alignment(), layer, W, Channel(Q=random), x, delta)
    assert np.abs(other - exact).max() > 0.1


def test_low_rank_feedback_with_identity_reader_and_the_weights_as_kernel_is_backpropagation_bit_for_bit():
    layer, W, x, delta = one_layer()
    exact, _ = transport(rules.backpropagation(), layer, W, Channel(), x, delta)
    for rule in (rules.low_rank(N_OUT, reader=readers.Fixed()), rules.low_rank(N_OUT), rules.local(N_OUT)):
        carried, _ = transport(rule, layer, W, Channel(np.eye(N_OUT), W.copy()), x, delta)
        assert np.array_equal(carried, exact)
    narrow, _ = transport(rules.low_rank(2), layer, W, Channel(np.eye(N_OUT)[:2], W[:2].copy()), x, delta)
    assert np.abs(narrow - exact).max() > 0.1


@pytest.mark.parametrize("runs", [1, 3])
def test_whole_networks_coincide_bit_for_bit(runs):
    rng = np.random.default_rng(2)
    widths, task = (5, 6, 7, 4), correlated_task(5, 4, rng)
    bp, fa = rules.backpropagation(), rules.feedback_alignment()
    full = rules.low_rank({1: 7, 2: 4}, reader=readers.Fixed())
    state = random_state(bp, widths, rng, runs=runs)
    weights, batch = state.weights, task.moment_set()

    def with_channels(make):
        return State(weights, tuple(make(W) for W in weights[1:]))

    exact = flow(bp, 0.1, state, *batch).weights
    eyes = with_channels(lambda W: Channel(np.broadcast_to(np.eye(W.shape[1]), (runs, W.shape[1], W.shape[1])), W))
    for rule, start in ((fa, with_channels(lambda W: Channel(Q=W.copy()))), (full, eyes)):
        found = flow(rule, 0.1, start, *batch)
        assert all(np.array_equal(a, b) for a, b in zip(found.weights, exact, strict=True))
    learned = flow(full, 0.1, eyes, *batch)
    for l in (1, 2):  # and the mirror then moves with the weights
        assert np.array_equal(learned.channels[l - 1].Q, learned.weights[l])
    random = with_channels(lambda W: Channel(Q=rng.standard_normal(W.shape)))
    found = flow(fa, 0.1, random, *batch).weights
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(found[:2], exact[:2], strict=True))


def test_mirroring_equals_the_gradient_of_the_weights_seen_through_the_reader():
    layer, W, x, delta = one_layer(3)
    P = np.random.default_rng(3).standard_normal((2, N_OUT))
    _, gradient = transport(rules.low_rank(2, reader=readers.Fixed()), layer, W, Channel(P, P @ W), x, delta)
    agree(gradient.Q, P @ layer.grad(W, x, delta), 1e-14)
    with pytest.raises(AssertionError):
        agree(gradient.Q, P @ layer.grad(W, x, 2 * delta), 1e-14)


class Blind(mirrors.Fixed):
    """A mirror that would look at the weights without saying so."""

    def carry(self, view):
        return view.layer.pull(view.weights, view.cache, view.z)


def test_weights_are_shown_only_to_those_that_declare_it():
    layer, W, x, delta = one_layer(4)
    seen = []
    for reader, mirror in itertools.product(READERS, MIRRORS):
        if exists("above", reader, mirror):
            rule = rule_of("above", reader, mirror)
            seen.append(rule.transports_weights)
            assert rule.transports_weights == (mirror in ("exact", "normative"))
    assert any(seen)
    assert not all(seen)
    cheat = Rule("cheat", "above", readers.Identity(), Blind())
    with pytest.raises(TypeError):
        transport(cheat, layer, W, Channel(Q=W), x, delta)


def test_normative_starts_at_the_best_approximation_and_rests_there():
    layer, W, x, delta = one_layer(5)
    channel = mirrors.Normative().initial(layer, None, W, (2, N_IN), np.random.default_rng(0))
    left, values, right = np.linalg.svd(W, full_matrices=False)
    agree(channel.P.T @ channel.Q, (left[:, :2] * values[:2]) @ right[:2], 1e-13)
    agree(channel.P @ channel.P.T, channel.Q @ channel.Q.T, 1e-13)
    _, gradient = transport(rules.normative(2), layer, W, channel, x, delta)
    agree(gradient.P, np.zeros_like(channel.P))
    agree(gradient.Q, np.zeros_like(channel.Q))
    _, elsewhere = transport(rules.normative(2), layer, W + 0.1, channel, x, delta)
    assert np.abs(elsewhere.Q).max() > 0.01


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_starts_of_readers(rank):
    P = readers.Fixed().initial(rank, N_OUT, np.random.default_rng(0))
    agree(P @ P.T, np.eye(rank), 1e-14)
    gaussian = readers.Fixed("gaussian").initial(rank, N_OUT, np.random.default_rng(0))
    assert np.abs(gaussian @ gaussian.T - np.eye(rank)).max() > 1e-2
    for start in ("orthonormal", "gaussian"):  # a smaller channel is part of a larger one
        whole = readers.Fixed(start).initial(N_OUT, N_OUT, np.random.default_rng(0))
        agree(readers.Fixed(start).initial(rank, N_OUT, np.random.default_rng(0)), whole[:rank], 1e-14)
    given = np.arange(rank * N_OUT, dtype=float).reshape(rank, N_OUT)
    assert np.array_equal(readers.Oja(start=given).initial(rank, N_OUT, np.random.default_rng(0)), given)
    with pytest.raises(ValueError, match=r"start .*shape"):
        readers.Oja(start=given).initial(rank, N_OUT + 1, np.random.default_rng(0))
    assert np.array_equal(
        readers.Local(scale=3.0).initial(rank, N_OUT, np.random.default_rng(0)), 3.0 * P
    )  # fmt: skip


def test_random_starts_are_uniform_and_have_the_stated_variance():
    draws = [readers.Fixed().initial(2, 6, np.random.default_rng(seed)) for seed in range(400)]
    shares = np.array([np.sum(P[:, 0] ** 2) for P in draws])  # Beta(1, 2): mean 1/3, variance 1/18
    z = (shares.mean() - 1 / 3) / np.sqrt(1 / 18 / 400)
    assert abs(z) < 4
    wrong = (shares.mean() - 1 / 2) / np.sqrt(1 / 18 / 400)
    assert abs(wrong) > 4
    signs = np.mean([np.sign(P[0, 0]) for P in draws])
    assert abs(signs) * np.sqrt(400) < 4
    entries = np.concatenate(
        [readers.Fixed("gaussian").initial(2, 6, np.random.default_rng(s)).ravel() for s in range(400)]
    )
    z = (np.mean(entries**2) * 6 - 1) / np.sqrt(2 / entries.size)
    assert abs(z) < 4
    kernels = np.concatenate(
        [mirrors.draw("random", None, (3, 8), np.random.default_rng(s)).ravel() for s in range(200)]
    )
    assert abs(np.mean(kernels**2) * 8 - 1) / np.sqrt(2 / kernels.size) < 4
    kernels = mirrors.draw("random", 0.5, (300, 8), np.random.default_rng(0))
    assert abs(np.mean(kernels**2) * 4 - 1) / np.sqrt(2 / kernels.size) < 4


def drawn(rule, widths=(5, 6, 7, 4), seed=0):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((above, below)) for below, above in itertools.pairwise(widths)]
    direct = rule.source == "network"
    layers = [Dense(W.shape[1], widths[-1] if direct else W.shape[0]) for W in weights]
    return initial_channels(rule, layers, weights, seed=seed), weights


def test_channels_of_a_network_have_the_shapes_of_what_they_read_and_write():
    made, _ = drawn(rules.low_rank(3))
    assert made.channels[0] is None
    assert [(c.P.shape, c.Q.shape) for c in made.channels[1:]] == [((3, 7), (3, 6)), ((3, 4), (3, 7))]
    direct, _ = drawn(rules.direct_low_rank(3))
    assert [(c.P.shape, c.Q.shape) for c in direct.channels[1:]] == [((3, 4), (3, 6)), ((3, 4), (3, 7))]
    dfa, _ = drawn(rules.direct_feedback_alignment())
    assert [(c.P, c.Q.shape) for c in dfa.channels[1:]] == [(None, (4, 6)), (None, (4, 7))]
    assert made.ranks == direct.ranks == {1: 3, 2: 3}
    assert dfa.ranks == {1: 4, 2: 4}


def test_starts_of_mirrors():
    aligned, weights = drawn(rules.low_rank(2, mirror=mirrors.KolenPollack(start="aligned")))
    for channel, W in zip(aligned.channels[1:], weights[1:], strict=True):
        assert np.array_equal(channel.Q, channel.P @ W)
    copied, weights = drawn(rules.feedback_alignment(mirror=mirrors.Fixed("weights")))
    assert np.array_equal(copied.channels[1].Q, weights[1])
    assert copied.channels[1].Q is not weights[1]
    independent, weights = drawn(rules.low_rank(2))
    for channel, W in zip(independent.channels[1:], weights[1:], strict=True):
        assert np.abs(channel.Q - channel.P @ W).max() > 0.1
    for mirror in (mirrors.KolenPollack(start="aligned"), mirrors.Fixed("weights")):
        with pytest.raises(ValueError, match=r"start of the mirror cannot follow .*direct rule"):
            drawn(rules.direct_low_rank(2, mirror=mirror))


def test_seeds_and_layers_have_streams_of_their_own():
    first, again, other = (drawn(rules.low_rank(3), seed=seed)[0].channels for seed in (0, 0, 1))
    for l in (1, 2):
        assert np.array_equal(first[l].P, again[l].P)
        assert np.array_equal(first[l].Q, again[l].Q)
        assert not np.any(first[l].P == other[l].P)
        assert not np.any(first[l].Q == other[l].Q)
    square = drawn(rules.low_rank(2), (4, 4, 4, 4))[0].channels
    assert not np.any(square[1].P == square[2].P)
    assert not np.any(square[1].Q == square[2].Q)


def test_gain_undoes_the_fall_of_the_norm_with_rank():
    widths = (5, 40, 40)
    norms = {}
    for gain, rank in itertools.product(("none", "full_rank"), (4, 40)):
        squares = []
        for seed in range(20):
            channel = drawn(rules.feedback_alignment(rank=rank, gain=gain), widths, seed)[0].channels[1]
            squares.append(np.sum((channel.gain * channel.P.T @ channel.Q) ** 2))
        norms[gain, rank] = np.mean(squares)
    assert norms["full_rank", 4] == pytest.approx(norms["full_rank", 40], rel=0.1)
    assert norms["none", 4] == pytest.approx(norms["none", 40] / 10, rel=0.1)
    effective = effective_readers(rules.low_rank(10, gain="full_rank"), widths[1:], seed=0)
    agree(effective[0], np.sqrt(2.0) * drawn(rules.low_rank(10), widths)[0].channels[1].P, 1e-14)


@pytest.mark.parametrize(
    ("rank", "width", "expected"),
    [
        (3, 5, (3, False)),
        (5, 5, (5, False)),
        (9, 5, (5, True)),
        (0.5, 5, (3, False)),
        (0.49, 5, (2, False)),
        (0.01, 5, (1, False)),
        ({2: 4}, 5, (4, False)),
        ({2: 0.4}, 5, (2, False)),
        (types.MappingProxyType({2: 4}), 5, (4, False)),
        (np.int64(3), 5, (3, False)),
        (np.float64(0.5), 8, (4, False)),
    ],
)
def test_ranks(rank, width, expected):
    assert resolve_rank(rank, 2, width) == expected
    assert rules.low_rank(rank).rank is rank


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ({2: 3}, "no entry for layer 1"),
        ({1: 3, 2: 5}, "rank of layer 2 is 5, more than the 4 features"),
        ({1: 8, 2: 1}, "rank of layer 1 is 8"),
        ({1: 1, 2: 1, 3: 1}, "names layer 3"),
        ({0: 1, 1: 1, 2: 1}, "names layer 0"),
        ({}, "no entry for layer 1"),
    ],
)
def test_ranks_by_layer_must_fit_every_layer(rank, message):
    with pytest.raises(ValueError, match=message):
        drawn(rules.low_rank(rank))


def test_a_plain_rank_beyond_a_width_is_capped_and_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="linfb"):
        made, _ = drawn(rules.low_rank(6))
    assert made.ranks == {1: 6, 2: 4}
    assert made.capped == (2,)
    assert "capped" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="linfb"):
        assert drawn(rules.low_rank(4))[0].capped == ()
    assert not caplog.text


def test_short_names():
    assert set(rules.names) >= {"bp", "fa", "kp", "dfa", "zero", "low-rank", "local", "normative"}
    for name in rules.names:
        ranked = name in ("low-rank", "direct-low-rank", "local", "normative")
        rule = rules.by_name(name, **({"rank": 2} if ranked else {}))
        assert isinstance(rule, Rule)
        assert (rule.rank == 2) == ranked
    assert rules.by_name("dfa").source == rules.by_name("direct-low-rank", rank=1).source == "network"
    with pytest.raises(ValueError, match=r"rule must be one of .*'low-rank'"):
        rules.by_name("backprop")


def test_rates_scale_time_only():
    rng = np.random.default_rng(6)
    task = correlated_task(5, 4, rng)
    slow = rules.low_rank(2, reader=readers.Oja(rate=1.0), mirror=mirrors.KolenPollack(rate=1.0))
    fast = rules.low_rank(2, reader=readers.Oja(rate=3.0), mirror=mirrors.KolenPollack(rate=5.0))
    state = random_state(slow, (5, 6, 4), rng)
    one, other = (dynamic(rule, flow(rule, 0.1, state, *task.moment_set())) for rule in (slow, fast))
    for a, b, factor in zip(one, other, (1, 1, 3, 5), strict=True):
        agree(factor * a, b, 1e-14)


FINE = {"name": "mine", "source": "above", "reader": readers.Fixed(), "mirror": mirrors.KolenPollack(), "rank": 2}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": 3}, TypeError, "name must be text"),
        ({"source": "below"}, ValueError, "source must be one of"),
        ({"source": None}, ValueError, "source"),
        ({"gain": "half"}, ValueError, "gain must be one of"),
        ({"gain": ["none"]}, ValueError, "gain"),
        ({"reader": readers.Fixed}, TypeError, "reader must be a reader object"),
        ({"reader": mirrors.KolenPollack()}, TypeError, "reader must be"),
        ({"reader": "oja"}, TypeError, "reader must be"),
        ({"mirror": mirrors.KolenPollack}, TypeError, "mirror must be"),
        ({"mirror": readers.Oja()}, TypeError, "mirror"),
        ({"mirror": None}, TypeError, "mirror must be"),
        ({"rank": None}, ValueError, "rank must be given"),
        ({"reader": readers.Identity()}, ValueError, "rank must be None"),
        ({"rank": 0}, ValueError, "rank must be >= 1"),
        ({"rank": -3}, ValueError, "rank"),
        ({"rank": True}, TypeError, "rank"),
        ({"rank": 1.0}, ValueError, "rank"),
        ({"rank": 1.5}, ValueError, "rank"),
        ({"rank": float("nan")}, ValueError, "rank"),
        ({"rank": "2"}, TypeError, "rank"),
        ({"rank": [2]}, TypeError, "rank"),
        ({"rank": {1: 0}}, ValueError, "rank"),
        ({"source": "network", "mirror": mirrors.Exact()}, ValueError, "source='network'"),
        ({"source": "network", "mirror": mirrors.WeightMirror()}, ValueError, "source='network'"),
        ({"reader": readers.Normative()}, ValueError, "normative"),
        ({"mirror": mirrors.Normative()}, ValueError, "normative"),
        ({"reader": readers.Local(), "mirror": mirrors.Exact()}, ValueError, "reader 'local'"),
        ({"reader": readers.Local(), "mirror": mirrors.Zero()}, ValueError, "reader 'local'"),
    ],
)
def test_rules_that_do_not_exist_are_refused(change, error, message):
    Rule(**FINE)
    with as_users_call(), pytest.raises(error, match=message):
        Rule(**(FINE | change))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: readers.Oja(on="weights"), ValueError, "on must be one of"),
        (lambda: readers.Oja(covariance="x"), ValueError, "covariance must be one of"),
        (lambda: readers.Oja(rate=-1.0), ValueError, "rate"),
        (lambda: readers.Oja(rate=np.nan), ValueError, "rate"),
        (lambda: readers.Oja(rate=True), TypeError, "rate"),
        (lambda: readers.Oja(start="zero"), ValueError, "start"),
        (lambda: readers.Fixed(np.ones(3)), ValueError, "start"),
        (lambda: readers.Fixed([[np.inf]]), ValueError, "start"),
        (lambda: readers.Local(rate=-1), ValueError, "rate"),
        (lambda: readers.Local(scale=0), ValueError, "scale"),
        (lambda: readers.Normative(rate="1"), TypeError, "rate"),
        (lambda: mirrors.Normative(rate=-1), ValueError, "rate"),
        (lambda: mirrors.KolenPollack(rate=-1), ValueError, "rate"),
        (lambda: mirrors.KolenPollack(start="x"), ValueError, "start"),
        (lambda: mirrors.KolenPollack(scale=0.0), ValueError, "scale"),
        (lambda: mirrors.Fixed(start="aligned"), ValueError, "start"),
        (lambda: mirrors.WeightMirror(rate=np.inf), ValueError, "rate"),
        (lambda: mirrors.Fixed([["a"]]), TypeError, "start"),
    ],
)
def test_parts_of_rules_check_their_arguments(make, error, message):
    with as_users_call(), pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("mirror", [mirrors.Fixed, mirrors.KolenPollack, mirrors.WeightMirror])
def test_given_kernels_must_have_the_shape_of_the_channel(mirror):
    kernel = np.ones((2, 7))
    fits = rules.low_rank({1: 2, 2: 2}, mirror=mirror(start=kernel))
    with pytest.raises(ValueError, match=r"mirror's Q.*shape \(2, 7\), expected \(2, 6\)"):
        drawn(fits)
    made, _ = drawn(rules.low_rank(2, mirror=mirror(start=kernel)), (5, 7, 4))
    assert np.array_equal(made.channels[1].Q, kernel)


@pytest.mark.parametrize(("part", "message"), [("reader", "P of layer 1"), ("mirror", "Q of layer 1")])
def test_own_parts_that_draw_the_wrong_shape_are_named(part, message):
    class Sideways(readers.Fixed):
        def initial(self, rank, n_out, rng):
            return super().initial(rank, n_out, rng).T

    class Narrow(mirrors.Fixed):
        def initial(self, layer, P, weights, shape, rng):
            return super().initial(layer, P, weights, (shape[0], shape[1] - 1), rng)

    own = {"reader": Sideways()} if part == "reader" else {"mirror": Narrow()}
    rule = rules.low_rank(2, **{"reader": readers.Fixed(), **own})
    layers, weights = [Dense(5, 6), Dense(6, 4)], [np.ones((6, 5)), np.ones((4, 6))]
    with pytest.raises(ValueError, match=rf"{part} 'fixed': {message} has shape .*, expected"):
        initial_channels(rule, layers, weights, seed=0)


def test_given_starts_are_kept_as_they_were():
    P, Q = np.eye(2, 4), np.ones((2, 3))
    parts = [
        readers.Fixed(P),
        readers.Oja(start=P),
        readers.Local(start=P),
        mirrors.Fixed(Q),
        mirrors.KolenPollack(start=Q),
    ]
    P[:], Q[:] = 7.0, 7.0
    assert all(np.all(part.start != 7.0) for part in parts)
