"""The engine's full-batch gradient step on a task's moment set is the Euler step of the linear flow."""

import numpy as np
import pytest

import linfb
from linfb import rules
from linfb.engine import Dense, Model, Optimizers, sgd, squared_error
from linfb.engine.state import State, step
from linfb.linear import Euler
from linfb.linear.flow import flow
from linfb.linear.simulation import initial_state
from linfb.rules import mirrors, readers

RULES = {
    "backpropagation": rules.backpropagation(),
    "zero": rules.zero_feedback(),
    "feedback alignment": rules.feedback_alignment(),
    "rank-2 feedback alignment": rules.feedback_alignment(rank=2),
    "Kolen-Pollack": rules.kolen_pollack(),
    "weight mirror": rules.weight_mirror(),
    "direct": rules.direct_feedback_alignment(),
    "Oja on errors": rules.low_rank(2, reader=readers.Oja(rate=3.0), gain="full_rank"),
    "Oja on labels": rules.low_rank(2, reader=readers.Oja(on="labels")),
    "perfect mirror": rules.low_rank(2, mirror=mirrors.Exact()),
    "direct low-rank": rules.direct_low_rank(2),
    "local": rules.local(2),
    "normative": rules.normative(2),
}
TASKS = {
    "whitened": linfb.low_rank_teacher(7, 4, [3.0, 2.0, 1.0]),
    "correlated and noisy": linfb.low_rank_teacher(
        7, 4, [3.0, 2.0, 1.0], label_noise=0.3, input_covariance=np.diag([3.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.0])
    ),
}


def engine_step(rule, state, inputs, labels, rate, weight_decay):
    """Take one engine step from a linear state and return the new weights and channels."""
    model = Model(tuple(Dense(W.shape[1], W.shape[0]) for W in state.weights))
    optimisers = Optimizers(sgd(rate, weight_decay=weight_decay))
    copied = [W.copy() for W in state.weights]
    channels = tuple(
        channel._replace(
            **{key: array.copy() for key, array in (("P", channel.P), ("Q", channel.Q)) if array is not None}
        )
        for channel in state.channels
    )
    learning = {"weights": True, "Q": rule.mirror.learns, "P": rule.reader.learns}
    parts = optimisers.parts(rule)
    slots = {f"weights/{l}": parts["W"].optimiser.init(W) for l, W in enumerate(copied)}
    for l, channel in enumerate(channels, start=1):
        for key in ("P", "Q"):
            if learning[key]:
                slots[f"channels/{l}/{key}"] = parts[key].optimiser.init(getattr(channel, key))
    start = State(tuple(copied), (None,) * len(copied), (None, *channels), slots)
    after, _, _ = step(model, rule, squared_error, optimisers, start, inputs, labels, number=1)
    return after


def distance(rule, before, velocity, after, rate):
    """Largest difference of the engine's arrays from state + rate * velocity, and the largest move."""
    errors, moves = [0.0], [0.0]
    pairs = list(zip(before.weights, velocity.weights, after.weights, strict=True))
    for old, speed, new in zip(before.channels, velocity.channels, after.channels[1:], strict=True):
        pairs += [
            (getattr(old, k), getattr(speed, k), getattr(new, k)) for k in ("P", "Q") if getattr(speed, k) is not None
        ]
    for old, speed, new in pairs:
        errors.append(np.abs(new - (old + rate * speed)).max())
        moves.append(np.abs(new - old).max())
    return max(errors), max(moves)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("widths", [(7, 6, 4), (7, 6, 5, 4)], ids=["depth 2", "depth 3"])
def test_engine_step_is_the_euler_step_of_the_flow(task, rule, widths):
    state, _ = initial_state(task, linfb.LinearNetwork(widths, linfb.SmallRandom(1.0)), rule, seed=3)
    inputs, labels = task.moment_set()
    after = engine_step(rule, state, inputs, labels, 0.1, 0.05)
    error, move = distance(rule, state, flow(rule, 0.05, state, inputs, labels), after, 0.1)
    assert move > 1e-3
    assert error < 1e-12
    other, _ = distance(rule, state, flow(rule, 0.0, state, inputs, labels), after, 0.1)
    assert other > 1e-4  # without weight decay it is another step


def test_many_engine_steps_are_simulate_under_euler():
    task, rule = TASKS["whitened"], RULES["Oja on errors"]
    network = linfb.LinearNetwork((7, 6, 5, 4), linfb.SmallRandom(0.3))
    state, _ = initial_state(task, network, rule, seed=0)
    inputs, labels = np.sqrt(7) * np.eye(7), np.sqrt(7) * task.Sigma_yx.T  # the theory's equivalent data
    for _ in range(50):
        after = engine_step(rule, state, inputs, labels, 0.02, 0.01)
        state = type(state)(after.weights, after.channels[1:])
    engine_map = state.weights[2] @ state.weights[1] @ state.weights[0]
    simulated = linfb.simulate(
        task, network, rule, [1.0], weight_decay=0.01, method=Euler(0.02), observe="network_map"
    )["network_map"].values[0, 0]
    assert np.abs(engine_map).max() > 0.1
    assert np.abs(engine_map - simulated).max() < 1e-12
