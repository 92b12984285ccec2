"""Tasks: population moments, samples, teachers, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb import rules
from linfb.backend import stream
from linfb.linear import simulate
from linfb.linear.solvers import Euler
from linfb.networks import Given, LinearNetwork
from linfb.tasks import Task, gaussian_teacher, low_rank_teacher
from tests.linear_cases import agree, correlated_task, random_covariance

SIZES = st.integers(1, 7)


def tasks(kind: str, seed: int) -> Task:
    rng = np.random.default_rng(seed)
    if kind == "whitened":
        return Task(rng.standard_normal((4, 6)))
    if kind == "noisy":
        return Task(rng.standard_normal((4, 6)), label_noise=0.7)
    if kind == "degenerate":
        root = rng.standard_normal((6, 2))
        return Task(rng.standard_normal((4, 6)), root @ root.T, np.diag([1.0, 0.0, 2.0, 0.0]))
    return correlated_task(6, 4, rng)


KINDS = ("whitened", "noisy", "degenerate", "correlated")


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_the_moment_set_are_the_population_s(kind):
    task = tasks(kind, 0)
    x, y = task.moment_set()
    n, T = len(x), task.teacher
    Sigma = np.eye(6) if task.input_covariance is None else task.input_covariance
    noise = task.label_noise**2 * np.eye(4) if np.ndim(task.label_noise) == 0 else task.label_noise
    expected = {"xx": Sigma, "yx": T @ Sigma, "yy": T @ Sigma @ T.T + noise}
    found = {"xx": x.T @ x / n, "yx": y.T @ x / n, "yy": y.T @ y / n}
    for name, matrix in expected.items():
        agree(found[name], matrix, 1e-13)
        agree(getattr(task, f"Sigma_{name}"), matrix, 1e-14)
        with pytest.raises(AssertionError):
            agree(found[name], matrix + 1e-9, 1e-13)
    agree(x.mean(axis=0), np.zeros(6), 1e-14)
    agree(y.mean(axis=0), np.zeros(4), 1e-14)
    for W in np.random.default_rng(1).standard_normal((3, 4, 6)):
        agree(task.loss(W), 0.5 * np.mean(np.sum((y - x @ W.T) ** 2, axis=1)), 1e-13)


@given(n_in=SIZES, n_out=SIZES, seed=st.integers(0, 1000))
def test_moment_sets_of_any_size(n_in, n_out, seed):
    task = correlated_task(n_in, n_out, np.random.default_rng(seed))
    x, y = task.moment_set()
    agree(x.T @ x / len(x), task.Sigma_xx)
    agree(y.T @ x / len(x), task.Sigma_yx)
    agree(y.T @ y / len(x), task.Sigma_yy)


def test_whitened_inputs_stay_exact():
    task = Task(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(task.Sigma_xx, np.eye(3))
    assert np.array_equal(task.Sigma_yx, task.teacher)
    assert task.whitened
    assert Task(task.teacher, np.eye(3)).whitened
    assert not Task(task.teacher, 2 * np.eye(3)).whitened


@pytest.mark.parametrize(("n_samples", "noise"), [(30, 0.5), (30, 0.0), (4, 0.0)])
def test_samples_make_a_task_of_their_moments(n_samples, noise):
    rng = np.random.default_rng(n_samples)
    x = 1.0 + rng.standard_normal((n_samples, 6)) @ rng.standard_normal(
        (6, 6)
    )  # not centred; four span no space of six
    y = x @ rng.standard_normal((4, 6)).T + noise * rng.standard_normal((n_samples, 4))
    task = Task.from_samples(x.tolist(), y.tolist())
    expected = {"Sigma_xx": x.T @ x, "Sigma_yx": y.T @ x, "Sigma_yy": y.T @ y}
    for name, matrix in expected.items():
        agree(getattr(task, name), matrix / n_samples, 1e-12)
        with pytest.raises(AssertionError):
            agree(getattr(task, name), matrix / n_samples + 1e-9, 1e-12)
    W = rng.standard_normal((4, 6))
    agree(task.loss(W), 0.5 * np.mean(np.sum((y - x @ W.T) ** 2, axis=1)), 1e-12)
    assert np.any(task.label_noise) == (noise > 0)
    assert not task.whitened


def test_descent_on_samples_is_learning_of_their_task():
    rng, step = np.random.default_rng(0), 0.01
    x, y = rng.standard_normal((20, 5)) + 0.3, rng.standard_normal((20, 3))
    start, Q = (0.3 * rng.standard_normal((4, 5)), 0.3 * rng.standard_normal((3, 4))), rng.standard_normal((3, 4))
    W1, W2 = start
    for _ in range(200):  # feedback alignment, typed here sample by sample
        hidden = x @ W1.T
        error = y - hidden @ W2.T
        W1, W2 = W1 + step * (error @ Q).T @ x / 20, W2 + step * error.T @ hidden / 20
    network, rule = LinearNetwork((5, 4, 3), Given(start)), rules.feedback_alignment(mirror=rules.mirrors.Fixed(Q))

    def learned(task):
        return simulate(task, network, rule, [200 * step], method=Euler(step), observe="network_map").network_map[0, 0]

    agree(learned(Task.from_samples(x, y)).values, W2 @ W1, 1e-12)
    with pytest.raises(AssertionError):
        agree(learned(Task.from_samples(x - x.mean(axis=0), y)).values, W2 @ W1, 1e-3)


def test_whitened_samples_are_taken_for_whitened():
    x = np.random.default_rng(0).standard_normal((50, 5))
    values, vectors = np.linalg.eigh(x.T @ x / 50)
    white = x @ vectors / np.sqrt(values)
    assert Task.from_samples(white, x).whitened
    assert not Task.from_samples(white * (1 + 1e-9), x).whitened


@pytest.mark.parametrize(
    ("inputs", "labels", "error", "message"),
    [
        (np.ones(4), np.ones((4, 1)), ValueError, "inputs has shape"),
        (np.ones((4, 2)), np.ones(4), ValueError, r"labels has shape \(4,\), expected \(4, out\)"),
        (np.ones((4, 2)), np.ones((5, 1)), ValueError, r"labels has shape \(5, 1\), expected \(4, out\)"),
        (np.ones((0, 2)), np.ones((0, 1)), ValueError, "at least one"),
        (np.ones((4, 2)), [["a"]] * 4, TypeError, "labels must be an array of real numbers"),
        (np.full((4, 2), np.nan), np.ones((4, 1)), ValueError, "inputs .* NaN"),
    ],
)
def test_wrong_samples_are_named(inputs, labels, error, message):
    with pytest.raises(error, match=message):
        Task.from_samples(inputs, labels)


def test_a_task_says_in_one_line_what_it_is():
    assert repr(Task(np.ones((2, 3)))) == "Task(n_in=3, n_out=2, rank=1, whitened=True)"


def z_scores(task, n_seeds, moments, sizes=400):
    """Return z-scores of the seeds' mean second moments against `moments`, one per entry."""
    estimates = []
    for seed in range(n_seeds):
        x, y = task.sample(sizes, np.random.default_rng(seed))
        joint = np.concatenate([x, y], axis=1)
        estimates.append(joint.T @ joint / sizes)
    estimates = np.array(estimates)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(n_seeds)
    varies = error > 1e-12
    return ((estimates.mean(axis=0) - moments)[varies] / error[varies]).ravel()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_population_s_moments(kind):
    task = tasks(kind, 2)
    moments = np.block([[task.Sigma_xx, task.Sigma_yx.T], [task.Sigma_yx, task.Sigma_yy]])
    assert np.abs(z_scores(task, 40, moments)).max() < 4
    assert np.abs(z_scores(task, 40, 1.1 * moments)).max() > 4
    x, y = task.sample(7, np.random.default_rng(0))
    assert (x.shape, y.shape) == ((7, 6), (7, 4))
    again = task.sample(7, np.random.default_rng(0))
    assert np.array_equal(again[0], x)
    assert np.array_equal(again[1], y)
    assert not np.array_equal(task.sample(7, np.random.default_rng(1))[0], x)


def test_noise_is_drawn_after_the_inputs_so_that_inputs_do_not_depend_on_it():
    teacher = np.ones((2, 3))
    plain, noisy = (Task(teacher, label_noise=s).sample(5, np.random.default_rng(0)) for s in (0.0, 1.0))
    assert np.array_equal(plain[0], noisy[0])
    assert np.array_equal(plain[1], plain[0] @ teacher.T)
    assert not np.array_equal(noisy[1], plain[1])


def test_loss_of_many_maps_at_once():
    task = tasks("correlated", 3)
    maps = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    assert task.loss(maps).shape == (2, 3)
    for index in np.ndindex(2, 3):
        error = task.teacher - maps[index]
        expected = 0.5 * np.trace(error @ task.Sigma_xx @ error.T) + 0.5 * np.trace(task.noise_covariance)
        agree(task.loss(maps)[index], expected, 1e-14)
    agree(task.loss(task.teacher), 0.5 * np.trace(task.noise_covariance), 1e-14)


@given(n_in=SIZES, n_out=SIZES, data=st.data())
def test_teachers_have_the_singular_values_asked_for(n_in, n_out, data):
    d = data.draw(st.integers(1, min(n_in, n_out)))
    values = np.sort(data.draw(st.lists(st.floats(0.1, 10), min_size=d, max_size=d)))[::-1]
    task = low_rank_teacher(n_in, n_out, values, seed=data.draw(st.integers(0, 99)))
    assert task.rank == d
    agree(task.singular_values, values)
    agree(task.left.T @ task.left, np.eye(d))
    agree((task.left * task.singular_values) @ task.right.T, task.Sigma_yx)


def test_given_singular_vectors_are_kept():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 2)))[0] for n in (4, 6))
    task = low_rank_teacher(6, 4, [3.0, 1.0], left=left, right=right)
    agree(task.teacher, 3.0 * np.outer(left[:, 0], right[:, 0]) + np.outer(left[:, 1], right[:, 1]))
    agree(np.abs(np.sum(task.left * left, axis=0)), np.ones(2))
    one_side = low_rank_teacher(6, 4, [3.0, 1.0], left=left, seed=1)
    agree(np.abs(np.sum(one_side.left * left, axis=0)), np.ones(2))
    assert np.array_equal(one_side.teacher, low_rank_teacher(6, 4, [3.0, 1.0], left=left, seed=1).teacher)
    assert not np.array_equal(one_side.teacher, low_rank_teacher(6, 4, [3.0, 1.0], left=left, seed=2).teacher)


def test_gaussian_teachers_have_the_stated_rank_and_scale():
    assert gaussian_teacher(12, 8, 3).rank == 3
    draws = np.array([np.mean(gaussian_teacher(12, 8, 3, seed=seed, scale=0.5).teacher ** 2) for seed in range(200)])
    z = (draws.mean() - 0.25 * 3) / (draws.std(ddof=1) / np.sqrt(200))
    assert abs(z) < 4
    assert abs((draws.mean() - 0.25) / (draws.std(ddof=1) / np.sqrt(200))) > 4
    first = stream(0, "task", "gaussian").standard_normal((8, 3))
    projector = first @ np.linalg.pinv(first)
    agree(projector @ gaussian_teacher(12, 8, 3).teacher, gaussian_teacher(12, 8, 3).teacher)


def test_rank_of_a_zero_teacher_is_zero():
    task = Task(np.zeros((2, 3)))
    assert task.rank == 0
    assert task.singular_values.shape == (0,)


GOOD = {"teacher": np.ones((2, 3))}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher": [1.0, 2.0]}, ValueError, r"teacher has shape \(2,\), expected \(out, in\)"),
        ({"teacher": np.zeros((0, 3))}, ValueError, r"teacher has shape \(0, 3\)"),
        ({"teacher": [[1.0], [1.0, 2.0]]}, TypeError, "teacher must be an array"),
        ({"teacher": [["a"]]}, TypeError, "teacher must be an array"),
        ({"teacher": None}, TypeError, "teacher"),
        ({"teacher": [[1j]]}, TypeError, "teacher"),
        ({"teacher": [[np.nan]]}, ValueError, "teacher.*NaN"),
        ({"teacher": [[np.inf]]}, ValueError, "teacher"),
        ({"input_covariance": np.eye(2)}, ValueError, r"input_covariance has shape \(2, 2\), expected \(3, 3\)"),
        ({"input_covariance": np.triu(np.ones((3, 3)))}, ValueError, "input_covariance must be symmetric"),
        ({"input_covariance": np.diag([1.0, 1.0, -1.0])}, ValueError, "input_covariance must be positive semi"),
        ({"input_covariance": np.full((3, 3), np.nan)}, ValueError, "input_covariance"),
        ({"input_covariance": 1e308 * np.eye(3)}, ValueError, "input_covariance has entries up to"),
        ({"input_covariance": 2.0}, ValueError, "input_covariance has shape"),
        ({"input_covariance": "white"}, TypeError, "input_covariance"),
        ({"label_noise": -0.1}, ValueError, "label_noise must be finite and >= 0"),
        ({"label_noise": np.nan}, ValueError, "label_noise"),
        ({"label_noise": True}, TypeError, "label_noise"),
        ({"label_noise": None}, TypeError, "label_noise"),
        ({"label_noise": "none"}, TypeError, "label_noise"),
        ({"label_noise": [[1.0], [1.0, 2.0]]}, TypeError, "label_noise"),
        ({"label_noise": np.eye(3)}, ValueError, r"label_noise has shape \(3, 3\), expected \(2, 2\)"),
        ({"label_noise": -np.eye(2)}, ValueError, "label_noise must be positive semi"),
        ({"label_noise": [0.1, 0.2]}, ValueError, "label_noise has shape"),
    ],
)
def test_bad_tasks_are_refused(change, error, message):
    Task(**GOOD)
    with pytest.raises(error, match=message):
        Task(**(GOOD | change))


@given(size=st.integers(2, 6), seed=st.integers(0, 999), eigenvalue=st.floats(1e-6, 10))
def test_covariances_with_a_negative_eigenvalue_are_refused(size, seed, eigenvalue):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.append(np.ones(size - 1), -eigenvalue)
    with pytest.raises(ValueError, match="input_covariance must be positive semi-definite"):
        Task(np.ones((1, size)), (basis * values) @ basis.T)
    Task(np.ones((1, size)), (basis * np.abs(values)) @ basis.T)
    singular = (basis * np.maximum(values, 0)) @ basis.T
    assert Task(np.ones((1, size)), singular).n_in == size  # rounding does not make it indefinite


@given(seed=st.integers(0, 999), asymmetry=st.floats(1e-6, 1))
def test_asymmetric_covariances_are_refused(seed, asymmetry):
    matrix = random_covariance(3, np.random.default_rng(seed)) + 3 * np.eye(3)
    matrix[0, 1] += asymmetry
    with pytest.raises(ValueError, match="label_noise must be symmetric"):
        Task(np.ones((3, 2)), label_noise=matrix)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: low_rank_teacher(3, 2, [3, 2, 1]), ValueError, "singular_values has 3 entries"),
        (lambda: low_rank_teacher(3, 2, []), ValueError, "singular_values has 0 entries"),
        (lambda: low_rank_teacher(3, 2, 1.0), ValueError, "singular_values has shape"),
        (lambda: low_rank_teacher(3, 2, [1.0, 0.0]), ValueError, "singular_values must be positive"),
        (lambda: low_rank_teacher(3, 2, [1.0, np.nan]), ValueError, "singular_values"),
        (lambda: low_rank_teacher(3.0, 2, [1.0]), TypeError, "n_in"),
        (lambda: low_rank_teacher(True, 2, [1.0]), TypeError, "n_in"),
        (lambda: low_rank_teacher(3, 0, [1.0]), ValueError, "n_out"),
        (lambda: low_rank_teacher(3, 2, [1.0], left=np.ones((2, 1))), ValueError, "left must have orthonormal"),
        (lambda: low_rank_teacher(3, 2, [1.0], right=np.ones((2, 1))), ValueError, "right has shape"),
        (lambda: low_rank_teacher(3, 2, [1.0], seed=-1), ValueError, "seed"),
        (lambda: low_rank_teacher(3, 2, [1.0], seed=1.5), TypeError, "seed"),
        (lambda: gaussian_teacher(3, 2, 3), ValueError, "rank must be <= 2"),
        (lambda: gaussian_teacher(3, 2, 1, scale=0.0), ValueError, "scale"),
        (lambda: Task([[1.0]]).sample(0, np.random.default_rng(0)), ValueError, "n must be >= 1"),
        (lambda: Task([[1.0]]).sample(2.0, np.random.default_rng(0)), TypeError, "n must be an integer"),
    ],
)
def test_bad_teachers_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_tasks_do_not_follow_later_changes_of_the_caller_s_array():
    mine = np.eye(3)
    task = Task(mine)
    mine[0] = 7.0
    assert np.array_equal(task.teacher, np.eye(3))
    agree(task.left * task.singular_values @ task.right.T, task.Sigma_yx)


@pytest.mark.parametrize("shape", [(2, 2), (3,), (), (4, 3, 2)])
def test_loss_names_maps_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"^map_ has shape .*, expected \(\.\.\., 2, 3\)"):
        Task(np.ones((2, 3))).loss(np.ones(shape))
