r"""Flows in the input directions that matter: those of the task and those that the first layer starts from.

With whitened inputs the first layer moves by :math:`-\langle\delta_1 x^\top\rangle - \lambda W_1`. The error is linear
in the inputs through the network's map and the teacher, so that the rows of :math:`W_1` never leave the space spanned
by the teacher's rows and their own start, whatever the rule: rules meet the inputs through hidden activity only. With
V an orthonormal basis of that space, :math:`W_1(t) = W_1(t) V V^\top`, and :math:`W_1 V` follows the flow of the task
with teacher :math:`T V` in as many inputs as V has columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linfb._checks import choice
from linfb.backend import namespace, to_numpy, transpose
from linfb.linear.flow import State
from linfb.tasks import Task

__all__ = ["Coordinates", "coordinates_of"]

_ROUNDING = 64 * np.finfo(float).eps
_WORTH_IT = 0.75  # share of the inputs up to which fewer of them are faster


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The input coordinates that a flow is integrated in; the default is all inputs as they are.

    Attributes
    ----------
    basis : array, shape (run, all inputs, in), or None
        Orthonormal input directions of every run.
    moments : tuple of array, shapes (run, sample, in) and (run, sample, out), or None
        The task's moment set in these coordinates.
    """

    basis: Any = None
    moments: tuple[Any, Any] | None = None

    @property
    def described(self) -> str:
        """In words, for the record."""
        return "full" if self.basis is None else f"reduced to {self.basis.shape[2]} of {self.basis.shape[1]} inputs"

    def of(self, state: State) -> State:
        """Return a state in these coordinates."""
        return state if self.basis is None else _first(state, lambda W: W @ self.basis)

    def back(self, state: State) -> State:
        """Return a state of these coordinates in those of the inputs."""
        return state if self.basis is None else _first(state, lambda W: W @ transpose(self.basis))


def _first(state: State, change: Callable[[Any], Any]) -> State:
    return state._replace(weights=(change(state.weights[0]), *state.weights[1:]))


def coordinates_of(task: Task, start: Any, choose: str, solver: Any) -> Coordinates:
    """Return the coordinates for a solver that starts from first layers `start`, shape (run, hidden, in).

    Parameters
    ----------
    choose : {"auto", "reduced", "full"}
        "auto" takes the reduced ones where they are exact and clearly fewer.

    Raises
    ------
    ValueError
        If reduced ones are asked for and not exact: inputs are not whitened, or the solver meets samples.
    """
    choice("coordinates", choose, ("auto", "reduced", "full"))
    exact = task.whitened and getattr(solver, "follows_flow", False)
    if choose == "reduced" and not exact:
        raise ValueError(
            "coordinates can be 'reduced' for flows from whitened inputs only, "
            + (f"which {type(solver).__name__} does not follow" if task.whitened else "these are correlated")
        )
    if choose == "full" or not exact:
        return Coordinates()
    basis = _basis(task, to_numpy(start))
    if choose == "auto" and basis.shape[2] > _WORTH_IT * task.n_in:
        return Coordinates()
    xp = namespace(start)
    sets = [Task(task.teacher @ own, label_noise=task.label_noise).moment_set() for own in basis]
    inputs, labels = (xp.asarray(np.stack(arrays)) for arrays in zip(*sets, strict=True))
    return Coordinates(xp.asarray(basis), (inputs, labels))


def _basis(task: Task, starts: np.ndarray) -> np.ndarray:
    """Return the teacher's input directions, completed by those of each start, as many for all runs."""
    beyond = starts - (starts @ task.right) @ task.right.T
    _, sizes, directions = np.linalg.svd(beyond, full_matrices=False)
    largest = np.linalg.norm(starts, axis=(1, 2), keepdims=True)[..., 0]
    count = max(np.count_nonzero(sizes > _ROUNDING * largest, axis=1).max(), task.rank == 0)  # at least one in all
    more = min(count, task.n_in - task.rank)
    known = np.broadcast_to(task.right, (len(starts), *task.right.shape))
    return np.linalg.qr(np.concatenate([known, directions[:, :more].transpose(0, 2, 1)], axis=2))[0]
