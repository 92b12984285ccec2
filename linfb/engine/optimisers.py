r"""Optimizers as pure pairs: `init` makes what one array needs, `update` takes one step of it.

An optimiser acts on one array at a time, so that W, Q and P can each have their own. Weight decay is explicit:
"coupled" (an L2 penalty, :math:`g + \lambda w` enters the moments) or "decoupled" (:math:`-\eta\lambda w` acts on the
weights alone). Equations, constants and the place of epsilon agree with PyTorch's
(``tests/test_engine_optimisers_oracle.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from linfb._checks import choice, integer, real
from linfb._live import Live, live
from linfb.backend import namespace, reshape
from linfb.kernels import reference_optimisers as reference
from linfb.rules import Rule

__all__ = [
    "Adam", "Muon", "Optimizer", "Optimizers", "Rmsprop", "Sgd", "adam", "adamw", "amsgrad", "clipped", "global_norm",
    "joined", "muon", "rmsprop", "sgd",
]  # fmt: skip


PerRun = float | int | tuple[float | int, ...]
"""A number for all runs of an ensemble, or one for each."""


class Optimizer(Protocol):
    """What the training loop needs of an optimiser."""

    learning_rate: PerRun
    weight_decay: PerRun

    def init(self, value: Any) -> tuple[Any, ...]:
        """Return the state of the optimiser for one array: arrays of its shape."""
        ...

    def update(
        self,
        value: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        *,
        step: int | Live,
        factor: float | Live = 1.0,
        kernels: ModuleType = reference,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return the array and its state after step number `step` (from 1), with `factor` on the learning rate.

        `kernels` is :mod:`linfb.kernels.reference_optimisers`, which leaves its arguments alone, or a module with
        the same functions that overwrites them (:func:`linfb.kernels.suited`). In a captured step on a GPU `step` and
        `factor` are live (:mod:`linfb._live`); an optimiser that cannot pass them on says ``capturable = False``.
        """
        ...


class _ByKernel(Optimizer, Protocol):
    """An optimiser whose step is one call of a kernel, :meth:`_step`."""

    def update(
        self,
        value: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        *,
        step: int | Live,
        factor: float | Live = 1.0,
        kernels: ModuleType = reference,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Take one step, see :class:`Optimizer`."""
        value, *state = self._step(kernels, value, gradient, slots, live(_rate, self.learning_rate, factor), step)
        return value, tuple(slot for slot in state if slot is not None)

    def _step(
        self, kernels: ModuleType, value: Any, gradient: Any, slots: tuple[Any, ...], rate: Any, step: Any
    ) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Sgd(_ByKernel):
    """Settings of :func:`sgd`, which describes them."""

    learning_rate: PerRun
    momentum: float = 0.0
    lookahead: float = 0.0
    weight_decay: PerRun = 0.0
    decay: str = "coupled"

    def __post_init__(self) -> None:
        _check(self)
        real("momentum", self.momentum, at_least=0.0, below=1.0)
        real("lookahead", self.lookahead, at_least=0.0, below=1.0)

    def init(self, value: Any) -> tuple[Any, ...]:
        """Return the velocity at the start, zero; nothing without momentum."""
        return _zeros(value, 1 if self.momentum else 0)

    def _step(self, kernels, value, gradient, slots, rate, step):
        velocity = slots[0] if self.momentum else None
        return kernels.sgd(value, gradient, velocity, rate, self.momentum, self.lookahead, *_decays(self))


@dataclass(frozen=True)
class Rmsprop(_ByKernel):
    """Settings of :func:`rmsprop`, which describes them.

    References
    ----------
    :cite:t:`tieleman2012`.
    """

    learning_rate: PerRun = 1e-2
    alpha: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    centred: bool = False
    weight_decay: PerRun = 0.0
    decay: str = "coupled"

    def __post_init__(self) -> None:
        _check(self)
        real("alpha", self.alpha, at_least=0.0, below=1.0)
        real("epsilon", self.epsilon, above=0.0)
        real("momentum", self.momentum, at_least=0.0, below=1.0)
        _flag("centred", self.centred)

    def init(self, value: Any) -> tuple[Any, ...]:
        """Return zeros: the second moment, then the mean if it is centred, then the velocity if there is momentum."""
        return _zeros(value, 1 + self.centred + (self.momentum > 0))

    def _step(self, kernels, value, gradient, slots, rate, step):
        mean = slots[1] if self.centred else None
        velocity = slots[-1] if self.momentum else None
        settings = (rate, self.alpha, self.epsilon, self.momentum, *_decays(self))
        return kernels.rmsprop(value, gradient, slots[0], mean, velocity, *settings)


@dataclass(frozen=True)
class Adam(_ByKernel):
    """Settings of :func:`adam`, :func:`amsgrad` and :func:`adamw`, which describe them.

    References
    ----------
    :cite:t:`kingma2015`, :cite:t:`reddi2018`, :cite:t:`loshchilov2019`.
    """

    learning_rate: PerRun = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: PerRun = 0.0
    decay: str = "coupled"
    second_moment: str = "running"

    def __post_init__(self) -> None:
        _check(self)
        real("beta1", self.beta1, at_least=0.0, below=1.0)
        real("beta2", self.beta2, at_least=0.0, below=1.0)
        real("epsilon", self.epsilon, above=0.0)
        choice("second_moment", self.second_moment, ("running", "largest"))

    def init(self, value: Any) -> tuple[Any, ...]:
        """Return the moments at the start, zero: first, second, and for AMSGrad the largest second."""
        return _zeros(value, 2 if self.second_moment == "running" else 3)

    def _step(self, kernels, value, gradient, slots, rate, step):
        rule = kernels.adam if self.second_moment == "running" else kernels.amsgrad
        return rule(value, gradient, *slots, rate, self.beta1, self.beta2, self.epsilon, *_decays(self), step)


@dataclass(frozen=True)
class Muon(_ByKernel):
    """Settings of :func:`muon`, which describes them.

    References
    ----------
    :cite:t:`jordan2024`.
    """

    learning_rate: PerRun = 1e-3
    momentum: float = 0.95
    nesterov: bool = True
    steps: int = 5
    weight_decay: PerRun = 0.0
    decay: str = "decoupled"
    other: Any = None

    def __post_init__(self) -> None:
        _check(self)
        real("momentum", self.momentum, at_least=0.0, below=1.0)
        _flag("nesterov", self.nesterov)
        integer("steps", self.steps, at_least=1)
        if self.other is not None:
            _optimiser("other", self.other)

    def init(self, value: Any) -> tuple[Any, ...]:
        """Return the average of gradients at the start, zero; for fewer than two axes what `other` starts from."""
        return _zeros(value, 1) if self._is_matrix(value) else self._other().init(value)

    def update(
        self,
        value: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        *,
        step: int | Live,
        factor: float | Live = 1.0,
        kernels: ModuleType = reference,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Take one step, see :class:`Optimizer`."""
        own = super().update if self._is_matrix(value) else self._other().update
        return own(value, gradient, slots, step=step, factor=factor, kernels=kernels)

    def _step(self, kernels, value, gradient, slots, rate, step):
        lookahead = self.momentum if self.nesterov else 0.0
        return kernels.muon(value, gradient, *slots, rate, self.momentum, lookahead, self.steps, *_decays(self))

    @property
    def capturable(self) -> bool:
        """Whether a captured step can take it: if `other` can."""
        return getattr(self.other, "capturable", True)

    def _other(self) -> Any:
        if self.other is not None:
            return self.other
        return Adam(self.learning_rate, weight_decay=self.weight_decay, decay=self.decay)

    def _is_matrix(self, value: Any) -> bool:
        return value.ndim - isinstance(self.learning_rate, tuple) >= 2


def _rate(learning_rate: PerRun, factor: float) -> Any:
    return _number(learning_rate) * factor


def _zeros(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(namespace(value).zeros_like(value) for _ in range(count))


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _optimiser(name: str, value: Any) -> None:
    if not (callable(getattr(value, "update", None)) and callable(getattr(value, "init", None))):
        raise TypeError(f"{name} must be an optimiser such as linfb.engine.adam(), got {value!r}")


def _check(optimiser: Any) -> None:
    for name in ("learning_rate", "weight_decay"):
        numbers = getattr(optimiser, name)
        for number in numbers if isinstance(numbers, tuple) else (numbers,):
            real(name, number, at_least=0.0)
    choice("decay", optimiser.decay, ("coupled", "decoupled"))


@lru_cache(maxsize=64)  # of an ensemble it makes an array, which is asked for once per array of weights and step
def _number(numbers: PerRun) -> Any:
    return np.array(numbers) if isinstance(numbers, tuple) else float(numbers)


def _decays(optimiser: Any) -> tuple[Any, Any]:
    strength = _number(optimiser.weight_decay)
    return (strength, 0.0) if optimiser.decay == "coupled" else (0.0, strength)


def sgd(
    learning_rate: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: str = "coupled",
) -> Sgd:
    r"""Return stochastic gradient descent with momentum.

    .. math:: v_t = \mu v_{t-1} + g_t,\qquad w_t = w_{t-1} - \eta v_t

    Nesterov's form steps along :math:`g_t + \mu v_t`.

    Parameters
    ----------
    learning_rate : float
        :math:`\eta`.
    momentum : float
        :math:`\mu`, in [0, 1).
    nesterov : bool
        Whether to look ahead.
    weight_decay : float
        :math:`\lambda`.
    decay : {"coupled", "decoupled"}
        Whether :math:`\lambda w` is added to the gradient or :math:`\eta\lambda w` taken from the weights.

    Examples
    --------
    >>> import numpy as np
    >>> optimiser, w = sgd(0.5, momentum=0.9), np.array([1.0])
    >>> w, slots = optimiser.update(w, np.array([1.0]), optimiser.init(w), step=1)
    >>> optimiser.update(w, np.array([1.0]), slots, step=2)[0]
    array([-0.45])
    """
    return Sgd(learning_rate, momentum, momentum if nesterov else 0.0, weight_decay, decay)


def rmsprop(
    learning_rate: float = 1e-2,
    *,
    alpha: float = 0.99,
    epsilon: float = 1e-8,
    momentum: float = 0.0,
    centred: bool = False,
    weight_decay: float = 0.0,
    decay: str = "coupled",
) -> Rmsprop:
    r"""Return RMSprop: gradients divided by the root of their running mean square.

    .. math:: s_t = \alpha s_{t-1} + (1-\alpha) g_t^2,\qquad
              v_t = \mu v_{t-1} + \frac{g_t}{\sqrt{s_t} + \epsilon},\qquad w_t = w_{t-1} - \eta v_t

    Parameters
    ----------
    learning_rate : float
        :math:`\eta`.
    alpha : float
        Memory of the mean square, in [0, 1). It starts at zero and is not corrected for that.
    epsilon : float
        Added to the root, outside of it.
    momentum : float
        :math:`\mu`, in [0, 1).
    centred : bool
        Whether to take the square of a running mean of gradients off :math:`s_t`, which leaves their variance.
    weight_decay, decay
        As for :func:`sgd`.

    References
    ----------
    :cite:t:`tieleman2012`.

    Examples
    --------
    >>> import numpy as np
    >>> optimiser, w = rmsprop(0.1, alpha=0.75), np.array([1.0])
    >>> optimiser.update(w, np.array([7.0]), optimiser.init(w), step=1)[0]
    array([0.8])
    """
    return Rmsprop(learning_rate, alpha, epsilon, momentum, centred, weight_decay, decay)


def adam(
    learning_rate: float = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decay: str = "coupled",
) -> Adam:
    r"""Return Adam.

    .. math:: m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t,\qquad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2 \\
              w_t &= w_{t-1} - \eta\,\frac{m_t/(1-\beta_1^t)}{\sqrt{v_t/(1-\beta_2^t)} + \epsilon}

    Parameters
    ----------
    learning_rate : float
        :math:`\eta`.
    beta1, beta2 : float
        Memories of the moments, in [0, 1).
    epsilon : float
        Added to the root, outside of it.
    weight_decay, decay
        As for :func:`sgd`.

    References
    ----------
    :cite:t:`kingma2015`.

    Examples
    --------
    >>> import numpy as np
    >>> optimiser, w = adam(0.1), np.array([1.0])
    >>> optimiser.update(w, np.array([7.0]), optimiser.init(w), step=1)[0]
    array([0.9])
    """
    return Adam(learning_rate, beta1, beta2, epsilon, weight_decay, decay)


def amsgrad(learning_rate: float = 1e-3, **settings: Any) -> Adam:
    r"""Return AMSGrad: Adam whose step never grows because the second moment shrinks.

    .. math:: \hat v_t = \max(\hat v_{t-1}, v_t),\qquad
              w_t = w_{t-1} - \eta\,\frac{m_t/(1-\beta_1^t)}{\sqrt{\hat v_t/(1-\beta_2^t)} + \epsilon}

    Takes the settings of :func:`adam`.

    References
    ----------
    :cite:t:`reddi2018`.

    Examples
    --------
    >>> amsgrad(6e-4, weight_decay=4e-4).second_moment
    'largest'
    """
    return replace(adam(learning_rate, **settings), second_moment="largest")


def adamw(learning_rate: float = 1e-3, *, weight_decay: float = 1e-2, **settings: Any) -> Adam:
    """Return AdamW: :func:`adam` with decoupled weight decay.

    References
    ----------
    :cite:t:`loshchilov2019`.

    Examples
    --------
    >>> adamw().decay
    'decoupled'
    """
    return adam(learning_rate, weight_decay=weight_decay, decay="decoupled", **settings)


def muon(
    learning_rate: float = 1e-3,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    weight_decay: float = 0.0,
    decay: str = "decoupled",
    other: Any = None,
) -> Muon:
    r"""Return Muon: momentum whose singular values are all brought near 1.

    .. math:: m_t = \mu m_{t-1} + (1-\mu) g_t,\qquad d_t = (1-\mu) g_t + \mu m_t,\qquad
              w_t = (1 - \eta\lambda)\, w_{t-1}
                    - \eta \sqrt{\max\Big(1, \frac{\text{rows}}{\text{columns}}\Big)}\; O(d_t)

    where :math:`O` is five steps of :func:`linfb.kernels.reference_optimisers.orthogonalised` on the array as a matrix
    (out, everything else). An update of low rank, as feedback of low rank makes them, is spread over all directions
    that it has at all; directions it lacks stay without.

    Parameters
    ----------
    learning_rate : float
        :math:`\eta`.
    momentum : float
        :math:`\mu`, in [0, 1).
    nesterov : bool
        Whether to look ahead; otherwise :math:`d_t = m_t`.
    steps : int
        Number of steps of the iteration.
    weight_decay, decay
        As for :func:`sgd`, but decoupled by default.
    other : Optimizer, optional
        For arrays with fewer than two axes, such as biases and gains. None takes Adam with the same learning rate and
        weight decay: an entry then moves by about :math:`\eta` a step, as a matrix of one column does under Muon's
        own scale.

    Notes
    -----
    All arrays with two axes or more are taken for matrices, positional embeddings too. The scale is that of the
    method's authors and PyTorch's default; another in use, :math:`0.2\sqrt{\max(\text{rows}, \text{columns})}`, gives
    entries of a full-rank update the size they have under Adam. PyTorch iterates in bfloat16; here the precision is
    the array's own. Gradients of any size give the same update, down to a norm of 1e-7. As under Adam, a mirror Q moved
    by its own optimiser does not follow P W exactly, for :math:`O(PG)` is not :math:`P\,O(G)`.

    Each step of the iteration is three matrix products: for weights of n x n, five steps cost as much as 15 n samples
    forward.

    References
    ----------
    :cite:t:`jordan2024`.

    Examples
    --------
    >>> import numpy as np
    >>> optimiser, w = muon(1.0), np.zeros((2, 2))
    >>> w, _ = optimiser.update(w, np.diag([1.0, 0.1]), optimiser.init(w), step=1)
    >>> bool(np.all(np.abs(-np.diag(w) - 1) < 0.33)), float(w[0, 1])
    (True, 0.0)
    """
    return Muon(learning_rate, momentum, nesterov, steps, weight_decay, decay, other)


def global_norm(gradients: Mapping[str, Any], leading: int = 0) -> Any:
    r"""Return the Euclidean norm of all entries of all arrays together, :math:`\sqrt{\sum_k |g_k|^2}`.

    Parameters
    ----------
    gradients : mapping
        From path to array; at least one, all of one library and precision.
    leading : int
        Number of axes that all arrays share, of an ensemble the run axis; each of their entries has its own norm.

    Returns
    -------
    array, shape (); or of the leading axes
        On the arrays' device.

    Examples
    --------
    >>> import numpy as np
    >>> float(global_norm({"0": np.array([[3.0]]), "1": np.array([0.0, 4.0])}))
    5.0
    """
    xp = namespace(*gradients.values())
    squares = (gradient * gradient for gradient in gradients.values())
    return xp.sqrt(sum(xp.sum(s, axis=tuple(range(leading, s.ndim)) if leading else None) for s in squares))


def clipped(gradients: Mapping[str, Any], limit: float | None, leading: int = 0) -> Mapping[str, Any]:
    r"""Return gradients scaled down together so that their norm is at most `limit`.

    .. math:: g_k \leftarrow \min\Big(1, \frac{c}{|g| + 10^{-6}}\Big)\, g_k

    Parameters
    ----------
    gradients : mapping
        From path to array, all of one library and precision.
    limit : float, optional
        :math:`c`; None leaves the gradients as they are.
    leading : int
        As for :func:`global_norm`.

    Returns
    -------
    mapping
        New arrays under the same paths. A norm that is NaN makes them all NaN; nothing is read from the device.

    References
    ----------
    :cite:t:`pascanu2013`.

    Examples
    --------
    >>> import numpy as np
    >>> clipped({"0": np.array([[3.0]]), "1": np.array([0.0, 4.0])}, 1.0)["1"]
    array([0. , 0.8])
    """
    if limit is None or not gradients:
        return gradients
    xp, norm = namespace(*gradients.values()), global_norm(gradients, leading)
    scale = xp.minimum(float(limit) / (norm + 1e-6), xp.ones_like(norm))
    return {path: reshape(scale, *scale.shape, *(1,) * (g.ndim - leading)) * g if leading else scale * g
            for path, g in gradients.items()}  # fmt: skip


class Part(NamedTuple):
    """How one kind of array moves: its optimiser and the factor of the rule on the learning rate."""

    optimiser: Any
    rate: float


@dataclass(frozen=True)
class Optimizers:
    """Separate optimisers for the weights and the two kinds of feedback arrays.

    Parameters
    ----------
    W : Optimizer
        For all forward weights.
    Q, P : Optimizer, optional
        For mirrors and readers. None takes W's settings, with the weight decay of W only where the rule says that
        decay acts on the array. In both cases the rule's rate multiplies the learning rate.
    clip_norm : float, optional
        Scale the gradients of all forward weights (W, not Q and P) down together to this norm, see :func:`clipped`;
        off by default.

    Examples
    --------
    >>> from linfb.rules import low_rank
    >>> parts = Optimizers(adam(1e-3, weight_decay=1e-4)).parts(low_rank(2))
    >>> parts["Q"].optimiser.weight_decay, parts["P"].optimiser.weight_decay, parts["P"].rate
    (0.0001, 0.0, 1.0)
    """

    W: Any
    Q: Any = None
    P: Any = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("W", self.W), ("Q", self.Q), ("P", self.P)):
            if value is not None or name == "W":
                _optimiser(f"optimizer for {name}", value)
        if self.clip_norm is not None:
            real("clip_norm", self.clip_norm, above=0.0)

    def parts(self, rule: Rule) -> dict[str, Part]:
        """Return how W, Q and P move under a rule."""
        mirror, reader = rule.mirror, rule.reader
        return {
            "W": Part(self.W, 1.0),
            "Q": Part(self.Q or self._like_W(mirror.decays), mirror.rate),
            "P": Part(self.P or self._like_W(reader.decays), reader.rate),
        }

    def _like_W(self, decays: bool) -> Any:
        return self.W if decays else self._without_decay

    @cached_property
    def _without_decay(self) -> Any:
        return replace(self.W, weight_decay=0.0)

    def kind(self) -> str | None:
        """Return what optimisers of runs must share to be joined; None for those that :func:`joined` does not know."""
        parts = (self.W, self.Q, self.P)
        if not all(part is None or type(part) in (Sgd, Rmsprop, Adam, Muon) for part in parts):
            return None
        alike = [None if part is None else replace(part, learning_rate=0.0, weight_decay=0.0) for part in parts]
        return f"{alike} {self.clip_norm}"


def joined(optimisers: Sequence[Optimizers]) -> Optimizers:
    """Return optimisers of one kind as one, for arrays with a leading run axis: rates and decays are one per run.

    Examples
    --------
    >>> joined([Optimizers(sgd(0.1)), Optimizers(sgd(0.2))]).W.learning_rate
    (0.1, 0.2)
    """

    def together(parts: Sequence[Any]) -> Any:
        if parts[0] is None:
            return None
        rates, decays = (tuple(getattr(part, name) for part in parts) for name in ("learning_rate", "weight_decay"))
        return replace(parts[0], learning_rate=rates, weight_decay=decays if len(set(decays)) > 1 else decays[0])

    W, Q, P = (together([getattr(one, name) for one in optimisers]) for name in ("W", "Q", "P"))
    return Optimizers(W, Q, P, optimisers[0].clip_norm)
