"""The derivations: every one verifies, every altered one is refused, and their pages are well formed."""

import ast
import doctest
import os
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

import derivations
from derivations import REGISTRY, ClosedForm, Derivation, Step, derive, derive_all, failures, verify
from derivations.__main__ import main
from derivations.algebra import all_sizes, along, at_sizes
from derivations.core import EVALUATE, EXPAND, RATIONAL, SIMPLIFY
from derivations.pages import MARK, broken, page, write_pages
from derivations.registry import derivation
from derivations.results import Function, calling, functions, table, unlinked
from derivations.setting import SIZES, W1, W2, B, E, P, Q, aligned_flow, k, lam, m, n, r, t
from derivations.trajectory import taylor_difference

ROOT = Path(derivations.__file__).parents[1]
KNOWN = {name: derive(name) for name in REGISTRY}
CLOSED = [name for name, result in KNOWN.items() if result.closed_form is not None]
REQUIRED = {
    *("mirror_alignment", "constant_mismatch_invariant", "fixed_feedback_invariant", "effective_teacher"),
    *("m_balancedness", "passive_readout", "exact_trajectory", "exact_trajectory_small", "riccati"),
    *("linear_regression_limit", "single_mode", "critical_mode", "half_time", "saxe_mode", "end_point", "threshold"),
    *(
        "vanishing_decay",
        "overlap_law",
        "overlap_spectrum",
        "carried_alignment",
        "feedback_alignment_mode",
        "oja_flow",
        "local_rule",
    ),
    *("feedback_alignment_stationary", "turning_condition", "deep_invariants_three", "deep_invariants_four"),
}


def altered(step):
    """Return the step with a wrong right-hand side of the same shape."""
    if isinstance(step.rhs, sp.MatrixExpr) and not isinstance(step.rhs, sp.MatrixBase):
        zero = isinstance(step.rhs, sp.ZeroMatrix)
        return replace(step, rhs=sp.MatrixSymbol("Z", *step.rhs.shape) if zero else 2 * step.rhs)
    zero = step.rhs.is_zero_matrix if isinstance(step.rhs, sp.MatrixBase) else step.rhs == 0
    other = sp.ones(*step.rhs.shape) if isinstance(step.rhs, sp.MatrixBase) else sp.Integer(1)
    return replace(step, rhs=other if zero else 2 * step.rhs)


def refused(name, *, key=None, **changes):
    """Whether the verifier refuses the derivation when its first key step with `key` in the text is changed."""
    known = KNOWN[name]
    (chosen,) = [step for step in known.steps if key in step.text]
    changed = replace(known, steps=(replace(chosen, **changes),))
    return any(failure.step.text == chosen.text for failure in verify(changed))


def test_every_result_is_covered():
    assert set(REGISTRY) >= REQUIRED


@pytest.mark.parametrize("name", REGISTRY)
def test_every_derivation_verifies(name):
    result = KNOWN[name]
    assert verify(result) == ()
    assert result.statement
    assert result.assumptions
    assert result.sizes
    assert any(step.key for step in result.equations) or result.closed_form is not None


@pytest.mark.parametrize("name", REGISTRY)
def test_every_altered_equation_is_refused(name):
    kept = [step.text for step in KNOWN[name].equations if not failures(altered(step))]
    assert kept == []


@pytest.mark.parametrize("name", CLOSED)
def test_every_altered_closed_form_is_refused(name):
    form = KNOWN[name].closed_form
    for factor in (2, -1):
        assert any(failures(step) for step in reversed(form.conditions(factor * form.expression)))


def test_wrong_theories_are_refused():
    mismatch = Q - W2.T * P.T
    assert refused("mirror_alignment", key="contributions cancel", rhs=lam * mismatch)
    assert refused("mirror_alignment", key="contributions cancel", rhs=-2 * lam * mismatch)
    plain = along(W1 * W1.T - W2.T * W2, aligned_flow(sp.Integer(0)))  # balancedness of backpropagation, M left out
    assert refused("m_balancedness", key="nothing is left", lhs=plain)
    assert refused("feedback_alignment_stationary", key="one equation", rhs=E + E * E.T * B.T * B * E / lam**2)
    bare = along(W1 * W1.T - B * W2, {W1: B * E, W2: E * W1.T})
    assert refused("fixed_feedback_invariant", key="same rate", lhs=bare)
    assert refused("end_point", key="readout is stationary", rhs=lam**2 * derive("end_point").steps[2].rhs)


def test_wrong_closed_forms_are_refused():
    s, c0, kappa = sp.symbols("s c_0 kappa", positive=True)
    for name, wrong in {
        "half_time": sp.log(s / c0 - 1) / (2 * kappa * s),
        "single_mode": derive("single_mode").expression.subs(kappa, kappa**2),
        "critical_mode": c0 / (1 + 2 * kappa * c0 * t),
        "mirror_alignment": sp.Symbol("D_0", real=True) * sp.exp(-2 * lam * t),
    }.items():
        assert any(failures(step) for step in KNOWN[name].closed_form.conditions(wrong))


def test_power_series_needs_the_right_gain():
    assert all(coefficient.is_zero_matrix for coefficient in taylor_difference(3))
    wrong = taylor_difference(2, gain=1)
    assert wrong[0].is_zero_matrix
    assert not wrong[1].is_zero_matrix


def test_invariants_need_the_layers_own_channel():
    W, channel, E3 = (sp.MatrixSymbol("W", 2, 2), sp.MatrixSymbol("P", 1, 2), sp.MatrixSymbol("E", 2, 2))
    upper, other = sp.MatrixSymbol("V", 2, 2), sp.MatrixSymbol("R", 1, 2)
    flow = {W: upper.T * channel.T * channel * E3, upper: E3 * W.T}
    right, wrong = (W * W.T - upper.T * x.T * x * upper for x in (channel, other))
    zero = sp.ZeroMatrix(2, 2)
    assert not failures(Step("own channel", along(right, flow), zero, (all_sizes(), at_sizes({}))))
    assert len(failures(Step("another channel", along(wrong, flow), zero, (all_sizes(), at_sizes({}))))) == 2


@pytest.mark.parametrize("by", [SIMPLIFY, EXPAND, RATIONAL, EVALUATE])
def test_verifier_refuses_what_is_not_a_number(by):
    x = sp.Symbol("x")
    assert failures(Step("infinite minus infinite", sp.nan, sp.Integer(0), (by,)))
    assert failures(Step("a wrong factor", (x + 1) ** 2, x**2 + x + 1, (by,)))
    assert not failures(Step("a binomial", (x + 1) ** 2, x**2 + 2 * x + 1, (by,)))


def test_verifier_refuses_what_is_undecided():
    x, f = sp.Symbol("x"), sp.Function("f")
    assert failures(Step("an unknown limit", sp.Limit(f(x), x, 0), f(0), (EVALUATE,)))
    assert failures(Step("an unknown integral", sp.Integral(f(x), x), sp.Integer(0), (EVALUATE,)))


def test_verifier_refuses_what_a_rewriting_cannot_treat():
    x = sp.Symbol("x", positive=True)
    (failure,) = failures(Step("not a rational function", sp.exp(x), sp.Integer(0), (RATIONAL,)))
    assert "undecided" in str(failure)
    assert not failures(Step("nothing to decide", sp.exp(x), sp.exp(x), (RATIONAL,)))


def test_verifier_refuses_what_cannot_fail():
    empty = Derivation("empty", "Empty", "Nothing.", (), ())
    with pytest.raises(ValueError, match="no equation"):
        verify(empty)
    with pytest.raises(ValueError, match="no rewriting"):
        verify(replace(empty, steps=(Step("unchecked", sp.Integer(1), sp.Integer(2), ()),)))


def test_matrices_do_not_commute():
    X, Y = sp.MatrixSymbol("X", n, n), sp.MatrixSymbol("Y", n, n)
    swap = Step("a commutator", X * Y, Y * X, (all_sizes(),))
    assert failures(swap)
    assert failures(replace(swap, by=(at_sizes({n: 2}),)))
    assert not failures(replace(swap, by=(at_sizes({n: 1}),)))  # why explicit sizes must be generic
    assert not failures(replace(swap, by=(all_sizes((X * Y, Y * X)),)))


def test_symmetric_matrices_are_declared():
    C = sp.MatrixSymbol("C", n, n)
    transposed = Step("a transpose", C.T, C, (all_sizes(),))
    assert failures(transposed)
    assert not failures(replace(transposed, by=(all_sizes(symmetric=(C,)),)))


def test_rates_obey_the_product_rule():
    X, Y, U, V = (sp.MatrixSymbol(name, n, n) for name in "XYUV")
    flow = {X: U, Y: V}
    step = Step("product", along(X * Y.T * X, flow), U * Y.T * X + X * V.T * X + X * Y.T * U, (all_sizes(),))
    assert not failures(step)
    assert failures(replace(step, rhs=U * Y.T * X + X * Y.T * U))
    assert not failures(Step("square", along(X**2, flow), U * X + X * U, (all_sizes(),)))
    with pytest.raises(TypeError, match="product rule"):
        along(X.inv(), flow)


def test_expression_and_symbols_belong_together():
    for name in CLOSED:
        result = KNOWN[name]
        assert set(result.symbols) >= result.expression.free_symbols
    bare = derive("turning_condition")
    assert bare.expression is None
    assert bare.symbols == ()


def test_derivations_are_independent_of_the_library():
    for path in sorted((ROOT / "derivations").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not [name for name in names if name.split(".")[0] == "linfb"], path.name


def test_links_lead_somewhere():
    import linfb.theory

    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "linfb/references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    for result in KNOWN.values():
        for name in result.theory:
            assert callable(getattr(linfb.theory, name))
        file, function = result.test.split("::")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), result.test
        assert result.citations
        assert set(result.citations) <= keys


PAGES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.rst"))
ONE = KNOWN["oja_flow"]


def test_every_result_has_derivation_function_and_test():
    import linfb.theory

    public = {name for name in linfb.theory.__all__ if not isinstance(getattr(linfb.theory, name), type)}
    assert {one.name for one in functions()} == public
    assert unlinked(KNOWN.values(), functions(), PAGES) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (Function("new", "Checked in ``tests/test_theory_oja.py``."), "new has no derivation and does not say why"),
        (Function("new", "Not derived: measured."), "new names no test"),
        (Function("new", "Checked in ``tests/test_theory_oja.py``."), "new is called by no test of test_theory_oja"),
        (Function("oja_metric", "Checked in ``tests/test_none.py``."), "oja_metric is called by no test of test_none"),
        (Function("new", "See :doc:`/derivations/none`."), "there is no derivation none"),
        (replace(ONE, name="orphan"), "nothing leads to the derivation orphan"),
        (replace(ONE, test="tests/test_theory_modes.py::test_none"), "the test of oja_flow calls none of oja_metric"),
    ],
)
def test_what_is_not_linked_is_found(changed, problem):
    derivations = {**KNOWN, changed.name: changed} if isinstance(changed, Derivation) else KNOWN
    theory = {one.name: one for one in functions()} | ({changed.name: changed} if isinstance(changed, Function) else {})
    assert problem in unlinked(derivations.values(), theory.values(), PAGES)


def test_calls_are_found_by_other_names_and_not_in_tests_of_arguments():
    assert "test_mode_of_the_matrix_flow" in calling("unbalanced_mode_strength", "test_theory_unbalanced")
    assert calling("committee_loss", "test_theory_committee") == ("test_loss_by_quadrature",)
    assert calling("committee_loss", "test_theory_committee", "test_loss_refuses_what_does_not_fit") == ()


def test_every_result_has_a_row():
    chapters = {row: chapter for (chapter, _), section in table(KNOWN.values()).items() for row in section}
    rows = {row.title: row for row in chapters}
    assert len(rows) == len(chapters)
    assert {name for row in rows.values() for name in row.functions} == {one.name for one in functions()}
    assert rows.keys() >= {f":doc:`derivations/{name}`" for name in KNOWN}
    mirror = rows[":doc:`derivations/mirror_alignment`"]
    assert (chapters[mirror], mirror.functions) == ("theory", ("mirror_error",))
    assert mirror.equation == KNOWN["mirror_alignment"].closed_form.equation
    (alone,) = (row for row in rows.values() if row.functions == ("multiplexed_times",))
    assert chapters[alone] == "adaptive"


def hidden_state_jacobian(rho, strengths, rank):
    """Return the Jacobian, by complex steps, of the flow with an error-driven reader where `rank` modes are learned."""
    size = len(strengths)
    teacher, top = np.diag(strengths), np.sqrt(strengths[:rank])
    w1, w2, p = np.zeros((rank, size)), np.zeros((size, rank)), np.eye(rank, size)
    w1[:, :rank], w2[:rank] = np.diag(top), np.diag(top)
    start = np.concatenate([x.ravel() for x in (w1, w2, p, w2.T @ p.T)])
    cuts = np.cumsum([w1.size, w2.size, p.size])

    def velocity(state):
        a, b, c, q = (
            x.reshape(shape)
            for x, shape in zip(np.split(state, cuts), (w1.shape, w2.shape, p.shape, (rank, rank)), strict=True)
        )
        error = teacher - b @ a
        turn = rho * c @ error @ error.T @ (np.eye(size) - c.T @ c)
        return np.concatenate([x.ravel() for x in (q @ c @ error, error @ a.T, turn, a @ error.T @ c.T)])

    steps = 1e-30j * np.eye(start.size)
    return np.stack([velocity(start + step).imag / 1e-30 for step in steps], axis=1)


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("rank", [1, 2])
def test_turning_rate_numerically(rank, factor):
    strengths = np.array([4.0, 3.0, 2.0, 1.0])
    weakest, hidden = strengths[rank - 1], strengths[rank]
    rho = factor * weakest / hidden**2
    growth = np.linalg.eigvals(hidden_state_jacobian(rho, strengths, rank)).real
    predicted = rho * hidden**2 - weakest
    assert np.abs(growth - predicted).min() < 1e-9
    assert (growth.max() > 1e-6) == (factor > 1)
    wrong = rho * hidden - weakest
    with pytest.raises(AssertionError):
        assert np.abs(growth - wrong).min() < 1e-9


def test_command_line_reports(capsys):
    assert main(["half_time", "critical_mode"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[ 1/2] ok     half_time")
    assert lines[1].startswith("[ 2/2] ok     critical_mode")
    assert lines[2].startswith("2 of 2 derivations hold")


def test_command_line_lists(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(REGISTRY)


def test_command_line_fails_on_a_wrong_derivation(capsys, monkeypatch, tmp_path):
    half = KNOWN["half_time"]
    wrong = replace(half, closed_form=replace(half.closed_form, expression=2 * half.expression))
    monkeypatch.setitem(REGISTRY, "half_time", lambda: wrong)
    assert main(["half_time"]) == 1
    captured = capsys.readouterr()
    assert "FAILED half_time" in captured.out
    assert "left over" in captured.err
    monkeypatch.setattr("derivations.__main__.REGISTRY", {"half_time": REGISTRY["half_time"]})
    assert main(["--docs", str(tmp_path / "pages")]) == 1
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize("arguments", [["no_such_result"], ["half_time", "--docs", "folder"]])
def test_command_line_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err or "--docs" in arguments


def test_registry_refuses(monkeypatch):
    with pytest.raises(ValueError, match="unknown derivation 'nothing'"):
        derive("nothing")
    with pytest.raises(ValueError, match="two derivations are named half_time"):
        derivation(REGISTRY["half_time"])
    monkeypatch.setitem(REGISTRY, "alias", REGISTRY["half_time"])
    with pytest.raises(ValueError, match="alias calls itself half_time"):
        derive("alias")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_pages(KNOWN.values(), folder)
    return folder


def problems(text):
    """Return what is wrong with a page: headings, displayed equations, roles, leftovers of other objects."""
    lines = text.splitlines()
    found = [f"{a!r} underlined by {b!r}" for a, b in pairwise(lines) if ruled(a, b)]
    for number, line in enumerate(lines):
        if line == ".. math::":
            equation = lines[number + 2]
            if not re.match(r"   \S", equation) or lines[number + 1] or lines[number + 3]:
                found.append(f"equation not set off: {equation!r}")
            if equation.count("{") != equation.count("}") or " = " not in equation:
                found.append(f"not an equation: {equation!r}")
            if equation.count(r"\left") - equation.count(r"\leftarrow") != equation.count(r"\right"):
                found.append(f"delimiters of {equation!r}")
        elif line.replace("``", "").count("`") % 2:
            found.append(f"unbalanced role: {line!r}")
    found += [f"untranslated object in {line!r}" for line in lines if re.search(r"<\w+|object at|MatrixSymbol", line)]
    return found


def ruled(title, rule):
    """Whether a rule under a title has the wrong length."""
    return bool(title) and re.fullmatch(r"=+|-{3,}", rule) is not None and len(rule) != len(title)


def test_pages_are_well_formed(pages):
    assert {path.stem for path in pages.iterdir()} == {*REGISTRY, "index"}
    for path in sorted(pages.iterdir()):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(MARK)
        assert problems(text) == [], path.name


def test_long_equations_are_broken_and_the_same():
    equations = [step.equation for result in KNOWN.values() for step in result.equations]
    in_lines = [broken(equation) for equation in equations]
    assert [line.replace(r" \\ & {} ", " ").replace("= {} & ", "= ") for line in in_lines] == equations
    assert sum(r" \\ & {} " in line for line in in_lines) > 5


def test_page_check_notices_faults(pages):
    text = (pages / "half_time.rst").read_text(encoding="utf-8")
    for fault in (
        text.replace("=====", "====", 1),
        text.replace(r"\frac{", r"\frac", 1),
        text.replace(":math:`", ":math:", 1),
        text.replace(r"\left(", "(", 1),
    ):
        assert fault != text
        assert problems(fault)


def test_pages_link_theory_tests_and_literature(pages):
    for result in KNOWN.values():
        text = (pages / f"{result.name}.rst").read_text(encoding="utf-8")
        assert all(f":func:`linfb.theory.{name}`" in text for name in result.theory)
        assert f"``{result.test}``" in text
        assert all(f":cite:t:`{key}`" in text for key in result.citations)
        assert text.count("*Checked*") == len(result.equations)
    contents = (pages / "index.rst").read_text(encoding="utf-8").split(".. toctree::")[1]
    assert re.findall(r"^   (\w+)$", contents, re.MULTILINE) == list(REGISTRY)


def test_pages_are_deterministic(pages):
    code = (
        "import sys\nfrom derivations import derive_all\nfrom derivations.pages import index, page\n"
        "from hashlib import sha256\n"
        "texts = [*map(page, derive_all()), index(derive_all())]\n"
        "print(sha256(''.join(texts).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    texts = [(pages / f"{name}.rst").read_text(encoding="utf-8") for name in (*REGISTRY, "index")]
    assert sha256("".join(texts).encode()).hexdigest() == other.stdout.strip()
    assert page(derive("half_time")) != page(derive("critical_mode"))


def test_stale_pages_go_and_others_stay(tmp_path):
    (tmp_path / "gone.rst").write_text(f"{MARK}\n\nOld\n===\n", encoding="utf-8")
    (tmp_path / "own.rst").write_text("Written by hand\n===============\n", encoding="utf-8")
    written = write_pages(derive_all(["half_time"]), tmp_path)
    assert [path.name for path in written] == ["half_time.rst", "index.rst"]
    assert {path.name for path in tmp_path.iterdir()} == {"half_time.rst", "index.rst", "own.rst"}


def test_closed_form_is_printed_as_it_is_verified():
    x = sp.Symbol("x")
    form = ClosedForm("f(x)", x**2, (x,), lambda candidate: (Step("slope", candidate.diff(x), 2 * x),))
    assert form.equation == "f(x) = x^{2}"
    assert replace(form, shown="x x").equation == "f(x) = x x"
    assert Step("zero", sp.zeros(2, 2), sp.zeros(2, 2)).equation.endswith("= 0")


@pytest.mark.parametrize("module", [derivations.core, derivations.pages, derivations.verification])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_sizes_are_generic():
    assert len({SIZES[size] for size in (n, m, k, r)}) == 4
