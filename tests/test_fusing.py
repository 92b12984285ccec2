"""Layers in groups against the tuple as it was: the same numbers from fewer passes over memory."""

import numpy as np
import pytest

from linfb import rules
from linfb._threads import threads
from linfb.backend import Key
from linfb.engine import cross_entropy, decoder, mlp, resnet20, retina, vgg_like, vit
from linfb.engine.backward import backward
from linfb.engine.fusing import BiasReLU, BiasReLUPool, NormReLU, NormReLUPool, fused
from linfb.engine.layers import BatchNorm, Bias, Conv2d, Dense, MaxPool2d, ReLU, TokenEmbedding
from linfb.engine.layers.branches import Passed
from linfb.engine.models import Model, evaluate, forward, initial_buffers, initial_weights
from linfb.engine.trees import flatten, rebuild
from linfb.kernels import cpu_fused, cpu_norms
from linfb.rules.channels import initial_channels

MODELS = {
    "mlp": mlp(7, (8, 6), 3, norm=None),
    "mlp with batch norm": mlp(7, (8, 6), 3),
    "vgg": vgg_like((9, 6, 2), 3, widths=(8, 9), dense=5, dropout=0.0, norm=None),
    "vgg with batch norm": vgg_like((9, 6, 2), 3, widths=(8, 9), dense=5, dropout=0.0),
    "resnet": resnet20((8, 8, 2), 3, width=2),
    "retina": retina((6, 6, 1), 3, width=3, bottleneck=2, size=3, dense=5, norm="batch"),
    "vit": vit((8, 8, 3), 5, width=12, depth=2, heads=3),  # with dropout, of which both draw the same
    "decoder": decoder(7, 5, width=8, depth=2, heads=2),
}


def passes(model, dtype, seed=0):
    """Return outputs, evaluated outputs and all gradients of one batch."""
    rng = np.random.default_rng(seed)
    weights = tuple(initial_weights(model, seed))
    moved = {path: value + 0.1 * rng.standard_normal(value.shape) for path, value in flatten(weights).items()}
    weights = rebuild(weights, {path: value.astype(dtype) for path, value in moved.items()})
    tokens = isinstance(model.layers[0], TokenEmbedding)
    x = rng.integers(0, 5, (9, *model.shape)) if tokens else rng.standard_normal((9, *model.shape)).astype(dtype)
    targets = np.eye(model.n_out, dtype=dtype)[rng.integers(0, model.n_out, (9, *model.shapes[-1][:-1]))]
    kernels = [weights[i] for i in model.kernels]
    channels = initial_channels(rules.backpropagation(), [model.layers[i] for i in model.kernels], kernels, seed=0)
    outputs, caches = forward(model, weights, x, Key(seed))
    delta = cross_entropy(outputs, targets)[1]
    run = backward(model, rules.backpropagation(), weights, channels.channels, caches, delta, targets)
    start = initial_buffers(model)
    buffers = tuple(
        None if buffer is None else layer.update_buffers(buffer, cache)
        for layer, buffer, cache in zip(model.layers, start, caches, strict=True)
    )
    found = {"weights": run.weights, "deltas": run.deltas, "buffers": buffers}
    return outputs, evaluate(model, weights, start, x), flatten(found)


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
    if not any(isinstance(layer, BatchNorm) for layer in model.layers):
        exact = (apart[0] == joined[0]).all()  # an offset, a rectifier and the largest of four change no bits
        assert exact or name.startswith("vgg")  # an average may
    other = passes(together, dtype, seed=1)  # control: other numbers are far off
    assert not np.allclose(apart[0], other[0], rtol=0, atol=1e3 * tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_bits_do_not_depend_on_threads(name, monkeypatch):
    for module in (cpu_fused, cpu_norms):
        monkeypatch.setattr(module, "SLICE", 64)  # several slices
    results = []
    for n in (1, 2, 3):
        with threads(n):
            outputs, _, found = passes(fused(MODELS[name]), "float32")
            results.append([outputs, *found.values()])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    monkeypatch.undo()
    _, _, found = passes(fused(MODELS[name]), "float32")  # control: other sums are other bits
    alike = all(np.array_equal(a, b) for a, b in zip(results[0][1:], found.values(), strict=True))
    assert not alike or name == "mlp"  # nine rows are hardly cut


def test_groups_are_made_of_what_follows_each_other():
    layers = (Dense(3, 4), Bias(4), ReLU(), BatchNorm(4), Dense(4, 2))
    assert fused(Model(layers)).layers == (Dense(3, 4), BiasReLU((Bias(4), ReLU())), Passed(), *layers[3:])
    for pool, kind in ((MaxPool2d(2), NormReLUPool), (MaxPool2d(3), NormReLU), (MaxPool2d(2, 1), NormReLU)):
        model = fused(Model((Conv2d(1, 2, 3), BatchNorm(2), ReLU(), pool), (7, 7, 1)))
        assert type(model.layers[1]) is kind
        assert model.shapes[-1] == (*pool.out_shape((5, 5, 2))[:2], 2)
    with pytest.raises(ValueError, match="at least 2 rows"):
        fused(Model((Dense(3, 4), BatchNorm(4), ReLU()))).layers[1].forward({"gain": np.ones(4)}, np.ones((1, 4)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pooling_in_a_group_shows_what_is_not_a_number_and_prefers_the_first_of_equals(dtype):
    x = np.ones((1, 4, 5, 1), dtype)
    x[0, 1, 3] = np.nan
    weights, delta = np.zeros(1, dtype), np.full((1, 2, 2, 1), 7, dtype)
    layers = (Bias(1), ReLU(), MaxPool2d(2))
    group = BiasReLUPool(layers)
    y, cache = group.forward(weights, x)
    total, dx = group.grad_pull(weights, cache, delta)
    assert np.isnan(y[0, 0, 1, 0])
    assert np.isfinite(y).sum() == 3
    expected, caches = x, []
    for layer in layers:
        expected, kept = layer.forward(weights if layer is layers[0] else None, expected)
        caches.append(kept)
    for layer, kept in zip(layers[:0:-1], caches[:0:-1], strict=True):
        delta = layer.pull(None, kept, delta)
    assert np.array_equal(y, expected, equal_nan=True)
    assert np.array_equal(dx, delta)
    assert total == delta.sum() == 21


def test_sums_over_many_rows_keep_single_precision():
    x = 30 + np.random.default_rng(0).standard_normal((1 << 17, 3)).astype(np.float32)
    ones, group = np.full_like(x, 0.1), NormReLU((BatchNorm(3), ReLU()))
    weights = {"gain": np.ones(3, np.float32), "shift": np.full(3, 50, np.float32)}  # all outputs are positive
    y, cache = group.forward(weights, x)
    found, dx = group.grad_pull(weights, cache, ones)
    exact = x.astype(np.float64)
    assert np.allclose(cache[0].mean, exact.mean(0), rtol=2e-7)
    assert np.allclose(cache[0].variance, exact.var(0), rtol=2e-6)
    assert np.allclose(found["shift"], 0.1 * len(x), rtol=2e-7)
    assert np.abs(dx).max() < 1e-6  # an error that is the same everywhere moves the mean alone
    assert np.abs(y - 50 - (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)).max() < 1e-5  # 2e-6 each of 30, 50
    assert not np.allclose(x.sum(0) / len(x), exact.mean(0) + 1e-4, rtol=2e-7)
