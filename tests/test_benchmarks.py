"""The benchmarks' runner at tiny sizes: valid records with and without peers, which say what is missing or not met."""

import json
import math
import warnings

import numpy as np
import pytest

from tests.benchmarks import groups, measure, networks, page, peers
from tests.benchmarks.__main__ import main

ALL_BUT_LINEAR = [name for name in groups.GROUPS if name != "linear"]  # whose sizes are fixed


def run(out, *only):
    main(["--quick", "--out", str(out), *(word for name in only for word in ("--only", name))])
    return json.loads(out.read_text())


def valid(row):
    assert set(row) >= {"name", "sides", "over", "ratio", "met"}
    measured = [side for side in row["sides"].values() if side != "missing"]
    assert measured
    for side in measured:
        low, high = side["quartiles_ms"]
        assert 0 < low <= side["ms"] <= high
        assert side["rounds"] >= 3
        assert side.get("share_of_ceiling", 0.5) > 0
    if row["ratio"] is None:
        assert row["met"] is None
        assert "missing" in row["sides"].values()
    elif "goal" in row:
        judged = row.get("judged", row["ratio"])
        assert row["met"] is measure.met(judged["value"], row["goal"])
    if "accuracy" in row:
        assert math.isfinite(row["accuracy"]["value"])


@pytest.mark.parametrize("name", ALL_BUT_LINEAR)
def test_without_peers_they_are_reported_as_missing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "_optional", lambda name: None)
    record = run(tmp_path / "a" / "record.json", name)
    assert list(record["groups"]) == [name]
    group = record["groups"][name]
    for row in group["rows"]:
        valid(row)
    text, printed = page.tables(record, "record.svg"), capsys.readouterr().out
    if name == "ensemble":
        assert all("weights of members" in row["accuracy"]["what"] for row in group["rows"])
        assert text.count("weights of members against their single runs") == len(group["rows"])
    peer = {"mlp": "PyTorch", "vgg": "PyTorch", "vit": "PyTorch", "online": "JAX scan"}.get(name)
    assert all(row["name"] in text and row["name"] in printed for row in group["rows"])
    if peer:
        assert all(row["sides"][peer] == "missing" for row in group["rows"])
        assert f"{peer}: missing" in printed
        assert f"{peer}: missing" in text
        assert "not measured" in text
    axes = [curve["axis"] for curve in group.get("curves", ())]
    assert axes == (["width", "depth", "batch", "rank", "ensemble size"] if name == "scaling" else [])
    assert (tmp_path / "a" / "record.svg").exists() is bool(axes)
    assert ("record.svg" in text) is bool(axes)


def test_a_group_takes_the_place_of_its_forerunner(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "_optional", lambda name: None)
    out = tmp_path / "record.json"
    first = run(out, "online", "mlp")
    first["groups"]["online"]["commit"] = first["groups"]["mlp"]["commit"] = "earlier"
    out.write_text(json.dumps(first))
    second = run(out, "mlp")
    assert list(second["groups"]) == ["mlp", "online"]
    assert second["groups"]["online"]["commit"] == "earlier" != second["groups"]["mlp"]["commit"]
    second["machine"]["processor"] = "another"
    out.write_text(json.dumps(second))
    assert list(run(out, "mlp")["groups"]) == ["mlp"]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["mlp", "vgg", "vit"])
def test_both_sides_have_the_same_network(kind):
    pytest.importorskip("torch")
    sizes, rng = networks.QUICK, np.random.default_rng(0)
    for norm in (None, "batch") if kind != "vit" else (None,):
        model = getattr(networks, kind)(sizes, norm)
        x, labels = networks.batch(model, sizes.batch, "float64")
        weights, gradients, _ = networks.gradients(model, groups.BP, x, labels)
        net = peers.placed(getattr(peers, kind)(sizes, norm).double(), weights)
        theirs = peers.gradients(net, x, labels, "float64")
        assert measure.distance(peers.like_theirs(gradients, theirs), theirs) < 1e-10  # rounding of double precision
        other = {path: array + 1e-2 * rng.standard_normal(array.shape) for path, array in weights.items()}
        theirs = peers.gradients(peers.placed(net, other), x, labels, "float64")
        assert measure.distance(peers.like_theirs(gradients, theirs), theirs) > 1e-4


def test_members_of_the_ensemble_are_their_single_runs():
    *widths, n_out = networks.QUICK.member
    model = networks.perceptron(widths[0], widths[1:], n_out, norm="batch")
    x, labels = networks.batch(model, 8, "float64")
    case = model, groups.BP, x, labels, 3, 4
    assert networks.members_apart(*case) < 1e-12  # rounding of double precision in four steps
    assert networks.members_apart(*case, shift=1) > 0.1
    start = networks.gradients(model, groups.BP, x, labels)[0]
    moved = networks.after(networks.stepper(model, groups.BP, x, labels), 4).weights
    assert measure.distance(networks.flatten(moved).values(), list(start.values())) > 1e-4  # by the steps


@pytest.mark.oracle
def test_with_peers_the_goals_are_judged(tmp_path):
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries
        record = run(tmp_path / "record.json", "mlp", "ensemble")
    assert all(row["met"] in (True, False) for row in record["groups"]["mlp"]["rows"])
    for group in record["groups"].values():
        for row in group["rows"]:
            valid(row)


def test_sides_take_turns_and_the_first_one_changes():
    calls = []
    found = measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, least=3)
    assert "".join(calls) == "aabb" + "ba" + "ab" + "ba"
    assert {name: len(durations) for name, durations in found.items()} == {"a": 3, "b": 3}


def test_goals_and_ratios():
    assert measure.met(0.9, {"at_most": 0.9})
    assert not measure.met(0.91, {"at_most": 0.9})
    assert not measure.met(19.0, {"at_least": 20.0})
    assert not measure.met(math.nan, {"at_least": 20.0})
    assert not measure.met(math.nan, {"at_most": 20.0})
    assert measure.ratio(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 2.0]))["value"] == 2.0
    assert measure.difference([1.0, 2.0], [1.0, 4.0]) == 0.5
    big, nothing = np.array([3.0, 4.0]), np.zeros(2)
    assert measure.distance([big * 1.1, nothing + 1e-6], [big, nothing]) == pytest.approx(0.1)
    assert measure.distance([big, nothing + 1.0], [big, nothing]) > 1


def test_pinned_gives_threads_back():
    import gc

    assert gc.isenabled()
    with measure.pinned(1):
        assert not gc.isenabled()
    assert gc.isenabled()
