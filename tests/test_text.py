"""Text: vocabulary, windows, borders between the parts, and what is refused."""

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.datasets import Text, demo_text, load_text
from linfb.datasets.text import UNKNOWN

SENTENCE = "the quick brown fox jumps over the lazy dog; "


def numbered(n):
    """A text whose characters are all different: each tells its place."""
    return "".join(chr(0x4E00 + i) for i in range(n))


# Windows ------------------------------------------------------------------------------------------------------------
@given(
    n=st.integers(40, 300),
    length=st.integers(1, 12),
    shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
)
def test_windows_are_consecutive_and_never_cross_a_border(n, length, shares):
    if n * min(*shares, 1 - sum(shares)) < length + 2:
        return
    text = Text.from_string(numbered(n), length=length, validation=shares[0], test=shares[1])
    assert abs(text.borders[0] - n * (1 - sum(shares))) <= 0.5
    assert abs(text.borders[1] - n * (1 - shares[1])) <= 0.5
    bounds = [(0, text.borders[0]), text.borders, (text.borders[1], n)]
    # tokens of a text whose training part knows all of it: the places themselves
    splits = Text(text.name, np.arange(n), text.borders, length, tuple(numbered(n))).splits()
    for (start, stop), (x, y) in zip(bounds, (splits.train, splits.validation, splits.test), strict=True):
        assert x.shape == y.shape == ((stop - start - 1) // length, length)
        assert x.dtype == y.dtype == np.int64
        np.testing.assert_array_equal(x.ravel(), start + np.arange(x.size))
        np.testing.assert_array_equal(y, x + 1)
        assert y.max() < stop
        assert stop - 1 - y.max() < length  # less than one more window is left out


def test_targets_are_the_inputs_one_character_later():
    x, y = Text.from_string(SENTENCE * 20, length=16).splits().train
    np.testing.assert_array_equal(y[:, :-1], x[:, 1:])
    np.testing.assert_array_equal(y[:-1, -1], x[1:, 0])
    assert not np.array_equal(x, y)


def test_splits_have_what_training_asks_for():
    text = Text.from_string(SENTENCE * 20, length=16)
    splits = text.splits(dtype="float64")
    assert splits.shape == text.shape == (16,)
    assert splits.n_classes == text.n_classes == len(set(SENTENCE)) + 1
    assert splits.class_names == text.vocabulary
    assert splits.image_shape is None
    assert (splits.mean.shape, splits.std.shape, float(splits.mean), float(splits.std)) == ((), (), 0.0, 1.0)
    np.testing.assert_array_equal(splits.train_indices, np.arange(len(splits.train.x)))
    assert splits.validation_indices.tolist() == list(
        range(len(splits.train.x), len(splits.train.x) + len(splits.validation.x))
    )
    np.testing.assert_array_equal(text.splits(dtype=np.float32).train.x, splits.train.x)
    with pytest.raises(ValueError, match="read-only"):
        splits.train.x[0, 0] = 1
    with pytest.raises(ValueError, match="dtype must be one of"):
        text.splits(dtype="int64")


# Vocabulary ---------------------------------------------------------------------------------------------------------
def test_vocabulary_is_that_of_the_training_part_alone():
    text = Text.from_string("ba" * 40 + "ac" * 5 + "ad" * 5, length=3)
    assert text.vocabulary == (UNKNOWN, "a", "b")
    splits = text.splits()
    assert set(splits.train.x.ravel()) == {1, 2}
    assert set(splits.validation.x.ravel()) == set(splits.test.x.ravel()) == {0, 1}
    assert text.decode(splits.test.x[0]) == "a" + UNKNOWN + "a"
    late = Text.from_string("ba" * 40 + "ac" * 5 + "ad" * 5, length=3, validation=0.05, test=0.05)
    assert late.vocabulary == (UNKNOWN, "a", "b", "c")


@given(text=st.text(max_size=50))
def test_decoding_undoes_encoding_but_for_unknown_characters(text):
    known = Text.from_string(SENTENCE * 10 + "\u00e9\U0001f600" * 20 + SENTENCE * 5, length=8)
    tokens = known.encode(text)
    assert (tokens.shape, tokens.dtype) == ((len(text),), np.int64)
    assert known.decode(tokens) == "".join(c if c in known.vocabulary else UNKNOWN for c in text)
    assert [known.vocabulary[token] for token in tokens] == list(known.decode(tokens))


def test_the_whole_text_reads_back():
    text = Text.from_string(SENTENCE * 10 + "\r\n\u00e9\U0001f600", length=8, validation=0.2, test=0.2)
    assert text.decode(text.tokens) == SENTENCE * 10 + 4 * UNKNOWN
    assert text.vocabulary[1:] == tuple(sorted(set(SENTENCE)))


def test_the_unknown_character_in_a_text_is_token_zero():
    text = Text.from_string((SENTENCE + UNKNOWN) * 10, length=8)
    assert text.vocabulary.count(UNKNOWN) == 1
    assert text.encode(UNKNOWN).tolist() == [0]
    only = Text.from_string(UNKNOWN * 100, length=8)
    assert only.vocabulary == (UNKNOWN,)
    assert only.encode("ab").tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([0, 99], ValueError, "tokens must lie in 0 to 28, got 0 to 99"),
        ([-1], ValueError, "tokens must lie in 0 to 28, got -1"),
        ([[1, 2]], ValueError, r"tokens have shape \(1, 2\), expected \(token,\)"),
        ([1.0], TypeError, "tokens must be integers, got dtype float64"),
        (["a"], TypeError, "tokens must be integers"),
    ],
)
def test_wrong_tokens_are_named(tokens, error, message):
    text = Text.from_string(SENTENCE * 10, length=8)
    assert text.n_classes == 29
    with pytest.raises(error, match=message):
        text.decode(tokens)
    assert text.decode([]) == ""


# Files --------------------------------------------------------------------------------------------------------------
def test_file_and_string_give_the_same_text(tmp_path):
    content = (SENTENCE + "caf\u00e9\r\n") * 10
    (tmp_path / "file.txt").write_bytes(content.encode())
    ours, theirs = load_text(tmp_path / "file.txt", length=8), Text.from_string(content, length=8, name="file.txt")
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert ours.vocabulary == theirs.vocabulary
    assert "\r" in ours.vocabulary  # line ends stay as they are
    assert ours.name == theirs.name == "file.txt"
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert ours.provenance == theirs.provenance == {"file.txt": f"sha256:{digest}"}
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.splits().test.y, ours.splits().test.y)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc" * 50 + b"\xff" + b"abc", "not text in UTF-8, byte 0xff at 150"),
        ("caf\u00e9".encode("latin-1") * 50, "not text in UTF-8, byte 0xe9 at 3"),
        (SENTENCE.encode() * 10 + b"\0" + b"abc", "not text, zero byte at 450"),
        (b"", "too short, part train has 0 of 0 characters, but length=16 needs at least 17"),
        (SENTENCE.encode() * 3, "too short, part validation has 1. of 135 characters"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=f"file: {message}"):
        load_text(tmp_path / "file", length=16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 0}, ValueError, "length must be >= 1"),
        ({"length": 8.0}, TypeError, "length must be an integer"),
        ({"length": 60}, ValueError, "too short, part validation has 45 of 450 characters, but length=60"),
        ({"validation": 0.0}, ValueError, "validation must be finite and > 0.0"),
        ({"test": 1.0}, ValueError, "test must be finite and < 1.0"),
        ({"test": "half"}, TypeError, "test must be a real number"),
        ({"validation": 0.5, "test": 0.5}, ValueError, "validation=0.5 and test=0.5 leave nothing to train on"),
        ({"level": "word"}, ValueError, "level must be one of 'character', got 'word'"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, error, message):
    (tmp_path / "file").write_text(SENTENCE * 10)
    for read, source in ((Text.from_string, SENTENCE * 10), (load_text, tmp_path / "file")):
        read(source, length=8)
        with pytest.raises(error, match=message):
            read(source, **{"length": 8, **arguments})


def test_what_is_no_string_or_path_is_named(tmp_path):
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        Text.from_string(b"abc" * 100)
    with pytest.raises(ValueError, match="half of a surrogate pair at character 3"):
        Text.from_string("abc\ud800" * 100)
    with pytest.raises(TypeError, match="file must be a path, got 3"):
        load_text(3)
    with pytest.raises(FileNotFoundError):
        load_text(tmp_path / "none")


# The text that comes with Python ------------------------------------------------------------------------------------
def test_demo_text_is_pythons_own_help_in_the_order_of_its_titles():
    from pydoc_data.topics import topics

    content = demo_text()
    assert content == demo_text()
    assert all(topics[title] in content for title in topics)
    assert content.startswith(topics[min(topics)])
    text = Text.from_string(content, name="topics")
    assert text.provenance == {"topics": f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"}
    assert len(text.splits().train.x) > 2000
    assert 60 < text.n_classes < 200
    assert np.mean(text.splits().test.x == 0) < 0.01  # hardly a character is unknown
