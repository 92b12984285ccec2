"""Everything that changes in training, and one step of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from linfb._live import Live, live
from linfb._threads import together
from linfb.backend import Key, Keys, namespace
from linfb.engine.backward import backward, pathways
from linfb.engine.layers.runs import Runs, joined
from linfb.engine.models import Model, forward, initial_buffers, initial_weights
from linfb.engine.optimisers import Optimizers, clipped
from linfb.engine.trees import flatten, merged, rebuild
from linfb.kernels import suited
from linfb.rules import Channel, Rule
from linfb.rules.channels import InitialChannels, initial_channels, padded, stacked

__all__ = ["State", "initial_state", "of_run", "stacked_states", "step"]


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
    model: Model, rule: Rule, optimisers: Optimizers, seed: int, place: Callable[[np.ndarray], Any]
) -> tuple[State, InitialChannels]:
    """Draw everything on the host and put it in place.

    Parameters
    ----------
    model : Model
    rule : Rule
    optimisers : Optimizers
    seed : int
    place : callable
        From a host array to a new array of the right type on the right device.

    Returns
    -------
    state : State
    drawn : InitialChannels
        The ranks in use, and the channels as they were drawn.
    """
    host, parts = initial_weights(model, seed), optimisers.parts(rule)
    drawn = initial_channels(rule, pathways(model, rule), [host[i] for i in model.kernels], seed=seed)
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
    return {"P": "P", "Q": "Q", "M": "P"}[path[-1]] if path.startswith("channels/") else "W"


def step(
    model: Model,
    rule: Rule,
    loss: Callable[..., tuple[Any, Any]],
    optimisers: Optimizers,
    state: State,
    x: Any,
    targets: Any,
    *,
    number: int | Live,
    factor: float | Live = 1.0,
    error_clip: float | None = None,
    key: Key | Keys | None = None,
) -> tuple[State, Any, Any]:
    """Take one training step: forward, backward, update.

    Parameters
    ----------
    model : Model
    rule : Rule
    loss : callable
        One of :data:`linfb.engine.losses.LOSSES`.
    optimisers : Optimizers
    state : State
        Given up by the caller: NumPy arrays in it may be overwritten.
    x : array, shape (batch, *model.shape)
    targets : array, shape (batch, ..., out)
    number : int
        Number of this step, from 1. In a captured step (:mod:`linfb.engine.graph`) it and `factor` are live, and no
        mirror starts again.
    factor : float
        Of the schedule, on every learning rate.
    error_clip : float, optional
        See :func:`~linfb.engine.backward.backward`.
    key : Key, optional
        Place of the run's random numbers; this step draws at ``key.at(number)``.

    Returns
    -------
    state : State
    loss : array, shape ()
    outputs : array, shape (batch, out)
        Before the update.
    """
    place = None if key is None else key.at(number)
    outputs, caches = forward(model, state.weights, x, None if place is None else place.at("layer"))
    value, delta = loss(outputs, targets)
    run = backward(
        model, rule, state.weights, state.channels, caches, delta, targets,
        error_clip=error_clip, key=None if place is None else place.at("mirror"),
        number=None if isinstance(number, Live) else number, keep=False,
    )  # fmt: skip
    buffers = tuple(
        None if buffer is None else layer.update_buffers(buffer, cache)
        for layer, buffer, cache in zip(model.layers, state.buffers, caches, strict=True)
    )
    updated = _updated(state, run._asdict(), optimisers, rule, number, factor, model.leading)
    updated = updated._replace(buffers=buffers)
    return updated if isinstance(number, Live) else _restarted(model, rule, updated, number), value, outputs


def _updated(
    state: State, trees: Mapping[str, Any], optimisers: Optimizers, rule: Rule, number: Any, factor: Any, leading: int
) -> State:
    gradients = trees["weights"]
    if optimisers.clip_norm is not None:
        gradients = rebuild(gradients, clipped(flatten(gradients), optimisers.clip_norm, leading))
    factors = {kind: live(mul, factor, part.rate) for kind, part in optimisers.parts(rule).items()}
    parts, slots = optimisers.parts(rule), dict(state.slots)

    def moved(path: str, value: Any, gradient: Any) -> Any:
        kind = _kind(path)
        value, slots[path] = parts[kind].optimiser.update(
            value, gradient, slots[path], step=number, factor=factors[kind], kernels=suited("optimisers", value)
        )
        return value

    with together():
        weights = merged(moved, state.weights, gradients, "weights")
        channels = merged(moved, state.channels, trees["channels"], "channels")
    return state._replace(weights=weights, channels=channels, slots=slots)


def _restarted(model: Model, rule: Rule, state: State, number: int) -> State:
    """Let mirrors that start again from the weights do so; the optimiser's memory of what is replaced goes too."""
    channels, slots = list(state.channels), dict(state.slots)
    for k, (i, channel) in enumerate(zip(model.kernels, state.channels, strict=True)):
        if channel is None or rule.at(k) is not rule:
            continue
        again = rule.mirror.restarted if not model.leading else partial(_restarted_runs, rule.mirror)
        fresh = again(model.layers[i], channel, state.weights[i], number)
        if fresh is not None:
            channels[k] = fresh
            for name in ("P", "Q"):
                path = f"channels/{k}/{name}"
                slots[path] = tuple(0 * slot for slot in slots[path])
    return state._replace(channels=tuple(channels), slots=slots)


def _restarted_runs(mirror: Any, layer: Any, channel: Channel, weights: Any, number: int) -> Channel | None:
    """Return P and Q from which all runs start again; a run that is not finite any more goes on with its own."""
    xp, single = namespace(weights), layer.layer if isinstance(layer, Runs) else layer
    fresh = []
    for r in range(weights.shape[0]):
        own = Channel(*(None if array is None else array[r, ...] for array in (channel.P, channel.Q)))
        if bool(xp.all(xp.isfinite(weights[r, ...]))):
            own = mirror.restarted(single, own, weights[r, ...], number)
        if own is None:
            return None
        fresh.append(own)
    return channel._replace(P=joined([own.P for own in fresh]), Q=joined([own.Q for own in fresh]))


def stacked_states(states: Sequence[State], place: Callable[[np.ndarray], Any]) -> State:
    """Join the states of runs of one architecture along a leading run axis, channels padded to the largest rank.

    Parameters
    ----------
    states : sequence of State
    place : callable
        As for :func:`initial_state`.
    """
    flat = [flatten(state._replace(channels=())) for state in states]
    arrays = {path: place(padded([one[path] for one in flat])) for path in flat[0]}
    channels = tuple(
        None if layer[0] is None else stacked(layer, place)
        for layer in zip(*(state.channels for state in states), strict=True)
    )
    return rebuild(states[0]._replace(channels=()), arrays)._replace(channels=channels)


def of_run(state: State, run: int, ranks: Mapping[int, int]) -> State:
    """Return the part of one run of a state with a leading run axis: views, without the rows of larger ranks.

    Parameters
    ----------
    state : State
    run : int
    ranks : mapping
        From the index of a kernel layer to the width of the run's channel.
    """

    def own(path: str, array: Any) -> Any:
        found = re.search(r"channels/(\d+)/(\w+)", path)
        if found is None:
            return array[run, ...]
        layer, name = int(found[1]), found[2]
        if name == "gain":
            return float(array[run, 0, 0])
        part = array[run, : ranks[layer], ...]
        return part[:, : ranks[layer]] if name == "M" else part

    return rebuild(state, {path: own(path, array) for path, array in flatten(state).items()})
