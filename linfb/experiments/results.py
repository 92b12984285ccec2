"""What a store holds: runs selected by their settings, joined to one data set, or as rows of a table."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from linfb.experiments.store import DamagedResult, Store

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["condition", "joined", "scalars", "selected", "settings"]

Record = Mapping[str, Any]
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "==": operator.eq, "=": operator.eq, "<": operator.lt,
    ">": operator.gt,
}  # fmt: skip


def settings(record: Record) -> dict[str, Any]:
    """Return what a record says a run is, without levels: experiment, version, every setting, seed."""
    return {
        "experiment": record["experiment"],
        "version": record["version"],
        **record["config"],
        "seed": record["seed"],
    }


def condition(text: str) -> Callable[[Record], bool]:
    """Return the test of a record that a text stands for: a field, a sign, a value.

    Parameters
    ----------
    text : str
        Such as ``"rank=4"``, ``"seed<2"``, ``"rule!=bp"``; signs are =, !=, <, <=, >, >=. A run whose setting cannot be
        compared with the value, such as none with a number, fails the test.

    Examples
    --------
    >>> small = condition("rank<=4")
    >>> [small({"experiment": "train", "version": 1, "config": {"rank": rank}, "seed": 0}) for rank in (2, 8, None)]
    [True, False, False]
    """
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*", text)
    if found is None:
        raise ValueError(f"condition must be a field, one of {' '.join(_SIGNS)} and a value, got {text!r}")
    name, sign, value = found[1], found[2], json_or_text(found[3])

    def holds(record: Record) -> bool:
        known = settings(record)
        if name not in known:
            raise ValueError(f"condition {text!r}: {record['experiment']} has no field {name!r}")
        try:
            return _SIGNS[sign](known[name], value)
        except TypeError:
            return False

    return holds


def selected(
    store: Store, *conditions: str, say: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, Any]]:
    """Return the records of those results in a store that meet all conditions, by key.

    Parameters
    ----------
    store : Store
    *conditions : str
        See :func:`condition`; conditions on fields that not all experiments have are to follow one on ``experiment``.
    say : callable
        Told about results whose record cannot be read; they are left out.
    """
    tests, found = [condition(text) for text in conditions], {}
    for key in store.keys():  # noqa: SIM118 - not a mapping
        try:
            record = store.record(key)
        except DamagedResult as error:
            say(f"damaged result, left out: {error}")
            continue
        except KeyError:  # set aside in the meantime
            continue
        if all(test(record) for test in tests):
            found[key] = record
    return found


def json_or_text(text: str) -> Any:
    """Return the value that a text is in JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def swept(records: Iterable[Record]) -> dict[str, list[Any]]:
    """Return the fields in which records differ, with their values in the order in which they first appear."""
    known = [settings(record) for record in records]
    names = list(dict.fromkeys(name for one in known for name in one))
    values = {name: _distinct(one.get(name) for one in known) for name in names}
    return {name: found for name, found in values.items() if len(found) > 1}


def place(record: Record, differing: Mapping[str, Any]) -> list[tuple[bool, float, str]]:
    """Return by what to sort records: the fields in which they differ, numbers by size and before words."""
    values = [settings(record).get(name) for name in differing]
    return [(False, v, "") if isinstance(v, int | float) else (True, 0.0, json.dumps(v)) for v in values]


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value): value for value in values}.values())


def joined(store: Store, keys: Sequence[str]) -> xr.Dataset:
    """Return results as one data set, along the fields in which they differ.

    Parameters
    ----------
    store : Store
    keys : sequence of str

    Returns
    -------
    xarray.Dataset
        With a dimension for each of these fields where the runs fill the grid that their values span, or one dimension
        ``run`` along which they are coordinates. Values that are neither all numbers nor all words become words. Where
        results have different lengths, shorter ones are filled up with NaN. Attributes are what all have in common. A
        variable called like one of the fields is renamed ``<name>_of_run``.

    Raises
    ------
    KeyError, DamagedResult
        If a result is not there or damaged.
    """
    import pandas as pd
    import xarray as xr

    if not keys:
        raise ValueError("keys must hold at least one result to join")
    results, records = zip(*(store.read(key) for key in keys), strict=True)
    fields = {name: _labels(values) for name, values in swept(records).items()}
    taken = {name: f"{name}_of_run" for name in fields}
    renamed = [one.rename({name: new for name, new in taken.items() if name in {*one.variables, *one.dims}})
               for one in results]  # fmt: skip
    labels = {name: [values[json.dumps(settings(record).get(name))] for record in records]
              for name, values in fields.items()}  # fmt: skip
    whole = xr.concat(renamed, dim="run", join="outer", combine_attrs="drop_conflicts")
    if not fields or len(keys) != math.prod(len(values) for values in fields.values()):
        return whole.assign_coords({"key": ("run", list(keys))} | {name: ("run", one) for name, one in labels.items()})
    if len(fields) == 1:
        ((name, values),) = labels.items()
        return whole.rename(run=name).assign_coords({name: values})
    index = pd.MultiIndex.from_arrays(list(labels.values()), names=list(labels))
    grid = whole.assign_coords(xr.Coordinates.from_pandas_multiindex(index, "run")).unstack("run")
    grid = grid.reindex({name: _distinct(values) for name, values in labels.items()})
    return grid.transpose(*fields, ...)


def _labels(values: Sequence[Any]) -> dict[str, Any]:
    """Return from each value, as JSON, to its label: all numbers, or all words."""
    texts = [json.dumps(value) for value in values]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return dict(zip(texts, values, strict=True))
    return {text: value if isinstance(value, str) else text for text, value in zip(texts, values, strict=True)}


def scalars(store: Store, records: Mapping[str, Record]) -> Iterator[dict[str, Any]]:
    """Yield a row for each result: its key, what it is, and every number in it.

    Parameters
    ----------
    store : Store
    records : mapping
        From key to record, see :func:`selected`.

    Notes
    -----
    Numbers are variables without dimensions, and those of variables whose dimensions all have words as coordinates:
    ``test_accuracy[weights=chosen]``.
    """
    for key, record in records.items():
        dataset = store.read(key)[0]
        row = {"key": key, **settings(record), "seconds": record["provenance"]["seconds"]}
        for name, variable in dataset.data_vars.items():
            if all(dim in dataset.coords and dataset[dim].dtype.kind in "OUT" for dim in variable.dims):
                for value in variable.stack(all_=variable.dims) if variable.dims else [variable]:
                    where = ",".join(f"{dim}={value[dim].item()}" for dim in variable.dims)
                    row[f"{name}[{where}]" if where else str(name)] = value.item()
        yield row
