"""What one measures in a network under a rule: how the carried error compares with the exact one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from linfb.backend import to_numpy
from linfb.engine.backward import Backward, backward
from linfb.engine.models import Model, forward
from linfb.observables import measures
from linfb.rules import Channel, Rule, backpropagation

__all__ = ["OBSERVABLES", "Snapshot", "alignment", "captured_energy", "mirror_stability", "snapshot"]


class Snapshot(NamedTuple):
    """One pass over a batch, back both as the rule carries errors and exactly.

    Attributes
    ----------
    rule : Rule
    kernels : tuple of numpy.ndarray
        The kernels, flattened to (out, ...).
    channels : tuple of Channel or None
        On the host.
    carried, exact : Backward
    """

    rule: Rule
    kernels: tuple[np.ndarray, ...]
    channels: tuple[Channel | None, ...]
    carried: Backward
    exact: Backward


def snapshot(
    model: Model, rule: Rule, loss: Callable[..., Any], weights: Any, channels: Any, x: Any, targets: Any
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
    x : array, shape (batch, in)
    targets : array, shape (batch, out)
    """
    outputs, caches = forward(model, weights, x)
    delta = loss(outputs, targets)[1]
    exact = tuple(None if channel is None else Channel() for channel in channels)
    kernels = [to_numpy(weights[i]) for i in model.kernels]
    return Snapshot(
        rule,
        tuple(kernel.reshape(len(kernel), -1) for kernel in kernels),
        tuple(None if c is None else Channel(_host(c.P), _host(c.Q), c.gain) for c in channels),
        backward(model, rule, weights, channels, caches, delta, targets),
        backward(model, backpropagation(), weights, exact, caches, delta, targets),
    )


def _host(array: Any) -> np.ndarray | None:
    return None if array is None else to_numpy(array).astype(np.float64)


def alignment(view: Snapshot) -> np.ndarray:
    """Return the cosine between carried and exact error at the output of each kernel layer, shape (layer,).

    Over all rows and features at once; NaN where no error arrives.
    """
    pairs = zip(view.carried.deltas, view.exact.deltas, strict=True)
    return np.array([float(measures.cosine(_host(a), _host(b))) for a, b in pairs])


def captured_energy(view: Snapshot) -> np.ndarray:
    r"""Return the share of the error that each channel sees, shape (layer,).

    .. math:: \|\hat P\delta\|^2 / \|\delta\|^2

    with :math:`\hat P` an orthonormal basis of the rows of P; 1 where the whole error is read, NaN for the first layer.
    """
    shares = [np.nan]
    for channel, read in zip(view.channels[1:], view.carried.reads[1:], strict=True):
        P = None if channel is None else channel.P
        shares.append(1.0 if P is None else float(measures.captured_energy(P, _host(read))))
    return np.array(shares)


def mirror_stability(view: Snapshot) -> np.ndarray:
    """Return the smallest real part of the eigenvalues of P W Q^T for each channel, shape (layer,).

    Positive: what the channel sees falls when the layer below follows the carried error; a perfect mirror is never
    negative. NaN for the first layer, for direct rules, and where there is no Q.
    """
    found = [np.nan]
    for W, channel in zip(view.kernels[1:], view.channels[1:], strict=True):
        if channel is None or channel.Q is None or view.rule.source == "network":
            found.append(np.nan)
            continue
        seen = W if channel.P is None else channel.P @ W
        loop = seen @ channel.Q.reshape(len(channel.Q), -1).T
        found.append(float(np.linalg.eigvals(loop).real.min()))
    return np.array(found)


OBSERVABLES: dict[str, Callable[[Snapshot], np.ndarray]] = {
    "alignment": alignment,
    "captured_energy": captured_energy,
    "mirror_stability": mirror_stability,
}
"""What :func:`linfb.engine.train` can record after each epoch."""
