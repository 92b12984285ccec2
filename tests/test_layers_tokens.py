"""Layers of vectors and sequences: adjoints, precision, bits, causality, noise; kernels and their plain twins."""

import inspect
import math
from dataclasses import dataclass
from importlib import import_module

import array_api_strict
import numpy as np
import pytest
from scipy.special import erf, ndtr

from linfb._threads import threads
from linfb.backend import Key, to_numpy
from linfb.engine.layers import (
    GELU,
    Attention,
    BatchNorm,
    Bias,
    ClassToken,
    Dense,
    Dropout,
    Erf,
    Identity,
    LayerNorm,
    PatchEmbedding,
    PositionalEmbedding,
    ReLU,
    StochasticDepth,
    TakeToken,
    Tanh,
    TokenEmbedding,
)  # fmt: skip
from linfb.engine.trees import flatten, rebuild


@dataclass(frozen=True)
class Masks:
    """Numbers in the place of a key: the same for every call, a function of an entry's place alone."""

    seed: int = 0

    def uniform(self, shape, like):
        drawn = np.random.default_rng(self.seed).random(math.prod(shape), dtype=np.float32).reshape(shape)
        return import_module(type(like).__module__.split(".")[0]).asarray(drawn.astype(to_numpy(like).dtype))


SMOOTH = {
    "gelu": (GELU(), (5, 4)),
    "tanh": (Tanh(), (5, 4)),
    "erf": (Erf(), (5, 4)),
    "relu": (ReLU(), (5, 4)),
    "layer norm": (LayerNorm(6, epsilon=0.1), (3, 6)),
    "layer norm of a vector": (LayerNorm(6), (6,)),
    "batch norm": (BatchNorm(4), (4,)),
    "batch norm of images": (BatchNorm(3, epsilon=0.2), (4, 5, 3)),
    "attention": (Attention(6, 2), (5, 18)),
    "causal attention": (Attention(4, 1, causal=True), (5, 12)),
    "one token": (Attention(4, 2), (1, 12)),
}
LINEAR = {
    "identity": (Identity(), (5, 4)),
    "bias": (Bias(4), (4,)),
    "bias of images": (Bias(3), (4, 5, 3)),
    "patches": (PatchEmbedding((6, 4, 3), 2, 5), (6, 4, 3)),
    "one patch": (PatchEmbedding((4, 4, 1), 4, 3), (4, 4, 1)),
    "class token": (ClassToken(4), (3, 4)),
    "positions": (PositionalEmbedding(3, 4), (3, 4)),
    "first token": (TakeToken(), (3, 4)),
    "a later token": (TakeToken(2), (4, 5)),
    "dropout": (Dropout(0.4), (3, 4)),
    "no dropout": (Dropout(0.0), (3, 4)),
    "stochastic depth": (StochasticDepth(0.5), (3, 4)),
}
LAYERS = SMOOTH | LINEAR
BATCHES = ("batch norm", "batch norm of images")


def weights_of(layer, rng):
    if hasattr(layer, "kernel_shape"):
        return rng.standard_normal(layer.kernel_shape)
    start = layer.initial_weights(rng)
    return rebuild(start, {k: v + rng.standard_normal(v.shape) for k, v in flatten(start).items()})


def forward(layer, w, x, key=None):
    return layer.forward(w, x, key or Masks()) if getattr(layer, "noisy", False) else layer.forward(w, x)


def case(name, seed=0, batch=6):
    layer, shape = LAYERS[name]
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((batch, *shape)), weights_of(layer, rng)
    x += 0.05 * np.sign(x)  # keep away from the kink of the rectifier
    delta = rng.standard_normal(forward(layer, w, x)[0].shape)
    return layer, rng, x, w, delta


def derivative(f, h=2e-3):
    """Central five-point derivative at 0; error O(h^4)."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def assert_adjoint(slope, terms, tolerance):
    """A directional derivative is the sum of these terms; it is not with another sign (negative control)."""
    scale = np.abs(terms).sum()
    assert abs(slope - terms.sum()) <= tolerance * scale
    if abs(terms.sum()) > 10 * tolerance * scale:
        assert not abs(slope + terms.sum()) <= tolerance * scale


def tree(function, *trees):
    """Apply a function to the arrays of trees of one structure."""
    flat = [flatten(one) for one in trees]
    return rebuild(trees[0], {path: function(*(one[path] for one in flat)) for path in flat[0]})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LAYERS)
def test_pull_and_grad_are_adjoints(name, seed):
    layer, rng, x, w, delta = case(name, seed)
    _, cache = forward(layer, w, x)
    direction = rng.standard_normal(x.shape)
    pulled = layer.pull(w, cache, delta)
    assert pulled.shape == x.shape
    if name in LINEAR:
        slope = np.sum(delta * (forward(layer, w, x + direction)[0] - forward(layer, w, x)[0]))
    else:
        steps = 0.005 * direction
        slope = derivative(lambda t: np.sum(delta * (forward(layer, w, x + t * steps)[0])), h=0.1) / 0.005
    assert_adjoint(slope, direction * pulled, 1e-13 if name in LINEAR else 1e-9)

    gradient = layer.grad(w, cache, delta)
    assert flatten(gradient).keys() == flatten(w).keys()
    if w is not None:
        direction = tree(lambda v: rng.standard_normal(v.shape), w)
        moved = forward(layer, tree(np.add, w, direction), x)[0]  # all layers are affine in their weights
        terms = np.concatenate([v.ravel() for v in flatten(tree(np.multiply, gradient, direction)).values()])
        assert_adjoint(np.sum(delta * (moved - forward(layer, w, x)[0])), terms, 1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_inferred(name):
    layer, _, x, w, _ = case(name)
    assert (len(x), *layer.out_shape(x.shape[1:])) == forward(layer, w, x)[0].shape


@pytest.mark.parametrize("layer", [PatchEmbedding((4, 6, 2), 2, 3), TokenEmbedding(5, 3)], ids=["patches", "tokens"])
def test_kernels_work_for_any_number_of_outputs_and_probes_are_complete(layer):
    rng = np.random.default_rng(0)
    K, P = rng.standard_normal(layer.kernel_shape), rng.standard_normal((2, 3))
    probes = layer.probes(np, np.float64)
    assert np.allclose(layer.grad(K, probes, layer.forward(K, probes)[0]), K, rtol=0, atol=1e-14)
    assert not np.allclose(layer.grad(K, probes[:-1], layer.forward(K, probes[:-1])[0]), K, rtol=0, atol=1e-3)
    shape = (7, *getattr(layer, "shape", (4,)))
    x = rng.integers(0, 5, shape) if isinstance(layer, TokenEmbedding) else rng.standard_normal(shape)
    Q = layer.compose(P, K)
    assert Q.shape == (2, *layer.kernel_shape[1:])
    (y, cache), delta = layer.forward(Q, x), rng.standard_normal((7, *layer.out_shape(shape[1:])[:-1], 3))
    assert cache is x
    assert np.allclose(y, layer.forward(K, x)[0] @ P.T, rtol=0, atol=1e-13)
    assert np.allclose(layer.grad(Q, x, delta @ P.T), layer.compose(P, layer.grad(K, x, delta)), rtol=0, atol=1e-13)
    assert np.allclose(layer.contract(Q, K), P @ layer.contract(K, K), rtol=0, atol=1e-13)
    if isinstance(layer, PatchEmbedding):
        pulled = [layer.pull(Q, x, delta @ P.T), layer.pull(layer.compose(P.T @ P, K), x, delta)]
        assert np.allclose(*pulled, rtol=0, atol=1e-13)
        assert not np.allclose(pulled[0], layer.pull(K, x, delta), rtol=0, atol=1e-3)


def test_tokens_are_a_dense_layer_on_one_hot_inputs():
    rng = np.random.default_rng(0)
    layer, dense, x = TokenEmbedding(5, 3), Dense(5, 3), rng.integers(0, 5, (6, 4))
    W, hot, delta = rng.standard_normal((3, 5)), np.eye(5)[x], rng.standard_normal((6, 4, 3))
    assert np.array_equal(layer.forward(W, x)[0], dense.forward(W, hot)[0])
    assert np.allclose(layer.grad(W, x, delta), dense.grad(W, hot, delta), rtol=0, atol=1e-14)
    assert not np.array_equal(layer.forward(W, (x + 1) % 5)[0], dense.forward(W, hot)[0])
    for wrong in (np.array([[5]]), np.array([[-1]])):
        with pytest.raises(ValueError, match="x must hold tokens from 0 to 4, got"):
            layer.forward(W, wrong)
        with pytest.raises(ValueError, match="tokens must be from 0 to 4, got"):
            layer.grad(W, wrong, np.ones((1, 1, 3)))
    with pytest.raises(TypeError, match="x must be an array of tokens, which are integers, got dtype float64"):
        layer.forward(W, x * 1.0)
    with pytest.raises(ValueError, match="tokens have no error"):
        layer.pull(W, x, delta)


def plain_attention(x, heads, causal):
    batch, n, width = x.shape
    features = width // 3
    d = features // heads
    y = np.zeros((batch, n, features))
    for b in range(batch):
        for h in range(heads):
            q, k, v = (x[b, :, part * features + h * d : part * features + (h + 1) * d] for part in range(3))
            for t in range(n):
                seen = range(t + 1) if causal else range(n)
                weights = [math.exp(float(q[t] @ k[s]) / math.sqrt(d)) for s in seen]
                for s, weight in zip(seen, weights, strict=True):
                    y[b, t, h * d : (h + 1) * d] += weight / sum(weights) * v[s]
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_that_of_plain_loops(heads, causal):
    x = np.random.default_rng(0).standard_normal((2, 4, 18))
    expected = plain_attention(x, heads, causal)
    assert np.abs(Attention(6, heads, causal).forward(None, x)[0] - expected).max() <= 1e-14
    other_heads = Attention(6, 2, causal).forward(None, x)[0]
    assert not np.abs(other_heads - expected).max() <= 1e-3


def test_causal_attention_looks_back_only():
    rng = np.random.default_rng(0)
    x, delta = rng.standard_normal((3, 7, 12)), rng.standard_normal((3, 7, 4))
    future = x.copy()
    future[:, 4:] = 1e3 * rng.standard_normal((3, 3, 12))
    delta[:, 4:] = 0
    for causal in (True, False):
        layer = Attention(4, 2, causal)
        (y, cache), (changed, _) = layer.forward(None, x), layer.forward(None, future)
        assert np.array_equal(y[:, :4], changed[:, :4]) is causal
        assert not np.array_equal(y[:, 4:], changed[:, 4:])
        above = cache.probabilities[..., np.triu(np.ones((7, 7), bool), 1)]
        assert (not above.any()) is causal
        assert (not layer.pull(None, cache, delta)[:, 4:].any()) is causal
        assert np.allclose(cache.probabilities.sum(axis=-1), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_is_stable_and_does_not_hide_nan(dtype):
    x = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(dtype)
    large = np.concatenate([100 * x[..., :8], x[..., 8:]], axis=-1)
    layer = Attention(4, 2)
    y, cache = layer.forward(None, large)
    assert np.isfinite(y).all()
    assert np.isfinite(layer.pull(None, cache, y)).all()
    assert np.abs(y).max() <= np.abs(x[..., 8:]).max()
    scores = large[0, :, :2].astype(float) @ large[0, :, 4:6].T.astype(float) / math.sqrt(2)
    with np.errstate(over="ignore"):
        assert not np.isfinite(np.exp(scores)).all()  # without the maximum taken off it would not be
    for position in (0, 5, 9):
        x[1, 2, position] = np.nan
        broken = layer.forward(None, x)[0]
        assert np.isnan(broken[1]).any()
        assert np.isfinite(broken[0]).all()
        x[1, 2, position] = 0


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "erf", "layer norm", "batch norm"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_nan(name, dtype):
    layer, _, x, w, _ = case(name)
    x, w = x.astype(dtype), tree(lambda v: v.astype(dtype), w)
    assert np.isfinite(forward(layer, w, x)[0]).all()
    x[(2,) + (1,) * (x.ndim - 1)] = np.nan
    assert np.isnan(forward(layer, w, x)[0][2]).any()


def test_gelu_is_exact_to_single_precision_in_both_tails():
    x = np.linspace(-12, 12, 200_001)
    exact = x * ndtr(x)
    y, slope = GELU().forward(None, x)
    assert np.abs(y - exact).max() <= 4e-15
    y32, slope32 = (a.astype(float) for a in GELU().forward(None, x.astype(np.float32)))
    near = (np.abs(x) < 5) & (x != 0)
    x32 = x.astype(np.float32).astype(float)

    def error(values):
        return np.abs(values[near] / (x32 * ndtr(x32))[near] - 1).max()

    assert error(y32) <= 16 * 2.0**-23
    textbook = 0.5 * x.astype(np.float32) * (1 + erf(x.astype(np.float32) * math.sqrt(0.5)))
    assert not error(textbook) <= 16 * 2.0**-23  # cancels in the lower tail
    assert np.abs(slope32 - slope).max() <= 2e-6
    assert np.abs(y32 - x32 * ndtr(x32))[~near].max() <= 2.0**-20
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert not np.abs(tanh - exact).max() <= 1e-4  # another function that goes by the same name


@pytest.mark.parametrize("name", LAYERS)
def test_single_precision_is_kept_and_rounds_as_it_must(name):
    layer, _, x, w, delta = case(name, batch=40)

    def everything(dtype):
        w_, x_ = tree(lambda v: v.astype(dtype), w), x.astype(dtype)
        y, cache = forward(layer, w_, x_)
        results = [y, layer.pull(w_, cache, delta.astype(dtype))]
        results += flatten(layer.grad(w_, cache, delta.astype(dtype))).values()
        assert all(array.dtype == dtype for array in results)
        return results

    def error(low, high):
        return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(low, high, strict=True))

    double, single, half = (everything(dtype) for dtype in (np.float64, np.float32, np.float16))
    tolerance = 20 * 2.0**-23
    assert error(single, double) <= tolerance
    assert not error(half, double) <= tolerance


@pytest.mark.parametrize("name", LAYERS)
def test_any_array_library(name):
    layer, _, x, w, delta = case(name)
    strict = array_api_strict.asarray
    placed, error = tree(strict, w), strict(delta)
    y, cache = forward(layer, w, x)
    there, cache_there = forward(layer, placed, strict(x))
    expected = [y, layer.pull(w, cache, delta), *flatten(layer.grad(w, cache, delta)).values()]
    found = [there, layer.pull(placed, cache_there, error), *flatten(layer.grad(placed, cache_there, error)).values()]
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(error)
        assert np.allclose(to_numpy(ours), theirs, rtol=0, atol=1e-13 * np.abs(theirs).max())


def test_tokens_and_running_moments_in_any_array_library():
    strict, rng = array_api_strict.asarray, np.random.default_rng(0)
    layer, W, x, delta = (
        TokenEmbedding(5, 3),
        rng.standard_normal((3, 5)),
        np.array([[1, 4], [1, 0]]),
        np.ones((2, 2, 3)),
    )
    assert np.array_equal(to_numpy(layer.forward(strict(W), strict(x))[0]), layer.forward(W, x)[0])
    assert np.array_equal(to_numpy(layer.grad(strict(W), strict(x), strict(delta))), layer.grad(W, x, delta))
    assert layer.probes(array_api_strict, array_api_strict.float64).shape == (5, 1)
    assert PatchEmbedding((4, 4, 1), 2, 1).probes(array_api_strict, array_api_strict.float64).shape == (4, 4, 4, 1)
    norm, _, x, w, _ = case("batch norm of images")
    here = norm.update_buffers(norm.initial_buffers(), norm.forward(w, x)[1])
    placed = tree(strict, w)
    there = norm.update_buffers(tree(strict, norm.initial_buffers()), norm.forward(placed, strict(x))[1])
    assert np.allclose(to_numpy(there["variance"]), here["variance"], rtol=1e-14)
    evaluated = norm.evaluate(placed, there, strict(x))
    assert np.allclose(to_numpy(evaluated), norm.evaluate(w, here, x), rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------ bits

LARGE = {
    "gelu": (GELU(), (9, 48)),
    "relu": (ReLU(), (9, 48)),
    "erf": (Erf(), (9, 48)),
    "layer norm": (LayerNorm(48), (9, 48)),
    "batch norm": (BatchNorm(48), (3, 3, 48)),
    "bias": (Bias(48), (9, 48)),
    "attention": (Attention(32, 4), (17, 96)),
    "causal attention": (Attention(32, 4, causal=True), (17, 96)),
    "patches": (PatchEmbedding((8, 8, 3), 4, 33), (8, 8, 3)),
    "class token": (ClassToken(48), (9, 48)),
    "positions": (PositionalEmbedding(9, 48), (9, 48)),
    "dropout": (Dropout(0.3), (9, 48)),
    "stochastic depth": (StochasticDepth(0.3), (9, 48)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LARGE)
def test_bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch(name, dtype):
    layer, shape = LARGE[name]
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((317, *shape)).astype(dtype), tree(lambda v: v.astype(dtype), weights_of(layer, rng))
    delta = rng.standard_normal((317, *layer.out_shape(shape))).astype(dtype)

    def everything(n, batch):
        with threads(n):
            y, cache = forward(layer, w, x[:batch], Key(0))
            return [y, layer.pull(w, cache, delta[:batch]), *flatten(layer.grad(w, cache, delta[:batch])).values()]

    one = everything(1, 317)
    for n in (2, 3):
        assert all(np.array_equal(a, b) for a, b in zip(everything(n, 317), one, strict=True))
    for batch in (2, 101):
        same = [np.array_equal(a, b[:batch]) for a, b in zip(everything(2, batch)[:2], one[:2], strict=True)]
        assert all(same) if name != "batch norm" else not any(same)
    if w is not None:  # gradients do sum over the batch
        assert not np.array_equal(everything(2, 101)[2], one[2])


# --------------------------------------------------------------------------------------- kernels and their twins

TOPICS = ("activations", "losses", "norms", "sequences")


def twins(topic):
    return import_module(f"linfb.kernels.cpu_{topic}"), import_module(f"linfb.kernels.reference_{topic}")


@pytest.mark.parametrize("topic", TOPICS)
def test_twins_have_the_same_names_and_signatures(topic):
    compiled, plain = twins(topic)
    assert compiled.__all__ == plain.__all__
    for name in plain.__all__:
        assert inspect.signature(getattr(compiled, name)) == inspect.signature(getattr(plain, name))


def kernel_arguments(topic, name, rng):
    x, delta = rng.standard_normal((5, 4, 3, 18)), rng.standard_normal((5, 4, 3, 18))
    gain, inverse, sequence = rng.standard_normal(18), rng.random(18), rng.standard_normal((7, 6, 36))
    probabilities = twins("sequences")[1].attention(sequence, 3, True)[1]
    return {
        "erf": (x,), "gelu": (x,), "relu": (x,), "product": (x, delta), "relu_pull": (delta, x > 0),
        "shifted": (x, gain), "feature_sums": (x,), "feature_variances": (x,), "norm_grad": (delta, x),
        "batch_norm": (x, gain, inverse, 1e-3), "batch_norm_grad_pull": (delta, x, inverse, gain),
        "layer_norm": (x, gain, inverse, 1e-3), "layer_norm_pull": (delta, x, rng.random((5, 4, 3, 1)), gain),
        "attention": (sequence, 3, True),
        "attention_pull": (rng.standard_normal((7, 6, 12)), sequence, probabilities),
        "cross_entropy": (x, rng.dirichlet(np.ones(18), (5, 4, 3)), 1),
        "token_sums": (rng.standard_normal((7, 6, 4)), rng.integers(0, 9, (7, 6)), 9),
    }[name]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "features"), [(1, 1, 1), (32, 2, 8), (33, 1, 5), (70, 3, 17), (97, 1, 40)])
def test_attention_in_blocks_is_the_plain_one(tokens, heads, features, causal, dtype):
    rng, (compiled, plain) = np.random.default_rng(0), twins("sequences")
    x = rng.standard_normal((3, tokens, 3 * heads * features)).astype(dtype)
    delta = rng.standard_normal((3, tokens, heads * features)).astype(dtype)
    y, probabilities = plain.attention(x.astype(float), heads, causal)
    expected = (y, probabilities, plain.attention_pull(delta.astype(float), x.astype(float), probabilities))
    found = (*compiled.attention(x, heads, causal), compiled.attention_pull(delta, x, probabilities.astype(dtype)))
    tolerance = 2 * np.finfo(dtype).eps * (features + tokens) ** 0.5 * 20**0.5  # sums of features and tokens, exponents
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
    if causal:
        assert (found[1] == 0)[..., np.triu(np.ones((tokens, tokens), bool), 1)].all()
    if tokens > 1:  # control
        assert not np.abs(found[0] - plain.attention(x.astype(float), heads, not causal)[0]).max() <= tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (4, 7, 8), (5, 1, 24), (6, 33, 17), (9, 16, 40)])
def test_small_products_are_the_plain_ones(m, k, n, dtype):
    from linfb.kernels.cpu_products import multiply, padded

    rng, whole = np.random.default_rng(0), padded(n, np.dtype(dtype).itemsize)
    left, right = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, whole)).astype(dtype)
    out, other = np.empty((m, whole), dtype), np.empty((m, whole), dtype)
    multiply(left, right, out)
    multiply(np.asfortranarray(left), right, other)  # of any strides
    exact = left.astype(float) @ right
    assert np.abs(out - exact).max() <= k * np.finfo(dtype).eps * (np.abs(left) @ np.abs(right)).max()
    assert np.array_equal(out, other)
    assert np.allclose(out, exact, rtol=1e-3, atol=1e-3)
    assert not np.allclose(out, exact[:, ::-1], rtol=1e-3, atol=1e-3)  # control


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("topic", "name"), [(topic, name) for topic in TOPICS for name in twins(topic)[1].__all__])
def test_compiled_kernels_equal_their_plain_twins(topic, name, dtype):
    compiled, plain = (getattr(module, name) for module in twins(topic))
    arguments = kernel_arguments(topic, name, np.random.default_rng(0))

    def call(function, dtype):
        cast = [
            a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in arguments
        ]  # fmt: skip
        kept = [a.copy() if isinstance(a, np.ndarray) else a for a in cast]
        results = function(*cast)
        assert all(np.array_equal(a, b) for a, b in zip(cast, kept, strict=True))  # nothing is overwritten
        return results if isinstance(results, tuple) else (results,)

    found, expected = call(compiled, dtype), call(plain, np.float64)
    tolerance = {np.float32: 10 * 2.0**-23, np.float64: 2e-15}[dtype]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == (dtype if theirs.dtype == np.float64 else theirs.dtype)
        scale = np.abs(theirs).max()
        assert np.abs(ours.astype(float) - theirs).max() <= tolerance * scale
        assert not np.abs(ours[::-1].astype(float) - theirs).max() <= tolerance * scale  # negative control


@pytest.mark.parametrize(("topic", "name"), [(topic, name) for topic in TOPICS for name in twins(topic)[0].__all__])
def test_compiled_kernels_take_arrays_of_any_memory_order(topic, name):
    arguments = kernel_arguments(topic, name, np.random.default_rng(0))
    other = [np.asfortranarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
    assert any(isinstance(a, np.ndarray) and not a.flags.c_contiguous for a in other)
    results = [getattr(twins(topic)[0], name)(*given) for given in (arguments, other)]
    results = [result if isinstance(result, tuple) else (result,) for result in results]
    for ours, theirs in zip(*results, strict=True):
        assert np.allclose(ours, theirs, rtol=0, atol=1e-14 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["bias", "batch norm"])
def test_sums_over_many_rows_keep_single_precision(name):
    layer, ones = {"bias": Bias(3), "batch norm": BatchNorm(3)}[name], np.full((1 << 17, 3), 0.1, np.float32)
    x = 30 + np.random.default_rng(0).standard_normal(ones.shape).astype(np.float32)
    w = {k: v.astype(np.float32) for k, v in flatten(layer.initial_weights(np.random.default_rng(0))).items()} or None
    w = w[""] if list(w) == [""] else w
    _, cache = layer.forward(w, x)
    total = list(flatten(layer.grad(w, cache, ones)).values())[-1]
    assert np.allclose(total, 0.1 * len(ones), rtol=2e-7)
    assert not np.allclose(np.add.accumulate(ones, axis=0)[-1], 0.1 * len(ones), rtol=2e-7)
    if name == "batch norm":
        assert np.allclose(cache.variance, x.astype(float).var(axis=0), rtol=3e-7)
        one_pass = (x**2).mean(axis=0) - x.mean(axis=0) ** 2
        assert not np.allclose(one_pass, x.astype(float).var(axis=0), rtol=3e-7)


# ----------------------------------------------------------------------------------------- normalisation and noise


def test_images_are_normalised_over_batch_and_pixels():
    layer, _, x, w, delta = case("batch norm of images")
    flat, (y, cache) = x.reshape(-1, 3), layer.forward(w, x)
    y_flat, cache_flat = layer.forward(w, flat)
    assert np.array_equal(y.reshape(-1, 3), y_flat)
    assert np.array_equal(layer.pull(w, cache, delta).reshape(-1, 3), layer.pull(w, cache_flat, delta.reshape(-1, 3)))
    buffers = layer.initial_buffers()
    for _ in range(300):
        buffers = layer.update_buffers(buffers, cache)
    assert np.allclose(buffers["variance"], flat.var(axis=0, ddof=1), rtol=1e-12)
    assert not np.allclose(buffers["variance"], flat.var(axis=0) * 6 / 5, rtol=1e-3)
    assert np.isfinite(layer.forward(w, x[:1])[0]).all()  # one image has many pixels
    with pytest.raises(ValueError, match="at least 2 rows in training, got x of shape"):
        layer.forward(w, x[:1, :1, :1])


def test_layer_norm_normalises_every_row():
    x = 3 + 2 * np.random.default_rng(0).standard_normal((4, 5, 200))
    layer = LayerNorm(200)
    y, _ = layer.forward(layer.initial_weights(np.random.default_rng(0)), x)
    assert np.abs(y.mean(axis=-1)).max() <= 1e-14
    assert np.abs(y.var(axis=-1) - 1).max() <= 1e-5
    assert not np.abs(y.mean(axis=(0, 1))).max() <= 1e-3


@pytest.mark.parametrize("layer", [Dropout(0.3), StochasticDepth(0.3), Dropout(0.9)], ids=repr)
def test_noise_keeps_the_mean(layer):
    x, p = np.full((20_000, 2), 3.0), layer.rate
    y, mask = forward(layer, None, x, Key(5))
    draws = y[:, 0] / x[:, 0]
    assert np.allclose(np.unique(draws), [0, 1 / (1 - p)])
    z = (draws.mean() - 1) / math.sqrt(p / (1 - p) / len(draws))
    assert abs(z) < 4
    assert not abs((draws * (1 - p)).mean() - 1) / math.sqrt(p / (1 - p) / len(draws)) < 4  # if it were not scaled
    same = np.array_equal(y[:, 0], y[:, 1])
    assert same is isinstance(layer, StochasticDepth)
    assert np.array_equal(layer.pull(None, mask, x), y)
    assert np.array_equal(forward(layer, None, x, Key(5))[0], y)
    assert not np.array_equal(forward(layer, None, x, Key(6))[0], y)
    assert layer.evaluate(None, None, x) is x


@pytest.mark.parametrize("layer", [Dropout(0.0), StochasticDepth(0.0)], ids=repr)
def test_no_noise_draws_nothing(layer):
    x = np.ones((2, 3))
    y, cache = layer.forward(None, x, None)
    assert y is x
    assert layer.pull(None, cache, x) is x
    with pytest.raises(AttributeError):
        type(layer)(0.5).forward(None, x, None)


def test_embeddings_start_small_and_kernels_by_their_fan_in():
    rng = np.random.default_rng(0)
    for layer, shape in ((TokenEmbedding(300, 40), (40, 300)), (PositionalEmbedding(100, 90), (100, 90))):
        start = layer.initial_weights(rng)
        assert start.shape == shape
        assert abs(start.std() / 0.02 - 1) < 4 / math.sqrt(2 * start.size)
    assert ClassToken(7).initial_weights(rng).shape == (7,)
    start = PatchEmbedding((8, 8, 3), 4, 50).initial_weights(rng)
    assert start.shape == (50, 4, 4, 3)
    assert 0.99 / math.sqrt(48) < np.abs(start).max() <= 1 / math.sqrt(48)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(6, 4), "heads must divide n_features, got heads 4 and n_features 6"),
        (lambda: Attention(6, 0), "heads must be >= 1, got 0"),
        (lambda: Attention(6, 2, causal=1), "causal"),
        (lambda: Attention(6, 2).out_shape((5, 6)), r"samples of shape \(token, 18\), got shape \(5, 6\)"),
        (lambda: LayerNorm(0), "n_features must be >= 1"),
        (lambda: LayerNorm(3, epsilon=0.0), "epsilon must be finite and > 0"),
        (lambda: LayerNorm(3).out_shape((4,)), r"takes 3 features on the last axis, got shape \(4,\)"),
        (lambda: BatchNorm(3).out_shape((5, 5, 4)), "takes 3 features on the last axis"),
        (lambda: Bias(3).out_shape(()), "takes 3 features on the last axis"),
        (lambda: Dropout(1.0), "rate must be finite and < 1.0, got 1.0"),
        (lambda: StochasticDepth(-0.1), "rate must be finite and >= 0.0"),
        (lambda: PatchEmbedding((8, 9, 3), 4, 5), "patch must divide height and width"),
        (lambda: PatchEmbedding((8, 8), 4, 5), "shape must be that of an image"),
        (lambda: PatchEmbedding((8, 8, 3), 4, 5).out_shape((8, 8, 1)), r"takes images of shape \(8, 8, 3\)"),
        (lambda: TokenEmbedding(5, 3).out_shape((4, 5)), r"samples of shape \(token,\), got shape \(4, 5\)"),
        (lambda: TokenEmbedding(0, 3), "n_tokens must be >= 1"),
        (lambda: ClassToken(3).out_shape((4, 5)), r"samples of shape \(token, 3\), got shape \(4, 5\)"),
        (lambda: PositionalEmbedding(4, 3).out_shape((5, 3)), r"samples of shape \(4, 3\), got shape \(5, 3\)"),
        (lambda: TakeToken(4).out_shape((4, 3)), "sequences of more than 4 tokens"),
        (lambda: TakeToken(-1), "index must be >= 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
