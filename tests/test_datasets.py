"""Data sets and their splits: shares, determinism, and statistics of the training part alone."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import linfb.datasets
from linfb.datasets import DATASET_NAMES, Dataset, load_dataset
from linfb.datasets.splits import moments, split_indices, standardised

RNG = np.random.default_rng(3)


def example(n=90, n_test=30, shape=(4, 5, 3), n_classes=3):
    """Bytes with a different mean and spread in every channel."""
    images = RNG.normal([60, 120, 200], [5, 20, 10], (n + n_test, *shape)).clip(0, 255).astype(np.uint8)
    labels = np.arange(n + n_test) % n_classes
    return Dataset.from_arrays(images[:n], labels[:n], images[n:], labels[n:])


# Digits -------------------------------------------------------------------------------------------------------------
def test_digits_are_the_default_and_the_split_is_pinned():
    data = load_dataset()
    assert (data.name, data.shape, data.n_classes) == ("digits", (8, 8, 1), 10)
    assert len(data.train_labels) + len(data.test_labels) == 1797
    counts = np.bincount(data.test_labels)
    assert counts.sum() == 360
    share = np.bincount(np.concatenate([data.train_labels, data.test_labels])) * 360 / 1797
    assert np.abs(counts - share).max() <= 1
    assert data.train_images.max() == 16
    assert data.test_labels[:12].tolist() == [3, 8, 7, 0, 3, 5, 8, 5, 6, 4, 5, 2]


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    ours = np.concatenate([data.train_images, data.test_images]).reshape(1797, 64)
    theirs = load_digits().data
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_digits_with_another_content_are_refused(monkeypatch):
    import sklearn.datasets

    changed = sklearn.datasets.load_digits()
    changed.images[0, 0, 0] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: changed)
    with pytest.raises(ValueError, match="digits: checksum"):
        load_dataset("digits")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name must be one of 'digits', .* got 'imagenet'"):
        load_dataset("imagenet")
    assert DATASET_NAMES == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn")


def test_a_root_that_is_no_path_is_named():
    with pytest.raises(TypeError, match="root must be a path, got 3"):
        load_dataset("mnist", root=3)


# Index splits ---------------------------------------------------------------------------------------------------------
@given(
    labels=hnp.arrays(np.int64, st.integers(5, 200), elements=st.integers(0, 4)),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 2**32),
    draw=st.sampled_from(["stratified", "plain"]),
)
def test_split_is_a_partition_and_repeatable(labels, share, seed, draw):
    validation = int(share * len(labels))
    train, held_out = split_indices(labels, validation=validation, seed=seed, draw=draw)
    assert len(held_out) == validation
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(labels)))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(held_out) > 0)
    again = split_indices(labels, validation=validation, seed=seed, draw=draw)
    np.testing.assert_array_equal(train, again[0])
    np.testing.assert_array_equal(held_out, again[1])


def shares_kept(labels, rows):
    counts = np.bincount(labels[rows], minlength=10)
    share = np.bincount(labels, minlength=10) * len(rows) / len(labels)
    assert np.abs(counts - share).max() <= 1


@given(validation=st.integers(0, 500), train=st.integers(1, 400), seed=st.integers(0, 100))
def test_stratified_split_keeps_the_shares(validation, train, seed):
    labels = np.repeat(np.arange(10), 100)
    parts = split_indices(labels, validation=validation, train=train, seed=seed)
    shares_kept(labels, parts[1])
    counts = np.bincount(labels[parts[0]], minlength=10)
    assert counts.max() - counts.min() <= 2  # a difference of two prefixes


def test_plain_split_does_not_keep_the_shares():
    labels = np.repeat(np.arange(10), 100)
    kept = 0
    for seed in range(20):
        rows = split_indices(labels, validation=500, seed=seed, draw="plain")[1]
        try:
            shares_kept(labels, rows)
        except AssertionError:
            continue
        kept += 1
    assert kept == 0  # all ten counts within one of 50: probability below 1e-4 in each draw


def test_seeds_differ_and_validation_does_not_depend_on_train():
    labels = np.arange(300) % 3
    first = split_indices(labels, validation=60, seed=0)[1]
    assert not np.array_equal(first, split_indices(labels, validation=60, seed=1)[1])
    for train in (30, 0.5, None):
        chosen, held_out = split_indices(labels, validation=60, train=train, seed=0)
        np.testing.assert_array_equal(held_out, first)
        assert len(chosen) == {30: 30, 0.5: 150, None: 240}[train]
        assert np.intersect1d(chosen, held_out).size == 0


def test_plain_split_draws_every_row_equally_often():
    draws = [split_indices(np.zeros(50, int), validation=10, seed=seed, draw="plain")[1] for seed in range(400)]
    counts = np.bincount(np.concatenate(draws), minlength=50)
    z = (counts - 80) / np.sqrt(400 * 0.2 * 0.8)
    assert np.abs(z).max() < 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"validation": -1}, ValueError, "validation must be >= 0"),
        ({"validation": 91}, ValueError, "validation must be <= 90"),
        ({"validation": 90}, ValueError, "validation=90 and train=0 rows"),
        ({"validation": 60, "train": 31}, ValueError, "validation=60 and train=31 rows asked for, but there are 90"),
        ({"validation": 1.5}, ValueError, "validation must be finite and .*< 1.0"),
        ({"validation": float("nan")}, ValueError, "validation must be finite"),
        ({"validation": "many"}, TypeError, "validation must be an integer"),
        ({"validation": True}, TypeError, "validation must be an integer"),
        ({"train": 0}, ValueError, "train must be >= 1"),
        ({"seed": -1}, ValueError, "seed must be >= 0"),
        ({"draw": "bootstrap"}, ValueError, "draw must be one of"),
        ({"standardise": "batch"}, ValueError, "standardise must be one of"),
        ({"layout": "nchw"}, ValueError, "layout must be one of"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of"),
        ({"dtype": "many"}, ValueError, "dtype must be one of .* got 'many'"),
    ],
)
def test_wrong_arguments_of_splits_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        example().splits(**arguments)


# Standardised inputs ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("standardise", "axes"), [("channel", (0, 1, 2)), ("pixel", 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_inputs_have_mean_0_and_deviation_1(standardise, axes, dtype):
    splits = example().splits(validation=20, standardise=standardise, layout="image", dtype=dtype)
    x, y = splits.train
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.dtype(dtype), (70, 4, 5, 3), np.int64, (70,))
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    wide = x.astype(np.float64)
    np.testing.assert_allclose(wide.mean(axis=axes), 0, atol=tolerance)
    np.testing.assert_allclose(wide.std(axis=axes), 1, atol=tolerance)
    with pytest.raises(AssertionError):  # the other parts have other moments
        np.testing.assert_allclose(splits.validation.x.mean(axis=axes), 0, atol=tolerance)


@pytest.mark.parametrize("standardise", ["channel", "pixel", "none"])
def test_statistics_are_those_of_the_training_part_alone(standardise):
    data = example()
    splits = data.splits(validation=20, standardise=standardise, dtype="float64")
    train = data.train_images[splits.train_indices].astype(float)
    axes = {"channel": (0, 1, 2), "pixel": 0}.get(standardise)
    mean, std = (train.mean(axis=axes), train.std(axis=axes)) if standardise != "none" else (0.0, 1.0)
    parts = ((splits.train, train), (splits.validation, data.train_images[splits.validation_indices]))
    for samples, images in (*parts, (splits.test, data.test_images)):
        np.testing.assert_allclose(samples.x, ((images - mean) / std).reshape(len(images), -1), rtol=0, atol=1e-11)
    if standardise != "none":
        everything = data.train_images.mean(axis=axes)  # the statistics a leak would use
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(splits.mean, everything, rtol=0, atol=1e-11)


@given(seed=st.integers(0, 1000))
def test_other_parts_do_not_leak_into_training(seed):
    data = example()
    before = data.splits(validation=20, seed=seed)
    images = data.train_images.copy()
    images[before.validation_indices] = 255
    changed = Dataset.from_arrays(images, data.train_labels, 255 - data.test_images, data.test_labels)
    after = changed.splits(validation=20, seed=seed)
    np.testing.assert_array_equal(after.train.x, before.train.x, strict=True)
    assert not np.array_equal(after.validation.x, before.validation.x)
    images[before.train_indices[0]] = 255
    moved = Dataset.from_arrays(images, data.train_labels, data.test_images, data.test_labels)
    assert not np.array_equal(moved.splits(validation=20, seed=seed).test.x, before.test.x)


def test_constant_pixels_are_switched_off():
    images = RNG.integers(0, 256, (40, 6)).astype(float)
    images[:, 2] = 7.0
    test = images[:5].copy()
    test[:, 2] = 200.0
    data = Dataset.from_arrays(images, np.arange(40) % 2, test, [0, 1, 0, 1, 0])
    splits = data.splits(validation=0, standardise="pixel")
    for samples in (splits.train, splits.test):
        assert np.all(samples.x[:, 2] == 0)
        assert np.all(np.isfinite(samples.x))
        assert np.all(samples.x[:, 3].std() > 0)


def test_moments_are_accurate_far_from_zero_and_over_many_chunks():
    values = RNG.normal(1e6, 1.0, (1000, 3))
    mean, std = moments(values, np.arange(1000), "channel")
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(std, values.std(axis=0), rtol=1e-9)  # E[x^2] - E[x]^2 would lose twelve digits


def test_layouts_hold_the_same_numbers():
    data = example()
    flat, image = data.splits(), data.splits(layout="image")
    assert flat.shape == (60,)
    assert image.shape == data.shape == (4, 5, 3)
    np.testing.assert_array_equal(flat.test.x, image.test.x.reshape(30, -1))
    assert flat.n_classes == data.n_classes == 3


def test_no_validation_gives_an_empty_part():
    splits = example().splits(validation=0)
    assert splits.validation.x.shape == (0, 60)
    assert splits.validation.y.shape == (0,)
    assert len(splits.train.y) == 90


def test_standardised_rows_follow_the_indices():
    images = np.arange(24, dtype=np.uint8).reshape(6, 4)
    got = standardised(images, np.array([5, 0]), np.zeros(4), np.ones(4), layout="flat", dtype="float64")
    np.testing.assert_array_equal(got, images[[5, 0]])


# Grey images and some of the classes ------------------------------------------------------------------------------
def test_grey_is_the_luma_rounded_to_the_nearest_byte():
    pixels = RNG.integers(0, 256, (600, 3, 2, 3), dtype=np.uint8)  # more than one chunk
    pixels[0, 0, 0] = 0, 4, 78  # 2348 + 8892 = 11240 thousandths
    pixels[0, 0, 1] = 100, 50, 150  # 76350 thousandths
    pixels[0, 1, 0] = 0, 0, 250  # 28500: half
    pixels[0, 1, 1] = 255
    data = Dataset.from_arrays(
        pixels, np.arange(600) % 2, pixels[:4], [0, 1, 0, 1], name="colours", provenance={"a": "b"}
    )
    grey = data.grey()
    assert (grey.name, grey.shape, grey.train_images.dtype) == ("colours-grey", (3, 2, 1), np.uint8)
    assert grey.provenance == {"a": "b", "grey": "0.299 R + 0.587 G + 0.114 B"}
    assert grey.train_images[0, :2, :, 0].tolist() == [[11, 76], [29, 255]]
    for place in np.ndindex(600, 3, 2):
        red, green, blue = map(int, pixels[place])
        thousandths = 299 * red + 587 * green + 114 * blue
        assert abs(1000 * int(grey.train_images[place][0]) - thousandths) <= 500
    np.testing.assert_array_equal(grey.test_images, grey.train_images[:4])
    np.testing.assert_array_equal(grey.train_labels, data.train_labels)
    assert not np.array_equal(grey.train_images[..., 0], pixels.mean(axis=-1).round())  # equal weights are another grey


def test_grey_floats_stay_floats_and_grey_images_as_they_are():
    pixels = RNG.uniform(0, 1, (6, 2, 2, 3)).astype(np.float32)
    grey = Dataset.from_arrays(pixels, [0, 1] * 3, pixels, [0, 1] * 3).grey()
    assert grey.train_images.dtype == np.float32
    np.testing.assert_allclose(
        grey.train_images[..., 0], pixels @ np.array([0.299, 0.587, 0.114], np.float32), rtol=1e-6
    )
    assert grey.grey() is grey


@pytest.mark.parametrize("shape", [(5,), (4, 4, 2), (4, 4, 4)])
def test_what_has_no_colours_is_refused(shape):
    with pytest.raises(ValueError, match=r"grey\(\) needs images .* but they have shape"):
        Dataset.from_arrays(np.ones((4, *shape)), [0, 1] * 2, np.ones((2, *shape)), [0, 1]).grey()


def test_first_classes_keep_their_images_and_names():
    data = load_dataset("digits")
    some = data.classes(4)
    assert (some.name, some.class_names, some.n_classes) == ("digits-4-classes", ("0", "1", "2", "3"), 4)
    assert some.provenance == {**data.provenance, "classes": "0, 1, 2, 3"}
    for part in ("train", "test"):
        labels = getattr(data, f"{part}_labels")
        np.testing.assert_array_equal(getattr(some, f"{part}_images"), getattr(data, f"{part}_images")[labels < 4])
        np.testing.assert_array_equal(getattr(some, f"{part}_labels"), labels[labels < 4], strict=True)
    assert some.splits(validation=50).n_classes == 4


def test_chosen_classes_are_relabelled_in_the_order_given():
    data = example()
    some = Dataset.from_arrays(
        data.train_images, data.train_labels, data.test_images, data.test_labels, class_names=["a", "b", "c"]
    ).classes([2, 0])
    assert some.class_names == ("c", "a")
    kept = data.train_labels != 1
    np.testing.assert_array_equal(some.train_images, data.train_images[kept])
    np.testing.assert_array_equal(some.train_labels, np.where(data.train_labels[kept] == 2, 0, 1))
    again = some.classes([1])
    assert again.class_names == ("a",)
    assert again.provenance["classes"] == "2, 0; of these 1"
    np.testing.assert_array_equal(again.train_images, data.train_images[data.train_labels == 0])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (0, ValueError, "labels must be >= 1"),
        (11, ValueError, "labels must be <= 10, got 11"),
        (2.0, TypeError, "labels must be an integer"),
        (True, TypeError, "labels must be an integer"),
        ("cat", TypeError, "labels must be an integer, got 'cat'"),
        ([], ValueError, r"labels must be different classes, at least one, got \[\]"),
        ([1, 1], ValueError, r"labels must be different classes, at least one, got \[1, 1\]"),
        ([0, 10], ValueError, "labels must be <= 9, got 10"),
        ([-1], ValueError, "labels must be >= 0, got -1"),
        (["0"], TypeError, "labels must be an integer"),
    ],
)
def test_wrong_classes_are_named(labels, error, message):
    with pytest.raises(error, match=message):
        load_dataset("digits").classes(labels)


# The user's own arrays --------------------------------------------------------------------------------------------
def test_own_arrays_are_copied_and_read_only():
    images, labels = RNG.integers(0, 256, (6, 4, 4), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2], np.int8)
    data = Dataset.from_arrays(images, labels, images[:3].tolist(), [0, 1, 2], class_names=["a", "b", "c"])
    assert data.shape == (4, 4, 1)
    assert data.train_images.dtype == np.uint8
    assert data.test_images.dtype == np.float64
    before = data.train_images.copy()
    images[:] = 0
    np.testing.assert_array_equal(data.train_images, before)
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0] = 0
    images[:] = 1  # the caller's own array stays writable


def test_dataset_survives_pickling():
    data = example()
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again.train_images, data.train_images)
    assert (again.name, again.class_names, again.provenance) == (data.name, data.class_names, data.provenance)


GOOD = {
    "train_images": np.ones((4, 3)),
    "train_labels": [0, 1, 0, 1],
    "test_images": np.ones((2, 3)),
    "test_labels": [0, 1],
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_images": np.ones((4, 3, 2, 2, 2))}, ValueError, r"train_images has shape \(4, 3, 2, 2, 2\)"),
        ({"train_images": np.ones((0, 3)), "train_labels": []}, ValueError, "train_images has shape"),
        ({"train_images": [[1, 2], [3]]}, TypeError, "train_images must be an array of real numbers"),
        ({"train_images": np.full((4, 3), np.nan)}, ValueError, "train_images .* NaN"),
        ({"test_images": np.array([["a"]])}, TypeError, "test_images must be an array of real numbers"),
        ({"test_images": np.ones((2, 4))}, ValueError, r"test_images has images of shape \(4,\), expected \(3,\)"),
        ({"train_labels": [0, 1]}, ValueError, r"train_labels has shape \(2,\), expected \(4,\): one"),
        ({"train_labels": np.eye(4)}, ValueError, r"train_labels has shape \(4, 4\)"),
        ({"train_labels": [0.0, 1.0, 0.0, 1.0]}, TypeError, "train_labels must be integers"),
        ({"train_labels": [False] * 4}, TypeError, "train_labels must be integers"),
        ({"train_labels": ["a"] * 4}, TypeError, "train_labels must be integers .* np.unique"),
        ({"train_labels": [[0], [1, 0], [0], [1]]}, TypeError, "train_labels must be an array of integers"),
        ({"test_labels": [0, -1]}, ValueError, "test_labels must be classes from 0, got -1 to 0"),
        ({"class_names": ["only one"]}, ValueError, "train_labels must be classes from 0 to 0, got 0 to 1"),
    ],
)
def test_wrong_arrays_are_named(change, error, message):
    Dataset.from_arrays(**GOOD)
    with pytest.raises(error, match=message):
        Dataset.from_arrays(**{**GOOD, **change})


# The package ----------------------------------------------------------------------------------------------------
def test_import_is_light_and_names_are_lazy():
    code = (
        "import sys, linfb.datasets as d; before = set(sys.modules); d.load_dataset; d.Dataset; d.Text; d.RandomCrop; "
        "d.AutoAugment(); heavy = ('sklearn', 'pooch', 'scipy', 'numba', 'requests', 'PIL', 'pydoc_data'); "
        "print([m for m in heavy if m in sys.modules], "
        "'linfb.datasets.load' in before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["[]", "False"]
    assert set(linfb.datasets.__all__) <= set(dir(linfb.datasets))
    assert all(getattr(linfb.datasets, name) is not None for name in linfb.datasets.__all__)
    assert set(linfb.datasets.__all__) == set(linfb.datasets._HOME)
    with pytest.raises(AttributeError, match="nothing"):
        _ = linfb.datasets.nothing
