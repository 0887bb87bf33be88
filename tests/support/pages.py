"""The pages of the documentation, and the code blocks on them.

A ```bash or ```python block runs in a test, unless a comment above it says why it does not:

    <!-- no-run: needs a Flink cluster -->

The blocks of a page run in order, in one folder. A block of another language with a title, such as
```yaml title="batch.yaml", is written to the file of that name first. Output is shown in ```text
blocks, which nothing runs.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""The pages whose blocks run."""

MARKDOWN = [
    *PAGES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((ROOT / "deploy").glob("*.md")),
]
"""The files whose links are checked."""

_FENCE = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\s*$')
_NO_RUN = re.compile(r"^<!-- no-run: (\S.*) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: The file.
        line: Number of its first line of code.
        language: Word after the fence; empty if there is none.
        title: Name of the file that it shows; None without a title.
        reason: Why it does not run; None if it runs.
        code: Its lines, without the indentation of the fence.
    """

    page: Path
    line: int
    language: str
    title: str | None
    reason: str | None
    code: str

    @property
    def place(self) -> str:
        """Returns where the block is, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Returns whether a test runs the block."""
        return self.language in ("bash", "python") and self.reason is None

    def commands(self) -> list[list[str]]:
        """Returns the words of each command of a bash block, without comments."""
        joined = re.sub(r"\\\n\s*", " ", self.code)
        commands = (shlex.split(line, comments=True) for line in joined.splitlines())
        return [words for words in commands if words]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yields the code blocks of a page.

    Args:
        page: A Markdown file.

    Raises:
        ValueError: A block has no end.
    """
    lines = page.read_text().splitlines()
    last, index = "", 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        if fence is None:
            last = lines[index].strip() or last
            index += 1
            continue

        end = next((i for i in range(index + 1, len(lines)) if lines[i].strip() == "```"), None)
        if end is None:
            raise ValueError(f"{page}:{index + 1}: the block has no end")
        no_run = _NO_RUN.match(last)
        yield Block(
            page=page,
            line=index + 2,
            language=fence[2],
            title=fence[3],
            reason=no_run[1] if no_run else None,
            code=textwrap.dedent("\n".join(lines[index + 1 : end])) + "\n",
        )
        last, index = "```", end + 1


def without_blocks(text: str) -> str:
    """Returns Markdown without its code blocks and code spans."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S))


def anchors_of(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as MkDocs and GitHub make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}
