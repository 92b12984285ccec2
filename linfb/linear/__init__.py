"""Learning dynamics of deep linear networks under any rule: flows, solvers and :func:`simulate`."""

from linfb.linear.simulation import simulate
from linfb.linear.solvers import SGD, Dop853, Euler, RungeKutta4

__all__ = ["SGD", "Dop853", "Euler", "RungeKutta4", "simulate"]
