"""PyTorch in float64 as an independent witness: gradients under every kind of rule, normalisation."""

import numpy as np
import pytest

from linfb import rules
from linfb.engine import BatchNorm, Optimizers, cross_entropy, mlp, sgd, squared_error
from linfb.engine.backward import backward
from linfb.engine.models import forward
from linfb.engine.state import initial_state
from linfb.engine.trees import flatten, rebuild
from linfb.rules import mirrors, readers

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

TOLERANCE = 1e-10


def tensor(array, grad=False):
    return torch.tensor(np.array(array), dtype=torch.float64, requires_grad=grad)


def close(ours, theirs, tolerance=TOLERANCE):
    theirs = theirs.detach().numpy()
    scale = max(np.abs(theirs).max(initial=0.0), 1e-300)
    return ours.shape == theirs.shape and np.abs(ours - theirs).max(initial=0.0) <= tolerance * scale


def oja(P, rows):
    """Minus P C (I - P^T P), C per sample."""
    covariance = rows.T @ rows / len(rows)
    return -P @ covariance @ (torch.eye(P.shape[1], dtype=P.dtype) - P.T @ P)


def centred(rows):
    rows = rows - rows.mean(dim=0)
    return rows / rows.std(dim=0, correction=0).max()


class Feedback(torch.autograd.Function):
    """A dense layer whose way back is Q and P; the gradients of Q and P are what they descend."""

    @staticmethod
    def forward(ctx, h, W, Q, P, gain, reader, labels, error):
        ctx.save_for_backward(h, W, Q, P)
        ctx.gain, ctx.reader, ctx.labels, ctx.error = gain, reader, labels, error
        return h @ W.T

    @staticmethod
    def backward(ctx, delta):
        h, _, Q, P = ctx.saved_tensors
        read = delta if ctx.error is None else ctx.error
        z, n = read @ P.T, len(read)
        grad_P = {
            "none": lambda: torch.zeros_like(P),
            "oja": lambda: oja(P, n * read),
            "normalised": lambda: oja(P, centred(n * read)),
            "labels": lambda: oja(P, n * read if ctx.labels is None else ctx.labels),
            "local": lambda: Q @ h.T @ read,
        }[ctx.reader]()
        return ctx.gain * z @ Q, delta.T @ h, z.T @ h, grad_P, None, None, None, None


CASES = {
    "fa": (rules.feedback_alignment(), "none"),
    "fa rank": (rules.feedback_alignment(rank=3), "none"),
    "kp": (rules.kolen_pollack(), "none"),
    "dfa": (rules.direct_feedback_alignment(), "none"),
    "oja": (rules.low_rank(3), "oja"),
    "oja normalised": (rules.low_rank(3, reader=readers.Oja(covariance="normalised")), "normalised"),
    "oja labels": (rules.low_rank(3, reader=readers.Oja(on="labels")), "labels"),
    "fixed P": (rules.low_rank(3, reader=readers.Fixed("gaussian")), "none"),
    "gain": (rules.low_rank(2, gain="full_rank"), "oja"),
    "direct": (rules.direct_low_rank(3), "oja"),
    "direct labels": (rules.direct_low_rank(3, reader=readers.Oja(on="labels")), "labels"),
    "local": (rules.local(3), "local"),
}


def ours(rule, loss, norm="batch"):
    rng = np.random.default_rng(5)
    model = mlp(6, (7, 8), 5, norm=norm)
    state, _ = initial_state(model, rule, Optimizers(sgd(0.1)), 1, np.array)
    weights = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in flatten(state.weights).items()}
    weights = rebuild(state.weights, weights)
    x, targets = rng.standard_normal((11, 6)), np.eye(5)[rng.integers(0, 5, 11)]
    outputs, caches = forward(model, weights, x)
    value, delta = loss(outputs, targets)
    return model, weights, state.channels, x, targets, value, delta, backward(
        model, rule, weights, state.channels, caches, delta, targets
    )  # fmt: skip


def torch_loss(loss, outputs, targets):
    if loss is cross_entropy:
        return torch.nn.functional.cross_entropy(outputs, targets)
    return 0.5 * ((outputs - targets) ** 2).sum() / len(outputs)


def torch_layer(name, w, h):
    if name == "BatchNorm":
        return torch.nn.functional.batch_norm(h, None, None, w["gain"], w["shift"], training=True)
    return torch.relu(h) if name == "ReLU" else h + w


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
@pytest.mark.parametrize("norm", ["batch", None])
def test_backpropagation_agrees_with_autograd(loss, norm):
    model, weights, _, x, targets, value, _, run = ours(rules.backpropagation(), loss, norm)
    leaves = {k: tensor(v, grad=True) for k, v in flatten(weights).items()}
    tree, h = rebuild(weights, leaves), tensor(x)
    for layer, w in zip(model.layers, tree, strict=True):
        name = type(layer).__name__
        h = torch.nn.functional.linear(h, w) if name == "Dense" else torch_layer(name, w, h)
    theirs = torch_loss(loss, h, tensor(targets))
    theirs.backward()
    assert abs(value - theirs.item()) <= 1e-14 * abs(value)
    gradients = flatten(run.weights)
    assert gradients.keys() == leaves.keys()
    for path, gradient in gradients.items():
        assert close(gradient, leaves[path].grad), path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_rules_agree_with_a_replaced_backward(name, loss):
    rule, reader = CASES[name]
    model, weights, channels, x, targets, _, error, run = ours(rule, loss)
    leaves = {k: tensor(v, grad=True) for k, v in flatten(weights).items()}
    tree, h, k = rebuild(weights, leaves), tensor(x), 0
    Qs, Ps = {}, {}
    for i, (layer, w) in enumerate(zip(model.layers, tree, strict=True)):
        if i == 0:
            h = torch.nn.functional.linear(h, w)
        elif i in model.kernels:
            k += 1
            channel = channels[k]
            Qs[k] = tensor(channel.Q, grad=True)
            Ps[k] = tensor(np.eye(len(channel.Q)) if channel.P is None else channel.P, grad=True)
            direct = rule.source == "network"
            labels = tensor(targets) if direct or i == model.kernels[-1] else None
            h = Feedback.apply(h, w, Qs[k], Ps[k], channel.gain, reader, labels, tensor(error) if direct else None)
        else:
            h = torch_layer(type(layer).__name__, w, h)
    torch_loss(loss, h, tensor(targets)).backward()
    for path, gradient in flatten(run.weights).items():
        assert close(gradient, leaves[path].grad), path
    for k, Q in Qs.items():
        if rule.mirror.learns:
            assert close(run.channels[k].Q, Q.grad), k
            assert not close(run.channels[k].Q + 1e-6, Q.grad)
        if rule.reader.learns:
            assert close(run.channels[k].P, Ps[k].grad), k
    assert not close(run.weights[0], leaves["0"].grad * (1 + 1e-8))  # the tolerance tells such a difference


def test_normative_updates_are_gradients_of_their_objective():
    rule = rules.normative(3)
    model, weights, channels, _, _, _, _, run = ours(rule, cross_entropy)
    for k, i in enumerate(model.kernels):
        if k == 0:
            continue
        P, Q = tensor(channels[k].P, grad=True), tensor(channels[k].Q, grad=True)
        (0.5 * ((P.T @ Q - tensor(weights[i])) ** 2).sum()).backward()
        assert close(run.channels[k].P, P.grad)
        assert close(run.channels[k].Q, Q.grad)


def test_weight_mirror_descends_to_the_weights_seen_through_the_channel():
    rule = rules.low_rank(3, reader=readers.Fixed(), mirror=mirrors.WeightMirror())
    model, weights, channels, _, _, _, _, run = ours(rule, cross_entropy)
    for k, i in enumerate(model.kernels[1:], start=1):
        Q = tensor(channels[k].Q, grad=True)
        (0.5 * ((Q - tensor(channels[k].P) @ tensor(weights[i])) ** 2).sum()).backward()
        assert close(run.channels[k].Q, Q.grad)


def test_batch_normalisation_agrees_running_averages_included():
    rng = np.random.default_rng(0)
    layer, theirs = BatchNorm(4), torch.nn.BatchNorm1d(4, dtype=torch.float64)
    weights, buffers = layer.initial_weights(np.random.default_rng(0)), layer.initial_buffers()
    for _ in range(5):
        x = 2 + 3 * rng.standard_normal((9, 4))
        y, cache = layer.forward(weights, x)
        buffers = layer.update_buffers(buffers, cache)
        assert close(y, theirs(tensor(x)), 1e-12)
    assert close(buffers["mean"], theirs.running_mean, 1e-13)
    assert close(buffers["variance"], theirs.running_var, 1e-13)
    theirs.eval()
    assert close(layer.evaluate(weights, buffers, x), theirs(tensor(x)), 1e-12)
