"""The command line of the figures: `python -m figures [names]`."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from figures import NAMES, load
from figures._run import Part, Resources, draw, fill, joined, parts_of, provenance, write_record

DATA = ("digits", "mnist", "cifar10")


def configured(name: str, preset: str, data: str | None) -> Any:
    """Return the configuration of a figure, on other data where it uses any."""
    module = load(name)
    if preset not in module.CONFIGS:
        raise ValueError(f"preset {preset!r} does not exist for {name}; it has {', '.join(module.CONFIGS)}")
    config = module.CONFIGS[preset]
    return module.on_data(config, data) if data and hasattr(module, "on_data") else config


def list_figures() -> None:
    """Print every figure with the first line of its description."""
    for name in NAMES:
        click.echo(f"{name:16s}{(load(name).__doc__ or '').strip().splitlines()[0]}")


def make(
    names: Sequence[str], preset: str, resources: Resources, out: Path, *, data: str | None = None, jobs: int = 1,
    force: bool = False, gallery: Path | None = None,
) -> list[str]:  # fmt: skip
    """Make figures and return the names of those that failed."""
    begin, failed = time.perf_counter(), []
    configs, waiting = {}, {}
    for name in names:
        try:
            configs[name] = configured(name, preset, data)
            waiting[name] = parts_of(name, configs[name], resources)
        except Exception as error:
            failed.append(name)
            report(name, error)

    def say(text: str) -> None:
        click.echo(f"[{time.perf_counter() - begin:6.1f} s] {text}")

    everything = [part for parts in waiting.values() for part in parts]
    say(f"{len(waiting)} figures in {len(everything)} parts, preset {preset}, {resources.device}")
    ready: dict[str, list[Part]] = {name: [] for name in waiting}
    for done, part in enumerate(fill(everything, resources, out / "cache", jobs=jobs, force=force, say=say), start=1):
        name = part.name
        if "error" in part.record:
            say(f"({done}/{len(everything)}) {name} [{part.label}] FAILED")
            report(f"{name} [{part.label}]", part.record["error"])
        else:
            how = "from cache" if part.record["from_cache"] else f"simulated in {part.record['seconds']} s"
            say(f"({done}/{len(everything)}) {name} [{part.label}] {how}")
        ready[name].append(part)
        if len(ready[name]) < len(waiting[name]):
            continue
        try:
            if any("error" in part.record for part in ready[name]):
                failed.append(name)
                continue
            finish(name, preset, configs[name], resources, ready[name], out, gallery)
            say(f"{name}: {out / name}.pdf .png .json")
        except Exception as error:
            failed.append(name)
            report(name, error)
    say(f"{len(names) - len(failed)} of {len(names)} figures made")
    return failed


def finish(
    name: str, preset: str, config: Any, resources: Resources, parts: list[Part], out: Path, gallery: Path | None
) -> None:
    """Draw a figure whose parts are all there, and write its provenance."""
    checks = draw(name, config, joined(name, config, parts), out)
    record = provenance(name, preset, config, resources, parts) | {"checks": checks}
    write_record(out / f"{name}.json", record)
    if gallery is not None:
        gallery.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "json"):
            (gallery / f"{name}.{suffix}").write_bytes((out / f"{name}.{suffix}").read_bytes())
    for key, value in checks.items():
        click.echo(f"             {key}: {value:.3g}")


def report(name: str, error: BaseException) -> None:
    """Print what went wrong with a figure."""
    click.echo(f"{name} failed:\n" + "".join(traceback.format_exception(error)), err=True)


def _names(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in NAMES:
            raise click.BadParameter(f"{name!r} is not a figure; there are {', '.join(NAMES)}")
    return tuple(dict.fromkeys(value)) or NAMES


@click.command()
@click.argument("names", nargs=-1, callback=_names)
@click.option("--preset", type=click.Choice(["quick", "cpu", "paper"]), default="quick", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--data", type=click.Choice(DATA), help="Images of the figures mlp, networks and receptive_fields.")
@click.option("--data-root", type=click.Path(exists=True, file_okay=False), help="Folder of image data [LINFB_DATA].")
@click.option("--force", is_flag=True, help="Simulate again even what is cached.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes [one per core].")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("figures/output"),
              show_default=True)  # fmt: skip
@click.option("--gallery", type=click.Path(file_okay=False, path_type=Path), help="Also copy PNG and JSON here.")
@click.option("--list", "listing", is_flag=True, help="List the figures and stop.")
def main(
    names: tuple[str, ...], preset: str, device: str, data: str | None, data_root: str | None, force: bool, jobs: int,
    out: Path, gallery: Path | None, listing: bool,
) -> None:  # fmt: skip
    """Make the named figures (all if none is named): PDF, PNG and a JSON of provenance for each.

    Simulations are cached by content: settings, the code that simulates, and the library's source. Changing how a
    figure is drawn simulates nothing again; changing the library does.
    """
    if listing:
        list_figures()
        return
    if data and not any(hasattr(load(name), "on_data") for name in names):
        raise click.BadParameter(f"none of {', '.join(names)} uses images", param_hint="--data")
    resources = Resources(device, data_root)
    failed = make(names, preset, resources, out, data=data, jobs=jobs, force=force, gallery=gallery)
    if failed:
        click.echo(f"failed: {', '.join(sorted(failed))}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m figures")
