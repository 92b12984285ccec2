"""Observables against plain loops over their definitions, their NaN conventions, and users' own."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from linfb import rules, simulate
from linfb.linear import Euler
from linfb.linear.flow import backward, flow
from linfb.networks import Given, LinearNetwork, SmallRandom
from linfb.observables import NAMED, Snapshot, cosine, invariant, participation_ratio, row_projector
from linfb.observables.linear import Observable
from linfb.observables.measures import captured_energy, subspace_overlap
from linfb.rules import mirrors, readers
from linfb.tasks import Task, low_rank_teacher
from tests.linear_cases import CELLS, agree, as_users_call, correlated_task, random_state, rule_of

WIDTHS = (5, 6, 7, 4)


def snapshot(rule, state, task, start=None, weight_decay=0.1):
    moments = task.moment_set()
    return Snapshot(
        task, rule, state.weights, state.channels, start,
        passes=lambda: backward(rule, state, *moments),
        velocities=lambda: flow(rule, weight_decay, state, *moments).weights,
    )  # fmt: skip


def plain(rule, state, task, run, weight_decay=0.1):
    """Return every observable of one run, written as loops over definitions."""
    W = [weights[run] for weights in state.weights]
    x, y = task.moment_set()
    hidden = [x]
    for weights in W:
        hidden.append(np.array([weights @ row for row in hidden[-1]]))
    product = W[0]
    for weights in W[1:]:
        product = weights @ product
    error = (hidden[-1] - y) / len(x)
    true, carried, reads = [error], [error], []
    for l in range(len(W) - 1, 0, -1):
        true.insert(0, true[0] @ W[l])
        read = error if rule.source == "network" else carried[0]
        channel = state.channels[l - 1]
        P = np.eye(read.shape[1]) if channel.P is None else channel.P[run]
        name = rule.mirror.name
        Q = P @ W[l] if name == "exact" else np.zeros((len(P), len(W[l].T))) if name == "zero" else channel.Q[run]
        reads.insert(0, read)
        carried.insert(0, read @ P.T @ Q)
    result = {
        "loss": 0.5 * np.mean([np.sum((row - product @ sample) ** 2) for row, sample in zip(y, x, strict=True)]),
        "mode_strength": [u @ product @ task.Sigma_xx @ v for u, v in zip(task.left.T, task.right.T, strict=True)],
        "singular_values": np.linalg.svd(product, compute_uv=False),
        "network_map": product,
    }

    def angle(a, b):
        return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) if np.any(a) and np.any(b) else np.nan

    mirror, alignment, energy = [], [], []
    for l in range(1, len(W)):
        above = W[l]
        if rule.source == "network":
            for weights in W[l + 1 :]:
                above = weights @ above
        channel = state.channels[l - 1]
        P = np.eye(len(above)) if channel.P is None else channel.P[run]
        name = rule.mirror.name
        used = P @ above if name == "exact" else 0 * P @ above if name == "zero" else channel.Q[run]
        mirror.append(angle(used, P @ above))
        alignment.append(angle(carried[l - 1], true[l - 1]))
        basis = np.linalg.qr(P.T)[0]
        read = reads[l - 1]
        whole = np.nan if channel.P is not None else 1.0
        energy.append(np.linalg.norm(read @ basis) ** 2 / np.linalg.norm(read) ** 2 if np.any(read) else whole)
    P = state.channels[-1].P
    if P is None:
        overlap = 1.0
    else:
        basis, leading = np.linalg.qr(P[run].T)[0], task.left[:, : min(len(P[run]), task.rank)]
        overlap = np.linalg.norm(basis.T @ leading) ** 2 / leading.shape[1]

    def effective(matrix):
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        return squares.sum() ** 2 / np.sum(squares**2) if np.any(squares) else np.nan

    velocities = [-(d.T @ h) - weight_decay * weights for d, h, weights in zip(carried, hidden[:-1], W, strict=True)]
    return result | {
        "mirror_alignment": mirror,
        "error_alignment": alignment,
        "captured_energy": energy,
        "task_overlap": overlap,
        "effective_rank": [effective(weights) for weights in W],
        "update_rank": [effective(velocity) for velocity in velocities],
        "invariant_drift": None,
    }


@pytest.mark.parametrize("cell", CELLS, ids=" - ".join)
def test_observables_are_their_definitions(cell):
    rng = np.random.default_rng(1)
    rule, task = rule_of(*cell), correlated_task(5, 4, rng)
    state = random_state(rule, WIDTHS, rng)
    snap = snapshot(rule, state, task)
    for run in (0, 1):
        expected = plain(rule, state, task, run)
        assert set(expected) == set(NAMED)
        for name, value in expected.items():
            if value is None:
                continue
            found = np.asarray(NAMED[name].measure(snap))
            assert found.shape[0] == 2
            assert found.ndim == 1 + len(NAMED[name].dims)
            holes = np.isnan(value)
            assert np.array_equal(np.isnan(found[run]), holes), name
            agree(np.where(holes, 0.0, found[run]), np.where(holes, 0.0, value), 1e-11)
            if not np.all(holes) and not np.allclose(np.where(holes, 1.0, value), 1.0):
                with pytest.raises(AssertionError):
                    agree(np.where(holes, 0.0, found[run]), 1.0001 * np.where(holes, 0.0, value), 1e-11)


def test_nothing_to_measure_is_nan():
    rule, task = rules.zero_feedback(), low_rank_teacher(5, 4, [1.0])
    rng = np.random.default_rng(0)
    state = random_state(rule, WIDTHS, rng)
    snap = snapshot(rule, state, task)
    assert np.isnan(NAMED["error_alignment"].measure(snap)).all()
    assert np.isnan(NAMED["mirror_alignment"].measure(snap)).all()
    assert np.array_equal(NAMED["captured_energy"].measure(snap), np.ones((2, 2)))  # the identity misses nothing
    narrow = rule_of("above", "fixed", "zero")
    energy = NAMED["captured_energy"].measure(snapshot(narrow, random_state(narrow, WIDTHS, rng), task))
    assert np.isnan(energy)[:, 0].all()  # no error reaches the lower channel
    assert not np.isnan(energy)[:, 1].any()
    assert np.isnan(NAMED["update_rank"].measure(snapshot(rule, state, task, weight_decay=0.0)))[:, 0].all()
    assert np.isnan(participation_ratio(np.zeros((2, 3, 3)))).all()
    assert np.isnan(cosine(np.zeros((3, 3)), np.ones((3, 3))))
    assert np.isnan(captured_energy(np.ones((1, 3)), np.zeros((5, 3))))


MATRICES = hnp.arrays(float, (3, 4), elements=st.floats(-5, 5).filter(lambda x: x == 0 or abs(x) > 1e-3))


@given(MATRICES, MATRICES, st.sampled_from([1e-120, 1e-60, 1.0, 1e60, 1e120]))
def test_measures_do_not_depend_on_scale(a, b, scale):
    for measure, arguments in ((cosine, (a, b)), (participation_ratio, (a,))):
        once, scaled = measure(*arguments), measure(scale * arguments[0], *arguments[1:])
        assert np.isnan(once) == np.isnan(scaled)
        if not np.isnan(once):
            agree(scaled, once, 1e-12)


def test_participation_ratio_counts_equal_directions():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    for rank in range(1, 6):
        agree(participation_ratio(basis[:, :rank] @ rng.permutation(np.eye(6))[:rank]), rank, 1e-13)
    uneven = participation_ratio(np.diag([2.0, 1.0]))
    agree(uneven, 25 / 17, 1e-14)
    assert abs(uneven - 9 / 5) > 0.1  # not the ratio of the singular values themselves


def test_padding_and_lost_rank_do_not_count():
    rng = np.random.default_rng(2)
    P = rng.standard_normal((2, 5))
    delta = rng.standard_normal((7, 5))
    padded, doubled = np.vstack([P, np.zeros((3, 5))]), np.vstack([P, P[0]])
    expected = P.T @ np.linalg.solve(P @ P.T, P)
    for reader in (P, padded, doubled, 1e-6 * P):
        agree(row_projector(reader), expected, 1e-11)
        agree(captured_energy(reader, delta), captured_energy(P, delta), 1e-11)
        agree(subspace_overlap(reader, np.eye(5)[:, :2]), subspace_overlap(P, np.eye(5)[:, :2]), 1e-11)
    assert abs(captured_energy(P[:1], delta) - captured_energy(P, delta)) > 0.01
    agree(captured_energy(np.zeros((2, 5)), delta), 0.0)
    agree(subspace_overlap(np.eye(5)[:2], np.eye(5)[:, :3]), 1.0, 1e-14)
    agree(subspace_overlap(np.eye(5)[:2], np.eye(5)[:, 2:4]), 0.0, 1e-14)


def test_invariants_are_their_definitions():
    rng = np.random.default_rng(3)
    W1, W2 = rng.standard_normal((6, 5)), rng.standard_normal((4, 6))
    P, Q, B = rng.standard_normal((2, 4)), rng.standard_normal((2, 6)), rng.standard_normal((4, 6))
    M, D = P.T @ P, Q - P @ W2
    agree(invariant(W1, W2), W1 @ W1.T - W2.T @ W2, 1e-14)
    agree(invariant(W1, W2, P=P), W1 @ W1.T - W2.T @ M @ W2, 1e-13)
    cross = D.T @ P @ W2
    agree(invariant(W1, W2, P=P, Q=Q), W1 @ W1.T - W2.T @ M @ W2 - cross - cross.T, 1e-13)
    agree(invariant(W1, W2, B=B), W1 @ W1.T - B.T @ W2 - (B.T @ W2).T, 1e-13)
    with pytest.raises(AssertionError):
        agree(invariant(W1, W2, P=P, Q=Q), W1 @ W1.T - W2.T @ M @ W2, 1e-13)


def test_drift_is_measured_from_the_start():
    rng = np.random.default_rng(4)
    rule, task = rules.backpropagation(), correlated_task(5, 4, rng)
    first, later = (random_state(rule, WIDTHS, rng) for _ in range(2))
    start = snapshot(rule, first, task)
    assert not np.any(NAMED["invariant_drift"].measure(start))
    found = NAMED["invariant_drift"].measure(snapshot(rule, later, task, start))
    for run in (0, 1):
        for layer in (0, 1):
            change = [
                s.weights[layer][run] @ s.weights[layer][run].T
                - s.weights[layer + 1][run].T @ s.weights[layer + 1][run]
                for s in (first, later)
            ]
            agree(found[run, layer], np.linalg.norm(change[1] - change[0]), 1e-13)
    direct = rule_of("network", "fixed", "fixed")
    snap = snapshot(direct, random_state(direct, WIDTHS, rng), task)
    assert np.isnan(NAMED["invariant_drift"].measure(snap))[:, 0].all()  # only the last pair shares its error
    assert not np.isnan(NAMED["invariant_drift"].measure(snap))[:, 1].any()


TASK = low_rank_teacher(5, 4, [2.0, 1.0])
NETWORK = LinearNetwork((5, 6, 4), SmallRandom(0.3))


def test_users_own_observables():
    own = {
        "first_weights": lambda snap: snap.weights[0],
        "norm": lambda snap: [np.linalg.norm(W) for W in snap.weights[1]],
        "named": Observable(lambda snap: snap.map, ("out", "in")),
        "loss": NAMED["loss"],
    }
    result = simulate(TASK, NETWORK, rules.low_rank(2), [0.0, 0.1], seeds=[3, 1], method=Euler(0.1), observe=own)
    assert result.first_weights.dims == ("seed", "time", "first_weights_0", "first_weights_1")
    assert result.first_weights.shape == (2, 2, 6, 5)
    assert result.norm.dims == ("seed", "time")
    assert result.named.dims == ("seed", "time", "out", "in")
    other = simulate(TASK, NETWORK, rules.low_rank(2), [0.0, 0.1], seeds=[3, 1], method=Euler(0.1))
    assert np.array_equal(result.loss, other.loss)


@pytest.mark.parametrize(
    ("observe", "error", "message"),
    [
        ("lss", ValueError, "observe must be one of 'loss'"),
        (["loss", "lss"], ValueError, "observe must be one of"),
        (5, TypeError, "observe must be names"),
        (None, TypeError, "observe"),
        (lambda snap: 0.0, TypeError, "observe"),
        ([["loss"]], ValueError, "observe"),
        ({"mine": 3}, TypeError, r"observe\['mine'\] must be a function"),
        ({"time": np.ones}, ValueError, "observe names a variable 'time'"),
        ({"channel_rank": np.ones}, ValueError, "observe names a variable 'channel_rank'"),
        ({3: np.ones}, ValueError, "observe names a variable 3"),
        ({"mine": lambda snap: 1.0}, ValueError, r"observe\['mine'\] returned shape \(\), expected a leading run"),
        ({"mine": lambda snap: np.ones(7)}, ValueError, r"observe\['mine'\] returned shape \(7,\)"),
    ],
)
def test_bad_observables_are_refused(observe, error, message):
    with as_users_call(), pytest.raises(error, match=message):
        simulate(TASK, NETWORK, rules.backpropagation(), [0.0], observe=observe)


def test_perfect_mirrors_and_readers_measure_as_one():
    weights = [np.eye(4, 5), np.eye(4)]
    network = LinearNetwork((5, 4, 4), Given(weights))
    rule = rules.low_rank(2, reader=readers.Fixed(np.eye(2, 4)), mirror=mirrors.KolenPollack(start="aligned"))
    task = Task(np.diag([3.0, 2.0, 0.0, 0.0]) @ np.eye(4, 5))
    observe = ("mirror_alignment", "captured_energy", "task_overlap", "error_alignment")
    result = simulate(task, network, rule, [0.0], observe=observe)
    agree(result.mirror_alignment, np.ones((1, 1, 1)))
    agree(result.task_overlap, np.ones((1, 1)))
    agree(result.captured_energy, [[[5 / 7]]])  # squared errors 4, 1, 1, 1 of which the channel sees two
    agree(result.error_alignment, [[[np.sqrt(5 / 7)]]])


def test_mode_strengths_of_correlated_inputs_end_at_the_singular_values():
    covariance = np.diag([3.0, 2.0, 1.0, 1.0, 0.5])
    task = low_rank_teacher(5, 4, [3.0, 2.0], input_covariance=covariance)
    network = LinearNetwork((5, 4, 4), SmallRandom(0.1))
    run = simulate(task, network, rules.backpropagation(), [0.0, 60.0], observe=("mode_strength", "network_map"))
    assert np.abs(run.mode_strength.values[0, -1] - task.singular_values).max() < 1e-6
    bare = np.einsum("om,oi,im->m", task.left, run["network_map"].values[0, -1], task.right)
    assert np.abs(bare - task.singular_values).max() > 0.1  # without the covariance they would not


@pytest.mark.parametrize("rule", [rules.low_rank(1), rules.local(1), rules.normative(1)], ids=lambda rule: rule.name)
def test_ranks_in_one_call_measure_what_they_measure_alone(rule):
    """Channels of an ensemble are padded to the largest rank, which no observable may see."""
    task, network = low_rank_teacher(6, 5, [2.0, 1.0, 0.5]), LinearNetwork((6, 4, 7, 5), SmallRandom(0.7))
    call = {"times": [0.0, 1.0], "seeds": [4], "method": "rk4", "observe": tuple(NAMED)}
    together = simulate(task, network, rule, ranks=[1, 4], **call)
    for rank, other in ((1, 4), (4, 1)):
        alone = simulate(task, network, replace(rule, rank=rank), **call)
        for name in NAMED:
            np.testing.assert_allclose(together[name].sel(rank=rank), alone[name], rtol=1e-9, atol=1e-9, err_msg=name)
        for name in ("task_overlap", "captured_energy"):
            with pytest.raises(AssertionError):
                np.testing.assert_allclose(together[name].sel(rank=other), alone[name], rtol=1e-3)
