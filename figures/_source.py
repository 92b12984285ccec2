"""What a cached result depends on: the code that computes it, and nothing else."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def source_of(name: str, functions: Iterable[str], folder: Path = PACKAGE) -> str:
    """Return the code that the given functions of the figure module `name` can reach, without comments or docstrings.

    The closure covers what a function names: other functions, classes and constants of the module, and those of
    sibling modules that it imports. Code that only plots is not reached, so editing it leaves the text as it is.

    Parameters
    ----------
    name : str
        Module in `folder`, without its suffix.
    functions : iterable of str
        Names at the top level of the module.
    folder : Path
        Where the modules lie.
    """
    seen: dict[tuple[str, str], str] = {}
    waiting = [(name, function) for function in functions]
    while waiting:
        module, symbol = waiting.pop()
        if (module, symbol) in seen:
            continue
        definitions, imported = _module((folder / f"{module}.py").read_text())
        if symbol in imported:
            waiting.append(imported[symbol])
            continue
        if symbol not in definitions:
            continue
        node = definitions[symbol]
        seen[module, symbol] = ast.unparse(node)
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        waiting += [(module, inner) for inner in sorted(names)]
    return "\n".join(f"# {module}.{symbol}\n{text}" for (module, symbol), text in sorted(seen.items()))


@cache
def _module(text: str) -> tuple[dict[str, ast.stmt], dict[str, tuple[str, str]]]:
    """Return the top-level definitions of a module by name, and what it imports from sibling modules, by its text."""
    definitions: dict[str, ast.stmt] = {}
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = _without_docstrings(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("figures."):
            sibling = node.module.removeprefix("figures.")
            imported |= {alias.asname or alias.name: (sibling, alias.name) for alias in node.names}
    return definitions, imported


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
    return node


@cache
def library_hash() -> str:
    """Return the SHA-256 of linfb's Python source, file names included."""
    import linfb

    root = Path(linfb.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
