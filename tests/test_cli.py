"""The command line: a whole run on the digits, the table of rules, and what it says to mistakes."""

import subprocess
import sys

import numpy as np
import pytest
import xarray
from click.testing import CliRunner

from linfb import __version__, cli, rules

SMALL = ["train", "--data", "digits", "--hidden", "32,32", "--epochs", "2", "--batch-size", "32", "--quiet"]


def call(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_version_and_table():
    assert __version__ in call("--version").output
    table = call("rules").output.splitlines()
    assert [line.split()[0] for line in table[1:]] == list(rules.names)
    assert table[1].split()[1:] == ["above", "identity", "exact", "yes"]


def test_names_offered_are_those_that_exist():
    from linfb import engine
    from linfb.datasets import DATASET_NAMES
    from linfb.engine import architectures
    from linfb.engine.observables import OBSERVABLES
    from linfb.experiments import training

    assert rules.names == cli._RULES
    data = next(p for p in cli.train_command.params if p.name == "data")
    assert (cli._DATA, cli._OPTIMISERS) == (training.DATA, training.OPTIMISERS)
    assert sorted(data.type.choices) == sorted([*DATASET_NAMES, "text"])
    assert tuple(OBSERVABLES) == cli._OBSERVABLES
    assert set(training.MODELS) - {"vgg"} | {"vgg_like"} == set(architectures.__all__)
    assert all(callable(getattr(engine, name)) for name in cli._OPTIMISERS)


def test_a_run_writes_its_result_and_its_checkpoint(tmp_path):
    out, folder = tmp_path / "run.nc", tmp_path / "state"
    options = [
        "--rule", "low-rank", "--rank", "10", "--reader", "oja", "--mirror", "kolen_pollack",
        "--learning-rate", "3e-3", "--weight-decay", "1e-4", "--seed", "1", "--observe", "alignment",
    ]  # fmt: skip
    first = call(*SMALL, *options, "--out", out, "--checkpoint", folder)
    assert first.exit_code == 0, first.output
    assert "test accuracy" in first.output
    result = xarray.load_dataset(out, engine="h5netcdf")
    assert result.sizes["epoch"] == 2
    assert result.attrs["data"] == "digits"
    assert float(result.test_accuracy.sel(weights="chosen")) > 0.5
    assert (folder / "checkpoint.safetensors").exists()
    longer = call(*SMALL, *options, "--epochs", 3, "--out", out, "--checkpoint", folder)
    assert longer.exit_code == 0, longer.output
    resumed = xarray.load_dataset(out, engine="h5netcdf")
    assert np.array_equal(resumed.train_loss[:2], result.train_loss)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--rule", "bp"], {"optimizer": "Adam"}),
        (["--rule", "fa", "--rank", "4", "--mirror", "fixed:scale=0.2"], {"rule": "scale=0.2"}),
        (["--rank", "0.25", "--reader", "oja:on=labels,rate=5"], {"rule": "on='labels', rate=5"}),
        (["--rank", "1:3,2:2", "--optimizer", "sgd", "--learning-rate", "0.05"], {"optimizer": "momentum=0.9"}),
        (["--rule", "direct-low-rank", "--rank", "2", "--norm", "none"], {"model": "Bias(n_features=32)"}),
    ],
)
def test_options_reach_the_run(tmp_path, options, expected):
    outcome = call(*SMALL, *options, "--out", tmp_path / "run.nc")
    assert outcome.exit_code == 0, outcome.output
    attributes = xarray.load_dataset(tmp_path / "run.nc", engine="h5netcdf").attrs
    for key, text in expected.items():
        assert text in attributes[key]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rule", "unheard-of"], "'--rule'"),
        (["--rule", "bp", "--rank", "3"], "--rank does not go with --rule bp"),
        (["--rule", "low-rank"], "--rank is needed for --rule low-rank"),
        (["--rank", "ten"], "'--rank'"),
        (["--rank", "0"], "rank"),
        (["--rank", "3", "--reader", "ear"], "'--reader'"),
        (["--rank", "3", "--reader", "oja:colour=red"], "'--reader'"),
        (["--rank", "3", "--reader", "oja:rate"], "'rate' is no setting such as rate=5"),
        (["--rank", "3", "--mirror", "glass"], "'--mirror'"),
        (["--rule", "bp", "--hidden", "a,b"], "'--hidden'"),
        (["--rule", "bp", "--hidden", "0"], "widths"),
        (["--rule", "bp", "--data", "faces"], "'--data'"),
        (["--rule", "bp", "--optimizer", "magic"], "'--optimizer'"),
        (["--rule", "bp", "--momentum", "0.5"], "momentum does not go with optimizer amsgrad"),
        (["--rule", "bp", "--epochs", "0"], "'--epochs'"),
        (["--rule", "bp", "--learning-rate", "-1"], "'--learning-rate'"),
        (["--rule", "bp", "--model", "cnn"], "'--model'"),
        (["--rule", "bp", "--batch-size", "5000"], "batch_size"),
        (["--rule", "bp", "--out", "/no/such/folder/run.nc"], "--out"),
        (["--rank", "1:3,2:200"], "rank of layer 2"),
    ],
)
def test_mistakes_are_answered_without_a_traceback(options, message):
    outcome = call(*SMALL, *options)
    assert outcome.exit_code == 2
    assert message in outcome.output
    assert isinstance(outcome.exception, SystemExit)


def test_missing_data_is_explained(tmp_path, monkeypatch):
    monkeypatch.delenv("LINFB_DATA", raising=False)
    outcome = call("train", "--data", "mnist", "--rule", "bp", "--data-root", tmp_path)
    assert outcome.exit_code == 2
    assert "data mnist" in outcome.output
    assert str(tmp_path) in outcome.output
    assert isinstance(outcome.exception, SystemExit)


def test_divergence_ends_with_its_reason_and_the_partial_result(tmp_path):
    out = tmp_path / "run.nc"
    outcome = call(*SMALL, "--rule", "bp", "--optimizer", "sgd", "--learning-rate", "1e30", "--out", out)
    assert outcome.exit_code == 1
    assert "learning rate 1e+30" in outcome.output
    assert xarray.load_dataset(out, engine="h5netcdf").sizes["epoch"] == 0


def test_an_interrupt_ends_with_its_own_status(monkeypatch, tmp_path):
    from linfb.engine import schedules

    def stop(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(schedules.Exponential, "__call__", stop)
    outcome = call(*SMALL, "--rule", "bp", "--out", tmp_path / "run.nc")
    assert outcome.exit_code == 130
    assert xarray.load_dataset(tmp_path / "run.nc", engine="h5netcdf").sizes["epoch"] == 1


def test_help_needs_nothing_heavy():
    code = "import sys, linfb.cli; print(*(m for m in ('numba', 'scipy', 'xarray', 'sklearn') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "vgg:dense=8,dropout=0.2", "--augment", "crop:padding=1", "--augment", "flip"], "Conv2d"),
        (
            [
                "--model",
                "vit:patch=2,width=8,depth=1,heads=2",
                "--schedule",
                "cosine:warmup=1",
                "--epochs",
                "2",
                "--grey",
            ],
            "Attention",
        ),
        (["--model", "retina:width=4,bottleneck=2,size=3,dense=8", "--norm", "batch", "--layers", "2"], "BatchNorm"),
        (["--model", "resnet20:width=4", "--optimizer", "rmsprop", "--products", "float16"], "Fork"),
        (["--hidden", "16", "--optimizer", "muon", "--clip-norm", "1", "--label-smoothing", "0.1"], "Dense"),
    ],
)
def test_every_architecture_trains_from_the_command_line(tmp_path, options, expected):
    out = tmp_path / "run.nc"
    small = ["train", "--data", "digits", "--validation", "0.5", "--epochs", 1, "--batch-size", 128, "--quiet"]
    outcome = call(*small, "--rank", 2, *options, "--threads", 2, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    result = xarray.load_dataset(out, engine="h5netcdf")
    assert expected in result.attrs["model"]
    assert np.isfinite(result.step_loss.values).all()


def test_a_language_model_trains_from_the_command_line(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a rose is a rose is a rose, is it not? " * 40)
    small = ["train", "--data", "text", "--text", text, "--length", 16, "--epochs", 2, "--batch-size", 8, "--quiet"]
    outcome = call(*small, "--model", "decoder:width=8,depth=1,heads=2", "--rank", 2)
    assert outcome.exit_code == 0, outcome.output
    for options, message in (
        (["--data", "text"], "data text and a file as text go together"),
        (["--length", 5], "length goes with"),
        (["--model", "decoder"], "model decoder and data text"),
        (["--schedule", "cosine", "--lr-decay", 0.9], "exclude each other"),
        (["--model", "vit:heads=3,width=8,patch=2"], "heads"),
        (["--model", "vit:heads"], "'heads' is no setting"),
        (["--model", "vit:widht=8"], "model has no setting 'widht'; there are patch, width, depth"),
        (["--reader", "oja:rat=3"], "reader has no setting 'rat'; there are on, rate,"),
        (["--mirror", "exact:rate=3"], "mirror has no setting 'rate'; there are none"),
    ):
        refused = call("train", "--data", "digits", "--rank", 2, "--epochs", 1, "--quiet", *options)
        assert refused.exit_code == 2
        assert message in refused.output
