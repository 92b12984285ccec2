"""Matrix identities of unspecified size: rates along a flow, words of the free algebra, and explicit entries.

Equations are written once, with `sympy.MatrixSymbol`; the same object is printed, proved for all sizes and
checked at an explicit size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import sympy as sp

from derivations.core import Rewriting, Step

Word = tuple[str, ...]
Polynomial = dict[Word, sp.Expr]
Flow = Mapping[sp.MatrixSymbol, sp.MatrixExpr]
MAX_REPLACEMENTS = 100_000


def along(expr: sp.MatrixExpr, flow: Flow) -> sp.MatrixExpr:
    """Return the time derivative of a matrix expression along a flow, by the product rule (no rate: a constant)."""
    if isinstance(expr, sp.MatrixSymbol):
        return flow.get(expr, sp.ZeroMatrix(*expr.shape))
    if isinstance(expr, sp.Transpose):
        return along(expr.arg, flow).T
    if isinstance(expr, sp.MatAdd):
        return reduce(lambda total, arg: total + along(arg, flow), expr.args, sp.ZeroMatrix(*expr.shape))
    if isinstance(expr, sp.MatMul):
        coefficient, factors = expr.as_coeff_matrices()
        total: sp.MatrixExpr = sp.ZeroMatrix(*expr.shape)
        for i, factor in enumerate(factors):
            rate = along(factor, flow)
            total += coefficient * reduce(lambda a, b: a * b, [*factors[:i], rate, *factors[i + 1 :]])
        return total
    if isinstance(expr, sp.MatPow) and expr.exp.is_Integer and expr.exp > 0:
        return along(sp.MatMul(*[expr.base] * int(expr.exp)), flow)
    if isinstance(expr, sp.Identity | sp.ZeroMatrix):
        return sp.ZeroMatrix(*expr.shape)
    raise TypeError(f"no product rule for {type(expr).__name__}: {expr}")


def _add(terms: Iterable[tuple[Word, Any]]) -> Polynomial:
    """Collect words and drop those whose coefficient vanishes."""
    total: dict[Word, list[Any]] = {}
    for word, coefficient in terms:
        total.setdefault(word, []).append(coefficient)
    summed = {word: sp.cancel(sp.Add(*parts)) for word, parts in total.items()}
    return {word: value for word, value in summed.items() if value != 0}


def _polynomial(expr: Any, symmetric: frozenset[str], transposed: bool = False) -> Polynomial:
    """Expand a matrix expression into words; a transposed letter carries a prime unless it is symmetric."""
    if isinstance(expr, sp.MatrixSymbol):
        name = str(expr.name)
        return {(name + "'" if transposed and name not in symmetric else name,): sp.Integer(1)}
    if isinstance(expr, sp.Transpose):
        return _polynomial(expr.arg, symmetric, not transposed)
    if isinstance(expr, sp.Identity):
        return {(): sp.Integer(1)}
    if isinstance(expr, sp.ZeroMatrix):
        return {}
    if isinstance(expr, sp.MatAdd):
        return _add(term for arg in expr.args for term in _polynomial(arg, symmetric, transposed).items())
    if isinstance(expr, sp.MatPow) and expr.exp.is_Integer and expr.exp > 0:
        coefficient, factors = sp.Integer(1), [expr.base] * int(expr.exp)
    elif isinstance(expr, sp.MatMul):
        coefficient, factors = expr.as_coeff_matrices()
    else:
        raise TypeError(f"not a polynomial in matrices: {type(expr).__name__} {expr}")
    result: Polynomial = {(): sp.sympify(coefficient)}
    for factor in reversed(factors) if transposed else factors:
        right = _polynomial(factor, symmetric, transposed)
        result = _add((u + v, a * b) for u, a in result.items() for v, b in right.items())
    return result


def _find(word: Word, part: Word) -> int:
    """Return where `part` begins in `word`, or -1."""
    starts = range(len(word) - len(part) + 1)
    return next((i for i in starts if word[i : i + len(part)] == part), -1)


def _reduce(polynomial: Polynomial, rules: list[tuple[Word, Polynomial]]) -> Polynomial:
    """Replace the left-hand words of the rules until none occurs any more."""
    for _ in range(MAX_REPLACEMENTS):
        hit = next(
            ((word, part, value, i) for word in polynomial for part, value in rules if (i := _find(word, part)) >= 0),
            None,
        )
        if hit is None:
            return polynomial
        word, part, value, i = hit
        before, after = word[:i], word[i + len(part) :]
        rest = [(other, coefficient) for other, coefficient in polynomial.items() if other != word]
        new = [(before + middle + after, polynomial[word] * factor) for middle, factor in value.items()]
        polynomial = _add(rest + new)
    raise RuntimeError("the relations do not terminate")


def _rules(
    relations: Iterable[tuple[sp.MatrixExpr, sp.MatrixExpr]], symmetric: frozenset[str]
) -> list[tuple[Word, Polynomial]]:
    """Turn each relation, and its transpose, into a rule that replaces one word."""
    rules: list[tuple[Word, Polynomial]] = []
    for left, right in relations:
        for transposed in (False, True):
            ((word, coefficient),) = _polynomial(left, symmetric, transposed).items()
            if coefficient != 1:
                raise ValueError(f"the left-hand side {left} of a relation must be a single product")
            replacement = _polynomial(right, symmetric, transposed)
            undone = any(earlier in replacement and word in result for earlier, result in rules)
            if replacement != {word: 1} and not undone:  # a commutation's transpose would only undo it
                rules.append((word, replacement))
    return rules


def all_sizes(
    *relations: tuple[sp.MatrixExpr, sp.MatrixExpr],
    symmetric: Iterable[sp.MatrixSymbol] = (),
    given: str = "",
) -> Rewriting:
    """Prove an identity for all sizes: expand into words of the free algebra of matrices, using the given relations.

    Parameters
    ----------
    *relations : pairs of matrix expressions
        Equations that hold by assumption or by an earlier step; the left-hand side is a single product.
    symmetric : matrix symbols
        Matrices that equal their transpose.
    given : str
        The relations in words, for the page.
    """
    names = frozenset(str(symbol.name) for symbol in symmetric)
    rules = _rules(relations, names)

    def apply(expr: Any) -> Any:
        words = _reduce(_polynomial(expr, names), rules)
        return sp.Add(*(c * sp.Mul(*(sp.Symbol(x, commutative=False) for x in word)) for word, c in words.items()))

    suffix = f", with {given}" if given else ""
    return Rewriting(f"for all sizes, by expanding into words of the free algebra of matrices{suffix}", apply)


def entries(symbol: sp.MatrixSymbol, rows: int, cols: int, *, symmetric: bool = False) -> sp.ImmutableMatrix:
    """Return an explicit matrix of real symbols named after `symbol`."""

    def entry(i: int, j: int) -> sp.Symbol:
        i, j = (min(i, j), max(i, j)) if symmetric else (i, j)
        return sp.Symbol(f"{str(symbol.name).replace('_', '')}_{i + 1}{j + 1}", real=True)

    return sp.ImmutableMatrix(rows, cols, entry)


def explicit(
    expr: Any, sizes: Mapping[sp.Symbol, int], values: Mapping[sp.MatrixSymbol, sp.MatrixBase] | None = None
) -> sp.ImmutableMatrix:
    """Replace matrix symbols by explicit matrices of the given sizes (symbolic entries unless `values` has them)."""
    known = values or {}

    def shape(part: sp.MatrixExpr) -> tuple[int, int]:
        rows, cols = (int(sp.sympify(size).subs(sizes)) for size in part.shape)
        return rows, cols

    def walk(part: Any) -> Any:
        if isinstance(part, sp.MatrixSymbol):
            matrix = known[part] if part in known else entries(part, *shape(part))
            if matrix.shape != shape(part):
                raise ValueError(f"{part} has shape {matrix.shape}, expected {shape(part)}")
            return sp.ImmutableMatrix(matrix)
        if isinstance(part, sp.Transpose):
            return walk(part.arg).T
        if isinstance(part, sp.Identity):
            return sp.ImmutableMatrix(sp.eye(shape(part)[0]))
        if isinstance(part, sp.ZeroMatrix):
            return sp.ImmutableMatrix(sp.zeros(*shape(part)))
        if isinstance(part, sp.MatAdd):
            return reduce(lambda a, b: a + b, map(walk, part.args))
        if isinstance(part, sp.MatPow):
            return walk(part.base) ** part.exp
        if isinstance(part, sp.MatMul):
            return reduce(lambda a, b: a * b, map(walk, part.args))
        return part  # a scalar factor

    return sp.ImmutableMatrix(walk(expr))


def at_sizes(
    sizes: Mapping[sp.Symbol, int],
    values: Mapping[sp.MatrixSymbol, sp.MatrixBase] | None = None,
    *,
    finish: Callable[[sp.Expr], sp.Expr] = sp.expand,
) -> Rewriting:
    """Check an identity entry by entry at an explicit size, with symbolic entries."""
    named = ", ".join(f"{sp.latex(symbol)} = {size}" for symbol, size in sizes.items())
    return Rewriting(
        f"entry by entry at the explicit size :math:`{named}`, with symbolic entries",
        lambda expr: explicit(expr, sizes, values).applyfunc(finish),
    )


def rate(
    text: str,
    quantity: sp.MatrixExpr,
    flow: Flow,
    result: sp.MatrixExpr,
    by: tuple[Rewriting, ...],
    *,
    key: bool = False,
) -> Step:
    """State the time derivative of a matrix quantity along a flow."""
    shown = rf"\frac{{d}}{{dt}} \left( {sp.latex(quantity)} \right)"
    return Step(text, along(quantity, flow), result, by, key, shown)


def unit(parameter: sp.Symbol) -> sp.ImmutableMatrix:
    """Return a unit vector of the plane as rational functions of one parameter (the tangent of half its angle)."""
    square = 1 + parameter**2
    return sp.ImmutableMatrix([(1 - parameter**2) / square, 2 * parameter / square])
