"""What a derivation is: equations, each with the rewritings that must turn ``lhs - rhs`` into zero.

The equations of a statement are steps marked as `key`, or the closed form, whose conditions are steps: what a page
states as an equation is what was verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy as sp


@dataclass(frozen=True)
class Rewriting:
    """A way to show that an expression vanishes: `apply` must return zero.

    Parameters
    ----------
    description : str
        Completes the sentence "checked ..." on the page (RST).
    apply : callable
        Takes the difference of the two sides of an equation (a scalar, an explicit matrix or a matrix expression).
    """

    description: str
    apply: Callable[[Any], Any]


def _entrywise(function: Callable[[sp.Expr], sp.Expr]) -> Callable[[Any], Any]:
    """Let a rewriting of scalars act on each entry of an explicit matrix."""
    return lambda value: value.applyfunc(function) if isinstance(value, sp.MatrixBase) else function(value)


def rational(expr: sp.Expr) -> sp.Expr:
    """Return the canonical form of a rational function of symbols; anything else is refused.

    Examples
    --------
    >>> import sympy as sp
    >>> x = sp.Symbol("x")
    >>> rational(1 / (x - 1) - 1 / (x + 1) - 2 / (x**2 - 1))
    0
    """
    symbols = sorted(expr.free_symbols, key=str)
    if not symbols:
        return sp.simplify(expr)
    if not expr.is_rational_function(*symbols):
        raise NotImplementedError(f"not a rational function of {symbols}")
    field = sp.QQ.frac_field(*symbols)
    return field.to_sympy(field.from_sympy(expr))


SIMPLIFY = Rewriting("by simplification", _entrywise(sp.simplify))
EXPAND = Rewriting("by expanding both sides", _entrywise(sp.expand))
RATIONAL = Rewriting(
    "as an identity of rational functions (canonical form)",
    _entrywise(rational),
)
EVALUATE = Rewriting(
    "by carrying out the derivatives, integrals and limits and simplifying",
    _entrywise(lambda expr: sp.simplify(expr.doit())),
)
EXPONENTIALS = Rewriting(
    "by writing hyperbolic functions as exponentials and expanding",
    _entrywise(lambda expr: sp.expand(sp.expand(expr.doit().rewrite(sp.exp)), power_exp=True)),
)
GAMMA = Rewriting(
    "by the recursion of the gamma function", _entrywise(lambda expr: sp.gammasimp(expr.rewrite(sp.gamma)))
)


@dataclass(frozen=True)
class Step:
    """One sentence and one verified equation.

    Parameters
    ----------
    text : str
        The sentence (RST, without the equation).
    lhs, rhs : SymPy expression, explicit matrix or matrix expression
        The two sides.
    by : tuple of Rewriting
        Every one of them must turn ``lhs - rhs`` into zero.
    key : bool
        Whether the equation is part of the statement.
    shown, shown_rhs : str
        LaTeX printed in place of `lhs` and `rhs`: a time derivative that is already worked out in `lhs`, the
        name of a large matrix.
    """

    text: str
    lhs: Any
    rhs: Any
    by: tuple[Rewriting, ...] = (SIMPLIFY,)
    key: bool = False
    shown: str = ""
    shown_rhs: str = ""

    @property
    def equation(self) -> str:
        """The equation in LaTeX."""
        zero = isinstance(self.rhs, sp.MatrixBase) and all(entry == 0 for entry in self.rhs)
        right = self.shown_rhs or ("0" if zero else sp.latex(self.rhs))
        return f"{self.shown or sp.latex(self.lhs)} = {right}"


@dataclass(frozen=True)
class ClosedForm:
    """A formula that can be evaluated, with the equations that make it the right one.

    Parameters
    ----------
    name : str
        LaTeX of what the formula gives.
    expression : SymPy expression or explicit matrix
        The formula.
    symbols : tuple of sympy.Symbol
        Its arguments, in the order for ``sympy.lambdify``.
    conditions : callable
        Takes a candidate formula and returns the steps it must satisfy (equation of motion, initial value, limits).
    shown : str
        LaTeX printed in place of an expression that is an explicit matrix; a condition must tie the two together.
    """

    name: str
    expression: Any
    symbols: tuple[sp.Symbol, ...]
    conditions: Callable[[Any], tuple[Step, ...]]
    shown: str = ""

    @property
    def equation(self) -> str:
        """The formula in LaTeX."""
        return f"{self.name} = {self.shown or sp.latex(self.expression)}"


@dataclass(frozen=True)
class Derivation:
    """A result: what holds, under which assumptions, and the verified steps that lead to it.

    Parameters
    ----------
    name : str
        The name on the command line and of the page.
    title : str
        The heading of the page.
    statement : str
        The result in words (RST); its equations are the key steps and the closed form.
    assumptions : tuple of str
        One sentence each (RST).
    steps : tuple of Step
        The equations.
    closed_form : ClosedForm, optional
        The formula, when the result is one.
    sizes : str
        At which explicit sizes matrix identities were verified, and what is known beyond them.
    theory : tuple of str
        Names in ``linfb.theory`` that compute the result.
    test : str
        The test that compares the two.
    citations : tuple of str
        Keys of the bibliography.
    """

    name: str
    title: str
    statement: str
    assumptions: tuple[str, ...]
    steps: tuple[Step, ...]
    closed_form: ClosedForm | None = None
    sizes: str = ""
    theory: tuple[str, ...] = ()
    test: str = ""
    citations: tuple[str, ...] = ()

    @property
    def expression(self) -> Any:
        """The closed form's expression, or None."""
        return None if self.closed_form is None else self.closed_form.expression

    @property
    def symbols(self) -> tuple[sp.Symbol, ...]:
        """The closed form's arguments, in order; empty without a closed form."""
        return () if self.closed_form is None else self.closed_form.symbols

    @property
    def equations(self) -> tuple[Step, ...]:
        """All equations to be verified: the steps, then the conditions on the closed form."""
        if self.closed_form is None:
            return self.steps
        return self.steps + self.closed_form.conditions(self.closed_form.expression)
