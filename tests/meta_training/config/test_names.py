"""The names of the training configs."""

import re
from pathlib import Path

import pytest

from datarater.meta_training.config.names import CONFIGS, config_names, config_path
from datarater.meta_training.errors import ConfigError


def test_names_are_those_of_the_files() -> None:
    files = {path.stem for path in CONFIGS.glob("*.py")} - {"__init__"}
    assert config_names()[0] == "default"
    assert sorted(config_names()) == sorted(files)


@pytest.mark.parametrize("name", config_names())
def test_each_config_opens_with_the_command_that_uses_it(name: str) -> None:
    text = (CONFIGS / f"{name}.py").read_text()
    if name != "default":
        assert re.search(rf"--config={name}\b", text.split('"""')[1])


def test_a_name_wins_over_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("")
    assert config_path("demo") == str(CONFIGS / "demo.py")
    assert config_path("./demo") == "./demo"


def test_an_argument_stays_behind_its_colon(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("")
    assert config_path(f"{tmp_path}/own.py:a:b") == f"{tmp_path}/own.py:a:b"
    assert config_path("pile:x") == f"{CONFIGS / 'pile.py'}:x"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("defualt", r"\(did you mean default\?\); give a Python file or one of default, c4, "),
        ("demo.py", r"did you mean demo\?"),
        ("nowhere/my.py", r"^--config=nowhere/my.py: no config or file has this name; give "),
        ("/", r"^--config=/ is not a file"),
    ],
)
def test_what_is_no_config_is_refused_with_the_names(config: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_path(config)
