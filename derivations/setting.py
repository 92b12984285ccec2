"""The symbols of a two-layer linear network with a feedback channel, and its flow.

Shapes are those of the mathematics: samples in columns, ``Q`` is hidden x rank. The code keeps ``Q`` as
(rank, hidden), its transpose.
"""

from __future__ import annotations

import sympy as sp

from derivations.algebra import Flow, at_sizes
from derivations.core import Rewriting

n, k, m, r = sp.symbols("n k m r", integer=True, positive=True)
t = sp.Symbol("t", nonnegative=True)
lam = sp.Symbol("lambda", positive=True)

A = sp.MatrixSymbol("A", m, n)
E = sp.MatrixSymbol("E", m, n)
W1 = sp.MatrixSymbol("W_1", k, n)
W2 = sp.MatrixSymbol("W_2", m, k)
P = sp.MatrixSymbol("P", r, m)
Q = sp.MatrixSymbol("Q", k, r)
B = sp.MatrixSymbol("B", k, m)
D = sp.MatrixSymbol("D", k, r)

# Wide enough to be generic: no two sizes agree, and the channel is narrower than the output.
SIZES = {n: 4, k: 2, m: 3, r: 1}
SIZES_TEXT = (
    "The identities hold for all sizes: both sides expand into the same words in the "
    "matrices and their transposes. "
    "They are checked once more with symbolic entries at the explicit sizes named in the steps."
)
GENERIC: Rewriting = at_sizes(SIZES)

WHITENED = (
    r"Whitened inputs, :math:`\langle x x^\top\rangle = I`; averaged updates at a small "
    r"learning rate; time in units of :math:`\tau`."
)
ALIGNED = r"The mirror is aligned, :math:`Q = W_2^\top P^\top`, and :math:`P` is fixed."
EQUAL_RATES = r"Equal learning rates and equal weight decay :math:`\lambda` on :math:`W_1`, :math:`W_2` and :math:`Q`."
MATHEMATICAL_SHAPES = (
    r"Shapes of the mathematics: :math:`W_1` is :math:`k\times n`, :math:`W_2` is "
    r":math:`m\times k`, :math:`P` is "
    r":math:`r\times m`, :math:`Q` is :math:`k\times r` (the transpose of the code's ``Q``)."
)


def low_dimensional_flow(decay: sp.Expr = lam) -> Flow:
    """Return the flow of W1, W2 and a learned Q for a fixed P, with the error correlation E as it stands."""
    return {W1: Q * P * E - decay * W1, W2: E * W1.T - decay * W2, Q: W1 * E.T * P.T - decay * Q}


def aligned_flow(decay: sp.Expr = lam) -> Flow:
    """Return the flow of W1 and W2 when the mirror is aligned, Q = W2^T P^T."""
    return {W1: W2.T * P.T * P * E - decay * W1, W2: E * W1.T - decay * W2}


def fixed_feedback_flow(decay: sp.Expr = lam) -> Flow:
    """Return the flow of W1 and W2 under a constant feedback matrix B."""
    return {W1: B * E - decay * W1, W2: E * W1.T - decay * W2}
