"""The same work in other libraries, each an optional install; a missing one is None."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from tests.benchmarks.networks import MOMENTUM, RATE, Sizes


def _optional(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def torch() -> Any:
    """Return PyTorch, or None."""
    return _optional("torch")


def jax() -> Any:
    """Return JAX, or None."""
    return _optional("jax")


def mlp(sizes: Sizes, norm: str | None = None) -> Any:
    """Return the twin of :func:`tests.benchmarks.networks.mlp`."""
    return _perceptron((sizes.n_in, *sizes.widths, 10), norm)


def _perceptron(widths: tuple[int, ...], norm: str | None) -> Any:
    nn = torch().nn
    *hidden, last = pairwise(widths)
    layers: list[Any] = []
    for below, width in hidden:
        layers += [nn.Linear(below, width, bias=norm is None)]
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*last))


def vgg(sizes: Sizes, norm: str | None = None) -> Any:
    """Return the twin of :func:`tests.benchmarks.networks.vgg`."""
    nn = torch().nn
    layers: list[Any] = []
    below = 3
    for i, width in enumerate(sizes.channels):
        layers += [nn.MaxPool2d(2)] if i else []
        for _ in range(2):
            layers += [nn.Conv2d(below, width, 3, padding=1, bias=norm is None)]
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers += [nn.ReLU()]
            below = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(below, 10))


def vit(sizes: Sizes, norm: None = None) -> Any:
    """Return the twin of :func:`tests.benchmarks.networks.vit`, with PyTorch's fused attention."""
    t = torch()
    nn, functional = t.nn, t.nn.functional
    dim, heads, side = sizes.dim, sizes.heads, sizes.image // 4

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.qkv, self.mix = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.norm2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

        def forward(self, x: Any) -> Any:
            n, tokens, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim)
            x = x + self.mix(seen)
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(48, dim)
            self.start = nn.ParameterList([t.zeros(dim), t.zeros(side**2 + 1, dim)])
            self.blocks = nn.Sequential(*(Block() for _ in range(sizes.depth)))
            self.norm, self.readout = nn.LayerNorm(dim), nn.Linear(dim, 10)

        def forward(self, x: Any) -> Any:
            n = x.shape[0]
            patches = x.view(n, 3, side, 4, side, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, side**2, 48)
            token, place = self.start
            x = t.cat([token.expand(n, 1, dim), self.embed(patches)], 1) + place
            return self.readout(self.norm(self.blocks(x))[:, 0])

    return Transformer()


def placed(net: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Return the network with our weights in it, taken in order; kernels of convolutions have their axes moved."""
    t = torch()
    parameters = list(net.parameters())
    with t.no_grad():
        for parameter, array in zip(parameters, weights.values(), strict=True):
            parameter.copy_(t.from_numpy(_theirs(array, parameter.ndim)).reshape(parameter.shape))
    return net


def _theirs(array: np.ndarray, ndim: int) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if ndim == 4 else np.array(array)


def _tensors(x: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    t = torch()
    inputs = t.from_numpy(x)
    return inputs.permute(0, 3, 1, 2) if x.ndim == 4 else inputs, t.from_numpy(labels)


def stepper(net: Any, x: np.ndarray, labels: np.ndarray, *, channels_last: bool = False) -> Callable[[], Any]:
    """Return a function that takes one training step after the other."""
    t = torch()
    inputs, targets = _tensors(x, labels)
    if channels_last:
        net, inputs = net.to(memory_format=t.channels_last), inputs.contiguous(memory_format=t.channels_last)
    else:
        inputs = inputs.contiguous()
    optimiser = t.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)

    def call() -> Any:
        optimiser.zero_grad(set_to_none=True)
        loss = t.nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimiser.step()
        return loss

    return call


def gradients(net: Any, x: np.ndarray, labels: np.ndarray, dtype: str = "float32") -> list[np.ndarray]:
    """Return the gradients of all parameters on a batch, computed by a copy of the network in some precision."""
    t = torch()
    net = copy.deepcopy(net).to(getattr(t, dtype))
    inputs, targets = _tensors(x.astype(dtype), labels)
    t.nn.functional.cross_entropy(net(inputs.contiguous()), targets).backward()
    return [parameter.grad.numpy() for parameter in net.parameters()]


def like_theirs(ours: Mapping[str, np.ndarray], theirs: list[np.ndarray]) -> list[np.ndarray]:
    """Return our arrays in the order and shapes of theirs."""
    pairs = zip(ours.values(), theirs, strict=True)
    return [_theirs(array, other.ndim).reshape(other.shape) for array, other in pairs]


def single_members(
    widths: tuple[int, ...], members: int, x: np.ndarray, labels: np.ndarray, in_a_row: int
) -> Callable[[], Any]:
    """Return a function that takes some steps of each of so many perceptrons with batch normalisation, one by one."""
    steps = [stepper(_perceptron(widths, "batch"), x, labels) for _ in range(members)]
    return lambda: [call() for call in steps for _ in range(in_a_row)]


def online_scan(
    weights: tuple[np.ndarray, ...], inputs: np.ndarray, labels: np.ndarray, step_size: float
) -> Callable[[], tuple[np.ndarray, ...]]:
    """Return a function that learns sample by sample with backpropagation, in one compiled scan.

    Parameters
    ----------
    weights : tuple of array, shapes (out, in)
    inputs, labels : array, shapes (step, in) and (step, out)
    step_size : float
    """
    j = jax()
    numpy = j.numpy
    xs, ys = numpy.asarray(inputs), numpy.asarray(labels)
    start = tuple(numpy.asarray(W) for W in weights)

    def one(ws: Any, pair: Any) -> Any:
        x, y = pair
        activity = [x]
        for W in ws:
            activity.append(W @ activity[-1])
        delta, moved = activity[-1] - y, []
        for W, below in zip(reversed(ws), reversed(activity[:-1]), strict=True):
            moved.insert(0, W - step_size * numpy.outer(delta, below))
            delta = delta @ W
        return tuple(moved), None

    scan = j.jit(lambda ws: j.lax.scan(one, ws, (xs, ys))[0])
    return lambda: tuple(np.asarray(W) for W in j.block_until_ready(scan(start)))


def trajectory(
    weights: tuple[np.ndarray, np.ndarray], Sigma_yx: np.ndarray, Sigma_xx: np.ndarray, times: np.ndarray, rtol: float
) -> Callable[[], np.ndarray]:
    """Return a function that integrates gradient flow of a two-layer linear network by SciPy's DOP853.

    It returns the map W2 W1 at each of the times, shape (time, out, in).
    """
    from scipy.integrate import solve_ivp

    shapes = [W.shape for W in weights]
    cut = weights[0].size

    def split(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[:cut].reshape(shapes[0]), flat[cut:].reshape(shapes[1])

    def field(_: float, flat: np.ndarray) -> np.ndarray:
        W1, W2 = split(flat)
        error = Sigma_yx - W2 @ W1 @ Sigma_xx
        return np.concatenate([(W2.T @ error).ravel(), (error @ W1.T).ravel()])

    start = np.concatenate([W.ravel() for W in weights])

    def call() -> np.ndarray:
        found = solve_ivp(
            field, (0.0, times[-1]), start, method="DOP853", t_eval=times, rtol=rtol, atol=1e-3 * rtol
        )  # fmt: skip
        return np.stack([W2 @ W1 for W1, W2 in map(split, found.y.T)])

    return call
