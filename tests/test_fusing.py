"""Layers in groups against the tuple as it was: the same numbers from fewer passes over memory."""

import numpy as np
import pytest

from linfb import rules
from linfb._threads import threads
from linfb.backend import Key
from linfb.engine import cross_entropy, decoder, mlp, vit
from linfb.engine.backward import backward
from linfb.engine.fusing import fused
from linfb.engine.layers import TokenEmbedding
from linfb.engine.layers.branches import Passed
from linfb.engine.models import evaluate, forward, initial_buffers, initial_weights
from linfb.engine.trees import flatten
from linfb.rules.channels import initial_channels

MODELS = {
    "mlp": mlp(7, (8, 6), 3, norm=None),
    "vit": vit((8, 8, 3), 5, width=12, depth=2, heads=3),  # with dropout, of which both draw the same
    "decoder": decoder(7, 5, width=8, depth=2, heads=2),
}


def passes(model, dtype, seed=0):
    """Return outputs, evaluated outputs and all gradients of one batch."""
    rng = np.random.default_rng(seed)
    weights = tuple(initial_weights(model, seed))
    moved = {path: value + 0.1 * rng.standard_normal(value.shape) for path, value in flatten(weights).items()}
    from linfb.engine.trees import rebuild

    weights = rebuild(weights, {path: value.astype(dtype) for path, value in moved.items()})
    tokens = isinstance(model.layers[0], TokenEmbedding)
    x = rng.integers(0, 5, (9, *model.shape)) if tokens else rng.standard_normal((9, *model.shape)).astype(dtype)
    targets = np.eye(model.n_out, dtype=dtype)[rng.integers(0, model.n_out, (9, *model.shapes[-1][:-1]))]
    kernels = [weights[i] for i in model.kernels]
    channels = initial_channels(rules.backpropagation(), [model.layers[i] for i in model.kernels], kernels, seed=0)
    outputs, caches = forward(model, weights, x, Key(seed))
    delta = cross_entropy(outputs, targets)[1]
    run = backward(model, rules.backpropagation(), weights, channels.channels, caches, delta, targets)
    return outputs, evaluate(model, weights, initial_buffers(model), x), flatten({"w": run.weights, "d": run.deltas})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_groups_compute_what_their_layers_do(name, dtype):
    model = MODELS[name]
    together = fused(model)
    assert any(isinstance(layer, Passed) for layer in together.layers)  # something was done
    assert together.kernels == model.kernels
    assert together.shapes[-1] == model.shapes[-1]
    with threads(2):
        apart, joined = passes(model, dtype), passes(together, dtype)
    tolerance = 50 * np.finfo(dtype).eps  # sums over 9 rows and some features, in another order
    for left, right in zip(apart[:2], joined[:2], strict=True):
        assert np.allclose(left, right, rtol=0, atol=tolerance)
    assert apart[2].keys() == joined[2].keys()
    for path, left in apart[2].items():
        assert np.allclose(left, joined[2][path], rtol=0, atol=tolerance), path
    other = passes(together, dtype, seed=1)  # control: other numbers are far off
    assert not np.allclose(apart[0], other[0], rtol=0, atol=1e3 * tolerance)
