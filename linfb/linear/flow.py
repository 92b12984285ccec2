r"""The right-hand side of learning: what every array of a linear network and of its feedback does.

Averaged over samples in rows, :math:`h_l = h_{l-1}W_l^\top`, errors
:math:`\delta = \partial\,\text{loss}/\partial\,\text{output}` carried back by the rule, and

.. math:: \dot W_l = -\delta_l^\top h_{l-1} - \lambda W_l

while Q and P move as their mirror and reader say. Arrays may carry a leading run axis. On a task's moment set this is
the population flow; on a minibatch it is one step of online learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float

from linfb.backend import namespace
from linfb.engine.layers.dense import Dense
from linfb.rules import Channel, Rule, transport

__all__ = ["Pass", "State", "backward", "dynamic", "flow", "replace_dynamic"]


class State(NamedTuple):
    """Everything that a linear network under a rule consists of.

    Attributes
    ----------
    weights : tuple of array, shapes (..., out, in)
        W_1 ... W_L.
    channels : tuple of Channel
        The feedback below each of W_2 ... W_L.
    """

    weights: tuple[Any, ...]
    channels: tuple[Channel, ...]


class Pass(NamedTuple):
    """One forward and backward pass.

    Attributes
    ----------
    activities : tuple of array
        h_0 (the inputs) ... h_L (the outputs), shapes (..., sample, width).
    deltas : tuple of array
        The carried errors at h_1 ... h_L.
    reads : tuple of array
        The errors that the channels below W_2 ... W_L read.
    channels : tuple of Channel
        What their arrays descend.
    """

    activities: tuple[Any, ...]
    deltas: tuple[Any, ...]
    reads: tuple[Any, ...]
    channels: tuple[Channel, ...]


def backward(rule: Rule, state: State, inputs: Float[Any, "*batch in"], labels: Float[Any, "*batch out"]) -> Pass:
    """Send inputs forward and the error back as the rule carries it."""
    if len({type(array) for array in (inputs, labels, *state.weights)}) > 1:
        namespace(inputs, labels, *state.weights)  # refuses arrays of different libraries, with advice
    activities = [inputs]
    for weights in state.weights:
        activities.append(_layer(weights).forward(weights, activities[-1])[0])
    error = (activities[-1] - labels) / inputs.shape[-2]
    deltas: list[Any] = [error]
    reads: list[Any] = []
    gradients: list[Channel] = []
    for above in range(len(state.weights) - 1, 0, -1):
        weights, read = state.weights[above], deltas[0]
        if rule.direct(above, len(state.weights)):
            read = error if rule.source == "network" else deltas[-2]
        targets = labels if read is error else None
        delta, gradient = transport(
            rule.at(above), _layer(weights), weights, state.channels[above - 1], activities[above], read, targets
        )
        deltas.insert(0, delta)
        reads.insert(0, read)
        gradients.insert(0, gradient)
    return Pass(tuple(activities), tuple(deltas), tuple(reads), tuple(gradients))


def flow(
    rule: Rule,
    weight_decay: Any,
    state: State,
    inputs: Any,
    labels: Any,
    *,
    reader_rate: Any = None,
    mirror_rate: Any = None,
) -> State:
    """Return the time derivative of every array of `state` on the given data (None where an array rests).

    `weight_decay` and the rates (None takes the rule's own) are numbers, or arrays of shape (run, 1, 1).
    """
    run = backward(rule, state, inputs, labels)
    p_rate = rule.reader.rate if reader_rate is None else reader_rate
    q_rate = rule.mirror.rate if mirror_rate is None else mirror_rate
    p_decay, q_decay = (weight_decay if part.decays else 0.0 for part in (rule.reader, rule.mirror))
    velocities = tuple(
        -(_layer(weights).grad(weights, below, delta) + weight_decay * weights)
        for weights, below, delta in zip(state.weights, run.activities, run.deltas, strict=False)
    )
    channels = tuple(
        Channel(
            P=_move(p_rate, gradient.P, channel.P, p_decay),
            Q=_move(q_rate, gradient.Q, channel.Q, q_decay),
            M=_move(p_rate, gradient.M, channel.M, 0.0),
        )
        for gradient, channel in zip(run.channels, state.channels, strict=True)
    )
    return State(velocities, channels)


def _layer(weights: Any) -> Dense:
    return Dense(weights.shape[-1], weights.shape[-2])


def _move(rate: Any, gradient: Any, array: Any, decay: Any) -> Any:
    if gradient is None:
        return None
    none = isinstance(decay, float) and decay == 0.0
    return -rate * (gradient if none else gradient + decay * array)


def dynamic(rule: Rule, state: State) -> list[Any]:
    """Return the arrays of `state` that move under the rule, in a fixed order."""
    moving = [getattr(channel, name) for channel in state.channels for name in _moving(rule, channel)]
    return [*state.weights, *moving]


def replace_dynamic(rule: Rule, state: State, arrays: Sequence[Any]) -> State:
    """Return `state` with the moving arrays replaced, the inverse of :func:`dynamic`."""
    rest = iter(arrays)
    weights = tuple(next(rest) for _ in state.weights)
    channels = tuple(channel._replace(**{n: next(rest) for n in _moving(rule, channel)}) for channel in state.channels)
    return State(weights, channels)


def _moving(rule: Rule, channel: Channel) -> list[str]:
    learns = {"P": rule.reader.learns, "Q": rule.mirror.learns, "M": rule.reader.learns}
    return [name for name, moves in learns.items() if moves and getattr(channel, name) is not None]
