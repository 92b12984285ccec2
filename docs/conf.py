"""Sphinx configuration. The build needs no network: MathJax is bundled and there is no intersphinx."""

import ast
import json
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
        sections += [f"{title}\n{'-' * len(title)}", ast.get_docstring(ast.parse(module.read_text())) or ""]
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


def benchmarks() -> str:
    """Return a section for each record of the benchmarks."""
    from tests.benchmarks.page import tables

    sections = []
    for path in sorted((DOCS / "benchmarks").glob("*.json")):
        title, picture = f"Record ``{path.stem}``", path.with_suffix(".svg")
        shown = f"benchmarks/{picture.name}" if picture.exists() else None
        sections += [f"{title}\n{'-' * len(title)}", tables(json.loads(path.read_text()), shown)]
    return "\n\n".join(sections)


def is_at_home(module: str, obj: object) -> bool:
    """Say whether a class is defined in `module` or directly below it, so that it is not documented a third time."""
    return not isinstance(obj, type) or obj.__module__.rpartition(".")[0] == module or obj.__module__ == module


def setup(app):
    """Fill pages from the figures and records that exist, afresh at every build; keep classes to their packages."""
    generated = {"gallery": gallery, "benchmarks": benchmarks}

    def fill(app, docname, source):
        if docname in generated:
            source[0] += "\n\n" + generated[docname]()

    def skip(app, what, name, obj, skip, options):
        module = app.env.temp_data.get("autodoc:module")
        return True if what == "module" and module and not is_at_home(module, obj) else None

    app.connect("source-read", fill)
    app.connect("autodoc-skip-member", skip)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: list(generated))
