"""Sphinx: `make docs` builds docs/_build/html; warnings are errors."""

import pathlib
import re
import sys

sys.path[:0] = [str(p) for p in pathlib.Path(__file__).resolve().parents[:2]]

import tables  # noqa: E402  needs the path above

project = "shadowft_jax"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True  # a link that leads nowhere is a warning
myst_heading_anchors = 3  # GitHub's anchors, for the headings of three levels
html_theme = "pydata_sphinx_theme"
html_title = "shadowft_jax"
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False}
# Hosts that refuse programs, or want a login.
linkcheck_ignore = [r"https://huggingface\.co/meta-llama/.*"]


def prepare(_, name, source):
  """Fills in the tables of a page, and names files outside docs/ instead of linking to them."""
  text = tables.filled(source[0])
  source[0] = re.sub(r"\[([^]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2` in the repository)", text)


def setup(app):
  app.connect("source-read", prepare)
