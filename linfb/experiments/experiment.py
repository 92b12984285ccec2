"""What a run is: an experiment with its version, a configuration, a seed. Their hash is the key of its result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._checks import integer

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Experiment", "Run", "Together", "changed", "experiment_named", "resource"]

_RESOURCE = "linfb.resource"
READY = {"train": "linfb.experiments.training:train", "simulate": "linfb.experiments.simulation:simulate"}
"""Where the experiments lie that come with linfb."""


def resource(default: Any, *, recorded: bool = True) -> Any:
    """Return a field of a configuration that says where or how fast a run is computed, not what its result is.

    Such a field, e.g. the device, can be set in a sweep but not swept over, and is not part of the key. It is part of
    the result's provenance unless `recorded` is False, as for folders, which mean nothing elsewhere.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     rate: float = 0.1
    ...     device: str = resource("cpu")
    >>> walk = Experiment("walk", 1, Config(), lambda config, seed: ...)
    >>> walk.described(Config(device="gpu"))
    {'rate': 0.1}
    """
    return dataclasses.field(default=default, metadata={_RESOURCE: recorded})


@dataclass(frozen=True)
class Together:
    """How runs of an experiment are computed as one task.

    Parameters
    ----------
    fields : tuple of str
        In what the runs of one task may differ, beside the seed.
    run : callable
        From a sequence of configurations and one of seeds to a sequence of data sets, or of an exception for a run that
        failed: each as the experiment's own function would give it alone, to rounding.
    """

    fields: tuple[str, ...]
    run: Callable[[Sequence[Any], Sequence[int]], Sequence[Any]]


@dataclass(frozen=True)
class Experiment:
    """Something that can be run again and again, with other settings and seeds.

    Parameters
    ----------
    name : str
    version : int
        To be raised when the function changes so that stored results are not what it would give now.
    config : mapping or instance of a frozen dataclass
        The settings as they are where a sweep says nothing else, of what JSON can hold (tuples count as lists). A
        dataclass may refuse settings in its ``__post_init__``; a setting must be of the type that its annotation, or in
        a mapping its default, has.
    run : callable
        ``run(config, seed) -> xarray.Dataset``; a function of a module, so that other processes find it.
    together : Together, optional
        How to do several runs as one task.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as it must be.

    Examples
    --------
    >>> import numpy, xarray
    >>> def walk(config, seed):
    ...     steps = numpy.random.default_rng(seed).normal(0.0, config["width"], config["steps"])
    ...     return xarray.Dataset({"end": steps.sum()})
    >>> experiment = Experiment("walk", 1, {"steps": 100, "width": 1.0}, walk)
    >>> experiment.configured({"width": 2})
    {'steps': 100, 'width': 2.0}
    >>> experiment.configured({"length": 2})
    Traceback (most recent call last):
        ...
    ValueError: walk has no field 'length'; its fields are 'steps', 'width', 'seed'
    """

    name: str
    version: int
    config: Any
    run: Callable[[Any, int], xr.Dataset]
    together: Together | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name of an experiment must be a word, got {self.name!r}")
        integer("version", self.version, at_least=0)
        if not callable(self.run):
            raise TypeError(f"run must be a function of a configuration and a seed, got {self.run!r}")
        frozen = dataclasses.is_dataclass(self.config) and not isinstance(self.config, type)
        if not (isinstance(self.config, Mapping) or (frozen and self.config.__dataclass_params__.frozen)):
            raise TypeError(f"config must be a mapping or an instance of a frozen dataclass, got {self.config!r}")
        if "seed" in self.fields:
            raise ValueError("config must not hold the seed, which is a run's own")
        for field in self.together.fields if self.together else ():
            if field not in self.fields:
                raise ValueError(f"together names the field {field!r}, which config does not have")
        self.described(self.config)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(_kinds(self.config))

    @cached_property
    def resources(self) -> tuple[str, ...]:
        """Names of the settings that are no part of the key, see :func:`resource`."""
        if isinstance(self.config, Mapping):
            return ()
        return tuple(field.name for field in dataclasses.fields(self.config) if _RESOURCE in field.metadata)

    def configured(self, changes: Mapping[str, Any]) -> Any:
        """Return the configuration with some settings changed.

        Raises
        ------
        ValueError
            For a field that does not exist, or a setting that it cannot have; the message names the field.
        """
        config = changed(self.name, self.config, changes, others=("seed",))
        self.described(config)
        return config

    def described(self, config: Any) -> dict[str, Any]:
        """Return what a configuration says about results, as JSON holds it."""
        values = config if isinstance(config, Mapping) else dataclasses.asdict(config)
        return {name: _jsonable(name, value) for name, value in values.items() if name not in self.resources}

    def placed(self, config: Any) -> dict[str, Any]:
        """Return the settings that are no part of the key, as the provenance records them."""
        if isinstance(self.config, Mapping):
            return {}
        fields = dataclasses.fields(self.config)
        return {one.name: getattr(config, one.name) for one in fields if one.metadata.get(_RESOURCE)}


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Parameters
    ----------
    experiment : Experiment
    config : mapping or dataclass
        A whole configuration, see :meth:`Experiment.configured`.
    seed : int
    """

    experiment: Experiment
    config: Any
    seed: int

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "seed", integer("seed", self.seed, at_least=0))
        except TypeError as error:
            raise ValueError(str(error)) from error

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the key is made of: the experiment's name and version, the configuration, the seed."""
        return {
            "experiment": self.experiment.name,
            "version": self.experiment.version,
            "config": self.experiment.described(self.config),
            "seed": self.seed,
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the run's identity, in hexadecimal digits."""
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def experiment_named(name: str) -> Experiment:
    """Return an experiment that comes with linfb, or one's own as ``module:name``.

    Raises
    ------
    ValueError
        If there is no such experiment, or what the name leads to is none.

    Examples
    --------
    >>> experiment_named("train").version
    1
    """
    module, colon, attribute = READY.get(name, name).partition(":")
    if not colon:
        raise ValueError(f"experiment must be one of {', '.join(map(repr, READY))} or module:name, got {name!r}")
    try:
        found = getattr(import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"experiment {name!r}: module {module!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"experiment {name!r}: module {module!r} has no {attribute!r}") from error
    if not isinstance(found, Experiment):
        raise ValueError(f"experiment {name!r} is no linfb.experiments.Experiment but {found!r}")
    return found


def changed(name: str, config: Any, changes: Mapping[str, Any], *, others: Sequence[str] = ()) -> Any:
    """Return a configuration with some settings changed; ``part.field`` is a setting of a configuration within it.

    Parameters
    ----------
    name : str
        What the configuration is of, for messages.
    config : mapping or instance of a frozen dataclass
    changes : mapping
        From fields to settings of the types that their annotations, or in a mapping their present values, have; lists
        count as tuples and whole numbers as numbers.
    others : sequence of str
        Words that messages list beside the fields.

    Raises
    ------
    ValueError
        For a field that does not exist, or a setting that it cannot have; the message names the field.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     rates: tuple[float, ...] = (0.1,)
    ...     sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"width": 8, "depth": 2})
    >>> changed("walk", Config(), {"rates": [1, 2], "sizes.depth": 3})
    Config(rates=(1.0, 2.0), sizes={'width': 8, 'depth': 3})
    >>> changed("walk", Config(), {"rates": ["fast"]})
    Traceback (most recent call last):
        ...
    ValueError: rates[0] must be a number, got 'fast'
    """
    kinds, settings = _kinds(config), {}
    within: dict[str, dict[str, Any]] = {}
    for field, value in changes.items():
        first, _, rest = field.partition(".")
        if field in kinds:
            settings[field] = _fitted(field, value, kinds[field])
        elif rest and first in kinds and _has_fields(_of(config, first)):
            within.setdefault(first, {})[rest] = value
        else:
            known = ", ".join(map(repr, (*kinds, *others)))
            raise ValueError(f"{name} has no field {field!r}; its fields are {known}")
    for first, inner in within.items():
        settings[first] = changed(f"{first} of {name}", settings.get(first, _of(config, first)), inner)
    try:
        return {**config, **settings} if isinstance(config, Mapping) else dataclasses.replace(config, **settings)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{field}={value!r}" for field, value in changes.items())
        raise ValueError(f"{name} with {given or 'its defaults'}: {error}") from error


def _has_fields(config: Any) -> bool:
    return isinstance(config, Mapping) or (dataclasses.is_dataclass(config) and not isinstance(config, type))


def _of(config: Any, field: str) -> Any:
    return config[field] if isinstance(config, Mapping) else getattr(config, field)


def _kinds(config: Any) -> dict[str, Any]:
    """Return what each setting may be, as an annotation."""
    if isinstance(config, Mapping):
        return {name: Any if value is None else type(value) for name, value in config.items()}
    hints = typing.get_type_hints(type(config))
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _jsonable(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be of finite numbers, words, lists and mappings of them, got {value!r}"
        ) from error


def _fitted(name: str, value: Any, kind: Any) -> Any:
    """Return a setting as its annotation wants it (lists as tuples, whole numbers as floats), or refuse it."""
    allowed = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if isinstance(value, np.generic):
        value = value.item()
    value = _frozen(value)
    for one in allowed:
        if _is_a(value, one):
            return _entries_fitted(name, value, one) if typing.get_origin(one) is tuple else value
    if float in allowed and _is_a(value, int):
        return float(value)
    wanted = " or ".join(_word(typing.get_origin(one) or one) for one in allowed)
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _entries_fitted(name: str, values: tuple[Any, ...], kind: Any) -> tuple[Any, ...]:
    kinds = typing.get_args(kind)
    if kinds[-1:] == (...,):
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise ValueError(f"{name} must be a list of {len(kinds)}, got {values!r}")
    return tuple(_fitted(f"{name}[{i}]", *entry) for i, entry in enumerate(zip(values, kinds, strict=True)))


def _word(kind: Any) -> str:
    words = {
        types.NoneType: "None", bool: "true or false", int: "a whole number", float: "a number", str: "a word",
        tuple: "a list", list: "a list", Sequence: "a list", dict: "a mapping", Mapping: "a mapping",
    }  # fmt: skip
    return words.get(kind) or str(getattr(kind, "__name__", kind))


def _is_a(value: Any, kind: Any) -> bool:
    plain = typing.get_origin(kind) or kind
    if plain is typing.Literal:
        return value in typing.get_args(kind)
    if plain is Any or not isinstance(plain, type):
        return True
    if plain in (list, Sequence):
        plain = tuple
    return isinstance(value, plain) and (plain is bool or not isinstance(value, bool))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(entry) for entry in value) if isinstance(value, tuple | list) else value
