"""The examples of how to add a rule and a layer: short, right, and usable everywhere."""

import importlib.util
from pathlib import Path

import array_api_strict
import numpy as np
import pytest

import linfb
from linfb import rules
from linfb.backend import to_numpy
from linfb.engine import Conv2d, Dense, Flatten, Model, Optimizers, ReLU, cross_entropy, sgd
from linfb.engine.backward import backward
from linfb.engine.models import forward
from linfb.engine.state import initial_state

EXAMPLES = sorted((Path(__file__).parent.parent / "docs" / "examples").glob("*.py"))


def example(name):
    path = next(path for path in EXAMPLES if path.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_is_one_file_of_less_than_forty_lines():
    assert [path.stem for path in EXAMPLES] == ["own_experiment", "own_layer", "own_rule"]
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 40


def test_the_rule_carries_errors_through_its_sparse_kernels_on_every_layer():
    rule = example("own_rule").sparse_feedback(0.3)
    model = Model((Conv2d(2, 4, 3), ReLU(), Conv2d(4, 6, 3), ReLU(), Flatten(), Dense(24, 5)), (6, 6, 2))
    state, _ = initial_state(model, rule, Optimizers(sgd(0.1)), 0, np.array)
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((8, 6, 6, 2)), np.eye(5)[rng.integers(0, 5, 8)]
    outputs, caches = forward(model, state.weights, x)
    delta = cross_entropy(outputs, targets)[1]
    run = backward(model, rule, state.weights, state.channels, caches, delta, targets)
    Q = state.channels[2].Q
    assert 0.1 < np.mean(Q != 0) < 0.5
    carried = (delta @ Q).reshape(8, 2, 2, 6) * (caches[4] if isinstance(caches[4], np.ndarray) else caches[3])
    assert np.allclose(run.deltas[1], carried, rtol=0, atol=1e-15)
    exact = backward(model, rules.backpropagation(), state.weights, (None, *[rules.Channel()] * 2), caches, delta)
    assert not np.allclose(run.deltas[1], exact.deltas[1], rtol=0, atol=1e-3 * np.abs(exact.deltas[1]).max())


def test_the_rule_learns_in_linear_networks():
    rule = example("own_rule").sparse_feedback(0.5)
    task = linfb.low_rank_teacher(12, 8, singular_values=[3.0, 2.0], seed=0)
    run = linfb.simulate(task, linfb.LinearNetwork((12, 16, 8)), rule, times=np.linspace(0, 20, 5), seeds=[0])
    losses = run["loss"].values.ravel()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("xp", [np, array_api_strict])
def test_the_layer_has_the_adjoints_of_its_derivatives(xp):
    rng, layer = np.random.default_rng(0), example("own_layer").RootMeanSquare(5)
    x, v, delta = (rng.standard_normal((4, 3, 5)) for _ in range(3))
    gain, change = rng.standard_normal(5), rng.standard_normal(5)

    def output(gain, x):
        return to_numpy(layer.forward(xp.asarray(gain), xp.asarray(x))[0])

    cache = layer.forward(xp.asarray(gain), xp.asarray(x))[1]
    moved = np.sum(delta * (output(gain, x + 1e-6 * v) - output(gain, x - 1e-6 * v)) / 2e-6)
    pulled = to_numpy(layer.pull(xp.asarray(gain), cache, xp.asarray(delta)))
    assert np.isclose(np.sum(pulled * v), moved, rtol=1e-7)
    assert not np.isclose(np.sum(pulled * v) + np.sum(1e-3 * v), moved, rtol=1e-7)
    slope = to_numpy(layer.grad(xp.asarray(gain), cache, xp.asarray(delta)))
    assert np.isclose(np.sum(slope * change), np.sum(delta * output(change, x)), rtol=1e-12)
