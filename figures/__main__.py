"""The command line of the figures: `python -m figures [names]`."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from figures import NAMES, PRESETS, _record, load
from figures._run import Part, Resources, checks_of, draw, drawn_from, fill, joined, parts_of, provenance, write_record
from figures._variants import Variant, variant
from linfb.cli import pairs
from linfb.experiments import Store

if TYPE_CHECKING:
    import xarray as xr

DATA = ("digits", "mnist", "cifar10")


@dataclass(frozen=True)
class Folders:
    """Where figures go, where their record is, and, if they are to be there, the docs' gallery."""

    out: Path
    results: Path = _record.RESULTS
    gallery: Path | None = None


def list_figures() -> None:
    """Print every figure with the first line of its description."""
    for name in NAMES:
        click.echo(f"{name:18s}{(load(name).__doc__ or '').strip().splitlines()[0]}")


def make(
    variants: Sequence[Variant], resources: Resources, folders: Folders, *, jobs: int = 1, force: bool = False,
    available: bool = False, record: bool = False, apart: bool = False,
) -> list[str]:  # fmt: skip
    """Make figures and return the names of those that failed."""
    begin, failed = time.perf_counter(), []
    wanted = {one.name: one for one in variants}
    waiting = {one.name: parts_of(one.name, one.config, resources, apart=apart) for one in variants}

    def say(text: str) -> None:
        click.echo(f"[{time.perf_counter() - begin:6.1f} s] {text}")

    everything = [part for parts in waiting.values() for part in parts]
    presets = ", ".join(dict.fromkeys(one.preset for one in variants))
    say(f"{len(waiting)} figures in {len(everything)} parts, preset {presets}, {resources.device}")
    ready: dict[str, list[Part]] = {name: [] for name in waiting}
    parts = fill(
        everything, resources, folders.out / "cache", jobs=jobs, force=force, say=say, available=available
    )  # fmt: skip
    for done, part in enumerate(parts, start=1):
        name = part.name
        if "error" in part.record:
            say(f"({done}/{len(everything)}) {name} [{part.label}] FAILED")
            report(f"{name} [{part.label}]", part.record["error"])
        else:
            say(f"({done}/{len(everything)}) {name} [{part.label}] {_how(part)}")
        ready[name].append(part)
        if len(ready[name]) < len(waiting[name]):
            continue
        try:
            if any("error" in part.record for part in ready[name]):
                failed.append(name)
                continue
            drawn = finish(wanted[name], resources, ready[name], folders, record=record)
            say(f"{name}: {folders.out / wanted[name].key}.pdf .png .json{'' if drawn else ' as they were'}")
        except Exception as error:
            failed.append(name)
            report(name, error)
    say(f"{len(variants) - len(failed)} of {len(variants)} figures made")
    return failed


def _how(part: Part) -> str:
    if part.dataset is None:
        return "is not there"
    return "from cache" if part.record["from_cache"] else f"simulated in {part.record['seconds']} s"


def finish(one: Variant, resources: Resources, parts: list[Part], folders: Folders, *, record: bool) -> bool:
    """Make a figure of the parts that are there, its provenance and, if it is to be kept, its record.

    Returns whether it had to be drawn.
    """
    there = [part for part in parts if part.dataset is not None]
    one = _record.without(one, [part.label for part in parts if part.dataset is None])
    results = joined(one.name, one.config, there)
    checks = checks_of(one, results)
    told = provenance(one, resources, there, checks)
    if record:
        _record.write(folders.results, one, results, told)
    drawn = publish(one, results, told, folders, anew=False)
    for key, value in checks.items():
        click.echo(f"             {key}: {value:.3g}")
    return drawn


def publish(one: Variant, results: xr.Dataset, told: Mapping[str, Any], folders: Folders, *, anew: bool) -> bool:
    """Write a figure and its provenance, copy them to the gallery if there is one, and return whether it was drawn.

    Unless it is to be drawn `anew`, it is not if the pictures of the same results by the same code are there.
    """
    source = drawn_from(one, told["parts"])
    drawn = None if anew else _drawn(folders.out, one.key, source)
    if not drawn:
        draw(one, results, folders.out)
    told = {**told, "drawn": drawn or datetime.now(UTC).isoformat(timespec="seconds"), "drawn_from": source}
    write_record(folders.out / f"{one.key}.json", told)
    if folders.gallery is not None:
        folders.gallery.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "json"):
            file = f"{one.key}.{suffix}"
            (folders.gallery / file).write_bytes((folders.out / file).read_bytes())
    return not drawn


def _drawn(folder: Path, key: str, source: str) -> str | None:
    """Return when the pictures that are there were drawn, None if they are not all there or not from this source."""
    try:
        told = json.loads((folder / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None
    pictures = all((folder / f"{key}.{suffix}").exists() for suffix in ("pdf", "png"))
    return told["drawn"] if pictures and told.get("drawn_from") == source else None


def redraw(variants: Sequence[Variant], folders: Folders) -> list[str]:
    """Draw figures from their record, without any simulation, and return the keys of those that failed."""
    failed = []
    for one in variants:
        try:
            found, results, told = _record.read(folders.results, one)
        except ValueError as error:
            failed.append(one.key)
            click.echo(f"{one.key}: {error}", err=True)
            continue
        try:
            publish(found, results, told, folders, anew=True)
            click.echo(f"{folders.out / one.key}.pdf .png .json from the record")
        except Exception as error:
            failed.append(one.key)
            report(one.key, error)
    return failed


def report(name: str, error: BaseException) -> None:
    """Print what went wrong with a figure."""
    click.echo(f"{name} failed:\n" + "".join(traceback.format_exception(error)), err=True)


def _names(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in NAMES:
            raise click.BadParameter(f"{name!r} is not a figure; there are {', '.join(NAMES)}")
    return tuple(dict.fromkeys(value))


def _variants(
    names: tuple[str, ...], preset: str | None, data: str | None, settings: Mapping[str, str], recorded: Store | None
) -> list[Variant]:
    """Return what is asked for: without names all figures, of a record all that are in it."""
    if data and not any(hasattr(load(name), "on_data") for name in names or NAMES):
        raise click.BadParameter(f"none of {', '.join(names)} uses images", param_hint="--data")
    presets = PRESETS if recorded and not (preset or data or settings) else (preset or "quick",)
    wanted = [(name, one) for name in names or NAMES for one in presets]
    if not names or len(presets) > 1:
        wanted = [(name, one) for name, one in wanted if one in load(name).CONFIGS]
    try:
        found = [variant(name, one, data, settings) for name, one in wanted]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if recorded and (not names or len(presets) > 1):
        found = [one for one in found if one.key in recorded]
        if not found:
            raise click.UsageError(f"{recorded.folder} holds no record of {', '.join(names) or 'any figure'}")
    return found


@click.command()
@click.argument("names", nargs=-1, callback=_names)
@click.option("--preset", type=click.Choice(PRESETS), help="[default: quick; with --redraw all that are recorded]")
@click.option("--set", "settings", multiple=True, callback=pairs,
              help="Another setting than the preset's: epochs=3, seeds=0..4, vgg.epochs=2.")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--data", type=click.Choice(DATA), help="Images of the figures that take any.")
@click.option("--data-root", type=click.Path(exists=True, file_okay=False), help="Folder of image data [LINFB_DATA].")
@click.option("--force", is_flag=True, help="Simulate again even what is cached.")
@click.option("--available", is_flag=True, help="Simulate nothing: draw the parts that are cached, and name the rest.")
@click.option("--apart", is_flag=True, help="Ranks of one rule are parts of their own: slower, but less is lost.")
@click.option("--record", is_flag=True, help="Keep the numbers behind the figures, with provenance, in --results.")
@click.option("--redraw", "from_record", is_flag=True, help="Simulate nothing: draw from the record in --results.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes [one per core].")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("figures/output"),
              show_default=True)  # fmt: skip
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), default=_record.RESULTS, show_default=True,
              help="Folder of the record.")  # fmt: skip
@click.option("--gallery", type=click.Path(file_okay=False, path_type=Path), help="Also copy PNG and JSON here.")
@click.option("--list", "listing", is_flag=True, help="List the figures and stop.")
def main(
    names: tuple[str, ...], preset: str | None, settings: dict[str, str], device: str, data: str | None,
    data_root: str | None, force: bool, available: bool, apart: bool, record: bool, from_record: bool, jobs: int,
    out: Path, results: Path, gallery: Path | None, listing: bool,
) -> None:  # fmt: skip
    """Make the named figures (all if none is named): PDF, PNG and a JSON of provenance for each.

    Simulations are cached by content: settings, the code that simulates, and the library's source. Changing how a
    figure is drawn simulates nothing again; changing the library does.
    """
    if listing:
        list_figures()
        return
    folders = Folders(out, results, gallery)
    if from_record:
        for option, given in {"--record": record, "--force": force, "--available": available, "--apart": apart}.items():
            if given:
                raise click.UsageError(f"--redraw simulates nothing and does not go with {option}")
        failed = redraw(_variants(names, preset, data, settings, Store(results)), folders)
    else:
        if force and available:
            raise click.UsageError("--force and --available exclude each other")
        failed = make(
            _variants(names, preset, data, settings, None), Resources(device, data_root), folders, jobs=jobs,
            force=force, available=available, record=record, apart=apart,
        )  # fmt: skip
    if failed:
        click.echo(f"failed: {', '.join(sorted(failed))}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m figures")
