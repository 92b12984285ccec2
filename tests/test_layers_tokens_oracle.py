"""PyTorch in float64 as an independent witness of the layers of vectors and sequences."""

import numpy as np
import pytest

from linfb._threads import threads
from linfb.engine.layers import (
    GELU,
    Attention,
    BatchNorm,
    Bias,
    ClassToken,
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

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
F = torch.nn.functional

TOLERANCE = 1e-10


def attention(layer):
    def run(x, w):
        batch, n, width = x.shape
        split = x.reshape(batch, n, 3, layer.heads, width // (3 * layer.heads)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*split, is_causal=layer.causal)
        return y.transpose(1, 2).reshape(batch, n, width // 3)

    return run


def patches(x, w):
    return F.conv2d(x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), stride=w.shape[1]).flatten(2).transpose(1, 2)


def batch_norm(x, w):
    channels_second = x.movedim(-1, 1)
    return F.batch_norm(channels_second, None, None, w["gain"], w["shift"], True, eps=1e-3).movedim(1, -1)


class Uniform:
    """A key that gives the same numbers again."""

    def uniform(self, shape, like):
        return np.random.default_rng(3).random(shape)


def dropout(x, w):
    return x * torch.tensor(Uniform().uniform(x.shape, x) >= 0.3) / 0.7


def stochastic_depth(x, w):
    return x * torch.tensor(Uniform().uniform((len(x), 1, 1), x) >= 0.3) / 0.7


CASES = {
    "relu": (ReLU(), (7, 5), lambda x, w: F.relu(x)),
    "gelu": (GELU(), (7, 5), lambda x, w: F.gelu(x)),
    "tanh": (Tanh(), (7, 5), lambda x, w: torch.tanh(x)),
    "erf": (Erf(), (7, 5), lambda x, w: torch.erf(x / 2**0.5)),
    "identity": (Identity(), (7, 5), lambda x, w: x * 1),
    "bias": (Bias(5), (4, 3, 5), lambda x, w: x + w),
    "layer norm": (LayerNorm(5, epsilon=1e-3), (7, 5), lambda x, w: F.layer_norm(x, (5,), w["gain"], w["shift"], 1e-3)),
    "batch norm": (BatchNorm(5, epsilon=1e-3), (5,), batch_norm),
    "batch norm of images": (BatchNorm(5, epsilon=1e-3), (4, 3, 5), batch_norm),
    "attention": (Attention(12, 3), (7, 36), attention(Attention(12, 3))),
    "causal attention": (Attention(12, 2, causal=True), (7, 36), attention(Attention(12, 2, causal=True))),
    "patches": (PatchEmbedding((8, 4, 3), 2, 5), (8, 4, 3), patches),
    "class token": (ClassToken(5), (7, 5), lambda x, w: torch.cat([w.expand(len(x), 1, 5), x], dim=1)),
    "positions": (PositionalEmbedding(7, 5), (7, 5), lambda x, w: x + w),
    "token": (TakeToken(2), (7, 5), lambda x, w: x[:, 2]),
    "dropout": (Dropout(0.3), (7, 5), dropout),
    "stochastic depth": (StochasticDepth(0.3), (7, 5), stochastic_depth),
}
WRONG = {  # what almost is the same
    "gelu": lambda x, w: F.gelu(x, approximate="tanh"),
    "layer norm": lambda x, w: F.layer_norm(x, (5,), w["gain"], w["shift"], 1e-5),
    "batch norm of images": lambda x, w: F.layer_norm(x, (5,), w["gain"], w["shift"], 1e-3),
    "attention": attention(Attention(12, 3, causal=True)),
    "causal attention": attention(Attention(12, 2)),
    "patches": lambda x, w: patches(x.transpose(1, 2), w.transpose(1, 2)),
    "dropout": lambda x, w: dropout(x, w) * 0.7,
}


def tensor(array):
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    return ours.shape == theirs.shape and np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def both(layer, shape, function):
    """Return pairs of results, ours and PyTorch's: output, error at the input, gradients."""
    rng = np.random.default_rng(0)
    x, start = rng.standard_normal((6, *shape)), layer.initial_weights(rng)
    w = rebuild(start, {k: v + rng.standard_normal(v.shape) for k, v in flatten(start).items()})
    x_there, w_there = tensor(x), rebuild(w, {k: tensor(v) for k, v in flatten(w).items()})
    expected = function(x_there, w_there)
    delta = rng.standard_normal(tuple(expected.shape))
    expected.backward(torch.tensor(delta))
    with threads(2):
        y, cache = layer.forward(w, x, Uniform()) if getattr(layer, "noisy", False) else layer.forward(w, x)
        gradients = flatten(layer.grad(w, cache, delta))
        pulled = layer.pull(w, cache, delta)
    pairs = [(y, expected), (pulled, x_there.grad)]
    return pairs + [(gradients[path], leaf.grad) for path, leaf in flatten(w_there).items()]


@pytest.mark.parametrize("name", CASES)
def test_layer_agrees(name):
    layer, shape, function = CASES[name]
    assert all(close(ours, theirs) for ours, theirs in both(layer, shape, function))


@pytest.mark.parametrize("name", WRONG)
def test_what_almost_is_the_same_does_not_agree(name):
    layer, shape, _ = CASES[name]
    pairs = both(layer, shape, WRONG[name])
    assert not any(close(ours, theirs) for ours, theirs in pairs[:2])


def test_token_embedding_agrees():
    rng = np.random.default_rng(0)
    layer, W, x = TokenEmbedding(11, 5), rng.standard_normal((5, 11)), rng.integers(0, 11, (6, 9))
    delta, W_there = rng.standard_normal((6, 9, 5)), tensor(W)
    expected = F.embedding(torch.tensor(x), W_there.T)
    expected.backward(torch.tensor(delta))
    y, cache = layer.forward(W, x)
    assert close(y, expected)
    assert close(layer.grad(W, cache, delta), W_there.grad)
    assert not close(layer.grad(W, cache[:, ::-1], delta), W_there.grad)


def test_running_moments_of_images_agree():
    rng = np.random.default_rng(0)
    layer, x = BatchNorm(3), 1 + 2 * rng.standard_normal((3, 8, 4, 5, 3))
    w, buffers = layer.initial_weights(rng), layer.initial_buffers()
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for batch in x:
        buffers = layer.update_buffers(buffers, layer.forward(w, batch)[1])
        F.batch_norm(torch.tensor(batch).movedim(-1, 1), mean, variance, training=True)
    assert close(buffers["mean"], mean)
    assert close(buffers["variance"], variance)
    expected = F.batch_norm(torch.tensor(x[0]).movedim(-1, 1), mean, variance).movedim(1, -1)
    assert close(layer.evaluate(w, buffers, x[0]), expected)
    assert not close(layer.forward(w, x[0])[0], expected)
