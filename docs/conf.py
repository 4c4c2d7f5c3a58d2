"""Sphinx: Markdown pages, warnings are errors (`make docs`)."""

project = "mechscope"
author = "The mechscope developers"
copyright = "2026, The mechscope developers"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "mechscope"
html_copy_source = False
html_show_sphinx = False
