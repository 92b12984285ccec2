"""The training loop: what it reports, that it repeats and resumes to the bit, and how it stops."""

import json
from dataclasses import dataclass
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

from linfb import rules
from linfb._errors import DivergenceError, InterruptedRun
from linfb.datasets import Dataset, load_dataset
from linfb.engine import (
    Cosine,
    Dropout,
    Exponential,
    Model,
    Optimizers,
    adam,
    amsgrad,
    cross_entropy,
    mlp,
    sgd,
    train,
)  # fmt: skip
from linfb.engine import checkpoint as checkpoints
from linfb.engine.observables import alignment, captured_energy, mirror_stability, snapshot
from linfb.engine.state import initial_state
from linfb.engine.training import _checked
from linfb.rules import mirrors, readers


def blobs(n_classes=3, n_in=4, n_train=120, seed=0):
    """Gaussian classes around random centres."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((n_classes, n_in))
    labels = np.arange(n_train + 40) % n_classes
    x = centres[labels] + rng.standard_normal((len(labels), n_in))
    return Dataset.from_arrays(x[:n_train], labels[:n_train], x[n_train:], labels[n_train:], name="blobs")


DATA = blobs()
MODEL = mlp(4, (8, 8), 3)


def run(rule=None, *, data=DATA, model=MODEL, epochs=3, optimizer=None, **settings):
    rule = rules.low_rank(2) if rule is None else rule
    optimizer = amsgrad(1e-2, weight_decay=1e-3) if optimizer is None else optimizer
    return train(data, model, rule, **{
        "epochs": epochs, "batch_size": 16, "optimizer": optimizer, "progress": False, "dtype": "float64",
        "observe": ("alignment", "captured_energy", "mirror_stability"), **settings,
    })  # fmt: skip


def test_backpropagation_and_low_rank_learn_the_digits_and_no_feedback_learns_less():
    digits, model = load_dataset("digits"), mlp(64, (32, 32), 10)
    settings = {"epochs": 5, "batch_size": 32, "optimizer": amsgrad(3e-3), "progress": False}
    accuracy = {
        name: float(train(digits, model, rule, **settings).test_accuracy.sel(weights="chosen"))
        for name, rule in (("bp", rules.backpropagation()), ("low", rules.low_rank(8)), ("zero", rules.zero_feedback()))
    }
    assert accuracy["bp"] > 0.93
    assert accuracy["low"] > 0.85
    assert accuracy["zero"] < accuracy["bp"] - 0.1


def test_results_are_labelled_and_survive_a_file(tmp_path):
    result = run(rules.low_rank({1: 2, 2: 1}), schedule=Exponential(0.5), optimizer=sgd(0.1, momentum=0.9))
    assert dict(result.sizes) == {"step": 18, "epoch": 3, "layer": 3, "weights": 2}
    assert np.allclose(result.step_loss.values.reshape(3, 6).mean(axis=1), result.train_loss, rtol=1e-14)
    assert result.learning_rate.values == pytest.approx([0.1, 0.05, 0.025])
    assert result["rank"].values.tolist() == [0, 2, 1]
    assert result.attrs["data"] == "blobs"
    assert result.attrs["samples"] == "108/12/40"
    assert json.loads(result.attrs["versions"])["numpy"] == np.__version__
    chosen = int(result.chosen_epoch)
    assert result.validation_accuracy[chosen] == result.validation_accuracy.max()
    assert np.all(np.isfinite(result.test_accuracy))
    result.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "run.nc", engine="h5netcdf"), result)


def test_same_seed_same_bits_and_another_seed_another_run():
    first, again, other = run(seed=3), run(seed=3), run(seed=4)
    xarray.testing.assert_identical(first, again)
    assert not np.array_equal(first.train_loss, other.train_loss)


@pytest.mark.parametrize(
    "optimizer", [amsgrad(1e-2, weight_decay=1e-3), Optimizers(adam(1e-2), Q=sgd(0.1, momentum=0.9), P=adam(1e-3))]
)
def test_resuming_equals_an_uninterrupted_run_to_the_bit(tmp_path, optimizer):
    whole = run(epochs=4, optimizer=optimizer, schedule=Cosine(4, warmup=1))
    part = run(epochs=2, optimizer=optimizer, schedule=Cosine(4, warmup=1), checkpoint=tmp_path)
    assert part.sizes["epoch"] == 2
    resumed = run(epochs=4, optimizer=optimizer, schedule=Cosine(4, warmup=1), checkpoint=tmp_path)
    xarray.testing.assert_identical(resumed, whole)
    finished = run(epochs=4, optimizer=optimizer, schedule=Cosine(4, warmup=1), checkpoint=tmp_path)
    xarray.testing.assert_identical(finished, whole)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.FILE_NAME]


class Stop:
    """A schedule that interrupts the user's way when an epoch begins."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self, epoch):
        if epoch == self.epoch:
            raise KeyboardInterrupt
        return 1.0

    def __repr__(self):
        return "Stop()"


def test_an_interrupt_keeps_what_was_computed_and_can_be_resumed(tmp_path):
    whole = run(epochs=4, schedule=Stop(99))
    with pytest.raises(InterruptedRun, match="after 2 complete epochs") as caught:
        run(epochs=4, schedule=Stop(2), checkpoint=tmp_path)
    assert isinstance(caught.value, KeyboardInterrupt)
    partial = caught.value.partial
    assert np.array_equal(partial.train_loss, whole.train_loss[:2])
    assert np.all(np.isnan(partial.test_accuracy))
    xarray.testing.assert_identical(run(epochs=4, schedule=Stop(99), checkpoint=tmp_path), whole)


class StopAfter:
    """A schedule that interrupts in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self, epoch):
        if epoch >= self.epoch:
            raise KeyboardInterrupt
        return 0.5**epoch

    def __repr__(self):
        return "StopAfter()"


@pytest.mark.parametrize("unread", [1, 4])
def test_a_run_goes_on_from_the_middle_of_an_epoch_to_the_bit(tmp_path, monkeypatch, unread):
    monkeypatch.setattr("linfb.engine.run._UNREAD_STEPS", unread)
    model, saved = Model((*MODEL.layers[:3], Dropout(0.3), *MODEL.layers[3:])), []
    whole = run(model=model, schedule=StopAfter(99))
    for stop in (0.7, 1.5, 1.9):
        with pytest.raises(InterruptedRun):
            run(model=model, schedule=StopAfter(stop), checkpoint=tmp_path, checkpoint_seconds=0.0)
        saved.append(checkpoints.load(tmp_path)[1]["step"])
    assert saved[0] > 0
    assert any(step not in (0, 6) for step in saved)
    xarray.testing.assert_identical(run(model=model, schedule=StopAfter(99), checkpoint=tmp_path), whole)
    assert not np.array_equal(run(model=model, schedule=StopAfter(99), seed=1).step_loss, whole.step_loss)


def test_an_interrupt_in_the_first_epoch_gives_an_empty_result():
    with pytest.raises(InterruptedRun) as caught:
        run(schedule=Stop(0))
    assert caught.value.partial.sizes["epoch"] == 0
    assert int(caught.value.partial.chosen_epoch) == -1


def test_divergence_names_where_and_keeps_what_was_before():
    bomb = lambda epoch: 1e200 if epoch == 2 else 1.0  # noqa: E731
    with pytest.raises(DivergenceError, match=r"epoch 2, step \d+, under low-rank with learning rate 1e\+19") as caught:
        run(epochs=5, optimizer=sgd(0.1), schedule=bomb)
    assert isinstance(caught.value, FloatingPointError)
    assert caught.value.partial.sizes["epoch"] == 2
    assert np.all(np.isfinite(caught.value.partial.train_loss))


@dataclass(frozen=True)
class Bomb:
    """A schedule whose rate explodes in one epoch."""

    at: int

    def __call__(self, epoch):
        return 1e200 if epoch == self.at else 1.0


def test_divergence_is_told_with_a_checkpoint_and_again_from_it(tmp_path):
    bomb = Bomb(2)
    for _ in range(2):
        with pytest.raises(DivergenceError, match=r"epoch 2, step \d+") as caught:
            run(epochs=5, optimizer=sgd(0.1), schedule=bomb, checkpoint=tmp_path)
        assert caught.value.partial.sizes["epoch"] == 2


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = checkpoints.save(tmp_path, {"a": np.arange(3.0)}, {"chosen": 1})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path, {"a": np.zeros(3)}, {"chosen": 2})
    arrays, header = checkpoints.load(tmp_path)
    assert np.array_equal(arrays["a"], np.arange(3.0))
    assert header == {"chosen": 1}
    assert list(tmp_path.iterdir()) == [Path(path)]


@given(data=st.data())
def test_damaged_checkpoints_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = checkpoints.save(folder, {"a": np.arange(4.0), "b": np.ones((2, 2))}, {"chosen": 0})
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(folder)


def test_checkpoints_of_another_run_or_program_are_refused(tmp_path):
    run(epochs=2, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="seed differ; seed was 0, is 1"):
        run(epochs=2, seed=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="rule differ"):
        run(rules.low_rank(1), epochs=2, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="epochs is 1, but the checkpoint"):
        run(epochs=1, checkpoint=tmp_path)
    from safetensors.numpy import save_file

    save_file({"a": np.ones(1)}, tmp_path / checkpoints.FILE_NAME)
    with pytest.raises(ValueError, match="not a checkpoint of linfb"):
        run(checkpoint=tmp_path)


def test_the_epoch_is_chosen_without_a_look_at_the_test_part():
    """Other test images change the test values and nothing else."""
    other = Dataset.from_arrays(
        DATA.train_images, DATA.train_labels, -DATA.test_images, DATA.test_labels[::-1].copy(), name="blobs"
    )
    first, second = run(epochs=5), run(epochs=5, data=other)
    tests = ["test_loss", "test_accuracy"]
    xarray.testing.assert_identical(first.drop_vars(tests), second.drop_vars(tests))
    assert not np.array_equal(first.test_loss, second.test_loss)


def test_test_values_belong_to_the_chosen_and_to_the_last_weights():
    # steps become huge after three epochs, so that the chosen weights are early ones
    result = run(epochs=5, optimizer=adam(1e-2), schedule=lambda epoch: 1.0 if epoch < 3 else 100.0)
    chosen = int(result.chosen_epoch)
    assert chosen < 3
    short = run(epochs=chosen + 1, optimizer=adam(1e-2), schedule=lambda epoch: 1.0)
    assert result.test_loss.sel(weights="chosen") == short.test_loss.sel(weights="last")
    assert result.test_loss.sel(weights="chosen") != result.test_loss.sel(weights="last")


def test_training_runs_under_the_strict_array_api():
    numpy_run, strict_run = run(epochs=2), run(epochs=2, device=array_api_strict)
    for name in numpy_run.data_vars:
        assert np.allclose(numpy_run[name], strict_run[name], rtol=1e-9, atol=1e-9, equal_nan=True), name


def view(rule):
    state, _ = initial_state(MODEL, rule, Optimizers(sgd(0.1)), 0, np.array)
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((30, 4)), np.eye(3)[rng.integers(0, 3, 30)]
    return snapshot(MODEL, rule, cross_entropy, state.weights, state.channels, x, targets)


def test_observables_at_points_where_they_are_known():
    bp = view(rules.backpropagation())
    assert np.allclose(alignment(bp), 1, rtol=0, atol=1e-15)
    assert np.allclose(captured_energy(bp)[1:], 1)
    assert np.all(np.isnan(mirror_stability(bp)))
    zero = view(rules.zero_feedback())
    assert np.isnan(alignment(zero)[:-1]).all()
    assert alignment(zero)[-1] == pytest.approx(1.0)
    aligned = view(rules.low_rank(2, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned")))
    assert np.all(mirror_stability(aligned)[1:] > 0)
    share = captured_energy(aligned)
    assert np.all((share[1:] > 0) & (share[1:] < 1))
    # the scale and the rows' angles of P do not matter, only their span
    P = np.array([[1.0, 0, 0], [1.0, 0.1, 0]])
    model_rule = rules.Rule("x", "network", readers.Fixed(start=5 * P), mirrors.Fixed(), 2)
    skewed = view(model_rule)
    error = skewed.carried.reads[1]
    expected = np.sum(error[:, :2] ** 2) / np.sum(error**2)
    assert np.allclose(captured_energy(skewed)[1:], expected, rtol=1e-12)
    random = view(rules.feedback_alignment())
    assert np.all(np.abs(alignment(random)[:-1]) < 0.95)


def test_a_capped_rank_is_reported(caplog):
    result = run(rules.low_rank(5), epochs=1)
    assert result.attrs["capped_layers"] == "(2,)"
    assert result["rank"].values.tolist() == [0, 5, 3]
    assert "capped" in caplog.text
    with pytest.raises(ValueError, match="rank of layer 2 is 5, more than the 3"):
        run(rules.low_rank({1: 5, 2: 5}), epochs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1000}, "batch_size"),
        ({"loss": "hinge"}, "loss"),
        ({"observe": ("angles",)}, "observe"),
        ({"observe": "angles"}, "observe .* got 'angles'"),
        ({"observe": 1}, "observe"),
        ({"checkpoint": 3}, "checkpoint"),
        ({"error_clip": -1.0}, "error_clip"),
        ({"dtype": "float16"}, "dtype"),
        ({"device": "tpu"}, "device"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"schedule": 0.5}, "schedule"),
        ({"schedule": lambda epoch: -0.5}, "what schedule returns must be finite and >= 0"),
        ({"schedule": lambda epoch: "slow"}, "what schedule returns must be a real number"),
        ({"seed": -1}, "seed"),
        ({"model": mlp(5, (8,), 3)}, "model expects"),
        ({"model": mlp(4, (8,), 2)}, "model has only 2 outputs"),
        ({"data": DATA.splits(validation=0)}, "no validation rows"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run(**change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DATA, "mlp", rules.backpropagation()), "model must be a linfb.engine.Model"),
        ((DATA, MODEL, "bp"), "rule must be a linfb.rules.Rule"),
        ((3, MODEL, rules.backpropagation()), "data must be a linfb.datasets.Dataset"),
    ],
)
def test_objects_of_another_kind_are_refused_by_name(arguments, message):
    with pytest.raises(TypeError, match=message):
        _checked(*arguments, 16, "float64")
