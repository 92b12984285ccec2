"""The command line: ``linfb train``, ``linfb rules``, ``linfb sweep``, ``linfb results``, ``linfb cite``."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import click

from linfb import __version__

__all__ = ["main"]

_OPTIMISERS = ("sgd", "rmsprop", "adam", "amsgrad", "adamw", "muon")
_OBSERVABLES = (
    "alignment", "captured_energy", "subspace_distance", "update_rank", "mirror_alignment", "mirror_stability",
)  # fmt: skip
_DATA = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "text")
_RULES = (
    "bp", "zero", "fa", "sign", "kp", "weight-mirror", "dfa", "low-rank", "direct-low-rank", "local", "normative",
)  # fmt: skip


class _Refusal(click.ClickException):
    """Something outside the command line is not as it must be, e.g. missing data."""

    exit_code = 2


class _Words(click.ParamType):
    """A text that :mod:`linfb.experiments.training` understands, such as a name and settings after a colon."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from linfb.experiments import training

        try:
            if self.name == "rank":
                training.rank_of(value)
            elif self.name in ("reader", "mirror", "augment"):
                training.part_of(self.name, value)
            else:
                training.settings_of(self.name, value)
        except (TypeError, ValueError) as error:
            self.fail(str(error), param, ctx)
        return value


class _Integers(click.ParamType):
    """Whole numbers with commas."""

    name = "integers"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(entry) for entry in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 512,512,512", param, ctx)


@click.group()
@click.version_option(__version__, prog_name="linfb")
def main() -> None:
    """Learn with low-dimensional error feedback."""


@main.command("rules")
def rules_command() -> None:
    """Show the table of learning rules."""
    from linfb.rules import by_name

    click.echo(f"{'rule':<16} {'source':<8} {'reader':<10} {'mirror':<14} transports weights")
    for name in _RULES:
        needs_rank = name in ("low-rank", "direct-low-rank", "local", "normative")
        rule = by_name(name, **({"rank": 1} if needs_rank else {}))
        transports = "yes" if rule.transports_weights else "no"
        click.echo(f"{name:<16} {rule.source:<8} {rule.reader.name:<10} {rule.mirror.name:<14} {transports}")


@main.command("cite")
@click.argument("used", nargs=-1)
def cite_command(used: tuple[str, ...]) -> None:
    """Print the references of what was USED, as BibTeX: results (files), rules, and public names of linfb.

    Such as result.nc, dfa, theory.exact_map; without any, that of the paper.
    """
    from linfb.citations import cite

    try:
        click.echo(cite(*(_attributes(Path(one)) if one.endswith(".nc") else one for one in used)))
    except ValueError as error:
        raise _Refusal(str(error)) from error


def _attributes(path: Path) -> dict[str, Any]:
    """Return what a netCDF file says of itself."""
    import xarray as xr

    try:
        with xr.open_dataset(path, engine="h5netcdf") as result:
            return result.attrs
    except OSError as error:
        raise _Refusal(f"cannot read {path}: {error}") from error


@main.command("train")
@click.option(
    "--model", type=_Words("model"), default="mlp", show_default=True,
    help="With settings, e.g. vit:width=128,depth=4,heads=4.",
)  # fmt: skip
@click.option("--hidden", type=_Integers(), default="512,512,512", show_default=True, help="Hidden widths of the MLP.")
@click.option("--norm", type=click.Choice(["batch", "none"]), help="Of mlp, vgg and retina.  [default: the model's]")
@click.option("--data", type=click.Choice(_DATA), default="digits", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data; default: LINFB_DATA.")
@click.option("--download", is_flag=True, help="Fetch missing data from their authors.")
@click.option("--text", type=click.Path(dir_okay=False, path_type=Path), help="The file for --data text.")
@click.option("--length", type=click.IntRange(1), help="Characters in a sample of text.  [default: 128]")
@click.option("--grey", is_flag=True, help="Images without colours.")
@click.option("--classes", type=click.IntRange(2), help="The first so many classes only.")
@click.option("--augment", type=_Words("augment"), multiple=True, help="E.g. crop:padding=4.")
@click.option("--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True)
@click.option("--rule", type=click.Choice(_RULES), default="low-rank", show_default=True)
@click.option("--rank", type=_Words("rank"), help="10, a fraction such as 0.125, or per layer 1:64,2:64,3:10.")
@click.option("--reader", type=_Words("reader"), help="E.g. oja or oja:on=labels,rate=5.")
@click.option("--mirror", type=_Words("mirror"), help="E.g. kolen_pollack or weight_mirror:rate=10.")
@click.option("--layers", type=_Integers(), help="Kernel layers under the rule; the others do backpropagation.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--optimizer", type=click.Choice(_OPTIMISERS), default="amsgrad", show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=6e-4, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--lr-decay", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Factor after every epoch.")
@click.option("--schedule", type=_Words("schedule"), help="E.g. cosine:warmup=2; in the place of --lr-decay.")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd.  [default: 0.9]")
@click.option("--clip-norm", type=click.FloatRange(0, min_open=True), help="Largest norm of all gradients together.")
@click.option("--error-clip", type=click.FloatRange(0, min_open=True), help="Largest entry of a carried error.")
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--observe", type=click.Choice(_OBSERVABLES), multiple=True)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--products", type=click.Choice(["tf32", "bfloat16", "float16"]), help="Precision of matrix products.")
@click.option("--threads", type=click.IntRange(1), help="On the CPU.  [default: as BLAS]")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the result (netCDF).")
@click.option("--checkpoint", type=click.Path(file_okay=False, path_type=Path), help="Folder to resume from.")
@click.option("--checkpoint-seconds", type=click.FloatRange(0), default=300.0, show_default=True)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train_command(**options: Any) -> None:
    """Train a network under a learning rule; the epoch is chosen on validation, never on test."""
    from linfb._errors import DivergenceError, InterruptedRun
    from linfb.engine import train
    from linfb.experiments import training

    out, seed, quiet, checkpoint, seconds = (
        options.pop(name) for name in ("out", "seed", "quiet", "checkpoint", "checkpoint_seconds")
    )
    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out: the folder {out.parent} does not exist")
    for name in ("text", "data_root"):
        options[name] = None if options[name] is None else str(options[name])
    try:
        config = training.Training(**options)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if (options["rank"] is None) != (config.rank is None):
        rule = f"--rule {config.rule}"
        raise click.UsageError(f"--rank is needed for {rule}" if config.rank else f"--rank does not go with {rule}")
    try:
        data, model, settings = training.arguments(config)
    except (OSError, TypeError, ValueError) as error:
        raise _Refusal(str(error)) from error
    try:
        result = train(
            data, model, training.rule_of(config), optimizer=training.optimizer_of(config), seed=seed,
            checkpoint=checkpoint, checkpoint_seconds=seconds, progress=not quiet, **settings,
        )  # fmt: skip
    except (DivergenceError, InterruptedRun) as stop:
        _stopped(stop, out)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise _Refusal(str(error)) from error
    _report(result, out)


def _write(result: Any, out: Path | None) -> None:
    if out is not None:
        result.to_netcdf(out, engine="h5netcdf")
        click.echo(f"wrote {out}")


def _report(result: Any, out: Path | None) -> None:
    epoch = int(result["chosen_epoch"])
    click.echo(
        f"epoch {epoch + 1} of {result.sizes['epoch']} chosen on validation "
        f"(accuracy {float(result['validation_accuracy'][epoch]):.4f}); test accuracy there "
        f"{float(result['test_accuracy'].sel(weights='chosen')):.4f}, "
        f"at the last epoch {float(result['test_accuracy'].sel(weights='last')):.4f}"
    )
    _write(result, out)


def _stopped(stop: Any, out: Path | None) -> NoReturn:
    click.echo(f"Stopped: {stop}", err=True)
    _write(stop.partial, out)
    raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else 1)


def pairs(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Return texts such as rank=4 as field and value; a callback of options."""
    found = {}
    for text in given:
        field, sign, rest = text.partition("=")
        if not sign or not field or not rest:
            raise click.BadParameter(f"{text!r} is no field and value such as rank=4")
        if field in found:
            raise click.BadParameter(f"{field} is given twice")
        found[field] = rest
    return found


@main.command("sweep")
@click.argument("experiment")
@click.option("--store", type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
@click.option("--set", "fixed", multiple=True, callback=pairs, help="A setting of all runs: epochs=5.")
@click.option("--grid", multiple=True, callback=pairs, help="All combinations: rank=1,2,4 and seed=0..9.")
@click.option("--zip", "zipped", multiple=True, callback=pairs, help="Lists of one length, side by side.")
@click.option(
    "--random", "drawn", multiple=True, callback=pairs,
    help="learning_rate=loguniform:1e-4,1e-2; also uniform:, integers: and choice:.",
)  # fmt: skip
@click.option("--draws", type=click.IntRange(1), help="How many points --random draws.")
@click.option("--draw-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of --random.")
@click.option("--jobs", type=click.IntRange(1), help="Processes, or workers of --dask.  [default: this process]")
@click.option("--dask", is_flag=True, help="On a Dask cluster that is started on this machine.")
@click.option("--scheduler", help="On the Dask cluster with this address or scheduler file.")
@click.option(
    "--together", type=click.IntRange(1), default=1, show_default=True,
    help="At most so many runs as one task, where they differ in seed, rank, rule or rates only.",
)  # fmt: skip
@click.option("--retry", is_flag=True, help="Run again what failed before.")
@click.option("--dry-run", is_flag=True, help="Only say what is stored and what is not.")
@click.option("--fields", is_flag=True, help="Only show the fields of the experiment.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def sweep_command(experiment: str, **options: Any) -> None:
    """Run EXPERIMENT at many settings: train, simulate, or one's own as module:name.

    Finished runs are in the store, however the sweep ends; the same command goes on from there.
    """
    if "" not in sys.path:  # modules of the present folder, as under python -m
        sys.path.insert(0, "")
    from linfb import experiments

    try:
        chosen = experiments.experiment_named(experiment)
        if options["fields"]:
            _show_fields(chosen)
            return
        fixed = {field: experiments.value(text) for field, text in options["fixed"].items()}
        points, store = _points(options), options["store"]
        if store is None:
            raise click.UsageError("--store is needed")
        runs = experiments.runs_of(chosen, points, fixed)
        store = experiments.Store(store)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if options["dry_run"]:
        _show_plan(store, runs)
        return
    try:
        with _executor(options) as executor:
            report = experiments.sweep(
                chosen, points, store, fixed=fixed, executor=executor, together=options["together"],
                retry=options["retry"], progress=not options["quiet"], say=_say,
            )  # fmt: skip
    except experiments.StoreError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt as stop:
        _say(f"Stopped: {stop}")
        raise SystemExit(130) from None
    click.echo(f"{report}; in {store.folder}")
    for key in sorted(report.failed):
        _say(f"failed: {key[:12]} {_failure(store.failure(key))}")
    if report.failed:
        _say(f"`linfb results {store.folder} --failed` shows them, --retry runs them again")
        raise SystemExit(1)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _points(options: dict[str, Any]) -> list[dict[str, Any]]:
    from linfb.experiments import crossed, designs

    parts = []
    if options["drawn"]:
        if options["draws"] is None:
            raise click.UsageError("--random needs --draws")
        made = {field: designs.distribution(text) for field, text in options["drawn"].items()}
        parts.append(designs.random(options["draws"], options["draw_seed"], **made))
    for name, design in (("zipped", designs.zipped), ("grid", designs.grid)):
        if options[name]:
            parts.append(design(**{field: designs.values(text) for field, text in options[name].items()}))
    return crossed(*parts)


def _executor(options: dict[str, Any]) -> AbstractContextManager[Any]:
    from linfb.experiments import dask_cluster, processes

    if options["dask"] and options["scheduler"]:
        raise click.UsageError("--dask and --scheduler exclude each other")
    if options["scheduler"] and options["jobs"]:
        raise click.UsageError("--jobs does not go with --scheduler, which has its own workers")
    if options["dask"] or options["scheduler"]:
        return dask_cluster(options["scheduler"], workers=options["jobs"])
    return nullcontext() if options["jobs"] is None else processes(options["jobs"])


def _show_fields(experiment: Any) -> None:
    config = experiment.config
    for name in experiment.fields:
        default = config[name] if isinstance(config, dict) else getattr(config, name)
        click.echo(f"{name:<18} {default!r}{'  (not part of the key)' if name in experiment.resources else ''}")
    click.echo(f"{'seed':<18} 0")


def _show_plan(store: Any, runs: list[Any]) -> None:
    from linfb.experiments.results import swept

    differing = swept([run.identity for run in runs])
    for run in runs:
        state = "stored" if run.key in store else "failed" if store.failure(run.key) else "to do"
        click.echo(f"{run.key[:12]}  {state:<6}  {_settings(run.identity, differing)}")


def _settings(record: Any, names: Any) -> str:
    from linfb.experiments.results import settings

    known = settings(record)
    return " ".join(f"{name}={known[name]}" for name in names if name in known)


def _failure(record: Any) -> str:
    return f"{record['error']['type']}: {record['error']['message'].strip()}" if record else ""


@main.command("results")
@click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--where", multiple=True, help="Only these: rank=4, 'seed<2', 'rule!=bp'.")
@click.option("--failed", is_flag=True, help="The runs that failed, with their errors.")
@click.option("--show", metavar="KEY", help="One result or failure, by the beginning of its key.")
@click.option("--check", is_flag=True, help="Read every result and say which are damaged.")
@click.option("--netcdf", type=click.Path(dir_okay=False, path_type=Path), help="Join results to this file.")
@click.option("--csv", type=click.Path(dir_okay=False, path_type=Path), help="Numbers of every result to this file.")
def results_command(store: Path, **options: Any) -> None:
    """List, filter and export the results of sweeps in the folder STORE."""
    from linfb.experiments import DamagedResult, Store, results

    kept = Store(store)
    try:
        if options["show"] is not None:
            _show(kept, options["show"])
        elif options["check"]:
            damaged = kept.damaged()
            for problem in damaged.values():
                _say(f"damaged: {problem}")
            click.echo(f"{len(kept.keys())} results, {len(damaged)} damaged")
            raise SystemExit(bool(damaged))
        elif options["failed"]:
            tests = [results.condition(text) for text in options["where"]]
            for key, record in kept.failures().items():
                if all(test(record) for test in tests):
                    click.echo(f"{key[:12]}  {_failure(record)}")
        else:
            _list_or_export(kept, results.selected(kept, *options["where"], say=_say), options)
    except (DamagedResult, ValueError) as error:
        raise click.UsageError(str(error)) from error


def _show(store: Any, beginning: str) -> None:
    failures = store.failures()
    found = [key for key in (*store.keys(), *failures) if key.startswith(beginning)]
    if len(found) != 1:
        raise click.UsageError(f"--show: {len(found)} keys begin with {beginning!r}")
    if (key := found[0]) in failures:
        record = failures[key]
        trace = record["error"].pop("traceback")
        click.echo(f"{key}\n{json.dumps(record, indent=1)}\n{trace}")
        return
    dataset, record = store.read(key)
    click.echo(f"{key}\n{json.dumps(record, indent=1)}\n{dataset}")


def _list_or_export(store: Any, records: dict[str, Any], options: dict[str, Any]) -> None:
    import csv
    import io

    from linfb.experiments import results
    from linfb.experiments.store import as_netcdf, write_atomically

    if options["netcdf"] or options["csv"]:
        if not records:
            raise click.UsageError("no results to export")
        if options["netcdf"]:
            whole = results.joined(store, list(records))
            write_atomically(options["netcdf"], as_netcdf(whole))
            click.echo(f"wrote {options['netcdf']}: {dict(whole.sizes)}")
        if options["csv"]:
            rows = list(results.scalars(store, records))
            text = io.StringIO()
            writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
            write_atomically(options["csv"], text.getvalue().encode())
            click.echo(f"wrote {options['csv']}: {len(rows)} rows")
        return
    differing = results.swept(records.values())
    for key, record in sorted(records.items(), key=lambda entry: results.place(entry[1], differing)):
        seconds = record["provenance"]["seconds"]
        click.echo(f"{key[:12]}  {record['experiment']}  {seconds:8.2f} s  {_settings(record, differing)}")
    failed = len(store.failures())
    click.echo(f"{len(records)} results" + (f", {failed} failed runs (--failed)" if failed else ""))
