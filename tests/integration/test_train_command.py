"""`datarater train` as a user meets it: refusals in one line, and training on a TensorFlow dataset."""

import argparse
import shlex
import signal
from pathlib import Path

import pytest

from datarater.meta_training.configs import default
from datarater.meta_training.run.metrics import read_metrics
from datarater.meta_training.run.workdir import Workdir
from datarater.meta_training.train import next_command
from datarater.pipelines.commands import flags as options
from datarater.pipelines.commands.score import add_scoring_flags
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.scorer import Scorer
from tests.support import ROOT, training
from tests.support.tensorflow_dataset import build_dataset


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"population__sise": 3}, "sise"),
        ({"meta_steps": "many"}, "many"),
        ({"data__inner": ""}, "data.inner is empty: give the pool"),
        ({"data__inner": "tfds:nothing/en"}, "no dataset 'nothing/en' stands in"),
        ({"data__outer_share": 0}, "data.outer_share must lie between 0 and 1"),
        (
            {"data__windows": "rows"},
            "data.windows must be one of ('packed', 'document'), not 'rows'",
        ),
        ({"population__size": 0}, "population"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, not 0"),
        ({"length": 100_000}, "do not fill one window of 100000 tokens"),
        (
            {"tokenizer__kind": "bpe", "tokenizer__vocabulary_size": 20},
            "a vocabulary of at least 258 ids",
        ),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    tmp_path: Path, cache: Path, changed: dict[str, object], message: str
) -> None:
    texts = training.write_texts(tmp_path / "pool.jsonl")
    done = training.run(
        training.command(tmp_path / "work", texts, data__tfds_data_dir=tmp_path, **changed), cache
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("datarater train: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "work" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config"),
        (["--config=meta_training/configs/default.py"], "--workdir"),
        (["--config=nowhere.py", "--workdir=work"], "nowhere.py"),
        (["--config=meta_training/configs/default.py", "--workdir=work", "--nonsense"], "nonsense"),
        (
            ["--config=meta_training/configs/default.py", "--workdir=work", "corpus.jsonl"],
            "corpus.jsonl",
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    cache: Path, arguments: list[str], message: str
) -> None:
    done = training.run([*training.command(Path("work"), "texts")[:3], *arguments], cache)
    assert done.returncode == 2
    assert done.stderr.startswith("datarater train: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (ROOT / "work").exists()


@pytest.mark.slow
def test_each_trouble_has_its_exit_code(tmp_path: Path, cache: Path) -> None:
    texts = training.write_texts(tmp_path / "pool.jsonl")
    no_match = training.run(
        training.command(tmp_path / "work", texts, data__inner="nowhere/*.jsonl"), cache
    )
    assert (no_match.returncode, no_match.stderr.count("\n")) == (exit_codes.NO_INPUT, 1)
    assert "no file matches 'nowhere/*.jsonl'" in no_match.stderr
    (tmp_path / "empty.jsonl").write_text("")
    empty = training.run(training.command(tmp_path / "work", tmp_path / "empty.jsonl"), cache)
    assert (empty.returncode, empty.stderr.count("\n")) == (exit_codes.EMPTY_CORPUS, 1)
    assert "the inner set has no document" in empty.stderr
    command = [
        part.replace("=somewhere", "=gs://bucket/work")
        for part in training.command(Path("somewhere"), texts)
    ]
    remote = training.run(command, cache)
    assert remote.returncode == exit_codes.WRONG_USAGE
    assert "a workdir lies on a local or mounted file system" in remote.stderr


@pytest.mark.slow
def test_help_says_what_to_give(cache: Path) -> None:
    done = training.run([*training.command(Path("work"), "texts")[:3], "--help"], cache)
    assert done.returncode == exit_codes.DONE
    for part in (
        "--config=meta_training/configs/default.py",
        "--workdir",
        "--config.section.field=value",
        "exit codes:",
    ):
        assert part in done.stdout


@pytest.mark.slow
def test_a_workdir_that_cannot_be_made(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").write_text("")
    texts = training.write_texts(tmp_path / "pool.jsonl")
    done = training.run(training.command(tmp_path / "file" / "work", texts), cache)
    assert done.returncode == exit_codes.FAILED
    assert done.stderr.startswith("datarater train: ")
    assert "--workdir: " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_dataset_built_offline_trains_a_rater_and_a_killed_run_resumes(
    tmp_path: Path, cache: Path
) -> None:
    pool = training.write_texts(tmp_path / "pool.jsonl").read_text().splitlines()
    target = (
        training.write_texts(tmp_path / "target.jsonl", count=80, seed=1).read_text().splitlines()
    )
    folder = tmp_path / "datasets"
    build_dataset(folder, {"train": [*pool, "  ", b"\xff"], "validation": target})
    digests = {}
    for name in ("uninterrupted", "killed"):
        workdir = tmp_path / name
        arguments = training.command(
            workdir,
            "tfds:tiny:train",
            data__outer="tfds:tiny:1.0.0:validation",
            data__tfds_data_dir=folder,
            data__shuffle_buffer=64,
        )
        if name == "killed":
            process = training.start(arguments, cache)
            list(training.lines_until(process, "step 8/24"))
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = training.run(arguments, cache)
        assert done.returncode == 0, done.stderr
        assert ("resuming" in done.stderr) == (name == "killed")
        assert "Traceback" not in done.stderr
        digests[name] = training.digest(workdir / "rater")
        assert len(read_metrics(workdir / "metrics" / "metrics.csv")) == 24
    assert digests["killed"] == digests["uninterrupted"]
    rater = load_rater(tmp_path / "killed" / "rater")
    assert rater.provenance["data"]["inner"] == "windows drawn from tfds:tiny:train (202 documents)"
    scores_N = Scorer(rater).score(["alpha beta gamma", "zeta eta theta"]).scores_N
    assert scores_N[0] != scores_N[1]


def curation_flags(command: str) -> argparse.Namespace:
    """Reads a command line as `datarater curate` does."""
    program, *words = shlex.split(command)
    assert program == "datarater curate"
    parser = options.parser(program, "", "")
    options.add_output_flag(parser)
    options.add_input_flags(parser)
    add_scoring_flags(parser)
    options.add_selection_flags(parser)
    options.add_local_flags(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("inner", "changed", "expected"),
    [
        ("corpus/*.jsonl.gz", {}, {}),
        (
            "my corpus/*.gz,it's/b.jsonl",
            {"text_field": "meta data.text"},
            {"text_field": "meta data.text"},
        ),
        ("tfds:c4/en:3.0.1:train", {"tfds_data_dir": "/my data"}, {"tfds_data_dir": "/my data"}),
        ("tfds:c4/en", {}, {"tfds_data_dir": ""}),
        (
            "corpus/*.jsonl.gz",
            {"tfds_data_dir": "/data"},
            {"tfds_data_dir": ""},
        ),  # of the outer set's
    ],
)
def test_the_next_command_is_one_that_curation_reads(
    inner: str, changed: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    data = default.get_config().data
    data.update({"inner": inner, **changed})
    workdir = Workdir(tmp_path / "my work")
    flags = curation_flags(next_command(workdir, data))
    assert flags.input == [inner]
    assert flags.rater == str(workdir.rater)
    assert {name: getattr(flags, name) for name in expected} == expected
    assert ("--text_field" in next_command(workdir, data)) == ("text_field" in changed)


@pytest.mark.parametrize(
    ("inner", "whole"),
    [
        ("tfds:c4/en:train[:10%]", "tfds:c4/en:train"),
        (
            "tfds:c4/en:3.0.1:train[:10%]+train[20%:]+validation",
            "tfds:c4/en:3.0.1:train+validation",
        ),
    ],
)
def test_the_next_command_reads_whole_splits(inner: str, whole: str, tmp_path: Path) -> None:
    data = default.get_config().data
    data.inner = inner
    assert curation_flags(next_command(Workdir(tmp_path), data)).input == [whole]
