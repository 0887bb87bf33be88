"""The HTML report: one self-contained page for a selection or an evaluation.

A reader (`selection`, `evaluation`) turns files into a `page.Page` of plain data, and `html.render`
turns the page into HTML with inline SVG. The page runs no script and loads nothing.
"""
