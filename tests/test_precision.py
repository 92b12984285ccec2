"""Products in low precision: what is rounded and by how much, errors that would underflow, weights that stay."""

import pickle
import sys
import types

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb import rules
from linfb.backend import Key, namespace
from linfb.engine import Model, Optimizers, sgd, vit
from linfb.engine.backward import backward
from linfb.engine.layers import GELU, Bias, Conv2d, Dense, Flatten, LayerNorm, ReLU, TokenEmbedding
from linfb.engine.layers.base import Layer
from linfb.engine.layers.precision import Cast, _power_below, cast, tensor_float32
from linfb.engine.models import forward
from linfb.engine.state import initial_state
from linfb.engine.trees import flatten
from linfb.kernels import _cuda


def case(dtype="float32", rows=40, n_in=30, n_out=20, size=1.0, seed=0):
    rng = np.random.default_rng(seed)
    layer = Dense(n_in, n_out)
    return (
        layer,
        layer.initial_weights(rng).astype(dtype),
        rng.standard_normal((rows, n_in)).astype(dtype),
        (size * rng.standard_normal((rows, n_out))).astype(dtype),
    )


def three(layer, weights, x, delta):
    y, cache = layer.forward(weights, x)
    return y, layer.grad(weights, cache, delta), layer.pull(weights, cache, delta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_its_own_precision_nothing_changes(dtype):
    layer, *arrays = case(dtype)
    for own, plain in zip(three(Cast(layer, dtype), *arrays), three(layer, *arrays), strict=True):
        assert own.tobytes() == plain.tobytes()
    if dtype == "float64":
        for own, plain in zip(three(Cast(layer, "float32"), *arrays), three(layer, *arrays), strict=True):
            assert own.dtype == plain.dtype
            assert own.tobytes() != plain.tobytes()


def dtypes():
    """Precisions with their unit roundoff; bfloat16 where the package for it is installed."""
    return [("float16", 2.0**-11), ("bfloat16", 2.0**-8), ("float32", 2.0**-24)]


@pytest.mark.parametrize(("dtype", "unit"), dtypes())
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1.0, 1e-4, 1e-9, 1e-20]))
def test_products_stay_within_their_rounding_bound(dtype, unit, seed, size):
    """Of a product over n terms, |error| <= gamma |a| |b| with gamma for n + 2 roundings: factors, sums, the result."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
        size = max(size, 1e-20)
    layer, weights, x, delta = case("float64", size=size, seed=seed)
    exact = three(layer, weights, x, delta)
    sizes = (np.abs(x) @ np.abs(weights).T, np.abs(delta).T @ np.abs(x), np.abs(delta) @ np.abs(weights))
    for got, true, terms, bound in zip(
        three(Cast(layer, dtype), weights, x, delta), exact, (30, 40, 20), sizes, strict=True
    ):
        roundings = (terms + 2) * unit
        flushed = 1e-7 * bound.max()  # entries a million times smaller than the largest
        error = np.abs(got - true)
        assert np.all(error <= roundings / (1 - roundings) * bound + flushed)
        assert error.max() > unit * bound.max() / 100  # it did round


def test_small_errors_survive_half_precision():
    layer, weights, x, delta = case(size=1e-9)
    _, gradient, down = three(Cast(layer, "float16"), weights, x, delta)
    _, exact_gradient, exact_down = three(layer, weights, x, delta)
    for got, exact in ((gradient, exact_gradient), (down, exact_down)):
        assert np.abs(got - exact).max() < 2e-3 * np.abs(exact).max()
    half = (array.astype("float16") for array in (weights, x, delta))
    assert not any(np.any(array) for array in three(layer, *half)[1:])  # without the factor they are gone


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_large_sums_do_not_overflow_half_precision(size):
    rows = 100_000
    layer, weights = Dense(2, 3), np.full((3, 2), 100.0, dtype="float32")
    x, delta = np.full((rows, 2), 90.0, dtype="float32"), np.full((rows, 3), size, dtype="float32")
    gradient = Cast(layer, "float16").grad(weights, x.astype("float16"), delta)
    assert np.allclose(gradient, 90.0 * rows * size, rtol=0.05)  # NumPy adds up in half precision
    down = Cast(layer, "float16").pull(weights, x, delta)
    assert np.allclose(down, 300 * size, rtol=1e-3)
    with np.errstate(over="ignore"):
        assert not np.all(np.isfinite(layer.grad(weights, x.astype("float16"), np.ones_like(delta, "float16"))))


def test_a_factor_of_two_in_the_error_is_the_same_factor_in_all_results():
    layer, weights, x, delta = case()
    _, gradient, down = three(Cast(layer, "float16"), weights, x, delta)
    for factor in (2.0**-40, 2.0**-1, 2.0**20):
        _, other_gradient, other_down = three(Cast(layer, "float16"), weights, x, delta * np.float32(factor))
        assert np.array_equal(other_gradient, gradient * np.float32(factor))
        assert np.array_equal(other_down, down * np.float32(factor))
    _, other_gradient, _ = three(Cast(layer, "float16"), weights, x, delta * np.float32(1.1))
    assert not np.array_equal(other_gradient, gradient * np.float32(1.1))


def test_an_error_of_zeros_is_no_trouble_and_nan_is_kept():
    layer, weights, x, delta = case()
    for size, check in ((0.0, lambda array: not np.any(array)), (np.nan, lambda array: np.all(np.isnan(array)))):
        with np.errstate(invalid="ignore"):
            assert all(map(check, three(Cast(layer, "float16"), weights, x, np.float32(size) * delta)[1:]))
    empty = np.zeros((0, 20), dtype="float32")
    assert Cast(layer, "float16").pull(weights, x[:0], empty).shape == (0, 30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(mantissa=st.floats(1, 2, exclude_max=True), exponent=st.integers(-99, 99))
def test_powers_of_two_are_exact(dtype, mantissa, exponent):
    value = np.asarray(np.ldexp(np.asarray(mantissa, dtype), exponent))  # rounding may give the next power
    power = np.ldexp(1.0, np.frexp(value)[1] - 1)
    assert _power_below(value) == power
    assert _power_below(value).dtype == dtype
    assert _power_below(value / 2) != power


def test_weights_that_learn_stay_in_full_precision():
    layer, weights, x, delta = case()
    low = Cast(layer, "float16")
    y, cache = low.forward(weights, x)
    assert cache.dtype == np.float16  # what is kept is small
    for _ in range(1000):
        weights = weights - np.float32(1e-7) * low.grad(weights, cache, np.ones_like(delta))
    assert y.dtype == weights.dtype == np.float32
    start = case()[1]
    moved = weights - start
    assert 0 < np.abs(moved).max() < 1e-2
    assert np.all(moved != 0)
    half = start.astype("float16")
    after = half - np.float16(1e-7) * layer.grad(half, cache, np.ones_like(delta, "float16"))
    assert np.mean(half == after) > 0.9  # they would rest


class Products(Layer):
    """A layer without weights that multiplies its inputs, and says so; with noise and an evaluation of its own."""

    products = True
    noisy = True

    def forward(self, weights, x, key=None):
        assert weights is None
        self.seen = (x.dtype, key)
        return x * x, x

    def pull(self, weights, cache, delta):
        self.seen = (delta.dtype, None)
        return 2 * cache * delta

    def evaluate(self, weights, buffers, x):
        return x * x

    def initial_buffers(self):
        return {"mean": np.zeros(2)}


def test_layers_without_a_kernel_are_cast_too():
    inner = Products()
    layer, x = Cast(inner, "float16"), np.array([[1.0, 0.1]], dtype="float32")
    y, cache = layer.forward(None, x, "key")
    assert inner.seen == (np.float16, "key")
    assert (y.dtype, cache.dtype) == (np.float32, np.float16)
    down = layer.pull(None, cache, np.float32(1e-12) * x)
    assert np.allclose(down, 2e-12 * x * x, rtol=2e-3, atol=0)
    assert down.dtype == np.float32
    assert layer.grad(None, cache, x) is None
    assert layer.noisy
    assert layer.initial_buffers()["mean"].shape == (2,)
    assert layer.evaluate(None, None, x).dtype == np.float32
    assert not np.array_equal(layer.evaluate(None, None, x), x * x)


def test_numbers_of_tokens_are_not_rounded():
    layer, tokens = TokenEmbedding(3000, 4), np.array([[2049, 2999], [1, 2049]])
    weights = layer.initial_weights(np.random.default_rng(0)).astype("float32")
    delta = np.ones((2, 2, 4), dtype="float32")
    (y, cache), (exact, _) = Cast(layer, "float16").forward(weights, tokens), layer.forward(weights, tokens)
    assert cache.dtype == tokens.dtype
    assert np.allclose(y, exact, rtol=1e-3, atol=0)
    assert np.array_equal(Cast(layer, "float16").grad(weights, cache, delta), layer.grad(weights, tokens, delta))


def test_everything_else_is_the_layers_own():
    layer, weights, _, _ = case("float64")
    low = Cast(layer, "float16")
    P = np.ones((3, 20))
    assert low.kernel_shape == layer.kernel_shape
    assert low.out_shape((30,)) == (20,)
    assert np.array_equal(low.compose(P, weights), layer.compose(P, weights))
    assert np.array_equal(low.contract(weights, weights), layer.contract(weights, weights))
    assert np.array_equal(low.initial_weights(np.random.default_rng(0)), weights)
    assert np.array_equal(low.probes(np, np.float64), layer.probes(np, np.float64))
    assert low == pickle.loads(pickle.dumps(low)) != Cast(layer, "bfloat16")
    assert not hasattr(low, "initial_buffers")
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        low.nothing_of_the_kind  # noqa: B018


def test_cast_wraps_what_is_made_of_products():
    dense, products, relu = Dense(2, 2), Products(), ReLU()
    assert cast((dense, relu, products), "float16") == (Cast(dense, "float16"), relu, Cast(products, "float16"))


RULES = {
    "backpropagation": rules.backpropagation(),
    "Oja": rules.low_rank(3),
    "weight mirror": rules.weight_mirror(),
    "direct": rules.direct_low_rank(3),
    "local": rules.local(3),
    "normative": rules.normative(3),
}
NETWORKS = {  # smooth: a rectifier may switch by rounding
    "dense": Model((Dense(12, 8), Bias(8), GELU(), Dense(8, 6), LayerNorm(6), GELU(), Dense(6, 4))),
    "images": Model((Conv2d(2, 4, 3), GELU(), Conv2d(4, 6, 2, stride=2), GELU(), Flatten(), Dense(24, 4)), (6, 6, 2)),
    "patches": vit((8, 8, 2), 4, patch=4, width=8, depth=1, heads=2, dropout=0.0, drop_path=0.0),
}


def gradients(network, rule, model, error=1.0):
    """Return what all arrays of a network descend, in its first step."""
    rng = np.random.default_rng(0)
    place = lambda array: np.array(array, dtype="float32")  # noqa: E731
    state, _ = initial_state(NETWORKS[network], RULES[rule], Optimizers(sgd(0.1)), 0, place)
    x = rng.standard_normal((8, *model.shape)).astype("float32")
    outputs, caches = forward(model, state.weights, x, Key(0))
    delta = np.float32(error) * (outputs - rng.standard_normal(outputs.shape).astype("float32")) / 8
    run = backward(model, RULES[rule], state.weights, state.channels, caches, delta, outputs, key=Key(0))
    return flatten({"weights": run.weights, "channels": run.channels})


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.05)])
def test_rules_carry_errors_through_cast_layers(network, rule, dtype, tolerance):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = NETWORKS[network]
    lowered = Model(cast(model.layers, dtype), model.shape)
    exact, low = gradients(network, rule, model), gradients(network, rule, lowered)
    assert exact.keys() == low.keys()
    for path, value in exact.items():
        assert low[path].dtype == np.float32
        assert np.linalg.norm(low[path] - value) <= tolerance * np.linalg.norm(value) + 1e-6
    assert any(np.any(low[path] != exact[path]) for path in exact)
    if rule == "backpropagation":  # where all is linear in the error, its size does not matter
        small = gradients(network, rule, lowered, error=2.0**-40)
        assert all(np.array_equal(small[path], low[path] * np.float32(2.0**-40)) for path in low)


def test_what_cannot_be_is_refused():
    layer, weights, x, _ = case()
    for bad in ("float8", "half"):
        with pytest.raises(ValueError, match="dtype must be one of 'float16', 'bfloat16'"):
            cast((layer,), bad)
        with pytest.raises(ValueError, match="dtype must be one of 'float16', 'bfloat16'"):
            Cast(layer, bad)
    strict = (array_api_strict.asarray(array) for array in (weights, x))
    with pytest.raises(TypeError, match="array_api_strict has no arrays of dtype float16"):
        Cast(layer, "float16").forward(*strict)


def test_the_strict_library_casts_what_it_has():
    layer, *arrays = case("float64")
    strict = [array_api_strict.asarray(array) for array in arrays]
    for got, expected in zip(
        three(Cast(layer, "float32"), *strict), three(Cast(layer, "float32"), *arrays), strict=True
    ):
        assert got.dtype == array_api_strict.float64
        assert np.allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_without_its_package_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    layer, weights, x, _ = case()
    with pytest.raises(ImportError, match=r"bfloat16.*ml_dtypes"):
        Cast(layer, "bfloat16").forward(weights, x)


def test_a_library_that_does_not_know_bfloat16_is_named(monkeypatch):
    def astype(array, dtype):
        raise ValueError("Unsupported dtype")

    layer, weights, x, _ = case()
    monkeypatch.setattr(namespace(x), "astype", astype)
    monkeypatch.setitem(sys.modules, "ml_dtypes", types.SimpleNamespace(bfloat16=np.dtype("float16")))
    with pytest.raises(TypeError, match=r"numpy cannot convert arrays of dtype float32 to float16: Unsupported"):
        Cast(layer, "bfloat16").forward(weights, x)


@pytest.fixture
def handle(monkeypatch):
    """The state of a cuBLAS handle, under a CuPy that has nothing else."""
    state = {"mode": 0}
    device = types.SimpleNamespace(get_cublas_handle=lambda: 7)
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(is_available=lambda: True, device=device)
    cublas = types.ModuleType("cupy_backends.cuda.libs.cublas")
    cublas.CUBLAS_TF32_TENSOR_OP_MATH = 3
    cublas.getMathMode = lambda handle: state["mode"] if handle == 7 else None
    cublas.setMathMode = lambda handle, mode: state.update({"mode": mode}) if handle == 7 else None
    space = types.ModuleType("array_api_compat.cupy")
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module in (cupy, cublas, space):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return state


def test_tensor_float_32_is_switched_on_for_a_block(handle):
    with tensor_float32("gpu"):
        assert handle["mode"] == 3
        with tensor_float32("gpu"):
            assert handle["mode"] == 3
        assert handle["mode"] == 3
    assert handle["mode"] == 0
    handle["mode"] = 16
    with pytest.raises(KeyError), tensor_float32("gpu"):
        raise KeyError
    assert handle["mode"] == 16


def test_tensor_float_32_changes_nothing_on_the_cpu(handle):
    for device in ("cpu", array_api_strict):
        with tensor_float32(device):
            assert handle["mode"] == 0
    with pytest.raises(ValueError, match="device"), tensor_float32("tpu"):
        pass


def test_cast_layers_meet_the_kernels_for_every_precision():
    assert {"float16", "bfloat16", "float32", "float64"} == set(_cuda.TYPES)
