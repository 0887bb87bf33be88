"""What the commands print: one line at a time, in which no name can do anything to a terminal."""

from __future__ import annotations

import io
import json

import pytest

from datarater.rater_model.command_line import CommandParser, print_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é 日本 😀", "plain, é 日本 😀"),
        ("a\nscored 5 documents", r"a\nscored 5 documents"),
        ("a\r\x1b[2K\x1b[31mred\x07", r"a\r\u001b[2K\u001b[31mred\u0007"),
        ("\x9b31m", r"\u009b31m"),
        ("right\u202eleft\u2028", r"right\u202eleft\u2028"),
        ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    file = io.StringIO()
    print_line(text, file, start="\r\x1b[K", end="")
    assert file.getvalue() == f"\r\x1b[K{shown}"
    assert json.loads(json.dumps(text)) == text
    escaped = visible(json.dumps(text, ensure_ascii=False))
    if "\udcff" not in text:
        assert json.loads(escaped) == text


def test_a_wrong_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("datarater test", "It tests.", "datarater test")
    with pytest.raises(SystemExit):
        parser.parse_args(["--wrong\x1b[2J\nfaked"])
    assert capsys.readouterr().err.count("\n") == 1
