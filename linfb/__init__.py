"""Learning with low-dimensional error feedback: theory, simulation and scaling.

The public names are loaded when they are first used, so that ``import linfb`` stays light.

>>> import linfb
>>> linfb.Task([[1.0, 0.0]]).rank
1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "backend",
    "citations",
    "datasets",
    "engine",
    "experiments",
    "linear",
    "networks",
    "observables",
    "rules",
    "tasks",
    "theory",
)
_NAMES = {
    "Aligned": "networks",
    "Balanced": "networks",
    "DivergenceError": "_errors",
    "Given": "networks",
    "InterruptedRun": "_errors",
    "LinearNetwork": "networks",
    "NoClosedFormError": "_errors",
    "Rule": "rules",
    "SmallRandom": "networks",
    "Task": "tasks",
    "cite": "citations",
    "gaussian_teacher": "tasks",
    "load_dataset": "datasets",
    "low_rank_teacher": "tasks",
    "simulate": "linear",
    "train": "engine",
}

__all__ = ["__version__", *sorted(_MODULES), *sorted(_NAMES)]

if TYPE_CHECKING:
    from linfb import (
        backend,
        citations,
        datasets,
        engine,
        experiments,
        linear,
        networks,
        observables,
        rules,
        tasks,
        theory,
    )
    from linfb._errors import DivergenceError, InterruptedRun, NoClosedFormError
    from linfb.citations import cite
    from linfb.linear import simulate
    from linfb.networks import Aligned, Balanced, Given, LinearNetwork, SmallRandom
    from linfb.rules import Rule
    from linfb.tasks import Task, gaussian_teacher, low_rank_teacher


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"linfb.{name}")
    if name in _NAMES:
        return getattr(import_module(f"linfb.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'linfb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
