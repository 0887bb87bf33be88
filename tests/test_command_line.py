import argparse
import logging

import pytest
from apache_beam.options.pipeline_options import DirectOptions, SetupOptions, StandardOptions

from pipelines import curate, errors, options, progress, runners, score, select
from pipelines.errors import BooksError, CurationError, InputChangedError, RunFolderMismatchError


@pytest.mark.parametrize(
    ("text", "count"), [("1", 1), ("64MB", 64_000_000), ("16MiB", 2**24), ("2 gib", 2**31), ("5k", 5000)]
)
def test_bytes_are_read_with_units(text: str, count: int) -> None:
    assert options.byte_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5GB", "TB", "1e9"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="number of bytes"):
        options.byte_count(text)


def test_a_local_run_names_its_runner() -> None:
    for beam_args in ([], ["--runner=DirectRunner"], ["--runner", "direct"]):
        layout = runners.choose(beam_args, 1)
        assert layout.local
        assert layout.options.view_as(StandardOptions).runner == "FnApiRunner"
        assert layout.options.view_as(DirectOptions).direct_running_mode == "in_memory"
        assert layout.options.view_as(SetupOptions).save_main_session is False
    several = runners.choose([], 3)
    assert several.options.view_as(DirectOptions).direct_num_workers == 3
    assert several.options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    assert "3 worker processes" in several.describe()


def test_a_users_runner_and_its_flags_pass_untouched() -> None:
    layout = runners.choose(["--runner=FlinkRunner", "--parallelism=2", "--made_up=1"], 1)
    assert not layout.local
    assert layout.options.view_as(StandardOptions).runner == "FlinkRunner"
    assert "FlinkRunner" in layout.describe()
    mine = runners.choose(["--direct_num_workers=5", "--direct_running_mode=multi_threading"], 1)
    assert mine.options.view_as(DirectOptions).direct_num_workers == 5


def test_a_flag_that_nobody_knows_is_refused_on_this_machine() -> None:
    with pytest.raises(runners.UnknownFlagError, match="--keep_fracton"):
        runners.choose(["--keep_fracton=0.5"], 1)


@pytest.mark.parametrize("module", [curate, score, select])
def test_help_has_an_example_and_the_exit_codes(module, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"  {module.COMMAND} --" in text
    assert "exit codes:" in text


def test_exactly_one_rule_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--output", "run"], ["--output", "run", "--keep_fraction=1", "--keep_count=3"]):
        with pytest.raises(SystemExit) as ended:
            select.main(argv)
        assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [BooksError, InputChangedError, RunFolderMismatchError, CurationError])
def test_our_errors_are_found_behind_a_runners(kind: type[CurationError]) -> None:
    inner = kind("split 3: 4 read [while running 'Curate/Score']")
    wrapped = RuntimeError("bundle failed")
    wrapped.__cause__ = inner
    as_text = RuntimeError(f"Traceback\n  x\npipelines.errors.{kind.__name__}: split 3: 4 read [while running 'a']\n")
    for error in (inner, wrapped, as_text):
        found = errors.find_cause(error)
        assert type(found) is kind
        assert str(found) == "split 3: 4 read"
        assert found.exit_code == kind.exit_code
    assert errors.find_cause(ValueError("something else")) is None


def test_beam_does_not_repeat_what_the_command_says() -> None:
    progress.quieten_beam()
    logger = logging.getLogger("apache_beam.runners.common")
    try:
        raise BooksError("no balance")
    except BooksError as error:
        record = logger.makeRecord("x", logging.ERROR, "f", 1, "no balance", (), (BooksError, error, None))
    assert not logger.filter(record)
    assert logger.filter(logger.makeRecord("x", logging.ERROR, "f", 1, "something else", (), None))
