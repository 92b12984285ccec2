"""Sphinx configuration. The build needs no network: MathJax is bundled and there is no intersphinx."""

import ast
import json
import logging
import re
import sys
from pathlib import Path

import linfb

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # for the names of the figures and the words of the benchmarks' record

project = "linfb"
author = "The linfb developers"
copyright = f"2026, {author}"
version = release = linfb.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
nitpicky = False

html_theme = "furo"
html_title = f"linfb {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_js_files = ["search_formulas.js"]

napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # types are prose with shapes, not names to link
napoleon_use_rtype = False
autosummary_generate = True
autosummary_ignore_module_all = True  # list every module, not only those that a package exports
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types and shapes are in the numpydoc sections
autodoc_mock_imports = ["cupy"]
# A name that a package re-exports is documented under both paths; a bare reference may mean either.
suppress_warnings = ["ref.python"]

bibtex_bibfiles = ["../linfb/references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"


def gallery() -> str:
    """Return the sections of the gallery: the docstring of each figure's module and its pictures, by preset."""
    from figures import NAMES, PRESETS

    sections = []
    for name in NAMES:
        module, title = DOCS.parent / "figures" / f"{name}.py", f"``{name}``"
        sections += [
            f".. _figure-{name}:\n\n{title}\n{'-' * len(title)}",
            ast.get_docstring(ast.parse(module.read_text())) or "",
        ]
        pictures = [DOCS / "_static" / "gallery" / f"{name}-{preset}.png" for preset in PRESETS]
        sections += [pictured(picture) for picture in pictures if picture.exists()]
    return "\n\n".join(sections)


def pictured(picture: Path) -> str:
    """Return a picture of the gallery with what made it: preset, machine, commit, and its numbers if they are there."""
    told, source = json.loads(picture.with_suffix(".json").read_text()), picture.relative_to(DOCS)
    devices = dict.fromkeys(part.get("device") or told["machine"] for part in told["parts"].values())
    caption = f"Preset {told['preset']}, on {', '.join(devices)}, commit ``{str(told['git']['commit'])[:10]}``."
    if (record := DOCS.parent / "figures" / "results" / f"{picture.stem}.nc").exists():
        caption += f" Drawn from the record ``{record.relative_to(DOCS.parent)}``."
    else:
        caption += " Its numbers are not in the record; its settings are those that the preset had at that commit."
    return f".. figure:: {source}\n   :alt: Figure {picture.stem}\n   :target: {source}\n\n   {caption}"


def accuracies() -> str:
    """Return a table for each record on CIFAR-10 that has test accuracies, the paper's beside them."""
    from figures import NAMES, PRESETS, load
    from linfb.experiments import Store

    store, sections = Store(DOCS.parent / "figures" / "results"), []
    for key in (f"{name}-{preset}" for name in NAMES for preset in PRESETS):
        if key not in store:
            continue
        results, told = store.read(key)
        if told["config"].get("data") == "cifar10" and "test_accuracy" in results:
            paper_of = getattr(load(told["figure"]), "paper_of", lambda cell: None)
            title = f"``{told['figure']}``, preset {told['preset']}"
            sections += [f"{title}\n{'~' * len(title)}", protocol(told), accuracy_table(results, paper_of)]
    return "\n\n".join(sections)


def protocol(told: dict) -> str:
    """Return in words how what is recorded was trained, as far as its settings are at the top, and by which commits."""
    config, states = told["config"], [part.get("git") or told["git"] for part in told["parts"].values()]
    words = [f"{len(config['seeds'])} seeds"]
    words += [f"{name} {config[name]}" for name in ("epochs", "batch_size", "train") if config.get(name)]
    words += [f"learning rates {', '.join(map(str, config['learning_rates']))}"] if "learning_rates" in config else []
    words += [
        f"commit {', '.join(f'``{commit}``' for commit in dict.fromkeys(str(one['commit'])[:10] for one in states))}"
    ]
    missing = f" Not run: {', '.join(told['missing'])}." if told["missing"] else ""
    return "; ".join(words).replace("batch_size", "batch") + "." + missing


def accuracy_table(results, paper_of) -> str:
    """Return a table of mean, standard deviation and seeds of every cell, its chosen rate, and the paper's number."""
    rows = [("rule", "test accuracy", "single seeds", "rate", "the paper's")]
    for cell in map(str, results.cell.values):
        runs, paper = results.sel(cell=cell), paper_of(cell)
        spread = (
            f" \N{PLUS-MINUS SIGN} {float(runs.test_accuracy.std('seed', ddof=1)):.3f}" if runs.seed.size > 1 else ""
        )
        seeds = ", ".join(f"{one:.3f}" for one in runs.test_accuracy.values)
        rate = f"{float(runs.chosen_rate):g}" if "chosen_rate" in runs else ""
        rows.append(
            (cell, f"{float(runs.test_accuracy.mean()):.3f}{spread}", seeds, rate, f"{paper:.4f}" if paper else "")
        )
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 26 18 30 10 16", ""]
    for row in rows:
        lines += [f"   {' ' if place else '*'} - {entry}" for place, entry in enumerate(row)]
    return "\n".join(lines)


def results() -> str:
    """Return a table for each section of the theory: results, what computes, tests and shows them."""
    from derivations import derive_all
    from derivations.results import table

    lines, last = [], None
    for (chapter, section), rows in table(derive_all()).items():
        if chapter != last:
            heading = (DOCS / f"{chapter}.rst").read_text().split("\n")[0] if chapter else "Elsewhere"
            lines, last = [*lines, "", heading, "-" * len(heading), ""], chapter
            lines += [f"The chapter is :doc:`{chapter}`."] if chapter else []
        lines += ["", f".. list-table:: {section}", "   :class: results", "   :widths: 46 54", "   :header-rows: 1", ""]
        lines += ["   * - result", "     - function; tests; figures"]
        for row in rows:
            shown = ["", "       .. math::", "", f"          {row.equation}", ""] if row.equation else []
            told = [", ".join(f":func:`~linfb.theory.{name}`" for name in row.functions)]
            told += [f"``{test}``" for test in row.tests]
            told += [", ".join(f"figure :ref:`{name} <figure-{name}>`" for name in row.figures)]
            lines += [f"   * - {row.title}", *shown, "     - | " + "\n       | ".join(filter(None, told))]
    return "\n".join(lines)


def benchmarks() -> str:
    """Return a section for each record of the benchmarks."""
    from tests.benchmarks.page import tables

    sections = []
    for path in sorted((DOCS / "benchmarks").glob("*.json")):
        title, picture = f"Record ``{path.stem}``", path.with_suffix(".svg")
        shown = f"benchmarks/{picture.name}" if picture.exists() else None
        sections += [f"{title}\n{'-' * len(title)}", tables(json.loads(path.read_text()), shown)]
    return "\n\n".join(sections)


FOREIGN = re.compile(
    r"""<(?:script|link|img|iframe|source|audio|video|embed|object|image|use)\b[^<]*?
        \s(?:src|srcset|href|xlink:href|data)\s*=\s*["']?\s*(?:https?:)?//[^<>]*
      | (?:url\(|@import)\s*["']?\s*(?:https?:)?//[^)"';]*""",
    re.VERBOSE | re.IGNORECASE,
)
"""What a browser loads from the network by itself: scripts, styles, images and fonts, not links to follow."""


def foreign(folder: Path) -> list[str]:
    """Return what the pages, styles and drawings of a built site load from the network."""
    files = [path for suffix in ("html", "css", "svg") for path in sorted(folder.rglob(f"*.{suffix}"))]
    return [f"{path.name}: {found[0]}" for path in files for found in FOREIGN.finditer(path.read_text())]


def is_at_home(module: str, obj: object) -> bool:
    """Say whether a class is defined in `module` or directly below it, so that it is not documented a third time."""
    return not isinstance(obj, type) or obj.__module__.rpartition(".")[0] == module or obj.__module__ == module


def setup(app):
    """Fill pages from the figures and records that exist, afresh at every build; keep classes to their packages."""
    generated = {"gallery": gallery, "benchmarks": benchmarks, "paper": accuracies, "results": results}

    def fill(app, docname, source):
        if docname in generated:
            source[0] += "\n\n" + generated[docname]()

    def skip(app, what, name, obj, skip, options):
        module = app.env.temp_data.get("autodoc:module")
        return True if what == "module" and module and not is_at_home(module, obj) else None

    def stay_local(app, error):
        for found in foreign(Path(app.outdir)) if error is None and app.builder.format == "html" else ():
            logging.getLogger("sphinx.local").warning("loaded from the network: %s", found)

    app.connect("source-read", fill)
    app.connect("autodoc-skip-member", skip)
    app.connect("build-finished", stay_local)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: list(generated))
