"""What to cite for what was used: functions, rules, readers, mirrors, and the results of simulations and training."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

__all__ = ["cite", "references_of"]

PAPER = "hanut2025"
"""The paper whose system this package is."""
_HOMES = (
    "linfb", "linfb.tasks", "linfb.networks", "linfb.rules", "linfb.rules.readers", "linfb.rules.mirrors",
    "linfb.theory", "linfb.observables", "linfb.engine", "linfb.engine.optimisers", "linfb.engine.layers",
    "linfb.datasets", "linfb.experiments",
)  # fmt: skip
_CITED = re.compile(r":cite:[pt]:`([\w\s,]+)`")
_ENTRY = re.compile(r"^@\w+\{(\w+),.*?^\}", re.MULTILINE | re.DOTALL)


def cite(*used: Any) -> str:
    """Return the references of what was used, as BibTeX.

    Parameters
    ----------
    used : object
        Any number of: public functions and classes of linfb; rules, readers, mirrors and other settings; data sets that
        a function of linfb returned, or their attributes; names such as "theory.exact_map" or "dfa".

    Returns
    -------
    str
        The entries, that of the paper first, the others in the order of their years as far as their keys tell.

    Raises
    ------
    TypeError
        If something is none of these.
    ValueError
        If there is nothing in linfb of that name.

    Examples
    --------
    >>> from linfb import citations, rules
    >>> print(citations.cite(rules.weight_mirror())[:15])
    @misc{hanut2025
    """
    entries = _entries()
    return "\n\n".join(entries[key] for key in references_of(*used))


def references_of(*used: Any) -> tuple[str, ...]:
    """Return the keys of the references of what was used, see :func:`cite`.

    Those of an object are the ones that its documentation cites; of a rule, that of its parts as well; of a result, of
    all that its attributes name.

    Examples
    --------
    >>> from linfb import rules
    >>> references_of(rules.direct_feedback_alignment)
    ('hanut2025', 'nokland2016', 'launay2020')
    >>> references_of("readers.Oja")
    ('hanut2025', 'williams1985', 'oja1989')
    """
    found = set().union(*map(_keys, used)) - {PAPER}
    return (PAPER, *sorted(found, key=lambda key: (re.sub(r"\D", "", key), key)))


def _keys(used: Any) -> set[str]:
    """Return the references of one thing."""
    if isinstance(used, str):
        return _documented(_named(used))
    if inspect.isroutine(used) or isinstance(used, type):
        return _documented(used)
    attributes = getattr(used, "attrs", used)
    if not isinstance(attributes, Mapping) and type(used).__module__.partition(".")[0] != "linfb":
        raise TypeError(f"used must be of linfb, a result, its attributes or a name, got {used!r}")
    return _mentioned(str(list(attributes.values()) if isinstance(attributes, Mapping) else attributes))


def _named(name: str) -> Any:
    """Return what a user calls by a name: the short one of a rule, or a public one, with or without its module."""
    from linfb import rules

    if name in rules.names:
        return rules.constructor(name)
    for home in _HOMES:
        for public in getattr(import_module(home), "__all__", ()):
            if f".{home}.{public}".endswith(f".{name}"):
                return getattr(import_module(home), public)
    raise ValueError(f"name must be a public one of linfb, such as theory.exact_map or dfa, got {name!r}")


def _documented(thing: Any) -> set[str]:
    return {key.strip() for keys in _CITED.findall(inspect.getdoc(thing) or "") for key in keys.split(",")}


def _mentioned(text: str) -> set[str]:
    """Return the references of all public names in a text, the names of rules among them."""
    words = set(re.findall(r"\w+", text))
    words |= {re.sub(r"\W", "_", name).lower() for name in re.findall(r"Rule\(name='([^']+)'", text)}
    public = _public()
    return set().union(*(_documented(public[word]) for word in words & public.keys()))


@cache
def _public() -> dict[str, Any]:
    """Return all public functions and classes by their names."""
    found: dict[str, Any] = {}
    for home in _HOMES:
        module = import_module(home)
        found |= {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: thing for name, thing in found.items() if inspect.isroutine(thing) or isinstance(thing, type)}


@cache
def _entries() -> dict[str, str]:
    text = files("linfb").joinpath("references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in _ENTRY.finditer(text)}
