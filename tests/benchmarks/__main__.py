"""`python -m tests.benchmarks`: measure, print, and write the record and its pictures."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks import page
from tests.benchmarks.groups import GROUPS, Setting
from tests.benchmarks.machine import ceilings, describe
from tests.benchmarks.networks import FULL, QUICK

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "benchmarks" / "cpu.json"
THREADS = 2


def commit() -> str:
    """Return the commit that is measured, marked if files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _earlier(out: Path, machine: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Return the groups of a record of the same machine and sizes."""
    if not out.exists():
        return {}
    record = json.loads(out.read_text())
    same = all(record["machine"][key] == machine[key] for key in ("processor", "cores"))
    return record["groups"] if same and record["quick"] == quick else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure groups of rows; in a record that is there already, these take the place of their forerunners."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=main.__doc__)
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="a group; may be given several times")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record, JSON (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the code")
    chosen = parser.parse_args(arguments)
    machine, measured = describe(), {}
    print(page.machine_line(machine))
    for name in chosen.only or GROUPS:
        now, begin = ceilings(quick=chosen.quick), time.perf_counter()
        print(page.ceiling_line(now), flush=True)
        found = GROUPS[name](Setting(QUICK if chosen.quick else FULL, now, THREADS))
        measured[name] = {
            "commit": commit(), "date": datetime.now(UTC).date().isoformat(), "ceilings": now,
            "seconds": round(time.perf_counter() - begin, 1), **found,
        }  # fmt: skip
        for row in found["rows"]:
            print(page.line(row), flush=True)
        for curve in found.get("curves", ()):
            print(page.curve_lines(curve), flush=True)
    groups = _earlier(chosen.out, machine, chosen.quick) | measured
    record = {
        "machine": machine, "threads": THREADS, "quick": chosen.quick,
        "groups": {name: groups[name] for name in GROUPS if name in groups},
    }  # fmt: skip
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    page.draw(record, chosen.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
