"""`linfb sweep` and `linfb results`: from words to results and tables, and what is said to mistakes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from click.testing import CliRunner

import linfb
from linfb import cli
from linfb.experiments import Store

WALK = "tests.sweep_cases:walk"


def call(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def swept(store, *options, experiment=WALK):
    return call("sweep", experiment, "--store", store, "--quiet", *options)


def test_designs_combine_and_a_second_run_finds_everything(store):
    options = ["--grid", "seed=0..1", "--zip", "width=1,2", "--zip", "steps=5,6", "--set", "sizes=7,8"]
    options += ["--random", "kind=choice:a,b,c", "--draws", 3, "--draw-seed", 1]
    first = swept(store, *options)
    assert first.exit_code == 0, first.output
    n = len(Store(store).keys())
    assert first.stdout.startswith(f"{n} runs, 0 found, {n} computed")
    assert n in (4, 8, 12)  # as many kinds as were drawn, times two and two
    for key in Store(store).keys():  # noqa: SIM118
        config = Store(store).record(key)["config"]
        assert config["sizes"] == [7, 8]
        assert (config["width"], config["steps"]) in ((1.0, 5), (2.0, 6))
    assert f"{n} found, 0 computed" in swept(store, *options).stdout


def test_training_is_swept_over_any_field_in_one_line(store):
    options = ["--grid", "rank=1,2", "--grid", "seed=0,1", "--set", "epochs=1", "--set", "hidden=[12]"]
    options += ["--set", "batch_size=64", "--together", 4]
    assert swept(store, *options, experiment="train").exit_code == 0
    listed = call("results", store, "--where", "rank=2").stdout.splitlines()
    assert [line.split()[-1] for line in listed[:-1]] == ["seed=0", "seed=1"]
    assert listed[-1] == "2 results"


def test_results_are_exported(store, tmp_path):
    swept(store, "--grid", "width=1,2", "--grid", "seed=0..2")
    table, file = tmp_path / "runs.csv", tmp_path / "runs.nc"
    done = call("results", store, "--where", "seed<2", "--csv", table, "--netcdf", file)
    assert done.exit_code == 0, done.output
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    whole = xr.load_dataset(file, engine="h5netcdf")
    assert dict(whole.end.sizes) == {"width": 2, "seed": 2}
    assert len(rows) == 4
    for row in rows:
        here = whole.sel(width=float(row["width"]), seed=int(row["seed"]))
        assert float(row["end"]) == float(here.end)
        assert float(row["extremes[which=low]"]) == float(here.extremes.sel(which="low"))
    assert len({row["end"] for row in rows}) == 4


def test_failures_are_shown_and_retried(store, tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    options = ["--grid", "seed=0,1", "--set", f"broken={broken}"]
    failed = swept(store, *options)
    assert failed.exit_code == 1
    assert "2 runs, 0 found, 0 computed, 2 failed" in failed.stdout
    assert "ArithmeticError: deliberate, seed 1" in failed.stderr
    lines = call("results", store, "--failed", "--where", "seed=1").stdout.splitlines()
    assert len(lines) == 1
    shown = call("results", store, "--show", lines[0].split()[0])
    assert "Traceback" in shown.stdout
    assert '"seed": 1' in shown.stdout
    assert "2 failed runs" in call("results", store).stdout
    broken.unlink()
    assert swept(store, *options).exit_code == 1
    assert swept(store, *options, "--retry").exit_code == 0
    assert call("results", store, "--failed").stdout == ""


def test_a_dry_run_says_what_there_is_to_do(store):
    swept(store, "--grid", "seed=0,1", "--grid", "trouble=null")
    swept(store, "--grid", "trouble=error")
    plan = swept(store, "--grid", "seed=0..2", "--grid", "trouble=null,error", "--dry-run").stdout.splitlines()
    assert [line.split()[1] for line in plan] == ["stored", "failed", "stored", "to", "to", "to"]
    assert len(Store(store).keys()) == 2


def test_one_result_is_shown_and_all_are_checked(store):
    swept(store, "--grid", "seed=0,1")
    key = Store(store).keys()[0]
    shown = call("results", store, "--show", key[:8]).stdout
    assert shown.startswith(key)
    assert '"experiment": "walk"' in shown
    assert "xarray.Dataset" in shown
    assert call("results", store, "--show", "").exit_code == 2
    assert call("results", store, "--check").stdout == "2 results, 0 damaged\n"
    path = store / f"{key}.nc"
    path.write_bytes(path.read_bytes()[:-1])
    checked = call("results", store, "--check")
    assert (checked.exit_code, key in checked.stderr) == (1, True)
    assert "damaged" in call("results", store).stderr
    again = swept(store, "--grid", "seed=0,1")
    assert "1 of them damaged before" in again.stdout
    assert call("results", store, "--check").exit_code == 0


def test_fields_are_shown():
    lines = call("sweep", "train", "--fields").stdout.splitlines()
    assert "epochs             10" in lines
    assert any(line.startswith("device") and "not part of the key" in line for line in lines)


def test_an_own_experiment_in_the_present_folder_runs_in_processes(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import xarray\nfrom linfb.experiments import Experiment\n"
        "def run(config, seed): return xarray.Dataset({'double': config['x'] * 2})\n"
        "double = Experiment('double', 1, {'x': 1.0}, run)\n"
    )
    command = [sys.executable, "-m", "linfb", "sweep", "mine:double", "--store", "store", "--grid", "x=1,2,3"]
    here = os.environ | {"PYTHONPATH": str(Path(linfb.__file__).parents[1])}
    done = subprocess.run(
        [*command, "--jobs", "2"], cwd=tmp_path, env=here, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "store")
    doubles = {store.record(key)["config"]["x"]: float(store.read(key)[0].double) for key in store.keys()}  # noqa: SIM118
    assert doubles == {1.0: 2.0, 2.0: 4.0, 3.0: 6.0}
    assert "3/3" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--grid", "wdth=1"], "no field 'wdth'"),
        (["--grid", "width=wide"], "width must be a number"),
        (["--grid", "width"], "no field and value"),
        (["--grid", "width=1", "--grid", "width=2"], "width is given twice"),
        (["--grid", "width=1", "--zip", "width=2"], "width is set by two"),
        (["--grid", "width=1", "--set", "width=2"], "width is fixed and swept over"),
        (["--grid", "seconds=1"], "seconds says how"),
        (["--zip", "width=1,2", "--zip", "seed=1"], "as many values"),
        (["--random", "width=uniform:0,1"], "--random needs --draws"),
        (["--random", "width=gamma:0,1", "--draws", 2], "distribution must be one of"),
        (["--random", "width=uniform:0", "--draws", 2], "distribution 'uniform:0'"),
        (["--random", "width=uniform:1,0", "--draws", 2], "high"),
        (["--jobs", 0], "--jobs"),
        (["--together", 0], "--together"),
        (["--dask", "--scheduler", "tcp://x:1"], "exclude each other"),
        (["--scheduler", "tcp://x:1", "--jobs", 2], "--jobs does not go with --scheduler"),
    ],
)
def test_mistakes_are_answered_without_a_traceback(store, options, words):
    outcome = swept(store, *options)
    assert (outcome.exit_code, isinstance(outcome.exception, SystemExit)) == (2, True)
    assert words in outcome.output
    assert not store.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--where", "depth=3"], "no field 'depth'"),
        (["--where", "depth"], "condition must be"),
        (["--show", "nothing"], "0 keys begin"),
        (["--where", "seed=9", "--csv", "x.csv"], "no results to export"),
    ],
)
def test_mistakes_about_results_are_answered(store, options, words):
    swept(store)
    outcome = call("results", store, *options)
    assert outcome.exit_code == 2
    assert words in outcome.output


def test_more_mistakes(tmp_path):
    assert "--store is needed" in call("sweep", WALK).output
    assert "one of 'train', 'simulate'" in call("sweep", "trian", "--store", tmp_path).output
    (tmp_path / "file").touch()
    assert call("sweep", WALK, "--store", tmp_path / "file").exit_code == 2
    stopped = swept(tmp_path / "s", "--grid", "trouble=interrupt")
    assert (stopped.exit_code, "the same sweep goes on" in stopped.stderr) == (130, True)
