"""Long trials, run by hand with `make test-slow`: runs killed at random moments, ten thousand bad arguments."""

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import linfb
from linfb import rules

pytestmark = pytest.mark.slow

TRAIN = [sys.executable, "-m", "linfb", "train", "--data", "digits", "--rule", "low-rank", "--rank", "5", "--quiet"]
NETWORKS = {
    "mlp": ["--hidden", "64,64", "--epochs", "12", "--batch-size", "16", "--learning-rate", "3e-3"],
    "vgg": [
        "--model", "vgg:dense=16,dropout=0.4", "--augment", "crop:padding=1", "--epochs", "2", "--batch-size", "16",
        "--checkpoint-seconds", "0", "--threads", "2",
    ],
}  # fmt: skip


def final_state(folder):
    return load_file(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("network", NETWORKS)
def test_training_killed_at_random_moments_ends_with_the_same_bits(tmp_path, network):
    train, begin = [*TRAIN, *NETWORKS[network]], time.perf_counter()
    subprocess.run([*train, "--checkpoint", str(tmp_path / "whole")], check=True, capture_output=True)
    duration = time.perf_counter() - begin
    whole = final_state(tmp_path / "whole")
    moments, cut_short = random.Random(0), 0
    for trial in range(20):
        folder = tmp_path / f"killed{trial}"
        process = subprocess.Popen(
            [*train, "--checkpoint", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moments.uniform(0.1, 0.95) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            cut_short += 1
        subprocess.run([*train, "--checkpoint", str(folder)], check=True, capture_output=True)
        resumed = final_state(folder)
        assert resumed.keys() == whole.keys()
        for name, array in whole.items():
            np.testing.assert_array_equal(resumed[name], array)
    assert cut_short >= 10
    print(json.dumps({"trials": 20, "killed": cut_short}))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.lists(st.one_of(st.floats(max_value=5.0), st.integers(max_value=5), st.none(), st.text(max_size=2)), max_size=4),
    st.complex_numbers(), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.just(object()),
    st.just(np.full((2, 2), np.nan)),
)  # fmt: skip
ARGUMENTS = ("task", "network", "rule", "times", "seeds", "ranks", "weight_decay", "method", "observe", "device")


@settings(max_examples=10_000)
@given(name=st.sampled_from(ARGUMENTS), junk=JUNK)
def test_ten_thousand_bad_arguments_are_refused_by_name_or_work(name, junk):
    call = {
        "task": linfb.low_rank_teacher(4, 3, [2.0, 1.0]), "network": linfb.LinearNetwork((4, 3, 3)),
        "rule": rules.low_rank(2), "times": [0.0, 0.1], "method": "euler",
    } | {name: junk}  # fmt: skip
    try:
        linfb.simulate(**call)
    except (TypeError, ValueError) as error:
        refusal = str(error)
    except linfb.DivergenceError as error:  # a weight decay beyond the step size is a good argument with a bad end
        refusal = str(error) if name == "weight_decay" else ""
        assert "step size" in refusal
        return
    else:
        return
    assert name in refusal
