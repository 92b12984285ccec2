"""Sweeps: nothing is lost, done twice or read damaged, wherever runs are done and however they end."""

import dataclasses
import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from linfb import InterruptedRun
from linfb.experiments import (
    Choice,
    DamagedResult,
    Experiment,
    Integers,
    LogUniform,
    Run,
    Store,
    StoreError,
    Together,
    Uniform,
    condition,
    crossed,
    dask_cluster,
    experiment_named,
    grid,
    joined,
    processes,
    random,
    runs_of,
    scalars,
    selected,
    sweep,
    zipped,
)  # fmt: skip
from linfb.experiments import store as store_module
from linfb.experiments import sweeps as sweeps_module
from linfb.experiments.training import Training
from tests.sweep_cases import Walk, plain, run, walk

POINTS = grid(width=[0.5, 2.0], seed=range(3))


def walked(points=POINTS, *, store, **options):
    return sweep(walk, points, store, progress=False, **options)


def contents(store):
    """Return the data of all results by key."""
    return {key: store.read(key)[0] for key in store.keys()}  # noqa: SIM118


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(ours[key].identical(theirs[key]) for key in ours)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def log(tmp_path):
    """Return the settings to log to, and a function that returns what was computed."""
    path = tmp_path / "log"
    return {"log": str(path)}, lambda: path.read_text().splitlines() if path.exists() else []


# What a run is


def test_key_changes_with_every_field_seed_name_and_version():
    others = {
        "data": "cifar10", "grey": True, "classes": 3, "augment": ("flip",), "validation": 0.2, "model": "vgg",
        "hidden": (4,), "norm": "batch", "rule": "local", "rank": 3, "reader": "fixed", "mirror": "fixed",
        "layers": (1,), "epochs": 3, "batch_size": 3, "optimizer": "adam", "learning_rate": 0.1, "weight_decay": 0.1,
        "lr_decay": 0.5, "schedule": "cosine", "momentum": 0.5, "clip_norm": 1.0, "error_clip": 1.0,
        "label_smoothing": 0.1, "observe": ("alignment",), "dtype": "float64", "products": "tf32",
    }  # fmt: skip
    train = experiment_named("train")
    text = {"data": "text", "text": "a", "model": "decoder"}
    configs = [Training(**({"optimizer": "sgd"} if name == "momentum" else {}), **{name: value})
               for name, value in others.items()]  # fmt: skip
    configs += [Training(**text), Training(**text | {"text": "b"}), Training(**text, length=3)]
    assert set(others) | {"text", "length"} == set(train.fields) - set(train.resources)
    runs = [Run(train, config, 0) for config in (train.config, *configs)]
    runs += [Run(train, train.config, 1), Run(replace(train, version=2), train.config, 0)]
    runs += [Run(replace(train, name="retrain"), train.config, 0)]
    assert len({one.key for one in runs}) == len(runs) == len(others) + 7


def test_key_does_not_change_with_what_makes_no_difference(monkeypatch):
    key = Run(walk, walk.config, 0).key
    assert Run(walk, replace(walk.config, seconds=3.0, log="/else/where"), 0).key == key
    (same_run,) = runs_of(walk, [{"width": 1, "sizes": [1, 2], "seed": np.int64(0)}])
    assert same_run.key == key
    monkeypatch.setattr(sweeps_module, "provenance", lambda code: {"git": {"commit": "another"}})
    assert runs_of(walk, [{}])[0].key == key
    ours, theirs = (Run(plain, plain.configured({"tags": tags}), 0).key for tags in (("a",), ["a"]))
    assert ours == theirs
    by_layer = [Training(rank=rank) for rank in ({1: 4, 2: 0.5}, "1:4,2:0.5", {"1": 4, "2": 0.5})]
    assert len({Run(experiment_named("train"), config, 0).key for config in by_layer}) == 1


def test_the_key_is_what_it_was():
    """Stored results are found again: this digest may change with the version of an experiment only."""
    assert Run(plain, plain.config, 7).key == "66ce504c9205581dafc38647a06df0e1a9bed67877ad4b3f7beecf54e96d4c22"


def test_rules_without_channel_are_one_run_for_all_ranks():
    runs = runs_of(experiment_named("train"), grid(rule=["bp", "low-rank", "fa"], rank=[1, 4]))
    assert [(one.config.rule, one.config.rank) for one in runs] == [
        ("bp", None), ("low-rank", 1), ("low-rank", 4), ("fa", 1), ("fa", 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("point", "fixed", "words"),
    [
        ({"wdth": 1.0}, {}, "walk has no field 'wdth'; its fields are 'steps', 'width'"),
        ({"width": "wide"}, {}, "width must be a number, got 'wide'"),
        ({"steps": 2.5}, {}, "steps must be a whole number, got 2.5"),
        ({"steps": True}, {}, "steps must be a whole number, got True"),
        ({"sizes": 3}, {}, "sizes must be a list, got 3"),
        ({"trouble": 3}, {}, "trouble must be a word or None, got 3"),
        ({"width": -1.0}, {}, "width=-1.0: width must be >= 0"),
        ({"width": float("nan")}, {}, "width must be of finite numbers"),
        ({"seed": -1}, {}, "seed must be >= 0"),
        ({"seed": "a"}, {}, "seed must be an integer"),
        ({"seconds": 1.0}, {}, "seconds says how a run is computed"),
        ({"width": 1.0}, {"width": 2.0}, "width is fixed and swept over"),
        ({}, {"wdth": 1.0}, "no field 'wdth'"),
    ],
)
def test_bad_points_are_refused_by_name_before_anything_runs(store, log, point, fixed, words):
    settings, computed = log
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        walked([{"steps": 3}, point], store=store, fixed=settings | fixed)
    assert computed() == []
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"seed": 1}}, "seed"),
        ({"config": Walk}, "config must be"),
        ({"config": {"f": object()}}, "f must be of finite numbers"),
        ({"version": -1}, "version"),
        ({"name": ""}, "name"),
        ({"run": 3}, "run must be"),
        ({"together": Together(("depth",), run)}, "depth"),
    ],
)
def test_bad_experiments_are_refused(changes, words):
    with pytest.raises((TypeError, ValueError), match=words):
        replace(walk, **{"together": None} | changes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trian", "one of 'train', 'simulate' or module:name"),
        ("no_such_module:x", "cannot be imported"),
        ("tests.sweep_cases:y", "has no 'y'"),
        ("tests.sweep_cases:nothing", "no linfb.experiments.Experiment"),
    ],
)
def test_unknown_experiments_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        experiment_named(name)
    assert experiment_named("tests.sweep_cases:walk").name == "walk"


# Designs


def test_designs_hold_the_points_they_say():
    assert crossed(grid(a=[1, 2]), zipped(b=[3, 4], c=[5, 6])) == [
        {"a": 1, "b": 3, "c": 5}, {"a": 1, "b": 4, "c": 6}, {"a": 2, "b": 3, "c": 5}, {"a": 2, "b": 4, "c": 6}
    ]  # fmt: skip
    mixed = random(200, 3, x=Uniform(-1, 1), y=LogUniform(1e-3, 1e3), n=Integers(1, 3), w=Choice("p", "q"))
    assert {one["n"] for one in mixed} == {1, 2, 3}
    assert {one["w"] for one in mixed} == {"p", "q"}
    for name, scale in (("x", lambda x: x), ("y", lambda y: np.log10(y) / 3)):
        drawn = scale(np.array([one[name] for one in mixed]))
        assert np.all(np.abs(drawn) <= 1)
        assert abs(drawn.mean()) < 4 / np.sqrt(3 * 200)  # z < 4 for a uniform distribution on (-1, 1)
    assert abs(np.mean([np.log10(one["x"] + 2) for one in mixed])) > 4 / np.sqrt(3 * 200)
    assert random(3, 4, x=Uniform(0, 1)) != random(3, 5, x=Uniform(0, 1))


def test_more_draws_and_more_fields_keep_the_earlier_points():
    few, many = random(3, 1, x=Uniform(0, 1)), random(9, 1, n=Integers(0, 9), x=Uniform(0, 1))
    assert [one["x"] for one in many[:3]] == [one["x"] for one in few]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: grid(rule="bp"), "rule must have a list"),
        (lambda: grid(rule=[]), "rule must have at least one"),
        (lambda: grid(rule=3), "rule must have a list"),
        (lambda: zipped(a=[1, 2], b=[1]), "as many values"),
        (lambda: crossed(grid(a=[1]), zipped(a=[1])), "a is set by two"),
        (lambda: crossed([]), "at least one point"),
        (lambda: random(3, a=Uniform), "a must have a distribution"),
        (lambda: random(0, a=Uniform(0, 1)), "n must be"),
        (lambda: Uniform(1, 0), "high"),
        (lambda: LogUniform(0, 1), "low"),
        (lambda: Integers(3, 1), "high"),
        (lambda: Choice(), "values"),
    ],
)
def test_bad_designs_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# The store


def test_results_come_back_as_they_were(store):
    dataset = run(Walk(), 3)
    store.write("k", dataset, {"seed": 3})
    found, record = store.read("k")
    xr.testing.assert_identical(found, dataset)
    assert record == store.record("k") == {"seed": 3}
    assert (store.keys(), "k" in store, "l" in store, store.problem("k")) == (["k"], True, False, None)
    xr.testing.assert_identical(xr.load_dataset(store.folder / "k.nc", engine="h5netcdf"), dataset)  # plain netCDF
    with pytest.raises(KeyError, match="no result l"):
        store.read("l")
    assert not found.identical(run(Walk(), 4))


def test_results_can_be_joined_and_written_again_with_their_names_whole(store):
    names = ("short", "a longer name", "a longer number")
    for name in names:
        store.write(name, xr.Dataset({"x": ("cell", [1.0])}, {"cell": [name]}), {})
    store.write("all", xr.concat([store.read(name)[0] for name in names], dim="cell"), {})
    assert store.read("all")[0].cell.values.tolist() == list(names)


def test_a_file_of_which_anything_changed_is_never_read(store):
    store.write("k", run(Walk(), 3), {"seed": 3})
    path = store.folder / "k.nc"
    whole = path.read_bytes()
    damages = [whole[:cut] for cut in (0, 1, len(whole) // 2, len(whole) - 1)]
    damages += [whole + b"x", b"x" + whole, whole.replace(b"record-1", b"record-2")]
    for place in [*range(0, len(whole), 611), *range(len(whole) - 180, len(whole), 7)]:
        damages.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in damages:
        path.write_bytes(content)
        with pytest.raises(DamagedResult, match=r"k\.nc"):
            store.read("k")
        assert store.problem("k")
    assert store.damaged().keys() == {"k"}
    path.write_bytes(whole)
    assert store.problem("k") is None
    assert store.read("k")[1] == {"seed": 3}


def test_damaged_results_are_set_aside_reported_and_computed_anew(store):
    keys, before = walked(store=store).keys, contents(store)
    damaged = (store.folder / f"{keys[1]}.nc").read_bytes()[:-5]
    (store.folder / f"{keys[1]}.nc").write_bytes(damaged)
    said = []
    report = walked(store=store, say=said.append)
    assert (set(report.damaged), report.computed) == ({keys[1]}, {keys[1]})
    assert len(said) == 1
    assert keys[1] in said[0]
    assert (store.folder / "damaged" / f"{keys[1]}.0.nc").read_bytes() == damaged
    assert same(contents(store), before)
    assert walked(store=store, say=said.append).found == frozenset(keys)
    assert len(said) == 1


def test_unfinished_files_are_no_results_and_go_after_a_day(store):
    key = walked([{}], store=store).keys[0]
    other = runs_of(walk, [{"width": 3.0}])[0].key
    young, old = (store.folder / f".{other}.nc.{name}.part" for name in "ab")
    for part in (young, old):
        part.write_bytes((store.folder / f"{key}.nc").read_bytes())
    os.utime(old, (time.time() - 100_000,) * 2)
    assert store.keys() == [key]
    assert other not in store
    report = walked([{"width": 3.0}], store=store)
    assert report.computed == {other}
    assert (young.exists(), old.exists()) == (True, False)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_loses_nothing_and_leaves_nothing(store, monkeypatch, where):
    full, calls = OSError(errno.ENOSPC, "No space left on device"), []

    def failing(original):
        def call(*arguments):
            calls.append(arguments)
            if len(calls) > 3:
                raise full
            return original(*arguments)

        return call

    class Full:
        """A file on a disk that is full, after half of what should go into it."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise full

    def half(path, mode="r"):
        file = open(path, mode)  # noqa: SIM115 - the caller closes it
        if "x" not in mode:
            return file
        calls.append(path)
        return Full(file) if len(calls) > 2 else file

    with monkeypatch.context() as patched:
        if where == "write":
            patched.setattr(store_module, "open", half, raising=False)
        else:
            patched.setattr(store_module.os, where, failing(getattr(os, where)))
        with pytest.raises(StoreError, match=r"No space left on device.*intact") as caught:
            walked(store=store)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(store.folder))
    before = contents(store)
    assert 1 <= len(before) <= 3
    assert sorted(path.name for path in store.folder.iterdir()) == [f"{key}.nc" for key in sorted(before)]
    report = walked(store=store)
    assert report.found == before.keys()
    assert len(report.computed) == 6 - len(before)
    assert same({key: one for key, one in contents(store).items() if key in before}, before)


def test_a_failed_write_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    store_module.write_atomically(path, b"old")

    def refuse(*arguments):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(store_module.os, "replace", refuse)
        with pytest.raises(OSError, match="broken"):
            store_module.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_meets_whole_results_only_while_two_write(store):
    datasets = [run(Walk(steps=2000), seed) for seed in (0, 1)]
    store.write("k", datasets[0], {"seed": 0})
    stop, met, reads = threading.Event(), set(), 0

    def write(seed):
        while not stop.is_set():
            store.write("k", datasets[seed], {"seed": seed})

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, seed) for seed in (0, 1)]
        deadline = time.monotonic() + 20
        while (met != {0, 1} or reads < 20) and time.monotonic() < deadline:
            reads += 1
            dataset, record = store.read("k")
            assert dataset.identical(datasets[record["seed"]])
            assert not dataset.identical(datasets[1 - record["seed"]])
            met.add(record["seed"])
        stop.set()
        assert [writer.result() for writer in writers] == [None, None]
    assert met == {0, 1}
    assert [path.name for path in store.folder.iterdir()] == ["k.nc"]


def test_a_store_is_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        Store(tmp_path / "file")
    with pytest.raises(TypeError, match="folder must be a path"):
        Store(3)


# Sweeps


def test_a_sweep_goes_on_where_it_stopped(store, log):
    settings, computed = log
    first = walked(POINTS[:2], store=store, fixed=settings)
    assert str(first) == "2 runs, 0 found, 2 computed"
    report = walked(store=store, fixed=settings)
    assert (len(report.found), len(report.computed), len(computed())) == (2, 4, 6)
    assert walked(store=store, fixed=settings).found == frozenset(report.keys)
    assert len(computed()) == 6
    assert report.keys == [one.key for one in report.runs]
    assert [store.record(key)["seed"] for key in report.keys] == [0, 1, 2, 0, 1, 2]
    raised = sweep(replace(walk, version=2), POINTS, store, fixed=settings, progress=False)
    assert len(raised.computed) == 6
    assert len(store.keys()) == 12


def test_records_say_what_a_result_is_and_where_it_comes_from(store, tmp_path):
    (key,) = walked([{"width": 2.0}], store=store, fixed={"log": str(tmp_path / "log")}).keys
    record = store.record(key)
    assert record["config"] == {"steps": 20, "width": 2.0, "kind": "normal", "sizes": [1, 2], "trouble": None}
    assert (record["experiment"], record["version"], record["seed"]) == ("walk", 1, 0)
    made = record["provenance"]
    assert set(made) == {"versions", "machine", "git", "together", "started", "seconds"} | {"seconds"}
    assert {"linfb", "python", "numpy"} <= made["versions"].keys()
    assert str(tmp_path) not in str(record)


def test_processes_give_what_this_process_gives(tmp_path):
    alone = contents(walked(store=tmp_path / "alone").store)
    with processes(2) as executor:
        report = walked(store=tmp_path / "pool", executor=executor)
    assert len(report.computed) == 6
    assert same(contents(report.store), alone)
    moved = dict(zip(alone, [*alone.values()][1:] + [*alone.values()][:1], strict=True))
    assert not same(contents(report.store), moved)


def test_any_executor_will_do(tmp_path):
    alone = contents(walked(store=tmp_path / "alone").store)
    with ThreadPoolExecutor(3) as executor:
        assert same(contents(walked(store=tmp_path / "threads", executor=executor).store), alone)


def test_failures_are_recorded_and_retried_on_demand(store, log, tmp_path):
    settings, computed = log
    broken = tmp_path / "broken"
    broken.touch()
    settings = settings | {"broken": str(broken)}
    report = walked([{"seed": 1}], store=store, fixed=settings)
    (key,) = report.failed
    assert (report.keys, report.computed) == ([], frozenset())
    failure = store.failures()[key]
    assert failure["error"]["type"] == "ArithmeticError"
    assert failure["error"]["message"] == "deliberate, seed 1"
    assert "in run" in failure["error"]["traceback"]
    assert failure["seed"] == 1
    assert key not in store
    broken.unlink()
    assert walked([{"seed": 1}], store=store, fixed=settings).failed == {key}
    assert len(computed()) == 1
    again = walked([{"seed": 1}], store=store, fixed=settings, retry=True)
    assert (again.computed, again.failed, len(computed())) == ({key}, frozenset(), 2)
    assert (store.failures(), store.failure(key)) == ({}, None)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [("error", "ArithmeticError"), ("exit", "SystemExit"), ("number", "TypeError"), ("object", "ValueError")],
)
def test_a_failing_run_does_not_stop_the_others(store, trouble, kind):
    points = [{"seed": 0}, {"seed": 1, "trouble": trouble}, {"seed": 2}]
    report = walked(points, store=store)
    assert (len(report.computed), len(report.failed)) == (2, 1)
    assert {failure["error"]["type"] for failure in store.failures().values()} <= {kind, "TypeError"}
    assert "1 failed" in str(report)


def test_an_interrupt_leaves_a_store_to_go_on_from(store):
    points = [{"seed": 0}, {"seed": 1, "trouble": "interrupt"}, {"seed": 2}]
    with pytest.raises(InterruptedRun, match="2 of 3 runs to do; the same sweep goes on"):
        walked(points, store=store)
    assert len(store.keys()) == 1
    assert store.failures() == {}
    assert len(walked([{"seed": seed} for seed in range(3)], store=store).found) == 1
    assert not list(store.folder.glob("*.lock"))


def test_a_worker_that_dies_stops_the_sweep_with_advice(store):
    points = [{"seed": 0}, {"seed": 1, "trouble": "death"}]
    with pytest.raises(RuntimeError, match=r"lost with its task.*goes on"), processes(1) as executor:
        walked(points, store=store, executor=executor)
    assert len(walked(points[:1], store=store).keys) == 1
    assert store.failures() == {}


def test_two_sweeps_at_once_share_the_work(store, log):
    settings, computed = log
    points, fixed = grid(seed=range(12)), settings | {"seconds": 0.02}
    with ThreadPoolExecutor(2) as pool:
        reports = [one.result() for one in [pool.submit(walked, points, store=store, fixed=fixed) for _ in range(2)]]
    assert len(computed()) == len(set(computed())) == 12
    assert all(len(report.keys) == 12 for report in reports)
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".nc"] * 12


def test_a_claim_is_held_by_one_and_ends_with_its_process(store):
    code = (
        "import sys, os; from linfb.experiments import Store\n"
        "with Store(sys.argv[1]).claimed('k') as mine: print(mine, flush=True); sys.stdin.read(1); os._exit(9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "True\n"
        with store.claimed("k") as mine:
            assert not mine
        holder.stdin.write("x")
        holder.stdin.flush()
        assert holder.wait() == 9
    with store.claimed("k") as mine:
        assert mine
        with store.claimed("k") as again, store.claimed("l") as other:
            assert (again, other) == (False, True)


def test_workers_that_write_elsewhere_are_found_out(store, tmp_path, monkeypatch):
    elsewhere = Store(tmp_path / "elsewhere")
    perform = sweeps_module.perform
    monkeypatch.setattr(sweeps_module, "perform", lambda task: perform(replace(task, store=elsewhere)))
    with pytest.raises(RuntimeError, match="all workers and this process see"):
        walked(store=store)


# Several runs as one task


def test_runs_together_are_what_they_are_alone(tmp_path):
    alone = contents(walked(store=tmp_path / "alone").store)
    report = walked(store=tmp_path / "together", together=4)
    assert same(contents(report.store), alone)
    assert {report.store.record(key)["provenance"]["together"] for key in report.keys} == {3}


def test_one_that_fails_among_others_is_recorded_alone(store):
    report = walked([{"seed": 0}, {"seed": 1, "trouble": "error"}, {"seed": 2}], store=store, together=3)
    assert (len(report.computed), len(report.failed)) == (2, 1)
    (failure,) = store.failures().values()
    assert (failure["seed"], failure["error"]["message"]) == (1, "alone among others")


def test_runs_that_fail_together_are_tried_alone(store):
    report = walked(grid(kind=["odd"], seed=range(3)), store=store, together=3)
    assert len(report.computed) == 3
    assert {store.record(key)["provenance"]["together"] for key in report.keys} == {1}


def test_training_together_is_training_alone_to_rounding(tmp_path):
    small = {"epochs": 1, "hidden": [12], "batch_size": 64, "learning_rate": 3e-3, "dtype": "float64"}
    points = grid(rule=["bp", "low-rank"], rank=[1, 2], seed=range(2))
    train = experiment_named("train")
    reports = [
        sweep(train, points, tmp_path / str(n), fixed=small, together=n, progress=False) for n in (1, 6)
    ]  # fmt: skip
    alone, together = (contents(report.store) for report in reports)
    assert alone.keys() == together.keys()
    assert len(alone) == 6
    for key in alone:
        assert reports[1].store.record(key)["provenance"]["together"] == 6
        assert alone[key].attrs == together[key].attrs
        xr.testing.assert_allclose(alone[key], together[key], rtol=1e-9, atol=1e-12)  # float64, one epoch of rounding
    with pytest.raises(AssertionError):
        xr.testing.assert_allclose(*[alone[key] for key in reports[0].keys[:2]], rtol=1e-9, atol=1e-12)


def test_simulations_are_what_simulate_gives(tmp_path):
    import linfb
    from linfb.rules import low_rank

    fixed = {"t_max": 4.0, "n_times": 5, "method": "euler", "step_size": 0.02, "weight_decay": 1e-3}
    simulate = experiment_named("simulate")
    alone = sweep(simulate, grid(rank=[1, 2], seed=range(2)), tmp_path / "a", fixed=fixed, progress=False)
    together = sweep(
        simulate, grid(rank=[1, 2], seed=range(2)), tmp_path / "b", fixed=fixed, progress=False, together=9
    )
    task = linfb.low_rank_teacher(16, 8, [4.0, 2.0, 1.0])
    expected = linfb.simulate(
        task, linfb.LinearNetwork((16, 12, 8)), low_rank(1), np.linspace(0, 4, 5), seeds=range(2), ranks=[1, 2],
        weight_decay=1e-3, method=linfb.linear.solvers.Euler(0.02),
    )  # fmt: skip
    for report in (alone, together):
        found = joined(report.store, report.keys)
        assert found.loss.dims == ("rank", "seed", "time")
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-10)  # float64, 200 steps
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(found.loss.isel(rank=[1, 0]), expected.loss, rtol=1e-10)


@pytest.mark.parametrize("name", ["train", "simulate"])
def test_refusals_of_the_ready_experiments_name_the_field(name):
    bad = [("rule", "magic"), ("rank", 0), ("rank", "ten"), ("reader", "ear"), ("reader", "oja:colour=red")]
    bad += {
        "train": [("epochs", 0), ("learning_rate", 0.0), ("data", "faces"), ("model", "cnn"), ("observe", ["x"]),
                  ("schedule", "slow"), ("augment", ["paint"]), ("optimizer", "magic"), ("norm", "x")],
        "simulate": [("t_max", 0.0), ("n_times", 1), ("method", "leap"), ("step_size", 0.1), ("start", "end"),
                     ("observe", ["x"]), ("singular_values", [-1.0])],
    }[name]  # fmt: skip
    experiment = experiment_named(name)
    for field, value in bad:
        with pytest.raises(ValueError, match=field):
            runs_of(experiment, [{field: value}])


# What a store holds


def test_results_join_along_the_fields_that_differ(store):
    report = walked(store=store)
    whole = joined(store, report.keys)
    assert dict(whole.sizes) == {"width": 2, "seed": 3, "time": 20, "which": 2}
    assert whole.end.dims == ("width", "seed")
    for key in report.keys:
        record = store.record(key)
        here = whole.sel(width=record["config"]["width"], seed=record["seed"])
        assert float(here.end) == float(store.read(key)[0].end)
    assert float(whole.end.sel(width=0.5, seed=0)) != float(whole.end.sel(width=2.0, seed=0))
    assert whole.attrs == {"kind": "normal"}
    along = joined(store, report.keys[:3])
    assert along.end.dims == ("seed",)
    ragged = joined(store, report.keys[:4])
    assert ragged.end.dims == ("run",)
    assert ragged.width.values.tolist() == [0.5, 0.5, 0.5, 2.0]
    assert joined(store, report.keys[:1]).sizes["run"] == 1


def test_lengths_words_and_names_that_clash_can_be_joined(store):
    report = walked(grid(steps=[3, 5], sizes=[[1], [2, 3]], trouble=[None]), store=store)
    whole = joined(store, report.keys)
    assert dict(whole.path.sizes) == {"steps": 2, "sizes": 2, "time": 5}
    assert whole.sizes["sizes"] == 2
    assert whole["sizes"].values.tolist() == ["[1]", "[2, 3]"]
    assert int(np.isnan(whole.path.sel(steps=3)).sum()) == 4
    clash = Experiment("clash", 1, {"end": 1}, lambda config, seed: xr.Dataset({"end": float(config["end"])}))
    report = sweep(clash, grid(end=[1, 2]), store, progress=False)
    whole = joined(store, report.keys)
    assert whole["end"].values.tolist() == [1, 2]
    assert whole.end_of_run.values.tolist() == [1.0, 2.0]


def test_results_are_selected_by_conditions(store):
    walked(store=store)
    walked([{"trouble": None, "kind": "other"}], store=store)
    for text, n in {
        "width=0.5": 3, "width!=0.5": 4, "width<=1": 4, "seed>=1": 4, "seed<1": 3, "seed>1": 2, "kind==other": 1,
        "sizes=[1,2]": 7, "trouble=null": 7, "trouble<3": 0, "experiment=walk": 7, "version=2": 0,
    }.items():  # fmt: skip
        assert len(selected(store, text)) == n, text
    assert len(selected(store, "width=0.5", "seed<2")) == 2
    for text in ("width", "width~3", "=3"):
        with pytest.raises(ValueError, match="condition must be"):
            condition(text)
    with pytest.raises(ValueError, match="walk has no field 'depth'"):
        selected(store, "depth=3")


def test_damaged_results_are_left_out_of_lists_and_said(store):
    keys = walked(store=store).keys
    (store.folder / f"{keys[0]}.nc").write_bytes(b"cut")
    said = []
    assert selected(store, say=said.append).keys() == set(keys[1:])
    assert len(said) == 1


def test_numbers_of_a_result_are_a_row(store):
    (key,) = walked([{"seed": 4}], store=store).keys
    (row,) = scalars(store, selected(store))
    expected = run(Walk(), 4)
    assert row["key"] == key
    assert (row["seed"], row["width"], row["end"]) == (4, 1.0, float(expected.end))
    assert row["extremes[which=high]"] == float(expected.extremes.sel(which="high"))
    assert not any(name.startswith("path") for name in row)


# Dask


def test_dask_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"linfb\[dask\]"), dask_cluster():
        pass


def test_dask_gives_what_this_process_gives(tmp_path):
    distributed = pytest.importorskip("distributed")
    alone = contents(walked(store=tmp_path / "alone").store)
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, dask_cluster(cluster.scheduler_address) as executor:
        report = walked(store=tmp_path / "dask", executor=executor)
    assert len(report.computed) == 6
    assert same(contents(report.store), alone)


def test_importing_loads_neither_dask_nor_what_takes_long():
    code = "import sys, linfb.experiments; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"dask", "distributed", "pandas", "xarray", "tqdm", "scipy"} & set(loaded)
    assert "numpy" in loaded


def test_fields_are_documented():
    for config in (Training(), experiment_named("simulate").config):
        words = type(config).__doc__
        assert not [field.name for field in dataclasses.fields(config) if field.name not in words]
