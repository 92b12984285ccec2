"""Learning rules under the names the field gives them: each a point in the table source x reader x mirror.

Any other cell is built with :class:`Rule` itself, for example a rule that nobody has published:

>>> from linfb.rules import Rule, mirrors, readers
>>> rule = Rule("mine", "above", readers.Oja(on="labels", rate=5.0), mirrors.WeightMirror(rate=10.0), rank=2)
>>> rule.transports_weights
False
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from linfb._checks import choice
from linfb.rules import mirrors, readers
from linfb.rules.base import Channel, Mirror, Reader, Rule, resolve_rank, transport

__all__ = [
    "Channel", "Rule", "backpropagation", "by_name", "direct_feedback_alignment", "direct_low_rank",
    "feedback_alignment", "kolen_pollack", "local", "low_rank", "mirrors", "names", "normative", "readers",
    "resolve_rank", "transport", "weight_mirror", "zero_feedback",
]  # fmt: skip


def backpropagation() -> Rule:
    """Return backpropagation: the whole error through the transposed weights."""
    return Rule("backpropagation", "above", readers.Identity(), mirrors.Exact())


def zero_feedback() -> Rule:
    """Return the baseline below all rules: no error reaches a hidden layer, only the readout learns."""
    return Rule("zero feedback", "above", readers.Identity(), mirrors.Zero())


def feedback_alignment(*, rank: Any = None, mirror: Mirror | None = None, gain: str = "none") -> Rule:
    """Return feedback alignment: fixed random feedback, full (`rank` None) or as a product of two matrices.

    Parameters
    ----------
    rank : int, float or mapping, optional
        Width of the channel, see :class:`Rule`; None is the full matrix.
    mirror : Mirror, optional
        The fixed kernel, by default ``mirrors.Fixed()``.
    gain : {"none", "full_rank"}
        See :class:`Rule`.
    """
    mirror = mirrors.Fixed() if mirror is None else mirror
    if rank is None:
        return Rule("feedback alignment", "above", readers.Identity(), mirror, gain=gain)
    return Rule("feedback alignment", "above", readers.Fixed("gaussian"), mirror, rank, gain)


def kolen_pollack(*, mirror: Mirror | None = None) -> Rule:
    """Return Kolen-Pollack: the whole error through a kernel that learns with the weights' own products."""
    return Rule("Kolen-Pollack", "above", readers.Identity(), mirror or mirrors.KolenPollack())


def weight_mirror(*, mirror: Mirror | None = None) -> Rule:
    """Return the weight mirror: the whole error through a kernel that follows the weights by noise."""
    return Rule("weight mirror", "above", readers.Identity(), mirror or mirrors.WeightMirror())


def direct_feedback_alignment(*, mirror: Mirror | None = None) -> Rule:
    """Return direct feedback alignment: the output error straight to every hidden layer, fixed random kernels."""
    return Rule("direct feedback alignment", "network", readers.Identity(), mirror or mirrors.Fixed())


def low_rank(
    rank: Any, *, reader: Reader | None = None, mirror: Mirror | None = None, source: str = "above", gain: str = "none"
) -> Rule:
    """Return low-dimensional feedback B = Q P, the paper's rule.

    Parameters
    ----------
    rank : int, float or mapping
        Width of the channel, see :class:`Rule`.
    reader : Reader, optional
        How P compresses the error, by default Oja's rule on the errors; ``readers.Fixed()`` is the ablation in which
        only Q learns.
    mirror : Mirror, optional
        How Q follows the weights, by default Kolen-Pollack from a random start.
    source : {"above", "network"}
        "network" is the direct form.
    gain : {"none", "full_rank"}
        See :class:`Rule`.

    References
    ----------
    :cite:t:`hanut2025`.
    """
    return Rule(
        "low-rank" if source == "above" else "direct low-rank",
        source, reader or readers.Oja(), mirror or mirrors.KolenPollack(), rank, gain,
    )  # fmt: skip


def direct_low_rank(rank: Any, **choices: Any) -> Rule:
    """Return the paper's direct form: the output error through Q P straight to every hidden layer.

    Takes the choices of :func:`low_rank` but `source`.
    """
    return low_rank(rank, source="network", **choices)


def local(rank: Any, *, rate: float = 1.0, reader: Reader | None = None, mirror: Mirror | None = None) -> Rule:
    """Return the synapse-local rule of the paper's later version, both factors learned.

    Parameters
    ----------
    rank : int, float or mapping
        Width of the channel.
    rate : float
        Rate of P and Q relative to the forward weights (where `reader` or `mirror` is not given).
    reader, mirror : optional
        By default ``readers.Local(rate)`` and ``mirrors.KolenPollack(rate)``.
    """
    return Rule("local", "above", reader or readers.Local(rate), mirror or mirrors.KolenPollack(rate), rank)


def normative(rank: Any, *, rate: float = 1.0) -> Rule:
    """Return the normative rule of the paper's later version: Q P descends to the best approximation of the weights.

    Parameters
    ----------
    rank : int, float or mapping
        Width of the channel.
    rate : float
        Rate of P and Q relative to the forward weights.
    """
    return Rule("normative", "above", readers.Normative(rate), mirrors.Normative(rate), rank)


_NAMED: dict[str, Callable[..., Rule]] = {
    "bp": backpropagation,
    "zero": zero_feedback,
    "fa": feedback_alignment,
    "kp": kolen_pollack,
    "weight-mirror": weight_mirror,
    "dfa": direct_feedback_alignment,
    "low-rank": low_rank,
    "direct-low-rank": direct_low_rank,
    "local": local,
    "normative": normative,
}
names = tuple(_NAMED)
"""The short names that :func:`by_name` and the command line know."""


def by_name(name: str, **choices: Any) -> Rule:
    """Return the rule with a short name, for example ``by_name("low-rank", rank=10)``.

    Parameters
    ----------
    name : str
        One of :data:`names`.
    **choices
        What the constructor of that rule takes.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> by_name("bp").name
    'backpropagation'
    """
    return _NAMED[choice("rule", name, names)](**choices)
