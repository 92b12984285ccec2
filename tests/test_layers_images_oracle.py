"""Convolution and pooling against PyTorch in double precision."""

import numpy as np
import pytest

from linfb.engine.layers.convolution import Conv2d
from linfb.engine.layers.pooling import Flatten, GlobalAveragePool, MaxPool2d

pytestmark = pytest.mark.oracle


def close(a, b, tolerance=1e-10):
    b = b.detach().numpy()
    return a.shape == b.shape and np.abs(a - b).max() <= tolerance * np.abs(b).max()


def channels_last(tensor):
    return tensor.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [
        (1, 1, 0, (6, 5)), (1, 2, 0, (6, 5)), (3, 1, 1, (8, 7)), (3, 2, 1, (9, 8)), (3, 1, 0, (5, 6)),
        (2, 2, 0, (7, 6)), (4, 4, 0, (9, 12)), (5, 3, 2, (11, 8)), (7, 2, 3, (12, 13)), (2, 3, 1, (7, 9)),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("n_in", "n_out"), [(3, 8), (16, 5), (4, 1)])
def test_convolution(size, stride, padding, shape, n_in, n_out):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    layer, x = Conv2d(n_in, n_out, size, stride, padding), rng.standard_normal((6, *shape, n_in))
    kernel = rng.standard_normal(layer.kernel_shape)
    y, cache = layer.forward(kernel, x)
    delta = rng.standard_normal(y.shape)
    their_x, their_kernel = (torch.tensor(array, requires_grad=True) for array in (x, kernel))
    theirs = channels_last(
        torch.conv2d(their_x.permute(0, 3, 1, 2), their_kernel.permute(0, 3, 1, 2), stride=stride, padding=padding)
    )
    theirs.backward(torch.tensor(delta))
    assert close(y, theirs)
    assert close(layer.grad(kernel, cache, delta), their_kernel.grad)
    assert close(layer.pull(kernel, cache, delta), their_x.grad)
    assert not close(layer.pull(kernel, cache, delta * (1 + 1e-8)), their_x.grad)


@pytest.mark.parametrize(
    ("size", "stride", "shape"), [(2, None, (7, 6)), (3, 2, (9, 8)), (2, 3, (8, 8)), (3, 1, (5, 6))]
)
def test_max_pool(size, stride, shape):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    layer, x = MaxPool2d(size, stride), rng.standard_normal((5, *shape, 4))
    y, cache = layer.forward(None, x)
    delta, their_x = rng.standard_normal(y.shape), torch.tensor(x, requires_grad=True)
    theirs = channels_last(torch.nn.functional.max_pool2d(their_x.permute(0, 3, 1, 2), size, stride))
    theirs.backward(torch.tensor(delta))
    assert close(y, theirs, 0)
    assert close(layer.pull(None, cache, delta), their_x.grad)
    assert not close(layer.pull(None, cache, np.roll(delta, 1, axis=3)), their_x.grad)


def test_max_pool_of_equals_and_nan():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 2, (5, 6, 6, 4)).astype(float)
    x[0, 3, 3, 0] = np.nan
    y, cache = MaxPool2d(2).forward(None, x)
    their_x = torch.tensor(x, requires_grad=True)
    theirs = channels_last(torch.nn.functional.max_pool2d(their_x.permute(0, 3, 1, 2), 2))
    theirs.backward(torch.ones_like(theirs))
    assert np.array_equal(y, theirs.detach().numpy(), equal_nan=True)
    assert np.isnan(y).sum() == 1
    assert close(MaxPool2d(2).pull(None, cache, np.ones_like(y)), their_x.grad, 0)


@pytest.mark.parametrize("layer", [GlobalAveragePool(), Flatten()], ids=repr)
def test_average_and_flatten(layer):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 6, 7, 4))
    y, cache = layer.forward(None, x)
    delta, their_x = rng.standard_normal(y.shape), torch.tensor(x, requires_grad=True)
    theirs = their_x.mean((1, 2)) if isinstance(layer, GlobalAveragePool) else their_x.flatten(1)
    theirs.backward(torch.tensor(delta))
    assert close(y, theirs)
    assert close(layer.pull(None, cache, delta), their_x.grad)
    assert not close(layer.pull(None, cache, delta + 1e-6), their_x.grad)
