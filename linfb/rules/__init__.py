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
    "Channel", "Rule", "backpropagation", "by_name", "constructor", "direct_feedback_alignment", "direct_low_rank",
    "feedback_alignment", "kolen_pollack", "local", "low_rank", "mirrors", "names", "normative", "readers",
    "resolve_rank", "sign_symmetry", "transport", "weight_mirror", "zero_feedback",
]  # fmt: skip


def backpropagation() -> Rule:
    """Return backpropagation: the whole error through the transposed weights.

    References
    ----------
    :cite:t:`rumelhart1986`.
    """
    return Rule("backpropagation", "above", readers.Identity(), mirrors.Exact())


def zero_feedback(*, layers: Any = None) -> Rule:
    """Return the baseline below all rules: no error reaches a hidden layer, only the readout learns."""
    return Rule("zero feedback", "above", readers.Identity(), mirrors.Zero(), layers=layers)


def feedback_alignment(
    *, rank: Any = None, mirror: Mirror | None = None, gain: str = "none", layers: Any = None
) -> Rule:
    """Return feedback alignment: fixed random feedback, full (`rank` None) or as a product of two matrices.

    Parameters
    ----------
    rank : int, float or mapping, optional
        Width of the channel, see :class:`Rule`; None is the full matrix.
    mirror : Mirror, optional
        The fixed kernel, by default ``mirrors.Fixed()``.
    gain : {"none", "full_rank"}
        See :class:`Rule`.
    layers : collection of int, optional
        See :class:`Rule`.

    References
    ----------
    :cite:t:`lillicrap2016`; as a product of two matrices, :cite:t:`jianbenna2024`.
    """
    mirror = mirrors.Fixed() if mirror is None else mirror
    if rank is None:
        return Rule("feedback alignment", "above", readers.Identity(), mirror, gain=gain, layers=layers)
    return Rule("feedback alignment", "above", readers.Fixed("gaussian"), mirror, rank, gain, layers)


def sign_symmetry(*, magnitude: str = "uniform", mirror: Mirror | None = None, layers: Any = None) -> Rule:
    """Return sign symmetry: the whole error through the signs of the weights, with magnitudes of their own.

    Parameters
    ----------
    magnitude : {"uniform", "fixed", "random"}
        One for all weights; random and fixed; or drawn anew for every batch. See :class:`~linfb.rules.mirrors.Sign`.
    mirror : Mirror, optional
        In the place of ``mirrors.Sign(magnitude)``.
    layers : collection of int, optional
        See :class:`Rule`.

    References
    ----------
    :cite:t:`liao2016`, :cite:t:`moskovitz2018`.
    """
    mirror = mirrors.Sign(magnitude) if mirror is None else mirror
    return Rule("sign symmetry", "above", readers.Identity(), mirror, layers=layers)


def kolen_pollack(*, mirror: Mirror | None = None, layers: Any = None) -> Rule:
    """Return Kolen-Pollack: the whole error through a kernel that learns with the weights' own products.

    References
    ----------
    :cite:t:`kolenpollack1994`, :cite:t:`akrout2019`.
    """
    return Rule("Kolen-Pollack", "above", readers.Identity(), mirror or mirrors.KolenPollack(), layers=layers)


def weight_mirror(*, mirror: Mirror | None = None, layers: Any = None) -> Rule:
    """Return the weight mirror: the whole error through a kernel that follows the weights by noise.

    References
    ----------
    :cite:t:`akrout2019`.
    """
    return Rule("weight mirror", "above", readers.Identity(), mirror or mirrors.WeightMirror(), layers=layers)


def direct_feedback_alignment(*, mirror: Mirror | None = None, layers: Any = None) -> Rule:
    """Return direct feedback alignment: the output error straight to every hidden layer, fixed random kernels.

    References
    ----------
    :cite:t:`nokland2016`, :cite:t:`launay2020`.
    """
    mirror = mirrors.Fixed() if mirror is None else mirror
    return Rule("direct feedback alignment", "network", readers.Identity(), mirror, layers=layers)


def low_rank(
    rank: Any,
    *,
    reader: Reader | None = None,
    mirror: Mirror | None = None,
    source: str = "above",
    gain: str = "none",
    layers: Any = None,
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
    source : {"above", "network", "hidden"}
        "network" is the direct form, "hidden" that of the paper's code, which sends the error of the last hidden
        layer instead of the output's.
    gain : {"none", "full_rank"}
        See :class:`Rule`.
    layers : collection of int, optional
        See :class:`Rule`.

    References
    ----------
    :cite:t:`hanut2025`.
    """
    return Rule(
        "low-rank" if source == "above" else "direct low-rank",
        source, reader or readers.Oja(), mirror or mirrors.KolenPollack(), rank, gain, layers,
    )  # fmt: skip


def direct_low_rank(rank: Any, *, source: str = "network", **choices: Any) -> Rule:
    """Return the paper's direct form: one error of the network through Q P straight to every hidden layer.

    Parameters
    ----------
    rank : int, float or mapping
        Width of the channel, see :class:`Rule`.
    source : {"network", "hidden"}
        Whether that is the output error or, as in the paper's code, the error of the last hidden layer.
    **choices
        The other choices of :func:`low_rank`.

    References
    ----------
    :cite:t:`hanut2025`, :cite:t:`nokland2016`.
    """
    return low_rank(rank, source=choice("source", source, ("network", "hidden")), **choices)


def local(
    rank: Any,
    *,
    rate: float = 1.0,
    reader: Reader | None = None,
    mirror: Mirror | None = None,
    gain: str = "none",
    layers: Any = None,
) -> Rule:
    """Return the synapse-local rule of the paper's later version, both factors learned.

    Parameters
    ----------
    rank : int, float or mapping
        Width of the channel.
    rate : float
        Rate of P and Q relative to the forward weights (where `reader` or `mirror` is not given).
    reader, mirror : optional
        By default ``readers.Local(rate)`` and ``mirrors.KolenPollack(rate)``.
    gain : {"none", "full_rank"}
        See :class:`Rule`.
    layers : collection of int, optional
        See :class:`Rule`.

    References
    ----------
    :cite:t:`hanut2025`.
    """
    reader, mirror = reader or readers.Local(rate), mirror or mirrors.KolenPollack(rate)
    return Rule("local", "above", reader, mirror, rank, gain, layers)


def normative(
    rank: Any, *, rate: float = 1.0, restart_every: int | None = None, gain: str = "none", layers: Any = None
) -> Rule:
    """Return the normative rule of the paper's later version: Q P descends to the best approximation of the weights.

    Parameters
    ----------
    rank : int, float or mapping
        Width of the channel.
    rate : float
        Rate of P and Q relative to the forward weights.
    restart_every : int, optional
        After how many steps to start again from the present weights, see :class:`~linfb.rules.mirrors.Normative`.
    gain : {"none", "full_rank"}
        See :class:`Rule`.
    layers : collection of int, optional
        See :class:`Rule`.

    References
    ----------
    :cite:t:`hanut2025`.
    """
    mirror = mirrors.Normative(rate, restart_every)
    return Rule("normative", "above", readers.Normative(rate), mirror, rank, gain, layers)


_NAMED: dict[str, Callable[..., Rule]] = {
    "bp": backpropagation,
    "zero": zero_feedback,
    "fa": feedback_alignment,
    "sign": sign_symmetry,
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


def constructor(name: str) -> Callable[..., Rule]:
    """Return the function that makes the rule with a short name; raises as :func:`by_name` does."""
    return _NAMED[choice("rule", name, names)]


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
    return constructor(name)(**choices)
