"""Simulation against what the theory states: conserved quantities, learned modes, plateaus and thresholds."""

import numpy as np
import pytest

from linfb import rules, simulate
from linfb.linear import Dop853
from linfb.linear.simulation import initial_state
from linfb.networks import Aligned, Balanced, Given, LinearNetwork, SmallRandom
from linfb.observables import NAMED
from linfb.rules import mirrors, readers
from linfb.tasks import low_rank_teacher
from tests.linear_cases import agree, as_users_call

TIGHT = Dop853(1e-12, 1e-14)
TASK = low_rank_teacher(5, 4, [1.5, 1.0, 0.5])
WIDTHS = {2: (5, 6, 4), 3: (5, 6, 7, 4), 4: (5, 6, 3, 7, 4)}
RANKS = {2: {1: 2}, 3: {1: 3, 2: 2}, 4: {1: 2, 2: 4, 3: 3}}


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Integrations take many steps; shapes are checked on the same functions in test_flow."""
    with as_users_call():
        yield


def arrays_of(rule, depth, times, weight_decay=0.0, method=TIGHT):
    """Return weights, P and Q over time, one list per layer, of one run."""
    network = LinearNetwork(WIDTHS[depth], SmallRandom(0.8))
    own = {"drift": NAMED["invariant_drift"].measure}
    for l in range(depth):
        own[f"W{l}"] = lambda snap, l=l: snap.weights[l]
        if l and rule.reader.compresses:
            own[f"P{l}"] = lambda snap, l=l: snap.channels[l - 1].P
        if l and rule.mirror.name not in ("exact", "zero"):
            own[f"Q{l}"] = lambda snap, l=l: snap.channels[l - 1].Q
    found = simulate(TASK, network, rule, times, weight_decay=weight_decay, method=method, observe=own)
    return {name: found[name].values[0] for name in own}


def invariants(rule, found, depth, gain=None):
    """Return every pair's conserved matrix over time, typed in the paper's layout (B is hidden x output)."""
    values = []
    for l in range(1, depth):
        W1, W2 = found[f"W{l - 1}"], found[f"W{l}"]
        g = 1.0 if gain is None else gain[l - 1]
        result = []
        for t in range(len(W1)):
            P = found[f"P{l}"][t] if f"P{l}" in found else np.eye(W2.shape[1])
            Q = found[f"Q{l}"][t].T if f"Q{l}" in found else W2[t].T @ P.T
            if rule.mirror.name == "fixed":
                B = g * Q @ P
                result.append(W1[t] @ W1[t].T - B @ W2[t] - (B @ W2[t]).T)
            else:
                M, D = P.T @ P, Q - W2[t].T @ P.T
                cross = D @ P @ W2[t]
                result.append(W1[t] @ W1[t].T - g * (W2[t].T @ M @ W2[t] + cross + cross.T))
        values.append(np.array(result))
    return values


def fixed_reader(depth, mirror, gain="none"):
    return rules.low_rank(RANKS[depth], reader=readers.Fixed(), mirror=mirror, gain=gain)


CONSERVING = {
    "backpropagation": lambda depth: rules.backpropagation(),
    "Kolen-Pollack, aligned": lambda depth: fixed_reader(depth, mirrors.KolenPollack(start="aligned")),
    "Kolen-Pollack, constant mismatch": lambda depth: fixed_reader(depth, mirrors.KolenPollack(scale=0.5)),
    "Kolen-Pollack, full rank": lambda depth: rules.kolen_pollack(),
    "Kolen-Pollack, gain": lambda depth: fixed_reader(depth, mirrors.KolenPollack(scale=0.5), "full_rank"),
    "perfect mirror": lambda depth: fixed_reader(depth, mirrors.Exact()),
    "feedback alignment": lambda depth: rules.feedback_alignment(),
    "feedback alignment of rank r": lambda depth: rules.feedback_alignment(rank=RANKS[depth]),
    "feedback alignment with gain": lambda depth: rules.feedback_alignment(rank=RANKS[depth], gain="full_rank"),
}


@pytest.mark.parametrize("depth", WIDTHS)
@pytest.mark.parametrize("name", CONSERVING)
def test_invariants_are_conserved(name, depth):
    rule = CONSERVING[name](depth)
    found = arrays_of(rule, depth, [0.0, 0.5, 1.5])
    gain = None
    if rule.gain == "full_rank":
        gain = [np.sqrt(W / RANKS[depth][l]) for l, W in enumerate(WIDTHS[depth][2:], start=1)]
    for values in invariants(rule, found, depth, gain):
        assert np.abs(values - values[0]).max() < 1e-10
    assert found["drift"].max() < 1e-10
    for l in range(depth):
        assert np.abs(found[f"W{l}"][-1] - found[f"W{l}"][0]).max() > 1e-2  # something was learned
    if name != "backpropagation" and "full rank" not in name:  # the invariant of another rule drifts
        naive = {key: value for key, value in found.items() if key[0] == "W"}
        wrong = max(np.abs(values - values[0]).max() for values in invariants(rules.backpropagation(), naive, depth))
        assert wrong > 1e-3
    decayed = arrays_of(rule, depth, [0.0, 1.5], weight_decay=0.1, method=Dop853(1e-6))
    assert decayed["drift"][-1].max() > 1e-3


@pytest.mark.parametrize("name", ["backpropagation", "Kolen-Pollack, constant mismatch", "perfect mirror"])
def test_invariants_decay_at_twice_the_rate_of_the_weights(name):
    rule, times = CONSERVING[name](3), np.array([0.0, 0.5, 1.5])
    found = arrays_of(rule, 3, times, weight_decay=0.3)
    for values in invariants(rule, found, 3):
        assert np.abs(values[0]).max() > 0.1
        agree(values, np.exp(-0.6 * times)[:, None, None] * values[0], 1e-10)
        with pytest.raises(AssertionError):
            agree(values, np.exp(-0.3 * times)[:, None, None] * values[0], 1e-10)
    if name != "perfect mirror" and rule.reader.compresses:  # and so does the mismatch, at the rate itself
        for l in (1, 2):
            mismatch = found[f"Q{l}"] - found[f"P{l}"] @ found[f"W{l}"]
            agree(mismatch, np.exp(-0.3 * times)[:, None, None] * mismatch[0], 1e-10)


def test_weight_decay_breaks_the_invariant_of_constant_feedback():
    rule, times = rules.feedback_alignment(), np.array([0.0, 3.0])
    values = invariants(rule, arrays_of(rule, 2, times, weight_decay=0.3), 2)[0]
    with pytest.raises(AssertionError):
        agree(values[1], np.exp(-1.8) * values[0], 1e-3)


def test_local_channels_conserve_the_difference_of_their_factors():
    rule = rules.local(2)
    found = arrays_of(rule, 3, [0.0, 0.7, 2.0])
    for l in (1, 2):
        P, Q = found[f"P{l}"], found[f"Q{l}"]
        gram = Q @ Q.swapaxes(1, 2) - P @ P.swapaxes(1, 2)
        assert np.abs(gram - gram[0]).max() < 1e-10
        total = Q @ Q.swapaxes(1, 2) + P @ P.swapaxes(1, 2)
        assert np.abs(total - total[0]).max() > 1e-2


ALIGNED = mirrors.KolenPollack(start="aligned")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weak_modes_behind_a_fixed_channel_are_not_learned(seed):
    """The number of learned modes is that of the singular values of PA above weight decay, at the stated end point."""
    task, network = low_rank_teacher(8, 6, [3.0, 2.0, 1.5, 1.0]), LinearNetwork((8, 7, 6), SmallRandom(0.3))
    rule = rules.low_rank(3, reader=readers.Fixed(), mirror=ALIGNED)
    P = initial_state(task, network, rule, seed=seed)[0].channels[0].P
    _, s, right = np.linalg.svd(P @ task.teacher, full_matrices=False)
    weight_decay = np.sqrt(s[1] * s[2])
    found = simulate(task, network, rule, [80.0], seeds=seed, weight_decay=weight_decay, observe="network_map")
    shrunk = np.maximum(0.0, 1 - weight_decay / s)
    agree(found.network_map[0, 0], task.teacher @ (right.T * shrunk) @ right, 1e-4)
    learned = np.sum(np.linalg.svd(found.network_map[0, 0], compute_uv=False) > 1e-3)
    assert learned == 2
    with pytest.raises(AssertionError):
        agree(
            found.network_map[0, 0], task.teacher @ (right.T * np.maximum(0, 1 - 1.05 * weight_decay / s)) @ right, 1e-4
        )


def test_oja_on_labels_learns_the_leading_modes():
    task = low_rank_teacher(5, 4, [3.0, 2.0, 1.0])
    rule = rules.low_rank(2, reader=readers.Oja(on="labels", rate=2.0))
    network = LinearNetwork((5, 6, 4), Balanced(1e-3))
    observe = ("mode_strength", "task_overlap")
    found = simulate(task, network, rule, [20.0], weight_decay=1e-3, observe=observe)
    agree(found.mode_strength[0, 0], [3.0, 2.0, 0.0], 2e-3)
    agree(found.task_overlap[0, 0], 1.0, 1e-6)
    fixed = simulate(
        task, network, rules.low_rank(2, reader=readers.Fixed()), [20.0], weight_decay=1e-3, observe=observe
    )
    with pytest.raises(AssertionError):
        agree(fixed.mode_strength[0, 0], [3.0, 2.0, 0.0], 2e-3)


def test_without_feedback_only_the_readout_learns_by_regression_on_its_features():
    weights = [np.random.default_rng(0).standard_normal((3, 5)), np.zeros((4, 3))]
    network = LinearNetwork((5, 3, 4), Given(weights))
    method = Dop853(1e-7, 1e-10)
    own = {"first": lambda snap: snap.weights[0], "map": lambda snap: snap.map}
    found = simulate(TASK, network, rules.zero_feedback(), [0.0, 40.0], observe=own, method=method)
    assert np.array_equal(found.first[0, 1], weights[0])
    features = np.linalg.pinv(weights[0]) @ weights[0]
    agree(found["map"][0, 1], TASK.teacher @ features, 1e-5)
    learning = simulate(TASK, network, rules.kolen_pollack(), [0.0, 40.0], observe=own, method=method)
    with pytest.raises(AssertionError):
        agree(learning["map"][0, 1], TASK.teacher @ features, 1e-5)


def test_aligned_modes_are_logistic():
    times = np.linspace(0, 4, 9)
    found = simulate(TASK, LinearNetwork((5, 6, 4), Aligned(0.01)), rules.backpropagation(), times,
                     observe="mode_strength", method=TIGHT).mode_strength.values[0]  # fmt: skip
    s = TASK.singular_values
    growth = np.exp(2 * np.outer(times, s))
    agree(found, s * growth / (growth - 1 + s / 0.01), 1e-10)
    slower = np.exp(np.outer(times, s))
    with pytest.raises(AssertionError):
        agree(found, s * slower / (slower - 1 + s / 0.01), 1e-10)


def growth_of_the_visible_error(s, rank, ratio, mirror):
    """Tilt a channel at the top modes towards the next one, and return the rate at which what it sees grows."""
    task = low_rank_teacher(6, 5, s)
    left, right = task.left, task.right
    hidden = np.linalg.qr(np.random.default_rng(0).standard_normal((7, rank)))[0]
    root = np.sqrt(task.singular_values[:rank])
    P = left[:, :rank].T.copy()
    P[-1] = np.cos(1e-5) * left[:, rank - 1] + np.sin(1e-5) * left[:, rank]
    weights = [(hidden * root) @ right[:, :rank].T, (left[:, :rank] * root) @ hidden.T]
    reader = readers.Oja(rate=ratio * s[rank - 1] / s[rank] ** 2, start=P)
    own = {"seen": lambda snap: np.linalg.norm(snap.channels[0].P @ (task.teacher - snap.map), axis=(1, 2))}
    rule = rules.low_rank(rank, reader=reader, mirror=mirror)
    network = LinearNetwork((6, 7, 5), Given(weights))
    found = simulate(task, network, rule, [3.0, 6.0], observe=own, method=Dop853(1e-10, 1e-15))
    return float(np.log(found.seen[0, 1] / found.seen[0, 0])) / 3.0


@pytest.mark.parametrize("mirror", [mirrors.Exact(), ALIGNED], ids=["exact", "kolen_pollack"])
@pytest.mark.parametrize(("s", "rank"), [([3.0, 2.0, 1.0], 1), ([3.0, 2.0, 1.0], 2), ([4.0, 3.0, 2.0, 1.0], 2)])
def test_a_slow_reader_hides_what_is_left_and_a_fast_one_finds_it(s, rank, mirror):
    """Turning starts at a rate of s_r / s_{r+1}^2; near it the visible error grows as rate s_{r+1}^2 - s_r."""
    for ratio in (0.9, 0.97, 1.03, 1.1):
        rate = growth_of_the_visible_error(s, rank, ratio, mirror)
        expected = (ratio - 1) * s[rank - 1]
        assert abs(rate - expected) < 2e-3
        assert not abs(rate + expected) < 2e-3
