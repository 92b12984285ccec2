"""Finding the files of a data set, decompressing them within bounds, checking their checksums, fetching them."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from linfb.datasets.sources import Download, Source

__all__ = ["checksum", "decompress", "fetch", "locate", "read_source"]

_XZ_MEMORY = 256 * 2**20
_THREADS = min(4, os.cpu_count() or 1)
_SUFFIXES = ("", ".gz", ".xz")


def locate(source: Source, root: Path) -> dict[str, Path] | Path | None:
    """Return where below `root` the files of `source` lie.

    Returns
    -------
    dict from file name to path, or the path of the authors' archive, or None
        The first of the source's usual folders that holds all files (plain, .gz or .xz) or the archive.
    """
    for folder in source.folders:
        paths = {file: _present(root / folder, file) for file in source.limits}
        found = {file: path for file, path in paths.items() if path is not None}
        if len(found) == len(paths):
            return found
        if source.archive is not None and (root / folder / source.archive).is_file():
            return root / folder / source.archive
    return None


def _present(folder: Path, file: str) -> Path | None:
    return next((path for suffix in _SUFFIXES if (path := folder / (file + suffix)).is_file()), None)


def decompress(path: Path, limit: int) -> bytes:
    """Return the content of a plain, .gz or .xz file of at most `limit` bytes, without ever holding much more.

    Raises
    ------
    ValueError
        If the content is larger, damaged, cut short or followed by other bytes, or xz asks for over 256 MiB.
    """
    if path.stat().st_size > limit + limit // 100 + 4096:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {limit} that its content may have")
    data = path.read_bytes()
    decoder: Any
    if path.suffix == ".gz":
        decoder = zlib.decompressobj(wbits=31)
    elif path.suffix == ".xz":
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    else:
        return _bounded(path, data, limit)
    try:
        content = decoder.decompress(data, limit + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: damaged {path.suffix} file ({error})") from error
    _bounded(path, content, limit)
    if not decoder.eof:
        raise ValueError(f"{path}: {path.suffix} file is cut short")
    if decoder.unused_data:
        raise ValueError(f"{path}: {len(decoder.unused_data)} bytes after the end of the {path.suffix} stream")
    return content


def _bounded(place: Any, content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise ValueError(f"{place}: content is larger than the {limit} bytes it may have")
    return content


def checksum(content: bytes | Path, algorithm: str) -> str:
    """Return "algorithm:hexadecimal" of bytes or of a file.

    Examples
    --------
    >>> checksum(b"", "md5")
    'md5:d41d8cd98f00b204e9800998ecf8427e'
    """
    if isinstance(content, Path):
        with content.open("rb") as stream:
            return f"{algorithm}:{hashlib.file_digest(stream, lambda: _hash(algorithm)).hexdigest()}"
    digest = _hash(algorithm)
    digest.update(content)
    return f"{algorithm}:{digest.hexdigest()}"


def _hash(algorithm: str) -> Any:
    return hashlib.new(algorithm, usedforsecurity=False)


def _editions_of(place: Any, content: bytes | Path, expected: dict[str, str]) -> set[str]:
    """Return the editions whose checksum `content` has; ValueError if there is none."""
    found = {algorithm: checksum(content, algorithm) for algorithm in {v.split(":")[0] for v in expected.values()}}
    matching = {edition for edition, value in expected.items() if value in found.values()}
    if not matching:
        wanted = " or ".join(f"{value} ({edition})" for edition, value in expected.items())
        raise ValueError(f"{place}: checksum {' '.join(sorted(found.values()))}, expected {wanted}")
    return matching


def _contents(source: Source, found: dict[str, Path] | Path) -> Iterator[tuple[str, Any, bytes]]:
    """Yield (file, place for messages, content) of each file of a data set."""
    if isinstance(found, dict):
        with ThreadPoolExecutor(_THREADS) as pool:  # the decoders release the interpreter's lock
            contents = pool.map(lambda item: decompress(item[1], source.limits[item[0]]), found.items())
            for (file, path), content in zip(found.items(), contents, strict=True):
                yield file, path, content
        return
    _editions_of(found, found, {"archive": source.downloads[0].checksum})
    try:
        yield from _members(source, found)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{found}: damaged archive ({error})") from error


def _members(source: Source, path: Path) -> Iterator[tuple[str, Any, bytes]]:
    wanted = {f"{source.archive_folder}/{file}": file for file in source.limits}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            file = wanted.pop(member.name, None)
            if file is None:
                continue
            stream = archive.extractfile(member) if member.isreg() and member.size <= source.limits[file] else None
            if stream is None:
                raise ValueError(f"{path}: {member.name} is not a file of at most {source.limits[file]} bytes")
            yield file, f"{path}:{member.name}", stream.read()
    if wanted:
        raise ValueError(f"{path}: lacks {', '.join(sorted(wanted))}")


def read_source(source: Source, found: dict[str, Path] | Path) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Read, check and parse every file of a data set; nothing is parsed before its checksum is known to be right.

    Returns
    -------
    edition : str
        The edition that all files belong to.
    parts : dict from file name to parsed content
    checksums : dict from file name to checksum

    Raises
    ------
    ValueError
        For a checksum that is not the expected one, files of different editions, or content that does not parse;
        names the file.
    """
    editions, parts, checksums = set(source.editions), {}, {}
    for file, place, content in _contents(source, found):
        matching = _editions_of(place, content, source.expected(file))
        if not editions & matching:
            before = " or ".join(sorted(editions))
            raise ValueError(f"{place}: belongs to {' or '.join(sorted(matching))}, the files before it to {before}")
        editions &= matching
        try:
            parts[file] = source.parse(file, content)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        checksums[file] = checksum(content, "sha256")
    return min(editions), parts, checksums


def fetch(download: Download, folder: Path) -> Path:
    """Download a file into `folder`, trying its addresses in order, and check it.

    Raises
    ------
    OSError
        If no address answers.
    ValueError
        If what the last address sent has another checksum.
    """
    import pooch

    errors = []
    for url in download.urls:
        try:
            return Path(
                pooch.retrieve(
                    url, download.checksum, fname=download.file, path=folder, progressbar=sys.stderr.isatty()
                )
            )
        except (OSError, ValueError) as error:
            errors.append(error)
            response = getattr(error, "response", None)
            if response is not None:
                response.close()  # a refusal leaves its connection open otherwise
    reasons = "\n".join(f"  {url}: {error}" for url, error in zip(download.urls, errors, strict=True))
    kind = ValueError if isinstance(errors[-1], ValueError) else OSError
    raise kind(f"could not download {download.file}:\n{reasons}")
