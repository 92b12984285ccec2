"""Convolution and pooling: nested loops, adjoints, twins, probes, and bits that depend on nothing but the image."""

import inspect
from itertools import product

import array_api_strict
import numpy as np
import pytest

from linfb._threads import threads
from linfb.backend import to_numpy
from linfb.engine.layers.convolution import Conv2d
from linfb.engine.layers.pooling import Flatten, GlobalAveragePool, MaxPool2d
from linfb.kernels import cpu_im2col, cpu_images, reference_images
from tests.blas_cases import rows_alike

TWINS = [reference_images, cpu_images]
CONVOLUTIONS = [  # size, stride, padding, (height, width)
    (1, 1, 0, (4, 5)),
    (1, 2, 0, (5, 4)),
    (1, 1, 1, (3, 3)),
    (2, 1, 0, (5, 3)),
    (2, 2, 1, (5, 6)),
    (2, 3, 0, (7, 8)),
    (3, 1, 0, (3, 4)),
    (3, 1, 1, (5, 4)),
    (3, 1, 4, (3, 2)),
    (3, 2, 1, (6, 7)),
    (3, 2, 0, (7, 4)),
    (3, 4, 2, (6, 9)),
    (4, 4, 0, (8, 10)),
    (5, 1, 2, (4, 5)),
    (5, 3, 2, (7, 6)),
]
POOLS = [(1, None, (3, 4)), (2, None, (5, 6)), (2, 1, (4, 5)), (3, 2, (7, 6)), (2, 3, (8, 6)), (3, None, (3, 3))]
COMPILED = [np.float32, np.float64]


def case(size, stride, padding, shape, *, batch=3, n_in=2, n_out=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x, kernel = rng.standard_normal((batch, *shape, n_in)), rng.standard_normal((n_out, size, size, n_in))
    places = [(length + 2 * padding - size) // stride + 1 for length in shape]
    delta = rng.standard_normal((batch, *places, n_out))
    return x.astype(dtype), kernel.astype(dtype), delta.astype(dtype)


def loops(x, kernel, delta, stride, padding):
    """The definitions: output, gradient of the kernel and error at the input."""
    y, gradient, dx = np.zeros_like(delta), np.zeros_like(kernel), np.zeros_like(x)
    for n, i, j, o in np.ndindex(*delta.shape):
        for a, b, c in np.ndindex(*kernel.shape[1:]):
            h, w = i * stride + a - padding, j * stride + b - padding
            if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
                y[n, i, j, o] += kernel[o, a, b, c] * x[n, h, w, c]
                gradient[o, a, b, c] += delta[n, i, j, o] * x[n, h, w, c]
                dx[n, h, w, c] += delta[n, i, j, o] * kernel[o, a, b, c]
    return y, gradient, dx


def functions(module, x, kernel, delta, stride, padding):
    return (
        module.convolve(x, kernel, stride, padding),
        module.convolve_grad(x, delta, kernel.shape[1:3], stride, padding),
        module.convolve_pull(delta, kernel, x.shape[1:3], stride, padding),
    )


def close(a, b, tolerance):
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_twins_have_the_same_functions():
    assert reference_images.__all__ == cpu_images.__all__
    for name in cpu_images.__all__:
        first, second = (inspect.signature(getattr(module, name)) for module in TWINS)
        assert first == second, name


@pytest.mark.parametrize("module", TWINS)
@pytest.mark.parametrize(("size", "stride", "padding", "shape"), CONVOLUTIONS)
def test_convolutions_are_the_nested_loops(module, size, stride, padding, shape):
    x, kernel, delta = case(size, stride, padding, shape)
    expected = loops(x, kernel, delta, stride, padding)
    for ours, theirs in zip(functions(module, x, kernel, delta, stride, padding), expected, strict=True):
        assert close(ours, theirs, 1e-12)
    turned = functions(module, x, kernel[:, ::-1, ::-1], delta, stride, padding)
    for ours, theirs in zip(turned[::2], expected[::2], strict=True):
        assert close(ours, theirs, 1e-12) is (size == 1)


@pytest.mark.parametrize("dtype", COMPILED)
@pytest.mark.parametrize("rows", [(1, 1), (4, 7), None], ids=repr)
def test_compiled_convolutions_agree_with_the_reference(monkeypatch, rows, dtype):
    if rows is not None:  # blocks of few patches, of parts of images, of several images
        monkeypatch.setattr(cpu_im2col, "ROWS", rows)
    rng, differ = np.random.default_rng(7), 0
    for seed in range(30):
        size, stride, padding, n_in, n_out, batch = (int(rng.integers(1, most)) for most in (5, 5, 4, 6, 6, 12))
        shape = tuple(int(length) for length in rng.integers(size, size + 6, 2))
        arrays = case(size, stride, padding, shape, batch=batch, n_in=n_in, n_out=n_out, seed=seed)
        expected = functions(reference_images, *arrays, stride, padding)
        x, kernel, delta = (array.astype(dtype) for array in arrays)
        for ours, theirs in zip(functions(cpu_images, x, kernel, delta, stride, padding), expected, strict=True):
            assert ours.dtype == dtype
            assert close(ours.astype(np.float64), theirs, 1e-13 if dtype == np.float64 else 2e-6)
        upside = cpu_images.convolve(x[:, ::-1], kernel, stride, padding)
        differ += not close(upside.astype(np.float64), expected[0], 1e-3)
    assert differ > 25  # the window may see zeros only


def test_kernels_that_are_not_square():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 5, 6, 2)), rng.standard_normal((3, 2, 4, 2))
    for stride, padding in ((1, 0), (1, 2), (2, 1), (3, 2)):
        delta = rng.standard_normal(reference_images.convolve(x, kernel, stride, padding).shape)
        expected = loops(x, kernel, delta, stride, padding)
        for module in TWINS:
            for ours, theirs in zip(functions(module, x, kernel, delta, stride, padding), expected, strict=True):
                assert close(ours, theirs, 1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_single_precision_errs_by_its_rounding_only(stride):
    single = case(3, stride, 1, (12, 11), batch=8, n_in=16, n_out=16, dtype=np.float32)
    double = [array.astype(np.float64) for array in single]
    exact = functions(reference_images, *double, stride, 1)
    sums = functions(reference_images, *map(abs, double), stride, 1)
    coarse = [array.astype(np.float16).astype(np.float32) for array in single]
    ours, rough = (functions(cpu_im2col, *arrays, stride, 1) for arrays in (single, coarse))
    for one, other, value, total in zip(ours, rough, exact, sums, strict=True):
        assert one.dtype == np.float32
        bound = 2 * np.finfo(np.float32).eps * total  # six sigma of roundings of running sums
        assert np.all(abs(one - value) <= bound)
        assert not np.all(abs(other - value) <= bound)


LAYERS = [
    *((Conv2d(2, 3, size, stride, padding), (*shape, 2)) for size, stride, padding, shape in CONVOLUTIONS),
    *((MaxPool2d(size, stride), (*shape, 2)) for size, stride, shape in POOLS),
    *((GlobalAveragePool(), shape) for shape in ((3, 4, 5), (6, 3), (2, 1, 3, 2))),
    *((Flatten(), shape) for shape in ((3, 4, 5), (6, 3), (4,))),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_pull_is_the_adjoint_of_the_jacobian(layer, shape, seed):
    rng = np.random.default_rng(seed)
    x = rng.permutation(2 * np.prod(shape)).reshape(2, *shape).astype(float)  # entries differ by 1 or more,
    v = rng.uniform(-0.4, 0.4, x.shape)  # and this moves no winner
    weights = rng.standard_normal(layer.kernel_shape) if isinstance(layer, Conv2d) else None
    y, cache = layer.forward(weights, x)
    assert y.shape[1:] == layer.out_shape(shape)
    Jv, delta = layer.forward(weights, x + v)[0] - y, rng.standard_normal(y.shape)
    back = layer.pull(weights, cache, delta)
    assert back.shape == x.shape
    scale = np.abs(x).max() * np.abs(delta).sum()
    assert abs(np.sum(back * v) - np.sum(delta * Jv)) <= 1e-14 * scale
    assert abs(np.sum(back * v)) > 1e-9 * scale
    shifted = np.roll(back.reshape(-1), 1)  # negative controls
    assert not abs(np.sum(shifted * v.reshape(-1)) - np.sum(delta * Jv)) <= 1e-14 * scale
    if isinstance(layer, Conv2d) and layer.size > 1:
        turned = layer.pull(weights[:, ::-1, ::-1], cache, delta)
        assert not abs(np.sum(turned * v) - np.sum(delta * Jv)) <= 1e-14 * scale


@pytest.mark.parametrize(("size", "stride", "padding", "shape"), CONVOLUTIONS)
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_grad_is_the_adjoint_in_a_kernel_of_any_rank(size, stride, padding, shape, rank):
    x, kernel, delta = case(size, stride, padding, shape, n_out=rank)
    layer = Conv2d(2, 3, size, stride, padding)
    y, cache = layer.forward(kernel, x)
    assert cache is x
    gradient = layer.grad(kernel, cache, delta)
    assert gradient.shape == kernel.shape
    scale = np.abs(y * delta).sum()
    assert abs(np.sum(gradient * kernel) - np.sum(delta * y)) <= 1e-13 * scale
    assert abs(np.sum(layer.pull(kernel, cache, delta) * x) - np.sum(delta * y)) <= 1e-13 * scale
    assert not abs(np.sum(layer.grad(kernel, cache, -delta) * kernel) - np.sum(delta * y)) <= 1e-13 * scale


def test_kernels_map_their_output_features():
    x, kernel, delta = case(3, 2, 1, (6, 7))
    layer, P = Conv2d(2, 3, 3, 2, 1), np.random.default_rng(1).standard_normal((2, 3))
    composed = layer.compose(P, kernel)
    assert close(layer.forward(composed, x)[0], layer.forward(kernel, x)[0] @ P.T, 1e-14)
    pulled = layer.pull(composed, x, delta[..., :2])
    assert close(pulled, layer.pull(kernel, x, delta[..., :2] @ P), 1e-14)
    mixed = np.tensordot(P, layer.grad(kernel, x, delta), 1)
    assert close(layer.grad(composed, x, delta @ P.T), mixed, 1e-13)
    assert not close(layer.grad(composed, x, delta[..., :2]), mixed, 1e-3)
    assert close(layer.contract(composed, kernel), np.einsum("rabc,oabc->ro", composed, kernel), 1e-14)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [*product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2)), (4, 4, 0), (2, 5, 0), (7, 2, 3)]
)
def test_probes_see_every_tap_once(size, stride, padding):
    layer = Conv2d(3, 2, size, stride, padding)
    probes = layer.probes(np, np.float64)
    assert len(probes) == stride * stride * 3
    for rank in (2, 4):
        kernel = np.random.default_rng(size).standard_normal((rank, size, size, 3))
        assert np.array_equal(layer.grad(kernel, probes, layer.forward(kernel, probes)[0]), kernel)
    parts = [layer.grad(kernel, one[None], layer.forward(kernel, one[None])[0]) for one in probes]
    assert np.array_equal(sum(parts), kernel)
    missing = probes[stride // 2 :: stride] if stride > 1 else probes[1:]
    assert not np.array_equal(layer.grad(kernel, missing, layer.forward(kernel, missing)[0]), kernel)


@pytest.mark.parametrize("dtype", COMPILED)
@pytest.mark.parametrize("rows", [None, (4, 4)], ids=repr)
@pytest.mark.parametrize(
    ("size", "stride", "padding", "n_in", "n_out"),
    [(3, 1, 1, 3, 32), (3, 2, 1, 8, 5), (1, 1, 0, 8, 16), (4, 4, 0, 3, 16), (3, 1, 1, 4, 1)],
)
def test_bits_of_an_image_do_not_depend_on_the_batch(monkeypatch, size, stride, padding, n_in, n_out, rows, dtype):
    if rows is not None:
        monkeypatch.setattr(cpu_im2col, "ROWS", rows)
    elif not rows_alike(dtype):
        pytest.skip("this BLAS rounds the rows of a product differently")
    shape = (8, 9)
    x, kernel, delta = case(size, stride, padding, shape, batch=130, n_in=n_in, n_out=n_out, dtype=dtype)
    y, _, dx = functions(cpu_images, x, kernel, delta, stride, padding)
    for part in (slice(0, 1), slice(57, 58), slice(129, 130), slice(3, 8), slice(125, 130)):
        assert same(cpu_images.convolve(x[part], kernel, stride, padding), y[part])
        assert same(cpu_images.convolve_pull(delta[part], kernel, shape, stride, padding), dx[part])
    assert not same(y[:1], y[1:2])


@pytest.mark.parametrize("dtype", COMPILED)
def test_bits_do_not_depend_on_threads(dtype):
    for size, stride, padding, n_in in ((3, 1, 1, 16), (3, 2, 1, 8), (1, 1, 0, 16)):
        x, kernel, delta = case(size, stride, padding, (16, 17), batch=70, n_in=n_in, n_out=8, dtype=dtype)
        results = []
        for n in (1, 2, 3):
            with threads(n):
                y, choice = cpu_images.max_pool(x, 3, 2)
                down = cpu_images.max_unpool(y, choice, x.shape[1:3], 3, 2)
                results.append((*functions(cpu_images, x, kernel, delta, stride, padding), y, choice, down))
        for other in results[1:]:
            assert all(same(a, b) for a, b in zip(results[0], other, strict=True))
        halves = [cpu_images.convolve_grad(x[p], delta[p], (size, size), stride, padding) for p in np.s_[:35, 35:]]
        assert not same(sum(halves), results[0][1])  # other sums are other bits
        assert close(sum(halves), results[0][1], 1e-4 if dtype == np.float32 else 1e-13)


def test_bits_of_an_average_do_not_depend_on_the_batch():
    for dtype, features in product(COMPILED, (1, 3, 16)):
        x = np.random.default_rng(0).standard_normal((130, 7, 9, features)).astype(dtype)
        y = GlobalAveragePool().forward(None, x)[0]
        assert y.dtype == dtype
        for part in (slice(0, 1), slice(129, 130), slice(3, 8)):
            assert same(GlobalAveragePool().forward(None, x[part])[0], y[part])


def test_views_and_read_only_arrays_are_taken_and_left_as_they_are():
    x, kernel, delta = case(3, 2, 1, (6, 7))
    expected = functions(cpu_images, x, kernel, delta, 2, 1)
    views = [np.asfortranarray(array) for array in (x, kernel, delta)]
    for array in views:
        array.flags.writeable = False
    for ours, theirs in zip(functions(cpu_images, *views, 2, 1), expected, strict=True):
        assert np.array_equal(ours, theirs)
    y, choice = cpu_images.max_pool(views[0], 2, 2)
    assert same(y, cpu_images.max_pool(x, 2, 2)[0])
    down = cpu_images.max_unpool(np.asfortranarray(y), np.asfortranarray(choice), (6, 7), 2, 2)
    assert same(down, cpu_images.max_unpool(y, choice, (6, 7), 2, 2))
    assert np.array_equal(views[0], x)
    assert not np.shares_memory(cpu_images.convolve(x, kernel[:, :1, :1], 1, 0), x)


def test_no_images_give_no_outputs():
    x, kernel, delta = case(3, 1, 1, (4, 5), batch=0)
    for module in TWINS:
        y, gradient, dx = functions(module, x, kernel, delta, 1, 1)
        assert (y.shape, dx.shape, gradient.tolist()) == (delta.shape, x.shape, np.zeros_like(kernel).tolist())


def pool_loops(x, delta, size, stride):
    y, choice, dx = np.zeros_like(delta), np.zeros(delta.shape, np.uint8), np.zeros_like(x)
    for n, i, j, c in np.ndindex(*delta.shape):
        window = [
            (x[n, i * stride + a, j * stride + b, c], i * stride + a, j * stride + b) for a, b in np.ndindex(size, size)
        ]
        best = max(range(size * size), key=lambda k: (window[k][0], -k))
        y[n, i, j, c], h, w = window[best]
        choice[n, i, j, c] = best
        dx[n, h, w, c] += delta[n, i, j, c]
    return y, choice, dx


@pytest.mark.parametrize("module", TWINS)
@pytest.mark.parametrize("dtype", COMPILED)
@pytest.mark.parametrize(("size", "stride", "shape"), POOLS)
def test_pooling_is_the_nested_loops(module, dtype, size, stride, shape):
    stride, rng = stride or size, np.random.default_rng(3)
    x = rng.integers(-2, 2, (4, *shape, 3)).astype(dtype)  # with equals
    places = [(length - size) // stride + 1 for length in shape]
    delta = rng.integers(1, 9, (4, *places, 3)).astype(dtype)  # sums are exact
    y, choice, dx = pool_loops(x, delta, size, stride)
    ours = module.max_pool(x, size, stride)
    assert same(ours[0], y)
    assert same(ours[1], choice)
    assert same(module.max_unpool(delta, choice, shape, size, stride), dx)
    if size > 1:
        assert not same(module.max_unpool(delta, choice ^ 1, shape, size, stride), dx)
        assert not same(-module.max_pool(-x, size, stride)[0], y)


@pytest.mark.parametrize("module", TWINS)
def test_nan_shows_after_pooling(module):
    for place in np.ndindex(2, 2):
        x = np.ones((1, 2, 2, 1))
        x[0, place[0], place[1], 0] = np.nan
        y, choice = module.max_pool(x, 2, 2)
        assert np.isnan(y).all()
        assert choice.item() == 2 * place[0] + place[1]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=repr)
def test_strict_arrays_give_the_same(layer, shape):
    rng, xp = np.random.default_rng(0), array_api_strict
    x = rng.standard_normal((3, *shape))
    weights = rng.standard_normal(layer.kernel_shape) if isinstance(layer, Conv2d) else None
    strict = None if weights is None else xp.asarray(weights)
    y, cache = layer.forward(weights, x)
    theirs, their_cache = layer.forward(strict, xp.asarray(x))
    delta = rng.standard_normal(y.shape)
    down, gradient = layer.pull(weights, cache, delta), layer.grad(weights, cache, delta)
    pairs = [(theirs, y), (layer.pull(strict, their_cache, xp.asarray(delta)), down)]
    if isinstance(layer, Conv2d):
        pairs.append((layer.grad(strict, their_cache, xp.asarray(delta)), gradient))
        pairs.append((layer.probes(xp, xp.float64), layer.probes(np, np.float64)))
    for ours, expected in pairs:
        assert isinstance(ours, type(xp.asarray(x)))
        assert close(to_numpy(ours), expected, 1e-13)
    assert not close(to_numpy(theirs), y + 1e-6, 1e-13)


def test_shapes_and_weights():
    layer = Conv2d(3, 8, 5, padding="same")
    assert layer == Conv2d(3, 8, 5, padding=2)
    assert layer.kernel_shape == (8, 5, 5, 3)
    assert layer.out_shape((9, 7, 3)) == (9, 7, 8)
    assert Conv2d(3, 8, 3, stride=2, padding="same").out_shape((9, 8, 3)) == (5, 4, 8)
    weights = layer.initial_weights(np.random.default_rng(0))
    assert weights.shape == layer.kernel_shape
    assert 0.9 / 75**0.5 < np.abs(weights).max() <= 1 / 75**0.5
    assert MaxPool2d(3) == MaxPool2d(3, 3)
    assert MaxPool2d(3, 2).out_shape((8, 7, 4)) == (3, 3, 4)
    assert GlobalAveragePool().out_shape((8, 7, 4)) == GlobalAveragePool().out_shape((5, 4)) == (4,)
    assert Flatten().out_shape((8, 7, 4)) == (224,)
    rng = np.random.default_rng(0)
    assert [each.initial_weights(rng) for each in (MaxPool2d(2), GlobalAveragePool(), Flatten())] == [None] * 3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Conv2d(0, 3, 3), ValueError, "n_in must be >= 1, got 0"),
        (lambda: Conv2d(3, 3.0, 3), TypeError, "n_out"),
        (lambda: Conv2d(3, 3, (3, 3)), TypeError, "size"),
        (lambda: Conv2d(3, 3, 3, stride=0), ValueError, "stride must be >= 1, got 0"),
        (lambda: Conv2d(3, 3, 3, padding=-1), ValueError, "padding must be >= 0, got -1"),
        (lambda: Conv2d(3, 3, 3, padding="full"), ValueError, "padding must be an integer or 'same', got 'full'"),
        (lambda: Conv2d(3, 3, 4, padding="same"), ValueError, "needs an odd size, got size=4"),
        (lambda: Conv2d(3, 3, 3).out_shape((8, 8, 4)), ValueError, r"takes images \(height, width, 3\).*\(8, 8, 4\)"),
        (lambda: Conv2d(3, 3, 3).out_shape((8, 3)), ValueError, "takes images"),
        (lambda: Conv2d(3, 3, 5, padding=1).out_shape((2, 8, 3)), ValueError, "at least 3 pixels a side"),
        (lambda: MaxPool2d(17), ValueError, "size must be <= 16, got 17"),
        (lambda: MaxPool2d(2, 0), ValueError, "stride must be >= 1, got 0"),
        (lambda: MaxPool2d(2, 1.5), TypeError, "stride must be an integer"),
        (lambda: MaxPool2d(3).out_shape((2, 5, 1)), ValueError, "at least 3 pixels a side, got shape"),
        (lambda: MaxPool2d(3).out_shape((5, 5)), ValueError, "takes images"),
        (lambda: GlobalAveragePool().out_shape((5,)), ValueError, "places to average over"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
