"""``python -m derivations [names] [--list] [--docs DIR]``: verify the derivations, write their pages."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from derivations.pages import write_pages
from derivations.registry import REGISTRY, derive
from derivations.verification import verify


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m derivations", description="Verify the derivations of the linear theory."
    )
    parser.add_argument("names", nargs="*", help="derivations to verify (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names and titles and stop")
    parser.add_argument(
        "--docs", metavar="DIR", type=Path, help="write the pages of all derivations, if they hold, into DIR"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in REGISTRY]
    if unknown:
        parser.error(f"unknown derivation {', '.join(unknown)}; known: {', '.join(REGISTRY)}")
    if arguments.docs and arguments.names:
        parser.error("--docs writes an index of all derivations: give no names with it")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, report and return the exit status: 0 when every equation holds, 1 otherwise."""
    arguments = _arguments(argv)
    if arguments.list:
        print("\n".join(f"{name:32s} {derive(name).title}" for name in REGISTRY))
        return 0
    names = tuple(arguments.names) or tuple(REGISTRY)
    derivations, failed, begin = [], 0, time.perf_counter()
    for number, name in enumerate(names, 1):
        start = time.perf_counter()
        derivation = derive(name)
        failures = verify(derivation)
        derivations.append(derivation)
        failed += bool(failures)
        verdict = "FAILED" if failures else "ok"
        count, seconds = len(derivation.equations), time.perf_counter() - start
        print(f"[{number:2d}/{len(names)}] {verdict:6s} {name:32s} {count:3d} equations {seconds:6.2f} s", flush=True)
        for failure in failures:
            print(f"    {failure}", file=sys.stderr)
    print(f"{len(names) - failed} of {len(names)} derivations hold ({time.perf_counter() - begin:.1f} s)")
    if failed:
        return 1
    if arguments.docs:
        print(f"{len(write_pages(derivations, arguments.docs))} pages in {arguments.docs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
