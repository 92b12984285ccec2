"""From a figure's module to its files: simulate what is not cached, plot, say where everything comes from."""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import _cache, _source, load
from figures._style import stamp, style
from figures._variants import Variant
from linfb._provenance import git_state, versions
from linfb.experiments.store import DamagedResult, Store, write_atomically

if TYPE_CHECKING:
    import xarray as xr

DPI = 200
MADE = ("figures/results", "docs/_static/gallery")
"""What figures themselves put into the checkout."""


@dataclass(frozen=True)
class Resources:
    """Where a simulation runs and finds its data; results must not depend on it beyond rounding.

    Parameters
    ----------
    device : {"cpu", "gpu"}
    data_root : str, optional
        Folder of image data; None stands for the environment variable LINFB_DATA.
    """

    device: str = "cpu"
    data_root: str | None = None


@dataclass
class Part:
    """One cached unit of a figure: the configuration reduced to one sweep of the field that is split."""

    name: str
    label: str
    config: Any
    key: str
    dataset: xr.Dataset | None = None
    record: dict[str, Any] = field(default_factory=dict)


def sweeps(entries: Sequence[Any], *, apart: bool = False) -> dict[str, tuple[Any, ...]]:
    """Return entries by their names, those that differ in rank alone ("Oja r=1", "Oja r=2") under one ("Oja").

    If they are to stay `apart`, every entry is one of its own.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for entry in entries:
        label = str(entry) if apart else str(entry).partition(" r=")[0]
        found[label] = (*found.get(label, ()), entry)
    return found


def parts_of(name: str, config: Any, resources: Resources, *, apart: bool = False) -> list[Part]:
    """Return the units of a figure; ranks `apart` are slower together than one ensemble, and lose less if stopped."""
    split = load(name).PARTS
    return [
        Part(name, label, part, _cache.key_of(name, part, resources.device))
        for label, entries in sweeps(getattr(config, split), apart=apart).items()
        for part in [replace(config, **{split: entries})]
    ]


def compute(part: Part, resources: Resources, folder: Path) -> Part:
    """Simulate one part on one BLAS thread and store it; the matrices are small, the parts run side by side."""
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    with threadpool_limits(1):
        dataset = load(part.name).simulate(part.config, resources)
    record = {
        "figure": part.name,
        "part": part.label,
        "device": device_name(resources.device),
        "seconds": round(time.perf_counter() - start, 2),
        "computed": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": state_of_the_code(),
    }
    Store(folder).write(part.key, dataset, record)
    return replace(part, dataset=dataset, record=record)


@cache
def state_of_the_code() -> dict[str, Any]:
    """Return the commit, as it was when this process first asked: what is loaded does not change with the files."""
    return git_state(besides=MADE)


def device_name(device: str) -> str:
    """Return the name of the graphics card, or of the processor's architecture."""
    if device == "cpu":
        return platform.machine()
    from linfb.backend import device_namespace

    return device_namespace(device).cuda.runtime.getDeviceProperties(0)["name"].decode()


def fill(
    parts: Sequence[Part], resources: Resources, folder: Path, *, jobs: int, force: bool, say: Callable[[str], None],
    available: bool = False,
) -> Iterator[Part]:  # fmt: skip
    """Yield every part with its data set as it becomes ready, or with an ``error`` in its record.

    If only what is `available` is asked for, parts that are not in the cache come without either.
    """
    missing = []
    for part in parts:
        found = None
        if not force:
            try:
                found = Store(folder).read(part.key)
            except KeyError:
                pass
            except DamagedResult as error:
                say(f"{part.name} [{part.label}]: cached file is damaged and computed anew: {error}")
        if found is None:
            missing.append(part)
        else:
            yield replace(part, dataset=found[0], record=found[1] | {"from_cache": True})
    if available:
        yield from missing
        return
    for part, result in _computed(missing, resources, folder, jobs):
        if isinstance(result, Part):
            yield replace(result, record=result.record | {"from_cache": False})
        else:
            yield replace(part, record={"error": result})


def _computed(
    parts: Sequence[Part], resources: Resources, folder: Path, jobs: int
) -> Iterator[tuple[Part, Part | Exception]]:
    """Yield every part with its result or its error: in this process, or in others as they become ready."""
    if min(jobs, len(parts)) <= 1:
        for part in parts:
            try:
                yield part, compute(part, resources, folder)
            except Exception as error:
                yield part, error
        return
    pool = ProcessPoolExecutor(min(jobs, len(parts)), mp_context=get_context("spawn"))
    try:
        running = {pool.submit(compute, part, resources, folder): part for part in parts}
        for future in as_completed(running):
            failure = future.exception()
            if failure is not None and not isinstance(failure, Exception):
                raise failure
            yield running[future], future.result() if failure is None else failure
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def joined(name: str, config: Any, parts: Sequence[Part]) -> xr.Dataset:
    """Join the parts of a figure along the dimension called after the field that is split (its name without s).

    Their entries come in the order of the sweeps in `config`, together or apart as the parts have them.
    """
    import xarray as xr

    split = load(name).PARTS
    first = [entries[0] for entries in sweeps(getattr(config, split), apart=True).values()]
    by_place = {first.index(getattr(part.config, split)[0]): part.dataset for part in parts}
    ordered = [one for _, one in sorted(by_place.items()) if one is not None]
    return xr.concat(ordered, dim=split.removesuffix("s"), combine_attrs="drop", join="outer")


def draw(variant: Variant, results: xr.Dataset, folder: Path) -> None:
    """Write the PDF and the PNG of a figure, on which stands what preset made it."""
    with style():
        figure = load(variant.name).plot(results, variant.config)
        stamp(figure, variant.words)
        write_atomically(folder / f"{variant.key}.pdf", _rendered(figure, "pdf", {"CreationDate": None}))
        write_atomically(folder / f"{variant.key}.png", _small(_rendered(figure, "png", {"Software": None})))


def drawn_from(variant: Variant, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a hash of all that a picture depends on: results, the code that draws, and what is written above it."""
    from importlib.metadata import version

    content = {
        "parts": sorted((label, part["key"], part["computed"]) for label, part in parts.items()),
        "code": [_source.source_of(variant.name, ["plot"]), _source.source_of("_run", ["draw"])],
        "words": variant.words,
        "matplotlib": version("matplotlib"),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def checks_of(variant: Variant, results: xr.Dataset) -> dict[str, float]:
    """Return how far theory and simulation are apart, in the figure's own words."""
    return {key: float(value) for key, value in load(variant.name).checks(results, variant.config).items()}


def _rendered(figure: Any, suffix: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _small(png: bytes) -> bytes:
    """Return a PNG with a palette of 256 colours, a third of the size; the PDF keeps everything."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def provenance(
    variant: Variant, resources: Resources, parts: Sequence[Part], checks: Mapping[str, float]
) -> dict[str, Any]:
    """Return where the results behind a figure come from and what its checks found, as JSON can hold it."""
    from importlib.metadata import version

    packages = ("matplotlib", "h5netcdf", "scikit-learn")
    told = ("seconds", "computed", "device", "git", "from_cache")
    return {
        "figure": variant.name,
        "preset": variant.preset,
        "changes": dict(variant.changes),
        "missing": list(variant.missing),
        "config": variant.described,
        "paper": getattr(load(variant.name), "PAPER", None),
        "seeds": list(variant.config.seeds),
        "device": resources.device,
        "machine": platform.machine(),
        "versions": versions() | {package: version(package) for package in packages},
        "git": state_of_the_code(),
        "library_sha256": _source.library_hash(),
        "parts": {part.label: {"key": part.key} | {key: part.record.get(key) for key in told} for part in parts},
        "seconds_of_simulation": round(sum(part.record.get("seconds", 0.0) for part in parts), 2),
        "checks": {key: value if math.isfinite(value) else None for key, value in checks.items()},
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a provenance file."""
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
