"""The documentation's pages: one per derivation and an index, the same bytes for the same derivations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from derivations.core import Derivation, Step

MARK = ".. Written by ``python -m derivations --docs``; edit the package ``derivations`` instead."
LINE = 55
"""Signs of an equation that fit on a line of a page."""


def signs(equation: str) -> int:
    """Return about how many signs wide an equation is: a command counts once, of a fraction the longer part."""
    equation = re.sub(r"\\(?:left|right|mathrm|operatorname|q?quad|[,;!])", "", equation)
    equation = re.sub(r"\\t?frac\{([^{}]*)\}\{([^{}]*)\}", lambda two: max(two[1], two[2], key=len), equation)
    return len(re.sub(r"[{}^_\s]", "", re.sub(r"\\[a-zA-Z]+", "x", equation)))


def broken(equation: str) -> str:
    r"""Return an equation with line breaks before outermost signs of its right-hand side, if it is too long.

    Examples
    --------
    >>> broken("y = a + b")
    'y = a + b'
    >>> print(broken("y = " + "a" * 40 + r" + \left(b - c\right) - " + "d" * 20))
    y = {} & aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa + \left(b - c\right) \\ & {} - dddddddddddddddddddd
    """
    parts = _parts(equation)
    sides = next((place for place, part in enumerate(parts) if part.startswith(" = ")), 0)
    if signs(equation) <= LINE or not sides or r"\\" in equation:
        return equation
    left, lines = "".join(parts[:sides]), [parts[sides].removeprefix(" = ")]
    for part in parts[sides + 1 :]:
        if signs(lines[-1] + part) > max(LINE - signs(left), LINE // 2):
            lines.append(part.strip())
        else:
            lines[-1] += part
    return f"{left} = {{}} & " + r" \\ & {} ".join(lines) if len(lines) > 1 else equation


def _parts(equation: str) -> list[str]:
    """Return the parts of an equation that begin with its outermost signs: plus, minus and equals."""
    parts, depth = [""], 0
    for token in re.split(r"(\\left.|\\right.|[{}()\[\]]| [-+=] )", equation):
        depth += (token.startswith(r"\left") or token in ("{", "(", "[")) and 1
        depth -= (token.startswith(r"\right") or token in ("}", ")", "]")) and 1
        if depth == 0 and token in (" + ", " - ", " = "):
            parts.append(token)
        else:
            parts[-1] += token
    return parts


def _math(equation: str) -> list[str]:
    """Return a displayed equation."""
    return ["", ".. math::", "", f"   {broken(equation)}", ""]


def _checked(step: Step) -> str:
    """Say how an equation was verified."""
    return "*Checked* " + "; and ".join(rewriting.description for rewriting in step.by) + "."


def _statement(derivation: Derivation) -> list[str]:
    """Return the statement: the words, the key equations and the closed form."""
    lines = [derivation.statement]
    for step in derivation.steps:
        if step.key:
            lines += _math(step.equation)
    if derivation.closed_form is not None:
        lines += _math(derivation.closed_form.equation)
        for step in derivation.closed_form.conditions(derivation.closed_form.expression):
            if step.key:
                lines += _math(step.equation)
    return lines


def _numbered(steps: Iterable[Step], first: int) -> list[str]:
    """Return steps as numbered paragraphs with their equations."""
    lines: list[str] = []
    for number, step in enumerate(steps, first):
        lines += ["", f"**{number}.** {step.text}", *_math(step.equation), _checked(step)]
    return lines


def _section(title: str, mark: str = "-") -> list[str]:
    """Return a heading."""
    return ["", title, mark * len(title), ""]


def _links(derivation: Derivation) -> list[str]:
    """Return where the result is computed, tested and published."""
    lines = []
    if derivation.theory:
        lines.append("- Computed by " + ", ".join(f":func:`linfb.theory.{name}`" for name in derivation.theory) + ".")
    if derivation.test:
        lines.append(f"- Tested by ``{derivation.test}``.")
    if derivation.citations:
        lines.append("- Literature: " + ", ".join(f":cite:t:`{key}`" for key in derivation.citations) + ".")
    return lines


def page(derivation: Derivation) -> str:
    """Return the page of a derivation (RST)."""
    lines = [MARK, "", derivation.title, "=" * len(derivation.title), "", *_statement(derivation)]
    lines += [*_section("Assumptions"), *(f"- {assumption}" for assumption in derivation.assumptions)]
    lines += [*_section("Derivation"), *_numbered(derivation.steps, 1)]
    if derivation.closed_form is not None:
        conditions = derivation.closed_form.conditions(derivation.closed_form.expression)
        lines += ["", "That the closed form is the right one:", *_numbered(conditions, len(derivation.steps) + 1)]
    if derivation.sizes:
        lines += [*_section("Sizes"), derivation.sizes]
    lines += [*_section("See also"), *_links(derivation), ""]
    return "\n".join(lines)


def index(derivations: Iterable[Derivation]) -> str:
    """Return the index page with its table of contents."""
    title = "Derivations"
    lines = [MARK, "", title, "=" * len(title), ""]
    lines += [
        "Each result of the linear theory with its statement, assumptions and steps. Every numbered equation was "
        "verified with SymPy by ``python -m derivations``, which also writes these pages; one whose entries would fill "
        "a page is printed in matrix notation. Identities between matrices of unspecified size are expanded into words "
        "of the free algebra, which proves them for all sizes, and checked once more with symbolic entries at the "
        "explicit sizes that the pages name.",
        "",
        "Symbols are those of the mathematics (samples in columns); see :doc:`/notation` for the code's. The formulas "
        "are typed independently of :mod:`linfb.theory`, and tests compare the two on random draws.",
        "",
        ".. toctree::",
        "   :maxdepth: 1",
        "",
        *(f"   {derivation.name}" for derivation in derivations),
        "",
    ]
    return "\n".join(lines)


def write_pages(derivations: Iterable[Derivation], folder: Path) -> tuple[Path, ...]:
    """Write one page per derivation and the index into a folder; pages of derivations that are gone are removed.

    Parameters
    ----------
    derivations : iterable of Derivation
        In the order of the table of contents.
    folder : Path
        Made if it does not exist. Only files that carry the mark of this writer are ever removed.

    Returns
    -------
    tuple of Path
        The files written.
    """
    derivations = tuple(derivations)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{derivation.name}.rst": page(derivation) for derivation in derivations} | {
        "index.rst": index(derivations)
    }
    for old in sorted(folder.glob("*.rst")):
        if old.name not in texts and old.read_text(encoding="utf-8").startswith(MARK):
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return tuple(folder / name for name in texts)
