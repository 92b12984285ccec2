"""Long trials of sweeps, run with `make test-slow`: killed processes, full disks, dying workers and clients."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

import linfb
from linfb.experiments import DamagedResult, Store, grid, sweep
from tests import sweep_cases
from tests.sweep_cases import walk

pytestmark = pytest.mark.slow

ROOT = Path(linfb.__file__).parents[1]
HERE = os.environ | {"PYTHONPATH": str(ROOT)}
LINFB = [sys.executable, "-m", "linfb"]
STARTER = """
import sys
from linfb.experiments import grid, sweep
from tests.sweep_cases import walk
print("ready", flush=True)
sweep(walk, grid(seed=range({n})), {store!r}, fixed={fixed!r}, progress=False)
"""


def start(*command, **options):
    return subprocess.Popen(command, env=HERE, cwd=ROOT, **options)


def python(n, store, fixed):
    """Return a process that sweeps, and is about to begin."""
    code = STARTER.format(n=n, store=str(store), fixed=fixed)
    process = start(sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def contents(store):
    """Return the data of all results by key; raises for one that is damaged."""
    return {key: store.read(key)[0] for key in store.keys()}  # noqa: SIM118


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(ours[key].identical(theirs[key]) for key in ours)


def in_process(folder, n, **fixed):
    """Return the results of the sweep as this process computes them."""
    return contents(sweep(walk, grid(seed=range(n)), folder, fixed=fixed, progress=False).store)


def computed(log):
    """Return how often each seed was computed."""
    seeds = [int(line.split()[2]) for line in Path(log).read_text().splitlines()]
    return {seed: seeds.count(seed) for seed in seeds}


def test_a_hundred_kills_at_random_moments_lose_nothing(tmp_path):
    n, steps = 30, 200_000  # files of three megabytes, so that kills fall into writing too
    expected = in_process(tmp_path / "whole", n, steps=steps)
    context, moments = get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["tests.sweep_warm"])
    store, before, kills, unfinished, stores = Store(tmp_path / "store0"), {}, 0, 0, 1
    while kills < 100:
        process = context.Process(target=sweep_cases.sweep_seeds, args=(n, store.folder, {"steps": steps}))
        process.start()
        process.join(moments.uniform(0.0, 0.5))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        kept = contents(store)
        assert before.keys() <= kept.keys()
        assert all(kept[key].identical(expected[key]) for key in kept)
        unfinished += len(parts := list(store.folder.glob(".*.part")))
        for part in parts:
            part.unlink()
        before = kept
        if len(kept) == n:  # all done: once more from the beginning
            store, before, stores = Store(tmp_path / f"store{stores}"), {}, stores + 1
    sweep(walk, grid(seed=range(n)), store, fixed={"steps": steps}, progress=False)
    assert same(contents(store), expected)
    wrong = expected | dict(zip(list(expected)[:2], reversed(list(expected.values())[:2]), strict=True))
    assert not same(contents(store), wrong)
    print(json.dumps({"kills": kills, "sweeps finished": stores - 1, "unfinished files met": unfinished}))
    assert unfinished > 0


def test_killed_workers_of_a_pool_lose_nothing(tmp_path):
    expected, store, moments = in_process(tmp_path / "whole", 60), Store(tmp_path / "store"), random.Random(1)
    command = [
        *LINFB, "sweep", "tests.sweep_cases:walk", "--store", str(store.folder), "--grid", "seed=0..59", "--jobs", "2",
        "--quiet",
    ]  # fmt: skip
    for _ in range(5):
        process = start(*command, "--set", "seconds=0.05", stderr=subprocess.PIPE, start_new_session=True)
        children = []
        while process.poll() is None and len(children) < 2:
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            children = [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            time.sleep(0.02)
        time.sleep(moments.uniform(1.0, 4.0))
        for pid in children[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        errors = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 0 or "lost with its task" in errors, errors
        assert all(kept.identical(expected[key]) for key, kept in contents(store).items())
    assert start(*command).wait() == 0
    assert same(contents(store), expected)


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of one megabyte, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here; see the trial with a limit on the size of files")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, small_disk):
    steps = ["--set", "steps=6000"]  # results of 54 kB
    expected = in_process(tmp_path / "whole", 40, steps=6000)
    store = Store(small_disk / "store")
    command = [*LINFB, "sweep", "tests.sweep_cases:walk", "--store", str(store.folder), "--grid", "seed=0..39"]
    for jobs in ([], ["--jobs", "2"]):
        full = subprocess.run([*command, *steps, *jobs], env=HERE, cwd=ROOT, capture_output=True, text=True)
        assert full.returncode == 1
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        kept = contents(store)
        assert 5 < len(kept) < 40
        assert all(one.identical(expected[key]) for key, one in kept.items())
        assert not list(store.folder.glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert subprocess.run([*command, *steps], env=HERE, cwd=ROOT, capture_output=True).returncode == 0
    assert same(contents(store), expected)


def test_a_limit_on_the_size_of_files_is_told_and_loses_nothing(tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = [*LINFB, "sweep", "tests.sweep_cases:walk", "--store", str(tmp_path), "--grid", "steps=20,6000"]
    full = subprocess.run(command, env=HERE, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 1
    assert "File too large" in full.stderr
    assert len(contents(Store(tmp_path))) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".nc"]


def test_two_sweeps_at_once_do_every_run_once(tmp_path):
    n, fixed = 150, {"log": str(tmp_path / "log"), "seconds": 0.005}
    expected = in_process(tmp_path / "whole", n)
    store = Store(tmp_path / "store")
    for process in [python(n, store.folder, fixed) for _ in range(2)]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert computed(fixed["log"]) == dict.fromkeys(range(n), 1)
    assert len({line.split()[0] for line in Path(fixed["log"]).read_text().splitlines()}) == 2
    assert same(contents(store), expected)


def test_files_damaged_anywhere_are_never_read_and_computed_anew(tmp_path):
    n, places = 100, random.Random(2)
    expected = in_process(tmp_path / "store", n)
    store = Store(tmp_path / "store")
    for key in list(expected):
        path = store.folder / f"{key}.nc"
        content = bytearray(path.read_bytes())
        place = places.randrange(len(content))
        if places.random() < 0.5:
            content[place] ^= 1 << places.randrange(8)
        else:
            del content[place:]
        path.write_bytes(content)
        with pytest.raises(DamagedResult):
            store.read(key)
    report = sweep(walk, grid(seed=range(n)), store, progress=False)
    assert len(report.damaged) == len(report.computed) == n
    assert same(contents(store), expected)
    assert len(list((store.folder / "damaged").iterdir())) == n


# Dask: scheduler, workers and client are processes of their own


@pytest.fixture
def cluster(tmp_path):
    """Return a function that starts a worker, and the scheduler's file; all end with the test."""
    pytest.importorskip("distributed")
    file, processes, log = tmp_path / "scheduler.json", [], (tmp_path / "dask.log").open("w")
    quiet = {"stdout": log, "stderr": log}
    dask = [sys.executable, "-m", "dask"]

    def worker():
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path)]
        processes.append(start(*dask, "worker", "--scheduler-file", str(file), *options, **quiet))
        return processes[-1]

    processes.append(
        start(*dask, "scheduler", "--scheduler-file", str(file), "--port", "0", "--no-dashboard",
              "--host", "127.0.0.1", **quiet)
    )  # fmt: skip
    while not file.exists():
        assert processes[0].poll() is None
        time.sleep(0.05)
    yield file, worker
    for process in processes:
        process.kill()
        process.wait()
    log.close()


def test_dask_survives_a_killed_worker_and_then_a_killed_client(tmp_path, cluster):
    n, (file, worker) = 80, cluster
    expected = in_process(tmp_path / "whole", n)
    log, store = tmp_path / "log", Store(tmp_path / "store")
    command = [
        *LINFB, "sweep", "tests.sweep_cases:walk", "--store", str(store.folder), "--grid", f"seed=0..{n - 1}",
        "--scheduler", str(file), "--set", f"log={log}", "--quiet",
    ]  # fmt: skip
    workers = [worker(), worker()]

    def reach(results, client):
        deadline = time.monotonic() + 120
        while len(store.keys()) < results:
            assert client.poll() is None, client.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    client = start(*command, "--set", "seconds=0.2", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    reach(n // 8, client)
    time.sleep(0.1)  # in the middle of a run
    workers[0].kill()
    workers[0].wait()
    after_worker = len(store.keys())
    reach(n // 2, client)  # the other worker goes on
    client.kill()
    client.communicate()
    after_client = len(store.keys())
    assert n // 2 <= after_client < n
    time.sleep(1.5)
    left = store.keys()
    assert len(left) <= after_client + 2  # a dead client's tasks are given up, but for what was in progress
    resumed = subprocess.run(command, env=HERE, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{n} runs, {len(left)} found, {n - len(left)} computed" in resumed.stdout
    assert same(contents(store), expected)
    shifted = dict(zip(expected, [*list(expected.values())[1:], expected[next(iter(expected))]], strict=True))
    assert not same(contents(store), shifted)
    counts = computed(log)
    assert counts.keys() == set(range(n))
    twice = [seed for seed, count in counts.items() if count > 1]
    assert len(twice) <= 1  # what the killed worker had in progress
    assert sorted({path.suffix for path in store.folder.iterdir()}) in ([".nc"], [".lock", ".nc"])
    print(json.dumps({"runs": n, "when the worker died": after_worker, "when the client died": after_client,
                      "found by the next": len(left), "begun twice": len(twice)}))  # fmt: skip


def test_dask_started_here_gives_what_this_process_gives(tmp_path):
    pytest.importorskip("distributed")
    expected = in_process(tmp_path / "whole", 10)
    store = Store(tmp_path / "store")
    command = [
        *LINFB, "sweep", "tests.sweep_cases:walk", "--store", str(store.folder), "--grid", "seed=0..9", "--dask",
        "--jobs", "2", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, env=HERE, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert same(contents(store), expected)
