"""The command line: ``linfb train``, ``linfb rules``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from linfb import __version__

__all__ = ["main"]

_OPTIMISERS = ("sgd", "adam", "amsgrad", "adamw")
_READERS = ("identity", "fixed", "oja", "local", "normative")
_MIRRORS = ("exact", "zero", "fixed", "kolen_pollack", "weight_mirror", "normative")
_RULES = (
    "bp", "zero", "fa", "kp", "weight-mirror", "dfa", "low-rank", "direct-low-rank", "local", "normative",
)  # fmt: skip


class _Refusal(click.ClickException):
    """Something outside the command line is not as it must be, e.g. missing data."""

    exit_code = 2


class _Rank(click.ParamType):
    """A width, a fraction of the width, or one of either for each layer."""

    name = "rank"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            if ":" not in value:
                return _number(value)
            return {int(layer): _number(rank) for layer, rank in (entry.split(":") for entry in value.split(","))}
        except ValueError:
            self.fail(f"{value!r} is not a rank: give 10, 0.125 or 1:64,2:64,3:10", param, ctx)


class _Widths(click.ParamType):
    """Widths of the hidden layers, with commas."""

    name = "widths"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(width) for width in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of widths: give 512,512,512", param, ctx)


class _Part(click.ParamType):
    """A reader or a mirror: its name, and settings after a colon."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        self.name, self.names = name, names

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from linfb.rules import mirrors, readers

        module: Any = {"reader": readers, "mirror": mirrors}[self.name]
        chosen, _, settings = value.partition(":")
        parts = {getattr(module, entry).name: getattr(module, entry) for entry in module.__all__}
        if chosen not in self.names:
            self.fail(f"{chosen!r} is not one of {', '.join(self.names)}", param, ctx)
        try:
            pairs = [entry.partition("=") for entry in settings.split(",")] if settings else []
            if incomplete := [entry for entry, sign, _ in pairs if not sign]:
                self.fail(f"{value!r}: {incomplete[0]!r} is no setting such as rate=5", param, ctx)
            return parts[chosen](**{key: _setting(text) for key, _, text in pairs})
        except (TypeError, ValueError) as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def _number(text: str) -> int | float:
    return int(text) if text.strip().isdigit() else float(text)


def _setting(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _rule(name: str, choices: Mapping[str, Any]) -> Any:
    """Return the rule that the options describe."""
    from linfb import rules

    constructor = rules._NAMED[name]
    if name == "direct-low-rank":
        constructor = rules.low_rank
    parameters = inspect.signature(constructor).parameters
    given = {key: value for key, value in choices.items() if value is not None}
    for key in given:
        if key not in parameters:
            raise click.UsageError(f"--{key} does not go with --rule {name}")
    if "rank" in parameters and parameters["rank"].default is inspect.Parameter.empty and "rank" not in given:
        raise click.UsageError(f"--rank is needed for --rule {name}")
    try:
        return rules.by_name(name, **given)
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"--rule {name}: {error}") from error


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


@main.command("train")
@click.option("--model", type=click.Choice(["mlp"]), default="mlp", show_default=True)
@click.option("--hidden", type=_Widths(), default="512,512,512", show_default=True, help="Hidden widths of the MLP.")
@click.option("--norm", type=click.Choice(["batch", "none"]), default="batch", show_default=True)
@click.option(
    "--data", "data_name", type=click.Choice(["digits", "mnist", "cifar10", "cifar100"]), default="digits",
    show_default=True,
)  # fmt: skip
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data; default: LINFB_DATA.")
@click.option("--download", is_flag=True, help="Fetch missing data from their authors.")
@click.option("--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True)
@click.option("--rule", "rule_name", type=click.Choice(_RULES), default="low-rank", show_default=True)
@click.option("--rank", type=_Rank(), help="10, a fraction such as 0.125, or per layer 1:64,2:64,3:10.")
@click.option("--reader", type=_Part("reader", _READERS), help="E.g. oja or oja:on=labels,rate=5.")
@click.option("--mirror", type=_Part("mirror", _MIRRORS), help="E.g. kolen_pollack or weight_mirror:rate=10.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--optimizer", "optimizer_name", type=click.Choice(_OPTIMISERS), default="amsgrad", show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=6e-4, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--lr-decay", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Factor after every epoch.")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd.  [default: 0.9]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--observe", type=click.Choice(["alignment", "captured_energy", "mirror_stability"]), multiple=True)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the result (netCDF).")
@click.option("--checkpoint", type=click.Path(file_okay=False, path_type=Path), help="Folder to resume from.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train_command(model: str, **options: Any) -> None:
    """Train a network on images under a learning rule; the epoch is chosen on validation, never on test."""
    choices = {key: options[key] for key in ("rank", "reader", "mirror")}
    rule, optimizer = _rule(options["rule_name"], choices), _optimizer(options)
    out = options["out"]
    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out: the folder {out.parent} does not exist")
    data = _data(options)

    from linfb._errors import DivergenceError, InterruptedRun
    from linfb.engine import Exponential, mlp, train

    try:
        splits = data.splits(validation=options["validation"], dtype=options["dtype"])
        network = mlp(
            splits.shape[0], options["hidden"], splits.n_classes, norm=None if options["norm"] == "none" else "batch"
        )
        result = train(
            splits, network, rule, epochs=options["epochs"], batch_size=options["batch_size"], optimizer=optimizer,
            schedule=Exponential(options["lr_decay"]), seed=options["seed"], observe=options["observe"],
            device=options["device"], dtype=options["dtype"], progress=not options["quiet"],
            checkpoint=options["checkpoint"], name=data.name,
        )  # fmt: skip
    except (DivergenceError, InterruptedRun) as stop:
        _stopped(stop, out)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise _Refusal(str(error)) from error
    _report(result, out)


def _optimizer(options: Mapping[str, Any]) -> Any:
    from linfb import engine

    settings = {"weight_decay": options["weight_decay"]}
    if options["optimizer_name"] == "sgd":
        settings["momentum"] = 0.9 if options["momentum"] is None else options["momentum"]
    elif options["momentum"] is not None:
        raise click.UsageError(f"--momentum does not go with --optimizer {options['optimizer_name']}")
    return getattr(engine, options["optimizer_name"])(options["learning_rate"], **settings)


def _data(options: Mapping[str, Any]) -> Any:
    from linfb.datasets import load_dataset

    try:
        return load_dataset(options["data_name"], root=options["data_root"], download=options["download"])
    except (OSError, ValueError) as error:
        raise _Refusal(f"--data {options['data_name']}: {error}") from error


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
