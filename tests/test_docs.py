"""The documentation's examples run, and its citations and labels lead somewhere."""

import ast
import doctest
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for folder in (DOCS, DOCS / "howto") for page in folder.glob("*.rst") if ">>>" in page.read_text())
KEYS = set(re.findall(r"^@\w+\{(\w+),", (DOCS.parent / "linfb" / "references.bib").read_text(), re.MULTILINE))
TESTED = re.compile(r"``(?:tests/)?(test_\w+)(\.py)?(?:::(\w+))?``")
CITE = re.compile(r":cite:[pt]:`([\w, ]+)`")


def cited(text):
    """Return the keys that a text cites."""
    return {key.strip() for keys in CITE.findall(text) for key in keys.split(",")}


def missing(text):
    """Return the files of tests and the tests that a text names and that there are not."""
    sources = {path.stem: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    everything = "\n".join(sources.values())
    found = []
    for name, is_file, test in TESTED.findall(text):
        source = sources.get(name) if is_file else everything
        wanted = test if is_file else name
        if source is None or (wanted and not re.search(rf"^def {wanted}\(", source, re.MULTILINE)):
            found.append(f"{name}{is_file}::{test}")
    return found


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


def test_tests_that_are_named_are_there():
    files = [*DOCS.glob("*.rst"), *(ROOT / "linfb").rglob("*.py"), ROOT / "README.md"]
    text = "\n".join(path.read_text() for path in files)
    assert len(TESTED.findall(text)) > 50
    assert missing(text) == []


def test_a_test_that_is_not_there_is_found():
    assert missing("``tests/test_docs.py``, ``tests/test_docs.py::test_citations_are_in_the_bibliography``") == []
    assert missing("``tests/test_docs.py::test_none``") == ["test_docs.py::test_none"]
    assert missing("``tests/test_none.py``, ``test_none``") == ["test_none.py::", "test_none::"]


FOREIGN = {
    "script.html": '<script defer="defer" src="https://cdn.example.org/mathjax.js"></script>',
    "style.html": '<link rel="stylesheet" href="//fonts.example.org/css?family=A" />',
    "image.html": '<p><img alt="a > b" src="http://example.org/a.png"/></p>',
    "font.css": "@font-face { src: url('https://example.org/a.woff'); }",
    "import.css": '@import "https://example.org/a.css";',
    "drawing.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image xlink:href="https://example.org/a.png"/></svg>',
}
LOCAL = """<html xmlns="http://www.w3.org/1999/xhtml"><a href="https://arxiv.org/abs/2502.20580"><img src="a.png"></a>
<script src="_static/mathjax/tex-chtml.js"></script><style>p { background: url("data:image/png;base64,//8A") }</style>
"""


def test_what_a_page_loads_from_the_network_is_found(tmp_path):
    """The build of the pages fails by the same function."""
    foreign = runpy.run_path(str(DOCS / "conf.py"))["foreign"]
    (tmp_path / "local.html").write_text(LOCAL)
    assert foreign(tmp_path) == []
    for name, text in FOREIGN.items():
        (tmp_path / name).write_text(text)
    assert sorted(found.split(":")[0] for found in foreign(tmp_path)) == sorted(FOREIGN)
