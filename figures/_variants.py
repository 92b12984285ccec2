"""What is made of a figure: a preset of it, perhaps with some settings changed, and how files and pictures say so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from figures import load
from linfb.experiments import changed, value
from linfb.experiments.designs import values


@dataclass(frozen=True)
class Variant:
    """A figure with the settings of a preset, or with some of them changed.

    Parameters
    ----------
    name, preset : str
    config : dataclass
        The settings as they are.
    changes : mapping
        What is not as in the preset, by field.
    missing : tuple of str
        Labels of parts that are left out since they were not simulated.
    """

    name: str
    preset: str
    config: Any
    changes: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What its files are called: figure, preset and, if settings are changed, a hash of the changes."""
        if not self.changes:
            return f"{self.name}-{self.preset}"
        text = json.dumps(self.changes, sort_keys=True)
        return f"{self.name}-{self.preset}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def words(self) -> str:
        """What stands on the figure: ``preset quick, epochs=3``."""
        settings = [f"{field}={_shown(entry)}" for field, entry in self.changes.items()]
        return ", ".join([f"preset {self.preset}", *settings, *(f"without {label}" for label in self.missing)])

    @property
    def described(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        return json.loads(json.dumps(asdict(self.config)))


def variant(name: str, preset: str, data: str | None = None, settings: Mapping[str, str] | None = None) -> Variant:
    """Return a figure under a preset, on other data where it uses any, with settings changed as texts say.

    Parameters
    ----------
    name, preset : str
    data : str, optional
    settings : mapping, optional
        From fields, ``vgg.epochs`` for one of a part, to texts; several entries have commas between them.

    Raises
    ------
    ValueError
        If the figure has no such preset or field, or the field cannot have that value.
    """
    module = load(name)
    if preset not in module.CONFIGS:
        raise ValueError(f"{name} has no preset {preset!r}; it has {', '.join(module.CONFIGS)}")
    config, changes = module.CONFIGS[preset], {}
    if data and hasattr(module, "on_data"):
        config, changes = module.on_data(config, data), {"data": data}
    read = {field: _read(text, _now(config, field)) for field, text in (settings or {}).items()}
    config = changed(name, config, read)
    for several in (module.PARTS, "seeds"):
        if not getattr(config, several):
            raise ValueError(f"{several} of {name} must be at least one")
    return Variant(name, preset, config, changes | read)


def _read(text: str, now: Any) -> Any:
    """Return the value that a text stands for, a list where there is one now."""
    found = value(text)
    return values(text) if isinstance(now, tuple) and not isinstance(found, list) else found


def _now(config: Any, field: str) -> Any:
    for name in field.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def _shown(entry: Any) -> str:
    if isinstance(entry, list) and not any(isinstance(one, list | dict) for one in entry):
        return ",".join(map(str, entry))
    return entry if isinstance(entry, str) else json.dumps(entry)
