"""Winograd's convolutions against products with patches: values, adjoints, single precision, bits, what is refused."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linfb._threads import threads
from linfb.engine.layers import Conv2d
from linfb.kernels import cpu_im2col, cpu_images, cpu_winograd, reference_images
from tests.blas_cases import rows_alike
from tests.test_layers_images import case, close, functions, same

SHAPES = [(3, 3), (4, 4), (5, 7), (8, 6), (1, 9), (13, 12)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "padding"), [*product(SHAPES, (1, 2)), *product(SHAPES[:4], (0,)), ((1, 1), 1)])
def test_convolutions_are_those_of_the_reference(shape, padding, dtype):
    arrays = case(3, 1, padding, shape, n_in=9, n_out=13)
    expected = functions(reference_images, *arrays, 1, padding)
    x, kernel, delta = (array.astype(dtype) for array in arrays)
    tolerance = 1e-14 if dtype == np.float64 else 5e-6  # 23 and 42 epsilon of the largest entry
    for ours, theirs in zip(functions(cpu_winograd, x, kernel, delta, 1, padding), expected, strict=True):
        assert ours.dtype == dtype
        assert close(ours.astype(np.float64), theirs, tolerance)
    turned = functions(cpu_winograd, x, kernel[:, ::-1, ::-1], delta, 1, padding)
    assert shape == (1, 1) or not close(turned[0].astype(np.float64), expected[0], 1e-3)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 9), height=st.integers(1, 11), width=st.integers(1, 11), padding=st.integers(0, 2),
    n_in=st.integers(8, 20), n_out=st.integers(8, 20), seed=st.integers(0, 99),
)  # fmt: skip
def test_error_and_gradient_are_adjoints(batch, height, width, padding, n_in, n_out, seed):
    if min(height, width) + 2 * padding < 3:
        return
    x, kernel, delta = case(3, 1, padding, (height, width), batch=batch, n_in=n_in, n_out=n_out, seed=seed)
    y, gradient, dx = functions(cpu_winograd, x, kernel, delta, 1, padding)
    value, scale = np.sum(y * delta), np.abs(y * delta).sum()
    assert abs(np.sum(dx * x) - value) <= 1e-13 * scale
    assert abs(np.sum(gradient * kernel) - value) <= 1e-13 * scale
    assert not abs(np.sum(gradient * kernel) + value) <= 1e-13 * scale or abs(value) <= 1e-12 * scale


@pytest.mark.parametrize("seed", range(3))
def test_errors_in_single_precision_are_a_few_times_those_of_a_plain_sum(seed):
    single = case(3, 1, 1, (16, 16), batch=4, n_in=64, n_out=32, seed=seed, dtype=np.float32)
    exact = functions(reference_images, *(array.astype(np.float64) for array in single), 1, 1)
    ways = [functions(module, *single, 1, 1) for module in (cpu_winograd, cpu_im2col)]
    coarse = functions(cpu_winograd, *(array.astype(np.float16).astype(np.float32) for array in single), 1, 1)
    for ours, plain, rough, value in zip(*ways, coarse, exact, strict=True):
        ours, plain, rough = (np.sqrt(np.mean((each - value) ** 2)) for each in (ours, plain, rough))
        assert ours <= 6 * plain  # BLAS sums in blocks; against a running sum the factor is 3 to 4
        assert rough > 100 * plain


def test_what_is_not_a_number_shows_where_it_is_seen():
    for odd, dtype in product((np.nan, np.inf), (np.float32, np.float64)):
        x, kernel, delta = case(3, 1, 1, (9, 9), n_in=8, n_out=8, dtype=dtype)
        x[1, 4, 4, 3], delta[2, 8, 0, 5] = odd, odd
        with np.errstate(invalid="ignore"):
            y, gradient, dx = functions(cpu_winograd, x, kernel, delta, 1, 1)
        assert not np.isfinite(y[1, 3:6, 3:6]).any()
        assert not np.isfinite(dx[2, 7:, :2]).any()
        assert not np.isfinite(gradient[:, :, :, 3]).any()
        assert np.isfinite(y[[0, 2]]).all()  # other images do not see it
        assert np.isfinite(dx[:2]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tiles", [None, 1], ids=repr)
@pytest.mark.parametrize(("shape", "n_in", "n_out"), [((8, 9), 16, 8), ((4, 4), 9, 40), ((40, 33), 8, 8)])
def test_bits_of_an_image_do_not_depend_on_the_batch(monkeypatch, shape, n_in, n_out, tiles, dtype):
    if tiles is not None:  # an image a product
        monkeypatch.setattr(cpu_winograd, "TILES", tiles)
    elif not rows_alike(dtype):
        pytest.skip("this BLAS rounds the rows of a product differently")
    x, kernel, delta = case(3, 1, 1, shape, batch=37, n_in=n_in, n_out=n_out, dtype=dtype)
    y, _, dx = functions(cpu_winograd, x, kernel, delta, 1, 1)
    for part in (slice(0, 1), slice(17, 18), slice(36, 37), slice(3, 8), slice(30, 37)):
        assert same(cpu_winograd.convolve(x[part], kernel, 1, 1), y[part])
        assert same(cpu_winograd.convolve_pull(delta[part], kernel, shape, 1, 1), dx[part])
    assert not same(y[:1], y[1:2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_threads(monkeypatch, dtype):
    monkeypatch.setattr(cpu_winograd, "SUMMED", 1 << 15)  # several blocks
    x, kernel, delta = case(3, 1, 1, (16, 17), batch=20, n_in=16, n_out=8, dtype=dtype)
    results = []
    for n in (1, 2, 3):
        with threads(n):
            results.append(functions(cpu_winograd, x, kernel, delta, 1, 1))
    results.append(functions(cpu_winograd, x, kernel, delta, 1, 1))
    for other in results[1:3]:
        assert all(same(a, b) for a, b in zip(results[0], other, strict=True))
    halves = [cpu_winograd.convolve_grad(x[p], delta[p], (3, 3), 1, 1) for p in np.s_[:10, 10:]]
    assert not same(sum(halves), results[0][1])  # other sums are other bits
    assert close(sum(halves), results[0][1], 1e-4 if dtype == np.float32 else 1e-13)


def test_precisions_may_differ():
    x, kernel, delta = case(3, 1, 1, (5, 6), n_in=8, n_out=9)
    expected = functions(reference_images, x.astype(np.float32), kernel, delta, 1, 1)
    for ours, theirs in zip(functions(cpu_winograd, x.astype(np.float32), kernel, delta, 1, 1), expected, strict=True):
        assert close(ours, theirs, 1e-14)
        assert not close(ours.astype(np.float32).astype(float), theirs, 1e-14)


def test_no_images_and_views():
    x, kernel, delta = case(3, 1, 1, (4, 5), batch=0, n_in=8, n_out=9)
    y, gradient, dx = functions(cpu_winograd, x, kernel, delta, 1, 1)
    assert (y.shape, dx.shape, gradient.tolist()) == (delta.shape, x.shape, np.zeros_like(kernel).tolist())
    arrays = case(3, 1, 1, (4, 5), n_in=8, n_out=9)
    views = [np.asfortranarray(array) for array in arrays]
    for array in views:
        array.flags.writeable = False
    for ours, theirs in zip(*(functions(cpu_winograd, *each, 1, 1) for each in (views, arrays)), strict=True):
        assert same(ours, theirs)


def test_layers_take_the_algorithm_that_is_asked_for():
    x, kernel, delta = case(3, 1, 1, (8, 8), n_in=8, n_out=12, dtype=np.float32)
    found = {}
    for algorithm in ("auto", "im2col", "winograd"):
        layer = Conv2d(8, 12, 3, padding=1, algorithm=algorithm)
        y, cache = layer.forward(kernel, x)
        found[algorithm] = (y, layer.grad(kernel, cache, delta), layer.pull(kernel, cache, delta))
    for name, module in (("auto", cpu_winograd), ("im2col", cpu_im2col), ("winograd", cpu_winograd)):
        assert all(same(a, b) for a, b in zip(found[name], functions(module, x, kernel, delta, 1, 1), strict=True))
    assert not any(same(a, b) for a, b in zip(found["im2col"], found["winograd"], strict=True))
    few = layer.pull(kernel[:3], cache, delta[..., :3])  # fewer features than a vector has entries
    assert same(few, cpu_im2col.convolve_pull(delta[..., :3], kernel[:3], (8, 8), 1, 1))


def test_small_images_and_other_windows_go_to_patches():
    for size, stride, padding, shape in ((3, 2, 1, (8, 8)), (5, 1, 2, (8, 8)), (3, 1, 1, (5, 5)), (1, 1, 0, (8, 8))):
        arrays = case(size, stride, padding, shape, n_in=8, n_out=8, dtype=np.float32)
        ways = [functions(module, *arrays, stride, padding) for module in (cpu_images, cpu_im2col)]
        assert all(same(a, b) for a, b in zip(*ways, strict=True))


def test_representations_are_those_of_old():
    assert repr(Conv2d(3, 8, 3)) == "Conv2d(n_in=3, n_out=8, size=3, stride=1, padding=0)"
    assert repr(Conv2d(8, 8, 3, algorithm="im2col")).endswith("padding=0, algorithm='im2col')")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, 5), "needs size=3.*got size=5"),
        ((8, 8, 3, 2), "stride=2"),
        ((8, 8, 3, 1, 3), "padding=3"),
        ((3, 8, 3), "at least 8 features on either side.*n_in=3"),
        ((8, 7, 3), "n_out=7"),
    ],
)
def test_other_convolutions_are_refused(arguments, message):
    assert Conv2d(*arguments)
    with pytest.raises(ValueError, match=message):
        Conv2d(*arguments, algorithm="winograd")
    with pytest.raises(ValueError, match="algorithm must be one of 'auto', 'im2col', 'winograd', got 'fft'"):
        Conv2d(*arguments, algorithm="fft")
