"""The documentation's examples run, and its citations and labels lead somewhere."""

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for folder in (DOCS, DOCS / "howto") for page in folder.glob("*.rst") if ">>>" in page.read_text())
KEYS = set(re.findall(r"^@\w+\{(\w+),", (DOCS.parent / "linfb" / "references.bib").read_text(), re.MULTILINE))
CITE = re.compile(r":cite:[pt]:`([\w, ]+)`")


def cited(text):
    """Return the keys that a text cites."""
    return {key.strip() for keys in CITE.findall(text) for key in keys.split(",")}


def run(text, name):
    """Return the number of failed and of attempted examples of a page."""
    examples = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    return runner.run(examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_page(page):
    results = run(page.read_text(), page.name)
    assert results.attempted > 0
    assert results.failed == 0


def test_a_wrong_example_fails(capsys):
    assert run(">>> 1 + 1\n3\n", "wrong").failed == 1


def test_there_are_pages_with_examples():
    stems = {page.stem for page in PAGES}
    assert {"getting_started", "rules", "datasets"} | {page.stem for page in (DOCS / "howto").glob("*.rst")} <= stems


def test_citations_are_in_the_bibliography():
    folders = [ROOT / name for name in ("linfb", "derivations", "figures", "docs")]
    files = [path for folder in folders for suffix in ("py", "rst") for path in folder.rglob(f"*.{suffix}")]
    used = {key: path for path in files if "_build" not in path.parts for key in cited(path.read_text())}
    assert "hanut2025" in used
    assert not {key: path for key, path in used.items() if key not in KEYS}


def test_an_unknown_citation_is_found():
    assert cited(":cite:p:`saxe2013, nobody1999`") - KEYS == {"nobody1999"}


def assigned(node):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def undescribed(source):
    """Return the constants in ``__all__`` that no text follows: the reference leaves them out."""
    body = ast.parse(source).body
    listed = [part for node in body if "__all__" in assigned(node) for part in ast.walk(node)]
    public = {part.value for part in listed if isinstance(part, ast.Constant)} - {"__version__"}
    bare = [node for node, below in zip(body, [*body[1:], None], strict=True) if not isinstance(below, ast.Expr)]
    return sorted(public & set().union(*map(assigned, bare)))


def test_every_public_constant_is_in_the_reference():
    assert undescribed("__all__ = ['A', 'B']\nA = 1\n'What it is.'\nB = 2\nC = 3\n") == ["B"]
    modules = [path for path in (ROOT / "linfb").rglob("*.py") if path.stem[0] != "_" or path.stem == "__init__"]
    assert len(modules) > 80
    assert {path.name: names for path in modules if (names := undescribed(path.read_text()))} == {}
