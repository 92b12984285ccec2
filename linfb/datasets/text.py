"""Text as sequences of character tokens, each to be predicted from those before it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linfb._checks import choice, integer, path, real
from linfb.datasets.files import checksum
from linfb.datasets.splits import Samples, Splits

__all__ = ["UNKNOWN", "Text", "demo_text", "load_text"]

UNKNOWN = "\ufffd"
"""Token 0 of every vocabulary: stands for characters that the training part does not have."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text as tokens, with its first part for training, then validation, then test.

    Made by :func:`load_text` or :meth:`Text.from_string`.

    Parameters
    ----------
    name : str
    tokens : numpy.ndarray of int64, shape (character,)
        The whole text.
    borders : tuple of int
        Where the validation and the test part start.
    length : int
        Tokens of one sample.
    vocabulary : tuple of str
        The character of each token: :data:`UNKNOWN`, then the characters of the training part in the order of their
        code points.
    provenance : mapping of str to str
        Where the text came from, with its checksum.

    Examples
    --------
    >>> text = Text.from_string("abc" * 20 + "d", length=4)
    >>> text.vocabulary[1:], text.encode("add").tolist()
    (('a', 'b', 'c'), [1, 0, 0])
    >>> x, y = text.splits().train
    >>> x.shape, text.decode(x[0]), text.decode(y[0])
    ((12, 4), 'abca', 'bcab')
    """

    name: str
    tokens: np.ndarray
    borders: tuple[int, int]
    length: int
    vocabulary: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_string(
        cls,
        text: str,
        *,
        length: int = 128,
        validation: float = 0.1,
        test: float = 0.1,
        level: str = "character",
        name: str = "text",
    ) -> Text:
        """Return a string as tokens; arguments and errors as for :func:`load_text`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text has half of a surrogate pair at character {error.start}") from error
        return _text(name, text, length, validation, test, level, {name: checksum(content, "sha256")})

    @property
    def n_classes(self) -> int:
        """Size of the vocabulary."""
        return len(self.vocabulary)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.length,)

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a string, int64 of shape (character,); 0 for characters outside of the vocabulary."""
        return _encoded(text, self.vocabulary)

    def decode(self, tokens: Any) -> str:
        """Return the string that some tokens, shape (token,), stand for.

        Raises
        ------
        TypeError, ValueError
            If they are not integers from 0 to `n_classes` - 1 along one axis.
        """
        array = np.asarray(tokens)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"tokens must be integers, got dtype {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"tokens have shape {array.shape}, expected (token,)")
        if array.size and not 0 <= array.min() <= array.max() < self.n_classes:
            raise ValueError(f"tokens must lie in 0 to {self.n_classes - 1}, got {array.min()} to {array.max()}")
        return "".join(self.vocabulary[token] for token in array.tolist())

    def splits(self, *, dtype: Any = "float32") -> Splits:
        r"""Return windows of the text and the same windows one character later.

        .. math:: x_{kj} = c_{kL + j}, \qquad y_{kj} = c_{kL + j + 1}, \qquad j = 0, \ldots, L - 1

        for the characters c of a part and the length L of a sample.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            Precision of the run; tokens are int64 in either.

        Returns
        -------
        Splits
            x and y of shape (sample, length). Windows do not overlap and do not cross from one part into the next;
            what does not fill a window at the end of a part is left out.
        """
        choice("dtype", dtype if isinstance(dtype, str) else np.dtype(dtype).name, ("float32", "float64"))
        train, validation, test = (_windows(part, self.length) for part in np.split(self.tokens, self.borders))
        numbers = np.arange(len(train.x) + len(validation.x))
        return Splits(
            train=train,
            validation=validation,
            test=test,
            train_indices=numbers[: len(train.x)],
            validation_indices=numbers[len(train.x) :],
            mean=np.zeros(()),
            std=np.ones(()),
            class_names=self.vocabulary,
        )


def load_text(
    file: str | os.PathLike,
    *,
    length: int = 128,
    validation: float = 0.1,
    test: float = 0.1,
    level: str = "character",
) -> Text:
    """Return a text file as tokens, one for each character.

    The parts are contiguous: the beginning of the file trains, the end tests, validation lies between them. The
    vocabulary is that of the training part.

    Parameters
    ----------
    file : path
        Text in UTF-8; line ends stay as they are.
    length : int
        Characters of one sample.
    validation, test : float
        Shares of the file.
    level : {"character"}
        What a token stands for.

    Raises
    ------
    ValueError
        If the file is no text (names the place of the first byte that is not UTF-8, or is zero), if a part is too
        short for a window, or for shares that leave nothing to train on.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "text.txt"
    ...     _ = file.write_text("to be or not to be, " * 20)
    ...     text = load_text(file, length=10)
    >>> text.name, text.n_classes, text.decode(text.splits().train.x[0])
    ('text.txt', 9, 'to be or n')
    """
    place = path("file", file)
    content = place.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not text in UTF-8, byte {content[error.start]:#04x} at {error.start}") from error
    if b"\0" in content:
        raise ValueError(f"{place}: not text, zero byte at {content.index(0)}")
    return _text(place.name, text, length, validation, test, level, {place.name: checksum(content, "sha256")})


def demo_text() -> str:
    """Return half a million characters of English that need no download: the help texts of Python's syntax.

    They come with the standard library (:mod:`pydoc_data.topics`, what ``help("TOPICS")`` lists), here joined in the
    order of their titles. The Python Software Foundation holds the copyright; its licence allows use and copies. The
    content depends on the version of Python: a :class:`Text` made of it keeps the checksum.

    Examples
    --------
    >>> text = Text.from_string(demo_text(), name="topics")
    >>> len(text.tokens) > 300_000, text.provenance["topics"].startswith("sha256:")
    (True, True)
    """
    from pydoc_data.topics import topics

    return "\n".join(topics[title] for title in sorted(topics))


def _text(
    name: str, text: str, length: int, validation: float, test: float, level: str, provenance: dict[str, str]
) -> Text:
    choice("level", level, ("character",))
    integer("length", length, at_least=1)
    shares = [real(part, share, above=0.0, below=1.0) for part, share in (("validation", validation), ("test", test))]
    if sum(shares) >= 1:
        raise ValueError(f"validation={validation} and test={test} leave nothing to train on")
    borders = round(len(text) * (1 - sum(shares))), round(len(text) * (1 - shares[1]))
    sizes = {"train": borders[0], "validation": borders[1] - borders[0], "test": len(text) - borders[1]}
    for part, size in sizes.items():
        if size <= length:
            raise ValueError(
                f"{name}: too short, part {part} has {size} of {len(text)} characters, "
                f"but length={length} needs at least {length + 1}"
            )
    vocabulary = (UNKNOWN, *sorted(set(text[: borders[0]]) - {UNKNOWN}))
    tokens = _encoded(text, vocabulary)
    tokens.flags.writeable = False
    return Text(name, tokens, borders, length, vocabulary, provenance)


def _encoded(text: str, vocabulary: Sequence[str]) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    known = np.array([ord(character) for character in vocabulary[1:]], np.uint32)
    if len(known) == 0:
        return np.zeros(len(codes), np.int64)
    place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[place] == codes, place + 1, 0)


def _windows(tokens: np.ndarray, length: int) -> Samples:
    n = (len(tokens) - 1) // length
    return Samples(*(tokens[first : first + n * length].reshape(n, length) for first in (0, 1)))
