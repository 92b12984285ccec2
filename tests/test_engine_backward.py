"""The way back: exact gradients, exact identities between rules, every rule in every cell, other array libraries."""

from itertools import pairwise

import array_api_strict
import numpy as np
import pytest

from linfb import rules
from linfb.backend import to_numpy
from linfb.engine import Dense, Model, Optimizers, adam, amsgrad, cross_entropy, mlp, sgd, squared_error
from linfb.engine.backward import backward
from linfb.engine.models import forward, initial_weights
from linfb.engine.state import initial_state, step
from linfb.engine.trees import flatten, rebuild
from linfb.rules import Channel, mirrors, readers

EVERY_RULE = {
    "bp": rules.backpropagation(),
    "zero": rules.zero_feedback(),
    "fa": rules.feedback_alignment(),
    "fa-rank": rules.feedback_alignment(rank=3),
    "kp": rules.kolen_pollack(),
    "weight-mirror": rules.weight_mirror(),
    "dfa": rules.direct_feedback_alignment(),
    "low-rank": rules.low_rank(3),
    "low-rank labels": rules.low_rank(3, reader=readers.Oja(on="labels")),
    "low-rank normalised": rules.low_rank(3, reader=readers.Oja(covariance="normalised")),
    "low-rank fixed P": rules.low_rank(3, reader=readers.Fixed()),
    "low-rank perfect": rules.low_rank(3, mirror=mirrors.Exact()),
    "low-rank weight mirror": rules.low_rank(3, mirror=mirrors.WeightMirror()),
    "low-rank gain": rules.low_rank(3, gain="full_rank"),
    "direct-low-rank": rules.direct_low_rank(3),
    "local": rules.local(3),
    "local direct": rules.Rule("x", "network", readers.Local(), mirrors.KolenPollack(), 2),
    "normative": rules.normative(3),
}


def setting(rule, widths=(7, 8, 6), n_out=6, n_in=5, batch=9, norm="batch", seed=0):
    model, rng = mlp(n_in, widths, n_out, norm=norm), np.random.default_rng(seed)
    state, _ = initial_state(model, rule, Optimizers(sgd(0.1)), seed, np.array)
    weights = rebuild(
        state.weights, {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in flatten(state.weights).items()}
    )
    x, targets = rng.standard_normal((batch, n_in)), np.eye(n_out)[rng.integers(0, n_out, batch)]
    return model, weights, state.channels, x, targets


def gradients(model, rule, weights, channels, x, targets, loss=cross_entropy, **options):
    outputs, caches = forward(model, weights, x)
    return backward(model, rule, weights, channels, caches, loss(outputs, targets)[1], targets, **options)


def same(a, b):
    a, b = flatten(a), flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("norm", ["batch", None])
def test_backpropagation_is_the_gradient(norm):
    rule = rules.backpropagation()
    model, weights, channels, x, targets = setting(rule, norm=norm)
    exact = flatten(gradients(model, rule, weights, channels, x, targets).weights)
    rng, flat = np.random.default_rng(1), flatten(weights)
    h = 1e-4
    for path, value in flat.items():
        direction = rng.standard_normal(value.shape)

        def loss(t, path=path, direction=direction):
            moved = rebuild(weights, flat | {path: flat[path] + t * direction})
            return cross_entropy(forward(model, moved, x)[0], targets)[0]

        slope = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        scale = np.linalg.norm(exact[path]) * np.linalg.norm(direction)
        assert abs(slope - np.sum(exact[path] * direction)) <= 1e-7 * scale, path


def test_feedback_alignment_through_the_weights_is_backpropagation_bit_for_bit():
    bp, fa = rules.backpropagation(), rules.feedback_alignment()
    model, weights, channels, x, targets = setting(bp)
    kernels = [weights[i] for i in model.kernels]
    through = (None, *(Channel(Q=kernel.copy()) for kernel in kernels[1:]))
    exact = gradients(model, bp, weights, channels, x, targets)
    assert same(exact.weights, gradients(model, fa, weights, through, x, targets).weights)
    # negative control: a random kernel is far off
    random = setting(fa)[2]
    off = gradients(model, fa, weights, random, x, targets).weights[0]
    assert np.linalg.norm(off - exact.weights[0]) > 0.5 * np.linalg.norm(exact.weights[0])


def test_low_rank_with_the_identity_and_the_weights_is_backpropagation_bit_for_bit():
    bp = rules.backpropagation()
    whole = rules.low_rank(6, reader=readers.Fixed(start=np.eye(6)), mirror=mirrors.Fixed(start="weights"))
    model = mlp(5, (6, 6), 6)
    state, _ = initial_state(model, whole, Optimizers(sgd(0.1)), 0, np.array)
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((9, 5)), np.eye(6)[rng.integers(0, 6, 9)]
    exact = gradients(model, bp, state.weights, (None, Channel(), Channel()), x, targets)
    assert same(exact.weights, gradients(model, whole, state.weights, state.channels, x, targets).weights)
    less = rules.low_rank(5, reader=readers.Fixed(), mirror=mirrors.Fixed(start="weights"))
    state, _ = initial_state(model, less, Optimizers(sgd(0.1)), 0, np.array)
    off = gradients(model, less, state.weights, state.channels, x, targets).weights[0]
    assert np.linalg.norm(off - exact.weights[0]) > 0.05 * np.linalg.norm(exact.weights[0])


def test_direct_feedback_injects_the_networks_error_at_each_block_output():
    rule = rules.direct_feedback_alignment()
    model, weights, channels, x, targets = setting(rule)
    outputs, caches = forward(model, weights, x)
    error = cross_entropy(outputs, targets)[1]
    run = backward(model, rule, weights, channels, caches, error, targets)
    for k, (i, above) in enumerate(pairwise(model.kernels)):
        carried = error @ channels[k + 1].Q  # lands on the block output: pulled through ReLU, then normalisation
        for j in (above - 1, above - 2):
            carried = model.layers[j].pull(weights[j], caches[j], carried)
        assert np.array_equal(run.weights[i], carried.T @ caches[i])


@pytest.mark.parametrize("name", EVERY_RULE)
def test_every_rule_takes_steps_that_lower_the_loss_or_at_least_stay_finite(name):
    rule = EVERY_RULE[name]
    model, optimisers = mlp(5, (7, 8, 6), 6), Optimizers(adam(3e-3))
    state, drawn = initial_state(model, rule, optimisers, 0, np.array)
    _, _, _, x, targets = setting(rule, batch=30)
    before = {k: v.copy() for k, v in flatten(state._replace(slots={})).items()}
    losses = []
    for number in range(1, 41):
        state, loss, _ = step(model, rule, cross_entropy, optimisers, state, x, targets, number=number)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.05
    after = flatten(state._replace(slots={}))
    moved = {k for k in after if not np.array_equal(after[k], before[k])}
    assert all(np.all(np.isfinite(v)) for v in after.values())
    for k in (1, 2, 3):
        for letter, part in (("P", rule.reader), ("Q", rule.mirror)):
            if f"channels/{k}/{letter}" in after:
                assert (f"channels/{k}/{letter}" in moved) == part.learns
    assert drawn.ranks.keys() == {1, 2, 3}


@pytest.mark.parametrize(("decay", "unchanged"), [(0.0, True), (0.01, False)])
def test_zero_feedback_leaves_hidden_weights_alone_but_for_decay(decay, unchanged):
    rule, optimisers = rules.zero_feedback(), Optimizers(sgd(0.1, weight_decay=decay))
    model, _, _, x, targets = setting(rule)
    state, _ = initial_state(model, rule, optimisers, 0, np.array)
    start = initial_weights(model, 0)
    for number in range(1, 4):
        state, _, _ = step(model, rule, squared_error, optimisers, state, x, targets, number=number)
    assert all(np.array_equal(state.weights[i], start[i]) == unchanged for i in model.kernels[:-1])
    if not unchanged:
        assert np.allclose(state.weights[0], start[0] * (1 - 0.1 * decay) ** 3, rtol=1e-14)
    assert not np.array_equal(state.weights[-2], start[-2])


def test_linear_network_step_is_the_euler_step_of_the_flow():
    """With X = sqrt(n) I and Y = sqrt(n) A.T a full-batch gradient step is an Euler step of the population flow."""
    rng, eta, decay = np.random.default_rng(3), 0.05, 0.02
    n, k, m, r = 5, 4, 3, 2
    A, rule = rng.standard_normal((m, n)), rules.low_rank(r, reader=readers.Fixed())
    model = Model((Dense(n, k), Dense(k, m)))
    optimisers = Optimizers(sgd(eta, weight_decay=decay))
    state, _ = initial_state(model, rule, optimisers, 0, np.array)
    W1, W2 = (w.copy() for w in state.weights)
    P, Q = state.channels[1].P.copy(), state.channels[1].Q.copy()
    X, Y = np.sqrt(n) * np.eye(n), np.sqrt(n) * A.T
    state, _, _ = step(model, rule, squared_error, optimisers, state, X, Y, number=1)
    E = A - W2 @ W1
    assert np.allclose(state.weights[0], W1 + eta * (Q.T @ P @ E - decay * W1), rtol=0, atol=1e-12)
    assert np.allclose(state.weights[1], W2 + eta * (E @ W1.T - decay * W2), rtol=0, atol=1e-12)
    assert np.allclose(state.channels[1].Q, Q + eta * (P @ E @ W1.T - decay * Q), rtol=0, atol=1e-12)
    assert np.array_equal(state.channels[1].P, P)
    assert not np.allclose(state.weights[0], W1 + eta * (W2.T @ E - decay * W1), rtol=0, atol=1e-6)  # not BP


def test_error_clip_bounds_every_carried_error():
    rule = rules.feedback_alignment(mirror=mirrors.Fixed(scale=10.0))
    model = Model((Dense(5, 6), Dense(6, 7), Dense(7, 4)))
    state, _ = initial_state(model, rule, Optimizers(sgd(0.1)), 0, np.array)
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((9, 5)), np.eye(4)[rng.integers(0, 4, 9)]
    free = gradients(model, rule, state.weights, state.channels, x, targets)
    clipped = gradients(model, rule, state.weights, state.channels, x, targets, error_clip=0.1)
    assert all(np.abs(delta).max() > 0.1 for delta in free.deltas[:-1])
    assert all(np.abs(delta).max() == 0.1 for delta in clipped.deltas[:-1])
    assert np.array_equal(free.deltas[-1], clipped.deltas[-1])


@pytest.mark.parametrize("name", EVERY_RULE)
@pytest.mark.parametrize("optimizer", [amsgrad(1e-2, weight_decay=1e-3), sgd(0.1, momentum=0.9, nesterov=True)])
def test_training_steps_run_under_the_strict_array_api_and_agree(name, optimizer):
    rule, optimisers = EVERY_RULE[name], Optimizers(optimizer)
    model, _, _, x, targets = setting(rule)
    results = []
    for place in (np.array, lambda a: array_api_strict.asarray(np.array(a))):
        state, _ = initial_state(model, rule, optimisers, 0, place)
        for number in (1, 2):
            state, loss, _ = step(
                model,
                rule,
                cross_entropy,
                optimisers,
                state,
                place(x),
                place(targets),
                number=number,
                error_clip=1.0,
            )
        results.append({k: to_numpy(v) for k, v in flatten(state).items()} | {"loss": np.asarray(float(loss))})
    numpy_result, strict_result = results
    assert numpy_result.keys() == strict_result.keys()
    for path, value in numpy_result.items():
        assert np.allclose(strict_result[path], value, rtol=1e-12, atol=1e-12), path


def test_arrays_of_two_libraries_are_refused():
    rule = rules.backpropagation()
    model, weights, _, x, targets = setting(rule)
    outputs, _ = forward(model, weights, x)
    with pytest.raises(TypeError, match="different libraries"):
        cross_entropy(outputs, array_api_strict.asarray(targets))
