"""`datarater prepare` as a user meets it: its folder, its counts, and one line for each trouble."""

from __future__ import annotations

import fcntl
import shlex
from pathlib import Path

import pytest
from absl import flags

from datarater.meta_training import prepare, train
from datarater.meta_training.data.prepared import read_index
from datarater.meta_training.run import preparation
from datarater.meta_training.run.command import next_command
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model import exit_codes
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.support.training import write_texts


def flags_of(tmp_path: Path, **changed: object) -> list[str]:
    """Returns the flags that prepare a small pool; `__` in a changed field's name is a dot."""
    pool = tmp_path / "pool.jsonl"
    if not pool.exists():
        write_texts(pool)
        pool.write_text(pool.read_text() + "no json\n")
    values = {
        "data.inner": pool,
        "length": 32,
        "data.outer_share": 0.25,
        "data.test_share": 0.25,
    } | {name.replace("__", "."): value for name, value in changed.items()}
    return [
        f"--output={tmp_path / 'prepared'}",
        *(f"--config.{name}={value}" for name, value in values.items()),
    ]


def test_it_prints_counts_and_the_command_that_trains_on_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"rater__ngram_orders": "(2,3)", "data__within_source_share": 0.5, "data__outer": ""}
    arguments = flags_of(tmp_path, **changed)
    assert prepare.main([*arguments, "--config=demo", "--processes=1"]) == exit_codes.DONE
    first, header, *rows, rejected, size, following = capsys.readouterr().out.splitlines()
    assert first == f"prepared {tmp_path / 'prepared'}:"
    assert header.split()[:4] == ["set", "documents", "windows", "tokens"]

    index = read_index(tmp_path / "prepared")
    assert index is not None
    assert [row.split() for row in rows] == [
        [role, str(each.documents), str(each.windows), f"{each.tokens:,}", "0", "0"]
        for role, each in index.sets.items()
    ]
    assert sum(each.documents for each in index.sets.values()) == 200
    assert rejected == f"  rejected records of {tmp_path / 'pool.jsonl'}: 1 (1 not_json)"
    assert size.endswith("MB in " + str(tmp_path / "prepared") + ", 3 shards")

    words = shlex.split(following.removeprefix("next:"))
    assert words[:2] == ["datarater", "train"]
    values = flags.FlagValues()
    train.parse_flags(words[2:], values)
    assert values.config.rater.ngram_orders == (2, 3)
    assert values.config.data.within_source_share == 0.5
    assert values.config.population.to_dict() == _demo_population()
    assert preparation.check_given(values.config, Path(values.config.data.prepared)) == index

    # Without the pool in its config, a run names the pool that its folder was prepared from.
    values.config.data.inner = ""
    words = shlex.split(next_command(Workdir(tmp_path / "work"), values.config.data))
    assert words[:4] == ["datarater", "curate", "--input", str(tmp_path / "pool.jsonl")]
    (tmp_path / "prepared" / "index.json").unlink()
    assert " --input FILES " in next_command(Workdir(tmp_path / "work"), values.config.data)


def _demo_population() -> dict[str, object]:
    values = flags.FlagValues()
    train.parse_flags(["--config=demo", "--workdir=work"], values)
    population: dict[str, object] = values.config.population.to_dict()
    return population


def test_a_finished_folder_is_checked_and_never_prepared_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(flags_of(tmp_path)) == exit_codes.DONE
    printed = capsys.readouterr().out
    before = {path: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    assert prepare.main(flags_of(tmp_path)) == exit_codes.DONE
    again = capsys.readouterr().out
    assert again.startswith(f"nothing to do: {tmp_path / 'prepared'} is prepared, from the same ")
    assert again.splitlines()[1:] == printed.splitlines()[1:]

    assert prepare.main(flags_of(tmp_path, length=64)) == exit_codes.OTHER_RUN
    assert "it was prepared with length 32, now it is 64" in capsys.readouterr().err
    write_texts(tmp_path / "pool.jsonl", seed=1)
    assert prepare.main(flags_of(tmp_path)) == exit_codes.OTHER_RUN
    assert "the texts of the inner set's source have changed" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "prepared").iterdir()} == before


def test_the_same_command_continues_one_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    assert prepare.main([*flags_of(tmp_path), f"--output={tmp_path / 'other'}"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "encode_batch", interrupted)
        assert prepare.main(flags_of(tmp_path)) == exit_codes.STOPPED
    assert "datarater prepare: interrupted; the same command continues" in capsys.readouterr().err
    assert not (tmp_path / "prepared" / "index.json").exists()

    assert prepare.main(flags_of(tmp_path)) == exit_codes.DONE
    for path in (tmp_path / "other").iterdir():
        assert (tmp_path / "prepared" / path.name).read_bytes() == path.read_bytes()


def test_a_folder_of_others_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert prepare.main(flags_of(tmp_path)) == exit_codes.OTHER_RUN
    assert "has other files, such as notes.txt; give a new" in capsys.readouterr().err
    (folder / "notes.txt").unlink()

    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prepare.main(flags_of(tmp_path)) == exit_codes.OTHER_RUN
    assert f"another process is preparing {folder}; wait for it" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output="], exit_codes.WRONG_USAGE, "--output is missing: give the folder"),
        (["--output=gs://bucket/prepared"], exit_codes.WRONG_USAGE, "lie on a local or mounted"),
        (["--processes=0"], exit_codes.WRONG_USAGE, "processes"),
        (["--workdir=work"], exit_codes.WRONG_USAGE, "workdir"),
        (["--config.lenght=3"], exit_codes.WRONG_USAGE, "lenght"),
        (["--config.data.inner="], exit_codes.WRONG_USAGE, "data.inner is empty: give the pool"),
        (["--config.data.prepared=old"], exit_codes.WRONG_USAGE, "is prepared already: give data"),
        (["--config.data.inner=nowhere/*"], exit_codes.NO_INPUT, "no file matches 'nowhere/*'"),
        (["--config.length=100000"], exit_codes.WRONG_USAGE, "do not fill one window"),
        (["--config.length=1"], exit_codes.WRONG_USAGE, "length must be at least 2 tokens, not 1"),
    ],
)
def test_each_trouble_has_one_line_and_its_exit_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert prepare.main([*flags_of(tmp_path), *arguments]) == code
    done = capsys.readouterr()
    line = done.err.splitlines()[-1]
    assert line.startswith("datarater prepare: ")
    assert message in line
    assert done.out == ""
    assert not (tmp_path / "prepared" / "index.json").exists()


def test_help_has_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--help"], ["nowhere"]) == exit_codes.DONE
    text = capsys.readouterr().out
    assert "Example:\n  datarater prepare --output=prepared --config.data.inner=" in text
    assert f"{exit_codes.OTHER_RUN}  {exit_codes.EXIT_CODES[exit_codes.OTHER_RUN]}" in text
    assert prepare.main([], ["nowhere"]) == exit_codes.FAILED
    assert "datarater prepare needs the train extra" in capsys.readouterr().err


def test_a_start_from_scores_needs_the_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        f"--workdir={tmp_path / 'work'}",
        "--config.data.prepared=prepared",
        "--config.start.scores=classifier",
    ]
    assert train.main(arguments) == exit_codes.WRONG_USAGE
    assert capsys.readouterr().err == (
        "datarater train: start.scores needs the inner documents, not only their windows: give "
        "data.inner too, from which prepared was prepared\n"
    )
