"""The way back through a network: one short loop for every learning rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float

from linfb.backend import namespace
from linfb.engine.models import Model, is_kernel
from linfb.rules import Channel, Rule, transport

__all__ = ["Backward", "backward"]


class Backward(NamedTuple):
    """What :func:`backward` returns.

    Attributes
    ----------
    weights : tuple
        The gradients, one per layer, each shaped like the layer's weights.
    channels : tuple of Channel or None
        What the feedback arrays descend, one per kernel layer; None for the first.
    deltas : tuple of array
        The carried error at the output of each kernel layer, shapes (batch, out).
    reads : tuple of array or None
        What the channel of each kernel layer read; None for the first.
    """

    weights: tuple[Any, ...]
    channels: tuple[Channel | None, ...]
    deltas: tuple[Any, ...]
    reads: tuple[Any, ...]


def backward(
    model: Model,
    rule: Rule,
    weights: Sequence[Any],
    channels: Sequence[Channel | None],
    caches: Sequence[Any],
    delta: Float[Any, "batch out"],
    targets: Float[Any, "batch out"] | None = None,
    *,
    error_clip: float | None = None,
) -> Backward:
    """Carry the error from the output to the first kernel layer and collect all gradients.

    Kernel layers carry it as the rule says, all others through their true Jacobian. Under a direct rule each kernel
    layer hands the network's error, in the place of what came from above, to the layers below it.

    Parameters
    ----------
    model : Model
    rule : Rule
    weights, caches : sequence
        One entry per layer, from :func:`~linfb.engine.models.forward`.
    channels : sequence of Channel or None
        One per kernel layer, from :func:`~linfb.rules.channels.initial_channels`.
    delta : array, shape (batch, out)
        d loss / d output, the network's error.
    targets : array, shape (batch, out), optional
        One-hot labels, for readers of labels.
    error_clip : float, optional
        Clip every entry of a carried error to this size; None leaves it as it is.

    Returns
    -------
    Backward
    """
    error, direct, kernels = delta, rule.source == "network", model.kernels
    gradients: list[Any] = [None] * len(model.layers)
    moves: list[Channel | None] = [None] * len(kernels)
    deltas: list[Any] = [None] * len(kernels)
    reads: list[Any] = [None] * len(kernels)
    k = len(kernels)
    for i in reversed(range(kernels[0], len(model.layers))):
        layer, w, cache = model.layers[i], weights[i], caches[i]
        gradients[i] = layer.grad(w, cache, delta)
        if not is_kernel(layer):
            delta = layer.pull(w, cache, delta)
            continue
        k -= 1
        deltas[k] = delta
        if k == 0:
            break
        reads[k] = error if direct else delta
        labels = targets if direct or k == len(kernels) - 1 else None
        channel = channels[k]
        assert channel is not None
        delta, moves[k] = transport(rule, layer, w, channel, cache, reads[k], labels)
        if error_clip is not None:
            delta = namespace(delta).clip(delta, -error_clip, error_clip)
    return Backward(tuple(gradients), tuple(moves), tuple(deltas), tuple(reads))
