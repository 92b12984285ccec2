"""Augmentation against plain loops for given draws, its distributions, its devices, and AutoAugment's operations."""

import math
import time

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.backend import Key, to_numpy
from linfb.datasets import (
    AutoAugment,
    Cutout,
    Dataset,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    Text,
    augmented,
)
from linfb.datasets.autoaugment import OPERATIONS, POLICIES, _changed

RNG = np.random.default_rng(11)
ON_DEVICE = [
    RandomCrop(2),
    RandomCrop(3, fill=7.5),
    RandomCrop(2, fill="mean"),
    RandomFlip(),
    RandomRotation(40.0),
    RandomRotation(180.0, fill="mean"),
    Cutout(3),
    Cutout(4, fill=9.0),
]
EVERY = [*ON_DEVICE, AutoAugment(), AutoAugment("svhn")]
MEAN = np.array([90.0, 110.0, 130.0])


def images(n=6, height=7, width=9, channels=3, dtype="float64", seed=0):
    """Bytes as floats; no two pixels of an image are alike."""
    rng = np.random.default_rng(seed)
    return (
        rng.permuted(np.tile(np.arange(height * width * channels) % 256, (n, 1)), axis=1)
        .reshape(n, height, width, channels)
        .astype(dtype)
    )


class Given:
    """Stands for a key whose uniform numbers are given: by name, or one list for all names."""

    def __init__(self, numbers):
        self.numbers = numbers

    def at(self, name):
        return Given(self.numbers[name])

    def uniform(self, shape, like):
        assert shape == np.shape(self.numbers)
        return np.asarray(self.numbers, like.dtype)


def near(n, number):
    """A uniform draw that stands for `number` of n."""
    return (number + 0.5) / n


# Plain loops ----------------------------------------------------------------------------------------------------------
def pixel(image, row, column, fill):
    height, width, _ = image.shape
    return image[row, column] if 0 <= row < height and 0 <= column < width else fill


def each_pixel(x, source, fill):
    """What images look like whose pixel (i, row, column) comes from source(i, row, column)."""
    result = np.empty_like(x)
    for i, row, column in np.ndindex(x.shape[:3]):
        result[i, row, column] = pixel(x[i], *source(i, row, column), fill)
    return result


@pytest.mark.parametrize("fill", [0.0, 200.0, "mean"])
def test_crop_is_a_shift(fill):
    down, right = [0, 1, 2, 3, 4, 2], [4, 0, 2, 2, 3, 1]  # of 5 places each, padding 2
    key = Given({"rows": [near(5, n) for n in down], "columns": [near(5, n) for n in right]})
    x = images()
    blank = MEAN if fill == "mean" else fill
    wanted = each_pixel(x, lambda i, row, column: (row + down[i] - 2, column + right[i] - 2), blank)
    got = RandomCrop(2, fill).augment(x, key, MEAN)
    np.testing.assert_array_equal(got, wanted, strict=True)
    np.testing.assert_array_equal(got[2], x[2])  # the middle one of 5 places
    swapped = each_pixel(x, lambda i, row, column: (row + right[i] - 2, column + down[i] - 2), blank)
    assert not np.array_equal(got, swapped)


def test_crop_is_a_window_of_the_padded_image():
    x = images(n=1)
    padded = np.pad(x[0], ((3, 3), (3, 3), (0, 0)))
    got = RandomCrop(3).augment(x, Given({"rows": [near(7, 5)], "columns": [near(7, 1)]}))
    np.testing.assert_array_equal(got[0], padded[5 : 5 + 7, 1 : 1 + 9])


def test_crop_filled_with_a_mean_image_takes_its_pixel_at_the_place_to_fill():
    x, mean = images(n=2), RNG.uniform(0, 255, (7, 9, 3))
    got = RandomCrop(1, "mean").augment(x, Given({"rows": [0.0, 0.5], "columns": [0.5, 0.99]}), mean)
    np.testing.assert_array_equal(got[0, 0], mean[0])
    np.testing.assert_array_equal(got[0, 1:], x[0, :-1])
    np.testing.assert_array_equal(got[1, :, -1], mean[:, -1])
    np.testing.assert_array_equal(got[1, :, :-1], x[1, :, 1:])


def test_flip_exchanges_left_and_right_of_those_below_p():
    x = images(n=4)
    got = RandomFlip(0.3).augment(x, Given([0.29, 0.3, 0.0, 0.99]))
    np.testing.assert_array_equal(got[[0, 2]], x[[0, 2]][:, :, ::-1])
    np.testing.assert_array_equal(got[[1, 3]], x[[1, 3]])
    assert not np.array_equal(got[0], x[0, ::-1])  # up and down it is not


def test_flip_leaves_a_symmetric_image_and_twice_is_once_nothing():
    x = images(n=3)
    both = x + x[:, :, ::-1]
    np.testing.assert_array_equal(RandomFlip(1.0).augment(both, Key(0)), both)
    once = RandomFlip(1.0).augment(x, Key(0))
    assert not np.array_equal(once, x)
    np.testing.assert_array_equal(RandomFlip(1.0).augment(once, Key(0)), x)
    np.testing.assert_array_equal(RandomFlip(0.0).augment(x, Key(0)), x)


@pytest.mark.parametrize("size", [(8, 8), (7, 7)])
def test_rotations_by_right_angles_are_exact(size):
    x = images(4, *size)
    draws = [0.5, 1.0, 0.75, 0.25]  # angles 0, 180, 90, -90 of 180
    got = RandomRotation(180.0).augment(x, Given(draws))
    for i, turns in enumerate((0, 2, 1, -1)):
        np.testing.assert_array_equal(got[i], np.rot90(x[i], turns))
    assert not np.array_equal(got[2], np.rot90(x[2], -1))


@given(angle=st.floats(-60, 60).filter(lambda angle: abs(angle) > 1e-3), height=st.integers(2, 9))
def test_rotation_takes_the_nearest_pixel(angle, height):
    x, a = images(n=1, height=height), math.radians(angle)
    middle = (height - 1) / 2, 4.0
    exact, near_a_tie = {}, False
    for row, column in np.ndindex(height, 9):
        down, right = row - middle[0], column - middle[1]
        place = (
            middle[0] + right * math.sin(a) + down * math.cos(a),
            middle[1] + right * math.cos(a) - down * math.sin(a),
        )
        near_a_tie |= any(abs(p + 0.5 - round(p + 0.5)) < 1e-9 for p in place)
        exact[row, column] = tuple(math.floor(p + 0.5) for p in place)
    got = RandomRotation(60.0, fill=3.0).augment(x, Given([(angle / 60 + 1) / 2]))
    if not near_a_tie:
        np.testing.assert_array_equal(got, each_pixel(x, lambda i, row, column: exact[row, column], 3.0))


def test_rotation_agrees_with_pillow_and_turns_the_same_way():
    from PIL import Image

    x = images(n=9, height=16, width=16)
    draws = [0.02, 0.1, 0.23, 0.31, 0.4, 0.63, 0.77, 0.9, 0.99]
    got = RandomRotation(45.0).augment(x, Given(draws))
    for image, result, draw in zip(x, got, draws, strict=True):
        angle = 45 * (2 * draw - 1)
        rotated = np.asarray(Image.fromarray(image.astype(np.uint8)).rotate(angle))
        np.testing.assert_array_equal(result, rotated)
        back = np.asarray(Image.fromarray(image.astype(np.uint8)).rotate(-angle))
        assert not np.array_equal(result, back)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 30])
@pytest.mark.parametrize("fill", [255.0, "mean"])
def test_cutout_blanks_a_square_that_the_border_cuts(size, fill):
    x = images()
    centres = [(0, 0), (6, 8), (3, 4), (0, 5), (6, 0), (2, 8)]
    rows, columns = ([near(n, centre[k]) for centre in centres] for k, n in ((0, 7), (1, 9)))
    got = Cutout(size, fill).augment(x, Given({"rows": rows, "columns": columns}), MEAN)
    wanted = x.copy()
    for i, row, column in np.ndindex(x.shape[:3]):
        offsets = row - centres[i][0] + size // 2, column - centres[i][1] + size // 2
        if all(0 <= offset < size for offset in offsets):
            wanted[i, row, column] = MEAN if fill == "mean" else fill
    np.testing.assert_array_equal(got, wanted, strict=True)
    assert not np.array_equal(got, x)
    if size < 30:
        assert (got[2] != x[2]).any(axis=-1).sum() == size**2  # in the middle of the image nothing is cut off


# Draws --------------------------------------------------------------------------------------------------------------
def test_shifts_and_flips_have_their_distributions():
    n = 20_000
    x = np.zeros((n, 5, 5, 1), np.float32)
    x[:, 2, 2] = 1  # where this pixel goes tells the shift
    moved = RandomCrop(2).augment(x, Key(3))
    counts = moved.sum(axis=(0, 3)).astype(float)
    assert counts.sum() == n
    z = (counts - n / 25) / math.sqrt(n * (1 / 25) * (24 / 25))
    assert np.abs(z).max() < 4
    assert abs((z**2).sum() - 24) / math.sqrt(48) < 4  # chi-square with 24 degrees of freedom

    x[:, 2, 4] = 2
    for p in (0.5, 0.1):
        flipped = RandomFlip(p).augment(x, Key(4))[:, 2, 0, 0] == 2
        z = (flipped.mean() - p) / math.sqrt(p * (1 - p) / n)
        assert abs(z) < 4
    assert abs(flipped.mean() - 0.5) / math.sqrt(0.25 / n) > 4  # p = 0.1 is not 0.5


def test_cutout_centres_are_uniform_over_pixels():
    n = 20_000
    blank = Cutout(1, fill=1.0).augment(np.zeros((n, 4, 6, 1), np.float32), Key(0))
    z = (blank.sum(axis=(0, 3)) - n / 24) / math.sqrt(n * (1 / 24) * (23 / 24))
    assert blank.sum() == n
    assert np.abs(z).max() < 4


def test_autoaugment_draws_all_pairs_equally_often(monkeypatch):
    seen = []
    monkeypatch.setattr("linfb.datasets.autoaugment._changed", lambda *rest: seen.append(rest) or rest[1])
    n = 5000
    AutoAugment().augment(np.zeros((n, 2, 2, 1)), Key(0))
    pairs, _, chances, directions = zip(*seen, strict=True)
    counts = np.array([pairs.count(pair) for pair in POLICIES["cifar10"]])  # all of them are different
    assert counts.sum() == n
    assert np.abs(counts - n / 25).max() / math.sqrt(n / 25) < 4
    assert abs(np.mean(chances) - 0.5) / math.sqrt(1 / 12 / (2 * n)) < 4
    assert abs(np.mean(directions)) * math.sqrt(2 * n) < 4
    assert set(np.ravel(directions)) == {-1, 1}


@pytest.mark.parametrize("augmentation", EVERY, ids=repr)
def test_same_key_same_images_and_another_key_others(augmentation):
    x = images(n=20)
    before = x.copy()
    once = augmentation.augment(x, Key(5).at("step", 1), MEAN)
    np.testing.assert_array_equal(x, before)  # the argument stays as it is
    np.testing.assert_array_equal(augmentation.augment(x, Key(5).at("step", 1), MEAN), once)
    assert not np.array_equal(augmentation.augment(x, Key(5).at("step", 2), MEAN), once)
    assert not np.array_equal(augmentation.augment(x, Key(6).at("step", 1), MEAN), once)
    assert not np.array_equal(once, x)


@pytest.mark.parametrize("augmentation", ON_DEVICE, ids=repr)
def test_an_image_takes_its_row_of_the_draws_and_nothing_from_the_others(augmentation):
    x = images(n=12)
    x[7:] = x[3]
    whole = augmentation.augment(x, Key(1), MEAN)
    np.testing.assert_array_equal(augmentation.augment(x[:5], Key(1), MEAN), whole[:5])
    assert len({image.tobytes() for image in whole[7:]}) > 1  # equal images meet different draws


# Libraries, precision, layout -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("augmentation", EVERY, ids=repr)
def test_strict_arrays_give_the_same_images(augmentation, dtype):
    x, mean = images(dtype=dtype), MEAN.astype(dtype)
    ours = augmentation.augment(x, Key(2), mean)
    theirs = augmentation.augment(array_api_strict.asarray(x), Key(2), array_api_strict.asarray(mean))
    assert isinstance(theirs, type(array_api_strict.asarray(x)))
    assert ours.dtype == to_numpy(theirs).dtype == dtype
    np.testing.assert_array_equal(to_numpy(theirs), ours, strict=True)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", EVERY, ids=repr)
def test_images_on_a_gpu_stay_there_and_are_the_same(augmentation):
    import cupy

    x = images(dtype="float64")
    ours = augmentation.augment(x, Key(2), MEAN)
    theirs = augmentation.augment(cupy.asarray(x), Key(2), cupy.asarray(MEAN))
    assert isinstance(theirs, cupy.ndarray)
    # sines may differ in their last place, and with them which of two pixels is the nearer one
    alike = np.mean(to_numpy(theirs) == ours)
    assert alike > 0.99 if isinstance(augmentation, RandomRotation) else alike == 1


def data(standardise="channel", layout="image", dtype="float32", shape=(8, 8, 3)):
    rng = np.random.default_rng(1)
    pixels = rng.normal(120, 50, (60, *shape)).clip(0, 255).astype(np.uint8)
    whole = Dataset.from_arrays(pixels, np.arange(60) % 3, pixels[:6], np.arange(6) % 3)
    return whole, whole.splits(standardise=standardise, layout=layout, dtype=dtype)


@pytest.mark.parametrize("standardise", ["channel", "pixel", "none"])
@pytest.mark.parametrize("layout", ["flat", "image"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_augmented_works_on_pixels_and_keeps_layout_and_precision(standardise, layout, dtype):
    whole, splits = data(standardise, layout, dtype)
    chain, key = (RandomCrop(2), RandomFlip(), Cutout(3), RandomRotation(20.0, fill="mean")), Key(9)
    x = splits.train.x[:20]
    before = x.copy()
    got = augmented(x, splits, chain, key)
    assert (got.shape, got.dtype) == (x.shape, np.dtype(dtype))
    np.testing.assert_array_equal(x, before)
    pixels = whole.train_images[splits.train_indices[:20]].astype(dtype)  # the draws depend on the precision
    mean = np.broadcast_to(splits.mean, (8, 8, 3)).astype(dtype)
    for i, augmentation in enumerate(chain):
        pixels = augmentation.augment(pixels, key.at(i), mean)
    wanted = ((pixels - splits.mean) / splits.std).reshape(x.shape)
    scale = 255 / splits.std.min() * np.finfo(dtype).eps
    np.testing.assert_allclose(got, wanted, rtol=0, atol=8 * scale)
    with pytest.raises(AssertionError):  # the augmentations in another order
        np.testing.assert_allclose(augmented(x, splits, chain[::-1], key), wanted, rtol=0, atol=8 * scale)
    strict = augmented(array_api_strict.asarray(x), splits, chain, key)
    np.testing.assert_allclose(to_numpy(strict), got, rtol=0, atol=8 * scale)


def test_augmented_after_autoaugment_is_made_of_whole_pixel_values():
    whole, splits = data("pixel", "flat", "float64")
    got = augmented(splits.train.x, splits, (AutoAugment(),), Key(0)).reshape(-1, 8, 8, 3) * splits.std + splits.mean
    np.testing.assert_allclose(got, np.rint(got), rtol=0, atol=1e-10)
    unchanged = np.all(np.rint(got) == whole.train_images[splits.train_indices], axis=(1, 2, 3))
    assert 0 < unchanged.sum() < len(got)  # rounding brings back the very bytes of those that no operation met


def test_nothing_to_do_gives_back_the_inputs():
    splits = data()[1]
    x = splits.train.x
    assert augmented(x, splits, (), Key(0)) is x
    nothing = (RandomCrop(0), RandomFlip(0.0), RandomRotation(0.0))
    np.testing.assert_allclose(augmented(x, splits, nothing, Key(0)), x, rtol=0, atol=2e-5)
    assert np.abs(augmented(x, splits, (RandomCrop(1),), Key(0)) - x).max() > 0.1
    for augmentation in nothing:
        np.testing.assert_array_equal(augmentation.augment(images(), Key(0)), images())


def test_pixels_that_never_vary_stay_switched_off():
    pixels = RNG.integers(0, 256, (40, 4, 4, 1))
    pixels[:, 0, 0] = 77
    splits = Dataset.from_arrays(pixels, [0, 1] * 20, pixels, [0, 1] * 20).splits(standardise="pixel")
    got = augmented(splits.train.x, splits, (RandomCrop(2),), Key(0))
    assert np.all(np.isfinite(got))
    assert np.all(got[:, 0] == 0)
    assert np.all(got[:, 1:].std(axis=0) > 0)


def test_empty_batches_stay_empty():
    splits = data()[1]
    got = augmented(splits.train.x[:0], splits, (RandomCrop(), RandomFlip(), Cutout(), AutoAugment()), Key(0))
    assert got.shape == (0, 8, 8, 3)


def test_labels_are_not_touched():
    splits = data()[1]
    before = [getattr(splits, part).y.copy() for part in ("train", "validation", "test")]
    augmented(splits.train.x, splits, (RandomFlip(), AutoAugment()), Key(0))
    for part, labels in zip(("train", "validation", "test"), before, strict=True):
        np.testing.assert_array_equal(getattr(splits, part).y, labels)


def test_splits_know_the_shape_of_an_image_in_either_layout():
    assert data(layout="flat")[1].image_shape == data(layout="image")[1].image_shape == (8, 8, 3)
    assert data(layout="flat")[1].shape == (192,)
    vectors = Dataset.from_arrays(np.eye(10), np.arange(10) % 2, np.eye(10), np.arange(10) % 2).splits()
    assert vectors.image_shape is None
    for splits in (vectors, Text.from_string("some text " * 40, length=10).splits()):
        with pytest.raises(ValueError, match=r"augmentations change images, but .* have shape \(10,\)"):
            augmented(splits.train.x, splits, (RandomFlip(),), Key(0))


def test_inputs_of_another_shape_are_named():
    splits = data()[1]
    with pytest.raises(ValueError, match=r"x has inputs of shape \(192,\), expected \(8, 8, 3\)"):
        augmented(splits.train.x.reshape(-1, 192), splits, (RandomFlip(),), Key(0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomCrop(-1), ValueError, "padding must be >= 0"),
        (lambda: RandomCrop(1.5), TypeError, "padding must be an integer"),
        (lambda: RandomCrop(1, fill="black"), ValueError, "fill must be a number or 'mean', got 'black'"),
        (lambda: RandomCrop(1, fill=float("nan")), ValueError, "fill must be finite"),
        (lambda: RandomCrop(1, fill=None), TypeError, "fill must be a real number"),
        (lambda: RandomFlip(1.1), ValueError, "p must be finite and <= 1.0, got 1.1"),
        (lambda: RandomRotation(-3), ValueError, "degrees must be"),
        (lambda: RandomRotation(181), ValueError, "degrees must be"),
        (lambda: Cutout(0), ValueError, "size must be >= 1"),
        (lambda: Cutout(4, "median"), ValueError, "fill must be"),
        (lambda: AutoAugment("imagenet"), ValueError, "policy must be one of 'cifar10', 'svhn', got 'imagenet'"),
        (lambda: Cutout(4).augment(images(), Key(0)), ValueError, "fill='mean' needs the mean pixel"),
        (lambda: AutoAugment().augment(images(channels=2), Key(0)), ValueError, "1 or 3 channels"),
        (lambda: AutoAugment().augment(np.ones((3, 12)), Key(0)), ValueError, "1 or 3 channels"),
        (lambda: AutoAugment().augment(images() / 255, Key(0)), ValueError, "from 0 to 255, got 0 to 0.7"),
        (lambda: AutoAugment().augment(images() * 2, Key(0)), ValueError, "from 0 to 255, got"),
        (lambda: AutoAugment().augment(images() - 9, Key(0)), ValueError, "from 0 to 255, got -9"),
        (lambda: AutoAugment().augment(images() * np.nan, Key(0)), ValueError, "from 0 to 255, got nan"),
    ],
)
def test_wrong_settings_and_images_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_augmentations_are_values():
    assert RandomCrop(4) == RandomCrop() != RandomCrop(3)
    assert repr((RandomFlip(), Cutout(8))) == "(RandomFlip(p=0.5), Cutout(size=8, fill='mean'))"
    assert len({AutoAugment(), AutoAugment("cifar10"), AutoAugment("svhn")}) == 2


def test_crop_and_flip_of_a_batch_are_quick():
    x, chain = images(128, 32, 32, dtype="float32"), (RandomCrop(4), RandomFlip())
    seconds = []
    for step in range(12):
        start = time.process_time()
        for augmentation in chain:
            x = augmentation.augment(x, Key(step))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.01  # some 2 ms alone on a core; plain loops need seconds


# AutoAugment ----------------------------------------------------------------------------------------------------------
def operated(name, pixels, level, direction=1):
    """One image after one operation that is sure to happen."""
    from linfb.datasets.autoaugment import Step

    return _changed((Step(name, 1.0, level), Step("invert", 0.0, 0)), pixels, np.zeros(2), np.array([direction, 1]))


PIXELS = images(1, 12, 10, 3)[0].astype(np.uint8)


def luma(pixels):
    """Grey values as Pillow has them: weights in units of 2^-16."""
    red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def blended(degenerate, pixels, factor):
    return np.clip(degenerate + factor * (pixels.astype(float) - degenerate), 0, 255)


def test_invert_solarize_posterize_on_every_byte():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    values = np.arange(256)
    np.testing.assert_array_equal(operated("invert", ramp, 0).ravel(), 255 - values)
    np.testing.assert_array_equal(operated("invert", operated("invert", PIXELS, 0), 0), PIXELS)
    for level in range(10):
        threshold = 256 * (9 - level) / 9
        solarized = np.where(values < threshold, values, 255 - values)
        np.testing.assert_array_equal(operated("solarize", ramp, level).ravel(), solarized)
        bits = int(np.linspace(8, 4, 10)[level] + 0.5)
        np.testing.assert_array_equal(operated("posterize", ramp, level).ravel(), values >> (8 - bits) << (8 - bits))
    assert len(set(operated("posterize", ramp, 9).ravel())) == 16


def test_autocontrast_stretches_each_channel_to_the_whole_range():
    pixels = (40 + PIXELS // 2).astype(np.uint8)
    got = operated("autocontrast", pixels, 0)
    low, high = pixels.min(axis=(0, 1)).astype(float), pixels.max(axis=(0, 1))
    np.testing.assert_allclose(got, (pixels - low) * 255 / (high - low), rtol=0, atol=1)
    assert got.min() == 0
    assert got.max() == 255


def test_equalize_makes_the_values_of_a_skewed_image_even():
    skewed = (255 * RNG.uniform(0, 1, (64, 64, 1)) ** 4).astype(np.uint8)
    even = operated("equalize", skewed, 0)
    spread = [np.abs(np.sort(image.ravel()) / 255 - np.linspace(0, 1, 64 * 64)).max() for image in (even, skewed)]
    assert spread[0] < 0.3 < spread[1]  # distance from the uniform distribution; the many zeros stay together
    order = np.argsort(skewed.ravel(), kind="stable")
    assert np.all(np.diff(even.ravel()[order].astype(int)) >= 0)  # the order of values is kept


@pytest.mark.parametrize("level", [0, 3, 9])
@pytest.mark.parametrize("direction", [-1, 1])
def test_enhancements_blend_with_what_they_enhance_against(level, direction):
    factor = 1 + direction * 0.9 * level / 9
    grey = luma(PIXELS)
    against = {
        "brightness": np.zeros(PIXELS.shape),
        "color": np.repeat(grey[..., None], 3, axis=2),
        "contrast": np.full(PIXELS.shape, int(grey.mean() + 0.5)),
    }
    for name, degenerate in against.items():
        got = operated(name, PIXELS, level, direction)
        np.testing.assert_allclose(got, blended(degenerate, PIXELS, factor), rtol=0, atol=1)
        if level == 0:
            np.testing.assert_array_equal(got, PIXELS)
        else:
            assert np.abs(got - blended(degenerate, PIXELS, 2 - factor)).max() > 1  # the other direction


def test_sharpness_blends_with_a_smooth_image():
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    wide = PIXELS.astype(float)
    smooth = sum(kernel[i, j] * wide[i : i + 10, j : j + 8] for i in range(3) for j in range(3))
    for level, direction in ((5, -1), (9, 1)):
        got = operated("sharpness", PIXELS, level, direction)
        wanted = blended(smooth, PIXELS[1:-1, 1:-1], 1 + direction * 0.9 * level / 9)
        np.testing.assert_allclose(got[1:-1, 1:-1], wanted, rtol=0, atol=1.6)  # the smooth image is made of bytes
        np.testing.assert_array_equal(got[0], PIXELS[0])  # which has the border of the image itself


@pytest.mark.parametrize("level", [0, 4, 9])
@pytest.mark.parametrize("direction", [-1, 1])
def test_shifts_shears_and_rotations_move_pixels(level, direction):
    height, width, _ = PIXELS.shape
    shift = {size: direction * int(size * 150 / 331 * level / 9) for size in (height, width)}
    shear = direction * 0.3 * level / 9
    # Pillow samples at the centres of pixels
    source = {
        "translate_x": lambda i, row, column: (row, column + shift[width]),
        "translate_y": lambda i, row, column: (row + shift[height], column),
        "shear_x": lambda i, row, column: (row, math.floor(column + 0.5 + shear * (row + 0.5))),
        "shear_y": lambda i, row, column: (math.floor(row + 0.5 + shear * (column + 0.5)), column),
    }
    for name, place in source.items():
        got = operated(name, PIXELS, level, direction)
        np.testing.assert_array_equal(got, each_pixel(PIXELS[None], place, 0)[0], err_msg=name)
        assert np.array_equal(got, PIXELS) == (level == 0)
    angle = direction * 30 * level / 9
    square = PIXELS[:10].astype(float)
    rotated = RandomRotation(30.0).augment(square[None], Given([(angle / 30 + 1) / 2]))[0]
    np.testing.assert_array_equal(operated("rotate", PIXELS[:10], level, direction), rotated)


def test_operations_happen_below_their_probability_and_in_order():
    pair = POLICIES["cifar10"][5]  # shear_y 0.2 7, posterize 0.3 7
    assert [(step.operation, step.probability, step.level) for step in pair] == [
        ("shear_y", 0.2, 7),
        ("posterize", 0.3, 7),
    ]
    one = np.ones(2, int)
    np.testing.assert_array_equal(_changed(pair, PIXELS, np.array([0.2, 0.3]), one), PIXELS)
    np.testing.assert_array_equal(_changed(pair, PIXELS, np.array([0.19, 0.3]), one), operated("shear_y", PIXELS, 7))
    np.testing.assert_array_equal(_changed(pair, PIXELS, np.array([0.2, 0.29]), one), operated("posterize", PIXELS, 7))
    solarize_then_contrast = POLICIES["cifar10"][20]
    both = _changed(solarize_then_contrast, PIXELS, np.zeros(2), one)
    first = operated("solarize", PIXELS, 5)
    np.testing.assert_array_equal(both, operated("autocontrast", first, 0))
    assert not np.array_equal(both, operated("solarize", operated("autocontrast", PIXELS, 0), 5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_pair_of_every_policy_runs(policy, channels):
    pixels, changed = PIXELS[..., :channels] // 2 + 9, []
    assert len(POLICIES[policy]) == 25
    for pair in POLICIES[policy]:
        for direction in (-1, 1):
            got = _changed(pair, pixels, np.zeros(2), np.array([direction, direction]))
            assert (got.shape, got.dtype) == (pixels.shape, np.uint8)
            changed.append(not np.array_equal(got, pixels))
    assert 40 <= sum(changed) <= 50  # "equalize" leaves an image whose values are even already


PUBLISHED = {  # by operation: how often it is in the table, the sum of its probabilities in tenths, and of its levels
    "cifar10": {
        "autocontrast": (7, 50, 0), "brightness": (4, 23, 25), "color": (5, 29, 27), "contrast": (2, 8, 13),
        "equalize": (9, 47, 0), "invert": (3, 2, 0), "posterize": (1, 3, 7), "rotate": (1, 7, 2),
        "sharpness": (5, 28, 24), "shear_y": (2, 7, 15), "solarize": (4, 19, 18), "translate_x": (2, 8, 17),
        "translate_y": (5, 34, 39),
    },
    "svhn": {
        "autocontrast": (3, 23, 0), "contrast": (1, 3, 3), "equalize": (6, 39, 0), "invert": (12, 76, 0),
        "rotate": (4, 34, 14), "shear_x": (6, 42, 29), "shear_y": (8, 61, 51), "solarize": (5, 22, 25),
        "translate_x": (1, 9, 3), "translate_y": (4, 20, 18),
    },
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_have_the_sums_of_the_published_tables(policy):
    steps = [step for pair in POLICIES[policy] for step in pair]
    found = {}
    for name in {step.operation for step in steps}:
        those = [step for step in steps if step.operation == name]
        tenths = sum(round(10 * step.probability) for step in those)
        found[name] = (len(those), tenths, sum(step.level for step in those))
    assert found == PUBLISHED[policy]
    assert set(found) <= set(OPERATIONS)


def test_draws_are_pinned(monkeypatch):
    seen = []
    monkeypatch.setattr("linfb.datasets.autoaugment._changed", lambda *rest: seen.append(rest) or rest[1])
    AutoAugment().augment(images(n=8), Key(0))
    assert [POLICIES["cifar10"].index(pair) for pair, *_ in seen] == [9, 7, 10, 7, 11, 21, 11, 19]
    ramp = np.tile(np.arange(9.0)[:, None, None], (8, 1, 9, 1))
    assert RandomCrop(4).augment(ramp, Key(0))[:, 4, 4, 0].tolist() == [8, 5, 0, 8, 1, 0, 3, 8]
