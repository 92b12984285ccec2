r"""Optimizers as pure pairs: `init` makes what one array needs, `update` takes one step of it.

An optimiser acts on one array at a time, so that W, Q and P can each have their own. Weight decay is explicit:
"coupled" (an L2 penalty, :math:`g + \lambda w` enters the moments) or "decoupled" (:math:`-\eta\lambda w` acts on the
weights alone). Equations, constants and the place of epsilon agree with PyTorch's (``tests/test_engine_oracle.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from linfb._checks import choice, real
from linfb.backend import namespace
from linfb.kernels import reference_optimisers as reference
from linfb.rules import Rule

__all__ = ["Adam", "Optimizer", "Optimizers", "Sgd", "adam", "adamw", "amsgrad", "overwriting", "sgd"]


class Optimizer(Protocol):
    """What the training loop needs of an optimiser."""

    learning_rate: float
    weight_decay: float

    def init(self, value: Any) -> tuple[Any, ...]:
        """Return the state of the optimiser for one array: arrays of its shape."""

    def update(
        self,
        value: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        *,
        step: int,
        factor: float = 1.0,
        kernels: ModuleType = reference,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return the array and its state after step number `step` (from 1), with `factor` on the learning rate.

        `kernels` is :mod:`linfb.kernels.reference_optimisers`, which leaves its arguments alone, or a module with
        the same functions that overwrites them (:func:`overwriting`).
        """


def overwriting(array: Any) -> ModuleType:
    """Return the kernels that overwrite their arguments where the array's library has them, else the pure ones."""
    if isinstance(array, np.ndarray):
        from linfb.kernels import cpu_optimisers

        return cpu_optimisers
    return reference


@dataclass(frozen=True)
class Sgd:
    """Settings of :func:`sgd`, which describes them."""

    learning_rate: float
    momentum: float = 0.0
    lookahead: float = 0.0
    weight_decay: float = 0.0
    decay: str = "coupled"

    def __post_init__(self) -> None:
        _check(self)
        real("momentum", self.momentum, at_least=0.0, below=1.0)
        real("lookahead", self.lookahead, at_least=0.0, below=1.0)

    def init(self, value: Any) -> tuple[Any, ...]:
        """Return the velocity at the start, zero."""
        return (namespace(value).zeros_like(value),)

    def update(
        self,
        value: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        *,
        step: int,
        factor: float = 1.0,
        kernels: ModuleType = reference,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Take one step, see :class:`Optimizer`."""
        rate = self.learning_rate * factor
        value, *slots_new = kernels.sgd(value, gradient, *slots, rate, self.momentum, self.lookahead, *_decays(self))
        return value, tuple(slots_new)


@dataclass(frozen=True)
class Adam:
    """Settings of :func:`adam`, :func:`amsgrad` and :func:`adamw`, which describe them."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
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
        count = 2 if self.second_moment == "running" else 3
        return tuple(namespace(value).zeros_like(value) for _ in range(count))

    def update(
        self,
        value: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        *,
        step: int,
        factor: float = 1.0,
        kernels: ModuleType = reference,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Take one step, see :class:`Optimizer`."""
        rule = kernels.adam if self.second_moment == "running" else kernels.amsgrad
        rate = self.learning_rate * factor
        value, *slots_new = rule(
            value, gradient, *slots, rate, self.beta1, self.beta2, self.epsilon, *_decays(self), step
        )
        return value, tuple(slots_new)


def _check(optimiser: Any) -> None:
    real("learning_rate", optimiser.learning_rate, at_least=0.0)
    real("weight_decay", optimiser.weight_decay, at_least=0.0)
    choice("decay", optimiser.decay, ("coupled", "decoupled"))


def _decays(optimiser: Any) -> tuple[float, float]:
    strength = optimiser.weight_decay
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

    def __post_init__(self) -> None:
        for name, value in (("W", self.W), ("Q", self.Q), ("P", self.P)):
            needed = value is not None or name == "W"
            if needed and not (callable(getattr(value, "update", None)) and callable(getattr(value, "init", None))):
                raise TypeError(f"optimizer for {name} must be an optimiser such as linfb.engine.adam(), got {value!r}")

    def parts(self, rule: Rule) -> dict[str, Part]:
        """Return how W, Q and P move under a rule."""
        mirror, reader = rule.mirror, rule.reader
        return {
            "W": Part(self.W, 1.0),
            "Q": Part(self.Q or self._like_W(mirror.decays), mirror.rate),
            "P": Part(self.P or self._like_W(reader.decays), reader.rate),
        }

    def _like_W(self, decays: bool) -> Any:
        return self.W if decays else replace(self.W, weight_decay=0.0)
