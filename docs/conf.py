"""Builds the documentation site: `make docs`. Two pages are generated from the code before every build."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import generate  # noqa: E402  (needs the path above)

project = "pocketbert"
author = "the pocketbert authors"
copyright = "the pocketbert authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
exclude_patterns = ["results/**", "generated/schemes.md"]  # the table is included by a page
suppress_warnings = ["misc.highlighting_failure"]  # TOML and console blocks with placeholders
napoleon_use_ivar = True  # attributes described in a class docstring, which autodoc lists too
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
# Types of libraries whose documentation is not linked here.
nitpick_ignore_regex = [("py:.*", r".*")]
html_theme = "furo"
html_title = "pocketbert"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f6b5c", "color-brand-content": "#0f6b5c"},
    "dark_css_variables": {"color-brand-primary": "#5fd0b8", "color-brand-content": "#5fd0b8"},
}


def setup(app: object) -> None:
    """Writes the generated pages, so that Sphinx finds them as it finds the others."""
    generate.write_pages(DOCS / "generated")
