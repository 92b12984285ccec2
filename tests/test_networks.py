"""Starting weights: their scale, the invariant manifold, alignment to the task, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb import rules
from linfb.linear.simulation import initial_state
from linfb.networks import Aligned, Balanced, Given, LinearNetwork, SmallRandom, Start
from linfb.rules import mirrors, readers
from linfb.tasks import Task, low_rank_teacher
from tests.linear_cases import agree

TASK = low_rank_teacher(6, 4, [3.0, 2.0, 1.0])
ALIGNED = mirrors.KolenPollack(start="aligned")


def start_of(network, rule=None, task=TASK, seed=0):
    return initial_state(task, network, rule or rules.backpropagation(), seed=seed)[0]


def imbalance(state, readers_matter=True):
    """Return the largest violation of W_l W_l^T = W_{l+1}^T M_l W_{l+1}, relative to the weights."""
    worst = 0.0
    for below, above, channel in zip(state.weights, state.weights[1:], state.channels, strict=False):
        P = np.eye(len(above)) if channel.P is None or not readers_matter else np.sqrt(channel.gain) * channel.P
        difference = below @ below.T - above.T @ P.T @ P @ above
        worst = max(worst, np.abs(difference).max() / np.abs(above.T @ above).max())
    return worst


@pytest.mark.parametrize("widths", [(6, 5, 4), (6, 2, 4), (6, 8, 9, 4), (6, 3, 7, 5, 4)])
@pytest.mark.parametrize(
    "rule",
    [
        rules.backpropagation(),
        rules.low_rank(2, reader=readers.Fixed(), mirror=ALIGNED),
        rules.low_rank(3, reader=readers.Fixed("gaussian"), mirror=ALIGNED),
        rules.low_rank(0.5, reader=readers.Fixed(), mirror=ALIGNED, gain="full_rank"),
    ],
    ids=["backpropagation", "orthonormal", "gaussian", "gain"],
)
def test_balanced_starts_lie_on_the_rule_s_manifold(widths, rule):
    state = start_of(LinearNetwork(widths, Balanced(0.3)), rule)
    assert imbalance(state) < 1e-13
    assert all(np.any(W) for W in state.weights)
    assert imbalance(start_of(LinearNetwork(widths, SmallRandom(0.3)), rule)) > 0.1
    if rule.reader.compresses:
        assert imbalance(state, readers_matter=False) > 0.1


@given(widths=st.lists(st.integers(1, 6), min_size=1, max_size=4), rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_balanced_starts_of_any_widths(widths, rank, seed):
    rule = rules.low_rank(rank, reader=readers.Fixed(), mirror=ALIGNED)
    state = start_of(LinearNetwork((6, *widths, 4), Balanced()), rule, seed=seed)
    assert imbalance(state) < 1e-12


@pytest.mark.parametrize("widths", [(6, 5, 4), (6, 3, 7, 4), (6, 2, 4)])
def test_aligned_starts_have_the_strength_asked_for_in_every_mode(widths):
    weights = start_of(LinearNetwork(widths, Aligned(0.25))).weights
    modes = min(3, *widths[1:-1])
    product = weights[0]
    for W in weights[1:]:
        product = W @ product
    expected = 0.25 * TASK.left[:, :modes] @ TASK.right[:, :modes].T
    agree(product, expected, 1e-13)
    with pytest.raises(AssertionError):
        agree(product, 1.01 * expected, 1e-13)
    for below, above in pairwise(weights):
        agree(below @ below.T, above.T @ above, 1e-13)


def test_small_random_starts_have_the_stated_variance():
    network = LinearNetwork((50, 40, 30), SmallRandom(0.2))
    for W, fan_in in zip(start_of(network, task=Task(np.ones((30, 50)))).weights, (50, 40), strict=True):
        z = (np.mean(W**2) / (0.04 / fan_in) - 1) / np.sqrt(2 / W.size)
        assert abs(z) < 4
        assert abs((np.mean(W**2) / (0.04 / 30) - 1) / np.sqrt(2 / W.size)) > 4


def test_given_weights_are_copied():
    mine = [np.ones((5, 6)), np.ones((4, 5))]
    weights = start_of(LinearNetwork((6, 5, 4), Given(mine))).weights
    weights[0][0, 0] = 7.0
    assert mine[0][0, 0] == 1.0
    assert start_of(LinearNetwork((6, 5, 4), Given(mine))).weights[0][0, 0] == 1.0


def test_weights_depend_on_the_seed_but_not_on_the_channels_of_the_rule():
    network = LinearNetwork((6, 5, 4), SmallRandom())
    bp, again, low, other = (
        start_of(network, rule, seed=seed).weights[0]
        for rule, seed in ((None, 0), (None, 0), (rules.low_rank(2), 0), (None, 1))
    )
    assert np.array_equal(bp, again)
    assert np.array_equal(bp, low)
    assert not np.any(bp == other)


def test_zero_scale_gives_zero_weights():
    for start in (SmallRandom(0.0), Balanced(0.0), Aligned(0.0)):
        assert not any(np.any(W) for W in start_of(LinearNetwork((6, 5, 4), start)).weights)
        assert isinstance(start, Start)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LinearNetwork((6, 4)), ValueError, "widths must have at least three"),
        (lambda: LinearNetwork((6, 0, 4)), ValueError, r"widths\[1\] must be >= 1"),
        (lambda: LinearNetwork((6, 5.0, 4)), TypeError, r"widths\[1\] must be an integer"),
        (lambda: LinearNetwork((6, True, 4)), TypeError, r"widths\[1\]"),
        (lambda: LinearNetwork("654"), TypeError, "widths"),
        (lambda: LinearNetwork(6), TypeError, "widths"),
        (lambda: LinearNetwork((6, 5, 4), SmallRandom), TypeError, "start must be a start"),
        (lambda: LinearNetwork((6, 5, 4), "small"), TypeError, "start"),
        (lambda: SmallRandom(-1.0), ValueError, "scale"),
        (lambda: SmallRandom(True), TypeError, "scale"),
        (lambda: Balanced(np.nan), ValueError, "scale"),
        (lambda: Aligned(-0.1), ValueError, "strength"),
        (lambda: Given(1), TypeError, "weights must be a sequence of matrices"),
        (
            lambda: start_of(LinearNetwork((6, 5, 4), lambda *_: (np.ones((5, 6)),))),
            ValueError,
            r"start: weights have shapes \(\(5, 6\),\), expected",
        ),
        (lambda: Given([np.ones(3)]), ValueError, r"weights\[0\] has shape \(3,\)"),
        (lambda: Given([np.full((2, 2), np.nan)]), ValueError, r"weights\[0\]"),
        (lambda: Given([[["a"]]]), TypeError, r"weights\[0\]"),
        (
            lambda: start_of(LinearNetwork((6, 5, 4), Given([np.ones((5, 6)), np.ones((4, 6))]))),
            ValueError,
            r"weights have shapes .* expected \(\(5, 6\), \(4, 5\)\)",
        ),
        (lambda: LinearNetwork((5, 5, 4)).fits(TASK), ValueError, "expected 6 inputs, 4 outputs"),
        (lambda: LinearNetwork((6, 5, 3)).fits(TASK), ValueError, "do not fit the task"),
    ],
)
def test_bad_networks_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_given_weights_do_not_follow_later_changes_of_the_caller_s_arrays():
    mine = [np.ones((5, 6)), np.ones((4, 5))]
    given = Given(mine)
    mine[0][0] = 7.0
    assert np.array_equal(given.weights[0], np.ones((5, 6)))
