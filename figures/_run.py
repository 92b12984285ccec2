"""From a figure's module to its files: simulate what is not cached, plot, say where everything comes from."""

from __future__ import annotations

import io
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import _cache, _source, load
from figures._style import style
from linfb._provenance import git_state, versions
from linfb.experiments.store import DamagedResult, Store, write_atomically

if TYPE_CHECKING:
    import xarray as xr

DPI = 200


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


def sweeps(entries: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """Return entries by their names, those that differ in rank alone ("Oja r=1", "Oja r=2") under one ("Oja")."""
    found: dict[str, tuple[Any, ...]] = {}
    for entry in entries:
        label = str(entry).partition(" r=")[0]
        found[label] = (*found.get(label, ()), entry)
    return found


def parts_of(name: str, config: Any, resources: Resources) -> list[Part]:
    """Return the units of a figure."""
    split = load(name).PARTS
    return [
        Part(name, label, part, _cache.key_of(name, part, resources.device))
        for label, entries in sweeps(getattr(config, split)).items()
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
        "seconds": round(time.perf_counter() - start, 2),
        "computed": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    Store(folder).write(part.key, dataset, record)
    return replace(part, dataset=dataset, record=record)


def fill(
    parts: Sequence[Part], resources: Resources, folder: Path, *, jobs: int, force: bool, say: Callable[[str], None]
) -> Iterator[Part]:
    """Yield every part with its data set as it becomes ready, or with an ``error`` in its record."""
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
    """Join the parts of a figure along the dimension called after the field that is split (its name without s)."""
    import xarray as xr

    split = load(name).PARTS
    by_label = {part.label: part.dataset for part in parts if part.dataset is not None}
    ordered = [by_label[label] for label in sweeps(getattr(config, split))]
    return xr.concat(ordered, dim=split.removesuffix("s"), combine_attrs="drop", join="outer")


def draw(name: str, config: Any, results: xr.Dataset, folder: Path) -> dict[str, Any]:
    """Write the PDF and the PNG of a figure and return what `checks` finds."""
    module = load(name)
    checks = {key: float(value) for key, value in module.checks(results, config).items()}
    with style():
        figure = module.plot(results, config)
        write_atomically(folder / f"{name}.pdf", _rendered(figure, "pdf", {"CreationDate": None}))
        write_atomically(folder / f"{name}.png", _small(_rendered(figure, "png", {"Software": None})))
    return checks


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


def provenance(name: str, preset: str, config: Any, resources: Resources, parts: Sequence[Part]) -> dict[str, Any]:
    """Return where a figure comes from, as JSON can hold it."""
    from importlib.metadata import version

    packages = ("matplotlib", "h5netcdf", "scikit-learn")
    return {
        "figure": name,
        "preset": preset,
        "config": asdict(config),
        "paper": getattr(load(name), "PAPER", None),
        "seeds": list(config.seeds),
        "device": resources.device,
        "machine": platform.machine(),
        "versions": versions() | {package: version(package) for package in packages},
        "git": git_state(),
        "library_sha256": _source.library_hash(),
        "parts": {
            part.label: {"key": part.key} | {k: part.record.get(k) for k in ("seconds", "computed", "from_cache")}
            for part in parts
        },
        "seconds_of_simulation": round(sum(part.record.get("seconds", 0.0) for part in parts), 2),
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a provenance file."""
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
