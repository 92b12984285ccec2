"""Where each result is stated, derived, computed, tested and drawn, read from the files that say so.

Nothing of this is kept by hand: functions and derivations name each other in docstrings (``Notes``) and in the
registry, chapters name both, and which tests and figures call a function is read from their code. The library's files
are read, not imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from derivations.core import Derivation
from derivations.pages import signs

ROOT = Path(__file__).parents[1]
CHAPTERS = ("theory", "adaptive", "wide")
"""Pages that state results; one that is named in several belongs to the last of them."""
LONGEST = 60
"""Signs beyond which an equation is not shown in a table."""

_LINK = re.compile(r":doc:`(?:[^`<]*<)?/?derivations/(\w+)>?`")
_CALL = re.compile(r":func:`[~!]?linfb\.theory\.(\w+)`")
_TEST = re.compile(r"tests/(test_\w+)\.py(?:::(\w+))?")
_WHY_NOT = re.compile(r"Not derived: \w")
_SHOWN = re.compile(r"^\.\. math::(?: (.+)$|\n((?:\n|    .*\n)+))", re.MULTILINE)
_ARGUMENTS = re.compile("bad_|refuse")  # in the names of tests of arguments, which say nothing of results


@dataclass(frozen=True)
class Function:
    """A public function of the theory: its name and its docstring."""

    name: str
    doc: str

    @property
    def derivations(self) -> tuple[str, ...]:
        """The derivations that it names."""
        return tuple(dict.fromkeys(_LINK.findall(self.doc)))

    @property
    def tests(self) -> tuple[tuple[str, str], ...]:
        """The files of tests that it names, each with the name of a test or an empty string."""
        return tuple(dict.fromkeys(_TEST.findall(self.doc)))

    @property
    def brief(self) -> str:
        """What it returns, in a few words (RST)."""
        words = " ".join(self.doc.split("\n\n")[0].split()).removeprefix("Return ").rstrip(".")
        return words[:1].upper() + re.sub(r":func:`(\w+)`", r":func:`linfb.theory.\1`", words[1:])

    @property
    def equations(self) -> list[str]:
        """The displayed equations, in LaTeX."""
        return [" ".join((line or block).split()) for line, block in _SHOWN.findall(self.doc)]


@dataclass(frozen=True)
class Row:
    """A result: its title (RST) and equation, and the names of what computes, tests and shows it."""

    title: str
    equation: str
    functions: tuple[str, ...]
    tests: tuple[str, ...]
    figures: tuple[str, ...]


@cache
def functions() -> tuple[Function, ...]:
    """Return the public functions of ``linfb.theory``."""
    folder = ROOT / "linfb" / "theory"
    names = [node for node in _tree(folder / "__init__.py").body if isinstance(node, ast.Assign)]
    homes = next(ast.literal_eval(node.value) for node in names if ast.unparse(node.targets[0]) == "_HOME")
    nodes = [node for home in sorted(set(homes.values())) for node in _tree(folder / f"{home}.py").body]
    public = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name in homes]
    return tuple(Function(node.name, ast.get_docstring(node) or "") for node in public)


def calling(name: str, file: str, test: str = "") -> tuple[str, ...]:
    """Return the tests of a file, or the one that is named, that call a function and look at what it returns."""
    path = ROOT / "tests" / f"{file}.py"
    found = _reached(path) if path.exists() else {}
    return tuple(one for one in found if name in found[one] and test in ("", one) and not _ARGUMENTS.search(one))


def pictured(name: str) -> tuple[str, ...]:
    """Return the figures whose code imports a function."""
    return tuple(path.stem for path in sorted((ROOT / "figures").glob("[a-z]*.py")) if name in _imported(path))


@cache
def _imported(path: Path) -> set[str]:
    """Return what a file imports from ``linfb.theory``."""
    imports = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports if node.module == "linfb.theory" for alias in node.names}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _reached(path: Path) -> Mapping[str, set[str]]:
    """Return what each test of a file uses by name, itself or through the file's own functions and constants."""
    imports = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom)]
    aliases = {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}
    uses: dict[str, set[str]] = {}
    for node in _tree(path).body:
        parts = list(ast.walk(node))
        used = {aliases.get(part.id, part.id) for part in parts if isinstance(part, ast.Name)}
        used |= {part.attr for part in parts if isinstance(part, ast.Attribute)}
        targets = [part for target in getattr(node, "targets", ()) for part in ast.walk(target)]
        for name in (getattr(node, "name", ""), *(part.id for part in targets if isinstance(part, ast.Name))):
            uses[name] = used
    return {name: _closure(name, uses) for name in uses if name.startswith("test_")}


def _closure(name: str, uses: Mapping[str, set[str]]) -> set[str]:
    """Return all that a name uses, directly or not."""
    seen, left = set[str](), {name}
    while left:
        seen.add(new := left.pop())
        left |= uses.get(new, set()) - seen
    return seen


def unlinked(derivations: Iterable[Derivation], theory: Iterable[Function], pages: str) -> list[str]:
    """Return what is not linked: functions without derivation or test, derivations that nothing leads to.

    Parameters
    ----------
    derivations : iterable of Derivation
        All that are registered.
    theory : iterable of Function
        The public functions.
    pages : str
        The text of the pages from which a derivation can be reached.
    """
    known, theory = {one.name: one for one in derivations}, tuple(theory)
    computed = {name for one in known.values() for name in one.theory}
    linked = {name for text in (pages, *(one.doc for one in theory)) for name in _LINK.findall(text)}
    found = [f"there is no derivation {name}" for name in sorted(linked - known.keys() - {"index"})]
    found += [f"nothing leads to the derivation {name}" for name in known if name not in linked]
    for one in theory:
        if not (one.derivations or one.name in computed or _WHY_NOT.search(one.doc)):
            found.append(f"{one.name} has no derivation and does not say why")
        if not one.tests:
            found.append(f"{one.name} names no test")
        missed = [(file, test) for file, test in one.tests if not calling(one.name, file, test)]
        found += [f"{one.name} is called by no test of {file}{test and '::'}{test}" for file, test in missed]
    for derivation in known.values():
        ((file, test),) = _TEST.findall(derivation.test)
        if derivation.theory and not any(calling(name, file, test) for name in derivation.theory):
            found.append(f"the test of {derivation.name} calls none of {', '.join(derivation.theory)}")
    return found


def table(derivations: Iterable[Derivation]) -> dict[tuple[str, str], list[Row]]:
    """Return the results by chapter and section; what no chapter names comes last, under two empty strings.

    A result is a derivation with all functions that compute it, or a function that has none.
    """
    theory = {one.name: one for one in functions()}
    known = {one.name: one for one in derivations}
    computed = {one.name: _computing(one, theory) for one in known.values()}
    alone = sorted(theory.keys() - {name for names in computed.values() for name in names})
    place = dict.fromkeys((*known, *alone), ("", ""))
    for chapter in CHAPTERS:
        for section, text in _sections((ROOT / "docs" / f"{chapter}.rst").read_text(encoding="utf-8")):
            for name in (match[1] or match[2] for match in re.finditer(f"{_LINK.pattern}|{_CALL.pattern}", text)):
                if name in place and place[name][0] != chapter:
                    del place[name]  # to come after what is named before it
                    place[name] = (chapter, section)
    rows: dict[tuple[str, str], list[Row]] = {}
    for name, where in sorted(place.items(), key=lambda item: (*CHAPTERS, "").index(item[1][0])):
        one = _derived(known[name], computed[name], theory) if name in known else _alone(theory[name])
        rows.setdefault(where, []).append(one)
    return rows


def _sections(text: str) -> list[tuple[str, str]]:
    """Return the titles and texts of a page's sections; what stands before them is under the page's title."""
    parts = re.split(r"^(.+)\n(?:=+|-{3,})\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _computing(derivation: Derivation, theory: Mapping[str, Function]) -> tuple[str, ...]:
    """Return the functions that compute what is derived: those that it names, then those that name it."""
    naming = (one.name for one in theory.values() if derivation.name in one.derivations)
    return tuple(dict.fromkeys((*(name for name in derivation.theory if name in theory), *naming)))


def _derived(derivation: Derivation, names: Iterable[str], theory: Mapping[str, Function]) -> Row:
    """Return the row of a derivation."""
    shown = (derivation.closed_form, *(step for step in derivation.steps if step.key))
    equations = (one.equation for one in shown if one is not None)  # printed one after the other, until one is short
    tests = [derivation.test.removeprefix("tests/")]
    return _row(f":doc:`derivations/{derivation.name}`", equations, [theory[name] for name in names], tests)


def _alone(function: Function) -> Row:
    """Return the row of a function whose result has no derivation."""
    return _row(function.brief, function.equations, [function], [])


def _row(title: str, equations: Iterable[str], computed: Iterable[Function], tests: Iterable[str]) -> Row:
    """Return a row with the first equation that is short enough, and what the functions lead to."""
    named: dict[str, set[str]] = {}
    for one in computed:
        for file, test in one.tests:
            named.setdefault(file, set()).update(calling(one.name, file, test))
    counted = (
        f"{x}.py::{min(found)}" if len(found) == 1 else f"{x}.py: {len(found)} tests" for x, found in named.items()
    )
    return Row(
        title,
        next((one for one in equations if signs(one) <= LONGEST), ""),
        tuple(one.name for one in computed),
        tuple(dict.fromkeys((*tests, *counted))),
        tuple(dict.fromkeys(figure for one in computed for figure in pictured(one.name))),
    )
