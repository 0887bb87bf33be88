"""The umbrella command: it answers at once, and leads to every subcommand."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import datarater
from datarater import cli
from datarater.rater_model import exit_codes

HEAVY = ("jax", "apache_beam", "flax", "optax", "orbax", "grain", "tensorflow_datasets")

LOADED = """
import json, sys
from datarater import cli
code = cli.main(json.loads(sys.argv[1]))
heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print("\\n" + json.dumps({"code": code, "heavy": heavy}))
"""


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"datarater {datarater.__version__}\n"


def test_help_opens_with_an_example_and_names_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.split("\n\n")[1].startswith("Example:\n  datarater ")
    for name, command in cli.COMMANDS.items():
        assert f"  {name}" in text
        assert command.summary in text
    for code, meaning in exit_codes.EXIT_CODES.items():
        assert f"{code:>2}  {meaning}" in text


def test_no_command_is_wrong_usage_and_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == exit_codes.WRONG_USAGE
    assert "Commands:" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_one_that_is_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["curat"]) == exit_codes.WRONG_USAGE
    assert capsys.readouterr().err == "datarater: unknown command 'curat'; did you mean curate?\n"
    assert cli.main(["qqq"]) == exit_codes.WRONG_USAGE
    assert "the commands are train, prepare, score" in capsys.readouterr().err


def test_wrong_usage_of_a_subcommand_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["select", "--output", "run", "--per", "shard"]) == exit_codes.WRONG_USAGE
    said = capsys.readouterr().err
    assert said == (
        "datarater select: argument --per: 'shard' is not corpus or source; "
        "see datarater select --help\n"
    )


def test_a_missing_folder_has_one_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    assert cli.main(["status", missing]) == exit_codes.WRONG_USAGE
    assert cli.main(["select", "--output", missing, "--keep_count", "1"]) == exit_codes.WRONG_USAGE
    assert capsys.readouterr().err.count(f"{missing} does not exist\n") == 2


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError("No module named 'optax'", name="optax")

    monkeypatch.setattr("importlib.import_module", import_module)
    assert cli.main(["demo"]) == exit_codes.FAILED
    assert capsys.readouterr().err == (
        "datarater demo: the package optax is not installed; pip install 'datarater[train]'\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "completion"])
def test_help_loads_neither_jax_nor_beam(command: str) -> None:
    assert loaded([command, "--help"]) == {"code": 0, "heavy": []}


@pytest.mark.slow
def test_status_loads_neither_jax_nor_beam(tmp_path: Path) -> None:
    (tmp_path / "run" / "plan").mkdir(parents=True)
    assert loaded(["status", str(tmp_path / "run")]) == {"code": 0, "heavy": []}


def loaded(words: list[str]) -> dict[str, object]:
    """Runs a command in a process of its own and returns what it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(words), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_completion_knows_the_commands_and_their_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in ("curate", "status", "--keep_fraction", "--watch", "--workdir"):
        assert word in script


def test_public_names_load_and_others_do_not_exist() -> None:
    assert set(datarater.__all__) <= set(dir(datarater))
    for name in datarater.__all__:
        assert getattr(datarater, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        datarater.nothing  # noqa: B018


def test_a_config_that_exits_with_a_text_fails_with_that_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        "import sys\ndef get_config():\n    sys.exit('no data today')\n"
    )
    assert cli.main(["train", f"--config={tmp_path}/own.py", f"--workdir={tmp_path}/w"]) == 1
    assert "no data today" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_for_a_reader_that_left_goes_nowhere(stream: str) -> None:
    program = (
        "import sys; from datarater.rater_model.command_line import print_line\n"
        f"for number in range(3): print_line('line', sys.{stream})\n"
        "open(sys.argv[1], 'w').write('done')"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with tempfile.NamedTemporaryFile() as file:
        done = subprocess.run(
            [sys.executable, "-c", program, file.name],
            stdout=writer if stream == "stdout" else None,
            stderr=writer if stream == "stderr" else None,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        assert Path(file.name).read_text() == "done"
    os.close(writer)
