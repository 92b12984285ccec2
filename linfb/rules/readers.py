r"""Readers: how a layer's error is compressed to the channel's width, :math:`z = P\delta`.

The covariance that adaptive readers follow is :math:`C = \langle\delta\delta^\top\rangle` *per sample*: the factor
1/batch that an averaged loss puts on every row of delta is taken out, so that C does not depend on the batch size.
Its option ``covariance`` says what is done to the rows before: nothing ("second_moment"), their mean over the batch
taken off ("centred"), or that and a division by the largest standard deviation of any of their entries ("normalised",
the paper's protocol for nonlinear networks), which makes a reader blind to the shrinking of the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from linfb._checks import choice, integer, real, real_array
from linfb._threads import columns
from linfb.backend import namespace, transpose
from linfb.kernels import suited
from linfb.rules.base import Reader, View

__all__ = ["Fixed", "Identity", "Local", "Normative", "Oja", "SimilarityMatching"]

_COVARIANCES = ("second_moment", "centred", "normalised")


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
    covariance : {"second_moment", "centred", "normalised"}
        What is done to the rows before, see :mod:`linfb.rules.readers`.
    start : {"orthonormal", "gaussian"} or array_like, shape (rank, out)
        As in :class:`Fixed`.
    every : int
        Move in every so-manieth step, so many times as far (in training only; an optimiser that normalises its
        gradients, such as Adam, makes a step of the same size of it).

    References
    ----------
    :cite:t:`oja1989`, :cite:t:`williams1985`; as a channel of errors :cite:t:`hanut2025`.
    """

    on: str = "errors"
    rate: float = 1.0
    covariance: str = "second_moment"
    start: Any = "orthonormal"
    every: int = 1
    name: ClassVar[str] = "oja"
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_adaptive(self)

    @property
    def capturable(self) -> bool:
        """Whether steps are all alike (:mod:`linfb.engine.graph`)."""
        return self.every == 1

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return P at the start, shape (rank, out)."""
        return draw(self.start, rank, n_out, rng)

    def gradient(self, view: View) -> Any:
        """Return :math:`-PC(I - P^T P)`, shape (rank, out); None in steps in which P rests."""
        if not _turn(self, view):
            return None
        P, (rows, z, scaled) = view.channel.P, _activities(self, view)
        if rows.shape[-2] <= rows.shape[-1]:
            return columns(-scaled, rows, z.ndim - 2, plus=(columns(scaled, z, z.ndim - 2), P))
        products = columns(scaled, rows, z.ndim - 2)
        return columns(products @ transpose(P), P, z.ndim - 2) - products  # the overlaps, for less


def _check_adaptive(reader: Any) -> None:
    choice("on", reader.on, ("errors", "labels"))
    choice("covariance", reader.covariance, _COVARIANCES)
    real("rate", reader.rate, at_least=0.0)
    integer("every", reader.every, at_least=1)
    _keep_start(reader)


def _turn(reader: Any, view: View) -> bool:
    """Return whether it is the reader's turn to move in this step of training."""
    return view.number is None or view.number % reader.every == 0


def _activities(reader: Any, view: View) -> tuple[Any, Any, Any]:
    """Return the rows that are read, what the filters make of them, and that times what makes averages of its sums.

    The rows are not copied: whether their mean is taken off, only the narrow z has to know.
    """
    if reader.on == "labels" and view.targets is not None:
        rows, factor = view.flat(view.targets), 1.0
        z = rows @ transpose(view.channel.filters)
    else:
        rows, z, factor = view.flat(view.delta), view.flat(view.z), float(view.samples) ** 2
    xp = namespace(rows)
    scale: Any = factor * (1 if view.number is None else reader.every) / rows.shape[-2]
    if reader.covariance != "second_moment":
        z = z - xp.mean(z, axis=-2, keepdims=True)
    if reader.covariance == "normalised":
        variances = suited("norms", rows).feature_variances(rows, rows.ndim - 2)
        largest = xp.max(variances, axis=-1)[..., None, None]
        scale = scale / xp.where(largest > 0, factor * largest, xp.ones_like(largest))
    return rows, z, scale * z


def _moments(reader: Any, view: View) -> tuple[Any, Any]:
    r"""Return :math:`FCF^\top`, shape (..., rank, rank), and :math:`FC`, shape (..., rank, out), for filters F."""
    rows, z, scaled = _activities(reader, view)
    products = columns(scaled, rows, z.ndim - 2)
    if rows.shape[-2] <= rows.shape[-1]:
        return columns(scaled, z, z.ndim - 2), products
    return products @ transpose(view.channel.filters), products  # the same for less


@dataclass(frozen=True, eq=False)
class SimilarityMatching(Reader):
    r"""Find the principal subspace by a rule that is local to every synapse: similarity matching.

    The channel's units inhibit each other through M until they rest at :math:`z = M^{-1}P\delta`; then every synapse
    learns from the two units that it joins, and forgets at the pace of the activity of the one it ends on:

    .. math:: \dot P_{ij} = \rho\,\big(\langle z_i\delta_j\rangle - \langle z_i^2\rangle P_{ij}\big),\qquad
              \dot M_{ik} = \rho\kappa\,\big(\langle z_i z_k\rangle - \langle z_i^2\rangle M_{ik}\big)

    Parameters
    ----------
    on, rate, covariance, start, every
        As in :class:`Oja`; M starts as the identity.
    ratio : float
        :math:`\kappa`, the rate of M relative to that of P.

    Notes
    -----
    What the units respond to is :math:`F = M^{-1}P` (:attr:`~linfb.rules.Channel.filters`), and mirrors follow F W.
    With :math:`\kappa = 1`

    .. math:: \dot F = \rho\, M^{-1} F C (I - F^\top F),

    Oja's flow behind a matrix: from an orthonormal start the rows of F stay orthonormal however the error changes, so
    that the channel keeps its scale, and the stable fixed points are those of Oja's rule, the principal subspace. The
    diagonal of M stays 1. As with Oja's rule the speed is that of C, and a channel without error rests. A channel wider
    than the rank of C ends with units that repeat each other, and an M that is close to singular.

    References
    ----------
    :cite:t:`pehlevan2015`, :cite:t:`pehlevan2018`.

    Examples
    --------
    >>> reader = SimilarityMatching(start=[[1.0, 0.0]])
    >>> rng = np.random.default_rng(0)
    >>> reader.initial(1, 2, rng), reader.initial_lateral(1)
    (array([[1., 0.]]), array([[1.]]))
    """

    on: str = "errors"
    rate: float = 1.0
    covariance: str = "second_moment"
    start: Any = "orthonormal"
    ratio: float = 1.0
    every: int = 1
    name: ClassVar[str] = "similarity_matching"
    learns: ClassVar[bool] = True
    capturable: ClassVar[bool] = False  # solving for z may wait on the host

    def __post_init__(self) -> None:
        _check_adaptive(self)
        real("ratio", self.ratio, at_least=0.0)

    def initial(self, rank: int, n_out: int, rng: np.random.Generator) -> np.ndarray:
        """Return P at the start, shape (rank, out)."""
        return draw(self.start, rank, n_out, rng)

    def initial_lateral(self, rank: int) -> np.ndarray:
        """Return M at the start: the identity, shape (rank, rank)."""
        return np.eye(rank)

    def gradient(self, view: View) -> Any:
        """Return what P descends, shape (rank, out): row i from the activity of unit i alone; None where it rests."""
        if not _turn(self, view):
            return None
        overlaps, products = view.once("moments", partial(_moments, self, view))
        return _diagonal(overlaps) * view.channel.P - products

    def lateral_gradient(self, view: View) -> Any:
        """Return what M descends, shape (rank, rank); exactly zero on the diagonal. None where it rests."""
        if not _turn(self, view):
            return None
        overlaps, _ = view.once("moments", partial(_moments, self, view))
        return self.ratio * (_diagonal(overlaps) * view.channel.M - overlaps)


def _diagonal(matrix: Any) -> Any:
    return namespace(matrix).linalg.diagonal(matrix)[..., None]


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
        return view.layer.contract(view.channel.Q, view.residual)
