"""Sphinx's settings of the site; build.py beside it gathers what it reads."""

import importlib.util
import re

from docutils import nodes
from docutils.utils.math import latex2mathml

project, author, copyright = "srdyn", "the srdyn authors", "the srdyn authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.githubpages"]  # the last: a host is to keep _static
html_theme, html_title = "sphinx_book_theme", "srdyn"
html_sidebars = {"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}  # the header has the search
html_theme_options = {"use_download_button": True, "show_toc_level": 2, "navigation_with_keys": False}
html_context = {"default_mode": "auto"}  # light or dark as the reader's machine is; without it the theme complains
html_static_path, html_css_files = ["static"], ["site.css"]
html_js_files = ["site.js"]
highlight_language = "none"  # what stands in fences without a name are commands
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # read from other pages, which a browser refuses a page on disk
html_math_renderer = "mathml"  # browsers draw it themselves: nothing is fetched, nothing runs
exclude_patterns = ["notebooks/site/contents.md"]  # index.md has it
nb_execution_mode = "off"  # notebooks are shown as they ran
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_mock_imports = [name for name in ("datasets", "lm_eval") if not importlib.util.find_spec(name)]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "none"  # shapes are in the prose; the signatures would fill the screen
suppress_warnings = ["myst.header"]  # a notebook's first cell may hold its heading alone


def as_rst(app, what, name, thing, options, lines: list[str]) -> None:
    """Docstrings are plain text with `names`: no other character means anything."""
    parts = [re.split(r"`([^`]+)`", line) for line in lines]  # what was between backticks has an odd place
    plain = [
        [re.sub(r"([*|_\\])", r"\\\1", p) if i % 2 == 0 else f"``{p}``" for i, p in enumerate(line)] for line in parts
    ]
    lines[:] = ["".join(line) for line in plain]


def is_alias(app, what, name, thing, skip: bool, options) -> bool | None:
    """Fields of a named tuple are told of in its own lines; Python's say their number."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def inline(translator, node) -> None:
    """A formula within a line, in MathML."""
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def display(translator, node) -> None:
    """A formula on a line of its own."""
    translator.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    """Formulas, docstrings and members as above."""
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-skip-member", is_alias)
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
