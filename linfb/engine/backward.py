"""The way back through a network: one short loop for every learning rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from linfb.backend import Key, Keys, namespace
from linfb.engine.layers.direct import Direct
from linfb.engine.models import Model, is_kernel, is_mark
from linfb.rules import Channel, Rule, transport

__all__ = ["Backward", "backward", "pathways"]


class Backward(NamedTuple):
    """What :func:`backward` returns.

    Attributes
    ----------
    weights : tuple
        The gradients, one per layer, each shaped like the layer's weights.
    channels : tuple of Channel or None
        What the feedback arrays descend, one per kernel layer; None for the first.
    deltas : tuple of array
        The carried error at the output of each kernel layer, shapes (batch, ..., out). Empty if not kept.
    reads : tuple of array or None
        What the channel of each kernel layer read; None for the first. Empty if not kept.
    """

    weights: tuple[Any, ...]
    channels: tuple[Channel | None, ...]
    deltas: tuple[Any, ...]
    reads: tuple[Any, ...]


def pathways(model: Model, rule: Rule) -> tuple[Any, ...]:
    """Return by which layer each kernel layer hands an error to its input: itself, or a direct way.

    Raises
    ------
    ValueError
        If an error that is direct has positions that a layer's input does not share.
    """
    kernels = model.kernels
    hidden = kernels[-2] + 1 if rule.source == "hidden" and len(kernels) > 1 else -1
    *positions, width = model.shapes[hidden]
    ways = []
    for k, i in enumerate(kernels):
        shape = model.shapes[i]
        if k == 0 or not rule.direct(k, len(kernels)):
            ways.append(model.layers[i])
            continue
        if list(shape[: len(positions)]) != positions:
            raise ValueError(
                f"rule {rule.name!r}: the {rule.source}'s error has shape {model.shapes[hidden]}, whose positions the "
                f"input of kernel layer {k}, shape {shape}, does not share"
            )
        ways.append(Direct(width, shape[len(positions) :]))
    return tuple(ways)


def backward(
    model: Model,
    rule: Rule,
    weights: Sequence[Any],
    channels: Sequence[Channel | None],
    caches: Sequence[Any],
    delta: Any,
    targets: Any = None,
    *,
    error_clip: float | None = None,
    key: Key | Keys | None = None,
    number: int | None = None,
    keep: bool = True,
) -> Backward:
    """Carry the error from the output to the first kernel layer and collect all gradients.

    Kernel layers carry it as the rule says, all others through their true Jacobian. Under a direct rule each kernel
    layer hands an error of the network, in the place of what came from above, to the layers below it.

    Parameters
    ----------
    model : Model
    rule : Rule
    weights, caches : sequence
        One entry per layer, from :func:`~linfb.engine.models.forward`.
    channels : sequence of Channel or None
        One per kernel layer, from :func:`~linfb.rules.channels.initial_channels`.
    delta : array, shape (batch, ..., out)
        d loss / d output, the network's error.
    targets : array, shape (batch, ..., out), optional
        One-hot labels, for readers of labels.
    error_clip : float, optional
        Clip every entry of a carried error to this size; None leaves it as it is.
    key : Key, optional
        Place of this step's random numbers; kernel layer k draws at ``key.at(k)``.
    number : int, optional
        Number of this step in training, from 1, for readers that do not move in every step.
    keep : bool
        Whether to return all errors; a training step, which does not look at them, gives their memory free.

    Returns
    -------
    Backward
    """
    kernels, ways = model.kernels, pathways(model, rule)
    samples, last = math.prod(delta.shape[model.leading : -1]), len(kernels) - 1
    error = delta
    gradients: list[Any] = [None] * len(model.layers)
    moves: list[Channel | None] = [None] * len(kernels)
    deltas: list[Any] = [None] * len(kernels)
    reads: list[Any] = [None] * len(kernels)
    aside: list[Any] = []
    hidden = None
    k = len(kernels)
    for i in reversed(range(kernels[0], len(model.layers))):
        layer, w, cache = model.layers[i], weights[i], caches[i]
        if is_mark(layer):
            delta = layer.back(delta, aside, rule.source != "above")
            continue
        if not is_kernel(layer):
            gradients[i], delta = layer.grad_pull(w, cache, delta)
            continue
        gradients[i] = layer.grad(w, cache, delta)
        k -= 1
        if keep:
            deltas[k] = delta
        if k == last - 1 and rule.source == "hidden":
            hidden = delta
        if k == 0:
            break
        direct = ways[k] is not layer
        read = delta if not direct else error if rule.source == "network" else hidden
        if keep:
            reads[k] = read
        channel = channels[k]
        assert channel is not None
        delta, moves[k] = transport(
            rule.at(k), ways[k], None if direct else w, channel, cache, read,
            targets if read is error or k == last else None, samples=samples,
            key=None if key is None else key.at(k), number=number, gradient=None if direct else gradients[i],
        )  # fmt: skip
        if error_clip is not None:
            delta = namespace(delta).clip(delta, -error_clip, error_clip)
    if not keep:
        return Backward(tuple(gradients), tuple(moves), (), ())
    return Backward(tuple(gradients), tuple(moves), tuple(deltas), tuple(reads))
