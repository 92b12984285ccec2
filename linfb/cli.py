"""The command line: ``linfb train``, ``linfb rules``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from linfb import __version__

__all__ = ["main"]

_OPTIMISERS = ("sgd", "rmsprop", "adam", "amsgrad", "adamw", "muon")
_MODELS = ("mlp", "vgg", "resnet18", "resnet20", "vit", "retina", "decoder")
_AUGMENTATIONS = ("crop", "flip", "rotation", "cutout", "autoaugment")
_OBSERVABLES = (
    "alignment", "captured_energy", "subspace_distance", "update_rank", "mirror_alignment", "mirror_stability",
)  # fmt: skip
_SCHEDULES = ("constant", "exponential", "step", "cosine")
_DATA = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "text")
_READERS = ("identity", "fixed", "oja", "similarity_matching", "local", "normative")
_MIRRORS = ("exact", "sign", "zero", "fixed", "kolen_pollack", "weight_mirror", "normative")
_RULES = (
    "bp", "zero", "fa", "sign", "kp", "weight-mirror", "dfa", "low-rank", "direct-low-rank", "local", "normative",
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


class _Named(click.ParamType):
    """A name, and settings after a colon: a mapping from `name` to settings."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        self.name, self.names = name, names

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        chosen, _, settings = value.partition(":")
        if chosen not in self.names:
            self.fail(f"{chosen!r} is not one of {', '.join(self.names)}", param, ctx)
        pairs = [entry.partition("=") for entry in settings.split(",")] if settings else []
        if incomplete := [entry for entry, sign, _ in pairs if not sign]:
            self.fail(f"{value!r}: {incomplete[0]!r} is no setting such as rate=5", param, ctx)
        try:
            return self.made(chosen, {key: _setting(text) for key, _, text in pairs})
        except (TypeError, ValueError) as error:
            self.fail(f"{value!r}: {error}", param, ctx)

    def made(self, chosen: str, settings: dict[str, Any]) -> Any:
        """Return what the option stands for."""
        return chosen, settings


class _Part(_Named):
    """A reader or a mirror."""

    def made(self, chosen: str, settings: dict[str, Any]) -> Any:
        from linfb.rules import mirrors, readers

        module: Any = {"reader": readers, "mirror": mirrors}[self.name]
        parts = {getattr(module, entry).name: getattr(module, entry) for entry in module.__all__}
        return parts[chosen](**settings)


class _Augmentation(_Named):
    """A random change of images."""

    def made(self, chosen: str, settings: dict[str, Any]) -> Any:
        from linfb.datasets import augmentation

        names = {"crop": "RandomCrop", "flip": "RandomFlip", "rotation": "RandomRotation", "cutout": "Cutout"}
        return getattr(augmentation, names.get(chosen, "AutoAugment"))(**settings)


def _number(text: str) -> int | float:
    return int(text) if text.strip().isdigit() else float(text)


def _setting(text: str) -> Any:
    try:
        return _number(text)
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
@click.option(
    "--model", type=_Named("model", _MODELS), default="mlp", show_default=True,
    help="With settings, e.g. vit:width=128,depth=4,heads=4.",
)  # fmt: skip
@click.option("--hidden", type=_Integers(), default="512,512,512", show_default=True, help="Hidden widths of the MLP.")
@click.option("--norm", type=click.Choice(["batch", "none"]), help="Of mlp, vgg and retina.  [default: the model's]")
@click.option("--data", "data_name", type=click.Choice(_DATA), default="digits", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data; default: LINFB_DATA.")
@click.option("--download", is_flag=True, help="Fetch missing data from their authors.")
@click.option("--text", type=click.Path(dir_okay=False, path_type=Path), help="The file for --data text.")
@click.option("--length", type=click.IntRange(1), help="Characters in a sample of text.  [default: 128]")
@click.option("--grey", is_flag=True, help="Images without colours.")
@click.option("--classes", type=click.IntRange(2), help="The first so many classes only.")
@click.option("--augment", type=_Augmentation("augment", _AUGMENTATIONS), multiple=True, help="E.g. crop:padding=4.")
@click.option("--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True)
@click.option("--rule", "rule_name", type=click.Choice(_RULES), default="low-rank", show_default=True)
@click.option("--rank", type=_Rank(), help="10, a fraction such as 0.125, or per layer 1:64,2:64,3:10.")
@click.option("--reader", type=_Part("reader", _READERS), help="E.g. oja or oja:on=labels,rate=5.")
@click.option("--mirror", type=_Part("mirror", _MIRRORS), help="E.g. kolen_pollack or weight_mirror:rate=10.")
@click.option("--layers", type=_Integers(), help="Kernel layers under the rule; the others do backpropagation.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--optimizer", "optimizer_name", type=click.Choice(_OPTIMISERS), default="amsgrad", show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=6e-4, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--lr-decay", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Factor after every epoch.")
@click.option(
    "--schedule", type=_Named("schedule", _SCHEDULES), help="E.g. cosine:warmup=2; in the place of --lr-decay."
)
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
    choices = {key: options[key] for key in ("rank", "reader", "mirror", "layers")}
    rule, optimizer = _rule(options["rule_name"], choices), _optimizer(options)
    out = options["out"]
    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out: the folder {out.parent} does not exist")
    data = _data(options)

    from linfb._errors import DivergenceError, InterruptedRun
    from linfb.engine import train

    passed = (
        "epochs", "batch_size", "error_clip", "label_smoothing", "seed", "observe", "device", "dtype", "products",
        "threads", "checkpoint", "checkpoint_seconds", "augment",
    )  # fmt: skip
    try:
        splits = _splits(data, options)
        result = train(
            splits, _network(splits, options), rule, optimizer=optimizer, schedule=_schedule(options),
            progress=not options["quiet"], name=data.name, **{key: options[key] for key in passed},
        )  # fmt: skip
    except (DivergenceError, InterruptedRun) as stop:
        _stopped(stop, out)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise _Refusal(str(error)) from error
    _report(result, out)


def _splits(data: Any, options: Mapping[str, Any]) -> Any:
    if options["data_name"] == "text":
        return data.splits(dtype=options["dtype"])
    layout = "flat" if options["model"][0] == "mlp" else "image"
    return data.splits(validation=options["validation"], dtype=options["dtype"], layout=layout)


def _network(splits: Any, options: Mapping[str, Any]) -> Any:
    """Return the model for the data."""
    from linfb.engine import architectures

    name, settings = options["model"]
    if (name == "decoder") != (options["data_name"] == "text"):
        raise click.UsageError("--model decoder and --data text go together")
    if options["norm"] is not None:
        settings = {**settings, "norm": None if options["norm"] == "none" else "batch"}
    if name == "mlp":
        return architectures.mlp(splits.shape[0], options["hidden"], splits.n_classes, **settings)
    constructor = architectures.vgg_like if name == "vgg" else getattr(architectures, name)
    first = splits.shape[0] if name == "decoder" else splits.shape
    return constructor(first, splits.n_classes, **settings)


def _schedule(options: Mapping[str, Any]) -> Any:
    from linfb.engine import schedules

    if options["schedule"] is None:
        return schedules.Exponential(options["lr_decay"])
    name, settings = options["schedule"]
    if options["lr_decay"] != 1.0:
        raise click.UsageError("--lr-decay and --schedule exclude each other")
    if name == "cosine":
        settings = {"epochs": options["epochs"], **settings}
    return getattr(schedules, name.capitalize())(**settings)


def _optimizer(options: Mapping[str, Any]) -> Any:
    from linfb import engine

    settings = {"weight_decay": options["weight_decay"]}
    if options["optimizer_name"] == "sgd":
        settings["momentum"] = 0.9 if options["momentum"] is None else options["momentum"]
    elif options["momentum"] is not None:
        raise click.UsageError(f"--momentum does not go with --optimizer {options['optimizer_name']}")
    optimiser = getattr(engine, options["optimizer_name"])(options["learning_rate"], **settings)
    return engine.Optimizers(optimiser, clip_norm=options["clip_norm"])


def _data(options: Mapping[str, Any]) -> Any:
    from linfb.datasets import load_dataset, load_text

    name = options["data_name"]
    if (name == "text") != (options["text"] is not None):
        raise click.UsageError("--data text and --text FILE go together")
    if name != "text" and options["length"] is not None:
        raise click.UsageError("--length goes with --data text")
    try:
        if name == "text":
            return load_text(options["text"], length=options["length"] or 128)
        data = load_dataset(name, root=options["data_root"], download=options["download"])
        data = data.grey() if options["grey"] else data
        return data if options["classes"] is None else data.classes(options["classes"])
    except (OSError, ValueError) as error:
        raise _Refusal(f"--data {name}: {error}") from error


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
