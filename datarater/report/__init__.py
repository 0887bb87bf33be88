"""The HTML report: one self-contained page for a selection or an evaluation.

A reader (`selection`, `evaluation`) turns files into a `page.Page` of plain data, and `html.render`
turns the page into HTML with inline SVG. The page runs no script and loads nothing.
"""

from __future__ import annotations

import shlex

EVALUATION_FILE = "evaluation.json"
"""The results of an evaluation, in its folder."""


def report_command(folder: str, name: str, texts: int) -> str:
    """Returns the shell command that makes the report of a selection again.

    Args:
        folder: Path of the run folder.
        name: Name of the selection.
        texts: Number of documents in each list.
    """
    words = ["datarater", "report", folder, "--name", name, "--report_texts", str(texts)]
    return shlex.join(words)
