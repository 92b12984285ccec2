"""The feedback arrays of a whole network at the start, drawn on the host: the same for linear theory and engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from linfb.backend import stream, to_numpy
from linfb.rules.base import Channel, Rule, resolve_rank

__all__ = ["InitialChannels", "effective_readers", "initial_channels", "padded", "resolved_ranks", "stacked"]

log = logging.getLogger("linfb")


class InitialChannels(NamedTuple):
    """What :func:`initial_channels` returns.

    Attributes
    ----------
    channels : tuple of Channel or None
        One per kernel layer; None for the first, which carries no error further.
    ranks : dict
        From the index of a layer to the width of the channel into its input.
    capped : tuple of int
        Layers where a plain rank was more than the width that is read.
    """

    channels: tuple[Channel | None, ...]
    ranks: dict[int, int]
    capped: tuple[int, ...]


def initial_channels(rule: Rule, layers: Sequence[Any], weights: Sequence[Any], *, seed: int) -> InitialChannels:
    """Draw the feedback arrays of a network of kernel layers.

    The channel of layer l reads the error at that layer's output and writes to its input. P comes from
    ``stream(seed, "P", l)``, Q from ``stream(seed, "Q", l)``.

    Parameters
    ----------
    rule : Rule
    layers : sequence of kernel layers
        From the input to the output, each with a ``kernel_shape`` (out, ..., in). In the place of a layer that hands
        on an error of the network (:meth:`~linfb.rules.Rule.direct`) stands one from the layer's input to that error.
    weights : sequence of numpy.ndarray or None
        Their kernels at the start, on the host; not looked at where the error is direct.
    seed : int
        Seed of the whole run.

    Returns
    -------
    InitialChannels
        float64 arrays on the host. A capped rank is also logged as a warning of the logger "linfb".

    Raises
    ------
    ValueError
        If a rank given per layer lacks a layer, names one that has no channel, or is more than the width it reads.

    Examples
    --------
    >>> import numpy as np
    >>> from linfb.engine.layers.dense import Dense
    >>> from linfb.rules import low_rank
    >>> layers, weights = [Dense(5, 4), Dense(4, 3)], [np.ones((4, 5)), np.ones((3, 4))]
    >>> channels, ranks, capped = initial_channels(low_rank(2), layers, weights, seed=0)
    >>> channels[0], channels[1].P.shape, channels[1].Q.shape, ranks, capped
    (None, (2, 3), (2, 4), {1: 2}, ())
    """
    blocks = [getattr(layer, "blocks", 1) for layer in layers]
    drawn, ranks, capped = _readers(rule, [layer.kernel_shape[0] for layer in layers], blocks, seed)
    if capped:
        log.warning("rank %s is capped at the width that layers %s read", rule.rank, list(capped))
    channels: list[Channel | None] = [None]
    for l, (P, gain) in drawn.items():
        if rule.at(l) is not rule:
            channels.append(Channel())
            continue
        visible = None if rule.direct(l, len(layers)) else weights[l]
        shape = (ranks[l], *layers[l].kernel_shape[1:])
        channel = rule.mirror.initial(layers[l], P, visible, shape, stream(seed, "Q", l))
        if channel.Q is not None and np.shape(channel.Q) != shape:
            raise ValueError(
                f"mirror {rule.mirror.name!r}: Q of layer {l} has shape {np.shape(channel.Q)}, expected {shape}"
            )
        lateral = rule.reader.initial_lateral(ranks[l])
        channels.append(channel._replace(gain=gain * channel.gain, M=lateral))
    return InitialChannels(tuple(channels), ranks, capped)


def effective_readers(rule: Rule, widths: Sequence[int], *, seed: int) -> tuple[Any, ...]:
    """Return the readers that weights see before they are drawn, the channel's gain shared by P and Q.

    Parameters
    ----------
    rule : Rule
    widths : sequence of int
        Output widths of the kernel layers, the first included.
    seed : int
        Seed of the whole run.

    Returns
    -------
    tuple of numpy.ndarray, shape (rank, out), or None
        One per kernel layer but the first: the same draws as in :func:`initial_channels`, times the root of the gain;
        None for the identity, for P that start from the weights, and under a direct rule, where the layer's own output
        is not what is read.
    """
    if rule.source != "above" or rule.mirror.sets_reader:
        return (None,) * (len(widths) - 1)
    drawn = _readers(rule, widths, [1] * len(widths), seed)[0]
    return tuple(None if P is None else math.sqrt(gain) * P for P, gain in drawn.values())


def padded(arrays: Sequence[Any], blank: Callable[..., Any] = np.zeros) -> Any:
    """Join arrays of runs along a leading run axis, on the host; what lacks rows and columns gets those of a blank one.

    Rows of zeros in P and Q carry nothing and stay zero under every rule; M is padded with the identity.
    """
    if arrays[0] is None:
        return None
    host = [to_numpy(array) for array in arrays]
    shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in host), strict=True))
    joined = np.stack([blank(shape, dtype=host[0].dtype)] * len(host))
    for large, array in zip(joined, host, strict=True):
        large[tuple(slice(size) for size in array.shape)] = array
    return joined


def stacked(channels: Sequence[Channel], place: Callable[[np.ndarray], Any]) -> Channel:
    """Join the channels of runs, padded to the largest rank; gains that are not all 1 get shape (run, 1, 1).

    Parameters
    ----------
    channels : sequence of Channel
        With the same arrays, which may differ in their rank.
    place : callable
        From a host array to one of the right type on the right device.
    """
    gains = [channel.gain for channel in channels]
    gain = 1.0 if set(gains) == {1.0} else place(np.reshape(gains, (-1, 1, 1)).astype(float))
    blanks: dict[str, Any] = {"P": np.zeros, "Q": np.zeros, "M": lambda shape, dtype: np.eye(shape[0], dtype=dtype)}
    joined = {name: padded([getattr(one, name) for one in channels], blank) for name, blank in blanks.items()}
    return Channel(gain=gain, **{name: None if array is None else place(array) for name, array in joined.items()})


def resolved_ranks(rule: Rule, widths: Sequence[int], blocks: Sequence[int]) -> tuple[dict[int, int], tuple[int, ...]]:
    """Return the width of the channel of each kernel layer but the first, and the layers where a rank was capped.

    Parameters
    ----------
    rule : Rule
    widths : sequence of int
        What each kernel layer reads, the first included: the features of its output, or of the error if it is direct.
    blocks : sequence of int
        Number of parts of the layers' outputs, see :func:`~linfb.rules.resolve_rank`.

    Raises
    ------
    ValueError
        As :func:`initial_channels`.

    Examples
    --------
    >>> from linfb.rules import low_rank
    >>> resolved_ranks(low_rank(4), [8, 8, 3], [1, 1, 1])
    ({1: 4, 2: 3}, (2,))
    """
    for argument, named in (("rank (a mapping)", rule.rank), ("layers", rule.layers)):
        if isinstance(named, Mapping | tuple) and (unknown := sorted(set(named) - set(range(1, len(widths))))):
            raise ValueError(
                f"{argument} names layer {unknown[0]}; the layers with a channel are 1 to {len(widths) - 1}"
            )
    ranks, capped = {}, []
    for l in range(1, len(widths)):
        if rule.rank is None or rule.at(l) is not rule:
            ranks[l], was_capped = widths[l], False
        else:
            ranks[l], was_capped = resolve_rank(rule.rank, l, widths[l], blocks[l])
        if was_capped:
            capped.append(l)
    return ranks, tuple(capped)


def _readers(
    rule: Rule, widths: Sequence[int], blocks: Sequence[int], seed: int
) -> tuple[dict[int, tuple[Any, float]], dict[int, int], tuple[int, ...]]:
    """Return P and gain, and rank, by layer, and the layers where the rank was capped."""
    (ranks, capped), drawn = resolved_ranks(rule, widths, blocks), {}
    for l, rank in ranks.items():
        if rule.at(l) is not rule:
            drawn[l] = (None, 1.0)
            continue
        gain = math.sqrt(widths[l] / rank) if rule.gain == "full_rank" else 1.0
        P = rule.reader.initial(rank, widths[l], stream(seed, "P", l))
        if P is not None and np.shape(P) != (rank, widths[l]):
            raise ValueError(
                f"reader {rule.reader.name!r}: P of layer {l} has shape {np.shape(P)}, expected {(rank, widths[l])}"
            )
        drawn[l] = (P, gain)
    return drawn, ranks, capped
