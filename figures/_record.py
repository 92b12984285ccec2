"""The results record: the numbers behind figures with their provenance, from which figures are drawn again.

A record is the file ``<figure>-<preset>.nc`` of a :class:`linfb.experiments.Store`: netCDF with the provenance behind
it, and checksums of both. Data variables are in single precision and compressed; coordinates are as they were.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import load
from figures._run import sweeps
from figures._variants import Variant
from linfb.experiments import DamagedResult, Store

if TYPE_CHECKING:
    import xarray as xr

RESULTS = Path("figures/results")
SMALL = 2048  # bytes up to which compression costs more than it saves


def write(folder: Path, variant: Variant, results: xr.Dataset, provenance: Mapping[str, Any]) -> None:
    """Record the results behind a figure and where they come from.

    Raises
    ------
    ValueError
        If parts are missing that the record which is there has.
    """
    store = Store(folder)
    if variant.missing and variant.key in store and set(variant.missing) - set(store.record(variant.key)["missing"]):
        raise ValueError(f"{variant.key}.nc in {folder} has more parts: remove it if this is to take its place")
    store.write(variant.key, compact(results), provenance)


def read(folder: Path, variant: Variant) -> tuple[Variant, xr.Dataset, dict[str, Any]]:
    """Return what was recorded of a figure: without the parts that are missing in it, the results, their provenance.

    Raises
    ------
    ValueError
        If there is no record, it is damaged, or it was made with other settings; the message says with which.
    """
    where = f"{variant.key}.nc in {folder}"
    try:
        results, provenance = Store(folder).read(variant.key)
    except KeyError:
        advice = f"python -m figures {variant.name} --preset {variant.preset} --record"
        raise ValueError(f"there is no {where}; {advice} makes the record of a preset") from None
    except DamagedResult as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    variant = without(variant, provenance["missing"])
    if differing := differences(provenance["config"], variant.described):
        raise ValueError(
            f"{where} was made with other settings ({differing}): simulate again with --record, or name them by --set"
        )
    return variant, results, provenance


def compact(results: xr.Dataset) -> xr.Dataset:
    """Return results with data variables in single precision, to be compressed where that pays."""
    small = results.copy()
    for name, variable in results.data_vars.items():
        if variable.dtype == np.float64:
            small[name] = variable.astype(np.float32)
        compressed = {"zlib": True, "complevel": 9, "shuffle": True}
        small[name].encoding = compressed if small[name].nbytes > SMALL else {}
    return small


def without(variant: Variant, labels: Collection[str]) -> Variant:
    """Return a figure without the parts of some labels.

    Raises
    ------
    ValueError
        If no part is left.
    """
    split = load(variant.name).PARTS
    entries = getattr(variant.config, split)
    kept = tuple(one for one in entries if not {str(one), *sweeps([one])} & set(labels))
    if not kept:
        raise ValueError(f"no part of {variant.key} is there")
    return replace(variant, config=replace(variant.config, **{split: kept}), missing=tuple(labels))


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return in words which settings of a record are not the wanted ones; nothing if none is."""

    def words(settings: Mapping[str, Any], field: str) -> str:
        return shorten(json.dumps(settings[field]), 60, placeholder=" ...") if field in settings else "absent"

    fields = [field for field in {**wanted, **recorded} if recorded.get(field, ...) != wanted.get(field, ...)]
    return "; ".join(f"{field}: {words(recorded, field)}, now {words(wanted, field)}" for field in fields)
