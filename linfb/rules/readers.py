r"""Readers: how a layer's error is compressed to the channel's width, :math:`z = P\delta`.

The covariance that adaptive readers follow is :math:`C = \langle\delta\delta^\top\rangle` *per sample*: the factor
1/batch that an averaged loss puts on every row of delta is taken out, so that C does not depend on the batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from linfb._checks import choice, real, real_array
from linfb.backend import namespace, transpose
from linfb.rules.base import Reader, View

__all__ = ["Fixed", "Identity", "Local", "Normative", "Oja"]


def draw(start: Any, rank: int, n_out: int, rng: np.random.Generator) -> np.ndarray:
    """Return a (rank, out) matrix: orthonormal or Gaussian rows of unit expected norm, or the one given.

    Rows are drawn one after the other, so that the channel of a smaller rank is part of that of a larger one.
    """
    if not isinstance(start, str):
        return real_array("start (the reader's P)", start, (rank, n_out))
    gaussian = rng.standard_normal((rank, n_out))
    if start == "gaussian":
        return gaussian / np.sqrt(n_out)
    q, r = np.linalg.qr(gaussian.T)
    return np.ascontiguousarray((q * np.sign(np.diagonal(r))).T)


def _keep_start(reader: Any) -> None:
    """Check a reader's start, and keep a copy of one that is given as an array."""
    if isinstance(reader.start, str):
        choice("start", reader.start, ("orthonormal", "gaussian"))
    else:
        object.__setattr__(reader, "start", real_array("start", reader.start, ("rank", "out")).copy())


@dataclass(frozen=True)
class Identity(Reader):
    """Read the whole error: full rank, no matrix P."""

    name: ClassVar[str] = "identity"
    compresses: ClassVar[bool] = False

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> None:
        """Return None, which stands for the identity."""


@dataclass(frozen=True, eq=False)
class Fixed(Reader):
    """Read the error through a matrix that stays as it was drawn or given.

    Parameters
    ----------
    start : {"orthonormal", "gaussian"} or array_like, shape (rank, out)
        Uniformly random orthonormal rows, independent Gaussian entries of variance 1/out, or the matrix itself.
    """

    start: Any = "orthonormal"
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        _keep_start(self)

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return P at the start, shape (rank, out)."""
        return draw(self.start, rank, n_out, rng)


@dataclass(frozen=True, eq=False)
class Oja(Reader):
    r"""Find the principal subspace of the errors or of the labels: Oja's rule in matrix form.

    .. math:: \dot P = \rho\, P C (I - P^\top P),\qquad C = \langle\delta\delta^\top\rangle
              \text{ or } \langle yy^\top\rangle

    computed in rank x width work, :math:`PC - (PCP^\top)P`; no width x width matrix is formed. The second term is not
    local to a synapse.

    Parameters
    ----------
    on : {"errors", "labels"}
        What C is the covariance of. Labels exist at the output only: other layers read their errors.
    rate : float
        :math:`\rho`, relative to the rate of the forward weights.
    covariance : {"second_moment", "normalised"}
        The plain second moment per sample, or (the paper's protocol for nonlinear networks) that of rows centred over
        the batch and divided by the largest standard deviation of any of their entries, which makes the rule blind to
        the shrinking of the error.
    start : {"orthonormal", "gaussian"} or array_like, shape (rank, out)
        As in :class:`Fixed`.

    References
    ----------
    :cite:t:`oja1989`, :cite:t:`williams1985`; as a channel of errors :cite:t:`hanut2025`.
    """

    on: str = "errors"
    rate: float = 1.0
    covariance: str = "second_moment"
    start: Any = "orthonormal"
    name: ClassVar[str] = "oja"
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choice("on", self.on, ("errors", "labels"))
        choice("covariance", self.covariance, ("second_moment", "normalised"))
        real("rate", self.rate, at_least=0.0)
        _keep_start(self)

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return P at the start, shape (rank, out)."""
        return draw(self.start, rank, n_out, rng)

    def gradient(self, view: View) -> Any:
        """Return :math:`-PC(I - P^T P)`, shape (rank, out)."""
        P, labels = view.channel.P, self.on == "labels" and view.targets is not None
        rows = view.flat(view.targets) if labels else view.flat(view.delta) * view.samples
        if self.covariance == "normalised":
            rows = _normalised(rows)
        z = rows @ transpose(P)
        z_transposed = transpose(z)
        return ((z_transposed @ z) @ P - z_transposed @ rows) / rows.shape[-2]


def _normalised(rows: Any) -> Any:
    xp = namespace(rows)
    rows = rows - xp.mean(rows, axis=-2, keepdims=True)
    spread = xp.max(xp.sqrt(xp.mean(rows * rows, axis=-2, keepdims=True)), axis=-1, keepdims=True)
    return rows / xp.where(spread > 0, spread, xp.ones_like(spread))


@dataclass(frozen=True, eq=False)
class Local(Reader):
    r"""The synapse-local rule of the paper's later version: errors times the activity seen through Q.

    .. math:: \dot P = \rho\,\big(Q^\top h\,\delta^\top - \lambda P\big)

    in the paper's layout; goes together with the Kolen-Pollack mirror, whose update is :math:`h (P\delta)^\top`. At
    :math:`\lambda = 0` and equal rates the difference of the Gram matrices of Q and P is conserved.

    Parameters
    ----------
    rate : float
        :math:`\rho`, relative to the rate of the forward weights.
    start : {"orthonormal", "gaussian"} or array_like, shape (rank, out)
        As in :class:`Fixed`.
    scale : float
        Factor on the drawn or given start.
    """

    rate: float = 1.0
    start: Any = "orthonormal"
    scale: float = 1.0
    name: ClassVar[str] = "local"
    learns: ClassVar[bool] = True
    decays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0)
        real("scale", self.scale, above=0.0)
        _keep_start(self)

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return P at the start, shape (rank, out)."""
        return self.scale * draw(self.start, rank, n_out, rng)

    def gradient(self, view: View) -> Any:
        """Return the gradient of P, shape (rank, out); errors are d loss / d output, hence the sign."""
        activity = view.layer.forward(view.channel.Q, view.cache)[0]
        return transpose(view.flat(activity)) @ view.flat(view.delta)


@dataclass(frozen=True)
class Normative(Reader):
    r"""Descend :math:`\tfrac12\|P^\top Q - W\|^2`, the distance of the channel from the weights (code shapes).

    Uses the forward weights; goes together with the normative mirror, which also sets the start.

    Parameters
    ----------
    rate : float
        Rate relative to the forward weights.
    """

    rate: float = 1.0
    name: ClassVar[str] = "normative"
    learns: ClassVar[bool] = True
    transports_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0)

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> None:
        """Return None: the normative mirror sets P and Q together, from the weights."""

    def gradient(self, view: View) -> Any:
        """Return :math:`Q(P^T Q - W)^T`, shape (rank, out)."""
        P, Q = view.channel.P, view.channel.Q
        return view.layer.contract(Q, view.layer.compose(transpose(P), Q) - view.weights)
