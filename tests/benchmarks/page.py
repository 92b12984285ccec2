"""A record in words: lines to print, tables for the documentation, and a picture of the scaling curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NONE = "none"
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73")


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return a line on the machine and its libraries."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; Python {machine['python']}, "
        f"{versions}; BLAS: {', '.join(machine['blas'])}"
    )


def ceiling_line(ceilings: Mapping[str, Any]) -> str:
    """Return a line on what products and copies reached."""
    rates = "; ".join(
        f"{dtype} " + ", ".join(f"{rate / 1e9:.0f} GF/s on {threads} thread(s)" for threads, rate in by.items())
        for dtype, by in ceilings["gemm_flops_per_s"].items()
    )
    copy = ceilings["copy_bytes_per_s"]
    return (
        f"products of 1024 x 1024: {rates}; copies (read and written): {copy['warm'] / 1e9:.1f} GB/s into memory in "
        f"use, {copy['fresh'] / 1e9:.1f} into fresh memory"
    )


def _judged(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the number that the goal is about: by default the ratio of times."""
    return row.get("judged") or row["ratio"]


def _number(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NONE
    low, high = found["quartiles"]
    return f"{found['value']:.3g} [{low:.3g}, {high:.3g}]"


def _goal(row: Mapping[str, Any]) -> str:
    goal = row.get("goal")
    if goal is None:
        return NONE
    return f"≤ {goal['at_most']:g}" if "at_most" in goal else f"≥ {goal['at_least']:g}"


def _met(row: Mapping[str, Any]) -> str:
    if "goal" not in row:
        return ""
    return {True: "met", False: "not met", None: "not measured"}[row["met"]]


def _side(name: str, found: Any) -> str:
    if isinstance(found, str):
        return f"{name}: {found}"
    share = f", {100 * found['share_of_ceiling']:.0f} % of the ceiling" if "share_of_ceiling" in found else ""
    low, high = found["quartiles_ms"]
    return f"{name}: {found['ms']:.3g} ms [{low:.3g}, {high:.3g}]{share}"


def _accuracy(row: Mapping[str, Any]) -> str:
    accuracy = row.get("accuracy")
    if not accuracy:
        return NONE
    peer = f", the peer's {accuracy['peer']:.1e}" if "peer" in accuracy else ""
    return f"{accuracy['value']:.1e}{peer} ({accuracy['what']})"


def _what(row: Mapping[str, Any]) -> str:
    return row["judged"]["what"] if "judged" in row else " / ".join(row["over"])


def _saving(row: Mapping[str, Any]) -> str:
    saving = row.get("saving")
    if saving is None:
        return ""
    shares = {name: f"{100 * value:.1f} %" for name, value in saving.items()}
    return (
        f"saved: {shares['realised']} of the time; counted {shares['counted']} of the operations, "
        f"{shares['roofline']} of the time by the two ceilings"
    )


def line(row: Mapping[str, Any]) -> str:
    """Return one row as text."""
    sides = "; ".join(_side(*side) for side in row["sides"].items())
    parts = [sides, f"{_what(row)} {_number(_judged(row))}", f"goal {_goal(row)} {_met(row)}".rstrip(), _saving(row)]
    return f"{row['name']}: " + " | ".join(part for part in [*parts, f"accuracy {_accuracy(row)}"] if part)


def curve_lines(curve: Mapping[str, Any]) -> str:
    """Return one curve as text."""
    lines = []
    for side, found in curve["sides"].items():
        values = found if isinstance(found, str) else ", ".join(
            f"{x}: {point['ms']:.3g} ms" for x, point in zip(curve["x"], found, strict=True)
        )  # fmt: skip
        lines.append(f"step time by {curve['axis']}, {side}: {values}")
    return "\n".join(lines)


def _table(header: tuple[str, ...], widths: tuple[int, ...], body: list[tuple[str, ...]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for entries in [header, *body]:
        lines += [f"   {'*' if i == 0 else ' '} - {entry}" for i, entry in enumerate(entries)]
    return "\n".join(lines)


def tables(record: Mapping[str, Any], picture: str | None = None) -> str:
    """Return a record as reStructuredText.

    Parameters
    ----------
    record : mapping
        As ``python -m tests.benchmarks`` writes it.
    picture : str, optional
        Where :func:`draw` has put the curves, as the page refers to it.
    """
    sections = [f"*Machine.* {machine_line(record['machine'])}. Threads: {record['threads']} unless said."]
    body, curves = [], []
    for name, group in record["groups"].items():
        for row in group["rows"]:
            what = row["name"] + (f" ({row['threads']} thread)" if "threads" in row else "")
            sides = [_side(*side) for side in row["sides"].items()] + ([_saving(row)] if "saving" in row else [])
            body.append((
                what, "; ".join(sides), f"{_what(row)}: {_number(_judged(row))}", _goal(row), _met(row), _accuracy(row)
            ))  # fmt: skip
        curves += group.get("curves", ())
        sections.append(
            f"Group ``{name}``: measured on {group['date']} at commit ``{group['commit']}``; just before, "
            f"{ceiling_line(group['ceilings'])}."
        )
    sections = [sections[0], "\n".join(f"- {text}" for text in sections[1:])]
    header = ("what", "times: median [quartiles]", "ratio [quartiles]", "goal", "", "accuracy")
    sections.append(_table(header, (18, 28, 17, 7, 8, 22), body))
    if picture and curves:
        sections.append(
            f".. figure:: {picture}\n   :alt: Step time against width, depth, batch, rank and ensemble size\n\n"
            f"   Medians of a training step of square perceptrons, on {record['threads']} "
            "threads; dotted: the counted products at the ceiling."
        )
    return "\n\n".join(sections)


def draw(record: Mapping[str, Any], out: Path) -> None:
    """Write the scaling curves of a record as a picture, if there are any."""
    groups = record["groups"].values()
    curves = [(curve, group["ceilings"]) for group in groups for curve in group.get("curves", ())]
    if not curves:
        return
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "linfb", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(3 * len(curves), 2.8), layout="constrained")
        for axes, (curve, ceilings) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
            _panel(axes, curve, ceilings["gemm_flops_per_s"]["float32"][str(record["threads"])])
        figure.savefig(out, metadata={"Date": None})


def _panel(axes: Any, curve: Mapping[str, Any], ceiling: float) -> None:
    for colour, (side, found) in zip(COLOURS, curve["sides"].items(), strict=False):
        if isinstance(found, str):
            axes.plot([], [], color=colour, label=f"{side} ({found})")
            continue
        axes.plot(curve["x"], [point["ms"] for point in found], "o-", ms=3, color=colour, label=side)
        axes.fill_between(curve["x"], *zip(*(p["quartiles_ms"] for p in found), strict=True), color=colour, alpha=0.2)
        if "gflop" in found[0]:
            axes.plot(curve["x"], [1e12 * p["gflop"] / ceiling for p in found], ":", color=colour, lw=1)
    axes.set(xscale="log", yscale="log", xlabel=curve["axis"], ylabel="ms per step")
    axes.set_xticks(curve["x"], labels=[str(x) for x in curve["x"]], rotation=45)
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False)
