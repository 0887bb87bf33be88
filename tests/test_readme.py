"""The README says what the commands say."""

import re

from datarater.rater_model.exit_codes import EXIT_CODES
from tests.support import ROOT
from tests.support.readme_tables import README, filled


def test_the_tables_of_flags_are_those_of_the_commands() -> None:
    assert README.read_text() == filled(README.read_text()), "run `make readme`"


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README.read_text()


def test_the_exit_codes_are_those_of_the_commands() -> None:
    table = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    assert f"|---|---|\n{table}\n" in README.read_text()


def test_what_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert not missing


def test_commands_that_the_readme_names_are_there() -> None:
    text = README.read_text()
    setup = (ROOT / "setup.py").read_text()
    for command in set(re.findall(r"datarater-[a-z]+(?= )", text)):
        assert f'"{command} = ' in setup, f"{command} is not installed"
    for path in set(re.findall(r"(?:tests/benchmarks|meta_training/configs)/\w+\.py", text)):
        assert (ROOT / path).exists(), f"{path} is not there"
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)):
        assert f"\n{target}:" in makefile, f"make {target} is no target"
