"""Whole networks: shapes, branches, exact identities under all rules, bits, and that each architecture can be made."""

import array_api_strict
import numpy as np
import pytest

from linfb import engine, rules
from linfb._threads import threads
from linfb.backend import Key, to_numpy
from linfb.engine import (
    BatchNorm,
    Bias,
    Conv2d,
    Dense,
    Flatten,
    GlobalAveragePool,
    LayerNorm,
    Model,
    Optimizers,
    ReLU,
    adam,
    cross_entropy,
    decoder,
    residual,
    resnet18,
    resnet20,
    retina,
    sgd,
    vgg_like,
    vit,
)  # fmt: skip
from linfb.engine.backward import backward, pathways
from linfb.engine.layers.direct import Direct
from linfb.engine.losses import one_hot
from linfb.engine.models import evaluate, forward, initial_weights
from linfb.engine.state import initial_state, step
from linfb.engine.trees import flatten
from linfb.rules import mirrors, readers
from tests.blas_cases import rows_alike

SHAPE = (8, 8, 2)


def convolutional(norm=Bias):
    branch = (Conv2d(5, 6, 3, stride=2, padding=1), norm(6), ReLU(), Conv2d(6, 6, 3, padding=1))
    return Model(
        (Conv2d(2, 5, 3, padding=1), norm(5), ReLU(), *residual(*branch, shortcut=(Conv2d(5, 6, 1, stride=2),)),
         ReLU(), GlobalAveragePool(), Dense(6, 4), Bias(4)),
        SHAPE,
    )  # fmt: skip


def transformer(dropout=0.0):
    return vit(SHAPE, 4, patch=4, width=6, depth=2, heads=2, dropout=dropout, drop_path=dropout)


NETWORKS = {
    "convolutional": convolutional,
    "vit": transformer,
    "decoder": lambda: decoder(6, 5, width=6, depth=1, heads=2),
}
RULES = {
    "bp": rules.backpropagation(),
    "fa": rules.feedback_alignment(),
    "low-rank": rules.low_rank(2),
    "dfa": rules.direct_feedback_alignment(),
    "direct": rules.direct_low_rank(2),
    "local": rules.local(2),
    "weight mirror": rules.low_rank(2, mirror=mirrors.WeightMirror()),
    "zero": rules.zero_feedback(),
}


def batch(model, rows=7, dtype="float64"):
    rng = np.random.default_rng(3)
    if len(model.shape) == 1:
        x, labels = rng.integers(0, 5, (rows, *model.shape)), rng.integers(0, 5, (rows, *model.shape))
    else:
        x, labels = rng.standard_normal((rows, *model.shape)).astype(dtype), rng.integers(0, 4, rows)
    return x, one_hot(labels, model.n_out, like=np.zeros(1, dtype))


def start(model, rule, optimiser=None, dtype="float64"):
    def place(a):
        return np.array(a, dtype=dtype if np.asarray(a).dtype.kind == "f" else None)

    return initial_state(model, rule, optimiser or Optimizers(sgd(0.1)), 0, place)[0]


def passed(model, rule, state, x, targets):
    outputs, caches = forward(model, state.weights, x, Key(0))
    delta = cross_entropy(outputs, targets)[1]
    return outputs, backward(model, rule, state.weights, state.channels, caches, delta, targets, key=Key(1))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(flatten(a).values(), flatten(b).values(), strict=True))


# shapes and branches


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ((ReLU(),), (3,), "at least one kernel layer"),
        ((Dense(3, 4), Dense(5, 2)), (), "layer 1 does not fit the one below.*takes 5 features"),
        ((Bias(3), Dense(3, 2)), (), "cannot learn below the first kernel layer"),
        ((Dense(3, 4), *residual(Dense(4, 5))), (), r"layer 3 .*two ways have shapes \(5,\) and \(4,\)"),
        ((Dense(3, 4), residual()[1]), (), "layer 1, Join.*no Fork"),
        ((Dense(3, 4), residual()[0]), (), "1 Fork without a Join"),
        ((Conv2d(3, 4, 3), Flatten(), Dense(4, 2)), (8, 8, 3), "layer 2 does not fit"),
        ((Conv2d(3, 4, 9),), (8, 8, 3), "layer 0 does not fit"),
    ],
)
def test_networks_that_do_not_fit_are_refused(layers, shape, message):
    with pytest.raises(ValueError, match=message):
        Model(layers, shape)


def test_a_residual_network_is_the_sum_it_says():
    rng, layer = np.random.default_rng(0), Dense(4, 4)
    model = Model((layer, *residual(layer, ReLU(), shortcut=(layer,)), *residual(ReLU())))
    A, B, C = rng.standard_normal((3, 4, 4))
    weights = [None] * len(model.layers)
    for i, W in zip(model.kernels, (A, B, C), strict=True):
        weights[i] = W
    x = rng.standard_normal((5, 4))
    h = x @ A.T
    h = np.maximum(h @ B.T, 0) + h @ C.T
    h = h + np.maximum(h, 0)
    assert np.allclose(forward(model, weights, x)[0], h, rtol=0, atol=1e-13)
    assert np.allclose(evaluate(model, weights, [None] * len(weights), x), h, rtol=0, atol=1e-13)
    assert not np.allclose(forward(model, weights, x)[0], h + x)


@pytest.mark.parametrize("network", NETWORKS)
def test_backpropagation_is_the_gradient(network):
    model, rule, eps = NETWORKS[network](), rules.backpropagation(), 1e-6
    state, (x, targets) = start(model, rule), batch(model)
    _, run = passed(model, rule, state, x, targets)
    rng, checked = np.random.default_rng(0), 0
    for i, gradient in enumerate(run.weights):
        for path, slope in flatten({"g": gradient}).items():
            value = flatten({"g": state.weights[i]})[path]
            change = rng.standard_normal(value.shape)
            losses = []
            for sign in (1, -1):
                value += sign * eps * change
                losses.append(cross_entropy(forward(model, state.weights, x, Key(0))[0], targets)[0])
                value -= sign * eps * change
            moved = (losses[0] - losses[1]) / (2 * eps)
            assert abs(np.sum(slope * change) - moved) < 1e-7 * max(1e-2, abs(moved)), (i, path)
            checked += 1
    assert checked > 5
    zero = passed(model, rules.zero_feedback(), start(model, rules.zero_feedback()), x, targets)[1]
    first = model.kernels[0]
    assert np.abs(zero.weights[first] - run.weights[first]).max() > 1e-4


# exact identities


@pytest.mark.parametrize("network", NETWORKS)
def test_feedback_through_the_weights_themselves_is_backpropagation_bit_for_bit(network):
    model, bp = NETWORKS[network](), rules.backpropagation()
    x, targets = batch(model)
    _, exact = passed(model, bp, start(model, bp), x, targets)
    copies = {
        "fa": rules.feedback_alignment(mirror=mirrors.Fixed(start="weights")),
        "kp": rules.kolen_pollack(mirror=mirrors.KolenPollack(start="aligned")),
        "no layer": rules.low_rank(2, layers=()),
    }
    for rule in copies.values():
        _, run = passed(model, rule, start(model, rule), x, targets)
        assert same(run.weights, exact.weights)
    _, random = passed(model, RULES["fa"], start(model, RULES["fa"]), x, targets)
    first = model.kernels[0]
    cosine = np.sum(random.weights[first] * exact.weights[first])
    cosine /= np.linalg.norm(random.weights[first]) * np.linalg.norm(exact.weights[first])
    assert cosine < 0.9


@pytest.mark.parametrize("network", NETWORKS)
def test_a_channel_as_wide_as_the_error_is_backpropagation(network):
    model, bp = NETWORKS[network](), rules.backpropagation()
    (x, targets), widest = batch(model), 64
    full = rules.Rule("wide", "above", readers.Fixed(), mirrors.Exact(), {
        k: model.layers[i].kernel_shape[0] for k, i in enumerate(model.kernels) if k
    })  # fmt: skip
    assert widest > model.n_out
    state = start(model, full)
    eye = tuple(None if c is None else c._replace(P=np.eye(len(c.P))) for c in state.channels)
    _, exact = passed(model, bp, start(model, bp), x, targets)
    _, run = passed(model, full, state._replace(channels=eye), x, targets)
    assert same(run.weights, exact.weights)
    half = tuple(None if c is None else c._replace(P=c.P * (np.arange(len(c.P)) < 1)[:, None]) for c in eye)
    assert not same(passed(model, full, state._replace(channels=half), x, targets)[1].weights, exact.weights)


def test_zero_feedback_moves_the_readout_alone():
    for network in ("convolutional", "vit"):
        model, rule = NETWORKS[network](), rules.zero_feedback()
        _, run = passed(model, rule, start(model, rule), *batch(model))
        moving = [i for i, g in enumerate(run.weights) if any(np.any(a) for a in flatten({"g": g}).values())]
        assert moving == [i for i in moving if i >= model.kernels[-1]]
        assert model.kernels[-1] in moving


def test_direct_errors_have_the_shape_of_the_inputs_they_go_to():
    model, rule = transformer(), rules.direct_low_rank(2)
    ways = pathways(model, rule)
    assert ways[0] is model.layers[model.kernels[0]]
    assert ways[1] == Direct(4, (5, 6))
    text = decoder(6, 5, width=6, depth=1, heads=2)
    assert pathways(text, rule)[1] == Direct(5, (6,))
    hidden = rules.low_rank(2, source="hidden")
    with pytest.raises(ValueError, match=r"hidden's error has shape .* whose positions"):
        pathways(Model((Conv2d(2, 3, 3), Conv2d(3, 3, 3), Conv2d(3, 3, 1), Flatten(), Dense(48, 4)), SHAPE), hidden)


# bits


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_samples_do_not_feel_their_batch(network, name):
    if not rows_alike("float32"):
        pytest.skip("this BLAS rounds the rows of a product differently")
    model, rule = NETWORKS[network](), RULES[name]
    state = start(model, rule, dtype="float32")
    x, targets = batch(model, 128, "float32")
    with threads(2):
        outputs, run = passed(model, rule, state, x, targets)
        few, part = passed(model, rule, state, x[:4], targets[:4])
    assert np.array_equal(outputs[:4], few)
    for ours, theirs in zip(run.deltas, part.deltas, strict=True):
        assert np.array_equal(ours[:4] * np.float32(32), theirs)  # the loss averages over the batch
    assert not np.array_equal(run.weights[model.kernels[-1]], part.weights[model.kernels[-1]])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("network", [*NETWORKS, "batch norm"])
def test_training_does_not_feel_the_number_of_threads(network, name):
    model = convolutional(BatchNorm) if network == "batch norm" else NETWORKS[network]()
    rule, optimisers = RULES[name], Optimizers(adam(1e-2))
    x, targets = batch(model, 70, "float32")
    ends = []
    for n in (1, 2, 3):
        state = start(model, rule, optimisers, "float32")
        with threads(n):
            for number in (1, 2):
                state, _, _ = step(model, rule, cross_entropy, optimisers, state, x, targets, number=number, key=Key(0))
        ends.append(state)
    assert same(ends[0].weights, ends[1].weights)
    assert same(ends[0].weights, ends[2].weights)
    assert same(ends[0].channels, ends[2].channels)
    assert not same(ends[0].weights, start(model, rule, optimisers, "float32").weights)


@pytest.mark.parametrize("name", RULES)
def test_strict_arrays_take_the_same_steps(name):
    for model in (convolutional(BatchNorm), transformer(0.3), decoder(6, 5, width=6, depth=1, heads=2)):
        rule, optimisers, ends = RULES[name], Optimizers(adam(1e-2)), []
        for xp in (np, array_api_strict):
            state = initial_state(model, rule, optimisers, 0, lambda a, xp=xp: xp.asarray(np.array(a)))[0]
            x, targets = (xp.asarray(a) for a in batch(model))
            for number in (1, 2):
                state, loss, _ = step(
                    model, rule, cross_entropy, optimisers, state, x, targets, number=number, key=Key(0)
                )
            assert isinstance(loss, type(xp.sum(xp.ones(1))))
            ends.append({path: to_numpy(array) for path, array in flatten(state.weights).items()})
        for path, ours in ends[0].items():
            assert np.allclose(ours, ends[1][path], rtol=0, atol=1e-9), path


def test_noise_follows_its_key():
    model, bp = transformer(0.5), rules.backpropagation()
    state, (x, _) = start(model, bp), batch(model)
    a, b = (forward(model, state.weights, x, Key(0).at(i))[0] for i in (1, 2))
    assert np.array_equal(a, forward(model, state.weights, x, Key(0).at(1))[0])
    assert not np.array_equal(a, b)
    with pytest.raises(ValueError, match="key must be given: layer 4, Dropout"):
        forward(model, state.weights, x)


# architectures


@pytest.mark.parametrize(
    ("make", "shape", "n_weights"),
    [
        (lambda: vgg_like((32, 32, 3), 10), (32, 32, 3), 4_683_456 + 2 * 1920 + 512 * 256 + 256 + 2560 + 10),
        (lambda: resnet18((32, 32, 3), 10), (32, 32, 3), 11_173_962),
        (lambda: resnet20((32, 32, 3), 10), (32, 32, 3), 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
        (lambda: retina((32, 32, 1), 10), (32, 32, 1), None),
        (lambda: vit((32, 32, 3), 10), (32, 32, 3), None),
        (lambda: decoder(64, 90), (64,), None),
    ],
)
def test_architectures_have_the_published_sizes(make, shape, n_weights):
    model = make()
    assert model.shape == shape
    count = sum(array.size for array in flatten(initial_weights(model, 0)).values())
    if n_weights is not None:
        assert count == n_weights
    assert count > 10_000


def test_sizes_of_the_transformer_by_hand():
    model, w = vit((32, 32, 3), 10, depth=2), 384
    count = sum(array.size for array in flatten(initial_weights(model, 0)).values())
    block = 2 * 2 * w + 3 * w * w + 3 * w + w * w + w + 2 * (2 * w * w) + 2 * w + w
    assert count == 48 * w + w + w + 65 * w + 2 * block + 2 * w + 10 * w + 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vgg_like((32, 32), 10), "shape must be that of an image"),
        (lambda: vgg_like((4, 4, 3), 10), "layer .* does not fit"),
        (lambda: vit((30, 30, 3), 10), "patch"),
        (lambda: vit((32, 32, 3), 10, heads=5), "heads"),
        (lambda: retina((32, 32, 1), 10, norm="layer"), "norm"),
        (lambda: decoder(0, 5), "length|n_tokens"),
    ],
)
def test_bad_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_all_of_the_engine_is_offered():
    assert set(engine.__all__) <= set(dir(engine))
    assert LayerNorm in vars(engine).values()
