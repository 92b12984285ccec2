"""Linear regression tasks: a teacher, the covariance of its inputs, and the noise on its labels.

A :class:`Task` knows its population moments. Everything that full-batch learning of a *linear* network can
depend on are these moments, so :meth:`Task.moment_set` returns a finite data set that has exactly them: the
population flow is the ordinary full-batch gradient flow on that set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from linfb._checks import covariance, generator, integer, real, real_array
from linfb.backend import stream

__all__ = ["Task", "gaussian_teacher", "low_rank_teacher"]


@dataclass(frozen=True, eq=False)
class Task:
    r"""Linear regression :math:`y = Tx + \xi`, inputs of covariance :math:`\Sigma_{xx}`, label noise :math:`\xi`.

    Parameters
    ----------
    teacher : array_like, shape (out, in)
        The linear map :math:`T`.
    input_covariance : array_like, shape (in, in), optional
        :math:`\Sigma_{xx}`, positive semi-definite; None means whitened inputs, the identity.
    label_noise : float or array_like, shape (out, out), optional
        Standard deviation of isotropic noise on the labels (units of y), or the noise covariance :math:`\Sigma_\xi`.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, an entry is not finite or a covariance is not positive semi-definite.

    Examples
    --------
    >>> task = Task([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> task.singular_values
    array([3., 1.])
    >>> task.rank
    2
    """

    teacher: np.ndarray
    input_covariance: np.ndarray | None = None
    label_noise: float | np.ndarray = 0.0

    def __post_init__(self) -> None:
        teacher = np.array(real_array("teacher", self.teacher, ("out", "in")))  # the caller's may change later
        if 0 in teacher.shape:
            raise ValueError(f"teacher has shape {teacher.shape}, expected (out, in) with at least one of each")
        object.__setattr__(self, "teacher", teacher)
        if self.input_covariance is not None:
            object.__setattr__(
                self, "input_covariance", covariance("input_covariance", self.input_covariance, self.n_in)
            )
        if isinstance(self.label_noise, list | tuple) or np.asarray(self.label_noise).ndim:
            object.__setattr__(self, "label_noise", covariance("label_noise", self.label_noise, self.n_out))
        else:
            object.__setattr__(self, "label_noise", real("label_noise", self.label_noise, at_least=0.0))

    def __repr__(self) -> str:
        return f"Task(n_in={self.n_in}, n_out={self.n_out}, rank={self.rank}, whitened={self.whitened})"

    @classmethod
    def from_samples(cls, inputs: Any, labels: Any) -> Task:
        r"""Return the task whose population moments are the averages over given samples.

        .. math:: \Sigma_{xx} = \langle xx^\top\rangle,\qquad T = \langle yx^\top\rangle\,\Sigma_{xx}^+,\qquad
                  \Sigma_\xi = \langle(y - Tx)(y - Tx)^\top\rangle

        Parameters
        ----------
        inputs : array_like, shape (sample, in)
        labels : array_like, shape (sample, out)
            Real numbers; classes as one-hot rows.

        Returns
        -------
        Task
            The teacher is the least-squares map (the smallest one, if inputs do not span their space), and what it
            leaves of the labels is label noise, none below 1e-12 of the labels' size. Inputs whose second moment is
            the identity to 1e-10 are taken for whitened.

        Raises
        ------
        TypeError, ValueError
            If the arrays are not real and finite, or their shapes do not fit.

        Notes
        -----
        Moments are about zero, as linear networks have no bias, so that full-batch learning on the samples *is*
        learning of this task (not under readers that centre their signals: a task's signals have mean zero). Online
        learning draws new Gaussian samples of these moments. Checked by ``tests/test_tasks.py``, against gradient
        descent on the samples too.

        Examples
        --------
        >>> Task.from_samples([[1.0, 0.0], [0.0, 1.0]], [[2.0], [4.0]]).teacher
        array([[2., 4.]])
        """
        x = real_array("inputs", inputs, ("sample", "in"))
        y = real_array("labels", labels, (len(x), "out"))
        if 0 in (*x.shape, *y.shape):
            raise ValueError(f"inputs and labels have shapes {x.shape} and {y.shape}, expected at least one of each")
        teacher = np.linalg.lstsq(x, y)[0].T
        second, left = x.T @ x / len(x), y - x @ teacher.T
        exact = np.linalg.norm(left) <= 1e-12 * np.linalg.norm(y)
        whitened = np.allclose(second, np.eye(x.shape[1]), rtol=0.0, atol=1e-10)
        return cls(teacher, None if whitened else second, 0.0 if exact else left.T @ left / len(x))

    @property
    def n_in(self) -> int:
        """Number of inputs."""
        return self.teacher.shape[1]

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self.teacher.shape[0]

    @property
    def whitened(self) -> bool:
        """Whether the inputs have the identity as covariance."""
        return self.input_covariance is None or np.array_equal(self.input_covariance, np.eye(self.n_in))

    @property
    def Sigma_xx(self) -> np.ndarray:
        """Input covariance, shape (in, in)."""
        return np.eye(self.n_in) if self.input_covariance is None else self.input_covariance

    @property
    def Sigma_yx(self) -> np.ndarray:
        """Input-output correlation, shape (out, in); the matrix A of the theory."""
        return self.teacher if self.input_covariance is None else self.teacher @ self.input_covariance

    @property
    def noise_covariance(self) -> np.ndarray:
        """Covariance of the label noise, shape (out, out)."""
        if np.ndim(self.label_noise) == 0:
            return float(self.label_noise) ** 2 * np.eye(self.n_out)
        return np.asarray(self.label_noise)

    @property
    def Sigma_yy(self) -> np.ndarray:
        """Label second moment, noise included, shape (out, out)."""
        return self.Sigma_yx @ self.teacher.T + self.noise_covariance

    @cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left, values, right = np.linalg.svd(self.Sigma_yx, full_matrices=False)
        return left, values, right.T

    @property
    def rank(self) -> int:
        """Task dimensionality d: the numerical rank of Sigma_yx."""
        values = self._svd[1]
        return int(np.sum(values > values[0] * max(self.teacher.shape) * np.finfo(float).eps))

    @property
    def singular_values(self) -> np.ndarray:
        """The d non-zero singular values of Sigma_yx in falling order, shape (mode,)."""
        return self._svd[1][: self.rank]

    @property
    def left(self) -> np.ndarray:
        """Left singular vectors U of Sigma_yx, output directions of the modes, shape (out, mode)."""
        return self._svd[0][:, : self.rank]

    @property
    def right(self) -> np.ndarray:
        """Right singular vectors V of Sigma_yx, input directions of the modes, shape (in, mode)."""
        return self._svd[2][:, : self.rank]

    def loss(self, map_: Any) -> np.ndarray:
        r"""Return the population loss :math:`\tfrac12\langle\|y - Wx\|^2\rangle` of linear maps W, noise included.

        Parameters
        ----------
        map_ : array_like, shape (..., out, in)
            One or many maps from inputs to outputs.

        Returns
        -------
        numpy.ndarray, shape (...)
        """
        map_ = np.asarray(map_)
        if map_.shape[-2:] != self.teacher.shape:
            raise ValueError(f"map_ has shape {map_.shape}, expected (..., {self.n_out}, {self.n_in})")
        difference = self.teacher - map_
        weighted = difference if self.input_covariance is None else difference @ self.input_covariance
        return 0.5 * (np.sum(weighted * difference, axis=(-2, -1)) + np.trace(self.noise_covariance))

    def sample(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw `n` Gaussian samples.

        Parameters
        ----------
        n : int
            Number of samples.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        inputs : numpy.ndarray, shape (n, in)
        labels : numpy.ndarray, shape (n, out)
        """
        n, rng = integer("n", n, at_least=1), generator("rng", rng)
        inputs = rng.standard_normal((n, self.n_in))
        if self.input_covariance is not None:
            inputs = inputs @ self._input_root.T
        labels = inputs @ self.teacher.T
        if np.any(self.noise_covariance):
            labels = labels + rng.standard_normal((n, self.n_out)) @ _root(self.noise_covariance).T
        return inputs, labels

    @cached_property
    def _input_root(self) -> np.ndarray:
        return _root(self.Sigma_xx)

    def moment_set(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a finite data set whose averages are exactly the population moments.

        Rows of orthonormal columns, each orthogonal to the vector of ones, times square roots of Sigma_xx and of
        the noise covariance: the mean is zero as well, so that rules that centre their signals see the population.

        Returns
        -------
        inputs : numpy.ndarray, shape (sample, in)
        labels : numpy.ndarray, shape (sample, out)
            With ``inputs.T @ inputs / sample == Sigma_xx``, ``labels.T @ inputs / sample == Sigma_yx`` and
            ``labels.T @ labels / sample == Sigma_yy``, and zero mean, to rounding.

        Examples
        --------
        >>> task = Task([[2.0, 0.0]], label_noise=0.5)
        >>> x, y = task.moment_set()
        >>> y.T @ y / len(y)
        array([[4.25]])
        """
        noisy = bool(np.any(self.noise_covariance))
        rows = _centred_rows(self.n_in + noisy * self.n_out)
        inputs = rows[:, : self.n_in] @ self._input_root.T
        labels = inputs @ self.teacher.T
        if noisy:
            labels = labels + rows[:, self.n_in :] @ _root(self.noise_covariance).T
        return inputs, labels


def _centred_rows(size: int) -> np.ndarray:
    """Return (size + 1, size) rows of mean zero and identity second moment: a scaled reflection without its mean."""
    n_rows = size + 1
    reflected = np.eye(n_rows) - 1.0 / (n_rows - np.sqrt(n_rows))
    reflected[0] = 1.0 / np.sqrt(n_rows)
    return np.sqrt(n_rows) * reflected[:, 1:]


def _root(matrix: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a positive semi-definite matrix (the identity stays exact)."""
    diagonal = np.diagonal(matrix)
    if np.array_equal(matrix, np.diag(diagonal)):
        return np.diag(np.sqrt(diagonal))
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def low_rank_teacher(
    n_in: int,
    n_out: int,
    singular_values: Any,
    *,
    left: Any = None,
    right: Any = None,
    seed: int = 0,
    input_covariance: Any = None,
    label_noise: Any = 0.0,
) -> Task:
    """Return a task whose teacher has the given singular values.

    Parameters
    ----------
    n_in, n_out : int
        Input and output width.
    singular_values : array_like, shape (mode,)
        Positive singular values of the teacher; their number is its rank.
    left, right : array_like, shapes (out, mode) and (in, mode), optional
        Orthonormal singular vectors; drawn uniformly where not given.
    seed : int
        Seed of the drawn vectors.
    input_covariance, label_noise
        As in :class:`Task`.

    Raises
    ------
    ValueError
        If there are more singular values than ``min(n_in, n_out)``, one is not positive, or given vectors are
        not orthonormal.

    Examples
    --------
    >>> low_rank_teacher(8, 4, [3.0, 2.0]).rank
    2
    """
    n_in, n_out = integer("n_in", n_in, at_least=1), integer("n_out", n_out, at_least=1)
    values = real_array("singular_values", singular_values, ("mode",))
    if not 1 <= values.size <= min(n_in, n_out):
        raise ValueError(
            f"singular_values has {values.size} entries, expected 1 to min(n_in, n_out) = {min(n_in, n_out)}"
        )
    if np.any(values <= 0):
        raise ValueError(f"singular_values must be positive, got {values}")
    vectors = []
    for name, given, width in (("left", left, n_out), ("right", right, n_in)):
        if given is None:
            drawn = stream(seed, "task", name).standard_normal((width, values.size))
            vectors.append(np.linalg.qr(drawn)[0])
            continue
        matrix = real_array(name, given, (width, values.size))
        error = np.abs(matrix.T @ matrix - np.eye(values.size)).max()
        if error > 1e-8:
            raise ValueError(f"{name} must have orthonormal columns; largest deviation {error:.3g}")
        vectors.append(matrix)
    teacher = (vectors[0] * values) @ vectors[1].T
    return Task(teacher, input_covariance=input_covariance, label_noise=label_noise)


def gaussian_teacher(
    n_in: int, n_out: int, rank: int, *, seed: int = 0, scale: float = 1.0, label_noise: Any = 0.0
) -> Task:
    r"""Return a task whose teacher is a product of two Gaussian matrices, :math:`s\,N_{m\times d}N_{d\times n}`.

    The paper's linear experiment uses ``gaussian_teacher(128, 64, 32, scale=1 / 8)``.

    Parameters
    ----------
    n_in, n_out, rank : int
        Widths n and m, and the teacher's rank d (at most ``min(n_in, n_out)``).
    seed : int
        Seed of the draw.
    scale : float
        The factor s.
    label_noise
        As in :class:`Task`.
    """
    n_in, n_out = integer("n_in", n_in, at_least=1), integer("n_out", n_out, at_least=1)
    rank = integer("rank", rank, at_least=1, at_most=min(n_in, n_out))
    scale = real("scale", scale, above=0.0)
    rng = stream(seed, "task", "gaussian")
    teacher = scale * rng.standard_normal((n_out, rank)) @ rng.standard_normal((rank, n_in))
    return Task(teacher, label_noise=label_noise)
