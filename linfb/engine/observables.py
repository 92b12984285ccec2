"""What one measures in a network under a rule: how the carried error compares with the exact one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from linfb._checks import integer
from linfb.backend import Key, to_numpy
from linfb.engine.backward import Backward, backward
from linfb.engine.models import Model, forward, is_mark
from linfb.observables import measures
from linfb.rules import Channel, Rule, backpropagation

__all__ = [
    "OBSERVABLES", "Snapshot", "alignment", "captured_energy", "mirror_alignment", "mirror_stability",
    "receptive_fields", "snapshot", "subspace_distance", "update_rank",
]  # fmt: skip


class Snapshot(NamedTuple):
    """One pass over a batch, back both as the rule carries errors and exactly.

    Attributes
    ----------
    rule : Rule
    indices : tuple of int
        Which of the model's layers are the kernel layers.
    kernels : tuple of numpy.ndarray
        The kernels, flattened to (out, ...).
    channels : tuple of Channel or None
        On the host.
    carried, exact : Backward
    """

    rule: Rule
    indices: tuple[int, ...]
    kernels: tuple[np.ndarray, ...]
    channels: tuple[Channel | None, ...]
    carried: Backward
    exact: Backward


def snapshot(
    model: Model,
    rule: Rule,
    loss: Callable[..., Any],
    weights: Any,
    channels: Any,
    x: Any,
    targets: Any,
    *,
    key: Key | None = None,
) -> Snapshot:
    """Pass a batch (training mode) through a network, without changing anything.

    Parameters
    ----------
    model : Model
    rule : Rule
    loss : callable
        One of :data:`linfb.engine.losses.LOSSES`.
    weights, channels : tuple
        Of a :class:`~linfb.engine.state.State`.
    x : array, shape (batch, *model.shape)
    targets : array, shape (batch, ..., out)
    key : Key, optional
        Place of random numbers, for layers and mirrors that draw any.
    """
    outputs, caches = forward(model, weights, x, key)
    delta = loss(outputs, targets)[1]
    exact = tuple(None if channel is None else Channel() for channel in channels)
    kernels = [to_numpy(weights[i]) for i in model.kernels]
    return Snapshot(
        rule,
        model.kernels,
        tuple(kernel.reshape(len(kernel), -1) for kernel in kernels),
        tuple(None if c is None else Channel(_host(c.P), _host(c.Q), c.gain, _host(c.M)) for c in channels),
        backward(model, rule, weights, channels, caches, delta, targets, key=key),
        backward(model, backpropagation(), weights, exact, caches, delta, targets),
    )


def _host(array: Any) -> np.ndarray | None:
    return None if array is None else to_numpy(array).astype(np.float64)


def alignment(view: Snapshot) -> np.ndarray:
    """Return the cosine between carried and exact error at the output of each kernel layer, shape (layer,).

    Over all rows and features at once; NaN where no error arrives.
    """
    pairs = zip(view.carried.deltas, view.exact.deltas, strict=True)
    return np.array([float(measures.cosine(_flat(a), _flat(b))) for a, b in pairs])


def _flat(array: Any) -> np.ndarray:
    """Return an error with batch and positions on one axis, on the host in float64."""
    host = _host(array)
    assert host is not None
    return host.reshape(-1, host.shape[-1])


def _read(view: Snapshot) -> Iterator[tuple[Any, np.ndarray] | None]:
    """Return P and what it reads, channel by channel; None where there is no P."""
    for channel, read in zip(view.channels[1:], view.carried.reads[1:], strict=True):
        yield None if channel is None or channel.P is None else (channel.P, _flat(read))


def captured_energy(view: Snapshot) -> np.ndarray:
    r"""Return the share of the error that each channel sees, shape (layer,).

    .. math:: \|\hat P\delta\|^2 / \|\delta\|^2

    with :math:`\hat P` an orthonormal basis of the rows of P; 1 where the whole error is read, NaN for the first layer.
    """
    return np.array(
        [np.nan, *(1.0 if pair is None else float(measures.captured_energy(*pair)) for pair in _read(view))]
    )


def subspace_distance(view: Snapshot) -> np.ndarray:
    r"""Return how far the rows of each P are from the principal subspace of the error they read, shape (layer,).

    .. math:: 1 - \|\Pi U_r\|^2 / r

    with :math:`\Pi` the projector on the rows of P and :math:`U_r` the r leading eigenvectors of
    :math:`\langle\delta\delta^\top\rangle` on this batch: 0 where P has found them, 1 where it is orthogonal to them.
    NaN where there is no P.
    """
    found = [np.nan]
    for pair in _read(view):
        if pair is None:
            found.append(np.nan)
            continue
        P, read = pair
        leading = np.linalg.eigh(read.T @ read)[1][:, ::-1][:, : len(P)]
        found.append(1.0 - float(measures.subspace_overlap(P, leading)))
    return np.array(found)


def update_rank(view: Snapshot) -> np.ndarray:
    r"""Return the effective rank of the weight gradient of each kernel layer, shape (layer,).

    The participation ratio of its singular values, :math:`(\sum_i s_i^2)^2/\sum_i s_i^4`, of the kernel as a matrix
    (out, ...); NaN where the gradient vanishes.
    """
    gradients = [_host(view.carried.weights[i]) for i in view.indices]
    return np.array([float(measures.participation_ratio(g.reshape(len(g), -1))) for g in gradients if g is not None])


def _mirrors(view: Snapshot) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
    """Return P W and Q, channel by channel; None where there is no Q that stands for the weights."""
    for k, (W, channel) in enumerate(zip(view.kernels[1:], view.channels[1:], strict=True), start=1):
        if channel is None or channel.Q is None or channel.Q.reshape(len(channel.Q), -1).shape[1] != W.shape[1]:
            yield None
            continue
        ideal, Q = (W if channel.P is None else channel.filters @ W), channel.Q.reshape(len(channel.Q), -1)
        yield ideal, view.rule.at(k).mirror.kernel(channel._replace(Q=Q), ideal)


def mirror_alignment(view: Snapshot) -> np.ndarray:
    """Return the cosine between each Q and its ideal P W, shape (layer,).

    NaN for the first layer, for direct rules, and where there is no Q.
    """
    if view.rule.source != "above":
        return np.full(len(view.kernels), np.nan)
    pairs = _mirrors(view)
    return np.array([np.nan, *(np.nan if p is None else float(measures.cosine(p[0], p[1])) for p in pairs)])


def mirror_stability(view: Snapshot) -> np.ndarray:
    """Return the smallest real part of the eigenvalues of P W Q^T for each channel, shape (layer,).

    Positive: what the channel sees falls when the layer below follows the carried error; a perfect mirror is never
    negative. NaN for the first layer, for direct rules, and where there is no Q.
    """
    if view.rule.source != "above":
        return np.full(len(view.kernels), np.nan)
    pairs = _mirrors(view)
    return np.array(
        [np.nan, *(np.nan if p is None else float(np.linalg.eigvals(p[0] @ p[1].T).real.min()) for p in pairs)]
    )


def receptive_fields(model: Model, weights: Any, layer: int) -> np.ndarray:
    r"""Return the gradient, with respect to a blank image, of the response of each channel's unit in the middle.

    .. math:: F_c = \frac{\partial y_{c,\,\text{middle}}}{\partial x}\Big|_{x = 0}

    Errors go back through all layers' true Jacobians, whatever the rule. Rectifiers below that are closed at the blank
    image let nothing through; a channel whose ways are all closed has a field of zeros.

    Parameters
    ----------
    model : Model
        Of images.
    weights : tuple
        One entry per layer, on the host.
    layer : int
        Which of the model's layers has the units; ``model.kernels[1]`` takes the second convolution before its
        rectifier.

    Returns
    -------
    numpy.ndarray, shape (channel, *model.shape)
        In the precision of the weights.

    Raises
    ------
    TypeError, ValueError
        If there is no such layer, it is no layer of images, or one up to it does in training what it does not do later.

    Notes
    -----
    The middle of an image of even height is the first row of its lower half, and so for columns. The blank image is the
    mean one of standardised data. ``tests/test_receptive_fields.py`` has finite differences.

    References
    ----------
    :cite:t:`lindsey2019`

    Examples
    --------
    >>> from linfb.engine import retina
    >>> from linfb.engine.models import initial_weights
    >>> model = retina((16, 16, 1), 10, width=4, size=3)
    >>> fields = receptive_fields(model, initial_weights(model, 0), model.kernels[0])
    >>> fields.shape, np.abs(fields[0, ..., 0]).max(axis=0).nonzero()[0]
    ((4, 16, 16, 1), array([7, 8, 9]))
    """
    stop = integer("layer", layer, at_least=model.kernels[0], at_most=len(model.layers) - 1) + 1
    if noisy := [one for one in model.layers[:stop] if hasattr(one, "evaluate")]:
        raise ValueError(f"layer {layer} is above {noisy[0]}, which has another Jacobian in training than later")
    part, first = Model(model.layers[:stop], model.shape), weights[model.kernels[0]]
    *positions, channels = part.shapes[-1]
    if len(model.shape) != 3 or len(positions) != 2:
        raise ValueError(f"layer {layer} has outputs of shape {part.shapes[-1]}, which are no images of channels")
    caches = forward(part, weights, np.zeros((channels, *model.shape), first.dtype))[1]
    delta = np.zeros((channels, *part.shapes[-1]), first.dtype)
    delta[:, positions[0] // 2, positions[1] // 2] = np.eye(channels)
    aside: list[Any] = []
    for one, w, cache in reversed(list(zip(part.layers, weights, caches, strict=False))):
        delta = one.back(delta, aside, False) if is_mark(one) else one.pull(w, cache, delta)
    return delta


OBSERVABLES: dict[str, Callable[[Snapshot], np.ndarray]] = {
    "alignment": alignment,
    "captured_energy": captured_energy,
    "subspace_distance": subspace_distance,
    "update_rank": update_rank,
    "mirror_alignment": mirror_alignment,
    "mirror_stability": mirror_stability,
}
"""What :func:`linfb.engine.train` can record after each epoch."""
