"""Everything that changes in training, and one step of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from linfb.engine.backward import backward
from linfb.engine.models import Model, forward, initial_buffers, initial_weights
from linfb.engine.optimisers import Part, overwriting
from linfb.engine.trees import flatten, rebuild
from linfb.rules import Channel, Rule
from linfb.rules.channels import InitialChannels, initial_channels

__all__ = ["State", "initial_state", "step"]


class State(NamedTuple):
    """A network under a rule in the middle of training.

    Attributes
    ----------
    weights, buffers : tuple
        One entry per layer.
    channels : tuple of Channel or None
        One entry per kernel layer.
    slots : dict
        From the path of an array that learns, such as "weights/0" or "channels/1/Q", to its optimiser's state.
    """

    weights: tuple[Any, ...]
    buffers: tuple[Any, ...]
    channels: tuple[Channel | None, ...]
    slots: dict[str, tuple[Any, ...]]


def initial_state(
    model: Model, rule: Rule, parts: Mapping[str, Part], seed: int, place: Callable[[np.ndarray], Any]
) -> tuple[State, InitialChannels]:
    """Draw everything on the host and put it in place.

    Parameters
    ----------
    model : Model
    rule : Rule
    parts : mapping
        From :meth:`~linfb.engine.optimisers.Optimizers.parts`.
    seed : int
    place : callable
        From a host array to a new array of the right type on the right device.

    Returns
    -------
    state : State
    drawn : InitialChannels
        The ranks in use, and the channels as they were drawn.
    """
    host = initial_weights(model, seed)
    layers, kernels = [model.layers[i] for i in model.kernels], [host[i] for i in model.kernels]
    drawn = initial_channels(rule, layers, kernels, seed=seed, n_error=model.n_out)
    tree = {"weights": host, "buffers": initial_buffers(model), "channels": drawn.channels}
    placed = rebuild(tree, {path: place(array) for path, array in flatten(tree).items()})
    learning = {"W": True, "Q": rule.mirror.learns, "P": rule.reader.learns}
    slots = {
        path: parts[_kind(path)].optimiser.init(value)
        for path, value in _parameters(placed).items()
        if learning[_kind(path)]
    }
    return State(**placed, slots=slots), drawn


def _parameters(trees: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({"weights": trees["weights"], "channels": trees["channels"]})


def _kind(path: str) -> str:
    return path[-1] if path.startswith("channels/") else "W"


def step(
    model: Model,
    rule: Rule,
    loss: Callable[..., tuple[Any, Any]],
    parts: Mapping[str, Part],
    state: State,
    x: Any,
    targets: Any,
    *,
    number: int,
    factor: float = 1.0,
    error_clip: float | None = None,
) -> tuple[State, Any, Any]:
    """Take one training step: forward, backward, update.

    Parameters
    ----------
    model : Model
    rule : Rule
    loss : callable
        One of :data:`linfb.engine.losses.LOSSES`.
    parts : mapping
        From :meth:`~linfb.engine.optimisers.Optimizers.parts`.
    state : State
        Given up by the caller: NumPy arrays in it may be overwritten.
    x : array, shape (batch, in)
    targets : array, shape (batch, out)
    number : int
        Number of this step, from 1.
    factor : float
        Of the schedule, on every learning rate.
    error_clip : float, optional
        See :func:`~linfb.engine.backward.backward`.

    Returns
    -------
    state : State
    loss : array, shape ()
    outputs : array, shape (batch, out)
        Before the update.
    """
    outputs, caches = forward(model, state.weights, x)
    value, delta = loss(outputs, targets)
    run = backward(model, rule, state.weights, state.channels, caches, delta, targets, error_clip=error_clip)
    buffers = tuple(
        None if buffer is None else layer.update_buffers(buffer, cache)
        for layer, buffer, cache in zip(model.layers, state.buffers, caches, strict=True)
    )
    updated = _updated(state, _parameters(run._asdict()), parts, number, factor)
    return updated._replace(buffers=buffers), value, outputs


def _updated(
    state: State, gradients: Mapping[str, Any], parts: Mapping[str, Part], number: int, factor: float
) -> State:
    values, slots = _parameters(state._asdict()), {}
    for path, gradient in gradients.items():
        part = parts[_kind(path)]
        values[path], slots[path] = part.optimiser.update(
            values[path], gradient, state.slots[path],
            step=number, factor=factor * part.rate, kernels=overwriting(values[path]),
        )  # fmt: skip
    trees = rebuild({"weights": state.weights, "channels": state.channels}, values)
    return state._replace(weights=trees["weights"], channels=trees["channels"], slots=slots)
