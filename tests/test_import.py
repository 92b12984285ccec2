"""Importing linfb costs little, loads nothing heavy and starts nothing."""

import ast
import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import linfb

HEAVY = ("scipy", "numba", "matplotlib", "xarray", "pandas", "sympy", "sklearn", "pooch", "cupy", "tqdm", "jaxtyping")
PROBE = """
import json, sys, threading, time
start = time.perf_counter()
import linfb
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "threads": threading.active_count(),
}))
"""


def probe(code=PROBE):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_is_light():
    found = [probe() for _ in range(3)]
    assert min(run["seconds"] for run in found) < 0.5
    assert not set(found[0]["modules"]) & set(HEAVY)
    assert found[0]["threads"] == 1
    eager = probe(PROBE.replace("import linfb", "import linfb, scipy.integrate"))
    assert set(eager["modules"]) & set(HEAVY)  # the probe sees what is loaded


def test_describing_a_problem_needs_nothing_heavy():
    code = PROBE.replace(
        "import linfb",
        "import linfb; linfb.Task([[1.0]]); linfb.LinearNetwork((1, 2, 1), linfb.Balanced())",
    )
    assert not set(probe(code)["modules"]) & set(HEAVY)


def test_every_public_name_is_listed_and_unknown_ones_are_refused():
    assert set(linfb.__all__) <= set(dir(linfb))
    for name in ("Task", "LinearNetwork", "Rule", "simulate", "rules", "tasks", "DivergenceError"):
        assert getattr(linfb, name) is not None
        assert name in linfb.__all__
    with pytest.raises(AttributeError, match="nothing_like_this"):
        linfb.nothing_like_this  # noqa: B018


SILENT = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
)  # fmt: skip


def code_lines(source):
    """Return the number of lines that hold code: no docstrings, no comments, no blank lines."""
    documentation = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation |= set(range(node.lineno, node.end_lineno + 1))
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - documentation)


def test_engine_and_rules_stay_small_enough_to_be_read():
    assert code_lines('"""Words."""\n\n# more\nx = (1,\n     2)  # two lines\n') == 2
    files = [path for part in ("engine", "rules") for path in (Path(linfb.__file__).parent / part).rglob("*.py")]
    assert len(files) > 30
    assert 2000 < sum(code_lines(path.read_text()) for path in files) < 3700
