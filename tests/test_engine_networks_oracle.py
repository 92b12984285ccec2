"""PyTorch in float64 as a witness for whole networks: every kind of layer under every rule, gradients of all arrays.

The way back is replaced in an autograd function; layers and rules are written anew here, from the equations.
"""

import numpy as np
import pytest

from linfb import rules
from linfb.backend import Key
from linfb.engine import Optimizers, cross_entropy, decoder, sgd, vit
from linfb.engine.backward import backward, pathways
from linfb.engine.layers import BatchNorm, Bias, Conv2d, Dense, Flatten, GlobalAveragePool, MaxPool2d, ReLU, residual
from linfb.engine.losses import one_hot
from linfb.engine.models import Model, forward
from linfb.engine.state import initial_state
from linfb.engine.trees import flatten, rebuild
from linfb.rules import mirrors, readers

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
F = torch.nn.functional


def convolutional():
    block = (Conv2d(6, 8, 3, stride=2, padding=1), BatchNorm(8), ReLU(), Conv2d(8, 8, 3, padding=1), BatchNorm(8))
    layers = (
        Conv2d(2, 6, 3, padding=1), BatchNorm(6), ReLU(), MaxPool2d(2),
        *residual(*block, shortcut=(Conv2d(6, 8, 1, stride=2), BatchNorm(8))), ReLU(),
        *residual(Conv2d(8, 8, 3, padding=1), Bias(8)), ReLU(), GlobalAveragePool(), Dense(8, 5), Bias(5),
    )  # fmt: skip
    return Model(layers, (9, 8, 2))


def flattened():
    layers = (Conv2d(2, 4, 3), Bias(4), ReLU(), Conv2d(4, 3, 2, stride=2), Bias(3), ReLU(), Flatten(), Dense(12, 5))
    return Model(layers, (7, 6, 2))


NETWORKS = {
    "convolutional": convolutional,
    "flattened": flattened,
    "vit": lambda: vit((8, 8, 2), 5, patch=4, width=6, depth=2, heads=2, dropout=0.0, drop_path=0.0),
    "decoder": lambda: decoder(7, 9, width=6, depth=1, heads=3),
}
RULES = {
    "bp": rules.backpropagation(),
    "fa": rules.feedback_alignment(),
    "fa rank": rules.feedback_alignment(rank=3, gain="full_rank"),
    "zero": rules.zero_feedback(),
    "kp": rules.kolen_pollack(),
    "dfa": rules.direct_feedback_alignment(),
    "low-rank": rules.low_rank(2),
    "normalised": rules.low_rank(2, reader=readers.Oja(covariance="normalised")),
    "some layers": rules.low_rank(2, layers=(1, 2)),
    "direct": rules.direct_low_rank(2),
    "local": rules.local(2),
    "normative": rules.normative(2),
    "exact, read": rules.Rule("exact", "above", readers.Fixed(), mirrors.Exact(), 2),
    "weight mirror": rules.low_rank(2, mirror=mirrors.WeightMirror()),
    "sign": rules.Rule("sign", "above", readers.Identity(), mirrors.Sign("fixed")),
}


def tensor(array, grad=False):
    return torch.tensor(np.array(array), dtype=torch.float64, requires_grad=grad)


def close(ours, theirs, tolerance=1e-10):
    theirs = theirs.detach().numpy()
    scale = max(np.abs(theirs).max(initial=0.0), 1e-300)
    return ours.shape == theirs.shape and np.abs(ours - theirs).max(initial=0.0) <= tolerance * scale


def linear(layer, K, x):
    """What a kernel layer does with any kernel."""
    name = type(layer).__name__
    if name == "Conv2d":
        y = F.conv2d(x.permute(0, 3, 1, 2), K.permute(0, 3, 1, 2), stride=layer.stride, padding=layer.padding)
        return y.permute(0, 2, 3, 1)
    if name == "PatchEmbedding":
        y = F.conv2d(x.permute(0, 3, 1, 2), K.permute(0, 3, 1, 2), stride=layer.patch)
        return y.flatten(2).transpose(1, 2)
    return F.linear(F.one_hot(x.long(), K.shape[1]).double() if name == "TokenEmbedding" else x, K)


def other(layer, w, x):
    """What all other layers do."""
    name = type(layer).__name__
    if name == "BatchNorm":
        rows = F.batch_norm(x.reshape(-1, x.shape[-1]), None, None, w["gain"], w["shift"], training=True)
        return rows.reshape(x.shape)
    if name == "Attention":
        q, k, v = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in x.chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=layer.causal).transpose(1, 2).flatten(2)
    return {
        "Bias": lambda: x + w,
        "ReLU": lambda: torch.relu(x),
        "GELU": lambda: F.gelu(x),
        "LayerNorm": lambda: F.layer_norm(x, x.shape[-1:], w["gain"], w["shift"]),
        "MaxPool2d": lambda: F.max_pool2d(x.permute(0, 3, 1, 2), layer.size, layer.stride).permute(0, 2, 3, 1),
        "GlobalAveragePool": lambda: x.flatten(1, -2).mean(1),
        "Flatten": lambda: x.flatten(1),
        "Dropout": lambda: x,
        "StochasticDepth": lambda: x,
        "ClassToken": lambda: torch.cat([w.reshape(1, 1, -1).expand(len(x), 1, -1), x], 1),
        "PositionalEmbedding": lambda: x + w,
        "TakeToken": lambda: x[:, 0],
    }[name]()


def pulled(f, at, cotangent):
    return torch.func.vjp(f, at)[1](cotangent)[0]


class Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, layer, way, notes):
        ctx.save_for_backward(x, W)
        ctx.layer, ctx.way, ctx.notes = layer, way, notes
        return linear(layer, W, x)

    @staticmethod
    def backward(ctx, delta):
        x, W = ctx.saved_tensors
        gradient = pulled(lambda K: linear(ctx.layer, K, x), W, delta)
        return ctx.way(x, W, delta, ctx.notes) if ctx.needs_input_grad[0] else None, gradient, None, None, None


class Cut(torch.autograd.Function):
    """The skip connection of a direct rule: it asks for an error and hands on none."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, delta):
        return torch.zeros_like(delta)


def carried(rule, layer, channel, error, targets, last):
    """Return the way back of one kernel layer; it notes what P and Q descend."""
    P, Q = (None if a is None else tensor(a) for a in (channel.P, channel.Q))
    direct = rule.source == "network"

    def way(x, W, delta, notes):
        read = error() if direct else delta
        samples = error().shape[:-1].numel()
        z = read if P is None else read @ P.T
        f = (lambda K, h: h.flatten(z.ndim - 1) @ K.flatten(1).T) if direct else (lambda K, h: linear(layer, K, h))
        flat = [t.reshape(-1, t.shape[-1]) for t in (read, z)]
        if rule.reader.name == "oja":
            rows = samples * flat[0]
            if rule.reader.covariance == "normalised":
                rows = rows - rows.mean(0)
                rows = rows / rows.std(0, correction=0).max()
            C = rows.T @ rows / len(rows)
            notes["P"] = -P @ C @ (torch.eye(len(C), dtype=C.dtype) - P.T @ P)
        if rule.reader.name == "local":
            activity = f(Q, x)
            notes["P"] = activity.reshape(-1, activity.shape[-1]).T @ flat[0]
        if rule.reader.name == "normative":
            residue = P.T @ Q.flatten(1) - W.flatten(1)
            notes["P"], notes["Q"] = Q.flatten(1) @ residue.T, (P @ residue).reshape(Q.shape)
        if rule.mirror.name == "kolen_pollack":
            notes["Q"] = pulled(lambda K: f(K, x), Q, z)
        if rule.mirror.name == "weight_mirror":
            notes["Q"] = Q - torch.tensordot(P, W, 1)
        if rule.mirror.name == "zero":
            return torch.zeros_like(x)
        kernel = Q
        if rule.mirror.name == "exact":
            kernel = W if P is None else torch.tensordot(P, W, 1)
        if rule.mirror.name == "sign":
            kernel = torch.sign(W) * Q
        return float(channel.gain) * pulled(lambda h: f(kernel, h), x, z)

    return way


def theirs(model, rule, weights, channels, x, targets):
    leaves = {k: tensor(v, grad=True) for k, v in flatten(weights).items()}
    notes = [{} for _ in model.kernels]
    cut = Cut.apply if rule.source == "network" else (lambda t: t)
    errors, aside, k = [], [], 0
    h = tensor(x) if x.dtype.kind == "f" else torch.tensor(x)
    for layer, w in zip(model.layers, rebuild(weights, leaves), strict=True):
        name = type(layer).__name__
        if name == "Fork":
            aside.append(cut(h))
        elif name == "Swap":
            h, aside[-1] = aside[-1], h
        elif name == "Join":
            h = h + aside.pop()
        elif hasattr(layer, "kernel_shape"):
            channel = rules.Channel() if k == 0 else channels[k]
            way = carried(rule.at(k), layer, channel, lambda: errors[0], targets, k == len(model.kernels) - 1)
            h = Carry.apply(h, w, layer, way, notes[k])
            k += 1
        else:
            h = other(layer, w, h)
    h.register_hook(lambda gradient: errors.append(gradient))
    F.cross_entropy(h.reshape(-1, h.shape[-1]), tensor(targets).reshape(-1, h.shape[-1])).backward()
    return leaves, notes


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", RULES)
def test_every_layer_under_every_rule(network, name):
    rng, model, rule = np.random.default_rng(7), NETWORKS[network](), RULES[name]
    state, _ = initial_state(model, rule, Optimizers(sgd(0.1)), 1, np.array)
    moved = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in flatten(state.weights).items()}
    weights = rebuild(state.weights, moved)
    if network == "decoder":
        x, labels = rng.integers(0, 9, (4, 7)), rng.integers(0, 9, (4, 7))
    else:
        x, labels = rng.standard_normal((6, *model.shape)), rng.integers(0, 5, 6)
    targets = one_hot(labels, model.n_out, like=np.zeros(1))
    outputs, caches = forward(model, weights, x, Key(0))
    _, delta = cross_entropy(outputs, targets)
    run = backward(model, rule, weights, state.channels, caches, delta, targets)
    leaves, notes = theirs(model, rule, weights, state.channels, x, targets)
    for path, gradient in flatten(run.weights).items():
        assert close(gradient, leaves[path].grad), path
    moving = 0
    for k, note in enumerate(notes):
        for array, expected in note.items():
            assert close(getattr(run.channels[k], array), expected), (k, array)
            assert not close(getattr(run.channels[k], array) * (1 + 1e-8), expected)
            moving += 1
    assert moving == sum(
        (rule.reader.learns + rule.mirror.learns) * (rule.at(k) is rule) for k in range(1, len(model.kernels))
    )
    if name not in ("bp", "zero"):  # the test tells rules apart
        plain = backward(
            model, rules.backpropagation(), weights, (None, *[rules.Channel()] * (len(notes) - 1)), caches, delta
        )
        assert not close(run.weights[model.kernels[0]], tensor(plain.weights[model.kernels[0]]), 1e-3)
    if rule.source == "network":
        assert all(
            way is not model.layers[i] for way, i in zip(pathways(model, rule)[1:], model.kernels[1:], strict=True)
        )
