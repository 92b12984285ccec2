"""The experiment that ``linfb train`` is: its options as a configuration of plain words and numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from linfb._checks import choice, integer, real
from linfb.experiments.experiment import Experiment, Together, resource

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Training", "train"]

OPTIMISERS = ("sgd", "rmsprop", "adam", "amsgrad", "adamw", "muon")
MODELS = ("mlp", "vgg", "resnet18", "resnet20", "vit", "retina", "decoder")
AUGMENTATIONS = {"crop": "RandomCrop", "flip": "RandomFlip", "rotation": "RandomRotation", "cutout": "Cutout",
                 "autoaugment": "AutoAugment"}  # fmt: skip
SCHEDULES = ("constant", "exponential", "step", "cosine")
DATA = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "text")


@dataclass(frozen=True)
class Training:
    """What ``linfb train`` is told, under the names of its options.

    Parameters
    ----------
    data : str
        A name of :func:`linfb.datasets.load_dataset`, or "text".
    text : str, optional
        The file for "text"; its path is what a stored result is known by.
    length : int, optional
        Characters in a sample of text.
    grey : bool
    classes : int, optional
        The first so many classes only.
    augment : tuple of str
        E.g. ``("flip", "crop:padding=4")``.
    validation : float
        Share of the training part.
    model : str
        With settings, e.g. ``"vit:width=128,depth=4,heads=4"``.
    hidden : tuple of int
        Widths of the perceptron.
    norm : {None, "batch", "none"}
        None is the model's own.
    rule : str
        A name of :func:`linfb.rules.by_name`.
    rank : int, float, str or mapping, optional
        As for :class:`linfb.rules.Rule`; by layer also as text, ``"1:64,2:10"``. A rule without a channel has none,
        whatever is said here, so that ranks and rules can be crossed; rules that need one have 10 if none is said.
    reader, mirror : str, optional
        With settings, e.g. ``"oja:on=labels,rate=5"``.
    layers : tuple of int, optional
        Kernel layers under the rule.
    epochs, batch_size : int
    optimizer : str
    learning_rate, weight_decay : float
    lr_decay : float
        Factor after every epoch.
    schedule : str, optional
        In its place, e.g. ``"cosine:warmup=2"``.
    momentum : float, optional
        Of sgd.
    clip_norm, error_clip : float, optional
    label_smoothing : float
    observe : tuple of str
        Names of :data:`linfb.engine.observables.OBSERVABLES`.
    dtype, products
        As for :func:`linfb.engine.train`.
    data_root : str, optional
        Folder of the data; like the following, no part of what a result is known by.
    download : bool
    device : {"cpu", "gpu"}
    threads : int, optional
    """

    data: str = "digits"
    text: str | None = None
    length: int | None = None
    grey: bool = False
    classes: int | None = None
    augment: tuple[str, ...] = ()
    validation: float = 0.1
    model: str = "mlp"
    hidden: tuple[int, ...] = (512, 512, 512)
    norm: str | None = None
    rule: str = "low-rank"
    rank: int | float | str | Mapping | None = None
    reader: str | None = None
    mirror: str | None = None
    layers: tuple[int, ...] | None = None
    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "amsgrad"
    learning_rate: float = 6e-4
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    schedule: str | None = None
    momentum: float | None = None
    clip_norm: float | None = None
    error_clip: float | None = None
    label_smoothing: float = 0.0
    observe: tuple[str, ...] = ()
    dtype: str = "float32"
    products: str | None = None
    data_root: str | None = resource(None, recorded=False)
    download: bool = resource(False, recorded=False)
    device: str = resource("cpu")
    threads: int | None = resource(None)

    def __post_init__(self) -> None:
        from linfb.engine.observables import OBSERVABLES

        choice("data", self.data, DATA)
        if (self.data == "text") != (self.text is not None):
            raise ValueError("data text and a file as text go together (--data text --text FILE)")
        if self.data != "text" and self.length is not None:
            raise ValueError("length goes with data text")
        if (settings_of("model", self.model)[0] == "decoder") != (self.data == "text"):
            raise ValueError("model decoder and data text go together")
        choice("norm", self.norm or "none", ("batch", "none"))
        choice("dtype", self.dtype, ("float32", "float64"))
        choice("products", self.products or "tf32", ("tf32", "bfloat16", "float16"))
        choice("device", self.device, ("cpu", "gpu"))
        for name in self.observe:
            choice("observe", name, OBSERVABLES)
        for name, least in {"epochs": 1, "batch_size": 1, "length": 1, "classes": 2, "threads": 1}.items():
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), at_least=least)
        for name, bounds in _BOUNDS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(name, getattr(self, name), **bounds))
        object.__setattr__(self, "rank", _rank_in(self.rule, self.rank))
        for part in (rule_of, optimizer_of, schedule_of, _augmentations):
            part(self)


_BOUNDS: dict[str, dict[str, float]] = {
    "validation": {"above": 0, "below": 1}, "learning_rate": {"above": 0}, "weight_decay": {"at_least": 0},
    "lr_decay": {"above": 0, "at_most": 1}, "momentum": {"at_least": 0, "below": 1}, "clip_norm": {"above": 0},
    "error_clip": {"above": 0}, "label_smoothing": {"at_least": 0, "below": 1},
}  # fmt: skip


def run(config: Training, seed: int) -> xr.Dataset:
    """Return the result of :func:`linfb.engine.train`; its variable ``rank`` is called ``channel_rank``."""
    from linfb.engine import train as trained

    data, model, settings = arguments(config)
    result = trained(
        data, model, rule_of(config), optimizer=optimizer_of(config), seed=seed, progress=False, **settings
    )
    return result.rename(rank="channel_rank")


def run_together(configs: Sequence[Training], seeds: Sequence[int]) -> list[Any]:
    """Return the result of each run, all trained as one ensemble; an error for those that diverged."""
    from linfb._errors import DivergenceError, InterruptedRun
    from linfb.engine.ensembles import Member, train_members

    data, model, settings = arguments(configs[0])
    members = [Member(rule_of(config), optimizer_of(config), seed) for config, seed in zip(configs, seeds, strict=True)]
    _, results, errors, interrupted = train_members(data, model, members, progress=False, **settings)
    if interrupted:
        raise InterruptedRun("interrupted while runs were trained together")
    return [
        result.rename(rank="channel_rank") if error is None else DivergenceError(error)
        for result, error in zip(results, errors, strict=True)
    ]


def arguments(config: Training) -> tuple[Any, Any, dict[str, Any]]:
    """Return splits, model and keywords of :func:`linfb.engine.train`: all but rule, optimiser and seed."""
    data = _data(config)
    splits = _splits(data, config)
    settings = {
        name: getattr(config, name)
        for name in ("epochs", "batch_size", "error_clip", "label_smoothing", "observe", "device", "dtype", "products",
                     "threads")
    }  # fmt: skip
    settings |= {"augment": _augmentations(config), "schedule": schedule_of(config), "name": data.name}
    return splits, _model(splits, config), settings


def rule_of(config: Training) -> Any:
    """Return the rule."""
    from linfb import rules

    parts = {name: part_of(name, getattr(config, name)) for name in ("reader", "mirror") if getattr(config, name)}
    choices = {"rank": rank_of(config.rank), "layers": config.layers} | parts
    given = {name: value for name, value in choices.items() if value is not None}
    for name in given:
        if name not in _choices_of(config.rule):
            raise ValueError(f"{name} does not go with rule {config.rule}")
    return rules.by_name(config.rule, **given)


def _choices_of(rule: str) -> Mapping[str, inspect.Parameter]:
    from linfb import rules

    constructor = rules.low_rank if rule == "direct-low-rank" else rules._NAMED[choice("rule", rule, rules.names)]
    return inspect.signature(constructor).parameters


def _rank_in(rule: str, rank: Any) -> Any:
    """Return the rank as a number, a text or None, as the rule has it."""
    choices = _choices_of(rule)
    if "rank" not in choices:
        return None
    if rank is None:
        return 10 if choices["rank"].default is inspect.Parameter.empty else None
    found = rank_of(rank)
    return ",".join(f"{layer}:{one}" for layer, one in found.items()) if isinstance(found, Mapping) else found


def optimizer_of(config: Training) -> Any:
    """Return the optimiser of all arrays."""
    from linfb import engine

    settings = {"weight_decay": config.weight_decay}
    if choice("optimizer", config.optimizer, OPTIMISERS) == "sgd":
        settings["momentum"] = 0.9 if config.momentum is None else config.momentum
    elif config.momentum is not None:
        raise ValueError(f"momentum does not go with optimizer {config.optimizer}")
    optimiser = getattr(engine, config.optimizer)(config.learning_rate, **settings)
    return engine.Optimizers(optimiser, clip_norm=config.clip_norm)


def schedule_of(config: Training) -> Any:
    """Return the factor on learning rates."""
    from linfb.engine import schedules

    if config.schedule is None:
        return schedules.Exponential(config.lr_decay)
    name, settings = settings_of("schedule", config.schedule)
    if config.lr_decay != 1.0:
        raise ValueError("lr_decay and schedule exclude each other")
    if name == "cosine":
        settings = {"epochs": config.epochs, **settings}
    return _made("schedule", getattr(schedules, name.capitalize()), settings)


def _augmentations(config: Training) -> tuple[Any, ...]:
    return tuple(part_of("augment", text) for text in config.augment)


def _data(config: Training) -> Any:
    from linfb.datasets import load_dataset, load_text

    try:
        if config.text is not None:
            return load_text(config.text, length=config.length or 128)
        data = load_dataset(config.data, root=config.data_root, download=config.download)
        data = data.grey() if config.grey else data
        return data if config.classes is None else data.classes(config.classes)
    except (OSError, ValueError) as error:
        raise ValueError(f"data {config.data}: {error}") from error


def _splits(data: Any, config: Training) -> Any:
    if config.text is not None:
        return data.splits(dtype=config.dtype)
    layout = "flat" if settings_of("model", config.model)[0] == "mlp" else "image"
    return data.splits(validation=config.validation, dtype=config.dtype, layout=layout)


def _model(splits: Any, config: Training) -> Any:
    from linfb.engine import architectures

    name, settings = settings_of("model", config.model)
    if config.norm is not None:
        settings = {**settings, "norm": None if config.norm == "none" else "batch"}
    if name == "mlp":
        return _made("model", partial(architectures.mlp, splits.shape[0], config.hidden, splits.n_classes), settings)
    constructor = architectures.vgg_like if name == "vgg" else getattr(architectures, name)
    first = splits.shape[0] if name == "decoder" else splits.shape
    return _made("model", partial(constructor, first, splits.n_classes), settings)


# Words


def names_of(field: str) -> tuple[str, ...]:
    """Return the words that a field knows, in front of a colon and settings."""
    if field in ("reader", "mirror"):
        return tuple(_parts(field))
    return {"model": MODELS, "schedule": SCHEDULES, "augment": tuple(AUGMENTATIONS)}[field]


def settings_of(field: str, text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings that a text such as ``"cosine:warmup=2"`` holds.

    Examples
    --------
    >>> settings_of("schedule", "cosine:warmup=2")
    ('cosine', {'warmup': 2})
    """
    name, _, settings = text.partition(":")
    choice(field, name, names_of(field))
    pairs = [entry.partition("=") for entry in settings.split(",")] if settings else []
    if incomplete := [entry for entry, sign, _ in pairs if not sign]:
        raise ValueError(f"{field} {text!r}: {incomplete[0]!r} is no setting such as rate=5")
    return name, {key: _setting(value) for key, _, value in pairs}


def part_of(field: str, text: str) -> Any:
    """Return the reader, mirror or augmentation that a text stands for."""
    from linfb.datasets import augmentation

    name, settings = settings_of(field, text)
    constructor = getattr(augmentation, AUGMENTATIONS[name]) if field == "augment" else _parts(field)[name]
    return _made(field, constructor, settings)


def _made(field: str, constructor: Any, settings: Mapping[str, Any]) -> Any:
    known = inspect.signature(constructor).parameters
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"{field} has no setting {unknown[0]!r}; there are {', '.join(known) or 'none'}")
    try:
        return constructor(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field}: {error}") from error


def _parts(field: str) -> dict[str, Any]:
    from linfb.rules import mirrors, readers

    module: Any = {"reader": readers, "mirror": mirrors}[field]
    return {getattr(module, entry).name: getattr(module, entry) for entry in module.__all__}


def rank_of(rank: Any) -> Any:
    """Return a rank as rules take it, from a number, a mapping, or the text of either.

    Examples
    --------
    >>> rank_of("0.5"), rank_of("1:64,2:0.25")
    (0.5, {1: 64, 2: 0.25})
    """
    if isinstance(rank, Mapping):
        return {int(layer): one for layer, one in rank.items()}
    if not isinstance(rank, str):
        return rank
    try:
        if ":" not in rank:
            return _number(rank)
        return {int(layer): _number(one) for layer, one in (entry.split(":") for entry in rank.split(","))}
    except ValueError as error:
        raise ValueError(f"{rank!r} is not a rank: give 10, 0.125 or 1:64,2:64,3:10") from error


def _number(text: str) -> int | float:
    return int(text) if text.strip().isdigit() else float(text)


def _setting(text: str) -> Any:
    try:
        return _number(text)
    except ValueError:
        return text


train = Experiment(
    "train", 1, Training(), run,
    Together(("rule", "rank", "reader", "mirror", "layers", "optimizer", "learning_rate", "weight_decay", "momentum"),
             run_together),
)  # fmt: skip
"""What ``linfb train`` does, as an experiment."""
