"""Solvers: how a state is carried from one recorded time to the next.

A solver is a frozen dataclass with one generator, ``solve(problem, arrays, times)``, that yields the moving arrays at
each time. All runs of an ensemble advance together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from linfb._checks import choice, integer, real
from linfb.backend import to_numpy
from linfb.kernels.reference_online import BLOCK

__all__ = ["SGD", "Dop853", "Euler", "Problem", "RungeKutta4", "Solver", "named"]

Arrays = list[Any]

_SMALL_BATCH = 4  # beyond it matrix products of the array library beat compiled loops


@dataclass(frozen=True)
class Problem:
    """What a solver needs to know.

    Attributes
    ----------
    field : callable
        ``field(arrays)`` returns the time derivative of the moving arrays on the whole task, ``field(arrays, data)``
        that on a batch (inputs, labels).
    draw : callable
        ``draw(first_step, limit, batch_size)`` returns fresh samples of every run for at least one and at most `limit`
        steps: inputs and labels of shape (step, run, batch, in or out). A step's samples depend on nothing else.
    n_runs : int
    xp : module
        The array namespace.
    online : callable or None
        ``online(arrays, inputs, labels, step_size)`` returns the arrays after a gradient step per entry of `inputs`,
        in compiled code; None where the general path has to do it.
    """

    field: Callable[..., Arrays]
    draw: Callable[[int, int, int], tuple[Any, Any]]
    n_runs: int
    xp: Any
    online: Callable[..., Arrays] | None = None


@runtime_checkable
class Solver(Protocol):
    """How a state is carried from one recorded time to the next.

    A solver that never draws samples may say so by a class attribute ``follows_flow = True``: the input coordinates can
    then be reduced. An attribute ``dtype`` ("float32") sets the precision of the arrays, "float64" without it.
    """

    def solve(self, problem: Problem, arrays: Arrays, times: np.ndarray) -> Iterator[Arrays]:
        """Yield the arrays at each of `times`; time starts at 0."""


@dataclass(frozen=True)
class Dop853:
    """Adaptive Runge-Kutta of order 8 (SciPy's DOP853), for accurate trajectories of the flow.

    Parameters
    ----------
    rtol, atol : float
        Relative and absolute tolerance of every single run: an ensemble shares its steps, and the tolerance of the
        common error norm is tightened by the square root of the number of runs to guarantee that.

    Notes
    -----
    Steps end on the recorded times: SciPy's interpolation between steps is less accurate than its steps. The
    integrator works on the host; with a device the right-hand side runs there and arrays travel at every stage.
    """

    rtol: float = 1e-8
    atol: float = 1e-11
    follows_flow: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rtol", self.rtol, at_least=1e-13)
        real("atol", self.atol, above=0.0)

    def solve(self, problem: Problem, arrays: Arrays, times: np.ndarray) -> Iterator[Arrays]:
        """Yield the arrays at each of `times`."""
        from scipy.integrate import DOP853

        shapes = [array.shape for array in arrays]
        bounds = np.cumsum([0] + [math.prod(shape) for shape in shapes])

        def unpack(vector: np.ndarray) -> Arrays:
            return [
                problem.xp.asarray(vector[start:stop].reshape(shape))
                for start, stop, shape in zip(bounds[:-1], bounds[1:], shapes, strict=True)
            ]

        def field(_: float, vector: np.ndarray) -> np.ndarray:
            return np.concatenate([to_numpy(v).ravel() for v in problem.field(unpack(vector))])

        start = np.concatenate([to_numpy(array).ravel() for array in arrays]).astype(np.float64)
        share = math.sqrt(problem.n_runs)
        rtol = max(self.rtol / share, 100 * np.finfo(float).eps)
        stepper = DOP853(field, 0.0, start, times[-1], rtol=rtol, atol=self.atol / share)
        for time in times:
            stepper.t_bound = time
            stepper.status = "running" if stepper.t < time else "finished"
            while stepper.status == "running":
                stepper.step()
                if stepper.status == "failed" or not np.all(np.isfinite(stepper.y)):
                    raise FloatingPointError(f"t = {stepper.t:.6g}, step size {stepper.step_size}")
            yield unpack(stepper.y)


def _finite(problem: Problem, arrays: Arrays, time: float, step_size: float) -> None:
    if not all(bool(problem.xp.all(problem.xp.isfinite(array))) for array in arrays):
        raise FloatingPointError(f"t = {time:.6g}, step size {step_size:g}")


def _whole_steps(times: np.ndarray, step_size: float, name: str) -> list[int]:
    steps = np.rint(times / step_size)
    off = np.abs(times - steps * step_size) > 1e-9 * np.maximum(times, step_size)
    if np.any(off):
        raise ValueError(
            f"times must be multiples of the step size {step_size:g} under {name}; {times[off][0]:g} is not"
        )
    return [int(step) for step in steps]


@dataclass(frozen=True)
class RungeKutta4:
    """Classical Runge-Kutta of order 4 with equal steps of at most `step_size` between recorded times.

    Parameters
    ----------
    step_size : float
        Largest step, in units of tau.
    """

    step_size: float = 1e-2
    follows_flow: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("step_size", self.step_size, above=0.0)

    def solve(self, problem: Problem, arrays: Arrays, times: np.ndarray) -> Iterator[Arrays]:
        """Yield the arrays at each of `times`."""
        now = 0.0
        for time in times.tolist():
            n_steps = math.ceil((time - now) / self.step_size - 1e-9)
            for step in range(n_steps):
                h = (time - now) / n_steps
                k1 = problem.field(arrays)
                k2 = problem.field([a + 0.5 * h * k for a, k in zip(arrays, k1, strict=True)])
                k3 = problem.field([a + 0.5 * h * k for a, k in zip(arrays, k2, strict=True)])
                k4 = problem.field([a + h * k for a, k in zip(arrays, k3, strict=True)])
                slopes = zip(arrays, k1, k2, k3, k4, strict=True)
                arrays = [a + (h / 6) * (s1 + 2 * s2 + 2 * s3 + s4) for a, s1, s2, s3, s4 in slopes]
                if step % 256 == 255:
                    _finite(problem, arrays, now + (step + 1) * h, h)
            now = time
            _finite(problem, arrays, now, self.step_size)
            yield arrays


@dataclass(frozen=True)
class Euler:
    """Explicit Euler steps: full-batch gradient descent with learning rate `step_size` (in units of tau).

    Parameters
    ----------
    step_size : float
        Step, in units of tau; recorded times must be multiples of it.
    """

    step_size: float = 1e-2
    follows_flow: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("step_size", self.step_size, above=0.0)

    def solve(self, problem: Problem, arrays: Arrays, times: np.ndarray) -> Iterator[Arrays]:
        """Yield the arrays at each of `times`."""
        done = 0
        for target in _whole_steps(times, self.step_size, "Euler"):
            for step in range(done, target):
                velocities = problem.field(arrays)
                arrays = [a + self.step_size * v for a, v in zip(arrays, velocities, strict=True)]
                if step % 256 == 255:
                    _finite(problem, arrays, (step + 1) * self.step_size, self.step_size)
            done = target
            _finite(problem, arrays, done * self.step_size, self.step_size)
            yield arrays


@dataclass(frozen=True)
class SGD:
    """Online stochastic gradient descent: every step sees fresh samples of the task.

    Parameters
    ----------
    step_size : float
        Learning rate in units of tau; recorded times must be multiples of it.
    batch_size : int
        Samples per step.
    dtype : {"float64", "float32"}
        Precision of the whole simulation, samples drawn in double precision and rounded.
    """

    step_size: float = 1e-3
    batch_size: int = 1
    dtype: str = "float64"

    def __post_init__(self) -> None:
        real("step_size", self.step_size, above=0.0)
        integer("batch_size", self.batch_size, at_least=1)
        choice("dtype", self.dtype, ("float64", "float32"))

    def solve(self, problem: Problem, arrays: Arrays, times: np.ndarray) -> Iterator[Arrays]:
        """Yield the arrays at each of `times`; which times are recorded changes no bit."""
        compiled, done = problem.online is not None and self.batch_size <= _SMALL_BATCH, 0
        for target in _whole_steps(times, self.step_size, "SGD"):
            whole = target - target % (BLOCK if compiled else 1)
            arrays, done = self._advanced(problem, compiled, arrays, done, whole), whole
            yield self._advanced(problem, compiled, arrays, done, target)

    def _advanced(self, problem: Problem, compiled: bool, arrays: Arrays, done: int, target: int) -> Arrays:
        while done < target:
            inputs, labels = problem.draw(done, target - done, self.batch_size)
            if compiled and problem.online is not None:
                arrays = problem.online(arrays, inputs, labels, self.step_size)
            else:
                for step in range(inputs.shape[0]):
                    velocities = problem.field(arrays, (inputs[step, ...], labels[step, ...]))
                    arrays = [a + self.step_size * v for a, v in zip(arrays, velocities, strict=True)]
            done += inputs.shape[0]
            _finite(problem, arrays, done * self.step_size, self.step_size)
        return arrays


_NAMED: dict[str, Callable[[], Solver]] = {"dop853": Dop853, "rk4": RungeKutta4, "euler": Euler, "sgd": SGD}


def named(method: str | Solver) -> Solver:
    """Return the solver that a name stands for, with its default settings, or the solver itself."""
    if isinstance(method, str):
        if method not in _NAMED:
            raise ValueError(f"method must be one of {', '.join(map(repr, _NAMED))} or a solver, got {method!r}")
        return _NAMED[method]()
    if isinstance(method, type) or not callable(getattr(method, "solve", None)):
        raise TypeError(f"method must be a name or a solver such as linfb.linear.Euler(1e-3), got {method!r}")
    return method
