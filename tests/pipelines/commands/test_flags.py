import argparse
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DirectOptions, SetupOptions, StandardOptions

from datarater.pipelines import errors
from datarater.pipelines.commands import (
    batch,
    curate,
    flags,
    printing,
    requests,
    score,
    select,
    status,
)
from datarater.pipelines.commands import flags as options
from datarater.pipelines.errors import (
    CountsError,
    CurationError,
    InputChangedError,
    RunFolderMismatchError,
)
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.runners import choice, logs
from datarater.rater_model.documents.records import ReadOptions
from tests.support.corpora import as_lines, make_records
from tests.support.run_folders import committed_identity, scoring

HERE = choice.choose([], 1)


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("64MB", 64_000_000), ("16MiB", 2**24), ("2 gib", 2**31), ("5k", 5000)],
)
def test_bytes_are_read_with_units(text: str, count: int) -> None:
    assert options.byte_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5GB", "TB", "1e9"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="number of bytes"):
        options.byte_count(text)


def test_a_local_run_names_its_runner() -> None:
    for beam_args in ([], ["--runner=DirectRunner"], ["--runner", "direct"]):
        layout = choice.choose(beam_args, 1)
        assert layout.local
        assert layout.options.view_as(StandardOptions).runner == "FnApiRunner"
        assert layout.options.view_as(DirectOptions).direct_running_mode == "in_memory"
        assert layout.options.view_as(SetupOptions).save_main_session is False
    several = choice.choose([], 3, max_workers=3)
    assert several.options.view_as(DirectOptions).direct_num_workers == 3
    assert several.options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    assert "3 worker processes" in several.describe()


def test_a_users_runner_and_its_flags_pass_untouched() -> None:
    layout = choice.choose(["--runner=FlinkRunner", "--parallelism=2", "--made_up=1"], 1)
    assert not layout.local
    assert layout.options.view_as(StandardOptions).runner == "FlinkRunner"
    assert "FlinkRunner" in layout.describe()
    mine = choice.choose(["--direct_num_workers=5", "--direct_running_mode=multi_threading"], 1)
    assert mine.options.view_as(DirectOptions).direct_num_workers == 5


def test_a_flag_that_nobody_knows_is_refused_on_this_machine() -> None:
    with pytest.raises(choice.UnknownFlagError, match="--keep_fracton"):
        choice.choose(["--keep_fracton=0.5"], 1)


@pytest.mark.parametrize("module", [curate, score, select, status, batch])
def test_help_has_an_example_and_the_exit_codes(module, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    description, example, _ = text.split("\n\n", 2)
    assert description.endswith(".")
    assert example.startswith(f"Example:\n  {module.COMMAND} ")
    assert "Exit codes:\n   0  done" in text


def test_exactly_one_rule_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--output", "run"], ["--output", "run", "--keep_fraction=1", "--keep_count=3"]):
        with pytest.raises(SystemExit) as ended:
            select.main(argv)
        assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_fraction=1", "--max_copies=3"], "--max_copies needs --sample_tokens"),
        (["--keep_fraction=1", "--temperature=1"], "--temperature needs --sample_tokens"),
        (["--sample_count=5"], "--sample_count needs --temperature"),
        (["--sample_count=5", "--temperature=0"], "--temperature: 0 is not above 0"),
        (["--sample_count=5", "--temperature=x"], "--temperature: 'x' is not a number"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused_by_its_flag(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        select.main(["--output", "run", *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", [CountsError, InputChangedError, RunFolderMismatchError, CurationError]
)
def test_our_errors_are_found_behind_a_runners(kind: type[CurationError]) -> None:
    inner = kind("split 3: 4 read [while running 'Curate/Score']")
    wrapped = RuntimeError("bundle failed")
    wrapped.__cause__ = inner
    as_text = RuntimeError(
        f"Traceback\n  x\npipelines.errors.{kind.__name__}: split 3: 4 read [while running 'a']\n"
    )
    for error in (inner, wrapped, as_text):
        found = errors.find_cause(error)
        assert type(found) is kind
        assert str(found) == "split 3: 4 read"
        assert found.exit_code == kind.exit_code
    assert errors.find_cause(ValueError("something else")) is None


def test_beam_does_not_repeat_what_the_command_says() -> None:
    logs.quieten_beam()
    logger = logging.getLogger("apache_beam.runners.common")
    try:
        raise CountsError("no balance")
    except CountsError as error:
        record = logger.makeRecord(
            "x", logging.ERROR, "f", 1, "no balance", (), (CountsError, error, None)
        )
    assert not logger.filter(record)
    assert logger.filter(logger.makeRecord("x", logging.ERROR, "f", 1, "something else", (), None))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"--output": "nowhere://run"},
            "--output: nowhere://run: there is no file system nowhere://",
        ),
        ({"--output": "FILE"}, "/file is a file; name a folder"),
        ({"--output": "FILE/below/run"}, "/file is a file; name a folder"),
        (
            {"--runner": "FlinkRunnr"},
            "--runner: there is no FlinkRunnr here; did you mean FlinkRunner?",
        ),
        (
            {"--runner": "no.such.Runner"},
            "--runner: there is no no.such.Runner here; No module named 'no'",
        ),
        ({"--rater": "FOLDER"}, "is not a rater checkpoint"),
        ({"--rater": "FOLDER/missing"}, "is not a rater checkpoint"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage_in_one_line(
    flags: dict[str, str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    given = {"--input": "a.jsonl", "--rater": "rater", "--output": "FOLDER", **flags}
    places = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path / "folder")}
    argv = []
    for flag, value in given.items():
        for name, place in places.items():
            value = value.replace(name, place)
        argv += [flag, value]
    assert score.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_damaged_rater_is_no_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "rater.json").write_text("{}")
    argv = ["--input", "a.jsonl", "--rater", str(tmp_path), "--output", str(tmp_path / "run")]
    assert score.main(argv) == 1


@pytest.mark.parametrize("runner", [[], ["--runner=FlinkRunner"]])
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--keep_fracton=0.5", "--keep_fraction"),
        ("--keep-fraction", "--keep_fraction"),
        ("--keep_frac=0.5", "--keep_fraction"),
        ("--inputs=a", "--input"),
        ("--treshold=1", "--threshold"),
    ],
)
def test_a_flag_that_is_nearly_ours_is_refused(
    word: str, meant: str, runner: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        curate.main(["--output=run", word, *runner])
    assert ended.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_beams_flags_and_those_of_its_runners_are_not_taken_for_ours() -> None:
    parser = curate.make_parser()
    # FlinkRunner learns these from its job server.
    of_flink = [
        "--parallelism",
        "--max_parallelism",
        "--max_bundle_size",
        "--max_bundle_time_mills",
        "--object_reuse",
    ]
    of_flink += [
        "--checkpointing_interval",
        "--finish_bundle_before_checkpointing",
        "--execution_mode_for_batch",
    ]
    for flag in [*of_flink, *sorted(choice.beam_flags() - {"--help"})]:
        if flag.startswith("--"):
            options._refuse_misspelt(parser, [flag])


def test_a_corpus_of_rejected_records_alone_is_said_loudly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = Counter(not_json=5, no_text=1195)
    identity = committed_identity(read=ReadOptions(text_field="body"))
    counts = Counts(read=1200, rejected_by_reason=reasons)
    printing.warn_if_all_rejected(scoring(counts, identity=identity))
    said = capsys.readouterr().err
    assert "1,200 records" in said
    assert "no_text 1,195, not_json 5" in said
    assert "is --text_field right?" in said
    assert "'body'" in said
    printing.warn_if_all_rejected(scoring(Counts(1200, 1, rejected_by_reason=reasons)))
    assert capsys.readouterr().err == ""


def test_inputs_are_read_from_a_list(rater: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# two files\n\n  a.jsonl\n~/b.jsonl\n")
    args = curate.make_parser().parse_args(
        [f"--input_list={tmp_path}/list.txt", "--rater=r", "--output=o", "--keep_count=1"]
    )
    assert requests.inputs_of(args, HERE).patterns == (
        "a.jsonl",
        str(Path.home() / "b.jsonl"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"# nothing\n", "lists no input"), (b"\xff\xfe", "not a UTF-8"), (None, "does not exist")],
)
def test_a_list_of_inputs_that_lists_none_is_refused(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    argv = [f"--input_list={path}", "--rater=r", f"--output={tmp_path}/o", "--keep_count=1"]
    assert curate.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"datarater curate: --input_list: {path} ")
    assert message in said
    assert said.count("\n") == 1


def test_the_syntax_of_batches_for_lists_is_refused_with_the_flag_to_use(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("a.jsonl\n")
    argv = [f"--input=@{tmp_path}/list.txt", f"--rater={rater}", f"--output={tmp_path}/o"]
    assert curate.main([*argv, "--keep_count=1"]) == 2
    assert f"use --input_list {tmp_path}/list.txt" in capsys.readouterr().err


def test_home_is_expanded_in_every_path(
    rater: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r").symlink_to(rater)
    argv = ["--input=~/a*", "--rater=~/r", "--output=~/o", "--keep_fraction=1", "--reference=~/e"]
    args, _ = flags.parse(curate.make_parser(), argv)
    scoring, selection = requests.scoring_of(args, HERE), requests.selection_of(args, HERE)
    assert scoring.inputs == Patterns((f"{tmp_path}/a*",), without=(f"{tmp_path}/o",))
    paths = (scoring.rater, scoring.output, selection.output, selection.reference)
    assert paths == tuple(f"{tmp_path}/{name}" for name in ("r", "o", "o", "e"))

    args.input, args.tfds_data_dir = ["tfds:x"], "~/t"
    with pytest.raises(CurationError, match=f"{tmp_path}/t"):
        requests.inputs_of(args, HERE)


@pytest.mark.slow
def test_a_reader_that_leaves_early_does_not_end_the_work(
    corpus_and_run: tuple[Path, Path], tmp_path: Path
) -> None:
    _, run = corpus_and_run
    command = (
        f"{sys.executable} -m datarater select --output {run} --keep_count 3 --name best | true"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "selections" / "best" / "_SUCCESS").exists()


@pytest.fixture
def corpus_and_run(rater: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A small corpus, scored."""
    corpus, run = tmp_path / "corpus.jsonl", tmp_path / "run"
    corpus.write_bytes(as_lines(make_records(10, 0)))
    assert score.main([f"--input={corpus}", f"--rater={rater}", f"--output={run}"]) == 0
    return corpus, run


@pytest.mark.parametrize(
    ("flag", "path", "module", "package", "extra"),
    [
        ("--input", "gs://bucket/*.jsonl", "gcsfs", "gcsfs", "gcp"),
        ("--input", "s3://bucket/*.jsonl", "s3fs", "s3fs", "s3"),
        ("--rater", "s3://bucket/rater", "s3fs", "s3fs", "s3"),
    ],
)
def test_a_missing_package_is_one_line_with_the_extra_and_exit_code_74(
    flag: str,
    path: str,
    module: str,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    loaded = sys.modules["fsspec.registry"]._registry  # other tests may have loaded the package
    monkeypatch.delitem(loaded, path[:2], raising=False)
    values = {"--input": "a.jsonl", "--rater": "r", "--output": "o", flag: path}
    argv = [f"{name}={value}" for name, value in values.items()]
    assert curate.main([*argv, "--keep_count=1"]) == 74
    assert capsys.readouterr().err == (
        f"datarater curate: {flag}: {path}: {path[:2]}:// needs the package {package}: "
        f"pip install 'datarater[{extra}]'\n"
    )


def test_commas_in_braces_do_not_separate_inputs() -> None:
    args = curate.make_parser().parse_args(
        ["--input=a/{b,c}.jsonl,tfds:x", "--rater=r", "--output=o", "--keep_count=1"]
    )
    with pytest.raises(CurationError, match="no dataset 'x'"):
        requests.inputs_of(args, HERE)
    args.input = ["a/{b,c}.jsonl,d"]
    assert requests.inputs_of(args, HERE).patterns == ("a/{b,c}.jsonl,d",)
